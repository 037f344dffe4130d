"""`gridscore bench sources` and `gridscore bench sinks`: how fast one process of each kind is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.bench_job import print_figures
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, errors, print_json, run, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster

    Measure = Callable[[Grid, Sequence[int], Path, Callable[[str], None]], Coroutine[Any, Any, dict[str, Any]]]

Kinds = Annotated[list[str] | None, typer.Argument(metavar="[KIND]...", help="Only these; else all.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, max=50, help="How often each is measured, in turn.")]
MemberCount = Annotated[int, typer.Option("--members", min=1, max=8, help="Members; with two, a backup each.")]
Heap = Annotated[str, typer.Option("--heap", help="Heap of each member.")]


def sources(
    kinds: Kinds = None,
    *,
    events: Annotated[int, typer.Option("--events", min=1_000, max=900_000, help="Events to put.")] = 200_000,
    rounds: Rounds = 3,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure sources: events per second into the grid from one process, and its CPU per event.

    Starts members, servers and files of its own and ends them. Kinds whose server cannot be had are left out, and said.
    `memory` is a source that costs nothing: the limit of all others.

    Example: [bold]gridscore bench sources logfile --events 200000[/]
    """
    from gridscore.proving.bench.sources import LOADERS, measure

    chosen = _chosen(kinds, LOADERS, "source")

    def work(
        grid: Grid, pids: Sequence[int], folder: Path, progress: Callable[[str], None]
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        return measure(grid, pids, folder, kinds=chosen, events=events, rounds=rounds, progress=progress)

    report = _measured(members, heap, work)
    _print(report, as_json=as_json, side="source", unit="event")


def sinks(
    kinds: Kinds = None,
    *,
    results: Annotated[int, typer.Option("--results", min=1_000, max=900_000, help="Results to deliver.")] = 200_000,
    rounds: Rounds = 3,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure sinks: results per second from a result map by one process, and its CPU per result.

    Starts members, servers and files of its own and ends them. Kinds whose server cannot be had are left out, and said.
    `nowhere` is a sink that costs nothing: the limit of all others. `webhook` posts one by one, and 20,000 at most.

    Example: [bold]gridscore bench sinks postgres kafka --rounds 5[/]
    """
    from gridscore.proving.bench.sinks import LOADERS, measure

    chosen = _chosen(kinds, LOADERS, "sink")

    def work(
        grid: Grid, pids: Sequence[int], folder: Path, progress: Callable[[str], None]
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        return measure(grid, pids, folder, kinds=chosen, count=results, rounds=rounds, progress=progress)

    report = _measured(members, heap, work)
    _print(report, as_json=as_json, side="sink", unit="result")


def _chosen(kinds: Collection[str] | None, known: Collection[str], side: str) -> list[str]:
    from gridscore.errors import UsageError

    for kind in kinds or ():
        if kind not in known:
            raise UsageError(f"`{kind}` is not a kind of {side} that is measured.", f"There are: {', '.join(known)}.")
    return list(dict.fromkeys(kinds or known))


def _measured(members: int, heap: str, work: Measure) -> dict[str, Any]:
    """The report of a measurement on a cluster of its own."""
    from gridscore.grid import GridSettings, connect
    from gridscore.grid.member import Cluster
    from gridscore.scoring.process import tune

    async def main(cluster: Cluster, folder: Path) -> dict[str, Any]:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            with errors.status("starting") as status:
                return await work(grid, cluster.pids, folder, status.update)

    tune()
    errors.print(f"Starting {_members(members)} …", style="dim", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="gridscore-bench-") as folder,
        Cluster.start(members, port=0, heap=heap, register=False) as cluster,
    ):
        report: dict[str, Any] = run(main(cluster, Path(folder)))
    return report


def _print(report: dict[str, Any], *, as_json: bool, side: str, unit: str) -> None:
    if as_json:
        print_json(report)
        return
    found = report[f"{side}s"]
    console.print(
        f"\n[bold]{report[f'{unit}s']:,} {unit}s, {report['rounds']} rounds, {_members(report['members'])}, one {side}"
        " process; medians (lowest to highest)[/]\n"
    )
    print_figures(found, [(kind, kind) for kind in found], unit)
    for kind, why in report["unavailable"].items():
        console.print(visible(f"{kind}: not measured. {why}"), markup=False, highlight=False, soft_wrap=True)


def _members(count: int) -> str:
    return f"{count} member{'s' if count > 1 else ''}"
