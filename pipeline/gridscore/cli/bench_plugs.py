"""`gridscore bench sources` and `gridscore bench sinks`: how fast one process of each kind is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gridscore.cli.bench_job import print_figures
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, errors, print_json, run, say
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from rich.status import Status

    from gridscore.grid import Grid
    from gridscore.grid.member import Cluster

_T = TypeVar("_T")

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

    how = {"kinds": _chosen(kinds, LOADERS, "source"), "events": events, "rounds": rounds}
    _print(_measured(members, heap, measure, how), as_json=as_json, side="source", unit="event")


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

    how = {"kinds": _chosen(kinds, LOADERS, "sink"), "count": results, "rounds": rounds}
    _print(_measured(members, heap, measure, how), as_json=as_json, side="sink", unit="result")


def _chosen(kinds: Collection[str] | None, known: Collection[str], side: str) -> list[str]:
    from gridscore.errors import UsageError

    for kind in kinds or ():
        if kind not in known:
            raise UsageError(f"`{kind}` is not a kind of {side} that is measured.", f"There are: {', '.join(known)}.")
    return list(dict.fromkeys(kinds or known))


def _measured(
    members: int, heap: str, measure: Callable[..., Coroutine[Any, Any, dict[str, Any]]], how: dict[str, Any]
) -> dict[str, Any]:
    def work(grid: Grid, cluster: Cluster, folder: Path, status: Status) -> Coroutine[Any, Any, dict[str, Any]]:
        return measure(grid, cluster.pids, folder, **how, progress=status.update)

    return measured(members, heap, work)


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


def _print(report: dict[str, Any], *, as_json: bool, side: str, unit: str) -> None:
    if as_json:
        print_json(report)
        return
    found = report[f"{side}s"]
    where = f"{count_text(report['members'], 'member')}, one {side} process"
    console.print(
        f"\n[bold]{report[f'{unit}s']:,} {unit}s, {report['rounds']} rounds, {where}; medians (lowest to highest)[/]\n"
    )
    print_figures(found, [(kind, kind) for kind in found], unit)
    for kind, why in report["unavailable"].items():
        say(f"{kind}: not measured. {why}", to=console)
