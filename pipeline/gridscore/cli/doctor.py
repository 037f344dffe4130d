"""`gridscore doctor`: checks a running cluster against what a job needs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, Json, ask
from gridscore.cli.output import console, print_json, safe
from gridscore.errors import GridError

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.grid.doctor import Finding, Needs
    from gridscore.job import Job

_MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


def doctor(
    *,
    job: Annotated[Path | None, typer.Option(metavar="FILE", help="A job file to check the cluster for.")] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Check the cluster against what jobs need, and say what to change. Changes nothing itself.

    Without --job the jobs that are submitted are checked.

    The exit code is 1 if something fails that a job cannot do without.

    Example: [bold]gridscore doctor --job jobs/flights/job.yaml[/]
    """
    from gridscore.grid.doctor import Level, examine
    from gridscore.job import load_job
    from gridscore.scoring.preparation import examine_capacity, examine_windows

    named = load_job(job) if job else None

    async def main(grid: Grid) -> list[Finding]:
        jobs = [named] if named else await _submitted(grid)
        found = await examine(grid, *map(_needs, jobs))
        capacities = [await examine_capacity(grid, each) for each in jobs]
        for each in jobs:
            found += await examine_windows(grid, each)
        found += [each for each in capacities if each is not None]
        return [*found, *await _records(grid), *await _backups(grid)]

    findings: list[Finding] = ask(connection, main)
    if as_json:
        print_json([{"level": f.level, "what": f.what, "detail": f.detail, "advice": f.advice} for f in findings])
    else:
        for finding in findings:
            console.print(
                f"{_MARKS[finding.level]}  [bold]{safe(finding.what)}[/]: {safe(finding.detail, layout=True)}"
            )
            if finding.advice:
                console.print(f"      {safe(finding.advice, layout=True)}", style="dim")
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)


async def _submitted(grid: Grid) -> list[Job]:
    from gridscore.job.life import ENDED, JOBS_MAP, Jobs

    if not await grid.has_map(JOBS_MAP):
        return []
    try:
        return [record.job for record in await Jobs(grid).all() if record.state not in ENDED]
    except GridError:
        return []  # control maps may be what is wrong; the findings say so


async def _records(grid: Grid) -> list[Finding]:
    """Entries of control maps that cannot be used."""
    from gridscore.grid.doctor import Finding, Level
    from gridscore.operations.repair import find_repairs

    try:
        repairs = await find_repairs(grid)
    except GridError:
        return []  # as above
    return [
        Finding(
            Level.FAIL if repair.harms else Level.WARN,
            f"control record {repair.bad.key} in {repair.bad.map_name}",
            repair.bad.reason,
            f"`gridscore repair` {repair.what}: {repair.means}",
        )
        for repair in repairs
    ]


_LATE = (
    "Look whether `gridscore backup` still runs, and what its log says; docs/operations.md has what makes it slow. "
    "If it has been given up: `gridscore backup --forget PLACE`."
)


async def _backups(grid: Grid) -> list[Finding]:
    """How old the last restore points are, if any were made."""
    from gridscore.grid.doctor import Finding, Level
    from gridscore.operations.backup import BACKUPS_MAP, backups_of

    try:
        found = await backups_of(grid) if await grid.has_map(BACKUPS_MAP) else []
    except GridError:
        return []  # as above
    return [
        Finding(
            Level.WARN if each.is_late else Level.OK,
            f"backup to {each.to}",
            each.text + (f"; {each.error}" if each.error else ""),
            _LATE if each.is_late else "",
        )
        for each in found
    ]


def _needs(job: Job) -> Needs:
    from gridscore.grid.doctor import LookupNeed, Needs

    lookups = job.lookups.values()
    return Needs(
        job.events,
        job.results,
        tuple(LookupNeed(lookup.map, lookup.max_entries if lookup.mode == "copy" else None) for lookup in lookups),
    )
