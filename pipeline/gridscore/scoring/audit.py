"""The audit: finds events that have no result, whatever the sequences of the journal say, and has them scored.

1. *Find* the keys of the event map that the result map lacks, by the cluster's SQL (`antijoin`), or by walking both
   maps from here (`missing`).
2. *Look again*: most have their result by now, or are gone.
3. *Wait* until the job has committed past what the journals of their partitions held after 1: before, an event may only
   be waiting for its turn. Partitions without progress stay *waiting*.
4. *Look again*, and leave out dead letters: the rest was *lost*.
5. *Repair*: ask the partitions' owners for a rescan (`rescan`), wait for them, and look again: *scored*.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import BadRecordError, ConflictError, GridError, GridscoreError
from gridscore.grid import transport
from gridscore.grid.journal import Journal
from gridscore.grid.records import Count, Records, Word, parsed
from gridscore.group import rescan
from gridscore.group.lease_records import read_records
from gridscore.group.rescan import Event
from gridscore.job import Jobs
from gridscore.job.life import ENDED, WANTED
from gridscore.scoring import antijoin
from gridscore.scoring.missing import rejection_of, rejections, still_without_result, without_result

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.job import Job, JobRecord
    from gridscore.scoring.missing import Rejection

_log = logging.getLogger(__name__)

# By job: who began its last scheduled audit, and when; and the figures of the last one that ended.
AUDITS_MAP = "gridscore.audits"

MAX_FOUND = 1_000_000  # events without a result at which an audit stops: there will be another
PATIENCE_SECONDS = 20.0  # how long an audit waits for a job without progress
MAX_FOUND_ON_SCHEDULE = 100_000  # the same for audits that run beside the scoring
_LOOK_SECONDS = 0.5
_SCHEDULE_SECONDS = 60.0
_CHUNK = 1_000
_EXAMPLES = 10
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit has found."""

    job: str
    way: str  # `sql`, or `scan` if the maps were walked
    why: str  # why it was not SQL; empty if it was
    events: int
    results: int
    waiting: int  # events without a result that still wait in the journal
    dead_letters: int  # events without a result because they are dead letters
    missing: int  # events that should have had a result
    scored: int  # those of them that are scored now
    rejected: int  # those of them that are dead letters now
    examples: list[str]  # keys of some missing ones
    complete: bool  # whether all events without a result were looked at
    seconds: float

    @property
    def left(self) -> int:
        """Missing events that are neither scored nor dead letters."""
        return self.missing - self.scored - self.rejected

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "left": self.left}


@dataclass(slots=True)
class _Suspects:
    """Keys that seem to have no result, by partition."""

    way: str = "sql"
    why: str = ""
    complete: bool = True
    keys: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.keys.values()))

    def add(self, partition: int, key: bytes) -> None:
        self.keys.setdefault(partition, []).append(key)


class _Auditor:
    """One audit."""

    def __init__(
        self, grid: Grid, record: JobRecord, most: int, progress: Callable[[str, int, int], None] | None
    ) -> None:
        self._grid, self._most, self._record = grid, most, record
        self._job: Job = record.job
        self._say = progress or (lambda _what, _done, _total: None)
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def run(self, *, repair: bool, patience: float) -> Audit:
        began = time.monotonic()
        grid, job = self._grid, self._job
        events, results = await asyncio.gather(*(transport.map_size(grid.client, n) for n in (job.events, job.results)))
        suspects = await self._find(events + results)
        without = await self._look_again(suspects.keys)
        behind = await self._wait_for_turn(without, patience)
        without = await self._look_again(_keys(without))
        alive = _without_letter(without, await rejections(grid, job) if without else ())
        lost = {partition: found for partition, found in alive.items() if partition not in behind}
        left, after = lost, lost
        if lost and repair:
            await rescan.request(grid, job.name, sorted(lost), "audit")
            await self._wait_for_rescans(lost, patience)
            left = await self._look_again(_keys(lost))
            after = _without_letter(left, await rejections(grid, job) if left else ())
        missing = _count(lost)
        return Audit(
            job=job.name,
            way=suspects.way,
            why=suspects.why,
            events=events,
            results=results,
            waiting=_count(alive) - missing,
            dead_letters=_count(without) - _count(alive),
            missing=missing,
            scored=missing - _count(left),
            rejected=_count(left) - _count(after),
            examples=[self._name(event.key) for found in lost.values() for event in found][:_EXAMPLES],
            complete=suspects.complete,
            seconds=round(time.monotonic() - began, 3),
        )

    async def _find(self, entries: int) -> _Suspects:
        self._say("comparing keys", 0, entries)
        why = f"the members would hold {entries:,} keys in memory" if entries > antijoin.MAX_ENTRIES else ""
        if not why:
            try:
                return await self._by_sql()
            except antijoin.NotBySqlError as reason:
                why = str(reason)
        return await self._by_scan(_Suspects("scan", why))

    async def _by_sql(self) -> _Suspects:
        suspects, count = _Suspects(), 0
        async with aclosing(antijoin.keys_without_result(self._grid, self._job.events, self._job.results)) as found:
            async for partition, key in found:
                suspects.add(partition, key)
                count += 1
                if count == self._most:
                    suspects.complete = False
                    break
        return suspects

    async def _by_scan(self, suspects: _Suspects) -> _Suspects:
        count, total = 0, self._grid.partition_count
        for partition in range(total):
            self._say("walking the maps", partition, total)
            async for events in without_result(self._grid, self._job, partition, ()):
                for event in events:
                    suspects.add(partition, event.key)
                count += len(events)
            if count >= self._most:
                suspects.complete = False
                break
        return suspects

    async def _look_again(self, keys: Mapping[int, list[bytes]]) -> dict[int, list[Event]]:
        """The events under these keys that exist and have no result now."""

        async def look(partition: int, some: list[bytes]) -> tuple[int, list[Event]]:
            async with self._limit:
                events = [Event(key, b"") for key in some]
                return partition, await still_without_result(self._grid, self._job, partition, events, ())

        looks = [
            look(partition, some[start : start + _CHUNK])
            for partition, some in keys.items()
            for start in range(0, len(some), _CHUNK)
        ]
        found: dict[int, list[Event]] = {}
        for partition, events in await asyncio.gather(*looks):
            if events:
                found.setdefault(partition, []).extend(events)
        return found

    async def _wait_for_turn(self, without: Mapping[int, list[Event]], patience: float) -> set[int]:
        """Wait until the job has committed what the journals hold now; returns the partitions where it has not."""
        journal = Journal(self._grid, self._job.events)
        bounds = await asyncio.gather(*(journal.bounds(partition) for partition in without))
        targets = {partition: newest + 1 for partition, (_, newest) in zip(without, bounds, strict=True)}
        total, before = len(targets), dict[int, int]()
        moved_at = time.monotonic()
        while targets:
            offsets = {p: record.offset for p, record in (await read_records(self._grid, self._job.name)).items()}
            targets = {
                partition: target for partition, target in targets.items() if offsets.get(partition, -1) < target
            }
            self._say("waiting for what is in the journal", total - len(targets), total)
            if offsets != before:
                before, moved_at = offsets, time.monotonic()
            if not targets or self._record.state not in WANTED or time.monotonic() - moved_at > patience:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        return set(targets)

    async def _wait_for_rescans(self, lost: Mapping[int, list[Event]], patience: float) -> None:
        moved_at, before = time.monotonic(), len(lost) + 1
        while open_now := set(await rescan.pending(self._grid, self._job.name)) & set(lost):
            self._say("scoring what was missing", len(lost) - len(open_now), len(lost))
            if len(open_now) < before:
                before, moved_at = len(open_now), time.monotonic()
            if self._record.state not in WANTED or time.monotonic() - moved_at > patience:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _name(self, key: bytes) -> str:
        try:
            return str(transport.to_object(self._grid.client, key))[:100]
        except Exception as error:  # noqa: BLE001 -- a key that we cannot read is missing all the same
            return f"<{type(error).__name__}: {error}>"


def _keys(events: Mapping[int, list[Event]]) -> dict[int, list[bytes]]:
    return {partition: [event.key for event in found] for partition, found in events.items()}


def _count(events: Mapping[int, list[Event]]) -> int:
    return sum(map(len, events.values()))


def _without_letter(events: Mapping[int, list[Event]], rejected: Collection[Rejection]) -> dict[int, list[Event]]:
    """The events that are not dead letters."""
    left = {p: [event for event in found if rejection_of(event) not in rejected] for p, found in events.items()}
    return {partition: found for partition, found in left.items() if found}


async def audit(
    grid: Grid,
    record: JobRecord,
    *,
    # Whether to have missing events scored. Default: unless the job began at the latest event, for earlier events have
    # no result either, and look the same.
    repair: bool | None = None,
    patience: float = PATIENCE_SECONDS,  # seconds to wait for a job without progress
    most: int = MAX_FOUND,  # events without a result at which the search stops
    # Called with what is being done, how much of it is done, and of how much.
    progress: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Find the events of a job that have no result, and have them scored."""
    if repair is None:
        repair = not record.begins_late
    repair = repair and record.state not in ENDED
    return await _Auditor(grid, record, most, progress).run(repair=repair, patience=patience)


async def audit_on_schedule(grid: Grid, job: Job, worker: str) -> None:
    """Audit a job as often as it says, in one worker of its group; returns if it says never.

    A worker that begins notes it in `gridscore.audits` by compare-and-set, so that no other does. If it dies, nobody
    takes over: the next audit finds the same. The first comes after one to two whole pauses.
    """
    pause = job.audit_seconds
    if pause is None:
        return
    records, clock = Records(grid, AUDITS_MAP), grid.clock
    seen: tuple[str, float] = ("", 0.0)
    # Jobs that were submitted together are not audited together, and workers do not look at the same time.
    late, tick = pause * share_of(job.name), min(pause / 4, _SCHEDULE_SECONDS)
    await asyncio.sleep(tick * share_of(job.name + worker))
    while True:
        await asyncio.sleep(tick)
        try:
            record = await _schedule(records, job.name)
            if record is None:
                await records.create(job.name, _noted(worker))
                continue
            if record.raw != seen[0]:
                seen = (record.raw, clock())
            # By the time of day; or, if a clock is wrong, by what we have seen ourselves.
            since = time.time() - record.value.get("began_at", 0) / 1000
            wait = pause if "last_at" in record.value else pause + late
            if since < wait and clock() - seen[1] < wait:
                continue
            await records.replace(record, {**record.value, **_noted(worker)})
            outcome = await _outcome(grid, job)
            # It may have taken longer than the pause, and another worker may have begun the next one.
            await records.update(job.name, lambda now, outcome=outcome: {**(now or {}), **outcome})  # type: ignore[misc]
        except ConflictError:
            continue  # another worker was first
        except (HazelcastError, GridError) as error:
            _log.warning("%s: the audit failed, trying again: %s", job.name, error)


def share_of(name: str) -> float:
    """A number from 0 to 1, by hash: always the same for a name."""
    return zlib.crc32(name.encode()) / 2**32


class Noted(msgspec.Struct, frozen=True):
    """What the record of an audit holds besides its figures, which are for people."""

    began_at: Count
    by: Word


async def _schedule(records: Records, job: str) -> Record | None:
    """The record of the last audit; a bad one is removed."""
    try:
        record = await records.get(job)
        if record is not None:
            parsed(Noted)(record)
    except BadRecordError as error:
        await records.remove_bad(error.record)
        return None
    except msgspec.ValidationError:
        await records.delete(job)
        return None
    return record


def _noted(worker: str) -> dict[str, Any]:
    return {"began_at": int(time.time() * 1000), "by": worker}


async def _outcome(grid: Grid, job: Job) -> dict[str, Any]:
    """An audit's figures, or its error, for the record."""
    try:
        record = await Jobs(grid).get(job.name)
        found = await audit(grid, record, most=MAX_FOUND_ON_SCHEDULE)
    except (HazelcastError, GridscoreError) as error:
        _log.warning("%s: the audit failed: %s", job.name, error, extra={"action": "audit_failed"})
        return {"error": str(error)}
    level = logging.ERROR if found.left else logging.WARNING if found.missing else logging.INFO
    _log.log(
        level,
        "%s: audit of %d events in %.1f s: %d had no result and should have had one, %d of them are scored now",
        job.name,
        found.events,
        found.seconds,
        found.missing,
        found.scored,
        extra={"action": "audit", "missing": found.missing, "scored": found.scored},
    )
    names = ("way", "events", "results", "waiting", "dead_letters", "missing", "scored", "rejected", "complete", "left")
    figures = {name: getattr(found, name) for name in names}
    return {"error": "", "last_at": int(time.time() * 1000), "took": found.seconds, **figures}
