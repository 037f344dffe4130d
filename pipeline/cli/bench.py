"""`gridscore bench`: how fast a worker is on this machine, beside what limits it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from pipeline.cli.output import console, errors, print_json, print_table, run


def bench(
    *,
    events: Annotated[int, typer.Option("--events", min=1_000, max=900_000, help="Events to score.")] = 300_000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=50, help="How often each is measured, in turn.")] = 5,
    members: Annotated[int, typer.Option("--members", min=1, max=8, help="Members; with two, a backup each.")] = 1,
    heap: Annotated[str, typer.Option("--heap", help="Heap of each member.")] = "2g",
    as_json: Json = False,
) -> None:
    """Measure one worker, members included, on this machine: events per second, and CPU per event and stage.

    Starts members of its own and ends them. The work: events of 90 bytes, 12 features, two lookups, 100 trees of depth
    6. Beside it, in the same run: reading the journal and nothing else, and `inplace_predict` of the same rows.

    Example: [bold]gridscore bench --events 300000 --rounds 5[/]
    """
    from pipeline.bench.throughput import measure
    from pipeline.grid import GridSettings, connect
    from pipeline.grid.member import Cluster
    from pipeline.worker.process import tune

    async def main(cluster: Cluster) -> Any:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            with errors.status("starting") as status:

                def progress(what: str, done: int) -> None:
                    status.update(f"{what} {done:,} of {events:,}" if done else what)

                report = await measure(grid, cluster.pids, events=events, rounds=rounds, progress=progress)
        return report.to_json()

    tune()
    errors.print(f"Starting {members} member{'s' if members > 1 else ''} …", style="dim", highlight=False)
    with Cluster.start(members, port=0, heap=heap, register=False) as cluster:
        report = run(main(cluster))
    if as_json:
        print_json(report)
        return
    console.print(
        f"\n[bold]{events:,} events, {rounds} rounds, {members} member{'s' if members > 1 else ''}, one worker process;"
        " medians (lowest to highest)[/]\n"
    )
    rows = []
    for label, name in (
        ("worker: journal to result map", "worker"),
        ("journal drain, nothing else", "journal_drain"),
        ("the same, client as published", "journal_drain_client_as_published"),
        ("inplace_predict, nothing else", "inplace_predict"),
    ):
        figures = report[name]
        spread = f"{figures['events_per_s_min']:,} to {figures['events_per_s_max']:,}"
        rows.append(
            (
                label,
                figures["events_per_s"],
                spread,
                f"{figures['cpu_us_per_event']:.2f}",
                f"{figures['member_cpu_us_per_event']:.2f}",
            )
        )
    print_table(("", "EVENTS/S", "SPREAD", "CPU µs/EVENT", "MEMBERS' CPU µs/EVENT"), rows, empty="")
    console.print("\n[bold]Where the worker's CPU goes, µs per event[/]\n")
    stages = report["worker_stage_us_per_event"]
    print_table(("STAGE", "µs"), [(stage, f"{micros:.2f}") for stage, micros in stages.items()], empty="")
    console.print(
        f"\nworker / journal drain: [bold]{report['worker_to_drain_ratio']:.2f}[/];"
        f" / drain with the client as published: [bold]{report['worker_to_drain_as_published_ratio']:.2f}[/]"
    )
