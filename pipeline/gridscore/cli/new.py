"""`gridscore new`: a project for a job, or a distribution with a source or a sink."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path  # noqa: TC003 -- typer looks
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gridscore.cli.output import console, safe
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gridscore.job import Job


def new(
    folder: Annotated[
        Path, typer.Argument(metavar="NAME", help="Folder to make; its name is the job's, or the kind's.")
    ],
    *,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model (XGBoost UBJ or JSON): its features.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Events as rows (CSV, Parquet, JSON lines); it is copied.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of the history: what the model is to learn.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Of the history: each event's key. Else one that looks like it."),
    ] = None,
    plug: Annotated[
        Literal["source", "sink"] | None,
        typer.Option("--plug", help="Make a kind of source or sink, as a distribution of its own, instead of a job."),
    ] = None,
) -> None:
    """Make a project: job file, training, tests, a workflow for CI, and a README. Its tests pass at once.

    With a history, its label is learnt by `train.py`; with a model, there is nothing to train. With neither, the
    project is a small example.

    Example: [bold]gridscore new fraud --history payments.csv --label fraud[/]

    Example: [bold]gridscore new my-queue --plug source[/]
    """
    from importlib.metadata import version

    from gridscore.features.history_sample import sample_of
    from gridscore.job import project, template

    if folder.exists():
        raise UsageError(f"`{folder}` exists already.", "Name another folder, or remove it first.")
    if plug is not None:
        from gridscore.job.plugs import project as plugs

        if any(given is not None for given in (model, history, label, key)):
            raise UsageError("--plug makes no job.", "Leave out --model, --history, --label and --key.")
        _write(folder, plugs.files_of(folder.name, plug))
        _say_made(folder, "pip install -e '.[test]' && pytest")
        return
    if label is not None and (history is None or model is not None):
        raise UsageError("--label is for a history, without a model.", "Leave it out, or give --history FILE.")
    name = template.name_of(folder.name)
    job = template.shell(name)
    rows: list[dict[str, Any]] = []
    if history is not None:
        rows = list(sample_of(history))
    elif model is None:
        rows, label = project.example(), "fraud"
    if rows and model is None and label is None:
        raise UsageError(
            "Nothing says what the model is to learn.", "Name the column with --label, or give a model with --model."
        )
    columns = list(rows[0]) if rows else []
    for option, column in (("--label", label), ("--key", key)):
        if column is not None and column not in columns:
            raise UsageError(f"{option}: the history has no column `{column}`.", f"It has {', '.join(columns)}.")
    if model is not None:
        from gridscore.models import completed, version_in

        whole = completed(job, version_in(model, job.model.name))
        text, events = template.text_of_job(whole), [*rows, *([] if rows else [_event_of(whole)])]
    else:
        left = (label, key)
        shown = ({field: value for field, value in row.items() if field not in left} for row in rows)
        text, events = template.text_of_events(job, shown), rows
    key = key or _key_in(rows)
    copied = "" if not rows else history.name if history is not None else "history.csv"
    files = project.files_of(
        name, text, events, version=version("gridscore"), history=copied, label=label or "", key=key
    )
    if copied and history is None:
        files[copied] = _csv(rows)
    _write(folder, files, {copied: history, "model.ubj": model})
    _say_made(folder, "pytest")


def _write(folder: Path, files: Mapping[str, str], copied: Mapping[str, Path | None] = MappingProxyType({})) -> None:
    """Make the folder with these files, and with copies of others."""
    try:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        for path, file in copied.items():
            if file is not None:
                shutil.copyfile(file, folder / path)
    except OSError as error:
        raise UsageError(f"`{folder}` cannot be written: {error.strerror}.") from None


def _say_made(folder: Path, then: str) -> None:
    console.print(f"[bold green]{safe(folder)}[/] is made; its README.md says how to go on:", highlight=False)
    console.print(f"  cd {safe(folder)} && {safe(then)}", highlight=False)


def _event_of(job: Job) -> dict[str, Any]:
    """An event that has nothing unusual: what the tests score if there is no history."""
    samples = {"float": 1.5, "int": 1, "string": "a", "bool": True, "timestamp": "2026-01-31T12:00:00Z"}
    event: dict[str, Any] = {}
    for name, kind in job.schema_.items():
        event[kind.key(name)] = samples.get(str(kind.type).rstrip("?"))
    return event


def _key_in(rows: Sequence[dict[str, Any]]) -> str:
    """The first column whose texts or whole numbers are all different; empty if there is none."""
    for column in rows[0] if rows else ():
        values = [row[column] for row in rows]
        are_keys = all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
        if are_keys and len(set(values)) == len(values):
            return column
    return ""


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()
