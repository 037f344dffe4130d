"""`python -m benchmarks.windows`: what an event costs in windows of its own key, of another key, and without windows.

Starts members and workers of its own and ends them. Each round works off a backlog of the same events in each way. What
is measured is between the first tenth of the results and the last: events a second, and for an event CPU of workers and
members, and requests of the workers.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer
import xgboost as xgb

from benchmarks.backlog import COLUMNS, Backlog, Found, in_turn, medians
from gridscore.cli.bench import measured
from gridscore.cli.output import print_json, print_table
from gridscore.job import parse_job
from gridscore.models import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
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


def _job(name: str, way: str) -> Job:
    extra, features = _WAYS[way]
    return parse_job(_JOB.format(name=name, extra=extra, **features), "the benchmark's job")


def _model() -> xgb.Booster:
    draw = np.random.default_rng(0)
    rows = draw.uniform(0, 1000, size=(2_000, 5)).astype(np.float32)
    matrix = xgb.DMatrix(rows, rows @ np.arange(5), feature_names=["amount", "a", "b", "c", "d"])
    return xgb.train({"objective": "reg:squarederror", "max_depth": 6, "nthread": 1}, matrix, 50)


async def _round(backlog: Backlog, way: str, events: int, cards: int) -> dict[str, float]:
    """Work off a backlog in one way."""
    name = f"{way.replace('_', '-')}-{backlog.workers}-{time.monotonic_ns()}"
    draw = random.Random(1)  # the same events for each

    def entry(number: int) -> tuple[str, bytes]:
        card = f"c{draw.randrange(cards)}"
        event = {"card": card, "amount": draw.randrange(100_000) / 100, "time": 1.7e9 + number / 100}
        return card if way == "event_key" else f"e{number}", msgspec.json.encode(event)

    return await backlog.work_off(_job(name, way), map(entry, range(events)), events)


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

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Found:
        await Registry(grid).push(_model(), "windows", alias="champion")
        backlog = Backlog(grid, cluster.pids, folder, workers)
        return await in_turn(_WAYS, rounds, status, lambda way: _round(backlog, way, events, cards))

    found = measured(members, heap, work)
    if as_json:
        print_json({"events": events, "cards": cards, "workers": workers, "members": members, "ways": found})
        return
    print_table(("WINDOWS", *COLUMNS.values()), medians(found), empty="")


if __name__ == "__main__":
    typer.run(main)
