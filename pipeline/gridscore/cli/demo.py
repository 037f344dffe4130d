"""`gridscore demo`: a year of real flights, scored live on a real cluster, and checked to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import ClusterName, Connection, Json, SettingsFile, grid_settings
from gridscore.cli.output import console, errors, print_json, print_selection, run, selection
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.grid import GridSettings
    from gridscore.proving.demo.report import Report

MAX_MEMBERS = 16


def demo(
    *,
    rate: Annotated[float, typer.Option(min=0, help="Events per second; 0: as fast as they are scored.")] = 5000,
    flights: Annotated[
        int | None, typer.Option(min=1, help="How many to replay.", show_default="April to December")
    ] = None,
    heap: Annotated[str, typer.Option(metavar="SIZE", help="Java heap of each of these members.")] = "2g",
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the plot and the report.")] = Path("out/demo"),
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave cluster and worker up at the end, until Ctrl-C.")
    ] = False,
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--members",
            "-m",
            metavar="N|HOST:PORT",
            help="How many members to start; or where a cluster runs, repeat for several.",
        ),
    ] = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """See it work: 255,987 real flights replayed as a live stream, scored in a cluster, checked to the bit.

    It starts a cluster of its own, unless --members or --settings names one, trains a model on the first three months
    of 2013, submits a job, starts a worker, and replays the rest of the year. Ctrl-C leaves nothing behind.

    Example: [bold]gridscore demo --flights 50000 --rate 0[/]
    """
    from gridscore.proving.demo.story import DemoOptions, run_demo
    from gridscore.proving.demo.summary import print_next, print_summary

    count = int(members[0]) if members and len(members) == 1 and members[0].isdigit() else None
    if count is not None and not 1 <= count <= MAX_MEMBERS:
        raise UsageError(f"--members {count}: a cluster on one machine has 1 to {MAX_MEMBERS} members.")
    # Only a cluster that is named here: a demo has no business in one that happens to run on this machine.
    own = count is not None or not (members or settings)
    if own and cluster_name:
        raise UsageError("--cluster-name needs --members.", "Name a member: -m HOST:PORT.")
    options = DemoOptions(
        output=output,
        settings=None if own else grid_settings(Connection(members, cluster_name, settings)),
        rate=rate,
        flights=flights,
        members=count or 1,
        heap=heap,
        keep_running=keep_running,
    )
    screen = errors if as_json else console

    reports: list[Report] = []

    def say_next(grid: GridSettings | None) -> None:
        print_next(screen, own_cluster=own, running=keep_running)
        if grid is not None:  # other commands may find another one, or none
            print_selection(screen, selection(grid.members, grid.cluster_name))

    def show(report: Report, grid: GridSettings) -> None:
        reports.append(report)
        if as_json:
            print_json(report.to_json())
        else:
            print_summary(screen, report)
        if keep_running:
            say_next(grid)

    try:
        report = run_demo(options, screen, run, show)
    except KeyboardInterrupt:
        errors.print("Stopped. Nothing of the demo is left running.")
        # After the report, Ctrl-C is the normal end.
        raise typer.Exit(130 if not reports else 1 if reports[0].problems else 0) from None
    if report.problems:
        raise typer.Exit(1)
    if not keep_running:
        say_next(options.settings)
