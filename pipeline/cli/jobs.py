"""`gridscore submit`, `jobs`, `suspend`, `resume`, `cancel`: the life of jobs in a cluster."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, print_json, print_table, run

if TYPE_CHECKING:
    from pipeline.job import JobRecord

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

    async def main() -> JobRecord:
        async with connected(members, cluster_name, settings) as grid:
            return await Client(grid).submit(job, update=update)

    _report(run(main()), "submitted", as_json=as_json, more="\nWorkers pick it up within a second: `gridscore jobs`.")


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
                console.print(f"[yellow]{s.record.name}:[/] {problem}", highlight=False)


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

    async def main() -> JobRecord:
        async with connected(*connection) as grid:
            moved: JobRecord = await getattr(Jobs(grid), verb)(name)
            return moved

    _report(run(main()), {"suspend": "suspended", "resume": "resumed", "cancel": "cancelled"}[verb], as_json=as_json)


def _report(record: JobRecord, done: str, *, as_json: bool, more: str = "") -> None:
    if as_json:
        print_json({"name": record.name, "state": record.state.value, "revision": record.revision})
    else:
        console.print(f"Job [bold]{record.name}[/] {done}: {record.state.value}, revision {record.revision}.{more}")
