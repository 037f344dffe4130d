"""`python -m benchmarks.group`: throughput of one and of two workers, an idle job, coordination, and a rebalance.

Workers are processes as the command starts them; everything is measured from outside. The four parts:

1. *Throughput*: the workers hold all partitions in equal parts and have scored some events already. They are suspended,
   the backlog is put, and they go on: the clock runs from there until the result map holds all results. Afterwards all
   offsets must be committed, under the same leases. One and two workers take turns. Where others use the machine, two
   workers get more of it than one; what they do with it is CPU per event.
2. *Idle*: CPU of each worker process while the job runs and no event comes, as per cent of a core.
3. *Coordination*, of one worker that holds all partitions and commits every one of them once a second. Added up: CPU
   of the event loop's thread for such commit rounds, made in this process by the worker's own `Leases` in between
   decoding and predicting, as a core that has slept takes longer; and all that an idle worker uses (heartbeats, looking
   at members and leases, following jobs and models, its own figures), less the renewals that it makes and that such
   commits make needless, each as dear as a commit. As per cent of the CPU that the one worker of part 1 used in as long
   a time, and of a core: where others keep the worker from its core, the first says more about them. Not in it: noting
   each write's offset and looking at the clock of its lease, done with the writes.
4. *Rebalance*: while events come at a steady rate a second worker joins, and leaves. For each partition, the longest
   time from when an event was due to its result at a listener, of what waited meanwhile; and the same right before,
   over as long a time. Partitions that do not move must keep the epoch of their lease, in the records and in results.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import psutil
import typer

from benchmarks.crew import Crew
from benchmarks.meter import Meter
from benchmarks.sights import SeenLoad
from gridscore.cli.bench import Heap, MemberCount, Rounds, measured
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, print_json, print_table
from gridscore.errors import GridscoreError
from gridscore.grid import transport
from gridscore.grid.writer import MapWriter
from gridscore.group.group import COMMIT_SECONDS
from gridscore.group.leases import Leases, Progress
from gridscore.group.offsets import Offsets
from gridscore.job import Jobs
from gridscore.models import Registry
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill, matrix_of
from gridscore.scoring.runner import BATCH_EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.status import Status

    from benchmarks.sights import Sights
    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.job import Job

LEASE_SECONDS = 120.0
"""In part 1: longer than workers are suspended. Leases of that length are renewed by the same commits."""

SETTLE_SECONDS = 3.0
"""After workers or a load have come or gone, before the next measurement."""

_AFTER_SECONDS = 1.0
"""Part of a rebalance behind the last partition's change of owner."""

_FIRST_EVENTS = 20_000
"""Scored by the first worker before anything is measured."""

_LOOK_SECONDS = 0.1
_LAST_LOOK_SECONDS = 0.02
_LAST = 0.9
_STALLED_SECONDS = 60.0
_TEXTS = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """A backlog worked off: events, seconds, CPU seconds of all workers and of the members, cores used by others."""

    events: int
    seconds: float
    worker_cpu: float
    member_cpu: float
    others: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def cpu(self) -> float:
        """CPU microseconds per event, of workers and members."""
        return (self.worker_cpu + self.member_cpu) * 1e6 / self.events


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a rebalance.

    Attributes:
        seconds: Its length.
        gaps: For each partition the longest time from due to seen, in milliseconds.
    """

    seconds: float
    gaps: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, round by round.

    Attributes:
        members: Of the cluster.
        partitions: Of the cluster.
        events: In a backlog.
        rounds: How often each was measured.
        rate: Events per second during rebalances.
        runs: By number of workers.
        idle: Per cent of a core, of each worker in each round, by number of workers.
        renewals: Leases renewed a second by one idle worker.
        commits: CPU seconds of commit rounds of all partitions.
        phases: By name.
        moved: Partitions that a join and a leave moved.
        unmoved: Partitions that a join and a leave left where they were.
        epochs_changed: Those of them whose epoch changed, in all rounds.
        repeated: Results that the listener saw twice.
        others: Cores that processes of others used meanwhile, in each measurement.
    """

    members: int
    partitions: int
    events: int
    rounds: int
    rate: float
    runs: dict[int, list[Run]] = field(default_factory=lambda: {1: [], 2: []})
    idle: dict[int, list[float]] = field(default_factory=lambda: {1: [], 2: []})
    renewals: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    phases: dict[str, list[Phase]] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)
    unmoved: list[int] = field(default_factory=list)
    epochs_changed: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def coordination(self) -> float:
        """CPU seconds a second, see the module."""
        commit = statistics.median(self.commits)
        renewing = statistics.median(self.renewals) * commit / self.partitions
        return commit / COMMIT_SECONDS + statistics.median(self.idle[1]) / 100 - renewing

    def to_json(self) -> dict[str, Any]:
        """Medians with lowest and highest, for scripts and for the table."""
        one, two = self.runs[1], self.runs[2]
        usage = statistics.median(run.worker_cpu / run.seconds for run in one)
        coordination = self.coordination()
        ratios = [b.rate / a.rate for a, b in zip(one, two, strict=True)]
        return {
            "members": self.members,
            "partitions": self.partitions,
            "events": self.events,
            "rounds": self.rounds,
            "cores": psutil.cpu_count(),
            "cores_used_by_others": _spread(self.others, 2),
            "throughput": {
                str(workers): {
                    "events_per_s": _spread((run.rate for run in runs), 0),
                    "worker_cpu_us_per_event": _spread((run.worker_cpu * 1e6 / run.events for run in runs), 2),
                    "member_cpu_us_per_event": _spread((run.member_cpu * 1e6 / run.events for run in runs), 2),
                    "worker_cores": _spread((run.worker_cpu / run.seconds for run in runs), 2),
                    "cores_used_by_others": _spread((run.others for run in runs), 2),
                }
                for workers, runs in self.runs.items()
            },
            "throughput_ratio": _spread(ratios, 3),
            "cpu_per_event_ratio": _spread((b.cpu / a.cpu for a, b in zip(one, two, strict=True)), 3),
            "idle_percent_of_a_core": {str(workers): _spread(each, 2) for workers, each in self.idle.items()},
            "coordination": {
                "commit_round_ms": _spread((seconds * 1e3 for seconds in self.commits), 2),
                "idle_renewals_per_s": _spread(self.renewals, 0),
                "cpu_ms_per_s": round(coordination * 1e3, 2),
                "worker_cpu_ms_per_s": round(usage * 1e3, 1),
                "percent_of_a_core": round(coordination * 100, 2),
                "percent": round(coordination / usage * 100, 2),
            },
            "rebalance": {
                "events_per_s": self.rate,
                "moved": _spread(self.moved, 0),
                "not_moved": _spread(self.unmoved, 0),
                "not_moved_epoch_changed": sum(self.epochs_changed),
                "results_repeated": sum(self.repeated),
                "phases": {
                    name: {
                        "seconds": _spread((phase.seconds for phase in phases), 1),
                        **{
                            f"p{q}_ms" if q < 100 else "max_ms": _spread(
                                (float(np.percentile(phase.gaps, q)) for phase in phases if len(phase.gaps)), 1
                            )
                            for q in (50, 99, 100)
                        },
                    }
                    for name, phases in self.phases.items()
                },
            },
        }


def _spread(values: Iterable[float], digits: int) -> dict[str, float] | None:
    """Median, lowest and highest; None of nothing."""
    values = list(values)
    if not values:
        return None
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) if digits else round(value) for name, value in figures.items()}


async def measure(
    grid: Grid,
    members: Sequence[int],
    folder: Path,
    *,
    events: int,
    rounds: int,
    rate: float,
    seconds: float,
    progress: Callable[[str], None],
) -> Report:
    """Measure all four parts, on a cluster made for this.

    Args:
        grid: The connection.
        members: Process ids of the members.
        folder: For the workers' logs.
        events: In a backlog.
        rounds: How often each is measured.
        rate: Events per second during rebalances.
        seconds: How long idle workers are watched, and a steady load before each rebalance.
        progress: Called with what is going on.

    Raises:
        GridscoreError: The workers did not do what they are meant to.
    """
    report = Report(len(members), grid.partition_count, events, rounds, rate)
    job = card.card_job("bench-group", "results.bench-group")
    booster = card.booster(job)
    await Registry(grid).push(booster, job.model.name, alias="champion")
    booster.set_param({"nthread": 1})
    progress("putting the first events")
    first = min(events, _FIRST_EVENTS)
    await fill(grid, first, lambda _: None)
    await Jobs(grid).submit(job)
    bench = _Bench(grid, job, members, Crew(grid, job.name, folder), report, seconds)
    try:
        # The backlogs come last: with as many events in their heap members collect garbage for long.
        await bench.rebalances(first, progress)
        await asyncio.to_thread(bench.crew.close)
        progress("commit rounds")
        await bench.commits(booster)
        await bench.throughput(progress)
    finally:
        bench.crew.close()
    return report


@dataclass(frozen=True, slots=True)
class _Bench:
    grid: Grid
    job: Job
    members: Sequence[int]
    crew: Crew
    report: Report
    seconds: float

    # ------------------------------------------------------------------ throughput

    async def throughput(self, progress: Callable[[str], None]) -> None:
        progress("starting a worker")
        self.crew.start(LEASE_SECONDS)
        await self.crew.balanced()
        for number in range(self.report.rounds):
            # One, two; two, one; and so on: none always has the warmer members.
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                progress(f"round {number + 1} of {self.report.rounds}: {workers} worker{'s' * (workers > 1)}")
                if workers > len(self.crew.workers):
                    self.crew.start(LEASE_SECONDS)
                elif workers < len(self.crew.workers):
                    await self.crew.stop_last()
                await self.crew.balanced()
                await self._work_off(measured=False)
                self.report.runs[workers].append(await self._work_off())

    async def _work_off(self, *, measured: bool = True) -> Run:
        """Let the workers go for a backlog; a smaller one if it is only to warm them up."""
        count = self.report.events if measured else max(1, self.report.events // 5)
        await (await self.grid.map(self.job.results)).clear()
        before = await self.crew.balanced()
        async with self.crew.suspended() as resume:
            await MapWriter(self.grid, self.job.events).put(card.events(count))
            meter = Meter(self.crew.pids, self.members)
            resume()
            await self._scored(count)
            usage = meter.read()
        await self._committed(before, count)
        if measured:
            self.report.others.append(usage.others_cores)
        return Run(count, usage.seconds, usage.scorers, usage.services, usage.others_cores)

    async def _scored(self, count: int) -> None:
        """Return when the result map has so many entries. Looking costs the members, so it is done often at the end."""
        size, changed_at = -1, time.monotonic()
        while (now := await transport.map_size(self.grid.client, self.job.results)) < count:
            self.crew.check()
            if now != size:
                size, changed_at = now, time.monotonic()
            if time.monotonic() - changed_at > _STALLED_SECONDS:
                raise GridscoreError(f"The workers stopped at {now:,} of {count:,} results.")
            await asyncio.sleep(_LAST_LOOK_SECONDS if now > count * _LAST else _LOOK_SECONDS)

    async def _committed(self, before: dict[int, LeaseRecord], count: int) -> None:
        """Wait until all offsets are committed; they must be so by who held the leases before."""
        deadline = time.monotonic() + _STALLED_SECONDS
        expected = sum(record.offset for record in before.values()) + count
        while sum(record.offset for record in (await self.crew.balanced()).values()) < expected:
            if time.monotonic() > deadline:
                raise GridscoreError("The workers do not commit what they have scored.")
            await asyncio.sleep(_LOOK_SECONDS)
        after = await self.crew.balanced()
        changed = sum(after[p].epoch != record.epoch for p, record in before.items())
        if changed:
            raise GridscoreError(
                f"{changed} partitions have changed hands while the workers were suspended.",
                "The machine is too slow for so many events; take fewer.",
            )

    # ------------------------------------------------------------------ coordination

    async def commits(self, booster: Any) -> None:
        """Commit rounds of all partitions, as often as a worker makes them; in between, its work without the grid."""
        values = [text for _, text in card.events(BATCH_EVENTS)]
        leases = Leases(self.grid, "bench-commits", "bench")
        await leases.look(range(self.grid.partition_count))
        await leases.claim(leases.free())
        if len(leases.held) != self.grid.partition_count:
            raise GridscoreError("Not all leases could be claimed.")
        offsets, offset = Offsets(), 1_000_000
        for _ in range(max(2, round(self.seconds / COMMIT_SECONDS))):
            offset += 100
            for partition in leases.held:
                offsets.begin(partition, Progress(offset, 0))
            until = time.perf_counter() + COMMIT_SECONDS
            while time.perf_counter() < until:
                booster.inplace_predict(matrix_of(self.job, values), validate_features=False)
                await asyncio.sleep(0)
            began = time.thread_time()
            lost = await leases.commit(offsets.committable(leases.held))
            self.report.commits.append(time.thread_time() - began)
            if lost:
                raise GridscoreError("A lease was lost.")

    # ------------------------------------------------------------------ idle, and rebalances

    async def rebalances(self, events: int, progress: Callable[[str], None]) -> None:
        progress("starting a worker")
        self.crew.start()
        await self.crew.balanced()
        await self._scored(events)
        for number in range(self.report.rounds):
            which = f"round {number + 1} of {self.report.rounds}"
            progress(f"{which}: an idle worker")
            await self._idle()
            progress(f"{which}: a worker joins")
            await self._join()
            progress(f"{which}: two idle workers")
            await self._idle()
            progress(f"{which}: a worker leaves")
            await self._leave()

    async def _idle(self) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        before = await self.crew.balanced()
        meter = Meter(self.crew.pids, self.members)
        await asyncio.sleep(self.seconds)
        usage = meter.read()
        self.report.idle[len(usage.each)].extend(cpu / usage.seconds * 100 for cpu in usage.each)
        if len(usage.each) == 1:
            after = await self.crew.balanced()
            self.report.renewals.append(sum(after[p].renewals - before[p].renewals for p in before) / usage.seconds)
        self.report.others.append(usage.others_cores)

    def _steady_load(self) -> SeenLoad:
        texts = [text for _, text in card.events(_TEXTS)]
        return SeenLoad(self.grid, self.job, texts, self.report.rate, self.crew.check)

    async def _join(self) -> None:
        async with self._steady_load() as load:
            await self.crew.stay_balanced(SETTLE_SECONDS + self.seconds)
            before = await self.crew.balanced()
            started = time.perf_counter()
            await self.crew.joined(self.crew.start())
            began = time.perf_counter()
            after, ended = await self._rebalanced()
        sights = load.sights()
        kept = self._note("join", sights, before, after, started - (ended - began), started, began, ended)
        self._phase("while a worker starts", sights, kept, started, began)
        self.report.repeated.append(load.repeated)

    async def _leave(self) -> None:
        async with self._steady_load() as load:
            await self.crew.stay_balanced(SETTLE_SECONDS + self.seconds)
            before = await self.crew.balanced()
            began = time.perf_counter()
            await self.crew.stop_last()
            after, ended = await self._rebalanced()
        self._note("leave", load.sights(), before, after, began - (ended - began), began, began, ended)
        self.report.repeated.append(load.repeated)

    async def _rebalanced(self) -> tuple[dict[int, LeaseRecord], float]:
        after = await self.crew.balanced()
        await self.crew.stay_balanced(_AFTER_SECONDS)
        return after, time.perf_counter()

    def _note(
        self,
        what: str,
        sights: Sights,
        before: dict[int, LeaseRecord],
        after: dict[int, LeaseRecord],
        quiet_from: float,
        quiet_to: float,
        began: float,
        ended: float,
    ) -> list[int]:
        """Note a rebalance; returns the partitions that it left where they were."""
        kept = [p for p, record in before.items() if after[p].owner == record.owner]
        moved = [p for p, record in before.items() if after[p].owner != record.owner]
        epochs = {p: before[p].epoch for p in kept}
        changed = {p for p in kept if after[p].epoch != epochs[p]} | sights.strangers(epochs, quiet_to, ended)
        self.report.unmoved.append(len(kept))
        self.report.moved.append(len(moved))
        self.report.epochs_changed.append(len(changed))
        self._phase(f"before a {what}", sights, kept, quiet_from, quiet_to)
        self._phase(f"{what}, not moved", sights, kept, began, ended)
        self._phase(f"{what}, moved", sights, moved, began, ended)
        return kept

    def _phase(self, name: str, sights: Sights, partitions: list[int], began: float, ended: float) -> None:
        gaps = sights.longest(partitions, began, ended)
        self.report.phases.setdefault(name, []).append(Phase(ended - began, gaps))


def main(
    *,
    events: Annotated[int, typer.Option("--events", min=1_000, max=900_000, help="Events of a backlog.")] = 300_000,
    rounds: Rounds = 3,
    rate: Annotated[
        float, typer.Option("--rate", min=10, max=50_000, help="Events per second while workers join and leave.")
    ] = 2_000,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=600, help="How long idle workers are watched.")
    ] = 10,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure what a worker group costs: one worker and two, an idle job, coordination, and workers that come and go.

    Starts members and worker processes of its own and ends them. The work is that of `gridscore bench`.

    Example: python -m benchmarks.group --rounds 3
    """

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> dict[str, Any]:
        how: dict[str, Any] = {"events": events, "rounds": rounds, "rate": rate, "seconds": seconds}
        return (await measure(grid, cluster.pids, folder, **how, progress=status.update)).to_json()

    report = measured(members, heap, work)
    if as_json:
        print_json(report)
    else:
        _print_group(report)


def _print_group(report: dict[str, Any]) -> None:
    def text(figures: dict[str, float] | None, form: str = ",.1f") -> str:
        if figures is None:
            return "-"
        low, high = (format(figures[name], form) for name in ("min", "max"))
        return f"{figures['median']:{form}} ({low} to {high})"

    console.print(
        f"\n[bold]{report['partitions']} partitions, {report['events']:,} events, rounds: {report['rounds']}, members:"
        f" {report['members']}, cores: {report['cores']}; medians (lowest to highest)[/]\n"
        f"Cores that others used meanwhile: {text(report['cores_used_by_others'], '.2f')}\n"
    )
    rows = [
        (
            workers,
            text(figures["events_per_s"], ",.0f"),
            text(figures["worker_cpu_us_per_event"]),
            text(figures["member_cpu_us_per_event"]),
            text(report["idle_percent_of_a_core"][workers], ".2f"),
        )
        for workers, figures in report["throughput"].items()
    ]
    columns = ("WORKERS", "EVENTS/S", "WORKERS' CPU µs/EVENT", "MEMBERS' CPU µs/EVENT", "IDLE, % OF A CORE EACH")
    print_table(columns, rows, empty="")
    coordination, rebalance = report["coordination"], report["rebalance"]
    console.print(
        f"\ntwo workers / one: [bold]{text(report['throughput_ratio'], '.2f')}[/] in events/s,"
        f" {text(report['cpu_per_event_ratio'], '.2f')} in CPU per event, members included\n"
        f"coordination: [bold]{coordination['percent']:.2f} %[/] of a busy worker's CPU,"
        f" {coordination['percent_of_a_core']:.2f} % of a core; a commit round of {report['partitions']} partitions"
        f" takes {text(coordination['commit_round_ms'], '.2f')} ms of CPU\n\n"
        f"[bold]A worker joins and leaves, at {rebalance['events_per_s']:,.0f} events/s: the longest time from due to"
        " listener in each partition[/]\n"
    )
    rows = [
        (name, text(phase["seconds"]), *(text(phase[which]) for which in ("p50_ms", "p99_ms", "max_ms")))
        for name, phase in rebalance["phases"].items()
    ]
    print_table(("", "SECONDS", "P50 ms", "P99 ms", "MAX ms"), rows, empty="")
    console.print(
        f"\npartitions moved: {text(rebalance['moved'], '.0f')}, not moved: {text(rebalance['not_moved'], '.0f')};"
        f" of these with another epoch: [bold]{rebalance['not_moved_epoch_changed']}[/];"
        f" results seen twice: [bold]{rebalance['results_repeated']}[/]"
    )


if __name__ == "__main__":
    typer.run(main)
