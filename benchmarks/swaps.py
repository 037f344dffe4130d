"""`python -m benchmarks.swaps`: versions change under a steady load, and nothing is lost, wrong, or late for it.

Two workers score the work `card` on members of their own, at a rate. First the life of a model: swaps and rollbacks,
one version that a gate stops, a canary in steps; a worker is killed in the middle, and a member. Then every result is
read and held against `Booster.predict` of the version that it names, on features by hand (`benchmarks.features`).

Then latency, in pairs: a block with a swap and one without, in turn; from when an event was due to when it was scored,
of all events of a block. The last pairs are between two versions of a large file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer
import xgboost as xgb

from benchmarks.crew import Crew, where
from benchmarks.features import Work as ByHand
from benchmarks.work import WORKS
from gridscore.cli.output import errors, print_json, print_table, run
from gridscore.client.client import Client
from gridscore.errors import GateError, GridscoreError
from gridscore.grid import GridSettings, connect
from gridscore.grid.member import Cluster
from gridscore.job import parse_job
from gridscore.models.sample import Sample
from gridscore.producer.producer import Producer
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill_lookups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.models.experiment import Experiment

NAME = "bench-card"
VERSIONS = 4
STEPS = (1.0, 5.0, 10.0, 25.0, 50.0)
GATES = "gates: {metric: {name: auc, at_least: 0.7}}\n"

_TICK_SECONDS = 0.01
_CHUNK = 5_000
_STALLED_SECONDS = 120.0
_STEP_SECONDS = 2.0
_BLUR_SECONDS = 3.0
"""Around a step of a canary, in which a worker may not know it yet; results of then may be of either step."""


def _booster(names: list[str], seed: int, trees: int = card.TREES, depth: int = card.DEPTH) -> tuple[Any, Sample]:
    """A model whose opinions are its seed's own, and rows of what it learnt; with seed 0, or deep, of noise."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(20_000 if depth == card.DEPTH else 400_000, len(names))).astype(np.float32) * 50
    noise = draw.normal(size=len(rows))
    # Of noise, a deep model learns all by heart: leaves without end.
    is_noise = seed == 0 or depth != card.DEPTH
    labels = noise > 0 if is_noise else rows[:, 0] * rows[:, 5] + rows[:, 7] * 40 + noise * 500 > 0
    parameters = {"max_depth": depth, "min_child_weight": 0, "objective": "binary:logistic", "nthread": 2, "seed": seed}
    matrix = xgb.DMatrix(rows, labels.astype(int), feature_names=names)
    sample = Sample(tuple(names), rows[:2_000], {}, labels[:2_000].astype(np.float64))
    return xgb.train(parameters, matrix, trees), sample


class _Load:
    """Events at a rate, each with the millisecond at which it was due."""

    def __init__(self, grid: Grid, events: str, rate: float) -> None:
        self._producer = Producer(grid, events)
        self._rate = rate
        self._texts = [text for _, text in card.events(_CHUNK)]
        self.due = np.zeros(1 << 16, np.int64)
        self.count = 0
        self._stop = asyncio.Event()

    def texts(self, numbers: range) -> list[bytes]:
        """The events of these numbers, as they were put."""
        due = self.due[numbers.start : numbers.stop].tolist()
        return [self._text(number, at) for number, at in zip(numbers, due, strict=True)]

    def _text(self, number: int, due: int) -> bytes:
        head, _, _ = self._texts[number % _CHUNK].rpartition(b'"ts":')
        return b'%b"ts":%d}' % (head, due)

    async def run(self) -> None:
        """Put events until it is stopped, and see all of them acknowledged."""
        begun, first = time.time(), self.count
        while not self._stop.is_set():
            until = first + int((time.time() - begun) * self._rate)
            numbers = range(self.count, until)
            if until > len(self.due):
                self.due = np.concatenate([self.due, np.zeros(max(len(self.due), until), np.int64)])
            self.due[self.count : until] = (begun + (np.arange(self.count, until) - first) / self._rate) * 1_000
            self.count = until
            await self._producer.send(zip((f"e{number}" for number in numbers), self.texts(numbers), strict=True))
            await asyncio.sleep(_TICK_SECONDS)
        await self._producer.flush()
        self._stop.clear()

    def stop(self) -> None:
        self._stop.set()


@dataclass
class _Found:
    """Results in columns, a row for each event."""

    score: NDArray[np.float32]
    version: NDArray[np.int64]
    scored_at: NDArray[np.int64]
    challenger: NDArray[np.bool_]
    missing: int = 0


@dataclass
class _Bench:
    names: list[str]
    client: Client
    cluster: Cluster
    crew: Crew
    load: _Load
    folder: Path
    say: Callable[[str], None]
    boosters: dict[int, Any] = field(default_factory=dict)
    steps: list[tuple[float, Experiment]] = field(default_factory=list)

    async def push(self, seed: int, alias: str | None = None, **shape: int) -> int:
        booster, sample = await asyncio.to_thread(_booster, self.names, seed, **shape)
        if not self.boosters:
            await self.client.models.store_sample(NAME, sample, "label")
        version = (await self.client.push_model(booster, NAME, alias=alias)).version
        self.boosters[version] = booster
        return version

    async def life(self, swaps: int, rollbacks: int, every: float) -> dict[str, int]:
        """Swaps, rollbacks, a failed gate, a canary, deaths; returns how many there were of each."""
        done = {"swaps": 0, "rollbacks": 0, "failed_gates": 0, "worker_kills": 0, "member_kills": 0, "canary_steps": 0}
        bad = await self.push(0)
        async with self._loaded():
            for number in range(swaps + rollbacks):
                self.say(f"{number + 1} of {swaps + rollbacks} swaps and rollbacks")
                at = asyncio.get_running_loop().time() + every
                if (number + 1) % ((swaps + rollbacks) // rollbacks) == 0:
                    await self.client.rollback_model(NAME)
                    done["rollbacks"] += 1
                else:
                    now = (await self.client.models.aliases(NAME))["champion"]
                    await self.client.promote_model(NAME, now % VERSIONS + 1)
                    done["swaps"] += 1
                if number == swaps // 4:
                    await self._kill_worker()
                    done["worker_kills"] += 1
                if number == swaps // 2:
                    await asyncio.to_thread(self.cluster.kill, 2)
                    done["member_kills"] += 1
                if number == swaps * 3 // 4:
                    with contextlib.suppress(GateError):
                        await self.client.promote_model(NAME, bad)
                        raise GridscoreError("The gate let a model of noise pass.")
                    done["failed_gates"] += 1
                await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
            done["canary_steps"] = await self._canary()
        return done

    async def _kill_worker(self) -> None:
        victim = self.crew.workers.pop(0)
        os.kill(victim.pid, signal.SIGKILL)
        victim.stop()
        self.crew.start()

    async def _canary(self) -> int:
        """Go through all steps by itself, and end it; returns how many steps there were."""
        await self.crew.balanced()
        now = (await self.client.models.aliases(NAME))["champion"]
        challenger = now % VERSIONS + 1
        found = await self.client.start_experiment(
            NAME, challenger, steps=STEPS, every=_STEP_SECONDS, key="user", max_errors=None, least=200
        )
        self.steps = [(time.time(), found)]
        until = time.monotonic() + _STALLED_SECONDS
        while found.step < len(STEPS) - 1 or time.time() < self.steps[-1][0] + 2 * _BLUR_SECONDS:
            if time.monotonic() > until or found.state == "ended":
                raise GridscoreError(f"The canary stays at step {found.step + 1} of {len(STEPS)}. {found.why}")
            found = (await self.client.experiment(NAME)).experiment
            if found.step != self.steps[-1][1].step:
                self.say(f"canary: {found.share:g} % of the entities")
                self.steps.append((time.time(), found))
            await asyncio.sleep(_TICK_SECONDS)
        await self.client.stop_experiment(NAME)
        self.steps.append((time.time(), found.ended(0, "", "", told=True)))
        return len(self.steps) - 1

    @contextlib.asynccontextmanager
    async def _loaded(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.load.run())
        try:
            yield
            self.load.stop()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def results(self) -> _Found:
        """All results, once they are there or nothing moves any more."""
        proxy = await self.client.grid.map(f"results.{NAME}")
        size, moved = -1, time.monotonic()
        while (now := await proxy.size()) < self.load.count and time.monotonic() < moved + _STALLED_SECONDS:
            if now != size:
                size, moved = now, time.monotonic()
            self.say(f"{now:,} of {self.load.count:,} results")
            await asyncio.sleep(0.5)
        count = self.load.count
        found = _Found(
            np.full(count, np.nan, np.float32),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, bool),
        )
        for start in range(0, count, _CHUNK):
            self.say(f"reading results: {start:,} of {count:,}")
            there = await proxy.get_all([f"e{number}" for number in range(start, min(start + _CHUNK, count))])
            found.missing += min(_CHUNK, count - start) - len(there)
            for key, value in there.items():
                row, result = int(key[1:]), json.loads(value.to_string())
                found.score[row], found.version[row] = result["score"], result["version"]
                found.scored_at[row] = result["scored_at"]
                found.challenger[row] = result.get("variant") == "challenger"
        return found

    def judge(self, found: _Found) -> dict[str, int]:
        """How many results are not what their version gives, and how many entities were the wrong version's."""
        WORKS["card"].save(self.folder)
        by_hand = ByHand(self.folder)
        wrong = strangers = 0
        for start in range(0, self.load.count, 50_000):
            rows = range(start, min(start + 50_000, self.load.count))
            self.say(f"judging: {start:,} of {self.load.count:,}")
            texts = self.load.texts(rows)
            matrix = xgb.DMatrix(by_hand.matrix(texts), feature_names=self.names)
            version, score = found.version[start : rows.stop], found.score[start : rows.stop]
            for number in np.unique(version[version > 0]).tolist():
                of = np.flatnonzero(version == number)
                expected = self.boosters[number].predict(matrix.slice(of))
                wrong += int((expected.view(np.int32) != score[of].view(np.int32)).sum())
            strangers += self._strangers(rows, texts, found)
        return {"wrong": wrong, "wrong_entities": strangers}

    def _strangers(self, rows: range, texts: list[bytes], found: _Found) -> int:
        """Results during the canary that no step which may have held then gives to that version."""
        if not self.steps:
            return 0
        scored = found.scored_at[rows.start : rows.stop] / 1_000
        theirs = found.challenger[rows.start : rows.stop]
        draws = self.steps[0][1].draws([msgspec.json.decode(text)["user"].encode() for text in texts])
        fits = np.zeros(len(rows), bool)
        before = self.steps[0][1].ended(0, "", "", told=True)
        ends = [at for at, _ in self.steps[1:]] + [np.inf]
        for (begun, step), ended in zip([(-np.inf, before), *self.steps], [self.steps[0][0], *ends], strict=True):
            held = (scored > begun - _BLUR_SECONDS) & (scored < ended + _BLUR_SECONDS)
            fits |= held & ((step.variants(draws) > 0) == theirs)
        return int((~fits & (found.version[rows.start : rows.stop] > 0)).sum())

    async def _move(self, version: int) -> None:
        """Promote a version by a command that gives way to all others: its gates may not hold up the load."""
        settings = self.client.grid.settings
        words = ["model", "promote", NAME, "--version", str(version), *where(settings.cluster_name, settings.members)]
        # Trees of 100 MB are of noise, which the gate would stop.
        words += ["--override", "only its size matters"]
        command = ["nice", "-n", "19", sys.executable, "-m", "gridscore.cli", *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        if await process.wait():
            raise GridscoreError(f"Version {version} could not be promoted.")

    async def pairs(self, versions: tuple[int, int], blocks: int, seconds: float) -> list[list[tuple[int, int, bool]]]:
        """Blocks with a swap in their middle and without, in turn; returns begin, end, and which, in milliseconds."""
        made = []
        await self._move(versions[0])
        async with self._loaded():
            await asyncio.sleep(seconds)
            for number in range(2 * blocks):
                swapped = number % 4 in (1, 2)  # without, with; with, without
                self.say(f"block {number + 1} of {2 * blocks}")
                begun = time.time()
                await asyncio.sleep(seconds / 4)
                now = (await self.client.models.aliases(NAME))["champion"]
                await self._move(sum(versions) - now if swapped else now)
                await asyncio.sleep(max(seconds / 4, begun + seconds - time.time()))
                made.append((int(begun * 1_000), int(time.time() * 1_000), swapped))
        return [made[at : at + 2] for at in range(0, len(made), 2)]

    def latency(self, found: _Found, pairs: list[list[tuple[int, int, bool]]]) -> dict[str, Any]:
        """Percentiles of each block from due to scored, and the ratio of each pair."""
        due, waited = self.load.due[: self.load.count], found.scored_at - self.load.due[: self.load.count]
        figures: dict[str, list[float]] = {}
        for pair in pairs:
            for begun, ended, swapped in pair:
                found_here = np.percentile(waited[(due >= begun) & (due < ended)], (50, 99, 100))
                for name, value in zip(("p50", "p99", "max"), found_here.tolist(), strict=True):
                    figures.setdefault(f"{name}_{'swap' if swapped else 'steady'}", []).append(value)
        ratios = [a / max(b, 1.0) for a, b in zip(figures["p99_swap"], figures["p99_steady"], strict=True)]
        return {name: statistics.median(values) for name, values in figures.items()} | {
            "p99_ratio": round(statistics.median(ratios), 3),
            "p99_ratios": [round(ratio, 3) for ratio in ratios],
        }


def main(
    *,
    rate: Annotated[float, typer.Option(min=100, max=200_000, help="Events a second.")] = 20_000,
    swaps: Annotated[int, typer.Option(min=4, max=1_000)] = 50,
    rollbacks: Annotated[int, typer.Option(min=1, max=1_000)] = 10,
    every: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between them.")] = 1.0,
    pairs: Annotated[int, typer.Option(min=0, max=100, help="Of blocks with and without a swap.")] = 6,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="That a block lasts.")] = 8.0,
    large: Annotated[bool, typer.Option(help="Also between versions of about 100 MB.")] = True,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "3g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Change versions under load, and judge what came of it.

    Example: python -m benchmarks.swaps --rate 20000 --swaps 50 --rollbacks 10
    """

    async def measure(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            text = card.job_text(NAME, f"results.{NAME}") + GATES
            job, client = parse_job(text, "the benchmark's job"), Client(grid)
            await fill_lookups(grid)
            crew = Crew(grid, NAME, folder)
            bench = _Bench(list(job.feature_names), client, cluster, crew, _Load(grid, job.events, rate), folder, say)
            say("training")
            for seed in range(1, VERSIONS + 1):
                await bench.push(seed, alias="champion" if seed == 1 else None)
            await client.submit(job)
            try:
                for _ in range(2):
                    crew.start()
                await crew.balanced()
                report: dict[str, Any] = {"done": await bench.life(swaps, rollbacks, every)}
                blocks = {"small": await bench.pairs((1, 2), pairs, seconds)} if pairs else {}
                if large and pairs:
                    say("training large versions")
                    both = [await bench.push(seed, trees=80, depth=20) for seed in (21, 22)]
                    report["large_mb"] = [len(bench.boosters[v].save_raw("ubj")) / 1e6 for v in both]
                    blocks["large"] = await bench.pairs((both[0], both[1]), pairs, seconds)
                found = await bench.results()
            finally:
                crew.close()
            report |= {"events": bench.load.count, "lost": found.missing, **await asyncio.to_thread(bench.judge, found)}
            report["scored_by"] = {
                f"v{v}": int(n) for v, n in zip(*np.unique(found.version, return_counts=True), strict=True)
            }
            report["challenger"] = int(found.challenger.sum())
            return report | {f"latency_{name}": bench.latency(found, made) for name, made in blocks.items()}

    with (
        tempfile.TemporaryDirectory(prefix="gridscore-swaps-") as folder,
        Cluster.start(3, port=0, heap=heap, register=False) as cluster,
        errors.status("starting") as status,
    ):
        report = run(measure(cluster, Path(folder), status.update))
    if as_json:
        print_json(report)
    else:
        print_table(("WHAT", "HOW MUCH"), [(name, json.dumps(value)) for name, value in report.items()], empty="")
    if report["lost"] or report["wrong"] or report["wrong_entities"]:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
