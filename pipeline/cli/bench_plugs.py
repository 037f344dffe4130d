"""`gridscore bench sources`: how fast one process of each kind of source puts events into the grid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.bench_job import print_figures
from pipeline.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from pipeline.cli.output import console, errors, print_json, run, visible


def sources(
    kinds: Annotated[list[str] | None, typer.Argument(metavar="[KIND]...", help="Only these; else all.")] = None,
    *,
    events: Annotated[int, typer.Option("--events", min=1_000, max=900_000, help="Events to put.")] = 200_000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=50, help="How often each is measured, in turn.")] = 3,
    members: Annotated[int, typer.Option("--members", min=1, max=8, help="Members; with two, a backup each.")] = 1,
    heap: Annotated[str, typer.Option("--heap", help="Heap of each member.")] = "2g",
    as_json: Json = False,
) -> None:
    """Measure sources: events per second into the grid from one process, and its CPU per event.

    Starts members, servers and files of its own and ends them. Kinds whose server cannot be had are left out, and said.
    `memory` is a source that costs nothing: the limit of all others.

    Example: [bold]gridscore bench sources logfile --events 200000[/]
    """
    from pipeline.bench.plugs import LOADERS, measure
    from pipeline.errors import UsageError
    from pipeline.grid import GridSettings, connect
    from pipeline.grid.member import Cluster
    from pipeline.worker.process import tune

    for kind in kinds or ():
        if kind not in LOADERS:
            raise UsageError(f"`{kind}` is no kind of source that is measured.", f"There are: {', '.join(LOADERS)}.")

    async def main(cluster: Cluster, folder: Path) -> dict[str, Any]:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            with errors.status("starting") as status:
                return await measure(
                    grid,
                    cluster.pids,
                    folder,
                    kinds=list(dict.fromkeys(kinds or LOADERS)),
                    events=events,
                    rounds=rounds,
                    progress=status.update,
                )

    tune()
    errors.print(f"Starting {members} member{'s' if members > 1 else ''} …", style="dim", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="gridscore-bench-") as folder,
        Cluster.start(members, port=0, heap=heap, register=False) as cluster,
    ):
        report = run(main(cluster, Path(folder)))
    if as_json:
        print_json(report)
        return
    console.print(
        f"\n[bold]{events:,} events, {rounds} rounds, {members} member{'s' if members > 1 else ''}, one source process;"
        " medians (lowest to highest)[/]\n"
    )
    print_figures(report["sources"], [(kind, kind) for kind in report["sources"]])
    for kind, why in report["unavailable"].items():
        console.print(visible(f"{kind}: not measured. {why}"), markup=False, highlight=False, soft_wrap=True)
