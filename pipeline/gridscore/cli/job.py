"""`gridscore job check`, `job init`, `job preview` and `job schema`: job files, and what they make of events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowPython, App, Connection, Json, map_names, modules_in, working
from gridscore.cli.output import console, print_json, print_table, print_warnings, run, safe
from gridscore.cli.preview import preview
from gridscore.errors import FunctionError, UsageError

if TYPE_CHECKING:
    from gridscore.job import Job

app = App(no_args_is_help=True)
app.command()(preview)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The job file.", show_default=False)],
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model (XGBoost UBJ or JSON) that should fit the job.")
    ] = None,
    allow_python: AllowPython = None,
    as_json: Json = False,
) -> None:
    """Check a job file: every problem with its line, or what the job will do.

    With a model, also whether it would score the job's features as it was trained. A job file without features is shown
    with those of the model.

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
        print_json({"valid": True, "problems": [], "may_leak": job.undated_lookups, "job": job.to_json()})
        return
    which = f"version {job.model.version}" if job.model.version else f"alias `{job.model.alias}`"
    console.print(
        f"[bold green]{safe(file)} is valid.[/] The job `{job.name}` scores `{job.events}` with the model "
        f"`{job.model.name}` ({which}) into `{job.results}`."
    )
    rows = [
        (name, "" if feature.default is None else f"{feature.default:g}", str(feature))
        for name, feature in job.features.items()
    ]
    hint = "Its features are the model's own, read from the event as they are: `--model FILE` shows them."
    print_table(("FEATURE", "DEFAULT", "EXPRESSION"), rows, empty=hint)
    if job.windows:
        from gridscore.features.windows import layouts_of

        kept = {layout.name: layout for layout in layouts_of(job)} if job.is_complete else {}
        windows = [
            (name, ", ".join(window.key), len(kept[name].series), f"{kept[name].most_bytes:,}")
            for name, window in job.windows.items()
            if name in kept
        ]
        console.print()
        print_table(
            ("WINDOW", "KEY", "SERIES", "BYTES AN ENTITY AT MOST"), windows, empty="No feature uses its windows."
        )
        if job.is_complete and job.routes_windows:
            console.print("Live, workers ask for them in the partitions of their entities, over two more maps.")
    if job.has_functions:
        _print_functions(job, modules_in(allow_python))
    print_warnings(filter(None, [job.what_may_leak]))
    plugs = [
        *((name, "source", sources.KINDS.of(source).name, source.to) for name, source in job.sources.items()),
        *((name, "sink", sinks.KINDS.of(sink).name, sink.results) for name, sink in job.sinks.items()),
    ]
    if plugs:
        console.print()
        print_table(("NAME", "IS A", "KIND", "MAP"), plugs, empty="")


def _print_functions(job: Job, allowed: list[str]) -> None:
    """Where its Python functions are here; those that are allowed are imported."""
    from gridscore.features.functions import whereabouts
    from gridscore.function_calls import require_allowed, resolved

    rows, problems = [], []
    for target in dict.fromkeys(feature.python for feature in job.features.values() if feature.python):
        calls = "not allowed here"
        try:
            require_allowed(target, allowed)
            calls = "cannot be called here"
            resolved(target, allowed)
            calls = "can be called here"
        except FunctionError as error:
            problems += [f"{error.message} {error.hint}"] if calls.startswith("cannot") else []
        rows.append((target, whereabouts(target), calls))
    console.print()
    print_table(("FUNCTION", "FROM", "HERE"), rows, empty="")
    console.print("Workers call them only if they are started with --allow-python.")
    print_warnings(problems)


def _with_model(job: Job, model: Path) -> Job:
    from gridscore.models import check_fit, completed, version_in
    from gridscore.models.fit import fit_warnings
    from gridscore.models.version import early_stopping

    version = version_in(model, job.model.name)
    job = completed(job, version)
    check_fit(job, version)
    print_warnings([*fit_warnings({job.name: job}, version), *filter(None, [early_stopping(version)])])
    return job


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The job file to write.")] = Path("job.yaml"),
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model (XGBoost UBJ or JSON): its features.")
    ] = None,
    from_map: Annotated[
        str | None,
        typer.Option(
            metavar="MAP", autocompletion=map_names, help="An event map of the cluster: fields of its events."
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Events as rows (CSV, Parquet, JSON lines): its columns.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the job; by default that of the model, map or history.")
    ] = None,
    connection: Connection,
) -> None:
    """Write a first job file, with comments, from a model, a map's events, or a history.

    `gridscore job check` accepts it as it is. An existing file is never overwritten.

    Example: [bold]gridscore job init job.yaml --model model.ubj[/]
    """
    from gridscore.job import template

    given = [each for each in (model, from_map, history) if each is not None]
    if len(given) != 1:
        raise UsageError("A job file is made from one thing.", "Give --model FILE, --from-map MAP or --history FILE.")
    if file.exists():
        raise UsageError(f"`{file}` exists already.", "Name another file, or remove it first.")
    stem = str(from_map).rpartition(".")[2] if from_map is not None else Path(str(given[0])).name.partition(".")[0]
    job = template.shell(name or template.name_of(stem), from_map or "")
    if model is not None:
        from gridscore.models import completed, version_in

        text = template.text_of_job(completed(job, version_in(model, job.model.name)))
    elif history is not None:
        from gridscore.features.history_sample import sample_of

        text = template.text_of_events(job, sample_of(history))
    else:
        text = template.text_of_events(job, run(_events(job, connection)))
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise UsageError(f"`{file}` cannot be written: {error.strerror}.") from None
    console.print(f"[bold green]{safe(file)}[/] is written; look through it.")


async def _events(job: Job, connection: Connection) -> list[dict[str, Any]]:
    import msgspec

    from gridscore.proving.bench.samples import from_grid

    async with working(connection) as grid:
        texts = (await from_grid(grid, job)).texts
    found = []
    for text in texts:
        try:
            found.append(msgspec.json.decode(text, type=dict[str, Any]))
        except (ValueError, RecursionError):
            continue  # it is a dead letter to every job
    return found


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file, for editors.

    Example: [bold]gridscore job schema > job.schema.json[/]
    """
    from gridscore.job import job_json_schema

    print_json(job_json_schema())
