"""`gridscore bench job`: how fast a user's own job goes on the user's own cluster, without harm to what runs there."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, Json, working
from gridscore.cli.output import console, errors, print_json, print_table, run, safe, say
from gridscore.texts import milliseconds_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gridscore.proving.bench.own_job import Report

_LATENCIES = ("p50", "p90", "p99", "p99.9", "max")


def job(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)],
    *,
    history: Annotated[
        Path | None, typer.Option(help="CSV, Parquet or JSON lines; else the events in the job's event map.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="VERSION|ALIAS",
            help="Another version of the job's model: its number or an alias. Else the one that the job says.",
            show_default=False,
        ),
    ] = "",
    events: Annotated[
        int, typer.Option(min=1_000, max=5_000_000, help="Events of a backlog; at most what the journal holds.")
    ] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often each is measured, in turn.")] = 5,
    rate: Annotated[float, typer.Option(min=10, max=50_000, help="Events per second while latency is measured.")] = 500,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long latency is measured.")] = 10,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Measure how fast your own job goes on your own cluster, and say what takes its time.

    Events like yours are put into a map of their own (`events.bench-…`), scored by one worker in this process into
    another, and both are removed again, on Ctrl-C, too. Your lookups and your model are only read; the job need not
    be submitted, and no other worker sees it. It loads the cluster: choose a quiet hour.

    Example: [bold]gridscore bench job job.yaml --history history.csv[/]
    """
    from gridscore.client import Client
    from gridscore.job import load_job
    from gridscore.proving.bench import own_job, samples
    from gridscore.proving.demo.signals import interruptible_task
    from gridscore.scoring.process import tune

    own = load_job(job_file)
    # Report a wrong history before doing anything.
    taken = samples.from_history(history, own) if history is not None and own.is_complete else None

    async def main() -> Report:
        nonlocal own, taken
        with interruptible_task():
            async with working(connection) as grid:
                if not own.is_complete:
                    own = await Client(grid).completed(own)
                    taken = None if history is None else samples.from_history(history, own)
                request = own_job.Request(events, rounds, rate, seconds, model, own_job.local_pids(grid))
                with errors.status("connected") as status:
                    return await own_job.measure(
                        grid,
                        own,
                        taken,
                        request,
                        progress=lambda what: status.update(safe(what)),
                        say=lambda text: say(text, "yellow"),
                    )

    tune()
    try:
        report = run(main()).to_json()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # `kill` ended it, as Ctrl-C would
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    console.print(
        f"\n[bold]{safe(report['job'])}, {safe(report['model'])} v{report['version']}:[/] {report['events']:,} events"
        f" of {report['mean_event_bytes']:,.0f} bytes (from {safe(report['samples_from'])}),"
        f" rounds: {report['rounds']}, members: {report['members']}, one worker process; medians (lowest to highest)\n"
    )
    print_figures(
        report,
        (
            ("worker: journal to result map", "worker"),
            ("journal drain, nothing else", "journal_drain"),
            ("prediction, nothing else", "inplace_predict"),
        ),
    )
    if report["worker"]["member_cpu_us_per_event"] is None:
        console.print("members' CPU: measured only of a cluster that `gridscore up` runs on this machine", style="dim")
    print_stages(report["worker_stage_us_per_event"])
    latency = report["latency"]
    console.print(
        f"\n[bold]From due to listener, at {latency['rate']:,.0f} events/s for {latency['seconds']:,.0f} s[/]\n"
    )
    row = [milliseconds_text(latency[f"{name}_ms"]) for name in _LATENCIES]
    print_table([name.upper() for name in _LATENCIES], [row], empty="")
    for note in report["notes"]:
        console.print(f"\n[yellow]note:[/] {safe(note)}")
    console.print(f"\n[bold]{safe(report['advice'])}[/]")


def print_figures(report: Mapping[str, Any], lines: Sequence[tuple[str, str]], unit: str = "event") -> None:
    """A table of events, or results, per second and CPU, by label and name in the report."""
    rows = []
    for label, name in lines:
        figures = report[name]
        rate = f"{unit}s_per_s"
        spread = f"{figures[f'{rate}_min']:,} to {figures[f'{rate}_max']:,}"
        members = figures[f"member_cpu_us_per_{unit}"]
        own = f"{figures[f'cpu_us_per_{unit}']:.2f}"
        rows.append((label, figures[rate], spread, own, "-" if members is None else f"{members:.2f}"))
    name = unit.upper()
    print_table(("", f"{name}S/S", "SPREAD", f"CPU µs/{name}", f"MEMBERS' CPU µs/{name}"), rows, empty="")


def print_stages(stages: Mapping[str, float]) -> None:
    """A table of a worker's CPU by stage."""
    console.print("\n[bold]Where the worker's CPU goes, µs per event[/]\n")
    print_table(("STAGE", "µs"), [(stage, f"{micros:.2f}") for stage, micros in stages.items()], empty="")
