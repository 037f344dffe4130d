"""`gridscore bench`: how fast a worker is, beside what limits it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gridscore.cli import bench_job
from gridscore.cli.options import App, Json
from gridscore.cli.output import console, errors, print_json, run
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster

_T = TypeVar("_T")

Rounds = Annotated[int, typer.Option("--rounds", min=1, max=50, help="How often each is measured, in turn.")]
MemberCount = Annotated[int, typer.Option("--members", min=1, max=8, help="Members; with two, a backup each.")]
Heap = Annotated[str, typer.Option("--heap", help="Heap of each member.")]

app = App(invoke_without_command=True)
app.command()(bench_job.job)


@app.callback()
def bench(
    context: typer.Context,
    *,
    events: Annotated[int, typer.Option(min=1_000, max=900_000, help="Events to score.")] = 300_000,
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


def measured(members: int, heap: str, work: Callable[[Grid, Cluster, Path, Status], Coroutine[Any, Any, _T]]) -> _T:
    """What a measurement finds on a cluster of its own, with a folder that is removed afterwards."""
    from gridscore.grid import GridSettings, connect
    from gridscore.grid.member import Cluster
    from gridscore.scoring.process import tune

    async def main(cluster: Cluster, folder: Path) -> _T:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            with errors.status("starting") as status:
                return await work(grid, cluster, folder, status)

    tune()
    errors.print(f"Starting {count_text(members, 'member')} …", style="dim")
    with (
        tempfile.TemporaryDirectory(prefix="gridscore-bench-") as folder,
        Cluster.start(members, port=0, heap=heap, register=False) as cluster,
    ):
        report: _T = run(main(cluster, Path(folder)))
    return report
