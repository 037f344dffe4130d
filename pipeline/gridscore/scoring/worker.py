"""The worker: finds submitted jobs and scores for them until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from hazelcast.errors import HazelcastError

from gridscore.errors import (
    GridscoreError,
    JobError,
    JournalMissingError,
    LookupTooLargeError,
    MapNotFoundError,
    UnsupportedClientError,
    UsageError,
)
from gridscore.grid import transport
from gridscore.grid.watches import READ_ANYWAY_SECONDS, wait_for
from gridscore.group.fence import Fence
from gridscore.group.leases import LEASE_SECONDS
from gridscore.group.members import PUBLISH_SECONDS, Members, Membership, new_identity, registered
from gridscore.job import JobRecord, Jobs, JobState
from gridscore.job.life import WANTED
from gridscore.log_records import about
from gridscore.scoring.live_model import LoadedModels
from gridscore.scoring.lookups import Lookups
from gridscore.scoring.process import age
from gridscore.scoring.runner import JobRunner

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.group.group import Group

_log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
CRASHES, CRASH_SECONDS = 3, 60.0  # a job with this many unexpected errors in one worker within this time is FAILED
MOST_ORPHANED = 100  # how many jobs of a replaced cluster a worker's record names
# Errors that a retry does not heal: the job is FAILED. After any other, it is started again.
PERMANENT = (JobError, JournalMissingError, LookupTooLargeError, MapNotFoundError, UnsupportedClientError, UsageError)


@dataclass(slots=True)
class _Running:
    record: JobRecord
    runner: JobRunner
    task: asyncio.Task[None]


class Worker:
    """Scores for the jobs of a cluster. An asynchronous context manager: scores while it is entered.

    Args:
        grid: The connection; it stays open afterwards.
        jobs: Names of the jobs to score for; default: all.
        lease_seconds: How long partitions of a killed worker wait for a new owner.
        times: Whether to count how long events took, see `JobStats.latencies`.
        allow_python: Modules whose functions the features of jobs may call, with all below them.

    Attributes:
        records: Of all jobs, when it last looked.

    Raises:
        UsageError: The lease is too short or too long.
    """

    def __init__(
        self,
        grid: Grid,
        jobs: Collection[str] | None = None,
        *,
        lease_seconds: float = LEASE_SECONDS,
        times: bool = False,
        allow_python: Collection[str] = (),
    ) -> None:
        self._grid = grid
        self._only = set(jobs) if jobs is not None else None
        self._lease_seconds, self._times, self._allow_python = lease_seconds, times, allow_python
        self._fence = Fence.of(lease_seconds)
        self._jobs = Jobs(grid)
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Event()
        self._lookups, self._models = Lookups(grid), LoadedModels(grid)
        self._crashes: dict[str, list[float]] = {}
        self.records: dict[str, JobRecord] = {}
        self._orphaned: set[str] = set()  # jobs that the cluster which replaced ours does not have
        self._ending: set[asyncio.Task[None]] = set()
        self._stop_watching: Any = None
        self._main: asyncio.Task[None] | None = None
        self._notes: set[asyncio.Task[None]] = set()
        self.id = new_identity()
        grid.on_replaced(self._replaced)
        self._members = Members(grid, self.id, seconds=lease_seconds)
        self._membership = Membership(grid, self._members, self._says, self._groups)

    async def __aenter__(self) -> Self:
        self._main = asyncio.create_task(self.run(), name=f"worker {self.id}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._main is not None:
            self._main.cancel()
            (ended,) = await asyncio.gather(self._main, return_exceptions=True)
            # It ended before it was told to; an error in the caller's block comes first.
            if isinstance(ended, Exception) and kind is None:
                raise ended

    @property
    def runners(self) -> dict[str, JobRunner]:
        return {name: running.runner for name, running in self._running.items()}

    async def run(self) -> None:
        """Find jobs and score for them until cancelled; then stop them cleanly."""
        # What the system holds for an unreachable member must not be delivered after the lease.
        transport.hold_at_most(self._grid.client, self._fence.hold)
        try:
            self._stop_watching = await registered(self._grid, lambda: self._jobs.watch(self._changed.set))
            await self._membership.watch()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_jobs())
                tasks.create_task(self._membership.run())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await asyncio.shield(self._stop())

    async def _follow_jobs(self) -> None:
        while True:
            self._changed.clear()
            settled = False
            try:
                settled = await self._reconcile()
            except (HazelcastError, GridscoreError) as error:
                if not self._grid.is_running:
                    raise
                _log.warning("Looking for jobs failed, trying again: %s", error, extra={"action": "retry"})
            await wait_for(self._changed, READ_ANYWAY_SECONDS if settled else PUBLISH_SECONDS)

    def _replaced(self) -> None:
        """Another cluster has replaced ours: nothing may go on, even if that one has jobs of the same names."""
        self._orphaned |= set(self._running)
        for name in list(self._running):
            self._cancel(name)
        self._changed.set()

    async def _reconcile(self) -> bool:
        """Start, stop and restart runners as the job records demand; whether all of them score."""
        records = await self._jobs.all()
        self._orphaned -= {record.name for record in records}
        self.records = {record.name: record for record in records}
        wanted = {
            record.name: record
            for record in records
            if record.state in WANTED and (self._only is None or record.name in self._only)
        }
        over = [
            name
            for name, running in self._running.items()
            if (record := wanted.get(name)) is None or not record.is_same_run(running.record)
        ]
        if over:
            await self._end(over, {record.name: record for record in records})
            self._changed.set()  # `records` is old by now
            return False
        for name, record in wanted.items():
            if name not in self._running:
                self._start(record)
            elif self._running[name].runner.is_scoring and record.state != JobState.RUNNING:
                self._note(record, JobState.RUNNING)
        return all(record.state == JobState.RUNNING for record in wanted.values())

    def _start(self, record: JobRecord) -> None:
        name = record.name
        runner = JobRunner(
            self._grid,
            record,
            self._members,
            joined=self._membership.soon,
            started=lambda: self._started(record),
            lease_seconds=self._lease_seconds,
            lookups=self._lookups,
            models=self._models,
            times=self._times,
            allow_python=self._allow_python,
        )
        task = asyncio.create_task(self._run(record, runner), name=f"job {name}")
        self._running[name] = _Running(record, runner, task)
        _log.info("%s: starting revision %d", name, record.revision, extra={"action": "job_start", "job": name})

    def _started(self, record: JobRecord) -> None:
        self._note(record, JobState.RUNNING)
        _log.info(
            "%s: holds its first partitions, %.1f s after the start of this process",
            record.name,
            age(),
            extra={"action": "first_partitions", "job": record.name},
        )

    async def _run(self, record: JobRecord, runner: JobRunner) -> None:
        name = record.name
        about("job", name)
        try:
            if record.state == JobState.WAITING:
                self._note(record, JobState.STARTING)
            await runner.run()
        except PERMANENT as error:
            _log.error("%s: failed: %s", name, error, extra={"action": "job_failed"})
            self._note(record, JobState.FAILED, str(error))
        except (HazelcastError, GridscoreError) as error:
            # It is the cluster's trouble, not the job's: the next look at the records starts it again.
            _log.warning("%s: interrupted: %s", name, error, extra={"action": "job_interrupted"})
        except Exception as error:  # noqa: BLE001 -- whatever it is, it ends this job and not the others
            _log.exception("%s: failed", name, extra={"action": "job_failed"})
            # It may be this worker's own trouble, and FAILED ends the job for all, so not at once.
            now = self._grid.clock()
            crashes = self._crashes[name] = [at for at in self._crashes.get(name, []) if now - at < CRASH_SECONDS]
            crashes.append(now)
            if len(crashes) >= CRASHES:
                self._note(record, JobState.FAILED, f"{type(error).__name__}: {error}")
        finally:
            if (running := self._running.get(name)) is not None and running.runner is runner:
                del self._running[name]
                # Unless it has failed, it is started again a little later.
                asyncio.get_running_loop().call_later(PUBLISH_SECONDS, self._changed.set)

    def _note(self, record: JobRecord, state: JobState, error: str = "") -> None:
        async def mark() -> None:
            try:
                await self._jobs.mark(record, state, error)
            except (HazelcastError, GridscoreError) as failure:
                _log.warning("%s: the state could not be noted: %s", record.name, failure)

        task = asyncio.get_running_loop().create_task(mark())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _end(self, names: Sequence[str], records: Mapping[str, JobRecord]) -> None:
        # If we are told to stop meanwhile, `wait` does not cancel them again: they are giving things back.
        await asyncio.wait([self._cancel(name) for name in names])
        for name in names:
            record = records.get(name)
            why = "its record is gone" if record is None else f"it is {record.state}"
            if record is not None and record.state in WANTED:
                why = f"revision {record.revision} is next"
            _log.info("%s: stopped, %s", name, why, extra={"action": "job_stop", "job": name})

    def _cancel(self, name: str) -> asyncio.Task[None]:
        """Stop a job; it is in `_ending` until it has ended."""
        task = self._running.pop(name).task
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _groups(self) -> dict[str, Group]:
        return {name: group for each in self.runners.values() for name, group in each.groups.items()}

    def _says(self) -> dict[str, Any]:
        """What this worker's record says of its jobs."""
        return {
            "orphaned": sorted(self._orphaned)[:MOST_ORPHANED],
            "groups": [name for each in self.runners.values() if each.has_joined for name in each.groups],
            "jobs": {name: running.runner.stats.to_json(self._grid.clock()) for name, running in self._running.items()},
        }

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self._grid.is_running:
                    await self._members.leave()
                    if self._stop_watching is not None:
                        await self._stop_watching()
        except (HazelcastError, TimeoutError) as error:
            _log.warning("The worker's record could not be removed: %s", str(error) or "the cluster does not answer")
        for name in list(self._running):
            self._cancel(name)
        if self._ending:
            await asyncio.wait(set(self._ending))
        await self._members.sessions.close()
