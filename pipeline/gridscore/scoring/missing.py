"""Events without a result: found in the event map itself, a partition at a time, whatever the journal still has.

A dead letter with the same bytes explains a missing result. An event without one may also wait in the journal. So a
rescan looks, waits until the journal is scored up to its end at that time, and looks again: what is still missing was
lost, and takes the ordinary way from there, behind what has arrived.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import MAX_RAW, walk_letters
from gridscore.grid import transport
from gridscore.grid.connection import DESTROYED_SECONDS
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk
from gridscore.grid.journal import Journal
from gridscore.group import rescan
from gridscore.group.lease_records import read_records
from gridscore.group.members import registered
from gridscore.group.offsets import NotNowError
from gridscore.group.rescan import Event, page_of
from gridscore.scoring.prior_results import origins_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid
    from gridscore.group.group import Group
    from gridscore.job import Job, JobRecord
    from gridscore.scoring.stats import JobStats

_log = logging.getLogger(__name__)

_PAGE = 512
# How long rescans use the dead letters that were read: they come in numbers, one for each partition.
_LETTERS_SECONDS = 5.0

_WAIT_SECONDS = 0.1
_PATIENCE_SECONDS = 20.0  # how long a rescan waits for what it found, before it is left for later
_AT_ONCE = 512


class Rejection(NamedTuple):
    """Identifies the event of a dead letter: its key, and a checksum of its bytes as far as they are kept."""

    key: bytes
    checksum: int


async def rejections(grid: Grid, job: Job) -> set[Rejection]:
    """The events that are dead letters of a job."""
    return {_rejection(dead) async for _, dead in walk_letters(grid, job.name)}


def _rejection(dead: DeadLetter) -> Rejection:
    return Rejection(dead.key_bytes, zlib.crc32(dead.raw_bytes))


async def without_result(
    grid: Grid, job: Job, partition: int, rejected: Collection[Rejection]
) -> AsyncIterator[list[Event]]:
    """Events of a partition that have no result now, by pages, which may be empty. Some may wait in the journal."""
    async for entries in walk(grid, job.events, partition, _PAGE):
        results = await origins_of(grid, job.results, partition, [key for key, _ in entries])
        yield _kept([Event(*entry) for entry in entries if entry[0] not in results], rejected)


async def still_without_result(
    grid: Grid, job: Job, partition: int, events: list[Event], rejected: Collection[Rejection]
) -> list[Event]:
    """The events that have no result now and are still in the event map, with their present values.

    The values are read last: what is put under the same key later also comes later in the journal.
    """
    keys = [event.key for event in events]
    results = await origins_of(grid, job.results, partition, keys)
    now = await values_of(grid, job.events, partition, [key for key in keys if key not in results])
    return _kept([Event(*entry) for entry in now.items()], rejected)


def _kept(events: list[Event], rejected: Collection[Rejection]) -> list[Event]:
    return [event for event in events if not rejected or rejection_of(event) not in rejected]


def rejection_of(event: Event) -> Rejection:
    """What would identify an event among the dead letters."""
    raw = payload(event.value) or event.value
    return Rejection(event.key, zlib.crc32(raw[:MAX_RAW]))


class MissingResults:
    """Finds the events of a job that have no result, and has them scored."""

    def __init__(self, grid: Grid, record: JobRecord, group: Group, stats: JobStats) -> None:
        self._grid, self._job, self._group = grid, record.job, group
        # Otherwise earlier events have no result either, and look the same.
        self._may_search = not record.begins_late
        self._stats = stats
        self._journal = Journal(grid, self._job.events)
        self._rejected: set[Rejection] = set()
        self._letters: set[Rejection] = set()
        self._letters_at = float("-inf")
        self._has_looked = False

    def were_rejected(self, letters: Iterable[DeadLetter]) -> None:
        """Events could not be scored, whether or not there was room for their dead letters."""
        # A rescan waits for those that were found in the map.
        self._rejected |= {_rejection(dead) for dead in letters if dead.sequence < 0}

    async def look(self) -> None:
        """If all results are gone, ask for their events to be scored again: by the offsets, all is well.

        Where the map cannot be read, nothing can be written to it either: `follow` looks until it can.
        """
        with suppress(HazelcastError):
            await self._look()

    async def _look(self) -> None:
        self._has_looked = False
        if self._may_search and await self._are_gone():
            leases = await read_records(self._grid, self._job.name)
            scored = [partition for partition, lease in leases.items() if lease.offset > 0]
            if scored and await self._are_gone():  # other workers may just have begun
                await self._ask(scored)
        self._has_looked = True

    async def _are_gone(self) -> bool:
        client, job = self._grid.client, self._job
        return not await transport.map_size(client, job.results) and bool(await transport.map_size(client, job.events))

    async def follow(self) -> None:
        """Whenever the result map is destroyed, ask for a rescan of the partitions that are held."""
        if not self._has_looked:
            await registered(self._grid, self._look)
        destroyed = asyncio.Event()
        stop = await registered(self._grid, lambda: self._grid.on_destroyed(self._job.results, destroyed.set))
        try:
            while True:
                await destroyed.wait()
                await asyncio.sleep(DESTROYED_SECONDS)
                destroyed.clear()
                if not self._may_search:
                    text = (
                        "%s: the results in `%s` are gone. The job did not begin at the oldest event, so nothing is "
                        "scored again by itself: `gridscore restart %s --from oldest` scores what the journal has"
                    )
                    name = self._job.name
                    _log.warning(text, name, self._job.results, name, extra={"action": "results_gone"})
                    continue
                await registered(
                    self._grid, lambda: self._ask([p for p in self._group.held if self._group.acknowledged_to(p)])
                )
        finally:
            stop()

    async def _ask(self, partitions: Collection[int]) -> None:
        if partitions:
            text = "%s: the results in `%s` are gone: events without a result are searched for, and scored"
            _log.warning(text, self._job.name, self._job.results, extra={"action": "results_gone"})
            await rescan.request(self._grid, self._job.name, partitions, "results")

    async def rescan(self, partition: int) -> None:
        """Return when no event of a partition lacks a result.

        Raises NotNowError if the partition is no longer ours, or scoring what was found takes too long.
        """
        # An event that was rejected since the letters were read is tried once more, no harm done.
        if self._grid.clock() - self._letters_at > _LETTERS_SECONDS:
            self._letters, self._letters_at = await rejections(self._grid, self._job), self._grid.clock()
        while await self._pass(partition, self._letters):
            pass
        # The states of windows follow the results. Who copies states learns from the count that they have changed.
        if not await self._group.count_rescan(partition):
            raise NotNowError

    async def _pass(self, partition: int, rejected: set[Rejection]) -> int:
        """Look through the partition once, and score what is missing; returns how many events."""
        grid, job = self._grid, self._job
        found = 0
        waiting: list[Event] = []
        async for page in without_result(grid, job, partition, rejected):
            waiting += page
            if len(waiting) >= _AT_ONCE:
                found += await self._score(partition, waiting, rejected)
                waiting = []
        return found + await self._score(partition, waiting, rejected)

    async def _score(self, partition: int, events: list[Event], rejected: set[Rejection]) -> int:
        """Score the events that are missing, and return when they have results, or were rejected."""
        if not events:
            return 0
        self._rejected.clear()
        _, newest = await self._journal.bounds(partition)
        deadline = self._grid.clock() + _PATIENCE_SECONDS
        while (self._group.acknowledged_to(partition) or 0) <= newest:
            await self._wait(partition, deadline)
        # An event that is put under the same key meanwhile is scored in turn; the older one must not follow it.
        with self._group.note_keys(partition) as arrived:
            missing = await still_without_result(self._grid, self._job, partition, events, rejected)
            missing = [event for event in missing if event.key not in arrived]
            if missing and not self._group.insert(partition, page_of(missing)):
                raise NotNowError
        if not missing:
            return 0
        _log.warning(
            "%s: %d events of partition %d had no result, scoring them",
            self._job.name,
            len(missing),
            partition,
            extra={"action": "rescued", "events": len(missing), "partition": partition},
        )
        left = missing
        while left:
            await self._wait(partition, deadline)
            rejected |= self._rejected
            left = await still_without_result(self._grid, self._job, partition, left, rejected)
        self._stats.rescued += len(missing)
        return len(missing)

    async def _wait(self, partition: int, deadline: float) -> None:
        if self._grid.clock() > deadline or partition not in self._group.held:
            raise NotNowError
        await asyncio.sleep(_WAIT_SECONDS)
