"""The worker: a process that finds submitted jobs and scores for them, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from pipeline.errors import (
    GridscoreError,
    JobError,
    JournalMissingError,
    LookupTooLargeError,
    MapNotFoundError,
    ModelError,
    UnsupportedClientError,
    UsageError,
)
from pipeline.grid.records import record_text
from pipeline.job import JobRecord, Jobs, JobState
from pipeline.job.life import WANTED
from pipeline.worker.leases import LEASE_SECONDS
from pipeline.worker.runner import STOP_SECONDS, JobRunner
from pipeline.worker.status import WORKERS_MAP, forget_gone_workers

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
FORGET_SECONDS = 60.0
"""Records of workers that were killed are removed by others after this time."""


PERMANENT = (
    JobError,
    JournalMissingError,
    LookupTooLargeError,
    MapNotFoundError,
    ModelError,
    UnsupportedClientError,
    UsageError,
)
"""Errors that trying again does not heal: the job is FAILED. After any other, it is started again."""


@dataclass(slots=True)
class _Running:
    record: JobRecord
    runner: JobRunner
    task: asyncio.Task[None]


class Worker:
    """Scores for the jobs of a cluster. An asynchronous context manager: scores while it is entered.

    Args:
        grid: The connection; it stays open afterwards.
        jobs: Names of the jobs to score for; all if None.
        lease_seconds: How long partitions of a killed worker wait for a new owner.
    """

    def __init__(
        self, grid: Grid, jobs: Collection[str] | None = None, *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._grid = grid
        self._only = set(jobs) if jobs is not None else None
        self._lease_seconds = lease_seconds
        self._jobs = Jobs(grid)
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Event()
        self._stop_watching: Any = None
        self._main: asyncio.Task[None] | None = None
        self._began = time.time()
        self._swept_at = 0
        self._notes: set[asyncio.Task[None]] = set()
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    async def __aenter__(self) -> Self:
        self._main = asyncio.create_task(self.run(), name=f"worker {self.id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)

    @property
    def runners(self) -> dict[str, JobRunner]:
        """What runs now, by job."""
        return {name: running.runner for name, running in self._running.items()}

    async def run(self) -> None:
        """Find jobs and score for them until cancelled; then stop them cleanly."""
        self._stop_watching = await self._jobs.watch(self._changed.set)
        self._changed.set()
        try:
            while True:
                try:
                    await self._reconcile()
                    await self._publish()
                except (HazelcastError, GridscoreError) as error:
                    if not self._grid.is_running:
                        raise
                    _log.warning("Looking for jobs failed, trying again: %s", error, extra={"action": "retry"})
                self._changed.clear()
                try:
                    async with asyncio.timeout(PUBLISH_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            await asyncio.shield(self._stop())

    async def _reconcile(self) -> None:
        """Start, stop and restart runners so that they are what the job records want."""
        wanted = {
            record.name: record
            for record in await self._jobs.all()
            if record.state in WANTED and (self._only is None or record.name in self._only)
        }
        for name, running in list(self._running.items()):
            record = wanted.get(name)
            if record is None or not record.is_same_run(running.record):
                await self._end(name)
        for name, record in wanted.items():
            if name not in self._running:
                self._start(record)
            elif self._running[name].runner.is_scoring and record.state != JobState.RUNNING:
                self._note(record, JobState.RUNNING)

    def _start(self, record: JobRecord) -> None:
        name = record.name
        runner = JobRunner(
            self._grid,
            record.job,
            self.id,
            started=lambda: self._note(record, JobState.RUNNING),
            lease_seconds=self._lease_seconds,
        )
        task = asyncio.create_task(self._run(record, runner), name=f"job {name}")
        self._running[name] = _Running(record, runner, task)
        _log.info("%s: starting", name, extra={"action": "job_start", "job": name})

    async def _run(self, record: JobRecord, runner: JobRunner) -> None:
        name = record.name
        try:
            if record.state == JobState.NOT_RUNNING:
                self._note(record, JobState.STARTING)
            await runner.run()
        except PERMANENT as error:
            _log.error("%s: failed: %s", name, error, extra={"action": "job_failed"})
            self._note(record, JobState.FAILED, str(error))
        except (HazelcastError, GridscoreError) as error:
            # The cluster, not the job: the next look at the records starts it again.
            _log.warning("%s: interrupted: %s", name, error, extra={"action": "job_interrupted"})
        except Exception as error:  # noqa: BLE001 -- whatever it is, it ends this job and not the others
            _log.exception("%s: failed", name, extra={"action": "job_failed"})
            self._note(record, JobState.FAILED, f"{type(error).__name__}: {error}")
        finally:
            if (running := self._running.get(name)) is not None and running.runner is runner:
                del self._running[name]

    def _note(self, record: JobRecord, state: JobState, error: str = "") -> None:
        async def mark() -> None:
            try:
                await self._jobs.mark(record, state, error)
            except (HazelcastError, GridscoreError) as failure:
                _log.warning("%s: the state could not be noted: %s", record.name, failure)

        task = asyncio.get_running_loop().create_task(mark())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _end(self, name: str) -> None:
        running = self._running.pop(name)
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        _log.info("%s: stopped", name, extra={"action": "job_stop", "job": name})

    async def _publish(self) -> None:
        now = int(time.time() * 1000)
        value = {
            "id": self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began_at": int(self._began * 1000),
            "seen_at": now,
            "jobs": {name: running.runner.stats.to_json() for name, running in self._running.items()},
        }
        proxy = await self._grid.map(WORKERS_MAP)
        await proxy.set(self.id, HazelcastJsonValue(record_text(value)))
        if now - self._swept_at > FORGET_SECONDS * 1000:
            self._swept_at = now
            await forget_gone_workers(self._grid, FORGET_SECONDS)

    async def _stop(self) -> None:
        for name in list(self._running):
            await self._end(name)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self._grid.is_running:
                    await self._stop_watching()
                    await (await self._grid.map(WORKERS_MAP)).delete(self.id)
        except (HazelcastError, TimeoutError) as error:
            _log.warning("The worker's record could not be removed: %s", str(error) or "the cluster does not answer")
