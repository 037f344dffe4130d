"""`python -m benchmarks.malformed`: what events that nothing can decode cost a stream, by flipped bytes.

Starts members and a worker of its own and ends them. Each round works off backlogs of the same number of events: good
ones alone, and good ones with malformed ones spread among them, once with room for all their dead letters and once
with room for few. CPU is counted per event, between the first tenth of the results and the last. Each good event must
have its result, and each other one its dead letter, or be counted without (`max_dead_letters`), and no more than once.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np
import typer
import xgboost as xgb

from benchmarks.backlog import Found, in_turn, medians
from benchmarks.crew import Crew
from benchmarks.meter import Meter
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
max_dead_letter_bytes: 1073741824
schema: {{user: string, amount: float, country: "string?", time: timestamp}}
features: {{amount: amount, log: log1p(amount), hour: hour(time), home: 'country == "DE"', user: 'hash(user, 64)'}}
model: {{name: malformed, alias: champion}}
results: results.{name}
"""
_WAIT_SECONDS = 900.0
_LOOK_SECONDS = 0.05
_COLUMNS = ("events_per_s", "worker_us", "member_us", "others_cores", "dead_letters", "only_counted")


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


class _Way(NamedTuple):
    bad: int  # how many of the events are malformed
    letters: int  # `max_dead_letters` of the job


async def _round(grid: Grid, cluster: Cluster, folder: Path, events: int, way: _Way) -> dict[str, float]:
    """Work off a backlog; `_COLUMNS` of it."""
    name, good = f"m{time.monotonic_ns()}", events - way.bad
    job = parse_job(_JOB.format(name=name, letters=way.letters), "the benchmark's job")
    await prepare(grid, job)
    draw = random.Random(1)
    entries = [(f"g{number}", _event(draw)) for number in range(good)]
    entries += [(f"b{number}", text) for number, text in enumerate(malformed(job, way.bad))]
    draw.shuffle(entries)
    await MapWriter(grid, job.events).put(entries)
    await Jobs(grid).submit(job)
    crew, observer = Crew(grid, name, folder), Observer(grid, name)

    async def results(wanted: int) -> int:
        while (there := await transport.map_size(grid.client, job.results)) < wanted:
            crew.check()
            await asyncio.sleep(_LOOK_SECONDS)
        return there

    try:
        crew.start()
        async with asyncio.timeout(_WAIT_SECONDS):
            first = await results(good // 10)
            meter = Meter(crew.pids, cluster.pids)
            last = await results(good * 9 // 10)
            usage = meter.read()
            there = await results(good)
            while (status := (await observer.look()).jobs[0]).lag != 0:  # noqa: ASYNC110 -- another commits
                await asyncio.sleep(_LOOK_SECONDS)
            totals = status.totals
    finally:
        crew.close()
    await Jobs(grid).cancel(name)
    kept, only_counted = int(totals["dead_letters"]), int(totals["unkept"])
    if there != good or kept + only_counted != way.bad or totals["lost"]:
        raise GridscoreError(
            f"{there:,} results of {good:,} good events; {kept:,} dead letters and {only_counted:,} counted "
            f"without, of {way.bad:,} others. {totals}"
        )
    for map_name in (job.events, job.results, map_of(name)):
        await (await grid.map(map_name)).destroy()
    count = (last - first) * events / good  # malformed ones are spread evenly
    return {
        "events_per_s": round(count / usage.seconds),
        "worker_us": round(usage.scorers / count * 1e6, 2),
        "member_us": round(usage.services / count * 1e6, 2),
        "others_cores": round(usage.others_cores, 2),
        "dead_letters": kept,
        "only_counted": only_counted,
    }


def main(
    *,
    events: Annotated[int, typer.Option(min=10_000, max=900_000, help="Of a round, malformed ones among them.")] = (
        800_000
    ),
    bad: Annotated[int, typer.Option(min=1, max=400_000, help="Malformed ones.")] = 100_000,
    few: Annotated[int, typer.Option(min=1, help="`max_dead_letters` where there is no room for all.")] = 10_000,
    members: Annotated[int, typer.Option(min=1, max=8)] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 3,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "2g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what malformed events cost.

    Example: python -m benchmarks.malformed --rounds 5
    """
    ways = {"good alone": _Way(0, bad), "malformed, kept": _Way(bad, bad), "malformed, few kept": _Way(bad, few)}

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Found:
        await Registry(grid).push(_model(), "malformed", alias="champion")
        return await in_turn(ways, rounds, status, lambda way: _round(grid, cluster, folder, events, ways[way]))

    found = measured(members, heap, work)
    if as_json:
        print_json({"events": events, "bad": bad, "members": members, "rounds": found})
        return
    columns = ("EVENTS/S", "WORKER µs", "MEMBER µs", "OTHERS' CORES", "DEAD LETTERS", "ONLY COUNTED")
    print_table(("STREAM", *columns), medians(found, _COLUMNS), empty="")


if __name__ == "__main__":
    typer.run(main)
