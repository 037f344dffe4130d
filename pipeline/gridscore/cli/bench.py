"""`gridscore bench`: how fast a worker is, beside what limits it; what a spike does to it; what a group costs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli import bench_job, bench_plugs
from gridscore.cli.bench_plugs import Heap, MemberCount, Rounds, measured
from gridscore.cli.options import App, Json
from gridscore.cli.output import console, print_json, print_table
from gridscore.texts import count_text

if TYPE_CHECKING:
    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster
    from gridscore.proving.bench.spike import Spike

_BAR = 30


app = App(
    invoke_without_command=True,
)
app.command()(bench_job.job)
app.command()(bench_plugs.sources)
app.command()(bench_plugs.sinks)


@app.callback()
def bench(
    context: typer.Context,
    *,
    events: Annotated[int, typer.Option("--events", min=1_000, max=900_000, help="Events to score.")] = 300_000,
    rounds: Rounds = 5,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure one worker, members included, on this machine: events per second, and CPU per event and stage.

    Starts members of its own and ends them. The work: events of 90 bytes, 12 features, two lookups, 100 trees of depth
    6. Beside it, in the same run: reading the journal and nothing else, and `inplace_predict` of the same rows.

    Example: [bold]gridscore bench --events 300000 --rounds 5[/]
    """
    if context.invoked_subcommand is not None:
        return
    from gridscore.proving.bench.throughput import measure

    async def work(grid: Grid, cluster: Cluster, _folder: Path, status: Status) -> dict[str, Any]:
        def progress(what: str, done: int) -> None:
            status.update(f"{what} {done:,} of {events:,}" if done else what)

        return (await measure(grid, cluster.pids, events=events, rounds=rounds, progress=progress)).to_json()

    report = measured(members, heap, work)
    if as_json:
        print_json(report)
        return
    console.print(
        f"\n[bold]{events:,} events, {rounds} rounds, {count_text(members, 'member')}, one worker process;"
        " medians (lowest to highest)[/]\n"
    )
    bench_job.print_figures(
        report,
        (
            ("worker: journal to result map", "worker"),
            ("journal drain, nothing else", "journal_drain"),
            ("the same, client as published", "journal_drain_client_as_published"),
            ("inplace_predict, nothing else", "inplace_predict"),
        ),
    )
    bench_job.print_stages(report["worker_stage_us_per_event"])
    console.print(
        f"\nworker / journal drain: [bold]{report['worker_to_drain_ratio']:.2f}[/];"
        f" / drain with the client as published: [bold]{report['worker_to_drain_as_published_ratio']:.2f}[/]"
    )


@app.command()
def spike(
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

    Example: [bold]gridscore bench spike --rate 3000[/]
    """
    from gridscore.errors import GridscoreError
    from gridscore.leash import LeashedProcess
    from gridscore.proving.bench import spike as bench_spike

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Spike:
        arguments = ["worker", "--cluster-name", cluster.cluster_name]
        for address in cluster.addresses:
            arguments += ["--members", address]
        job = await bench_spike.prepare(grid)
        with LeashedProcess("gridscore.cli", arguments, folder / "worker.log") as worker:

            def alive() -> None:
                if worker.exit_code is not None:
                    raise GridscoreError(f"The worker ended. Its last lines:\n{worker.last_lines()}")

            return await bench_spike.measure(
                grid, job, rate=rate, seconds=seconds, after=after, alive=alive, progress=status.update
            )

    if plot is not None:
        from gridscore.proving.bench import spike_plot
    report = measured(members, heap, work)
    if plot is not None:
        spike_plot.save(plot, report)
    if as_json:
        print_json(report.to_json())
    else:
        _print_spike(report)


def _print_spike(report: Spike) -> None:
    import numpy as np

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


@app.command()
def group(
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

    Example: [bold]gridscore bench group --rounds 3[/]
    """
    from gridscore.proving.bench import group as bench_group

    async def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> dict[str, Any]:
        how: dict[str, Any] = {"events": events, "rounds": rounds, "rate": rate, "seconds": seconds}
        return (await bench_group.measure(grid, cluster.pids, folder, **how, progress=status.update)).to_json()

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
