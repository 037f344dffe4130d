"""`gridscore prepare`: gives a running cluster what the maps of a job need."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, Json, run_on
from gridscore.cli.output import console, print_json, safe

if TYPE_CHECKING:
    from gridscore.scoring.preparation import Addition


def prepare(
    file: Annotated[Path, typer.Argument(metavar="JOB_FILE", help="The job file.", show_default=False)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be added.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Give the maps of a job their journals on a running cluster: no file of the members changes, none is restarted.

    Members that join later get them, too; a cluster that is stopped as a whole forgets them. `submit` and `worker` add
    what is missing by themselves. A map that exists already keeps what it has.

    Example: [bold]gridscore prepare jobs/flights/job.yaml --dry-run[/]
    """
    from gridscore.job import load_job
    from gridscore.scoring.preparation import additions
    from gridscore.scoring.preparation import prepare as add

    job = load_job(file)

    found: list[Addition] = run_on(connection, lambda grid: (additions if dry_run else add)(grid, job))
    if as_json:
        print_json([_to_json(each, added=not dry_run) for each in found])
        return
    for each in found:
        console.print(f"{'Would add' if dry_run else 'Added'} {safe(each)}")
    if not found:
        console.print(f"The maps of {safe(job.name)} have what they need.")


def _to_json(each: Addition, *, added: bool) -> dict[str, object]:
    config = each.config
    return {
        "map": config.pattern,
        "journal_capacity": config.journal_capacity,
        "backups": config.backups,
        "protection": config.protection,
        "bytes": list(each.bytes),
        "instead_of": each.why,
        "added": added,
    }
