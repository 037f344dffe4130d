"""Room in the rings of an event map: what may be put before it overwrites an event that a job has not scored yet.

Every job that reads the map and has not ended counts, a suspended one too: its events wait until it is resumed. Lease
records say what a job has committed; the journal itself, the newest sequence.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gridscore.grid.heap import HEAP_ADVICE, MEASURE_ADVICE, SLOW, STOP
from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.job import Jobs
from gridscore.job.life import ENDED

if TYPE_CHECKING:
    from collections.abc import Collection

    from gridscore.grid import Grid
    from gridscore.grid.heap import MemberHeap
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.job import JobRecord

JOBS_SECONDS = 0.25  # how long to trust the list of jobs


@dataclass(frozen=True, slots=True)
class Unread:
    """Events of one partition that a job has not committed."""

    count: int = 0  # how many; 0 if no job reads the map
    job: str = ""  # the job that is furthest behind; empty if there is none
    state: str = ""  # of that job
    owned: bool = False  # whether a worker holds the partition for that job


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why a producer waits."""

    map_name: str  # the event map
    seconds: float  # how long it has waited
    job: str = ""  # the job that it waits for; empty if none

    @property
    def hint(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForJob(Waiting):
    """It would overwrite events that a job has not scored.

    Attributes:
        job: The job that is furthest behind.
        partition: Where it is furthest behind.
        key: The key of most events that wait for this partition; empty if they have many.
        unread: Events there that the job has not committed.
        capacity: Events that the ring holds.
        owned: Whether a worker holds the partition for that job.
        partitions: How many partitions it waits for.
        seconds: How long nothing could be put into the one that waits longest.
    """

    state: str
    partition: int
    key: str = ""
    unread: int
    capacity: int
    owned: bool
    partitions: int

    def __str__(self) -> str:
        more = f" (and {self.partitions - 1} more)" if self.partitions > 1 else ""
        key = f"; most events that wait for it have the key {self.key}" if self.key else ""
        return (
            f"waiting for job {self.job} ({self.state}): partition {self.partition}{more} has {self.unread:,} unread "
            f"events of {self.capacity:,} that the journal holds{key}"
        )

    @property
    def hint(self) -> str:
        if self.state == "SUSPENDED":
            return f"`gridscore resume {self.job}` lets it go on; `gridscore cancel {self.job}` gives its events up."
        if not self.owned:
            return f"No worker scores for it: start `gridscore worker`, or `gridscore cancel {self.job}`."
        if self.key:
            return "One partition is scored by one worker: spread the events over more keys, or give the journal room."
        return "Start more workers, put fewer events a second, or give the journal more capacity."


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForMemory(Waiting):
    """The heap of a member is nearly full."""

    heap: MemberHeap  # of the member with the least room
    stops: bool = False  # whether nothing is put any more; else only a little

    def __str__(self) -> str:
        if self.stops:
            return f"waiting for memory: {self.heap}, and above {STOP:.0%} nothing is put"
        if self.heap.share >= SLOW:
            return f"slowed down for lack of memory: {self.heap}, and above {SLOW:.0%} less is put"
        return (
            f"waiting for member {self.heap.address} to measure its heap: no more may be put between two measurements"
        )

    @property
    def hint(self) -> str:
        return HEAP_ADVICE if self.heap.share >= SLOW else MEASURE_ADVICE


class RingReaders:
    """The jobs that read one event map, and how far behind they are.

    `results`: count only jobs that write to this result map; None for all.
    """

    def __init__(self, grid: Grid, map_name: str, results: str | None = None) -> None:
        self._grid, self._results, self.map_name = grid, results, map_name
        self._journal = Journal(grid, map_name)
        self._jobs: dict[str, JobRecord] = {}
        self._jobs_at = float("-inf")
        self._leases: dict[str, dict[int, LeaseRecord | None]] = {}

    async def unread(self, partitions: Collection[int], enough: int) -> dict[int, Unread]:
        """What is unread of each partition; where it is `enough` or less, it may be an upper bound.

        Offsets only grow, so known ones give an upper bound; they are read again only where that is more than `enough`.
        """
        await self._find_jobs()
        if not self._jobs:
            return dict.fromkeys(partitions, Unread())
        bounds = dict(zip(partitions, await asyncio.gather(*map(self._journal.bounds, partitions)), strict=True))
        found = {}
        doubtful = []
        for partition, (oldest, newest) in bounds.items():
            found[partition] = self._most(partition, oldest, newest)
            if found[partition].count > enough:
                doubtful.append(partition)
        if doubtful:
            await self._read_leases(doubtful)
            found |= {partition: self._most(partition, *bounds[partition]) for partition in doubtful}
        return found

    async def _find_jobs(self) -> None:
        now = self._grid.clock()
        if now - self._jobs_at < JOBS_SECONDS:
            return
        jobs = {
            record.name: record
            for record in await Jobs(self._grid).all()
            if record.job.events == self.map_name
            and record.state not in ENDED
            and self._results in (None, record.job.results)
        }
        for name, record in jobs.items():
            before = self._jobs.get(name)
            if before is None or not record.is_same_run(before):
                self._leases.pop(name, None)  # it may begin elsewhere now
        self._jobs, self._jobs_at = jobs, now

    async def _read_leases(self, partitions: Collection[int]) -> None:
        names = list(self._jobs)
        answers = await asyncio.gather(*(read_records(self._grid, name, partitions) for name in names))
        for name, records in zip(names, answers, strict=True):
            self._leases.setdefault(name, {}).update((p, records.get(p)) for p in partitions)

    def _most(self, partition: int, oldest: int, newest: int) -> Unread:
        worst = Unread()
        for name, record in self._jobs.items():
            known = self._leases.get(name, {})
            lease = known.get(partition)
            if lease is None or not lease.has_begun(record.begin, record.restarts):
                # A job that begins at the latest event cannot miss any; as long as we do not know, it may miss all of
                # them. Once begun it has an offset, so this is not kept.
                at_the_end = partition in known and record.beginning == "latest"
                offset = newest + 1 if at_the_end else oldest
                known.pop(partition, None)
            elif lease.offset > newest + 1:
                offset = oldest  # the journal has begun again, and the offset will follow
                known.pop(partition, None)
            else:
                offset = lease.offset
            count = max(0, newest + 1 - max(offset, oldest))
            if count > worst.count or not worst.job:
                worst = Unread(count, name, record.state.value, lease is not None and bool(lease.owner))
        return worst
