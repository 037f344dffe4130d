"""`gridscore repair`: repairs or removes entries of control maps that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, Json, ask, run_on
from gridscore.cli.output import confirmed, console, print_json, safe
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.repair import Repair


def repair(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Repair or remove entries of control maps that cannot be used, whatever put them there.

    Shows each such record, and what repairing or removing it means, before it asks. Records that change in the meantime
    are left alone.

    Example: [bold]gridscore repair --dry-run[/]
    """
    from gridscore.operations.repair import find_repairs
    from gridscore.operations.repair import repair as do

    async def apply(grid: Grid) -> list[bool]:
        return [await do(grid, each) for each in found]

    found = ask(connection, find_repairs)
    if not as_json:
        _show(found)
    done: list[bool | None] = [None] * len(found)
    if found and not dry_run:
        if not (yes or confirmed("Do it?", as_json=as_json)):
            raise typer.Exit(1)
        done = [*run_on(connection, apply)]
    if as_json:
        print_json([_to_json(each, outcome) for each, outcome in zip(found, done, strict=True)])
    elif found and not dry_run:
        count = sum(bool(each) for each in done)
        console.print(f"{count} of {len(found)} done.")
    if False in done:
        raise UsageError("Some records changed in the meantime and were left alone.", "Run it again.")


def _show(found: list[Repair]) -> None:
    if not found:
        console.print("All control records can be used.")
    for each in found:
        bad, verb = each.bad, "remove" if each.value is None else "repair"
        console.print(f"[bold]{safe(bad.map_name)}[/] {safe(bad.key)}: {safe(bad.reason)}")
        console.print(f"  {verb}: {safe(each.means)}", style="dim")


def _to_json(each: Repair, done: bool | None) -> dict[str, Any]:
    action = "remove" if each.value is None else "repair"
    return {**each.bad.to_json(), "action": action, "means": each.means, "value": each.value, "done": done}
