"""`python -m benchmarks.model_life`: what drift, labels, a shadow and reasons cost an event of the work `card`.

Starts members and workers of its own and ends them. Each round works off the same backlog in each way, in turn; a way
is compared with the plain job of the same round.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import pandas as pd
import typer
import xgboost as xgb

from benchmarks.backlog import COLUMNS, Backlog, Found, in_turn, medians
from gridscore.cli.bench import measured
from gridscore.cli.output import print_json, print_table
from gridscore.client.client import Client
from gridscore.features import offline_matrix
from gridscore.grid.writer import MapWriter
from gridscore.job import parse_job
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill_lookups

if TYPE_CHECKING:
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.job import Job

MODEL = "bench-card"
PLAIN = "plain"
LABELS = "labels.bench"
WAYS = {
    PLAIN: "",
    "drift": "drift: {}\n",
    "labels": f"labels: {{map: {LABELS}}}\n",
    "shadow": "",
    "reasons": "result: {reasons: {share: 0.01}}\n",
}
"""What each adds to the job file."""

_TRAINED = 50_000


@dataclass(frozen=True, slots=True)
class _Ways:
    client: Client
    backlog: Backlog
    events: int

    async def push(self) -> None:
        """Two versions of a model with a baseline; the second is the challenger."""
        job = card.card_job("train", "results.train")
        history = pd.DataFrame([msgspec.json.decode(text) for _, text in card.events(_TRAINED)])
        history["ts"] = pd.to_datetime(history["ts"], unit="ms", utc=True)
        tables = {"customer": ("user", card.users()), "shop": ("merchant", card.merchants())}
        lookups = {
            name: pd.DataFrame([{key: each, **row} for each, row in rows.items()])
            for name, (key, rows) in tables.items()
        }
        matrix = offline_matrix(job, history, lookups)
        risk = matrix.values[:, job.feature_names.index("risk")]  # noqa: PD011 -- not a DataFrame's
        for seed in (1, 2):
            labels = np.random.default_rng(seed).random(len(matrix)) < risk
            parameters = {"max_depth": card.DEPTH, "objective": "binary:logistic", "nthread": 2, "seed": seed}
            booster = xgb.train(parameters, matrix.dmatrix(labels.astype(int)), card.TREES)
            matrix.attach(booster)
            await self.client.push_model(booster, MODEL, alias="champion" if seed == 1 else None)

    async def round(self, way: str) -> dict[str, float]:
        """Work off the backlog in one way."""
        name = f"{way}-{time.monotonic_ns()}"
        job = parse_job(card.job_text(name, f"results.{name}") + WAYS[way], "the benchmark's job")

        async def begin(job: Job) -> None:
            if way == "shadow":
                await self.client.start_experiment(job.name, 2, shadow=True)
            if way == "labels":
                await MapWriter(self.backlog.grid, LABELS).put((f"e{n}", b"%d" % (n % 2)) for n in range(self.events))

        return await self.backlog.work_off(job, card.events(self.events), self.events, begin)


def main(
    *,
    events: Annotated[int, typer.Option(min=10_000, max=900_000)] = 400_000,
    members: Annotated[int, typer.Option(min=1, max=8)] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 5,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "3g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what watching and explaining a model cost an event.

    Example: python -m benchmarks.model_life --rounds 5
    """

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Found:
        await fill_lookups(grid)
        ways = _Ways(Client(grid), Backlog(grid, cluster.pids, folder), events)
        await ways.push()
        status.update("warming up")
        await ways.round(PLAIN)
        return await in_turn(WAYS, rounds, status, ways.round)

    found = measured(members, heap, work)
    ratios = {
        way: {
            column: round(statistics.median(a[column] / b[column] for a, b in zip(runs, found[PLAIN], strict=True)), 3)
            for column in ("events_per_s", "worker_us", "member_us")
        }
        for way, runs in found.items()
    }
    if as_json:
        print_json({"events": events, "members": members, "ways": found, "ratios": ratios})
        return
    print_table(("WAY", *COLUMNS.values()), medians(found), empty="")
    print_table(
        ("BESIDE PLAIN", *list(COLUMNS.values())[:3]), [(way, *each.values()) for way, each in ratios.items()], empty=""
    )


if __name__ == "__main__":
    typer.run(main)
