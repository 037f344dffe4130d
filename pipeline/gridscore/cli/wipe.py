"""`gridscore wipe`: remove what a job has left in the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import ClusterName, Json, Members, SettingsFile, connected
from gridscore.cli.output import confirmed, console, print_json, print_table, run, safe

if TYPE_CHECKING:
    from gridscore.operations.wipe import Remnant


def wipe(
    job: Annotated[str, typer.Argument(help="Name of the job.", show_default=False)],
    *,
    results: Annotated[bool, typer.Option("--results", help="Also its result map.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Also its event map.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Also its model, with all versions.")] = False,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="Also its dead letters.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Remove a job that has ended from the cluster: its record and offsets, and what is asked for beside it, for good.

    It says what will go, with counts, and asks. What other jobs, or sources and sinks that run, still use is refused.

    Example: [bold]gridscore wipe flights --results --dead-letters --dry-run[/]
    """
    from gridscore.operations.wipe import DEAD_LETTERS, EVENTS, MODEL, RESULTS, remnants, to_json
    from gridscore.operations.wipe import wipe as remove

    wanted = {RESULTS: results, EVENTS: events, MODEL: model, DEAD_LETTERS: dead_letters}
    what = [kind for kind, given in wanted.items() if given]
    asks = not (yes or dry_run)

    async def look() -> list[Remnant]:
        async with connected(members, cluster_name, settings) as grid:
            return await remnants(grid, job, what)

    async def carry_out() -> list[Remnant]:
        async with connected(members, cluster_name, settings) as grid:
            found = await remnants(grid, job, what)
            await remove(grid, found)
            return found

    if dry_run or asks:
        found = run(look())
        if not as_json:
            _show(found)
        if asks and not confirmed("Remove all of this for good?", as_json=as_json):
            raise typer.Exit(1)
    if not dry_run:
        found = run(carry_out())
    if as_json:
        print_json({"removed": not dry_run, "what": to_json(found)})
    elif dry_run:
        console.print("Nothing was removed.", highlight=False)
    else:
        if not asks:
            _show(found)
        console.print(f"[bold]{safe(job)}[/] is removed.", highlight=False)


_UNITS = {"model": "versions", "job": "partitions with an offset"}


def _show(found: list[Remnant]) -> None:
    rows = [(each.what, each.name, f"{each.entries:,} {_UNITS.get(each.what, 'entries')}") for each in found]
    print_table(("WHAT", "NAME", "HOLDS"), rows, empty="")
