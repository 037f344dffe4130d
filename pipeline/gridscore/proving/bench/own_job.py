"""How fast a user's own job goes on the user's own cluster, without harm to what runs there.

Events like the job's are put into a map of their own, scored by a worker in this process for a job that no other worker
knows of, and removed again with all that came of them. Lookups and model are the job's own, and only read. In each
round the journal is drained, the same rows are predicted, and the worker goes from the oldest event to the last result;
the first round warms up. Then events come at a steady rate: latency is from when each was due to a listener.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from gridscore.errors import EventsLostError, GridError, GridscoreError, MapNotFoundError
from gridscore.grid import transport
from gridscore.grid.capacity import Source
from gridscore.grid.member import running_cluster
from gridscore.grid.writer import MapWriter
from gridscore.job.parts import ModelRef
from gridscore.models import LoadedModel, Registry, check_fit
from gridscore.proving.bench.rounds import REST, drain, figures, predict, put_events, score, scoring, stage_figures
from gridscore.proving.bench.samples import MAX_BYTES, bounded, featured, from_grid, keys
from gridscore.proving.bench.steady import SteadyLoad
from gridscore.proving.bench.temporary import place, removed_afterwards

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.capacity import Capacity
    from gridscore.job import Job
    from gridscore.models import ModelVersion
    from gridscore.proving.bench.rounds import Run
    from gridscore.proving.bench.samples import Samples
    from gridscore.proving.bench.temporary import Place

WARM_UP_SECONDS = 1.0  # of the steady rate, before latency counts
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_LOST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be measured."""

    events: int  # events of a backlog
    rounds: int  # how often each is measured, in turn, after one that does not count
    rate: float  # events per second while latency is measured
    seconds: float  # for how long
    model: str = ""  # another version of the job's model than the job says: its number or an alias
    member_pids: Sequence[int] = ()  # the members' processes, where they are on this machine


@dataclass(frozen=True, slots=True)
class Latency:
    """From when events were due to a listener, at a steady rate."""

    rate: float
    seconds: float
    millis: np.ndarray[Any, Any]

    def to_json(self) -> dict[str, Any]:
        """Percentiles, in milliseconds."""
        names, percents = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms"), (50, 90, 99, 99.9, 100)
        values = np.percentile(self.millis, percents)
        return {
            "rate": self.rate,
            "seconds": round(self.seconds, 1),
            "events": len(self.millis),
            **{name: round(float(value), 2) for name, value in zip(names, values, strict=True)},
        }


@dataclass(frozen=True, slots=True)
class _Measured:
    drains: list[Run]
    predictions: list[Run]
    workers: list[Run]
    latency: Latency


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and on what."""

    job: Job
    model: ModelVersion
    samples: Samples
    events: int
    members: int
    partitions: int
    measured: _Measured
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Medians with their spread, for scripts and for the tables."""
        measured = self.measured
        worker, stages = figures(measured.workers), stage_figures(measured.workers)
        return {
            "job": self.job.name,
            "model": self.model.name,
            "version": self.model.version,
            "trees": self.model.trees,
            "features": len(self.job.features),
            "members": self.members,
            "partitions": self.partitions,
            "events": self.events,
            "rounds": len(measured.workers),
            "samples": len(self.samples.texts),
            "samples_from": self.samples.origin,
            "samples_left_out": self.samples.bad,
            "mean_event_bytes": round(self.samples.mean_bytes, 1),
            "worker": worker,
            "journal_drain": figures(measured.drains),
            "inplace_predict": figures(measured.predictions),
            "worker_stage_us_per_event": stages,
            "latency": measured.latency.to_json(),
            "advice": advice(self.job, self.model.trees, worker, stages),
            "notes": self.notes,
        }


def local_pids(grid: Grid) -> list[int]:
    """The members' processes if `gridscore up` runs them on this machine; else none."""
    local, settings = running_cluster(), grid.settings
    if local is None or local["cluster_name"] != settings.cluster_name:
        return []
    if not settings.members or not set(settings.members) <= set(local["members"]):
        return []
    return [pid for pid in local["pids"] if psutil.pid_exists(pid)]


async def measure(
    grid: Grid,  # a connection to the cluster, used for nothing else
    job: Job,  # the user's
    samples: Samples | None,  # events to measure with; those in the job's event map if None
    request: Request,  # what is to be measured
    *,
    progress: Callable[[str], None],  # called with what is going on
    say: Callable[[str], None],  # called with what a failed run leaves behind
) -> Report:
    """Measure a job that need not have been submitted.

    Raises GridscoreError if the job cannot be measured here (no journal, no model, a missing lookup map, no events),
    the worker did not keep up with the rate, or not everything could be removed afterwards; HazelcastError if the
    cluster did not answer.
    """
    progress("looking at the job")
    await _require_lookups(grid, job)
    model = await _model(grid, job, request.model)
    where = await place(grid, job)
    if samples is None:
        progress(f"reading events of {job.events}")
        samples = await from_grid(grid, job)
    samples, matrix = await featured(grid, job, model, samples)
    events, why = bounded(request.events, where.capacity, samples.mean_bytes)
    notes = [why] if why else []
    if samples.bad:
        notes.append(f"{samples.bad:,} sample events left out, as dead letters would be: {samples.example}")
    if where.capacity.source is not Source.CONFIGURED:
        notes.append("the members do not tell their configuration: the journal may hold more than was assumed")
    own = _own(job, where, model.version)
    async with removed_afterwards(grid, own, say):
        measured = await _unless_lost(
            grid, _measured(grid, own, where.capacity, samples, matrix, model, events, request, progress)
        )
        progress("removing what was put")
    if measured.latency.seconds < request.seconds:
        notes.append(
            f"latency over {measured.latency.seconds:.1f} s instead of {request.seconds:.0f}: more than "
            f"{MAX_BYTES >> 20} MiB of events would be put"
        )
    return Report(
        job,
        model.version,
        samples,
        events,
        sum(not member.lite_member for member in grid.members),
        grid.partition_count,
        measured,
        notes,
    )


async def _unless_lost(grid: Grid, work: Coroutine[Any, Any, _Measured]) -> _Measured:
    """Do the work; give it up when the cluster is gone for long, for which a worker would wait as long as it takes."""
    task = asyncio.create_task(work)
    seen_at = time.monotonic()
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=_LOST_SECONDS / 10)
            if transport.member_connections(grid.client):
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > _LOST_SECONDS:
                raise GridError("The cluster has gone away meanwhile.", "Try again when it is back.")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _measured(
    grid: Grid,
    own: Job,
    capacity: Capacity,
    samples: Samples,
    matrix: np.ndarray[Any, Any],
    model: LoadedModel,
    events: int,
    request: Request,
    progress: Callable[[str], None],
) -> _Measured:
    await put_events(
        grid,
        own.events,
        zip(keys(events, capacity, MapWriter(grid, own.events).serialize_key), cycle(samples.texts), strict=False),
        lambda done: progress(f"putting events: {done:,} of {events:,}"),
    )
    drains, predictions, workers = [], [], []
    for number in range(request.rounds + 1):
        name = f"round {number} of {request.rounds}" if number else "warming up"
        progress(f"{name}: journal drain")
        drains.append((await drain(grid, own.events, request.member_pids, events))[0])
        progress(f"{name}: prediction")
        predictions.append(predict(model.predict, matrix, events, request.member_pids))
        progress(f"{name}: worker")
        workers.append(await score(grid, request.member_pids, own, events, own.name))
    progress(f"latency at {request.rate:,.0f} events/s")
    latency = await _latency(grid, own, samples, request)
    return _Measured(drains[1:], predictions[1:], workers[1:], latency)


async def _require_lookups(grid: Grid, job: Job) -> None:
    maps = dict.fromkeys(lookup.map for lookup in job.lookups.values())
    missing = [name for name in maps if not await grid.has_map(name)]
    if missing:
        raise MapNotFoundError(
            f"Lookup maps of the job `{job.name}` do not exist in the cluster: {', '.join(missing)}.",
            "Put the reference data into them first (`gridscore load JOB --lookups DIR`), or correct their names in "
            "the job file.",
        )


async def _model(grid: Grid, job: Job, wanted: str) -> LoadedModel:
    registry = Registry(grid)
    version = await registry.chosen(job.model, wanted or None)
    check_fit(job, version, allow_changed=True)
    return await registry.load(version)


def _own(job: Job, where: Place, version: ModelVersion) -> Job:
    """The job as it is measured: with maps of its own, and without what goes on beside scoring."""
    return job.model_copy(
        update={
            "name": where.job,
            "events": where.events,
            "results": where.results,
            # A promotion during the run would change what is measured.
            "model": ModelRef.model_validate({"name": version.name, "version": version.version}),
            "start": "oldest",
            "on_loss": "halt",
            "retain": "all",
            "audit": "off",
            "peak_rate": None,
            # Counted as ever; but nobody is told of it.
            "drift": job.drift and job.drift.model_copy(update={"every": "31d", "alerts": None}),
        }
    )


async def _latency(grid: Grid, own: Job, samples: Samples, request: Request) -> Latency:
    seconds = min(request.seconds, max(1.0, MAX_BYTES / samples.mean_bytes / request.rate))
    newest = own.model_copy(update={"start": "latest"})
    async with scoring(grid, newest, own.name) as (runner, check):
        deadline = time.monotonic() + _START_SECONDS
        while any(runner.group.acknowledged_to(partition) is None for partition in range(grid.partition_count)):
            check()
            if time.monotonic() > deadline:
                raise GridscoreError(f"The worker does not score after {_START_SECONDS:.0f} s.", "Try again.")
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            async with SteadyLoad(grid, newest, samples.texts, request.rate, check) as load:
                await asyncio.sleep(WARM_UP_SECONDS + seconds)
        except EventsLostError as error:
            raise GridscoreError(
                f"The worker did not keep up with {request.rate:,.0f} events/s: the journal overwrote some unread.",
                "Measure latency at a lower --rate.",
            ) from error
    return Latency(request.rate, seconds, load.millis(WARM_UP_SECONDS))


IDLE = 0.3  # part of the time that a worker with a backlog may wait before that is worth a word


def advice(job: Job, trees: int, worker: Mapping[str, Any], stages: Mapping[str, float]) -> str:
    """How much one worker sustains, what takes its time, and what to look at.

    `job`: the user's; `trees`: of its model; `worker`: figures of a worker with a backlog: `events_per_s` and
    `cpu_us_per_event`; `stages`: its CPU by stage, microseconds per event, all of it.
    """
    rate, cpu = worker["events_per_s"], worker["cpu_us_per_event"]
    text = f"One worker sustains about {_rounded(rate):,} events/s of this job"
    if job.peak_rate is not None:
        needed = math.ceil(job.peak_rate / rate)
        text += f", so its peak rate of {job.peak_rate:,.0f} needs {needed:,} worker{'s' if needed > 1 else ''}"
    stage = max(stages, key=lambda name: stages[name])
    text += f"; most of its CPU goes to {stage}: {stages[stage]:.1f} of {cpu:.1f} µs per event. "
    fetched = sorted(name for name, lookup in job.lookups.items() if lookup.mode == "fetch")
    idle = 1 - rate * cpu / 1e6
    if fetched and (stage == REST or idle > IDLE):
        names = ", ".join(fetched)
        text += f"Each batch asks the grid for its lookups ({names}): with `mode: copy`, each worker has them at hand."
    elif idle > IDLE:
        text += (
            f"It waits {idle:.0%} of the time, for the members, the network or a free core: look there first, not at "
            "the job."
        )
    else:
        text += _LOOK_AT[stage].format(
            features=len(job.features), lookups=len(job.lookups), trees=trees, fields=len(job.schema_)
        )
        if stage == "encode" and job.result.include:
            text += f" Each result repeats {len(job.result.include)} fields of its event (`include`)."
    return text


_LOOK_AT = {
    "decode": "Look at the events: leave out of the schema ({fields} fields) what no feature uses; keep them short.",
    "features": "Look at the expressions: {features} features and {lookups} lookups; leave out what the model does not "
    "need.",
    "predict": "Look at the model: {trees:,} trees; fewer or shallower ones cost less, in proportion.",
    "encode": "Look at what a result holds; else there is little to gain in the job file.",
    "write": "Look at what a result holds, and at the members: each result is written with its backups.",
    REST: "The job itself is light: more workers help (`gridscore worker --processes auto`), the job file hardly can.",
}


def _rounded(rate: float) -> int:
    """Two figures: there is no more in it."""
    return int(round(rate, 1 - math.floor(math.log10(rate)))) if rate >= 1 else 0
