"""`gridscore backup` and `gridscore restore`: what only the grid has, kept outside of it, and brought back."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, Json, run_on, valid, working
from gridscore.cli.output import console, counted, errors, print_json, print_table, say
from gridscore.errors import UsageError
from gridscore.texts import duration_text, moment_at

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.restore import Step
    from gridscore.operations.restore_points import Point

_PATIENCE_SECONDS = 30.0
_WHERE = "a folder, or postgresql://USER@HOST:5432/DATABASE, where ${NAME} is taken from the environment"


def backup(
    *,
    to: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help=f"For restore points: {_WHERE}.", show_default=False)
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(
            "--forget",
            metavar="PLACE",
            help="Instead: end the warnings of a backup that no longer runs. Name the place as `status` shows it.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Go on, so that no point gets older than that, as 5s; else make one."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="MAP", help="A map of lookups or windows to leave out. Repeatable.")
    ] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Keep jobs, models, keys, lookups, window states and source positions outside of the cluster.

    With --every it runs until Ctrl-C or SIGTERM. Events and results are not kept: after a restore, sources go on from
    where all results had been delivered.

    Example: [bold]gridscore backup --to /backups/prod --every 5s[/]
    """
    from gridscore.cli.plug_run import run_until_told
    from gridscore.job.types import Duration, seconds_of
    from gridscore.operations.backup import Backup, forget_backup
    from gridscore.operations.restore_points import Points

    if forget is not None and to is None:
        place = run_on(connection, lambda grid: forget_backup(grid, forget))
        if as_json:
            print_json({"forgot": place})
        else:
            say(f"Nothing is said of the backup to {place} any more. Its restore points stay.", to=console)
        return
    if to is None or forget is not None:
        raise UsageError("Name either --to or --forget.", "Give exactly one of them.")
    seconds = 0.0 if every is None else seconds_of(valid(Duration, "--every", every))
    if every is not None and not 1 <= seconds <= 86_400:
        raise UsageError("--every: a second to a day is possible.")
    place = _place(to)
    logging.getLogger("gridscore.operations.backup").setLevel(min(logging.INFO, logging.getLogger().level))
    made = 0

    async def main() -> None:
        nonlocal made
        with contextlib.closing(await asyncio.to_thread(Points.write, place)) as points:
            async with working(connection) as grid:
                running = Backup(grid, points, every=seconds, without=without or ())
                await running.open()
                if every is None:
                    point = await grid.while_same(running.look(_PATIENCE_SECONDS))
                    if as_json:
                        print_json(_to_json(point))
                    else:
                        say(f"Restore point {point.number} in {points.address}. {_positions_text(point)}", to=console)
                    return
                say(f"A restore point in {points.address} every {duration_text(seconds)}. Ctrl-C stops it.")
                try:
                    await running.run()
                finally:
                    made = running.made

    code = run_until_told(main, lambda: False)
    if every is not None:
        say(f"{made:,} restore points.")
    if code:
        raise typer.Exit(code)


def restore(
    *,
    from_: Annotated[
        str, typer.Option("--from", metavar="DIR|URL", help=f"Where `backup` keeps them: {_WHERE}.", show_default=False)
    ],
    number: Annotated[
        int | None, typer.Option("--point", min=1, metavar="NUMBER", help="The restore point; else the newest.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be restored.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Where the cluster has something else, leave that, and add the rest.")
    ] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Bring an empty cluster to a restore point. It adds what is not there, and changes nothing that is.

    Stop sources before, start them after. Jobs come last, so workers may run all the time.

    Example: [bold]gridscore restore --from /backups/prod --dry-run[/]
    """
    from gridscore.operations.restore import Restore, to_json
    from gridscore.operations.restore_points import Points

    async def main(grid: Grid) -> list[Step]:
        restoring = await asyncio.to_thread(Restore, grid, points, point)
        steps = await restoring.plan()
        if not dry_run:
            with counted("restoring") as told:
                await restoring.run(steps, merge=merge, progress=told)
        return steps

    with contextlib.closing(Points.open(_place(from_))) as points:
        point = points.read(number)
        steps = run_on(connection, main)
    if as_json:
        times = {"at": moment_at(point.at), "positions_at": moment_at(point.positions_at)}
        print_json({"restored": not dry_run, **to_json(point, steps), **times})
        return
    rows = [(step.map, len(step.missing), step.there, step.other) for step in steps]
    print_table(("MAP", "RESTORED" if not dry_run else "TO RESTORE", "THERE", "DIFFERENT"), rows, empty="")
    age = duration_text(max(0.0, time.time() - point.at))
    say(f"Restore point {point.number}, {age} old. {_positions_text(point)}", to=console)
    if dry_run:
        say("Nothing was changed.", to=console)
    elif not point.positions_at:
        errors.print("[yellow]warning:[/] Sources begin where their settings say: look whether that is right.")


def _place(text: str) -> str:
    """Where points are, with what the environment has of it."""
    from pydantic import BaseModel

    from gridscore.job.plugs.environment import from_environment

    class Place(BaseModel):
        to: str

    return from_environment(Place(to=text))[0].to


def _positions_text(point: Point) -> str:
    if not point.positions_at:
        return "It has no positions of sources: not all events had their results yet."
    at = dt.datetime.fromtimestamp(point.positions_at, dt.UTC).isoformat(sep=" ", timespec="seconds")
    return f"Sources go on from where they were at {at}." + (
        f" Later ones are held up: {point.held}." * bool(point.held)
    )


def _to_json(point: Point) -> dict[str, object]:
    return {
        "point": point.number,
        "at": moment_at(point.at),
        "positions_at": moment_at(point.positions_at),
        "held": point.held,
        "positions": len(point.positions),
        "maps": sorted(point.maps),
    }
