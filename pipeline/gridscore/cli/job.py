"""`gridscore job check` and `job schema`: job files, without a cluster."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import Annotated

import typer

from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, print_json, print_table, safe

app = typer.Typer(help="Job files: check one, or get the JSON Schema for an editor.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The job file.", show_default=False)],
    *,
    as_json: Json = False,
) -> None:
    """Check a job file: every problem with its line, or what the job will do.

    Example: [bold]gridscore job check jobs/flights/job.yaml[/]
    """
    from gridscore.errors import JobFileError
    from gridscore.job import load_job
    from gridscore.sinks import registry as sinks
    from gridscore.sources import registry as sources

    try:
        job = load_job(file)
    except JobFileError as error:
        if not as_json:
            raise
        print_json({"valid": False, "problems": error.message.splitlines()})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print_json({"valid": True, "problems": [], "job": job.to_json()})
        return
    model = f"version {job.model.version}" if job.model.version else f"alias `{job.model.alias}`"
    console.print(
        f"[bold green]{safe(file)} is valid.[/] The job `{job.name}` scores `{job.events}` with the model "
        f"`{job.model.name}` ({model}) into `{job.results}`.",
        highlight=False,
        soft_wrap=True,
    )
    rows = [
        (name, "" if feature.default is None else f"{feature.default:g}", feature.expression)
        for name, feature in job.features.items()
    ]
    print_table(("FEATURE", "DEFAULT", "EXPRESSION"), rows, empty="")
    plugs = [
        *((name, "source", sources.KINDS.of(source).name, source.to) for name, source in job.sources.items()),
        *((name, "sink", sinks.KINDS.of(sink).name, sink.results) for name, sink in job.sinks.items()),
    ]
    if plugs:
        console.print()
        print_table(("NAME", "IS A", "KIND", "MAP"), plugs, empty="")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file, for editors.

    Example: [bold]gridscore job schema > job.schema.json[/]
    """
    from gridscore.job import job_json_schema

    print_json(job_json_schema())
