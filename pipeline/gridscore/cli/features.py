"""`gridscore features`: a history to the training matrix, with the features of the job that will score."""

from __future__ import annotations

import time
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowPython, Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, print_json, print_table, print_warnings, progress_bar, safe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.features import OfflineMatrix
    from gridscore.features.encodings import Learnt

_OUTPUT_HINT = "Create the folder, or give another --output."


def features(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)],
    history: Annotated[Path, typer.Argument(help="Events as rows: CSV, Parquet or JSON lines.", show_default=False)],
    *,
    lookups: Annotated[Path | None, typer.Option(help="Directory with a CSV or Parquet file for each lookup.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The matrix, a Parquet file.")],
    keep: Annotated[
        list[str] | None, typer.Option(help="Column of the history to keep, such as the label; repeatable.")
    ] = None,
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column that `target` learns from; it is kept, too.")
    ] = "",
    categories_from: Annotated[
        Path | None, typer.Option(help="Take categories and encodings from this matrix or model.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A model (XGBoost UBJ or JSON): its categories and encodings, and its features if the job file names "
            "none.",
        ),
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Add each row's score and decision, as the model of --model would live.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that are not events of the schema, and count them.")
    ] = False,
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    as_json: Json = False,
) -> None:
    """Make the training matrix from a history: exactly the features that the stream would see.

    Example: [bold]gridscore features job.yaml history.csv --lookups lookups/ --keep label -o matrix.parquet[/]
    """
    from gridscore.errors import TableError, UsageError
    from gridscore.features import offline_matrix
    from gridscore.job import load_job
    from gridscore.models import check_fit, completed, loaded_from
    from gridscore.models.inputs import read_learnt
    from gridscore.models.version import early_stopping

    if output.suffix != ".parquet":
        raise UsageError(f"The matrix is a Parquet file: `{output}` must end in .parquet.")
    if output.is_dir() or not output.parent.is_dir():
        what = "it is a folder" if output.is_dir() else f"there is no folder `{output.parent}`"
        raise TableError(f"`{output}` cannot be written: {what}.", _OUTPUT_HINT)
    job = load_job(job_file)
    learnt: Mapping[str, Learnt] | None = None
    predict = None
    if model is not None:
        version, loaded = loaded_from(model, job.model.name)
        job, learnt = completed(job, version), version.learnt
        if score:
            check_fit(job, version)
            print_warnings(filter(None, [early_stopping(version)]))
            predict = loaded.predict
    elif score:
        raise UsageError("--score needs a model.", "Give its file: --model FILE.")
    job.require_features()
    if categories_from is not None:
        learnt = read_learnt(categories_from)
    began = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("reading", total=None)
        matrix = offline_matrix(
            job,
            history,
            lookups,
            learnt,
            keep=keep or (),
            label=label,
            skip_bad=skip_bad,
            score=predict,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total, description="features"),
        )
        if not len(matrix):
            raise TableError(
                f"`{history}` has no row that is an event: all {matrix.skipped:,} were left out.",
                "Without --skip-bad you are told what is wrong with the first.",
            )
        progress.update(task, description="writing")
        try:
            matrix.to_parquet(output)
        except TableError as error:
            raise TableError(error.message, error.hint or _OUTPUT_HINT) from None
    summary = {**_summary(matrix, time.perf_counter() - began), "may_leak": job.undated_lookups}
    print_warnings(filter(None, [job.what_may_leak]))
    if as_json:
        print_json({"output": str(output), **summary})
        return
    rows = [(f["name"], f["missing"], f["min"], f["mean"], f["max"], f["categories"]) for f in summary["features"]]
    print_table(("FEATURE", "MISSING", "MIN", "MEAN", "MAX", "CATEGORIES"), rows, empty="")
    for name, lookup in summary["lookups"].items():
        bad = f", {lookup['bad']:,} of them not readable" if lookup["bad"] else ""
        console.print(
            f"lookup {name}: {lookup['entries']:,} entries{bad}; "
            f"{lookup['missed']:,} of {lookup['events']:,} events had none"
        )
    skipped = f", {matrix.skipped:,} bad rows left out" if matrix.skipped else ""
    console.print(
        f"[bold green]{safe(output)}:[/] {len(matrix):,} rows of {len(matrix.names)} features in "
        f"{summary['seconds']:.1f} s{skipped}."
    )


def _summary(matrix: OfflineMatrix, seconds: float) -> dict[str, Any]:
    import numpy as np

    described = []
    for index, name in enumerate(matrix.names):
        column = matrix.values[:, index]
        present = column[~np.isnan(column)]
        some = len(present) > 0
        described.append(
            {
                "name": name,
                "missing": len(column) - len(present),
                "min": float(present.min()) if some else None,
                "mean": float(present.mean(dtype=np.float64)) if some else None,
                "max": float(present.max()) if some else None,
                "categories": len(matrix.categories[name]) if name in matrix.categories else None,
            }
        )
    return {
        "rows": len(matrix),
        "skipped": matrix.skipped,
        "seconds": round(seconds, 3),
        "features": described,
        "lookups": matrix.looked_up,
    }
