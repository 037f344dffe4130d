"""`gridscore soak`: load and faults, and a judgement of what came out, from outside."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import ClusterName, Connection, Json, SettingsFile, grid_settings
from gridscore.cli.output import console, errors, print_json, print_table, run, safe, say
from gridscore.cli.signals import on_signals
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from gridscore.proving.soak.report import Report
    from gridscore.proving.soak.trial import SoakOptions, Status

SEED = "GRIDSCORE_SEED"


def _fault(text: str) -> Any:
    return typer.Option(min=0, help=text, rich_help_panel="Faults")


def soak(
    *,
    full: Annotated[
        bool, typer.Option("--full", help="500,000 events, 55 faults, a quarter of an hour; the rest is as you say.")
    ] = False,
    events: Annotated[
        int | None, typer.Option(min=100, help="Events at least.", show_default="60000; full: 500000")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=10, help="Events per second.", show_default="1500; full: 2000")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Worker processes.")] = 4,
    seed: Annotated[
        int | None, typer.Option(min=0, envvar=SEED, help="Repeat a run.", show_default="a new one")
    ] = None,
    lease: Annotated[float, typer.Option(min=2.0, max=60.0, help="Lease time of the workers, seconds.")] = 5.0,
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--members",
            "-m",
            metavar="N|HOST:PORT",
            help="How many members to start (3); or where your cluster runs, repeat for several.",
        ),
    ] = None,
    heap: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Java heap of each member that is started.", show_default="768m; full: 1536m"
        ),
    ] = None,
    worker_kills: Annotated[int | None, _fault("kill -9 of a worker.")] = None,
    pauses: Annotated[int | None, _fault("SIGSTOP of a worker past its lease.")] = None,
    leaves: Annotated[int | None, _fault("A worker stops in order, another joins.")] = None,
    member_kills: Annotated[int | None, _fault("kill -9 of a member of ours.")] = None,
    cuts: Annotated[int | None, _fault("A worker's network is cut past its lease.")] = None,
    holds: Annotated[int | None, _fault("A worker's network hangs for a moment.")] = None,
    pause_holds: Annotated[int | None, _fault("SIGSTOP until a lease is nearly over, then a hold.")] = None,
    member_pauses: Annotated[int | None, _fault("SIGSTOP of a member of ours.")] = None,
    member_cuts: Annotated[int | None, _fault("A member of ours is cut off from the others.")] = None,
    pause_cuts: Annotated[int | None, _fault("SIGSTOP until a lease is nearly over, then a cut.")] = None,
    heir_kills: Annotated[int | None, _fault("kill -9 of a worker and of who takes over from it.")] = None,
    both_kills: Annotated[int | None, _fault("kill -9 of a worker and the member with its heartbeat.")] = None,
    duration: Annotated[float, typer.Option(min=10, help="Seconds of load after which it ends in any case.")] = 1_800.0,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for ledger, records and logs.")] = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Prove what survives: events under load while workers and members are killed, paused and cut off.

    Afterwards every score is computed again offline, and every write to the result map is accounted for: nothing may be
    lost, wrong, or written by a worker whose lease was over. It starts a cluster of its own, unless one is named; then
    its members are left alone, and everything that was put into it is removed at the end. Exit code 1 if it failed.

    Example: [bold]gridscore soak --full --keep out/soak[/]
    """
    given = dict(locals())
    from dataclasses import fields, replace

    from gridscore.proving.soak.plan import Counts
    from gridscore.proving.soak.trial import SoakOptions

    asked = {each.name: given[each.name] for each in fields(Counts)}
    # Only a cluster that is named here, not one that the environment happens to name.
    own = settings is None if not members else len(members) == 1 and members[0].isdigit()
    count = int(members[0]) if members and own else 3
    found = None if own else grid_settings(Connection(members, cluster_name, settings))
    counts = Counts() if full else Counts(5, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    if not own or count < 3:
        counts = replace(counts, member_kills=0, member_cuts=0, both_kills=0)
    if not own:
        counts = replace(counts, member_pauses=0)
    counts = replace(counts, **{name: number for name, number in asked.items() if number is not None})
    if not own and counts.member_kills + counts.member_pauses + counts.member_cuts + counts.both_kills:
        raise UsageError(
            "Members of your own cluster are never killed, stopped or cut off.",
            "Leave out --member-kills, --member-pauses, --member-cuts and --both-kills.",
        )
    options = SoakOptions(
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        events=(500_000 if full else 60_000) if events is None else events,
        rate=(2_000.0 if full else 1_500.0) if rate is None else rate,
        workers=workers,
        lease=lease,
        counts=counts,
        members=count,
        heap=heap or ("1536m" if full else "768m"),
        settings=found,
        folder=keep,
        limit=duration,
    )
    try:
        report = run(_run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("Stopped. Nothing of the soak is left running.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.verdict.is_good:
        raise typer.Exit(1)


async def _run(options: SoakOptions) -> Report:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gridscore.proving.soak.trial import run_soak

    task = asyncio.current_task()
    on_signals(lambda _: task and task.cancel())
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        return await run_soak(options, _watcher(bar, options))


def _watcher(bar: Progress, options: SoakOptions) -> Callable[[Status, str | None], None]:
    line = bar.add_task("starting", total=options.events)
    told = ""

    def watch(status: Status, text: str | None) -> None:
        nonlocal told
        faults = f", {status.faults} of {status.planned} faults" if status.planned else ""
        now = f": {'; '.join(status.now)}" if status.now else ""
        # More events than were asked for are put if the faults take longer.
        total = max(options.events, status.acknowledged)
        bar.update(line, completed=status.acknowledged, total=total, description=safe(f"{status.phase}{faults}{now}"))
        if text is not None:
            say(text, "dim", to=bar.console)
        elif status.phase != told and not errors.is_terminal:
            told = status.phase
            say(told, "dim")

    return watch


def _print(report: Report) -> None:
    print_table(("", f"SEED {report.seed}"), report.rows(), empty="")
    problems = report.verdict.problems
    if problems:
        console.print("\n[bold red]Failed[/]")
        for text in (*problems, *report.examples()):
            say(f"  {text}", to=console, layout=True)
    else:
        console.print("\n[bold green]Passed[/]: nothing lost, nothing wrong, nothing written by an expired owner.")
    say(f"Repeat it: {' '.join(_command(report.seed))}", to=console)
    if report.folder is not None:
        say(f"Ledger, records and logs: {report.folder}", to=console)


def _command(seed: int) -> list[Any]:
    words = ["gridscore", *sys.argv[1:]]
    if "--seed" not in words and SEED not in os.environ:
        words += ["--seed", str(seed)]
    return words
