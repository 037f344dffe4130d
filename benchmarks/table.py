"""The figures of an outcome as tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.limits import TITLES
from benchmarks.outcome import Status
from gridscore.cli.output import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.outcome import Latency, Outcome, Spread, Throughput

OURS = "gridscore"


def show(outcome: Outcome, console: Console) -> None:
    """Print what there is; ratios are Gridscore's figure divided by the other's, round by round."""
    order = [system.name for system in outcome.systems] + list(TITLES)
    for work in outcome.works:
        found = sorted(
            (each for each in outcome.throughput if each.work == work.name), key=lambda each: order.index(each.system)
        )
        if found:
            ours = outcome.throughput_of(work.name, OURS)
            console.print(
                f"\n[bold]{work.name}[/]: {work.title}; {work.events:,} events, medians (lowest to highest) of"
                f" {max(len(each.runs) for each in found)} rounds\n",
                highlight=False,
            )
            columns = ("", "EVENTS/S", "GRIDSCORE IS", "CPU µs/EVENT", "SCORERS", "MEMBERS*", "")
            print_table(columns, [_throughput(each, ours) for each in found], empty="")
            console.print("* or what takes their place", style="dim", highlight=False)
            if ours is not None and ours.stage_us_per_event:
                stages = ", ".join(f"{name} {micros:.2f}" for name, micros in ours.stage_us_per_event.items())
                console.print(f"\nGridscore's worker, CPU µs per event: {stages}", highlight=False)
    if outcome.latency:
        console.print("\n[bold]Latency[/] from due to seen, ms\n", highlight=False)
        percentiles = ("", "EVENTS/S", "P50", "P90", "P99", "P99.9", "MAX", "SENT LATE P99", "HARNESS CORES", "")
        latency = sorted(
            outcome.latency,
            key=lambda each: (
                each.part_of_saturation or 0,
                each.rate_per_s if each.part_of_saturation is None else 0,
                order.index(each.system),
            ),
        )
        print_table(percentiles, [_latency(each) for each in latency], empty="")
    if outcome.saturation:
        console.print("\n[bold]Live[/], with 2,000 events on their way\n", highlight=False)
        rows = [(each.system, round(each.events_per_s), each.harness_cores, each.reason) for each in outcome.saturation]
        print_table(("", "EVENTS/S", "HARNESS CORES", ""), rows, empty="")
    if outcome.spikes:
        console.print("\n[bold]A ten-fold spike[/]\n", highlight=False)
        spikes = [
            (each.system, each.normal_p99_ms, each.worst_p99_ms, each.seconds_until_normal, each.reason)
            for each in outcome.spikes
        ]
        print_table(("", "P99 BEFORE, ms", "WORST", "NORMAL AFTER s", ""), spikes, empty="")
    if outcome.growth:
        console.print("\n[bold]Growth[/], Gridscore\n", highlight=False)
        growth = [
            (
                each.series,
                each.value,
                round(each.events_per_s),
                each.worker_cpu_us_per_event,
                each.member_cpu_us_per_event,
                f"{each.worker_rss_bytes / 1e6:,.0f} MB",
                each.reason,
            )
            for each in outcome.growth
        ]
        series = ("SERIES", "", "EVENTS/S", "WORKERS' CPU µs/EVENT", "MEMBERS'", "WORKER'S RSS", "")
        print_table(series, growth, empty="")


def _throughput(found: Throughput, ours: Throughput | None) -> tuple[str, ...]:
    ratio = None if ours is None or found.system == OURS else ours.ratio(found)
    return (
        TITLES.get(found.system, found.system),
        text(found.spread("events_per_s"), ",.0f"),
        text(ratio, ".2f", " times"),
        text(found.spread("cpu_us_per_event"), ".1f"),
        text(found.spread("scorer_cpu_us_per_event"), ".1f"),
        text(found.spread("service_cpu_us_per_event"), ".1f"),
        "" if found.status == Status.MEASURED else f"{found.status}: {found.reason}",
    )


def _latency(found: Latency) -> tuple[str | float | None, ...]:
    rate = f"{found.rate_per_s:,.0f}"
    if found.part_of_saturation is not None:
        rate += f" ({found.part_of_saturation:.0%})"
    note = found.reason if found.status == Status.MEASURED else f"{found.status}: {found.reason}"
    percentiles = (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms, found.sent_late_p99_ms)
    return (found.system, rate, *percentiles, found.harness_cores, "saturated" if found.saturated else note)


def text(spread: Spread | None, form: str, unit: str = "") -> str:
    """Median (lowest to highest); a dash for none."""
    if spread is None:
        return "-"
    return f"{spread.median:{form}}{unit} ({spread.low:{form}} to {spread.high:{form}})"
