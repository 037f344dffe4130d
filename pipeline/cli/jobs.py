"""`gridscore submit`, `jobs`, `suspend`, `resume`, `cancel`: the life of jobs in a cluster."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, print_json, print_table, run, safe

if TYPE_CHECKING:
    from pipeline.job import JobRecord, Jobs

Name = Annotated[str, typer.Argument(help="Name of the job.", show_default=False)]


def submit(
    file: Annotated[Path, typer.Argument(help="The job file.", show_default=False)],
    *,
    update: Annotated[bool, typer.Option("--update", help="Replace an active job of this name, and go on.")] = False,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Submit a job file to the cluster; any worker picks it up.

    Example: [bold]gridscore submit jobs/flights/job.yaml[/]
    """
    from pipeline.client import Client
    from pipeline.job import load_job

    job = load_job(file)

    async def main() -> tuple[JobRecord, bool]:
        async with connected(members, cluster_name, settings) as grid:
            client = Client(grid)
            before = await _find(client.jobs, job.name)
            record = await client.submit(job, update=update)
            return record, before is not None and before.revision == record.revision

    record, unchanged = run(main())
    if unchanged:
        _report(record, "is submitted already, unchanged", as_json=as_json, changed=False)
    else:
        more = "\nWorkers pick it up within a second: `gridscore jobs`."
        _report(record, "submitted", as_json=as_json, changed=True, more=more)


app = typer.Typer(help="The jobs of the cluster; without a command, lists them.", invoke_without_command=True)


@app.callback()
def jobs(
    context: typer.Context,
    *,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """List the jobs of the cluster: state, lag, rate, model version, losses.

    Example: [bold]gridscore jobs --json[/]
    """
    if context.invoked_subcommand is not None:
        return
    from pipeline.job import Jobs
    from pipeline.worker.status import job_status, living_workers

    async def main() -> list[Any]:
        async with connected(members, cluster_name, settings) as grid:
            workers = await living_workers(grid)
            return [await job_status(grid, record, workers) for record in await Jobs(grid).all()]

    statuses = run(main())
    if as_json:
        print_json([status.to_json() for status in statuses])
        return
    columns = ("JOB", "STATE", "WORKERS", "PARTITIONS", "EVENTS", "EVENTS/S", "LAG", "DEAD", "LOST", "MODEL")
    rows = []
    for s in statuses:
        versions = ", ".join(f"v{v}" for v in s.versions)
        rows.append(
            (
                s.record.name,
                s.record.state.value,
                s.workers,
                s.partitions,
                int(s.totals["events"]),
                float(s.totals["rate"]),
                s.lag,
                int(s.totals["dead_letters"]),
                int(s.totals["lost"]),
                f"{s.record.job.model.name} {versions}".strip(),
            )
        )
    print_table(columns, rows, empty="No jobs. `gridscore submit FILE` submits one.")
    for s in statuses:
        for problem in [s.record.error, *s.model_errors]:
            if problem:
                text = f"[yellow]{safe(s.record.name)}:[/] {safe(problem, layout=True)}"
                console.print(text, highlight=False, soft_wrap=True)


def suspend(
    name: Name,
    *,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Stop scoring and keep the offsets.

    Example: [bold]gridscore suspend flights[/]
    """
    _move("suspend", name, (members, cluster_name, settings), as_json=as_json)


def resume(
    name: Name,
    *,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Score again, from where the job stopped; also a job that FAILED, once its cause is mended.

    Example: [bold]gridscore resume flights[/]
    """
    _move("resume", name, (members, cluster_name, settings), as_json=as_json)


def cancel(
    name: Name,
    *,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """End a job for good. Its results stay; submitted again, it begins anew.

    Example: [bold]gridscore cancel flights[/]
    """
    _move("cancel", name, (members, cluster_name, settings), as_json=as_json)


app.command("suspend")(suspend)
app.command("resume")(resume)
app.command("cancel")(cancel)


def _move(verb: str, name: str, connection: tuple[Any, Any, Any], *, as_json: bool) -> None:
    from pipeline.job import Jobs
    from pipeline.job.life import WANTED, JobState

    # What was so already is left as it is, and said to be so.
    done, already, states = {
        "suspend": ("suspended", "is suspended already", {JobState.SUSPENDED}),
        "resume": ("resumed", "is not suspended", WANTED),
        "cancel": ("cancelled", "has ended already", {JobState.FAILED}),
    }[verb]

    async def main() -> tuple[JobRecord, bool]:
        async with connected(*connection) as grid:
            before = await _find(Jobs(grid), name)
            return await getattr(Jobs(grid), verb)(name), before is None or before.state not in states

    record, changed = run(main())
    _report(record, done if changed else f"{already}, unchanged", as_json=as_json, changed=changed)


async def _find(jobs: Jobs, name: str) -> JobRecord | None:
    """The job as it is now; None also if its record cannot be read, of which the change itself will complain."""
    from pipeline.errors import JobError

    try:
        return await jobs.find(name)
    except JobError:
        return None


def _report(record: JobRecord, done: str, *, as_json: bool, changed: bool, more: str = "") -> None:
    if as_json:
        print_json({"name": record.name, "state": record.state.value, "revision": record.revision, "changed": changed})
        return
    console.print(
        f"Job [bold]{safe(record.name)}[/] {done}: {record.state.value}, revision {record.revision}.{more}",
        highlight=False,
        soft_wrap=True,
    )
