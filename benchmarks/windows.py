"""`python -m benchmarks.windows`: what an event costs in windows of its own key, of another key, and without windows.

Starts members and workers of its own and ends them. Each round works off a backlog of the same events in each way. What
is measured is between the first tenth of the results and the last: events a second, and for an event CPU of workers and
members, and requests of the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer
import xgboost as xgb

from benchmarks.crew import where
from gridscore.cli.output import errors, print_json, print_table, run
from gridscore.errors import GridscoreError
from gridscore.grid import GridSettings, connect
from gridscore.grid.journal import Journal
from gridscore.grid.member import Cluster
from gridscore.grid.writer import MapWriter
from gridscore.group.lease_records import read_records
from gridscore.job import Jobs, parse_job
from gridscore.leash import LeashedProcess
from gridscore.models import Registry
from gridscore.proving.bench.meter import Meter
from gridscore.scoring.preparation import prepare

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import Job

_JOB = """\
job: {name}
events: events.{name}
{extra}order_by: time
schema: {{card: string, amount: float, time: {{type: timestamp, unit: s}}}}
windows: {{card: card}}
features: {{amount: amount, a: {a}, b: {b}, c: {c}, d: {d}}}
model: {{name: windows, alias: champion}}
results: results.{name}
"""
_WINDOWED = {
    "a": "'sum(amount, card, \"1h\")'",
    "b": "'count(card, \"10m\")'",
    "c": "'amount / mean(amount, card, \"1d\")'",
    "d": "seconds_since_last(card)",
}
_PLAIN = {"a": "amount * 2", "b": "amount + 1", "c": "log1p(amount)", "d": "abs(amount)"}
_WAYS = {"none": ("", _PLAIN), "event_key": ("event_key: card\n", _WINDOWED), "routed": ("", _WINDOWED)}
_WAIT_SECONDS = 600.0
_LOOK_SECONDS = 0.05


def _job(name: str, way: str) -> Job:
    extra, features = _WAYS[way]
    return parse_job(_JOB.format(name=name, extra=extra, **features), "the benchmark's job")


def _model() -> xgb.Booster:
    draw = np.random.default_rng(0)
    rows = draw.uniform(0, 1000, size=(2_000, 5)).astype(np.float32)
    matrix = xgb.DMatrix(rows, rows @ np.arange(5), feature_names=["amount", "a", "b", "c", "d"])
    return xgb.train({"objective": "reg:squarederror", "max_depth": 6, "nthread": 1}, matrix, 50)


def _start(grid: Grid, job: str, folder: Path) -> LeashedProcess:
    place = folder / f"worker-{time.monotonic_ns()}"
    arguments = ["worker", "--jobs", job, *where(grid.settings.cluster_name, grid.settings.members)]
    return LeashedProcess(
        "benchmarks.counted_worker", [str(place.with_suffix(".json")), *arguments], place.with_suffix(".log")
    )


async def _requests(workers: list[LeashedProcess]) -> int:
    files = [worker.log_file.with_suffix(".json") for worker in workers]
    for worker, file in zip(workers, files, strict=True):
        file.unlink(missing_ok=True)
        os.kill(worker.pid, signal.SIGUSR1)
    async with asyncio.timeout(_WAIT_SECONDS):
        while not all(file.exists() for file in files):  # noqa: ASYNC110 -- another process writes them
            await asyncio.sleep(_LOOK_SECONDS)
    return sum(sum(msgspec.json.decode(file.read_bytes())["requests"].values()) for file in files)


async def _done(grid: Grid, job: Job, workers: list[LeashedProcess]) -> int:
    """Results so far, those that were replaced among them."""
    for worker in workers:
        if worker.exit_code is not None:
            raise GridscoreError(f"A worker ended. Its last lines:\n{worker.last_lines()}")
    journal = Journal(grid, job.results)
    bounds = await asyncio.gather(*map(journal.bounds, range(grid.partition_count)))
    return sum(newest + 1 for _, newest in bounds)


async def _round(
    grid: Grid, members: list[int], folder: Path, way: str, workers: int, events: int, cards: int
) -> dict[str, float]:
    """Work off a backlog in one way."""
    name = f"{way.replace('_', '-')}-{workers}-{time.monotonic_ns()}"
    job, draw = _job(name, way), random.Random(1)  # the same events for each
    await prepare(grid, job)

    def entry(number: int) -> tuple[str, bytes]:
        card = f"c{draw.randrange(cards)}"
        event = {"card": card, "amount": draw.randrange(100_000) / 100, "time": 1.7e9 + number / 100}
        return card if way == "event_key" else f"e{number}", msgspec.json.encode(event)

    await MapWriter(grid, job.events).put(map(entry, range(events)))
    await Jobs(grid).submit(job)
    with contextlib.ExitStack() as ending:
        crew = [_start(grid, name, folder) for _ in range(workers)]
        for worker in crew:
            ending.callback(worker.stop)
        meter = Meter([worker.pid for worker in crew], members)
        async with asyncio.timeout(_WAIT_SECONDS):
            while (first := await _done(grid, job, crew)) < events // 10:  # noqa: ASYNC110 -- others write them
                await asyncio.sleep(_LOOK_SECONDS)
            meter.begin()
            before = await _requests(crew)
            while (last := await _done(grid, job, crew)) < events * 9 // 10:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
            usage, after = meter.read(), await _requests(crew)
        lost = sum(record.lost for record in (await read_records(grid, name)).values())
    await Jobs(grid).cancel(name)
    for map_name in (job.events, job.results):
        await (await grid.map(map_name)).destroy()
    count = last - first
    return {
        "events_per_s": round(count / usage.seconds),
        "worker_us": round(usage.scorers / count * 1e6, 2),
        "member_us": round(usage.services / count * 1e6, 2),
        "requests": round((after - before) / count, 4),
        "others_cores": round(usage.others_cores, 2),
        "lost": lost,
    }


def main(
    *,
    events: Annotated[int, typer.Option(min=1_000, max=10_000_000)] = 200_000,
    cards: Annotated[int, typer.Option(min=1, max=10_000_000)] = 10_000,
    workers: Annotated[int, typer.Option(min=1, max=64)] = 1,
    members: Annotated[int, typer.Option(min=1, max=8)] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 3,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "2g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what windows of either kind cost an event.

    Example: python -m benchmarks.windows --events 200000 --rounds 3
    """

    async def measure(cluster: Cluster, folder: Path) -> dict[str, list[dict[str, float]]]:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        async with await connect(settings) as grid:
            await Registry(grid).push(_model(), "windows", alias="champion")
            with errors.status("starting") as status:
                for number in range(rounds):
                    for way in _WAYS:
                        status.update(f"round {number + 1}: {way}")
                        found[way].append(await _round(grid, cluster.pids, folder, way, workers, events, cards))
        return found

    with (
        tempfile.TemporaryDirectory(prefix="gridscore-windows-") as folder,
        Cluster.start(members, port=0, heap=heap) as cluster,
    ):
        found = run(measure(cluster, Path(folder)))
    if as_json:
        print_json({"events": events, "cards": cards, "workers": workers, "members": members, "ways": found})
        return
    columns = ("events_per_s", "worker_us", "member_us", "requests", "others_cores", "lost")
    rows = [
        (way, *(statistics.median(each[column] for each in runs) for column in columns)) for way, runs in found.items()
    ]
    print_table(("WINDOWS", "EVENTS/S", "WORKER µs", "MEMBER µs", "REQUESTS", "OTHERS' CORES", "LOST"), rows, empty="")


if __name__ == "__main__":
    typer.run(main)
