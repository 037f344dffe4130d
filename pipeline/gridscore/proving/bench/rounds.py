"""What is measured in a round, whatever the job: draining the journal, predicting, and one worker that does it all.

CPU is that of whole processes, as the operating system accounts for it; the stages are CPU time of the worker's event
loop, measured where they happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from gridscore.errors import GridscoreError
from gridscore.features import EventDecoder
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.group.leases import start_over
from gridscore.group.members import Members
from gridscore.job import JobRecord, JobState
from gridscore.scoring import JobRunner
from gridscore.scoring.runner import BATCH_EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from gridscore.features import FeaturePlan
    from gridscore.grid import Grid
    from gridscore.job import Job

PAGE = 512
_CHUNK_EVENTS = 5_000

REST = "journal, sockets, event loop"  # what a worker uses beside its stages


class Meter:
    """Counts time, and CPU of this process and of the members by their process ids, from when it was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        members = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                members += times.user + times.system
        return time.perf_counter(), time.process_time(), members

    def read(self) -> tuple[float, float, float | None]:
        """Seconds since, and CPU seconds of this process and of the members; None if these are not known."""
        passed, own, members = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return passed, own, members if self._pids else None


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: how long, and CPU seconds of this process and of the members; None if that is not known."""

    events: int
    seconds: float
    cpu: float
    member_cpu: float | None
    stages: dict[str, float] = field(default_factory=dict)  # CPU seconds

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @classmethod
    def of(cls, events: int, meter: Meter, stages: dict[str, float] | None = None) -> Run:
        """What a meter has counted of this process and the members."""
        return cls(events, *meter.read(), stages or {})

    def micros(self, seconds: float) -> float:
        """Microseconds per event."""
        return seconds * 1e6 / self.events


async def put_events(
    grid: Grid, map_name: str, entries: Iterable[tuple[Any, bytes]], progress: Callable[[int], None]
) -> int:
    """Put entries into a map as fast as it goes; returns how many.

    `grid`: the connection; `map_name`: the map; `entries`: keys and JSON texts; `progress`: called with how many are
    put.
    """
    writer, rest, done = MapWriter(grid, map_name), iter(entries), 0
    while chunk := list(islice(rest, _CHUNK_EVENTS)):
        done += await writer.put(chunk)
        progress(done)
    return done


async def drain(grid: Grid, map_name: str, pids: Sequence[int], expected: int) -> tuple[Run, list[bytes]]:
    """Read a whole journal, one read in flight a partition, as fast as it goes; returns the events, too.

    Raises GridscoreError if it does not hold as many as expected.
    """
    journal = Journal(grid, map_name)
    bounds = await asyncio.gather(*(journal.bounds(p) for p in range(grid.partition_count)))
    values: list[bytes] = []
    meter = Meter(pids)

    async def read(partition: int, position: int, newest: int) -> None:
        while position <= newest:
            page = await journal.read(partition, position, PAGE)
            if page is not None:
                values.extend(page.values)
                position = page.next

    await asyncio.gather(*(read(p, oldest, newest) for p, (oldest, newest) in enumerate(bounds)))
    run = Run.of(len(values), meter)
    if len(values) != expected:
        raise GridscoreError(
            f"The journal holds {len(values):,} of {expected:,} events.",
            "Give it more capacity, or bench fewer events.",
        )
    return run, values


def feature_matrix(job: Job, plan: FeaturePlan, values: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The feature matrix of JSON texts, in batches of the worker's size."""
    decoder = EventDecoder(job)
    parts = [
        plan.matrix([decoder.decode(value) for value in values[i : i + BATCH_EVENTS]])
        for i in range(0, len(values), BATCH_EVENTS)
    ]
    return np.concatenate(parts)


def predict(
    predictor: Callable[[np.ndarray[Any, Any]], Any], matrix: np.ndarray[Any, Any], count: int, pids: Sequence[int]
) -> Run:
    """Bare prediction of so many rows, in batches of the worker's size; the rows are taken again and again."""
    if len(matrix) < min(BATCH_EVENTS, count):
        matrix = np.tile(matrix, (-(-BATCH_EVENTS // len(matrix)), 1))
    done = begin = 0
    meter = Meter(pids)
    while done < count:
        batch = matrix[begin : begin + min(BATCH_EVENTS, count - done)]
        predictor(batch)
        done += len(batch)
        begin = begin + len(batch) if begin + len(batch) < len(matrix) else 0
    return Run.of(done, meter)


@asynccontextmanager
async def scoring(grid: Grid, job: Job, worker: str = "bench") -> AsyncIterator[tuple[JobRunner, Callable[[], None]]]:
    """A worker in this process that scores a job which nobody else knows of, from when it holds some partition.

    Returns: the worker, and a function that raises if it has stopped. Raises GridscoreError if the job cannot be scored
    for.
    """
    started = asyncio.Event()
    runner = JobRunner(
        grid, JobRecord(job, JobState.RUNNING, 1, "", "", ""), Members(grid, worker), started=started.set
    )
    task = asyncio.create_task(runner.run())
    waiter = asyncio.create_task(started.wait())

    def check() -> None:
        if task.done():
            task.result()
            raise GridscoreError("The worker stopped before it had scored everything.")

    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        check()
        yield runner, check
    finally:
        waiter.cancel()
        task.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


async def score(grid: Grid, pids: Sequence[int], job: Job, count: int, worker: str = "bench") -> Run:
    """One worker from the oldest event to the last result acknowledged; from when it held all its partitions.

    Afterwards the results are gone, and the next one begins anew. Dead letters count as scored.

    Raises GridscoreError if the worker stopped.
    """
    async with scoring(grid, job, worker) as (runner, check):
        stats = runner.stats
        before, stages = stats.events + stats.dead, dict(stats.stage_ns)
        meter = Meter(pids)
        while stats.events + stats.dead < count:
            check()
            await asyncio.sleep(0.005)
        run = Run.of(
            stats.events + stats.dead - before,
            meter,
            {stage: (ns - stages.get(stage, 0)) / 1e9 for stage, ns in stats.stage_ns.items()},
        )
    await start_over(grid, job.name)
    await grid.destroy(job.results)
    return run


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians of some runs, with the spread of their rates; the members' CPU is None if it is not known."""
    members = [run.micros(run.member_cpu) for run in runs if run.member_cpu is not None]
    return {
        "events_per_s": round(statistics.median(run.rate for run in runs)),
        "events_per_s_min": round(min(run.rate for run in runs)),
        "events_per_s_max": round(max(run.rate for run in runs)),
        "cpu_us_per_event": round(statistics.median(run.micros(run.cpu) for run in runs), 3),
        "member_cpu_us_per_event": round(statistics.median(members), 3) if members else None,
    }


def stage_figures(runs: Sequence[Run]) -> dict[str, float]:
    """Medians of a worker's CPU by stage, microseconds per event; what is left of the whole as `REST`."""
    names = dict.fromkeys(stage for run in runs for stage in run.stages)
    stages = {
        stage: round(statistics.median(run.micros(run.stages.get(stage, 0.0)) for run in runs), 3) for stage in names
    }
    whole = statistics.median(run.micros(run.cpu) for run in runs)
    stages[REST] = round(whole - sum(stages.values()), 3)
    return stages
