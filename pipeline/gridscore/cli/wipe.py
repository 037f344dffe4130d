"""`gridscore wipe`: remove what a job has left in the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, JobName, Json, ask, run_on
from gridscore.cli.output import confirmed, console, print_json, print_table, safe

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.wipe import Remnant


def wipe(
    job: JobName,
    *,
    results: Annotated[bool, typer.Option("--results", help="Also its result map.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also its event map.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Also its model, with all versions.")] = False,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="Also its dead letters.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Remove a job that has ended from the cluster for good: its record and offsets, and what else you name.

    It shows what will go, with counts, and asks. It refuses what other jobs, or running sources and sinks, still use.

    Example: [bold]gridscore wipe flights --results --dead-letters --dry-run[/]
    """
    from gridscore.operations.wipe import DEAD_LETTERS, EVENTS, MODEL, RESULTS, remnants
    from gridscore.operations.wipe import wipe as remove

    wanted = {RESULTS: results, EVENTS: events, MODEL: model, DEAD_LETTERS: dead_letters}
    what = [kind for kind, given in wanted.items() if given]
    asks = not (yes or dry_run)

    async def carry_out(grid: Grid) -> list[Remnant]:
        found = await remnants(grid, job, what)
        await remove(grid, found)
        return found

    if dry_run or asks:
        found = ask(connection, lambda grid: remnants(grid, job, what))
        if not as_json:
            _show(found)
        if asks and not confirmed("Remove all of this for good?", as_json=as_json):
            raise typer.Exit(1)
    if not dry_run:
        found = run_on(connection, carry_out)
    if as_json:
        print_json({"removed": not dry_run, "what": [each._asdict() for each in found]})
    elif dry_run:
        console.print("Nothing was removed.")
    else:
        if not asks:
            _show(found)
        console.print(f"[bold]{safe(job)}[/] is removed.")


_UNITS = {"model": "versions", "job": "partitions with an offset"}


def _show(found: list[Remnant]) -> None:
    rows = [(each.what, each.name, f"{each.entries:,} {_UNITS.get(each.what, 'entries')}") for each in found]
    print_table(("WHAT", "NAME", "HOLDS"), rows, empty="")
