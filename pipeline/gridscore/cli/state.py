"""`gridscore state`: what the windows of an entity hold."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, JobName, Json, ask
from gridscore.cli.output import console, print_json, print_table, safe

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.window_state import EntityState


def state(
    job: JobName,
    entity: Annotated[str, typer.Argument(help="The key of its window, as a card or a machine.", show_default=False)],
    *,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Show what the windows of an entity hold: what an event at the time of its newest one would see.

    Example: [bold]gridscore state card-fraud 4000-1234[/]
    """
    from gridscore.job import Jobs
    from gridscore.operations.window_state import state_of

    async def main(grid: Grid) -> EntityState:
        return await state_of(grid, await Jobs(grid).get(job), entity)

    found = ask(connection, main)
    if as_json:
        print_json({"job": job, "entity": entity, **dataclasses.asdict(found)})
        return
    rows = [(text, value) for text, value in found.values.items()]
    print_table(("WINDOW", "NOW"), rows, empty="")
    newest = dt.datetime.fromtimestamp(found.newest, dt.UTC).isoformat(timespec="milliseconds")
    console.print(
        f"[bold]{safe(entity)}[/] in `{safe(found.map)}`: newest event at {newest}, sequence {found.sequence}, "
        f"{found.late:,} late, {found.bytes:,} bytes.",
        highlight=False,
        soft_wrap=True,
    )
