"""A backlog that workers work off, and what an event costs them between the first tenth of the results and the last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from benchmarks.crew import where
from benchmarks.meter import Meter
from gridscore.errors import GridscoreError
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.group.lease_records import read_records
from gridscore.job import Jobs
from gridscore.leash import LeashedProcess
from gridscore.scoring.preparation import prepare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.job import Job

COLUMNS = {
    "events_per_s": "EVENTS/S",
    "worker_us": "WORKER µs",
    "member_us": "MEMBER µs",
    "requests": "REQUESTS",
    "others_cores": "OTHERS' CORES",
    "lost": "LOST",
}

_WAIT_SECONDS = 600.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Backlog:
    """A cluster, and the workers to measure.

    Attributes:
        members: Their process ids.
        folder: For logs.
        workers: How many work it off.
    """

    grid: Grid
    members: Sequence[int]
    folder: Path
    workers: int = 1

    async def work_off(
        self,
        job: Job,
        entries: Iterable[tuple[str, bytes]],
        events: int,
        submitted: Callable[[Job], Awaitable[object]] | None = None,
    ) -> dict[str, float]:
        """Put so many events, submit the job, start workers; `COLUMNS` of what they used.

        The job is cancelled and its maps are destroyed. `submitted`: what is done between the job's begin and the
        workers'. Raises GridscoreError if a worker ends.
        """
        await prepare(self.grid, job)
        await MapWriter(self.grid, job.events).put(entries)
        await Jobs(self.grid).submit(job)
        if submitted is not None:
            await submitted(job)
        with contextlib.ExitStack() as ending:
            crew = [self._start(job.name) for _ in range(self.workers)]
            for worker in crew:
                ending.callback(worker.stop)
            meter = Meter([worker.pid for worker in crew], self.members)
            async with asyncio.timeout(_WAIT_SECONDS):
                while (first := await self._done(job, crew)) < events // 10:  # noqa: ASYNC110 -- others write them
                    await asyncio.sleep(_LOOK_SECONDS)
                meter.begin()
                before = await _requests(crew)
                while (last := await self._done(job, crew)) < events * 9 // 10:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_SECONDS)
                usage, after = meter.read(), await _requests(crew)
            lost = sum(record.lost for record in (await read_records(self.grid, job.name)).values())
        await Jobs(self.grid).cancel(job.name)
        for map_name in (job.events, job.results):
            await (await self.grid.map(map_name)).destroy()
        count = last - first
        return {
            "events_per_s": round(count / usage.seconds),
            "worker_us": round(usage.scorers / count * 1e6, 2),
            "member_us": round(usage.services / count * 1e6, 2),
            "requests": round((after - before) / count, 4),
            "others_cores": round(usage.others_cores, 2),
            "lost": lost,
        }

    def _start(self, job: str) -> LeashedProcess:
        place = self.folder / f"worker-{time.monotonic_ns()}"
        arguments = ["worker", "--jobs", job, *where(self.grid.settings.cluster_name, self.grid.settings.members)]
        return LeashedProcess(
            "benchmarks.counted_worker", [str(place.with_suffix(".json")), *arguments], place.with_suffix(".log")
        )

    async def _done(self, job: Job, workers: list[LeashedProcess]) -> int:
        """Results so far, those that were replaced among them."""
        for worker in workers:
            if worker.exit_code is not None:
                raise GridscoreError(f"A worker ended. Its last lines:\n{worker.last_lines()}")
        journal = Journal(self.grid, job.results)
        bounds = await asyncio.gather(*map(journal.bounds, range(self.grid.partition_count)))
        return sum(newest + 1 for _, newest in bounds)


async def _requests(workers: list[LeashedProcess]) -> int:
    files = [worker.log_file.with_suffix(".json") for worker in workers]
    for worker, file in zip(workers, files, strict=True):
        file.unlink(missing_ok=True)
        os.kill(worker.pid, signal.SIGUSR1)
    async with asyncio.timeout(_WAIT_SECONDS):
        while not all(file.exists() for file in files):  # noqa: ASYNC110 -- another process writes them
            await asyncio.sleep(_LOOK_SECONDS)
    return sum(sum(msgspec.json.decode(file.read_bytes())["requests"].values()) for file in files)


Found = dict[str, list[dict[str, float]]]
"""What each way of doing it has shown, round by round."""


async def in_turn(
    ways: Iterable[str], rounds: int, status: Status, work: Callable[[str], Awaitable[dict[str, float]]]
) -> Found:
    """Measure each way once a round, in an order that goes round: what one leaves on the members meets each of them."""
    found: Found = {way: [] for way in ways}
    order = deque(found)
    for number in range(rounds):
        for way in order:
            status.update(f"round {number + 1}: {way}")
            found[way].append(await work(way))
        order.rotate(-1)
    return found


def medians(found: Found, columns: Iterable[str] = tuple(COLUMNS)) -> list[tuple[str | float, ...]]:
    """A row for each way: its name, and the medians of its columns."""
    return [
        (way, *(statistics.median(each[column] for each in runs) for column in columns)) for way, runs in found.items()
    ]
