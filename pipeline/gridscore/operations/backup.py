"""Keeps what only the grid has outside of it, restore point by restore point; `restore` brings it back.

Events and results are not kept: events come again from their sources. So a point has the positions of sources as of a
moment up to which every event has its result, in everything that reads: a *mark*. It is taken like this:

1. the positions of the sources are read, and then where the journals of the event maps end;
2. when every job and sink that reads one of these has committed that end, the journals of the jobs' results follow in
   the same way, until nobody reads what comes out;
3. then the mark is safe, and whatever is read from now on has all that came before it, window states above all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import POSITIONS_MAP, SOURCES_MAP
from gridscore.errors import GridError, GridscoreError, JournalMissingError, UsageError
from gridscore.grid import Records, transport
from gridscore.grid.cutting import JSON, STRING
from gridscore.grid.entries import value_of, values_of, walk
from gridscore.grid.journal import Journal
from gridscore.grid.records import Count, Figure, Word, parsed
from gridscore.grid.wire import type_of
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import LEASES_MAP, read_records
from gridscore.group.members import HEARTBEATS_MAP, HOLDINGS_MAP, WORKERS_MAP
from gridscore.group.rescan import RESCANS_MAP, all_requests, requests_of
from gridscore.group.sessions import SESSIONS_MAP
from gridscore.job.life import JOBS_MAP, OVER, Jobs, JobState
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.registry import MODELS_MAP, VERSIONS_MAP
from gridscore.operations.autoscale import AUTOSCALE_MAP
from gridscore.operations.backup_stores import BackupError
from gridscore.operations.restore_points import MOST_BYTES, Point, Points
from gridscore.operations.status import ACKNOWLEDGED_MAP
from gridscore.operations.window_changes import Tail, WindowChanges
from gridscore.scoring.audit import AUDITS_MAP
from gridscore.scoring.stats import subscription_of
from gridscore.scoring.window_messages import request_map
from gridscore.scoring.window_messages import subscription_of as windows_of
from gridscore.scoring.window_states import map_of as window_map
from gridscore.sinks.records import ERAS_MAP, PROCESSES_MAP, all_sinks
from gridscore.sources.status import SourceRecord
from gridscore.texts import duration_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping

    from gridscore.grid import Grid
    from gridscore.group.rescan import Request
    from gridscore.group.subscription import Subscription

_log = logging.getLogger(__name__)

BACKUPS_MAP = "gridscore.backups"

KEY_TYPES = (STRING, -7, -8)  # of serialized keys: strings and whole numbers, as all that Gridscore writes and looks up
# Control maps that say something of this cluster's journals and processes, which another one does not have; and the
# sources' positions, which are kept as of the mark.
NOT_KEPT = frozenset(
    {
        *(LEASES_MAP, SESSIONS_MAP, WORKERS_MAP, HEARTBEATS_MAP, HOLDINGS_MAP, RESCANS_MAP, SOURCES_MAP),
        *(PROCESSES_MAP, ERAS_MAP, AUDITS_MAP, ACKNOWLEDGED_MAP, AUTOSCALE_MAP, BACKUPS_MAP, POSITIONS_MAP),
    }
)

_BYTE_ARRAY = -12
_GONE = b""
_NOT_THERE = (
    "nothing is left of its points there: the place was emptied, or has another backup now. Once you know why, "
    "`gridscore backup --forget PLACE` ends this"
)
_AT_ONCE = 10_000  # entries of a map that are read in one message
_PAGE = 1_000
_MOST_STAGES = 20
_ATTEMPTS = 5
_SETTLE_SECONDS, _MOST_SETTLE = 0.25, 5.0
_LATE_SECONDS = 10.0
_LOOKS = 100
_PARTITIONS_AT_ONCE = 16
# Within which all states are read once more, for what nothing tells of: somebody has changed them by hand.
_ALL_STATES_SECONDS = 600.0


class BackupRecord(msgspec.Struct, frozen=True):
    """What the grid knows of a backup of it, or of the one that it was restored from."""

    to: Word  # where the points are
    # When the cluster was read last and all of it was on the disk, in milliseconds since 1970; without a point, when
    # the backup began.
    at: Count
    point: Count  # the last point; 0 if there is none
    # When the sources were where they go on from after a restore, as `at`; 0 if there is no point yet from which they
    # do.
    positions_at: Count = 0
    every: Figure = 0.0  # seconds that a point may be old before the next stands; 0 if it was a single one
    held: Word = ""  # why the sources' positions are older than the rest
    error: Word = ""  # why the last look failed; empty if it did not
    oldest: Figure = 0.0  # the most seconds that a point was old before the next stood, of the last looks
    # Whether people want to hear of it no more; the record stays, as it shows that this cluster was restored from it.
    is_forgotten: bool = False

    @property
    def age(self) -> float:
        """Seconds since the last look, by our clock."""
        return max(0.0, time.time() - self.at / 1000)

    @property
    def text(self) -> str:
        """How old the last point is, and points get, for people."""
        if not self.point:
            return f"no restore point in {duration_text(self.age)}"
        oldest = f" (at most {self.oldest:.1f} s in the last {_LOOKS} looks)" if self.oldest else ""
        return f"restore point {self.point}, {duration_text(self.age)} old{oldest}"

    @property
    def is_late(self) -> bool:
        """Whether another look should have come."""
        return bool(self.error) or (self.every > 0 and self.age > max(_LATE_SECONDS, 2 * self.every))


@dataclass
class _Mark:
    """Where the sources were at a moment, and how far readers must have come for that to be safe."""

    at: float
    positions: dict[str, dict[str, Any]]
    feeds: dict[str, tuple[str, ...]]
    maps: frozenset[str] = frozenset()
    tails: dict[str, list[int]] = field(default_factory=dict)


class Backup:
    """Makes restore points of a cluster.

    `points`: where to; open for writing; `every`: seconds that the newest point may be old, where the backup runs;
    `without`: maps of lookups, windows and dead letters that are left out. Raises UsageError if another map is to be
    left out.
    """

    def __init__(self, grid: Grid, points: Points, *, every: float = 0.0, without: Collection[str] = ()) -> None:
        self._grid, self._points, self._every = grid, points, every
        self._without = frozenset(without)
        if control := [name for name in without if name.startswith("gridscore.")]:
            raise UsageError(f"`{control[0]}` cannot be left out: other maps need it.")
        self._records = Records(grid, BACKUPS_MAP)
        self._digests: dict[str, dict[bytes, bytes]] = {}
        self._last: Point | None = None
        self._restored = 0  # the point that this cluster was restored from, as long as none of it is newer
        self._pending: _Mark | None = None
        self._safe: _Mark | None = None
        self._held = ""
        self._waited = frozenset[str]()  # the maps whose readers hold it up
        self._id = points.id  # of the backup that was opened
        self._looked_at = time.time()
        self._ages = deque[float](maxlen=_LOOKS)
        self._sizes: dict[str, int] = {}
        self._tails: dict[str, tuple[object, dict[int, Tail]]] = {}  # of windows whose changes are told
        # Keys of large maps of windows in the last point, by partition, as of a round over all partitions.
        self._sorted: dict[str, tuple[int, dict[int, list[bytes]]]] = {}
        self._turn = 0
        self._cluster = transport.cluster_id(grid.client)
        self._passed_over = Counter[str]()
        self.made = 0

    async def open(self) -> None:
        """Go on after the newest point.

        Raises UsageError if its points are of another cluster, which this one was not restored from; BackupError if it
        is damaged.
        """
        numbers = await asyncio.to_thread(self._points.numbers)
        last = safe = await asyncio.to_thread(self._points.read) if numbers else None
        restored = 0
        if last is not None and last.cluster != self._cluster:
            known = (await self._records.read(parsed(BackupRecord))).get(self._points.id)
            if known is None:
                raise UsageError(
                    f"The points in `{self._points.address}` are of another cluster. New ones, of this one, would take "
                    "their place one after the other.",
                    f"Restore it first: `gridscore restore --from {self._points.address}`; or name another place.",
                )
            # Its states are those of the point that was restored: later positions would pass over messages.
            restored = known.point
            safe = await asyncio.to_thread(self._points.read, known.point) if known.point in numbers else None
        digests = {}
        if last is not None:
            for name in last.maps:
                entries = await asyncio.to_thread(self._points.entries, last, name)
                digests[name] = {key: _digest(text) for key, text in entries.items()}
        if self._points.id != self._id:
            if self._last is None:
                await self._records.delete(self._id)
            else:  # or all would seem well while its points are gone
                await self._records.put(self._id, msgspec.to_builtins(self._record(_NOT_THERE)))
        # Until here nothing has changed, or what is of one place would be taken for that of another.
        self._digests, self._tails, self._sorted = digests, {}, {}
        if last is not None:  # without, what was safe is: the states that are read next are later
            self._looked_at = last.at
            self._safe = _Mark(safe.positions_at, safe.positions, safe.feeds) if safe else None
        self._id, self._last, self._restored = self._points.id, last, restored

    async def run(self) -> None:
        """Make points until cancelled, whatever the cluster and the place of the points do.

        Raises ClusterReplacedError if another cluster is there instead, without what the points have.
        """
        await self._grid.while_same(self._run())

    async def _run(self) -> None:
        busy = 0.0
        while True:
            began = time.monotonic()
            try:
                await self.look(_patience(self._every, busy))
                busy = max(0.0, time.time() - self._looked_at)
            except (HazelcastError, GridscoreError, OSError) as error:
                _log.warning("No restore point was made: %s", error, extra={"action": "backup_failed"})
                await self._tell(str(error))
            await asyncio.sleep(_pause(self._every, busy, time.monotonic() - began))

    async def look(self, settle: float = 0.0) -> Point:
        """Read the cluster, and make a point if anything has changed; returns the newest.

        `settle`: seconds to wait until the sources' positions are safe; those of before are kept otherwise. What is
        read next has few events more, which windows would count again. Raises GridError if the cluster has more than
        can be kept; BackupError or OSError if the place of the points does not answer, or cannot be written.
        """
        try:
            if not await self._is_as_left():
                await self._open_again()
            return await self._look(settle)
        except BaseException:
            self._points.undo()
            raise

    async def _is_as_left(self) -> bool:
        return await asyncio.to_thread(self._points.is_as_left, self._id, self._last.number if self._last else 0)

    async def _open_again(self) -> None:
        """Go on with what is there: a point whose writing failed, or what somebody has made of the place."""
        points = self._points
        if self._last is not None:
            said = "%s is not as it was left, with the restore point %d as the newest: it is read again"
            _log.warning(said, points.place, self._last.number, extra={"action": "backup_place_changed"})
        await asyncio.to_thread(points.begin)
        await self.open()
        if not await self._is_as_left():
            text = f"The newest restore point in `{points.address}` lacks what somebody has removed."
            raise BackupError(text, "For new points, name a new place.")

    async def _look(self, settle: float) -> Point:
        await self.settle(settle)
        at = time.time()
        changes, sizes, tails = await self._read()
        last, safe = self._last, self._safe
        positions, positions_at, feeds = (safe.positions, safe.at, safe.feeds) if safe else ({}, 0.0, {})
        # Time alone makes no point: what the last one says still holds.
        now = (self._cluster, self._every, positions, positions_at > 0)
        if (
            last is None
            or any(changes.values())
            or now != (last.cluster, last.every, last.positions, last.positions_at > 0)
        ):
            before = last.maps if last else {}

            def write() -> Point:
                made = Point(
                    number=last.number + 1 if last else 1,
                    at=at,
                    cluster=self._cluster,
                    positions=positions,
                    positions_at=positions_at,
                    held=self._held,
                    every=self._every,
                    feeds=feeds,
                    maps={
                        name: self._points.add(before.get(name, ()), changes[name], self._live(name, changes[name]))
                        if changes.get(name)
                        else before.get(name, ())
                        for name in sorted({*changes, *before})
                    },
                )
                self._points.commit(made)
                return made

            if transport.cluster_id(self._grid.client) != self._cluster:
                raise GridError("Another cluster came while this one was read: no restore point was made.")
            writing = asyncio.ensure_future(asyncio.to_thread(write))
            try:
                last = await asyncio.shield(writing)
            finally:
                await asyncio.wait({writing})  # nobody else may write before, even if we are told to stop
            self.made += 1
            self._restored = 0
            for name, changed in changes.items():
                known = self._digests.setdefault(name, {})
                known |= {key: _digest(text) for key, text in changed.items() if text is not None}
                for key, text in changed.items():
                    if text is None:
                        known.pop(key, None)
        if self._turn and self._every:
            self._ages.append(time.time() - self._looked_at)
        self._last, self._looked_at, self._sizes, self._tails = last, at, sizes, tails
        self._turn += 1
        await self._tell("")
        return last

    def _live(self, name: str, changed: Mapping[bytes, bytes | None]) -> int:
        """Entries that a map has after some changes."""
        known = self._digests.get(name, {})
        return len(known) + sum(-1 if text is None else key not in known for key, text in changed.items())

    async def _tell(self, error: str) -> None:
        """Write down in the grid how old the last point is."""
        try:
            await self._records.put(self._id, msgspec.to_builtins(self._record(error)))
        except (HazelcastError, GridError) as failed:
            _log.debug("The figures of the backup could not be published: %s", failed)

    def _record(self, error: str) -> BackupRecord:
        return BackupRecord(
            to=self._points.place,
            at=int(self._looked_at * 1000),
            point=self._restored or (self._last.number if self._last else 0),
            positions_at=int((self._safe.at if self._safe else 0) * 1000),
            every=self._every,
            held=self._held,
            error=error[:1000],
            oldest=max(self._ages, default=0.0),
        )

    # ------------------------------------------------------------------ what the maps have

    async def _read(self) -> tuple[dict[str, dict[bytes, bytes | None]], dict[str, int], dict[str, Any]]:
        """What has changed since the last point, by map; how large maps are; and up to where windows' changes are told.

        Jobs name models, and models their parts: each is read before what it names. A model that has changed meanwhile
        may have lost parts that were read of; so they are read again.
        """
        there = await transport.map_names(self._grid.client)
        records = [record for record in await Jobs(self._grid).all() if record.state not in OVER]
        lookups = {lookup.map for record in records for lookup in record.job.lookups.values()} - self._without
        rest = {name for name in there if name.startswith(("gridscore.", "dead-letters.", "windows."))} - NOT_KEPT
        sizes: dict[str, int] = {}
        models = (MODELS_MAP, VERSIONS_MAP, CHUNKS_MAP)
        for _ in range(_ATTEMPTS):
            first = (JOBS_MAP, *models)
            before = await Records(self._grid, MODELS_MAP).all() if MODELS_MAP in there else {}
            changes = {name: await self._diff(name, sizes) for name in first if name in there}
            if MODELS_MAP not in there or await Records(self._grid, MODELS_MAP).all() == before:
                break
        else:
            raise GridError("Models are changed all the time: no restore point was made.")
        # Who is suspended may have its windows filled with a history.
        windows = {window_map(each.name): each for each in records if each.state is JobState.RUNNING and self._every}
        tails: dict[str, tuple[object, dict[int, Tail]]] = {}
        for name in sorted(((rest - {*first}) | (lookups & there)) - self._without):
            if (record := windows.get(name)) is None:
                changes[name] = await self._diff(name, sizes)
            else:
                told = WindowChanges(self._grid, record)
                run, before_then = self._tails.get(name, (None, {}))
                tails[name] = told.run, await told.tails()
                changes[name] = await self._diff(
                    name, sizes, (told, before_then if run == told.run else {}, tails[name][1])
                )
        changes |= {name: dict.fromkeys(keys) for name, keys in self._digests.items() if name not in changes}
        return changes, sizes, tails

    async def _diff(
        self,
        name: str,
        sizes: dict[str, int],
        told: tuple[WindowChanges, dict[int, Tail], dict[int, Tail]] | None = None,
    ) -> dict[bytes, bytes | None]:
        """What has changed of a map."""
        known = self._digests.get(name, {})
        changed: dict[bytes, bytes | None] = {}
        seen: set[bytes] | None = set()
        size, count = 0, await transport.map_size(self._grid.client, name)
        if name == CHUNKS_MAP:
            entries = self._parts(known)
        elif told and told[1] and count > _AT_ONCE and len(known) < 1.5 * count:
            seen, size = None, self._sizes.get(name, 0)
            entries = self._changed_states(name, known, *told)
        else:
            entries = self._texts(name, count)
        async for key, text in entries:
            if seen is not None:
                seen.add(key)
            if text is _GONE:
                if key in known:
                    changed[key] = None
                continue
            if seen is not None or key not in known:
                size += len(text or b"") + len(key)
            if text is not None and known.get(key) != _digest(text):
                changed[key] = text
            if size > MOST_BYTES:
                raise GridError(
                    f"The map `{name}` has more than {MOST_BYTES >> 20:,} MiB: no restore point was made.",
                    f"It can be left out: `--without {name}`.",
                )
        sizes[name] = size
        return changed if seen is None else changed | {key: None for key in known if key not in seen}

    async def _texts(self, name: str, count: int) -> AsyncIterator[tuple[bytes, bytes | None]]:
        """Serialized keys and JSON texts of a map."""
        others = 0
        async for page in self._pages(name, count):
            for key, value in page:
                if _is_kept(name, key, value):
                    yield key, value[12:]
                elif not _is_ledger(name, key):
                    others += 1
        if others and others != self._passed_over[name]:
            text = "%s: %d entries are not kept: their keys are no strings or whole numbers, or they are not JSON"
            _log.warning(text, name, others, extra={"action": "backup_passed_over"})
        self._passed_over[name] = others

    async def _pages(self, name: str, count: int) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        grid = self._grid
        if count <= _AT_ONCE:
            yield await transport.map_entries(grid.client, name)
            return
        for partition in range(grid.partition_count):
            async for page in walk(grid, name, partition, _PAGE):
                yield page

    async def _changed_states(
        self,
        name: str,
        known: Mapping[bytes, bytes],
        told: WindowChanges,
        before: dict[int, Tail],
        now: dict[int, Tail],
    ) -> AsyncIterator[tuple[bytes, bytes | None]]:
        """Keys and texts of states that can have changed, `_GONE` for those that are gone; and, in turns, of all."""
        grid, count = self._grid, self._grid.partition_count
        turn = math.ceil(count * self._every / _ALL_STATES_SECONDS)
        whole = {(self._turn * turn + each) % count for each in range(turn)}
        # To sort all keys takes a second for a million: those that come meanwhile are looked for in the next round.
        this_round = self._turn * turn // count
        sorted_in, kept = self._sorted.get(name, (0, {}))
        if sorted_in != this_round or not kept:
            kept = await asyncio.to_thread(_by_partition, known, count)
            self._sorted[name] = this_round, kept

        async def of(partition: int) -> list[tuple[bytes, bytes | None]]:
            keys = None if partition in whole else await told.keys(partition, before.get(partition), now.get(partition))
            if keys is None:
                there = dict([each async for page in walk(grid, name, partition, _PAGE) for each in page])
                return [*there.items(), *((key, None) for key in kept.get(partition, ()) if key not in there)]
            values = await values_of(grid, name, partition, keys)
            return [(key, values.get(key)) for key in keys]

        for begin in range(0, count, _PARTITIONS_AT_ONCE):
            some = range(begin, min(begin + _PARTITIONS_AT_ONCE, count))
            for found in await asyncio.gather(*map(of, some)):
                for key, value in found:
                    if value is None:
                        yield key, _GONE
                    elif _is_kept(name, key, value):
                        yield key, value[12:]

    async def _parts(self, known: Mapping[bytes, bytes]) -> AsyncIterator[tuple[bytes, bytes | None]]:
        """Keys of the parts of models, each with the name of its file; None for one that is kept: none ever changes."""
        for key in await transport.map_keys(self._grid.client, CHUNKS_MAP):
            if key in known:
                yield key, None
                continue
            value = await value_of(self._grid, CHUNKS_MAP, key)
            if value is not None and type_of(key) == STRING and type_of(value) == _BYTE_ARRAY:
                yield key, (await asyncio.to_thread(self._points.put, value[12:])).encode()

    # ------------------------------------------------------------------ the positions of the sources

    async def _readers(self) -> list[tuple[Subscription, set[str]]]:
        """What jobs, their windows and sinks read, and where they put what comes of it."""
        found: list[tuple[Subscription, set[str]]] = [
            (sink.subscription, set()) for sink in await all_sinks(self._grid)
        ]
        for each in await Jobs(self._grid).all():
            if each.state not in OVER:
                outputs = {each.job.results}
                if each.job.routes_windows:  # which are written after the results
                    outputs.add(request_map(each.name))
                    found.append((windows_of(each.name), set()))
                found.append((subscription_of(each), outputs))
        return found

    async def _mark(self) -> _Mark:
        grid, at = self._grid, time.time()
        positions = {key: record.value for key, record in (await Records(grid, POSITIONS_MAP).all()).items()}
        processes = await Records(grid, SOURCES_MAP).read(parsed(SourceRecord))
        before = self._safe or _Mark(0.0, {}, {})
        feeds = {name: maps for name, maps in before.feeds.items() if _is_of(name, {*positions, *before.positions})}
        elsewhere: dict[str, dict[str, int]] = {}
        for each in processes.values():
            feeds[each.name] = tuple(sorted({each.map, *each.also}))
            for item, offsets in each.positions.items():
                known = elsewhere.setdefault(f"{each.name}/{item}", {})
                # Of two processes that tell of one partition, the one may not know yet that it has lost it.
                known |= {key: min(offset, known.get(key, offset)) for key, offset in offsets.items()}
        # Who has stopped tells nothing; where it was before is safe.
        kept = {key: offsets for key, record in before.positions.items() if (offsets := _restored(record))}
        for key in {*elsewhere, *kept}:
            offsets = kept.get(key, {}) | elsewhere.get(key, {})
            positions[key] = {"writer": "backup", "position": {"begun": True, "restored": offsets}}
        maps = frozenset(sub.map for sub, _ in await self._readers())
        return _Mark(at, positions, feeds, maps, await self._ends(maps))

    async def settle(self, seconds: float) -> None:
        """Wait, for a time at most, until everything that sources had read at a moment has come out."""
        began = time.monotonic()
        while True:
            mark = self._pending = self._pending or await self._mark()
            if await self._has_come_out(mark):
                self._safe, self._pending, self._held = await self._without_unread(mark), None, ""
                return
            waited = time.monotonic() - began
            if waited >= seconds:
                ends = await self._ends(self._waited)  # each partition of each is asked: not at every turn
                if any(end < tail for name in ends for end, tail in zip(ends[name], mark.tails[name], strict=True)):
                    self._pending = None  # a journal has begun again, and nobody will ever come as far
                return
            await asyncio.sleep(min(max(_SETTLE_SECONDS, waited / 2), seconds - waited))

    async def _has_come_out(self, mark: _Mark) -> bool:
        """Whether all readers have come as far as the mark asks; its tails move on with them."""
        for _ in range(_MOST_STAGES):  # jobs may read each other's results in a circle
            readers = await self._readers()
            concerned = [(sub, outputs) for sub, outputs in readers if sub.map in mark.tails]
            requests = await all_requests(self._grid)
            owed = [(sub, await self._owed(sub, mark.tails[sub.map], requests)) for sub, _ in concerned]
            if waited := [f"`{sub.group.removeprefix('sink:')}` has {count:,} to go" for sub, count in owed if count]:
                self._held, self._waited = "; ".join(waited)[:1000], frozenset(sub.map for sub, count in owed if count)
                return False
            read = {sub.map for sub, _ in readers}
            mark.tails = await self._ends(set[str]().union(*(outputs for _, outputs in concerned)) & read)
            if not mark.tails:
                break
        return True

    async def _without_unread(self, mark: _Mark) -> _Mark:
        """Without positions of sources whose map nobody reads and no point has: another cluster needs all of it."""
        jobs = [each.job for each in await Jobs(self._grid).all() if each.state not in OVER]
        kept = {lookup.map for job in jobs for lookup in job.lookups.values()} - self._without | mark.maps
        lost = {name for name, maps in mark.feeds.items() if not kept.issuperset(maps)}
        mark.positions = {key: value for key, value in mark.positions.items() if key.partition("/")[0] not in lost}
        return mark

    async def _owed(self, sub: Subscription, tails: list[int], requests: Mapping[str, Request]) -> int:
        """How many entries before the ends of a journal a group may not be done with."""
        leases = await read_records(self._grid, sub.group)
        count = len(requests_of(sub.group, requests))  # rescans: what they are about, no offset tells
        for partition, tail in enumerate(tails):
            lease = leases.get(partition)
            if lease is not None and lease.has_begun(sub.begin, sub.restarts):
                count += max(0, tail - lease.offset)
            elif sub.beginning == "oldest":
                count += tail
        return count

    async def _ends(self, names: Iterable[str]) -> dict[str, list[int]]:
        """The next sequence of each partition's journal, by map."""
        partitions = range(self._grid.partition_count)
        found = {}
        for name in names:
            journal = Journal(self._grid, name)
            with contextlib.suppress(JournalMissingError):  # nobody can read it
                bounds = await asyncio.gather(*(journal.bounds(partition) for partition in partitions))
                found[name] = [newest + 1 for _, newest in bounds]
        return found


async def backups_of(grid: Grid) -> list[BackupRecord]:
    """What the grid knows of its backups, but for those that were forgotten, the latest first."""
    found = await Records(grid, BACKUPS_MAP).read(parsed(BackupRecord))
    return sorted((each for each in found.values() if not each.is_forgotten), key=lambda each: -each.at)


async def forget_backup(grid: Grid, place: str) -> str:
    """Say nothing more of a backup that is made no more; its restore points stay. Returns its place.

    `place`: as `status` shows it, or its path alone. Raises UsageError if there is none, several are meant, or it runs.
    """
    records = Records(grid, BACKUPS_MAP)
    found = await records.read(parsed(BackupRecord))
    known = {key: each for key, each in found.items() if not each.is_forgotten}
    places = {each.to for each in known.values()}
    meant = {place} & places or {each for each in places if each.partition(":")[2] == place}
    if len(meant) != 1:
        said = f"Several backups are at `{place}`" if meant else f"The cluster knows of no backup to `{place}`"
        raise UsageError(
            f"{said}.", f"The cluster knows of: {', '.join(f'`{each}`' for each in sorted(places)) or 'none'}."
        )
    (at,) = meant
    # Where one runs, an earlier one may have left its record.
    theirs = {key: each for key, each in known.items() if each.to == at and (each.is_late or not each.every)}
    if not theirs:
        raise UsageError(
            f"A backup to `{at}` runs, or ended just now.",
            "End it; then try again once `gridscore status` shows it as late.",
        )
    for key, each in theirs.items():
        await records.put(key, msgspec.to_builtins(msgspec.structs.replace(each, is_forgotten=True)))
    return at


def _patience(every: float, busy: float) -> float:
    """Seconds to wait for safe positions; see `_pause`."""
    return max(0.0, min(every / 2, every - 3 * busy, _MOST_SETTLE))


def _pause(every: float, busy: float, took: float) -> float:
    """Seconds until the next look, that its point stands when this one is `every` old.

    `busy`: that reading and writing took, as a large cluster is not read all the time; `took`: the look, with its wait.
    """
    return max(every - busy - 1.5 * took, min(busy, 60.0), 0.1)


def _is_of(source: str, keys: Collection[str]) -> bool:
    return any(key.partition("/")[0] == source for key in keys)


def _restored(record: Mapping[str, Any]) -> dict[str, int]:
    """Where a source is to go back to that keeps its positions elsewhere."""
    position = record.get("position")
    found = position.get("restored") if isinstance(position, dict) else None
    return found if isinstance(found, dict) else {}


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=12).digest()


def _by_partition(keys: Iterable[bytes], count: int) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for key in keys:
        found.setdefault(partition_of(key, count), []).append(key)
    return found


def _is_ledger(name: str, key: bytes) -> bool:
    """Whether an entry says which events of journals windows have; they are the only ones that choose a partition."""
    return name.startswith("windows.") and key[:4] != b"\0\0\0\0"


def _is_kept(name: str, key: bytes, value: bytes) -> bool:
    return type_of(key) in KEY_TYPES and type_of(value) == JSON and not _is_ledger(name, key)
