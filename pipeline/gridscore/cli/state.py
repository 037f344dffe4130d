"""`gridscore state`: what the windows of an entity hold, and states from a history."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import App, Connection, JobName, Json, ask, run_on
from gridscore.cli.output import console, counted, print_json, print_table, safe
from gridscore.errors import UsageError
from gridscore.texts import count_text, moment_at

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.operations.window_load import Loaded
    from gridscore.operations.window_state import EntityState


class _Showing(typer.core.TyperGroup):
    """Shows an entity where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = App(cls=_Showing, no_args_is_help=True)


@app.command("show")
def show(
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
        print_json({"job": job, "entity": entity, **dataclasses.asdict(found), "newest": moment_at(found.newest)})
        return
    rows = [(text, value) for text, value in found.values.items()]
    print_table(("WINDOW", "NOW"), rows, empty="")
    sequence = f"sequence {found.sequence}" if found.sequence >= 0 else "of no known sequence"
    console.print(
        f"[bold]{safe(entity)}[/] in `{safe(found.map)}`: newest event at {_moment(found.newest)}, {sequence}, "
        f"{found.late:,} late, {found.bytes:,} bytes.",
        highlight=False,
        soft_wrap=True,
    )


@app.command("load")
def load(
    job: JobName,
    history: Annotated[
        Path,
        typer.Argument(help="Events as rows: CSV, Parquet or JSON lines, in the order of time.", show_default=False),
    ],
    *,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Take the events before that moment, all of which the history must have. Default: all of it.",
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows, and count them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Fill the windows of a job from a history, before it begins or while it is suspended.

    Events before --until, or the end of the history, count by it, and not again when they come in the journal.

    Example: [bold]gridscore state load card-fraud payments.parquet --until 2026-01-31T00:00:00Z[/]
    """
    from gridscore.job import Jobs

    moment = None if until is None else moment_of(until)

    async def main(grid: Grid) -> Loaded:
        return await fill(grid, await Jobs(grid).get(job), history, moment, skip_bad=skip_bad, dry_run=dry_run)

    found = run_on(connection, main)
    if as_json:
        value = {**dataclasses.asdict(found), "newest": moment_at(found.newest)}
        print_json({"job": job, "history": str(history), "dry_run": dry_run, **value})
        return
    console.print(f"[bold]{safe(job)}[/]: {told_of(found, until, dry_run=dry_run)}", highlight=False, soft_wrap=True)


async def fill(grid: Grid, record: JobRecord, history: Path, until: float | None, **options: bool) -> Loaded:
    """Fill the windows of a job, with a bar."""
    from gridscore.operations.window_load import load_states

    with counted("reading", "adding") as told:
        return await load_states(grid, record, history, until=until, on_progress=told, **options)


def told_of(found: Loaded, until: str | None, *, dry_run: bool = False) -> str:
    """What was loaded, for people."""
    done = "would be" if dry_run else f"({found.written:,} new) are"
    more = [
        f"{count_text(count, one)} {what}."
        for count, one, what in (
            (found.after, "later row", "left to the journal"),
            (found.skipped, "bad row", "left out"),
            (found.kept, "state", "kept as in the grid, with later events"),
            (found.old, "state", "left out: no window reaches back so far"),
        )
        if count
    ]
    text = f"{found.states:,} states {done} in the grid, of {found.rows:,} rows up to {_moment(found.newest)}."
    return " ".join([text, f"Events {'up to then' if until is None else f'before {until}'} count by it alone.", *more])


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def moment_of(text: str) -> float:
    """What --until says, in seconds since 1970."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until: `{text}` is not a time.", "Write it as 2026-01-31T12:00:00Z.") from None
    if moment.tzinfo is None:
        raise UsageError(
            f"--until: `{text}` has no time zone.", f"Write {moment.isoformat()}Z for UTC, or an offset as +01:00."
        )
    return moment.timestamp()
