"""`python -m benchmarks.malformed`: a good stream with events among it that are not, by flipped bytes.

Starts members and workers of its own and ends them. A round works off a backlog of good events, and one of the same
events with malformed ones spread over it; the time of the good ones is compared. Each good event must have its result,
and each other one its dead letter, or be counted without (`max_dead_letters`).
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import typer
import xgboost as xgb

from benchmarks.backlog import Found, in_turn, medians
from benchmarks.crew import Crew
from gridscore.cli.bench import measured
from gridscore.cli.output import print_json, print_table
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridscoreError
from gridscore.features import EventDecoder
from gridscore.grid import transport
from gridscore.grid.writer import MapWriter
from gridscore.job import Jobs, parse_job
from gridscore.models import Registry
from gridscore.operations.status import Observer
from gridscore.scoring.preparation import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.job import Job

_JOB = """\
job: {name}
events: events.{name}
max_dead_letters: {letters}
schema: {{user: string, amount: float, country: "string?", time: timestamp}}
features: {{amount: amount, log: log1p(amount), hour: hour(time), home: 'country == "DE"', user: 'hash(user, 64)'}}
model: {{name: malformed, alias: champion}}
results: results.{name}
"""
_WAIT_SECONDS = 900.0
_LOOK_SECONDS = 0.05


def _model() -> xgb.Booster:
    draw = np.random.default_rng(0)
    rows = draw.uniform(0, 1000, size=(2_000, 5)).astype(np.float32)
    names = ["amount", "log", "hour", "home", "user"]
    return xgb.train({"max_depth": 6, "nthread": 1}, xgb.DMatrix(rows, rows @ np.arange(5), feature_names=names), 100)


def _event(draw: random.Random) -> bytes:
    return msgspec.json.encode(
        {
            "user": f"u{draw.randrange(100_000)}",
            "amount": draw.randrange(100_000) / 100,
            "country": draw.choice(("DE", "FR", None)),
            "time": f"2026-01-{draw.randrange(1, 29):02d}T{draw.randrange(24):02d}:15:00Z",
        }
    )


def malformed(job: Job, count: int, seed: int = 0) -> list[bytes]:
    """Events of which one to three bytes are flipped, removed or doubled, and that nothing can decode any more."""
    draw, decoder, found = random.Random(seed), EventDecoder(job), list[bytes]()
    while len(found) < count:
        texts = []
        for _ in range(min(4_096, 2 * count)):
            text = bytearray(_event(draw))
            for _ in range(draw.choice((1, 1, 2, 3))):
                place, way = draw.randrange(len(text)), draw.randrange(3)
                if way == 0:
                    text[place] ^= 1 << draw.randrange(8)
                else:
                    text[place : place + 1] = text[place : place + 1] * (2 * (way - 1))
            texts.append(bytes(text))
        _, bad = decoder.decode_good(texts)
        found += [texts[row] for row in bad]
    return found[:count]


async def _round(grid: Grid, folder: Path, good: int, bad: int, letters: int) -> dict[str, float]:
    """Work off a backlog; returns what is shown."""
    name = f"m{time.monotonic_ns()}"
    job = parse_job(_JOB.format(name=name, letters=letters), "the benchmark's job")
    await prepare(grid, job)
    draw = random.Random(1)
    entries = [(f"g{number}", _event(draw)) for number in range(good)]
    entries += [(f"b{number}", text) for number, text in enumerate(malformed(job, bad))]
    draw.shuffle(entries)
    await MapWriter(grid, job.events).put(entries)
    await Jobs(grid).submit(job)
    crew, observer = Crew(grid, name, folder), Observer(grid, name)

    async def results() -> int:
        crew.check()
        return await transport.map_size(grid.client, job.results)

    try:
        crew.start()
        async with asyncio.timeout(_WAIT_SECONDS):
            while (first := await results()) < good // 10:  # noqa: ASYNC110 -- another process writes them
                await asyncio.sleep(_LOOK_SECONDS)
            began = time.perf_counter()
            while (last := await results()) < good * 9 // 10:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
            rate = (last - first) / (time.perf_counter() - began)
            while True:
                (status,) = (await observer.look()).jobs
                kept = await transport.map_size(grid.client, map_of(name))
                counted, there = kept + int(status.totals["unkept"]), await results()
                if status.lag == 0 and there >= good and counted >= bad:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
    finally:
        crew.close()
    await Jobs(grid).cancel(name)
    if there != good or counted != bad:
        raise GridscoreError(
            f"{there:,} results of {good:,} good events; {kept:,} dead letters and {counted - kept:,} counted "
            f"without, of {bad:,} others. {status.totals}"
        )
    for map_name in (job.events, job.results, map_of(name)):
        await (await grid.map(map_name)).destroy()
    return {"good_per_s": round(rate), "results": there, "dead_letters": kept, "only_counted": counted - kept}


def main(
    *,
    events: Annotated[int, typer.Option(min=10_000, max=10_000_000, help="Good ones.")] = 1_000_000,
    bad: Annotated[int, typer.Option(min=1, max=1_000_000)] = 100_000,
    letters: Annotated[int, typer.Option(help="`max_dead_letters` of the job.")] = 10_000,
    members: Annotated[int, typer.Option(min=1, max=8)] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 3,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "2g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what malformed events cost the good ones.

    Example: python -m benchmarks.malformed --rounds 3
    """

    async def work(grid: Grid, _cluster: Cluster, folder: Path, status: Status) -> Found:
        await Registry(grid).push(_model(), "malformed", alias="champion")
        ways = {"good alone": 0, "with malformed": bad}
        return await in_turn(ways, rounds, status, lambda way: _round(grid, folder, events, ways[way], letters))

    found = measured(members, heap, work)
    if as_json:
        print_json({"events": events, "bad": bad, "members": members, "rounds": found})
        return
    rows = medians(found, ("good_per_s", "results", "dead_letters", "only_counted"))
    print_table(("STREAM", "GOOD EVENTS/S", "RESULTS", "DEAD LETTERS", "ONLY COUNTED"), rows, empty="")


if __name__ == "__main__":
    typer.run(main)
