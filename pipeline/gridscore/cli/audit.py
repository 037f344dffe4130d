"""`gridscore audit`: finds events that have no result, and has them scored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, JobName, Json, ask
from gridscore.cli.output import console, errors, print_json, progress_bar, safe, say

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.scoring.audit import Audit


def audit(
    job: JobName,
    *,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Have events without a result scored, or only report them. By default they are scored, unless the "
            "job began at the latest event.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="How long a job may stand still.")] = 20.0,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Find events of a job that should have a result but have none, and have them scored.

    The cluster's SQL compares the keys of both maps. Events that wait in the journal are waited for; dead letters are
    left out. The exit code is 1 if something is missing and was not repaired.

    Example: [bold]gridscore audit flights[/]
    """
    from gridscore.job import Jobs
    from gridscore.scoring.audit import audit as run_audit

    async def main(grid: Grid) -> tuple[Audit, bool]:
        record = await Jobs(grid).get(job)
        with progress_bar() as bar:
            task = bar.add_task("", total=None)

            def progress(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            found = await run_audit(grid, record, repair=repair, patience=patience, progress=progress)
        return found, record.begins_late

    found, at_latest = ask(connection, main, times=math.inf)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found, job, at_latest=at_latest)
    if found.left:
        raise typer.Exit(1)


def _print(found: Audit, job: str, *, at_latest: bool) -> None:
    for name, count, note in (
        ("events", found.events, ""),
        ("results", found.results, ""),
        ("waiting", found.waiting, "in the journal, not scored yet" if found.waiting else ""),
        ("dead letters", found.dead_letters, f"gridscore dead-letters list {job}" if found.dead_letters else ""),
        ("missing", found.missing, ", ".join(found.examples) + (", …" if found.missing > len(found.examples) else "")),
        ("scored now", found.scored, ""),
    ):
        line = f"[bold]{name:>13}[/]  {count:>12,}  [dim]{safe(note)}[/]"
        console.print(line)
    if found.rejected:
        console.print(f"[bold]{'rejected now':>13}[/]  {found.rejected:>12,}  [dim]dead letters now[/]")
    way = "by SQL" if found.way == "sql" else f"by walking the maps: {found.why}"
    say(f"{found.seconds:,.1f} s, {way}", "dim", to=console)
    if not found.complete:
        errors.print("There are more events without a result than one audit covers: audit again.", style="yellow")
    if found.left and at_latest:
        errors.print(
            "The job began at the latest event: events from before that have no result either, and cannot be told from "
            "lost ones. --repair has them all scored.",
            style="yellow",
        )
    elif found.left:
        errors.print(
            f"{found.left:,} events have no result. Workers score them when they can: see `gridscore status "
            f"{safe(job)}`, and audit again.",
            style="yellow",
        )
