"""`gridscore job check` and `job schema`: job files, without a cluster."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, print_json, print_table, print_warnings, safe

if TYPE_CHECKING:
    from gridscore.job import Job

app = typer.Typer(help="Job files: check one, or get the JSON Schema for an editor.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The job file.", show_default=False)],
    *,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="A model (XGBoost UBJ or JSON) that should fit to the job."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a job file: every problem with its line, or what the job will do.

    With a model, also whether that would score the job's features as it was trained. A job file that names no features
    is shown with those of the model.

    Example: [bold]gridscore job check jobs/flights/job.yaml[/]
    """
    from gridscore.errors import JobFileError, ModelError
    from gridscore.job import load_job
    from gridscore.sinks import base as sinks
    from gridscore.sources import base as sources

    try:
        job = load_job(file)
        if model is not None:
            job = _with_model(job, model)
    except (JobFileError, ModelError) as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": error.message.splitlines()})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print_json({"valid": True, "problems": [], "job": job.to_json()})
        return
    which = f"version {job.model.version}" if job.model.version else f"alias `{job.model.alias}`"
    console.print(
        f"[bold green]{safe(file)} is valid.[/] The job `{job.name}` scores `{job.events}` with the model "
        f"`{job.model.name}` ({which}) into `{job.results}`.",
        highlight=False,
        soft_wrap=True,
    )
    rows = [
        (name, "" if feature.default is None else f"{feature.default:g}", feature.expression)
        for name, feature in job.features.items()
    ]
    hint = "Its features are the model's own, read from the event as they are: `--model FILE` shows them."
    print_table(("FEATURE", "DEFAULT", "EXPRESSION"), rows, empty=hint)
    plugs = [
        *((name, "source", sources.KINDS.of(source).name, source.to) for name, source in job.sources.items()),
        *((name, "sink", sinks.KINDS.of(sink).name, sink.results) for name, sink in job.sinks.items()),
    ]
    if plugs:
        console.print()
        print_table(("NAME", "IS A", "KIND", "MAP"), plugs, empty="")


def _with_model(job: Job, model: Path) -> Job:
    from gridscore.models import check_fit, completed, version_in
    from gridscore.models.fit import fit_warnings

    version = version_in(model, job.model.name)
    job = completed(job, version)
    check_fit(job, version)
    print_warnings(fit_warnings({job.name: job}, version))
    return job


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file, for editors.

    Example: [bold]gridscore job schema > job.schema.json[/]
    """
    from gridscore.job import job_json_schema

    print_json(job_json_schema())
