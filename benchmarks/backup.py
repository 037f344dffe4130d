"""`python -m benchmarks.backup`: what a look of `gridscore backup` costs, of a job whose windows have many entities.

The windows are filled from a history. Then events of so many entities come, all are scored, and a look is timed; at
last the backup runs by itself, under a steady load, and says how old its newest point was at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import psutil
import typer
import xgboost as xgb

from benchmarks.crew import Crew
from gridscore.cli.bench import measured
from gridscore.cli.output import print_json, print_table
from gridscore.client.client import Client
from gridscore.job import parse_job
from gridscore.operations.backup import Backup, backups_of
from gridscore.operations.restore_points import Points
from gridscore.operations.window_load import load_states
from gridscore.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster

NAME = "bench-backup"
JOB = f"""\
job: {NAME}
events: events.{NAME}
event_key: card
order_by: time
schema: {{card: string, amount: float, time: {{type: timestamp, unit: s}}}}
windows: {{card: card}}
features:
  amount: amount
  total: sum(amount, card, "1h")
  share: amount / mean(amount, card, last=5)
model: {NAME}
results: results.{NAME}
"""
_CHANGES = (0, 100, 1_000, 10_000, 100_000)
_SETTLE_SECONDS = 60.0
_CHUNK = 2_000


class _Bench:
    def __init__(self, client: Client, entities: int) -> None:
        self._client, self._entities = client, entities
        self._draw = np.random.default_rng(1)
        self._results = f"results.{NAME}"

    async def prepare(self, folder: Path) -> None:
        """Make the job, with windows that have all entities."""
        client, count = self._client, self._entities
        job = parse_job(JOB, "the benchmark's job")
        rows = self._draw.normal(size=(1_000, 3)).astype(np.float32)
        matrix = xgb.DMatrix(rows, rows[:, 0] > 0, feature_names=list(job.feature_names))
        await client.push_model(xgb.train({"objective": "binary:logistic"}, matrix, 10), NAME, alias="champion")
        await client.submit(job, suspended=True)
        times = time.time() - 3_000 + np.arange(count) * (1_000 / count)
        cards = [f"card-{number}" for number in range(count)]
        history = folder / "history.parquet"
        pd.DataFrame({"card": cards, "amount": self._draw.gamma(2, 20, count), "time": times}).to_parquet(history)
        await load_states(client.grid, await client.jobs.get(NAME), history)
        await client.jobs.resume(NAME)

    async def put(self, count: int) -> None:
        """Put an event for each of some entities."""
        now = time.time()
        for begin in range(0, count, _CHUNK):
            some = self._draw.choice(self._entities, min(_CHUNK, count - begin), replace=False)
            cards = [f"card-{number}" for number in some.tolist()]
            events = {card: {"card": card, "amount": 10.0, "time": now} for card in cards}
            await self._client.put_events(f"events.{NAME}", events)

    async def looks(self, backup: Backup, size: Callable[[], int]) -> list[dict[str, Any]]:
        """Time looks after more and more changes; the first is the first of all."""
        found = []
        for changes in (None, *_CHANGES):
            await self.put(changes or 0)
            await backup.settle(_SETTLE_SECONDS)  # all have their results, states and offsets
            before, wall, cpu = size(), time.monotonic(), time.process_time()
            await backup.look()
            found.append(
                {
                    "changed": "everything is new" if changes is None else changes,
                    "seconds": round(time.monotonic() - wall, 2),
                    "cpu_seconds": round(time.process_time() - cpu, 2),
                    "kib_kept": (size() - before) >> 10,
                }
            )
        return found

    async def steady(self, backup: Backup, grid: Grid, rate: int, seconds: float) -> float:
        """How old the newest point was seen at most, once a second, while the backup ran under a load."""
        running, end, oldest = asyncio.create_task(backup.run()), time.monotonic() + seconds, 0.0
        begun = (await backups_of(grid))[0].at
        try:
            while (began := time.monotonic()) < end:
                await self.put(rate)
                newest = (await backups_of(grid))[0]
                oldest = max(oldest, newest.age if newest.at > begun else 0.0)
                await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        return oldest


def _in_folder(folder: Path) -> tuple[str, Callable[[], int]]:
    """Where points go, and what tells how many bytes they have."""
    place = folder / "points"
    return str(place), lambda: sum(each.stat().st_size for each in place.rglob("*") if each.is_file())


def _in_postgres(stack: contextlib.ExitStack, folder: Path) -> tuple[str, Callable[[], int]]:
    server = stack.enter_context(PostgresServer.start(folder, fsync="on"))

    def size() -> int:
        there = server.execute("SELECT to_regclass('gridscore_backup') IS NOT NULL", "backup")[0][0]
        text = "SELECT coalesce(sum(length(data)), 0) FROM gridscore_backup"
        return int(server.execute(text, "backup")[0][0]) if there else 0

    return server.create_database("backup"), size


def main(
    *,
    entities: Annotated[int, typer.Option(min=1_000, max=5_000_000)] = 1_000_000,
    postgres: Annotated[bool, typer.Option(help="Keep points in PostgreSQL instead of a folder.")] = False,
    every: Annotated[float, typer.Option(min=1, max=60, help="Of the steady load.")] = 5.0,
    rate: Annotated[int, typer.Option(min=0, max=50_000, help="Events a second of the steady load.")] = 1_000,
    seconds: Annotated[float, typer.Option(min=10, max=3_600, help="That it lasts.")] = 60.0,
    heap: Annotated[str, typer.Option(help="Of the member.")] = "4g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time looks of a backup.

    Example: python -m benchmarks.backup --entities 1000000
    """

    async def work(grid: Grid, _cluster: Cluster, folder: Path, status: Status) -> dict[str, Any]:
        status.update("measuring")
        bench, crew = _Bench(Client(grid), entities), Crew(grid, NAME, folder)
        with contextlib.ExitStack() as stack:
            place, size = _in_postgres(stack, folder) if postgres else _in_folder(folder)
            await bench.prepare(folder)
            stack.callback(crew.close)
            crew.start()
            await crew.balanced()
            backup = Backup(grid, stack.enter_context(contextlib.closing(Points.write(place))), every=every)
            looks = await bench.looks(backup, size)
            oldest = await bench.steady(backup, grid, rate, seconds)
        resident = psutil.Process(os.getpid()).memory_info().rss >> 20
        return {"looks": looks, "oldest_point_seconds": round(oldest, 2), "resident_mib": resident}

    report = measured(1, heap, work)
    if as_json:
        print_json(report)
        return
    print_table(tuple(report["looks"][0]), [tuple(map(str, each.values())) for each in report["looks"]], empty="")
    print_table(("WHAT", "HOW MUCH"), [(k, str(v)) for k, v in report.items() if k != "looks"], empty="")


if __name__ == "__main__":
    typer.run(main)
