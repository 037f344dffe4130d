"""Rescans: a partition whose journal has lost events is searched for them in the map itself.

A request is a record in the control map `gridscore.rescans`, under group and partition: whoever holds the partition
does it, and takes the request away when nothing is missing any more. So a request outlives the process that made it.

What is missing differs. A job misses events that have no result, and scores them. What has none may only be waiting in
the journal: the owner therefore looks, reads the journal to where it ended then, and looks again: what is missing still
was lost. It takes the ordinary way from there, behind what has arrived.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import GridError
from gridscore.grid.copies import payload
from gridscore.grid.journal import Journal, Page
from gridscore.grid.records import Count, Records, Word, partition_in
from gridscore.grid.watches import Watched
from gridscore.group.missing import Event, rejection_of_raw, rejections, still_without_result, without_result
from gridscore.group.offsets import NotNowError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from gridscore.dead_letters.letters import Rejected
    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.group.group import Group
    from gridscore.group.missing import Rejection
    from gridscore.group.stats import GroupStats, JobStats
    from gridscore.job import Job

_log = logging.getLogger(__name__)

RESCANS_MAP = "gridscore.rescans"
LOOK_SECONDS = 2.0
_LETTERS_SECONDS = 5.0
"""Dead letters that were read serve the rescans of so long: one for each partition would read all of them each time."""

_WAIT_SECONDS = 0.1
_PATIENCE_SECONDS = 20.0
"""How long what was found is waited for, before the request is left for later."""

_AT_ONCE = 512


async def request(grid: Grid, group: str, partitions: Iterable[int], reason: str) -> None:
    """Ask for partitions to be rescanned.

    Args:
        grid: The connection.
        group: Name of the group.
        partitions: Which.
        reason: Why, for people: `gap`, `regression`, `audit`.

    Raises:
        GridError: The request could not be written.
        HazelcastError: The cluster did not answer.
    """
    records = Records(grid, RESCANS_MAP)
    value = {"reason": reason, "at": int(time.time() * 1000)}
    # Whatever is there, is asked for anew.
    await asyncio.gather(*(records.put(f"{group}/{partition}", value) for partition in partitions))


class Request(msgspec.Struct, frozen=True):
    """What the record of a request holds.

    Attributes:
        reason: Why.
        at: Since when, in milliseconds since 1970.
        record: The record itself.
    """

    reason: Word
    at: Count
    record: Any = None  # a `Record`


def request_of(record: Record, partition_count: int) -> Request:
    """The typed form of a control record.

    Raises:
        ValueError: It is not valid.
    """
    partition_in(record.key, partition_count)
    return replace(msgspec.convert(record.value, Request), record=record)


async def all_requests(grid: Grid) -> dict[str, Request]:
    """Requests that are not done yet, by key.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    count = grid.partition_count
    return await Records(grid, RESCANS_MAP).read(lambda record: request_of(record, count))


async def pending(grid: Grid, group: str) -> dict[int, Record]:
    """Requests for a group that are not done yet, by partition.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    return {partition: found.record for partition, found in requests_of(group, await all_requests(grid)).items()}


async def watched(grid: Grid, group: str) -> dict[int, Record]:
    """The same, read once for all groups of a process, and only if a request has come or gone.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    count = grid.partition_count
    there = grid.watched.get(RESCANS_MAP)
    if there is None:
        there = grid.watched[RESCANS_MAP] = Watched(
            grid, RESCANS_MAP, lambda record: request_of(record, count), LOOK_SECONDS * 0.9
        )
    return {partition: found.record for partition, found in requests_of(group, await there.read()).items()}


def requests_of(group: str, requests: Mapping[str, Request]) -> dict[int, Request]:
    """The requests for a group among those for all, by partition."""
    found = {}
    for key, each in requests.items():
        name, _, partition = key.rpartition("/")
        if name == group:
            found[int(partition)] = each
    return found


async def forget(grid: Grid, group: str) -> None:
    """Take a group's requests away: it begins anew."""
    for record in (await pending(grid, group)).values():
        await Records(grid, RESCANS_MAP).remove(record)


class Rescanner:
    """Does what is requested for the partitions that a process holds, one after the other, beside its other work.

    Args:
        grid: The connection.
        group: That holds the partitions.
        name: Of the group.
        stats: Where to count.
        rescan: Finds what a partition is missing, and returns when it is made good; raises `NotNowError` to leave it
            for later.
    """

    def __init__(
        self, grid: Grid, group: Group, name: str, stats: GroupStats, rescan: Callable[[int], Awaitable[None]]
    ) -> None:
        self._grid = grid
        self._group = group
        self._name = name
        self._stats = stats
        self._rescan = rescan

    async def run(self) -> None:
        """Look for requests until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                requests = await watched(self._grid, self._name)
                self._stats.rescans = sum(1 for partition in requests if partition in self._group.held)
                for partition, record in requests.items():
                    if partition in self._group.held:
                        await self._do(partition, record)
            except (HazelcastError, GridError) as error:
                _log.warning("%s: a rescan failed, trying again: %s", self._name, error)

    async def _do(self, partition: int, record: Record) -> None:
        try:
            await self._rescan(partition)
        except NotNowError:
            _log.info("%s: the rescan of partition %d is left for later", self._name, partition)
            return
        await Records(self._grid, RESCANS_MAP).remove(record)
        self._stats.rescans -= 1


class MissingResults:
    """Finds the events of a job that have no result, and has them scored.

    Args:
        grid: The connection.
        job: The job.
        group: That holds the partitions.
        stats: Where to count.
    """

    def __init__(self, grid: Grid, job: Job, group: Group, stats: JobStats) -> None:
        self._grid = grid
        self._job = job
        self._group = group
        self._stats = stats
        self._journal = Journal(grid, job.events)
        self._rejected: set[Rejection] = set()
        self._letters: set[Rejection] = set()
        self._letters_at = float("-inf")

    def were_rejected(self, events: Iterable[Rejected]) -> None:
        """Events could not be scored, whether or not there was room for their dead letters."""
        # Those that were found in the map are waited for.
        self._rejected |= {rejection_of_raw(event.key, event.raw) for event in events if event.sequence < 0}

    async def rescan(self, partition: int) -> None:
        """Return when no event of a partition is without a result.

        Raises:
            NotNowError: It is no longer ours, or what was found is not scored for too long.
            HazelcastError: The cluster did not answer.
        """
        # An event that was rejected since they were read is only tried once more.
        if self._grid.clock() - self._letters_at > _LETTERS_SECONDS:
            self._letters, self._letters_at = await rejections(self._grid, self._job), self._grid.clock()
        while await self._pass(partition, self._letters):
            pass

    async def _pass(self, partition: int, rejected: set[Rejection]) -> int:
        """Look through the partition once, and score what is missing; returns how many events that was."""
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
        """Score those of some events that are missing, and return when they have results, or were rejected."""
        if not events:
            return 0
        self._rejected.clear()
        _, newest = await self._journal.bounds(partition)
        deadline = self._grid.clock() + _PATIENCE_SECONDS
        while (self._group.come_to(partition) or 0) <= newest:
            await self._wait(partition, deadline)
        # An event that is put under the same key meanwhile has its turn, and must not be followed by the older one.
        with self._group.reader.note_keys(partition) as arrived:
            missing = await still_without_result(self._grid, self._job, partition, events, rejected)
            missing = [event for event in missing if event.key not in arrived]
            if missing and not self._group.reader.insert(partition, page_of(missing)):
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


def page_of(events: list[Event], sequence: int = -1) -> Page:
    """Events as a page of a journal would have them, but for their sequences: all have the same."""
    values, foreign = [], {}
    for position, (_, value) in enumerate(events):
        text = payload(value)
        values.append(text or value)
        if not text:
            foreign[position] = int.from_bytes(value[4:8], "big", signed=True)
    keys = [event.key for event in events]
    return Page(0, 0, [sequence] * len(keys), keys, values, foreign, sum(map(len, values)))
