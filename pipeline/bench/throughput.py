"""Throughput of one worker, beside its two limits: reading the journal and nothing else, predicting and nothing else.

All three do the same events in the same run, in turn, several times. CPU is that of whole processes, as the operating
system accounts for it; the stages are CPU time of the worker's event loop, measured where they happen.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from hazelcast.protocol.builtin import FixSizedTypesCodec
from hazelcast.protocol.client_message import RESPONSE_HEADER_SIZE

from pipeline.bench import card
from pipeline.errors import GridscoreError
from pipeline.features import EventDecoder, FeaturePlan, LookupTable
from pipeline.grid import transport, wire
from pipeline.grid.journal import Journal
from pipeline.grid.writer import MapWriter
from pipeline.job import JobRecord, JobState
from pipeline.models import Registry
from pipeline.worker import JobRunner
from pipeline.worker.leases import begin_anew
from pipeline.worker.members import Members
from pipeline.worker.runner import BATCH_EVENTS
from pipeline.worker.stats import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.grid import Grid
    from pipeline.job import Job

PAGE = 512


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: how long, and CPU seconds of this process and of the members."""

    events: int
    seconds: float
    cpu: float
    member_cpu: float
    stages: dict[str, float] = field(default_factory=dict)  # CPU seconds

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    def micros(self, seconds: float) -> float:
        """Microseconds per event."""
        return seconds * 1e6 / self.events


class Meter:
    """Time and CPU of this process and the members, from when it was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._members = [psutil.Process(pid) for pid in pids]
        self._began, self._cpu, self._member_cpu = time.perf_counter(), time.process_time(), self._members_cpu()

    def _members_cpu(self) -> float:
        return float(sum(t.user + t.system for t in (member.cpu_times() for member in self._members)))

    def read(self, events: int, stages: dict[str, float] | None = None) -> Run:
        """What has been used since."""
        return Run(
            events,
            time.perf_counter() - self._began,
            time.process_time() - self._cpu,
            self._members_cpu() - self._member_cpu,
            stages or {},
        )


async def fill(grid: Grid, count: int, progress: Callable[[int], None]) -> None:
    """Put the lookups and the events of the work into the grid."""
    import msgspec

    for name, entries in (("lookups.bench-users", card.users()), ("lookups.bench-merchants", card.merchants())):
        await MapWriter(grid, name).put((key, msgspec.json.encode(value)) for key, value in entries.items())
    writer, chunk, done = MapWriter(grid, "events.bench"), [], 0
    for event in card.events(count):
        chunk.append(event)
        if len(chunk) == 5_000:
            done += await writer.put(chunk)
            progress(done)
            chunk = []
    progress(done + await writer.put(chunk))


async def drain(grid: Grid, pids: Sequence[int], expected: int) -> tuple[Run, list[bytes]]:
    """Read the whole journal, one read in flight a partition, as fast as it goes; returns the events, too."""
    journal = Journal(grid, "events.bench")
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
    run = meter.read(len(values))
    if len(values) != expected:
        raise GridscoreError(
            f"The journal holds {len(values):,} of {expected:,} events.",
            "Give it more capacity, or bench fewer events.",
        )
    return run, values


async def drain_as_published(grid: Grid, pids: Sequence[int]) -> Run:
    """The same journal through the client's own connection, as published: one object a frame, items uncut."""
    from hazelcast.asyncio import HazelcastClient
    from hazelcast.protocol.builtin import ListDataCodec

    def decode(message: Any) -> tuple[int, int]:
        frame = message.next_frame()
        following = FixSizedTypesCodec.decode_long(frame.buf, RESPONSE_HEADER_SIZE + 4)
        return len(ListDataCodec.decode(message)), following

    settings = grid.settings
    client = await HazelcastClient.create_and_start(
        cluster_members=list(settings.members), cluster_name=settings.cluster_name
    )
    try:
        journal = Journal(grid, "events.bench")
        bounds = await asyncio.gather(*(journal.bounds(p) for p in range(grid.partition_count)))
        count = 0
        meter = Meter(pids)

        async def read(partition: int, position: int, newest: int) -> None:
            nonlocal count
            while position <= newest:
                message = wire.encode_read("events.bench", position, 1, PAGE)
                got, position = await transport.invoke(client, message, partition, decode)
                count += got

        await asyncio.gather(*(read(p, oldest, newest) for p, (oldest, newest) in enumerate(bounds)))
        return meter.read(count)
    finally:
        await client.shutdown()


def predict(model: Any, matrix: np.ndarray[Any, Any], pids: Sequence[int]) -> Run:
    """Bare `inplace_predict` of the same rows, in batches of the worker's size."""
    meter = Meter(pids)
    for begin in range(0, len(matrix), BATCH_EVENTS):
        model.inplace_predict(matrix[begin : begin + BATCH_EVENTS], validate_features=False)
    return meter.read(len(matrix))


def matrix_of(job: Job, values: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The feature matrix of the events, offline."""
    import msgspec

    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    for name, entries in (("customer", card.users()), ("shop", card.merchants())):
        for key, value in entries.items():
            tables[name].put(key, msgspec.json.encode(value))
    decoder, plan = EventDecoder(job), FeaturePlan(job, tables, {})
    parts = [
        plan.matrix([decoder.decode(value) for value in values[i : i + BATCH_EVENTS]])
        for i in range(0, len(values), BATCH_EVENTS)
    ]
    return np.concatenate(parts)


async def score(grid: Grid, pids: Sequence[int], job: Job, count: int) -> Run:
    """One worker from the oldest event to the last result acknowledged; from when it held all its partitions."""
    started = asyncio.Event()
    record = JobRecord(job, JobState.RUNNING, 1, "", "", "")
    runner = JobRunner(grid, record, Members(grid, "bench"), started=started.set)
    task = asyncio.create_task(runner.run())
    waiter = asyncio.create_task(started.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        stats = runner.stats
        before, stages = stats.events, dict(stats.stage_ns)
        meter = Meter(pids)
        while stats.events < count:
            if task.done():
                task.result()
                raise GridscoreError("The worker stopped before it had scored everything.")
            await asyncio.sleep(0.005)
        return meter.read(
            stats.events - before, {stage: (stats.stage_ns[stage] - stages[stage]) / 1e9 for stage in STAGES}
        )
    finally:
        waiter.cancel()
        task.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)
        await begin_anew(grid, job.name)
        await (await grid.map(job.results)).destroy()


@dataclass(frozen=True, slots=True)
class Report:
    """Medians over the rounds."""

    events: int
    rounds: int
    members: int
    drain: list[Run]
    published: list[Run]
    predict: list[Run]
    worker: list[Run]

    @staticmethod
    def _median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
        return statistics.median(figure(run) for run in runs)

    def to_json(self) -> dict[str, Any]:
        """Medians with their spread, for scripts and for the table."""

        def figures(runs: Sequence[Run]) -> dict[str, Any]:
            return {
                "events_per_s": round(self._median(runs, lambda r: r.rate)),
                "events_per_s_min": round(min(r.rate for r in runs)),
                "events_per_s_max": round(max(r.rate for r in runs)),
                "cpu_us_per_event": round(self._median(runs, lambda r: r.micros(r.cpu)), 3),
                "member_cpu_us_per_event": round(self._median(runs, lambda r: r.micros(r.member_cpu)), 3),
            }

        stages = {
            stage: round(self._median(self.worker, lambda r, s=stage: r.micros(r.stages[s])), 3)  # type: ignore[misc]
            for stage in STAGES
        }
        worker = figures(self.worker)
        stages["journal, sockets, event loop"] = round(worker["cpu_us_per_event"] - sum(stages.values()), 3)

        def ratio(drains: Sequence[Run]) -> float:
            return round(statistics.median(w.rate / d.rate for w, d in zip(self.worker, drains, strict=True)), 3)

        return {
            "events": self.events,
            "rounds": self.rounds,
            "members": self.members,
            "worker": worker,
            "journal_drain": figures(self.drain),
            "journal_drain_client_as_published": figures(self.published),
            "inplace_predict": figures(self.predict),
            "worker_stage_us_per_event": stages,
            "worker_to_drain_ratio": ratio(self.drain),
            "worker_to_drain_as_published_ratio": ratio(self.published),
        }


async def measure(
    grid: Grid, pids: Sequence[int], *, events: int, rounds: int, progress: Callable[[str, int], None]
) -> Report:
    """Run the whole comparison.

    Args:
        grid: A connection to a cluster made for this: its `*.bench*` maps are destroyed afterwards.
        pids: Processes of the members, for their CPU.
        events: How many.
        rounds: How often each is measured, in turn.
        progress: Called with what is going on and how many events of it are done.
    """
    drains, published, predictions, workers = [], [], [], []
    job = card.card_job("bench", "results.bench")
    registry = Registry(grid)
    booster = card.booster(job)
    await registry.push(booster, job.model.name, alias="champion")
    booster.set_param({"nthread": 1})
    await fill(grid, events, lambda done: progress("putting events", done))
    matrix = None
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: journal drain", 0)
        run, values = await drain(grid, pids, events)
        drains.append(run)
        published.append(await drain_as_published(grid, pids))
        matrix = matrix_of(job, values) if matrix is None else matrix
        del values
        progress(f"round {number + 1} of {rounds}: inplace_predict", 0)
        predictions.append(predict(booster, matrix, pids))
        progress(f"round {number + 1} of {rounds}: worker", 0)
        workers.append(await score(grid, pids, job, events))
    for name in ("events.bench", "lookups.bench-users", "lookups.bench-merchants"):
        await (await grid.map(name)).destroy()
    return Report(events, rounds, len(pids), drains, published, predictions, workers)
