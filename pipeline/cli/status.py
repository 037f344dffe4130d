"""`gridscore status`: is everything well? For scripts by exit code and JSON, for people with reasons and advice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, duration_text, errors, milliseconds_text, print_json, run, safe
from pipeline.errors import GridError, UsageError

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.worker.health import Finding, Look
    from pipeline.worker.status import JobStatus, Overview

UNHEALTHY = 10
"""Exit code when a job is not well; those of errors are lower."""

_ANSWER_SECONDS = 15.0
_COUNTS = {"lost": "lost", "regressions": "regressions", "dead_letters": "dead letters", "rescued": "rescued"}


def status(
    job: Annotated[str | None, typer.Argument(help="Name of the job; else all jobs.", show_default=False)] = None,
    *,
    seconds: Annotated[
        float, typer.Option("--for", min=0.0, max=600.0, help="How long to look, in seconds; 0 looks once.")
    ] = 5.0,
    late: Annotated[
        float,
        typer.Option(
            "--late", min=0.0, metavar="SECONDS", help="Growing lag is bad if working it off would take longer."
        ),
    ] = 10.0,
    acknowledge: Annotated[
        bool, typer.Option("--acknowledge", help="Note that you know of the losses of JOB so far.")
    ] = False,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Say whether jobs are well, and why not.

    Exit code 0: all are well; 10: at least one is not; anything else is an error. It looks several times in --for
    seconds, and what is over at one of these looks is no problem.

    Example: [bold]gridscore status flights --json[/]
    """
    if acknowledge and job is None:
        raise UsageError("--acknowledge is for one job.", "Name it: `gridscore status JOB --acknowledge`.")

    async def main() -> tuple[list[list[Look]], Overview, dict[str, int]]:
        async with connected(members, cluster_name, settings) as grid:
            with errors.status(f"Looking for {seconds:g} s") if seconds else contextlib.nullcontext():
                looks, overview = await _look(grid, job, seconds)
            if not acknowledge:
                return looks, overview, {}
            from pipeline.worker.status import acknowledge as note

            numbers = await note(grid, overview.jobs[0])
            again, overview = await _look(grid, job, 0.0)
            return [[*looks[0][:-1], again[0][0]]], overview, numbers

    from pipeline.worker.health import examine, is_well

    looks, overview, acknowledged = run(main())
    findings = [examine(each, late_seconds=late) for each in looks]
    well = all(map(is_well, findings))
    if as_json:
        print_json(
            {
                "healthy": well,
                "jobs": [job_json(s, f) for s, f in zip(overview.jobs, findings, strict=True)],
                "workers": [worker.id for worker in overview.workers],
            }
        )
    else:
        if acknowledged:
            lost, regressions = acknowledged["lost"], acknowledged["regressions"]
            console.print(f"Acknowledged: {lost:,} lost, {regressions:,} regressions.", highlight=False)
        for each, found in zip(overview.jobs, findings, strict=True):
            _show(each, found)
        if not overview.jobs:
            console.print("No jobs. `gridscore submit FILE` submits one.", highlight=False, soft_wrap=True)
    if not well:
        raise typer.Exit(UNHEALTHY)


def job_json(status: JobStatus, findings: list[Finding]) -> dict[str, Any]:
    """A job's figures and findings, for scripts."""
    from pipeline.worker.health import is_well

    return {
        **status.to_json(),
        "healthy": is_well(findings),
        "findings": [{"level": f.level, "code": f.code, "text": f.text, "advice": f.advice} for f in findings],
    }


async def _look(grid: Grid, job: str | None, seconds: float) -> tuple[list[list[Look]], Overview]:
    """Looks at each job that is there at the last, about one a second.

    Raises:
        GridError: The cluster does not answer in time.
    """
    from pipeline.worker.health import Look
    from pipeline.worker.status import Lookout

    lookout = Lookout(grid, job)
    seen: dict[str, list[Look]] = {}
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                overview = await lookout.look()
        except TimeoutError:
            raise GridError(
                f"The cluster did not answer in {_ANSWER_SECONDS:.0f} seconds.", "Are all its members well?"
            ) from None
        for each in overview.jobs:
            seen.setdefault(each.record.name, []).append(Look(overview.at, each))
        left = began + seconds - loop.time()
        if left <= 0:
            return [seen[each.record.name] for each in overview.jobs], overview
        await asyncio.sleep(min(1.0, left))


def _show(status: JobStatus, findings: list[Finding]) -> None:
    from pipeline.worker.health import Level, is_well

    record, totals = status.record, status.totals
    verdict = "[green]well[/]" if is_well(findings) else "[red]not well[/]"
    console.print(f"[bold]{safe(record.name)}[/]: {verdict}, {record.state.value}", highlight=False, soft_wrap=True)
    lag = "unknown" if status.lag is None else f"{status.lag:,}"
    versions = ", ".join(f"v{version}" for version in status.versions) or "none"
    commit = "never" if status.commit_age is None else f"{duration_text(status.commit_age)} ago"
    owned = f"{status.partitions} of {len(status.positions) or '?'} partitions owned"
    losses = ", ".join(f"{totals[key]:,.0f} {name}" for key, name in _COUNTS.items())
    for part in (
        f"{status.workers} {'worker' if status.workers == 1 else 'workers'}, {owned}, model {record.job.model.name} "
        + versions,
        f"{totals['rate']:,.0f} events/s, lag {lag}, p99 {milliseconds_text(status.latency_ms['p99'])}, last commit "
        + commit,
        losses,
    ):
        console.print(f"  {safe(part)}", highlight=False, soft_wrap=True)
    for finding in findings:
        mark = "[red]problem[/]" if finding.level is Level.PROBLEM else "[yellow]note[/]   "
        console.print(f"  {mark}  {safe(finding.text)}", highlight=False, soft_wrap=True)
        if finding.advice:
            console.print(f"           {safe(finding.advice)}", style="dim", highlight=False, soft_wrap=True)
