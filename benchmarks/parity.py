"""`python -m benchmarks.parity`: each example with windows, live over kills and the same events offline, bit for bit.

The examples' own scripts make data and train; `flights` and `card-fraud` get a window with another key than events.
Events go in rounds, each with one event of an entity at most, so that it is known in which order its windows had them.
In the middle workers are killed, and a member: their successors read again what was not committed. Some events of a
round lack a field that the job asks for: once the job is updated to do without it, their dead letters are replayed, and
another worker is killed meanwhile. Each result has its features, and these and the score are held against
`offline_matrix` and `Booster.predict`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import pandas as pd
import typer
import yaml
from hazelcast.errors import HazelcastError

from benchmarks.crew import Crew
from benchmarks.plugs import chosen
from gridscore.cli.bench import measured
from gridscore.cli.output import print_json, print_table
from gridscore.client.client import Client
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridscoreError
from gridscore.features import offline_matrix
from gridscore.features.tables import lookup_entries, rows_as_json
from gridscore.grid import transport
from gridscore.grid.writer import MapWriter
from gridscore.group.lease_records import read_records
from gridscore.job import Jobs, load_job
from gridscore.job.project import shipped
from gridscore.operations.replay import letter_ids, replay
from gridscore.producer.producer import Producer
from gridscore.proving.demo.dataset import load_flights
from gridscore.proving.demo.training import lookups_for, script_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.job import Job

EXAMPLES = ("flights", "card-fraud", "machine-health")
_WINDOWED: dict[str, dict[str, Any]] = {
    "flights": {
        "order_by": "time_hour",
        "windows": {"tail": "tailnum"},
        "features": {
            "delay_7d": 'mean(dep_delay, tail, "7d")',
            "worst_30d": 'max(dep_delay, tail, "30d")',
            "late_of_10": "count(tail, last=10, where=dep_delay > 15)",
            "last_delay": "last(dep_delay, tail)",
            "since_last": "seconds_since_last(tail)",
        },
    },
    "card-fraud": {
        "order_by": "time",
        "windows": {"by": "card"},
        "features": {
            "spent_1d": 'sum(amount, by, "1d")',
            "usual": 'amount / mean(amount, by, "30d")',
            "typed_7d": 'count(by, "7d", where=entry == "manual")',
            "new_merchant": 'not seen(merchant, by, "30d")',
            "since_last": "seconds_since_last(by)",
        },
    },
    "machine-health": {},
}
# The field that events lack which become dead letters.
_LACKED = {"flights": "distance", "card-fraud": "amount", "machine-health": "temperature"}
_EACH = 20  # of how many events of that round one does
_STALLED_SECONDS = 120.0
_LOOK_SECONDS = 0.02


@dataclass
class _Example:
    """A job with windows, its model, and events in rounds."""

    strict: Job  # which asks for the field that some events lack
    job: Job
    booster: Any
    lookups: dict[str, pd.DataFrame]
    events: pd.DataFrame
    keys: list[str]
    rounds: list[range]
    lacking: range  # rows that lack a field, all of one round


def _example(name: str, folder: Path, events: int) -> _Example:
    source, file = shipped(f"jobs/{name}", "job.yaml"), folder / "job.yaml"
    made = yaml.safe_load((source / "job.yaml").read_text())
    for key, value in _WINDOWED[name].items():
        made[key] = {**made[key], **value} if isinstance(made.get(key), dict) else value
    made["result"] |= {"features": "all"}
    file.write_text(json.dumps(made))
    strict = load_job(file)
    made["schema"][_LACKED[name]] += "?"
    file.write_text(json.dumps(made))
    job, training = load_job(file), script_of(source / "train.py")
    training.JOB_FILE = file
    lookups: dict[str, pd.DataFrame] = {}
    if name == "flights":
        flights = load_flights()
        lookups = lookups_for(job, flights)
        history = flights.training.sort_values("time_hour", kind="stable", ignore_index=True)
        booster, _ = training.train(job, history, lookups)
        frame, key, entity = flights.stream.sort_values("time_hour", kind="stable"), "key", "tailnum"
    else:
        data = script_of(source / "data.py")
        data.write(folder)
        booster, _ = training.train(folder)
        if name == "card-fraud":
            data.PURCHASES = events + events // 8
            data.write(folder)
            lookups = {each: pd.read_csv(folder / f"lookups/{each}.csv") for each in job.lookups}
            frame, key, entity = pd.read_csv(folder / "history.csv"), "purchase", "card"
        else:
            frame, key, entity = data.readings(np.random.default_rng(7), max(events // 190, 1)), "machine", "machine"
    # Of a flight whose plane is not known no window is asked: it may go in any round.
    number = frame.groupby(frame[entity].fillna(""), sort=False).cumcount().where(frame[entity].notna(), 0)
    frame = frame.assign(_round=number).sort_values("_round", kind="stable", ignore_index=True)
    sizes = np.bincount(frame["_round"]).cumsum()
    ends = sizes[: int(np.searchsorted(sizes, events)) + 1].tolist()
    rounds = [range(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    frame = frame.iloc[: ends[-1]].copy()
    lacking = rounds[len(rounds) // 4][::_EACH]
    frame.loc[lacking, _LACKED[name]] = np.nan
    return _Example(strict, job, booster, lookups, frame, frame[key].astype(str).tolist(), rounds, lacking)


class _Run:
    """One example on a cluster, from the first event to the verdict."""

    def __init__(self, grid: Grid, cluster: Cluster, crew: Crew, example: _Example, say: Callable[[str], None]) -> None:
        self._grid, self._cluster, self._crew, self._example, self._say = grid, cluster, crew, example, say
        self._scores = np.full(len(example.keys), np.nan, np.float32)
        self._features = np.full((len(example.keys), len(example.job.feature_names)), np.nan, np.float32)

    async def go(self) -> dict[str, Any]:
        """Put all rounds, kill in the middle, and judge."""
        example, began, count = self._example, time.monotonic(), len(self._example.rounds)
        payloads = list(rows_as_json(example.events, example.job.schema_, "the events"))
        producer = Producer(self._grid, example.job.events)
        for number, rows in enumerate(example.rounds):
            self._say(f"{example.job.name}: round {number + 1} of {count}")
            sending = self._send(producer, [(example.keys[row], payloads[row]) for row in rows])
            if number == count // 2:
                # A put that a dying member does not answer is repeated, and counts twice in windows: none is under way.
                async with self._crew.suspended() as resume:
                    await sending
                    resume()
                    self._cluster.kill(2)
            elif number in (count // 4, count * 3 // 4):
                await asyncio.gather(sending, asyncio.to_thread(self._kill_worker))
            else:
                await sending
            if example.lacking.start in rows:
                await self._take(sorted(set(rows) - set(example.lacking)))
                await self._heal()
            else:
                await self._take(rows)
        return {
            "events": len(example.keys),
            "entities": max(map(len, example.rounds)),
            "replayed": len(example.lacking),
            **await asyncio.to_thread(self._judge),
            "seconds": round(time.monotonic() - began),
        }

    async def _send(self, producer: Producer, entries: Iterable[tuple[str, bytes]]) -> None:
        await producer.send(entries)
        await producer.flush()

    def _kill_worker(self) -> None:
        victim = self._crew.workers.pop(0)
        os.kill(victim.pid, signal.SIGKILL)
        victim.stop()
        self._crew.start()

    async def _heal(self) -> None:
        """Let the job do without what some events lack, and replay their dead letters while a worker dies."""
        example, grid, until = self._example, self._grid, time.monotonic() + _STALLED_SECONDS
        name, wanted = example.job.name, len(example.lacking)
        self._say(f"{name}: replaying {wanted:,} dead letters")
        while (there := await transport.map_size(grid.client, map_of(name))) != wanted:
            if time.monotonic() > until:
                raise GridscoreError(f"{there:,} dead letters instead of {wanted:,}.")
            self._crew.check()
            await asyncio.sleep(_LOOK_SECONDS)
        jobs = Jobs(grid)
        await jobs.suspend(name)
        while any(each.owner for each in (await read_records(grid, name)).values()):  # noqa: ASYNC110 -- of processes
            await asyncio.sleep(_LOOK_SECONDS)  # what the old job would still score fails again
        await Client(grid).submit(example.job, update=True)
        await jobs.resume(name)
        dying = asyncio.create_task(asyncio.to_thread(self._kill_worker))
        refused = [each async for each in replay(grid, name, await letter_ids(grid, name)) if each.refusal]
        await dying
        await self._take(example.lacking)
        if refused or (left := await transport.map_size(grid.client, map_of(name))):
            raise GridscoreError(f"Dead letters are left after their replay: {refused or left}")

    async def _take(self, rows: Collection[int]) -> None:
        """Wait for the results of a round, and keep what they say."""
        example = self._example
        times = example.events["time"].tolist() if example.job.event_key else None
        missing = {example.keys[row]: row for row in rows}
        proxy = await self._grid.map(example.job.results)
        until = time.monotonic() + _STALLED_SECONDS
        while missing:
            try:
                there = await proxy.get_all(list(missing))
            except (HazelcastError, ExceptionGroup):  # of a member that is gone
                there = {}
            for key, value in there.items():
                result = msgspec.json.decode(value.to_string())
                if times is not None and result["time"] != times[missing[key]]:
                    continue  # of the round before
                row = missing.pop(key)
                self._scores[row] = result["score"]
                served = result["features"]
                self._features[row] = [
                    np.nan if served[name] is None else served[name] for name in example.job.feature_names
                ]
            if time.monotonic() > until:
                raise GridscoreError(f"{len(missing):,} events of a round have no result.")
            self._crew.check()
            await asyncio.sleep(_LOOK_SECONDS)

    def _judge(self) -> dict[str, Any]:
        example = self._example
        self._say(f"{example.job.name}: the same offline")
        matrix = offline_matrix(example.job, example.events, example.lookups, example.booster)
        same = _bits(self._features) == _bits(matrix.values)
        scored = _bits(self._scores) == _bits(matrix.predict(example.booster))
        different = {n: int(c) for n, c in zip(matrix.names, (~same).sum(axis=0), strict=True) if c}
        return {
            "equal": int((same.all(axis=1) & scored).sum()),
            "scores_different": int((~scored).sum()),
            "features_different": different,
        }


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(values).view(np.int32)


async def prove(
    grid: Grid, cluster: Cluster, folder: Path, status: Status, *, name: str, events: int
) -> dict[str, Any]:
    """Run one example on a cluster of three members, one of which dies of it."""
    status.update(f"{name}: data and training")
    example = await asyncio.to_thread(_example, name, folder, events)
    client = Client(grid)
    for lookup, table in example.lookups.items():
        entries = lookup_entries(table, example.job, lookup, f"the lookup {lookup}")
        await MapWriter(grid, example.job.lookups[lookup].map).put(entries)
    await client.push_model(example.booster, example.job.model.name, alias="champion")
    await client.submit(example.strict)
    crew = Crew(grid, example.job.name, folder)
    try:
        for _ in range(2):
            crew.start()
        await crew.balanced()
        return await _Run(grid, cluster, crew, example, status.update).go()
    finally:
        crew.close()


def main(
    *,
    example: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(EXAMPLES)}; all by default.")] = None,
    events: Annotated[int, typer.Option(min=1_000, max=240_000, help="Of each, or a few more.")] = 200_000,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "1g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Hold live results against the same events offline.

    Example: python -m benchmarks.parity --example flights --events 10000
    """
    found = {name: measured(3, heap, partial(prove, name=name, events=events)) for name in chosen(example, EXAMPLES)}
    if as_json:
        print_json(found)
    else:
        columns = ("EXAMPLE", "EVENTS", "EQUAL", "ENTITIES", "REPLAYED", "SECONDS")
        rows = [
            (n, *(f[column.lower()] for column in columns[1:]), json.dumps(f["features_different"]))
            for n, f in found.items()
        ]
        print_table((*columns, "DIFFERENT"), rows, empty="")
    if any(each["equal"] != each["events"] for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
