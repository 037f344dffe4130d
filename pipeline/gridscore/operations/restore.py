"""Brings a cluster to a restore point: puts what the point has, and this cluster does not; never changes what is there.

Jobs come last, so that nobody scores before everything is there. If it is interrupted, the same call again goes on.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import POSITIONS_MAP, SINKS_MAP
from gridscore.errors import JobError, UsageError
from gridscore.grid import Record, Records, transport, wire
from gridscore.grid.entries import put_absent, value_of
from gridscore.grid.records import key_text, reason_of, record_text
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import LEASES_MAP, Change, LeaseRecord, LeaseWriter, Outcome
from gridscore.job.life import JOBS_MAP, OVER, JobRecord
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.version import CHUNK
from gridscore.operations.backup import BACKUPS_MAP, KEY_TYPES, NOT_KEPT, BackupRecord
from gridscore.operations.backup_stores import BackupError
from gridscore.scoring.preparation import prepare
from gridscore.scoring.stats import subscription_of
from gridscore.scoring.window_states import for_another_grid
from gridscore.sinks.records import SinkRecord
from gridscore.sources.status import running_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gridscore.grid import Grid
    from gridscore.operations.restore_points import Point, Points

_ENTRIES, _BYTES = 500, 1 << 20  # of one message
_LEASE_SECONDS = 40.0

_is_json = msgspec.json.Decoder(msgspec.Raw).decode


class Step(NamedTuple):
    """What a map is to get."""

    map: str  # the map
    # Texts that the cluster does not have, by serialized key; of parts of models, the names of their files.
    missing: dict[bytes, bytes]
    there: int  # entries that it has, alike
    other: int  # entries that it has otherwise


class Restore:
    """The restore of one point.

    Raises BackupError if something of it is missing, damaged, or not of this version of Gridscore.
    """

    def __init__(self, grid: Grid, points: Points, point: Point) -> None:
        self._grid, self._points, self.point = grid, points, point
        self._jobs: list[JobRecord] = []
        self._content = self._load()

    async def plan(self) -> list[Step]:
        """What each map is to get, in order. This only reads, and creates no map."""
        names = await transport.map_names(self._grid.client)
        return [await self._step(name, exists=name in names) for name in self._content]

    async def run(
        self, steps: Iterable[Step], *, merge: bool = False, progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Put what is missing, and look whether it is there.

        `steps`: as planned; `merge`: leave what the cluster has otherwise as it is; `progress`: called with the entries
        put and all entries. Raises UsageError if the cluster has some of it otherwise, and `merge` is not set; JobError
        if a source is running; BackupError if something was changed meanwhile.
        """
        steps = list(steps)
        if not merge and (others := [f"{step.other:,} in `{step.map}`" for step in steps if step.other]):
            raise UsageError(
                f"The cluster has other entries under the same keys: {', '.join(others)}. Nothing was restored.",
                "Restore into an empty cluster; or keep what this one has and add the rest: --merge.",
            )
        for record in self._jobs:
            await prepare(self._grid, record.job)  # before any of the maps is named
        # It would go on from where it is, and write that over what is restored.
        if living := await running_sources(self._grid):
            who = f"{living[0].host}, process {living[0].pid}"
            raise JobError(f"The source `{living[0].name}` is running: {who}.", "Stop all sources first.")
        done, total = 0, sum(len(step.missing) for step in steps)
        for step in steps:
            if step.map == JOBS_MAP:
                await self._begin_at_zero()
            for batch in _batches(step.missing):
                await self._put(step.map, batch)
                done += len(batch)
                progress(done, total)
            again = await self._step(step.map, exists=True)
            if again.missing or again.other > step.other:
                count = len(again.missing) + again.other - step.other
                raise BackupError(
                    f"{count:,} entries of `{step.map}` are not what was put: somebody else changes them.",
                    "Stop whatever else writes there, then restore again.",
                )
        point = self.point
        at, positions_at = int(point.at * 1000), int(point.positions_at * 1000)
        # It is late until somebody starts the backup again.
        known = BackupRecord(self._points.place, at, point.number, positions_at, point.every, point.held)
        await Records(self._grid, BACKUPS_MAP).put(self._points.id, msgspec.to_builtins(known))

    # ------------------------------------------------------------------ what the point has

    def _load(self) -> dict[str, dict[bytes, bytes]]:
        """Texts by key and map, in the order in which they are put; jobs last."""
        point = self.point
        found = {name: self._points.entries(point, name) for name in point.maps}
        for key, text in found.get(JOBS_MAP, {}).items():
            name = ""
            try:
                name = key_text(key)
                self._jobs.append(JobRecord.parse(Record(name, msgspec.json.decode(text), text.decode())))
            except Exception as error:  # noqa: BLE001 -- whatever is wrong with it
                raise BackupError(f"The job `{name}` cannot be used: {reason_of(error)}") from None
        lookups = {lookup.map for record in self._jobs for lookup in record.job.lookups.values()}
        for name, entries in found.items():
            control = name.startswith("gridscore.") and name not in NOT_KEPT
            if not control and not name.startswith(("windows.", "dead-letters.")) and name not in lookups:
                raise BackupError(f"The point has entries of `{name}`, which is not a map that is kept.")
            try:
                found[name] = self._checked(name, entries)
            except (ValueError, RecursionError) as error:
                raise BackupError(f"The point has entries of `{name}` that cannot be used: {error}") from None
        key_data = transport.key_data
        positions = {
            key_data(self._grid.client, key): record_text(value).encode() for key, value in point.positions.items()
        }
        jobs = found.pop(JOBS_MAP, {})
        models = {name: found.pop(name) for name in [CHUNKS_MAP] if name in found}
        return {**models, **found, POSITIONS_MAP: positions, JOBS_MAP: jobs}

    def _checked(self, name: str, entries: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        checked: dict[bytes, bytes] = {}
        for key, text in entries.items():
            if len(key) < 12 or wire.type_of(key) not in KEY_TYPES:
                raise ValueError("a key is neither a string nor a whole number")
            if name == CHUNKS_MAP:
                checked[key] = text
                continue
            _is_json(text)
            kept = for_another_grid(key, text) if name.startswith("windows.") else text
            if kept is not None:
                checked[key] = kept
        return checked

    # ------------------------------------------------------------------ what the cluster has

    async def _step(self, name: str, *, exists: bool) -> Step:
        wanted = self._content[name]
        if not exists:
            return Step(name, wanted, 0, 0)
        if name == CHUNKS_MAP:
            return await self._step_of_parts(wanted)
        there = {key[4:]: value[4:] for key, value in await transport.map_entries(self._grid.client, name)}
        same = sum(there.get(key[4:]) == wire.json_data(text)[4:] for key, text in wanted.items())
        missing = {key: text for key, text in wanted.items() if key[4:] not in there}
        return Step(name, missing, same, len(wanted) - same - len(missing))

    async def _step_of_parts(self, wanted: Mapping[bytes, bytes]) -> Step:
        there = {key[4:] for key in await transport.map_keys(self._grid.client, CHUNKS_MAP)}
        same = 0
        for key, sha256 in wanted.items():
            if key[4:] in there:
                value = await value_of(self._grid, CHUNKS_MAP, key)
                same += value is not None and value[12:] == await self._part(sha256)
        missing = {key: sha256 for key, sha256 in wanted.items() if key[4:] not in there}
        return Step(CHUNKS_MAP, missing, same, len(wanted) - same - len(missing))

    # ------------------------------------------------------------------ put it

    async def _put(self, name: str, batch: Mapping[bytes, bytes]) -> None:
        grid, count = self._grid, self._grid.partition_count
        proxy = await grid.map(name)
        if name == CHUNKS_MAP:
            for key, sha256 in batch.items():
                await proxy.set(key_text(key), bytearray(await self._part(sha256)))
        elif name.startswith("gridscore."):  # what somebody else has just put there stays
            for key, text in batch.items():
                await put_absent(grid, name, key, text)
        else:
            by_partition: dict[int, dict[bytes, bytes]] = {}
            for key, text in batch.items():
                by_partition.setdefault(partition_of(key, count), {})[key] = text
            writer = MapWriter(grid, name)
            puts = [writer.put_partition(p, [*e], [*e.values()], once=False) for p, e in by_partition.items()]
            await asyncio.gather(*puts)

    async def _part(self, sha256: bytes) -> bytes:
        return await asyncio.to_thread(self._points.data, sha256.decode("latin-1"), CHUNK)

    async def _begin_at_zero(self) -> None:
        """Let all readers begin at the start of their journals: what is put from now on is for them.

        Epochs of results continue from the present time, so that any destination takes them for newer than before.
        """
        sinks = [
            SinkRecord.from_record(Record(key_text(key), msgspec.json.decode(text), ""))
            for key, text in self._content.get(SINKS_MAP, {}).items()
        ]
        groups = [subscription_of(record) for record in self._jobs if record.state not in OVER]
        groups += [sink.subscription for sink in sinks if sink.subscription.beginning != "oldest"]
        lease = LeaseRecord("", int(time.time()), 0)
        for sub in groups:
            await self._grid.map(LEASES_MAP)
            again = msgspec.structs.replace(lease, run=sub.restarts)
            changes = [Change(partition, None, again) for partition in range(self._grid.partition_count)]
            outcomes: dict[int, Outcome] = {}  # None where somebody has begun
            await LeaseWriter(self._grid, sub.group, _LEASE_SECONDS).write_all(changes, outcomes.__setitem__)
            for outcome in outcomes.values():
                if isinstance(outcome, HazelcastError):
                    raise outcome


def _batches(entries: Mapping[bytes, bytes]) -> Iterable[dict[bytes, bytes]]:
    batch: dict[bytes, bytes] = {}
    size = 0
    for key, text in entries.items():
        batch[key] = text
        size += len(key) + len(text)
        if len(batch) >= _ENTRIES or size >= _BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def to_json(point: Point, steps: Iterable[Step]) -> dict[str, Any]:
    return {
        "point": point.number,
        "at": point.at,
        "positions_at": point.positions_at,
        "held": point.held,
        "maps": [
            {"map": step.map, "missing": len(step.missing), "there": step.there, "other": step.other} for step in steps
        ],
    }
