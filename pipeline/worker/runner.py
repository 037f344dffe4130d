"""The scoring loop of one job in one worker: take, score, write, commit; and what has to happen beside it.

The way of a batch, in order. Nothing overtakes:

1. *Take* what has arrived while the last batch was scored (`reader`).
2. *Score* it with the model that is active now (`scorer`); a new model becomes active only between two batches.
3. *Check* that the lease of each partition still stands; drop those that do not, unwritten (`leases`).
4. *Write* one put-all a partition, in order, without waiting for the answers of the last batch.
5. When a partition's write and the batch's dead letters are acknowledged, its offset may be *committed*; a task does
   this a few times a second for all partitions. A write that failed puts its partition back to the committed offset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError

from pipeline.errors import GridError, GridscoreError
from pipeline.features import LookupTable
from pipeline.grid.copies import Fetcher, LiveCopy
from pipeline.grid.writer import MapWriter
from pipeline.worker import dead_letters
from pipeline.worker.leases import LEASE_SECONDS, Leases
from pipeline.worker.live_model import LiveModel
from pipeline.worker.reader import JournalReader
from pipeline.worker.scorer import Scorer
from pipeline.worker.stats import JobStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.grid import Grid
    from pipeline.job import Job
    from pipeline.worker.dead_letters import Rejected
    from pipeline.worker.leases import Lease
    from pipeline.worker.scorer import PartitionBatch, ScoredBatch

_log = logging.getLogger(__name__)

BATCH_EVENTS = 4_096
"""Events after which a batch takes no further page."""

UNACKNOWLEDGED_EVENTS = 32_768
"""Events written and not acknowledged, above which the loop waits."""

COMMIT_SECONDS = 0.5
STOP_SECONDS = 3.0
_CLAIM_SECONDS = 2.0
_CHECKS_PER_SECOND = 10
_RETRY_SECONDS = 0.5


@dataclass(slots=True, eq=False)
class _Write:
    """A put-all under way, and the offset that it allows."""

    next: int
    events: int
    done: bool = False


class JobRunner:
    """Scores for one job until cancelled.

    Args:
        grid: The connection.
        job: What to do.
        worker: Identity of the worker.
        started: Called once, when the first batch could be scored.
        lease_seconds: How long partitions of a killed worker wait for a new owner.
    """

    def __init__(
        self,
        grid: Grid,
        job: Job,
        worker: str,
        *,
        started: Callable[[], Any] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._grid = grid
        self._job = job
        self._started = started
        self.stats = JobStats()
        self.is_scoring = False
        self.leases = Leases(grid, job.name, worker, seconds=lease_seconds)
        self._reader = JournalReader(grid, job.events, self._regressed)
        self._tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
        self._copies = {
            name: LiveCopy(grid, lookup.map, self._tables[name], max_entries=lookup.max_entries)
            for name, lookup in job.lookups.items()
            if lookup.mode == "copy"
        }
        fetchers = {n: Fetcher(grid, lookup.map) for n, lookup in job.lookups.items() if lookup.mode == "fetch"}
        self._scorer = Scorer(job, self._tables, fetchers, self.stats)
        self._model = LiveModel(grid, job, self._tables, self.stats)
        self._results = MapWriter(grid, job.results)
        self._dead = MapWriter(grid, dead_letters.map_of(job.name))
        self._pending: dict[int, deque[_Write]] = {}
        self._acknowledged: dict[int, int] = {}  # offsets that may be committed
        self._restarts: dict[int, object] = {}  # partitions that will be read again, each with what asked for it last
        self._unacknowledged = 0
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Score until cancelled; then finish the writes under way, commit, and give the leases back.

        Raises:
            GridscoreError: The job cannot go on: no journal, a lookup map that is missing or too large, no model.
        """
        try:
            await self._prepare()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._score())
                group.create_task(self._claim())
                group.create_task(self._commit())
                group.create_task(self._check())
                group.create_task(self._model.follow())
        except ExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            await asyncio.shield(self._stop())

    async def _prepare(self) -> None:
        await self._reader.bounds(0)  # a map without a journal is best found at once
        await self._results.prepare()
        for copy in self._copies.values():
            await copy.start()
        await self._model.start()

    async def _stop(self) -> None:
        self._reader.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while any(self._pending.values()):
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            _log.warning("%s: some writes were not acknowledged before the stop", self._job.name)
        for task in self._tasks:
            task.cancel()
        try:
            # A cluster that is gone must not keep us: what is not given back runs out by itself.
            async with asyncio.timeout(STOP_SECONDS):
                if self._grid.is_running:
                    await self.leases.release(self._acknowledged)
                await self._model.close()
                for copy in self._copies.values():
                    await copy.close()
        except (HazelcastError, TimeoutError) as error:
            _log.warning(
                "%s: the leases could not be given back, and run out in %.0f s: %s",
                self._job.name,
                self.leases.seconds,
                str(error) or "the cluster does not answer",
            )

    # ------------------------------------------------------------------ the way of a batch

    async def _score(self) -> None:
        while True:
            await self._reader.wait()
            while self._unacknowledged > UNACKNOWLEDGED_EVENTS:
                self._room.clear()
                await self._room.wait()
            arrivals = self._reader.take(BATCH_EVENTS)
            arrivals = [arrival for arrival in arrivals if arrival.partition in self.leases.held]
            if not arrivals:
                continue
            try:
                batch = await self._scorer.score(arrivals, self._model.active)
            except HazelcastError as error:
                _log.warning("%s: a lookup could not be fetched, trying again: %s", self._job.name, error)
                for arrival in arrivals:
                    if self._reader.is_current(arrival.cursor):
                        self._put_back(arrival.partition)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            began = time.thread_time_ns()
            self._write(batch)
            self.stats.stage_ns["write"] += time.thread_time_ns() - began
            # Let the event loop send this batch and receive the next.
            await asyncio.sleep(0)

    def _write(self, batch: ScoredBatch) -> None:
        now = time.monotonic()
        parts = []
        for part in batch.partitions:
            # While lookups were fetched, the partition may have been put back, dropped or begun again.
            if not self._reader.is_current(part.cursor):
                continue
            if not self.leases.stands(part.partition, now):
                self._drop(part.partition)
                continue
            parts.append(part)
        ours = {part.partition for part in parts}
        rejected = [each for each in batch.rejected if each.partition in ours]
        letters = self._write_dead_letters(rejected) if rejected else None
        for part in parts:
            write = _Write(part.next, len(part.keys))
            self._pending.setdefault(part.partition, deque()).append(write)
            if letters is None and not part.keys:
                self._finish(part.partition, write, None)
                continue
            self._unacknowledged += write.events
            if letters is None:
                future = self._results.put_partition(part.partition, part.keys, part.texts)
                future.add_done_callback(partial(self._answered, part.partition, write))
            else:
                self._spawn(self._write_with_letters(part, write, letters))
        self.stats.batches += 1

    def _write_dead_letters(self, all_rejected: list[Rejected]) -> asyncio.Task[int]:
        entries = [dead_letters.letter(self._grid, self._job.name, self._job.events, r) for r in all_rejected]
        for rejected in all_rejected[:3]:
            _log.warning(
                "%s: an event of partition %d, sequence %d went to the dead letters: %s",
                self._job.name,
                rejected.partition,
                rejected.sequence,
                rejected.error,
                extra={"action": "dead_letter"},
            )
        self.stats.dead += len(entries)
        return self._spawn(self._dead.put(entries))

    async def _write_with_letters(self, part: PartitionBatch, write: _Write, letters: asyncio.Task[int]) -> None:
        error: BaseException | None = None
        try:
            if part.keys:
                await self._results.put_partition(part.partition, part.keys, part.texts)
            await asyncio.shield(letters)
        except Exception as failure:  # noqa: BLE001 -- whatever it is, the write is answered, or its partition stalls
            error = failure
        self._finish(part.partition, write, error)

    def _answered(self, partition: int, write: _Write, done: asyncio.Future[None]) -> None:
        self._finish(partition, write, done.exception())

    def _finish(self, partition: int, write: _Write, error: BaseException | None) -> None:
        """A write was answered: move the offset that may be committed, or put the partition back."""
        self._unacknowledged -= write.events
        pending = self._pending.get(partition)
        self._room.set()
        if pending is None or write not in pending:
            return  # the partition was dropped or put back in the meantime
        if error is not None:
            if not isinstance(error, HazelcastClientNotActiveError):
                _log.warning(
                    "%s: a write to partition %d was not acknowledged, reading it again: %s",
                    self._job.name,
                    partition,
                    error,
                    extra={"action": "write_failed"},
                )
            self._put_back(partition)
            return
        write.done = True
        while pending and pending[0].done:
            finished = pending.popleft()
            self._acknowledged[partition] = finished.next
            self.stats.events += finished.events

    def _put_back(self, partition: int) -> None:
        """Read a partition again from what is acknowledged: results are idempotent, so nothing is scored twice."""
        self._pending.pop(partition, None)
        lease = self.leases.held.get(partition)
        if lease is None:
            return
        offset = self._acknowledged.get(partition, lease.offset)
        self._reader.stop(partition)
        restart = self._restarts[partition] = object()

        async def read_again() -> None:
            await asyncio.sleep(_RETRY_SECONDS)
            if self._restarts.get(partition) is restart:
                del self._restarts[partition]
                self._reader.start(partition, offset)

        self._spawn(read_again())

    def _drop(self, partition: int) -> None:
        """Somebody else has the partition, or may have: neither read, write nor commit it any more."""
        _log.warning("%s: partition %d is no longer ours", self._job.name, partition, extra={"action": "lease_lost"})
        self.leases.drop(partition)
        self._forget(partition)

    def _forget(self, partition: int) -> None:
        self._reader.stop(partition)
        self._restarts.pop(partition, None)
        self._pending.pop(partition, None)
        self._acknowledged.pop(partition, None)

    # ------------------------------------------------------------------ beside it

    async def _claim(self) -> None:
        first = True
        while True:
            try:
                taken = await self.leases.claim()
                for lease in taken:
                    self._restarts[lease.partition] = lease
                await asyncio.gather(*(self._begin_or_drop(lease) for lease in taken))
            except (HazelcastError, GridError) as error:
                _log.warning("%s: claiming partitions failed, trying again: %s", self._job.name, error)
            if self.leases.held:
                self.is_scoring = True
                if first:
                    first = False
                    self._started()
            await asyncio.sleep(_CLAIM_SECONDS)

    async def _begin_or_drop(self, lease: Lease) -> None:
        """Begin to read; if that fails, let go of the partition, so that the next claim tries again."""
        partition = lease.partition
        try:
            begun = await self._begin(partition, lease.offset)
        except (HazelcastError, GridError) as error:
            _log.warning("%s: partition %d could not be begun: %s", self._job.name, partition, error)
            begun = False
        if self._restarts.get(partition) is lease:
            del self._restarts[partition]
            if not begun:
                self._drop(partition)

    async def _begin(self, partition: int, offset: int) -> bool:
        """Read a partition from its committed offset, after comparing that with what the journal still has."""
        oldest, newest = await self._reader.bounds(partition)
        if offset < 0:
            offset = oldest if self._job.start == "oldest" else newest + 1
        elif offset < oldest:
            self._reader.losses.lost += oldest - offset
            _log.error(
                "%s: partition %d lost %d events, overwritten while nobody read",
                self._job.name,
                partition,
                oldest - offset,
                extra={"action": "lost", "lost": oldest - offset},
            )
            offset = oldest
        elif offset > newest + 1:
            self._reader.losses.regressions += 1
            _log.error(
                "%s: the journal of partition %d ends at %d, but %d was committed: it has begun again",
                self._job.name,
                partition,
                newest,
                offset,
                extra={"action": "regression"},
            )
            if not await self.leases.reset(partition, oldest):
                return False
            offset = oldest
        if partition not in self.leases.held:
            return False
        self._acknowledged[partition] = offset
        self._reader.start(partition, offset)
        return True

    def _regressed(self, partition: int, oldest: int) -> None:
        """The journal of a partition begins again: so do we, with the lease's consent."""
        self._forget(partition)
        token = self._restarts[partition] = object()

        async def restart() -> None:
            try:
                reset = await self.leases.reset(partition, oldest)
            except HazelcastError as error:
                _log.warning("%s: partition %d could not be begun again: %s", self._job.name, partition, error)
                reset = False
            if self._restarts.get(partition) is not token:
                return
            del self._restarts[partition]
            if reset:
                self._acknowledged[partition] = oldest
                self._reader.start(partition, oldest)
            else:
                self._drop(partition)

        self._spawn(restart())

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            for partition in await self.leases.commit(dict(self._acknowledged)):
                self._drop(partition)
            now = time.monotonic()
            for partition in list(self.leases.held):
                # The second is a net: whatever went wrong, a partition that is held is read, or let go.
                unread = not self._reader.reads(partition) and partition not in self._restarts
                if unread or not self.leases.stands(partition, now):
                    self._drop(partition)
            stats, losses = self.stats, self._reader.losses
            stats.lost, stats.regressions, stats.partitions = losses.lost, losses.regressions, len(self.leases.held)
            stats.copies = {
                name: {
                    "entries": len(self._tables[name]),
                    "age": round(copy.age, 1),
                    "loads": copy.loads,
                    "bad": self._tables[name].bad,
                    "missed": self._model.active.plan.missed[name],
                }
                for name, copy in self._copies.items()
            }

    async def _check(self) -> None:
        """Compare the journals with our positions, a few partitions at a time: a parked read would never tell."""
        while True:
            for partition in range(self._grid.partition_count):
                await asyncio.sleep(1 / _CHECKS_PER_SECOND)
                try:
                    await self._reader.check(partition)
                except GridscoreError as error:
                    _log.debug("%s: checking partition %d failed: %s", self._job.name, partition, error)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report of several: the first that people can read, else the first."""
    flat: list[BaseException] = []

    def walk(group: Sequence[BaseException]) -> None:
        for error in group:
            if isinstance(error, BaseExceptionGroup):
                walk(error.exceptions)
            else:
                flat.append(error)

    walk(failures.exceptions)
    return next((error for error in flat if isinstance(error, GridscoreError)), flat[0])
