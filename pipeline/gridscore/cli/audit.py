"""`gridscore audit`: finds events that have no result, and has them scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import ClusterName, Json, Members, SettingsFile, connected
from gridscore.cli.output import console, errors, print_json, run, safe, visible

if TYPE_CHECKING:
    from gridscore.scoring.audit import Audit


def audit(
    job: Annotated[str, typer.Argument(help="Name of the job.", show_default=False)],
    *,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Have what is missing scored, or only say it. By default it is scored, unless the job began at the "
            "latest event.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", min=0.0, metavar="SECONDS", help="How long a job may stand still.")
    ] = 20.0,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Find the events of a job that should have a result and have none, and have them scored.

    The cluster's SQL compares the keys of both maps. Events that wait in the journal are waited for; dead letters are
    left out. The exit code is 1 if something is missing and was not repaired.

    Example: [bold]gridscore audit flights[/]
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from gridscore.job import Jobs
    from gridscore.scoring.audit import audit as run_audit

    async def main() -> tuple[Audit, bool]:
        async with connected(members, cluster_name, settings) as grid:
            record = await Jobs(grid).get(job)
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
                task = bar.add_task("", total=None)

                def progress(what: str, done: int, total: int) -> None:
                    bar.update(task, description=what, completed=done, total=total)

                found = await run_audit(grid, record, repair=repair, patience=patience, progress=progress)
            return found, record.begins_late

    found, at_latest = run(main())
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
        console.print(line, highlight=False, soft_wrap=True)
    if found.rejected:
        console.print(
            f"[bold]{'rejected now':>13}[/]  {found.rejected:>12,}  [dim]dead letters now[/]", highlight=False
        )
    way = "by SQL" if found.way == "sql" else f"by walking the maps: {found.why}"
    console.print(visible(f"{found.seconds:,.1f} s, {way}"), style="dim", markup=False, highlight=False, soft_wrap=True)
    if not found.complete:
        errors.print("There is more without a result than one audit looks at: audit again.", style="yellow")
    if found.left and at_latest:
        errors.print(
            "The job began at the latest event: what was put before that has no result either, and cannot be told from "
            "what was lost. --repair has all of it scored.",
            style="yellow",
        )
    elif found.left:
        errors.print(
            f"{found.left:,} events have no result. Workers score what they were asked to when they can: see "
            f"`gridscore status {safe(job)}`, and audit again.",
            style="yellow",
            highlight=False,
        )
