"""`python -m benchmarks.spike`: ten times the sustained rate for some seconds, worked off, back to normal.

Events are put at a schedule, whatever comes back: latency is counted from when an event was *due*, not from when it
could be put, so that a producer that falls behind hides nothing. Producer and listener share this process and its
clock. Keys of the events whose results are listened to begin with `s`, and the members send only those: all of the
sustained rate, and as many a second while the spike lasts. Lag is what was put less the size of the result map.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from hazelcast.predicate import like

from benchmarks.crew import where
from gridscore.cli.bench import Heap, MemberCount, measured
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, print_json, print_table
from gridscore.errors import GridscoreError
from gridscore.grid import transport
from gridscore.group.lease_records import read_records
from gridscore.job import Jobs
from gridscore.leash import LeashedProcess
from gridscore.models import Registry
from gridscore.producer.producer import Producer
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill_lookups

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.job import Job

FACTOR = 10
BEFORE_SECONDS = 20.0
SETTLE_SECONDS = 8.0
"""Part of the time before the spike that does not count: everything is new to everybody."""

BIN_SECONDS = 0.1
STAY_SECONDS = 3.0
"""How long things must be well before they count as well again."""

_TICK_SECONDS = 0.01
_BAR = 30
_START_SECONDS = 60.0
_STALLED_SECONDS = 60.0
_WINDOW = 10
"""Bins over which a 99th percentile is taken: a tenth of a second has too few events for one."""


@dataclass(frozen=True, slots=True)
class Spike:
    """What was measured; times in seconds from the first put.

    Attributes:
        rate: Sustained, events per second.
        peak: Events per second that were due during the spike.
        put_peak: Events per second that were put during the spike.
        began: Of the spike.
        ended: Of the spike.
        times: Of the bins, shape (n,).
        put: Events put in each bin, per second.
        lag: Events put and not scored, at the end of each bin.
        p50: Milliseconds from due to listener of the events due in the window that ends with the bin; NaN if none.
        p99: The same.
        max_lag: The largest lag.
        capacity: Entries that the journal holds.
        normal_p99: Milliseconds: the median of p99 before the spike.
        worst_p99: Milliseconds: the largest p99 before the spike.
        worked_off: Seconds after the end of the spike until the lag was what it was before; None if never.
        back_to_normal: Seconds after the end of the spike until p99 was no worse than its worst before, and stayed so
            for `STAY_SECONDS`; None if never.
        drain_rate: Results per second from the end of the spike until it was worked off; None if that was too short.
        waited: Seconds for which the producer had to wait for room.
        lost: Events without a result in the end.
    """

    rate: float
    peak: float
    put_peak: float
    began: float
    ended: float
    times: NDArray[np.float64]
    put: NDArray[np.float64]
    lag: NDArray[np.float64]
    p50: NDArray[np.float64]
    p99: NDArray[np.float64]
    max_lag: int
    capacity: int
    normal_p99: float
    worst_p99: float
    worked_off: float | None
    back_to_normal: float | None
    drain_rate: float | None
    waited: float
    lost: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for scripts; the curve by bins of `BIN_SECONDS`."""

        def plain(values: NDArray[np.float64]) -> list[float | None]:
            return [None if np.isnan(value) else round(float(value), 3) for value in values]

        figures = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: plain(value) if isinstance(value, np.ndarray) else round(value, 3) if value is not None else None
            for name, value in figures.items()
        }


class _Clock:
    """When each event was due and its result seen, by number; and what was put and unscored, now and then."""

    def __init__(self, count: int) -> None:
        self.due = np.full(count, np.nan)
        self.seen = np.full(count, np.nan)
        self.put: list[tuple[float, int]] = []
        self.lag: list[tuple[float, int]] = []

    def arrived(self, event: Any) -> None:
        self.seen[int(event.key[1:])] = time.perf_counter()


async def prepare(grid: Grid) -> Job:
    """Put lookups and model into the grid, and submit the job."""
    job = card.card_job("bench-spike", "results.bench-spike")
    await fill_lookups(grid)
    await Registry(grid).push(card.booster(job), job.model.name, alias="champion")
    await Jobs(grid).submit(job)
    return job


async def measure(
    grid: Grid,
    job: Job,
    *,
    rate: float,
    seconds: float,
    after: float,
    alive: Callable[[], None],
    progress: Callable[[str], None],
) -> Spike:
    """Run the spike against a worker that is being started.

    Args:
        grid: The connection.
        job: What `prepare` gave.
        rate: Sustained rate, events per second.
        seconds: How long the spike lasts.
        after: How long the sustained rate goes on after it.
        alive: Raises if there is no use in waiting.
        progress: Called with what is going on.

    Raises:
        GridscoreError: The worker did not begin, or stopped scoring.
    """
    progress("waiting for the worker")
    await _until_scoring(grid, job, alive)
    began, ended, end = BEFORE_SECONDS, BEFORE_SECONDS + seconds, BEFORE_SECONDS + seconds + after
    count = int(rate * end + (FACTOR - 1) * rate * seconds)
    progress(f"making {count:,} events")
    clock = _Clock(count)
    due = _schedule(count, rate, began, ended)
    spiking = (due >= began) & (due < ended)
    listened = ~spiking | (np.arange(count) % FACTOR == 0)
    names = (f"s{i}" if heard else f"e{i}" for i, heard in enumerate(listened.tolist()))
    events = [(name, text) for name, (_, text) in zip(names, card.events(count), strict=True)]
    results = await grid.map(job.results)
    # With their values, as an application gets them.
    await results.add_entry_listener(
        include_value=True, predicate=like("__key", "s%"), added_func=clock.arrived, updated_func=clock.arrived
    )
    producer = Producer(grid, job.events)
    start = time.perf_counter() + 0.1
    clock.due = np.where(listened, due + start, np.nan)
    watching = asyncio.create_task(_watch(grid, job, producer, clock, start))
    try:
        await _put(producer, events, due, start, clock, alive, progress)
        progress("waiting for the last results")
        scored_at = time.perf_counter()
        size = -1
        while (now := await transport.map_size(grid.client, job.results)) < count:
            alive()
            if now != size:
                size, scored_at = now, time.perf_counter()
            if time.perf_counter() - scored_at > _STALLED_SECONDS:
                break
            await asyncio.sleep(BIN_SECONDS)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return _spike(clock, start, rate, began, ended, producer, count - now)


def _schedule(count: int, rate: float, began: float, ended: float) -> NDArray[np.float64]:
    """When each event is due, in seconds."""
    before, spike = int(rate * began), int(FACTOR * rate * (ended - began))
    number = np.arange(count, dtype=np.float64)
    return np.where(
        number < before,
        number / rate,
        np.where(
            number < before + spike,
            began + (number - before) / (FACTOR * rate),
            ended + (number - before - spike) / rate,
        ),
    )


async def _until_scoring(grid: Grid, job: Job, alive: Callable[[], None]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while sum(1 for record in (await read_records(grid, job.name)).values() if record.owner) < grid.partition_count:
        alive()
        if time.monotonic() > deadline:
            raise GridscoreError(f"The worker does not score after {_START_SECONDS:.0f} s.")
        await asyncio.sleep(BIN_SECONDS)


async def _put(
    producer: Producer,
    events: list[tuple[str, bytes]],
    due: NDArray[np.float64],
    start: float,
    clock: _Clock,
    alive: Callable[[], None],
    progress: Callable[[str], None],
) -> None:
    rest, position, said = iter(events), 0, 0.0
    while position < len(events):
        began = time.perf_counter()
        if began - said > 1:
            alive()
            said = began
            progress(f"{began - start:5.1f} s: {position:,} of {len(events):,} events put")
        wanted = int(np.searchsorted(due, began - start, side="right"))
        if batch := list(islice(rest, max(0, min(wanted - position, 5_000)))):
            position += await producer.send(batch)
            clock.put.append((time.perf_counter(), position))
        await asyncio.sleep(max(0.0, _TICK_SECONDS - (time.perf_counter() - began)))
    await producer.flush()


async def _watch(grid: Grid, job: Job, producer: Producer, clock: _Clock, start: float) -> None:
    """Note the lag as it is, ten times a second."""
    at = start
    while True:
        at = max(at + BIN_SECONDS, time.perf_counter())
        await asyncio.sleep(at - time.perf_counter())
        put = producer.acknowledged
        scored = await transport.map_size(grid.client, job.results)
        clock.lag.append((time.perf_counter(), max(0, put - scored)))


def _spike(
    clock: _Clock, start: float, rate: float, began: float, ended: float, producer: Producer, lost: int
) -> Spike:
    latency = (clock.seen - clock.due) * 1000
    due = clock.due - start
    bins = int(np.ceil(max(np.nanmax(due), clock.put[-1][0] - start) / BIN_SECONDS)) + 1
    times: NDArray[np.float64] = np.arange(1, bins + 1, dtype=np.float64) * BIN_SECONDS
    put_at, put = np.array(clock.put).T
    put_now = np.interp(times, put_at - start, put, left=0.0)
    lag_at, lag = np.array(clock.lag, dtype=np.float64).T
    lag_at -= start
    lag_now = np.interp(times, lag_at, lag)
    p50, p99 = _percentiles(due, latency, times)
    settled = (times >= SETTLE_SECONDS) & (times < began)
    normal, worst = float(np.nanmedian(p99[settled])), float(np.nanmax(p99[settled]))
    usual_lag = float(lag_now[settled].max())
    after = times >= ended
    worked_off = _well_after(times[after], lag_now[after] <= max(usual_lag, rate * BIN_SECONDS), ended)
    back = _well_after(times[after] - BIN_SECONDS * _WINDOW, p99[after] <= worst, ended)
    drain = None
    if worked_off is not None and worked_off >= 2 * BIN_SECONDS:
        scored = np.interp([ended, ended + worked_off], times, put_now - lag_now)
        drain = float(scored[1] - scored[0]) / worked_off
    return Spike(
        rate=rate,
        peak=FACTOR * rate,
        put_peak=float(np.diff(np.interp([began, ended], times, put_now))[0] / (ended - began)),
        began=began,
        ended=ended,
        times=times,
        put=np.diff(put_now, prepend=0.0) / BIN_SECONDS,
        lag=lag_now,
        p50=p50,
        p99=p99,
        max_lag=int(lag[lag_at <= times[-1]].max()),
        capacity=producer.capacity.total if producer.capacity else 0,
        normal_p99=normal,
        worst_p99=worst,
        worked_off=worked_off,
        back_to_normal=back,
        drain_rate=drain,
        waited=producer.waited,
        lost=lost,
    )


def _percentiles(
    due: NDArray[np.float64], latency: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """50th and 99th percentile of what was due in the window before each time."""
    known = ~np.isnan(latency)
    due, latency = due[known], latency[known]
    p50, p99 = np.full(len(times), np.nan), np.full(len(times), np.nan)
    for position, until in enumerate(times):
        low, high = np.searchsorted(due, [until - BIN_SECONDS * _WINDOW, until])
        if high > low:
            p50[position], p99[position] = np.percentile(latency[low:high], [50, 99])
    return p50, p99


def _well_after(times: NDArray[np.float64], well: NDArray[np.bool_], since: float) -> float | None:
    """Seconds until everything is well, and stays so for a while; None if it never is."""
    stay = round(STAY_SECONDS / BIN_SECONDS)
    for position in range(len(well) - stay + 1):
        if well[position : position + stay].all():
            return max(0.0, float(times[position] - since))
    return None


def main(
    *,
    rate: Annotated[
        float, typer.Option("--rate", min=10, max=50_000, help="Sustained events per second; the spike is ten times.")
    ] = 3_000,
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=60, help="How long the spike lasts.")] = 10,
    after: Annotated[float, typer.Option("--after", min=5, max=600, help="How long the rate goes on after it.")] = 30,
    members: MemberCount = 1,
    heap: Heap = "2g",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the curve into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Put ten times the sustained rate for some seconds, and see what becomes of lag and latency.

    Starts members and a worker process of its own and ends them. The work is that of `gridscore bench`. Latency is from
    when an event was due to the listener that sees its result.

    Example: python -m benchmarks.spike --rate 3000
    """

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Spike:
        arguments = ["worker", *where(cluster.cluster_name, cluster.addresses)]
        job = await prepare(grid)
        with LeashedProcess("gridscore.cli", arguments, folder / "worker.log") as worker:

            def alive() -> None:
                if worker.exit_code is not None:
                    raise GridscoreError(f"The worker ended. Its last lines:\n{worker.last_lines()}")

            return await measure(
                grid, job, rate=rate, seconds=seconds, after=after, alive=alive, progress=status.update
            )

    if plot is not None:
        from benchmarks import spike_plot
    report = measured(members, heap, work)
    if plot is not None:
        spike_plot.save(plot, report)
    if as_json:
        print_json(report.to_json())
    else:
        _print_spike(report)


def _print_spike(report: Spike) -> None:
    console.print(
        f"\n[bold]{report.rate:,.0f} events/s, {report.peak:,.0f}/s from {report.began:.0f} s to {report.ended:.0f} s"
        "[/]; latency from due to listener\n"
    )
    rows, step = [], round(1 / float(report.times[0]))
    for end in range(step, len(report.times) + 1, step):
        second = slice(end - step, end)
        lag = float(report.lag[second].max())
        bar = "█" * round(_BAR * lag / max(1, report.max_lag)) or ("▏" if lag else "")
        p50, p99 = (None if np.isnan(values[end - 1]) else values[end - 1] for values in (report.p50, report.p99))
        rows.append((f"{report.times[end - 1]:.0f}", int(report.put[second].mean()), p50, p99, int(lag), bar))
    print_table(("SECOND", "PUT/S", "P50 ms", "P99 ms", "LAG", ""), rows, empty="")

    def after(seconds: float | None) -> str:
        return "not within the time measured" if seconds is None else f"{seconds:.1f} s after the spike"

    rate = f", at {report.drain_rate:,.0f} events/s" if report.drain_rate is not None else ""
    ring = f"{report.max_lag / report.capacity:.0%} of the journal's {report.capacity:,}" if report.capacity else ""
    for name, value in (
        ("put in the spike", f"{report.put_peak:,.0f} events/s"),
        ("largest lag", f"{report.max_lag:,} events, {ring}"),
        ("worked off", after(report.worked_off) + rate),
        ("p99 before", f"{report.normal_p99:.1f} ms, at worst {report.worst_p99:.1f} ms"),
        ("p99 no worse than that", after(report.back_to_normal)),
        ("producer waited", f"{report.waited:.1f} s"),
        ("events without a result", f"{report.lost:,}"),
    ):
        console.print(f"{name:>26}  [bold]{value}[/]")


if __name__ == "__main__":
    typer.run(main)
