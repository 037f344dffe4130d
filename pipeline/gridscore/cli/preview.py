"""`gridscore job preview`: events as they pass, stage by stage."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import aclosing
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowPython, ChosenModel, Connection, JobOrFile, working
from gridscore.cli.output import (
    console,
    errors,
    json_text,
    lookup_texts,
    run,
    safe,
    say,
    shorten,
    value_text,
    values_text,
)
from gridscore.cli.signals import on_signals
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.operations.preview import Passed

_LONGEST = 2_000  # characters of a line; `--json` has all


def preview(
    job: JobOrFile,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Events as rows: CSV, Parquet, JSON lines. Else the job's own."),
    ] = None,
    model: ChosenModel = None,
    lookups: Annotated[
        Path | None, typer.Option(help="Directory with a table for each lookup. Else the maps of the cluster.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Only events with this key.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="End after so many events.")] = None,
    oldest: Annotated[
        bool, typer.Option("--oldest", help="Begin with the oldest event that the journal has, not with the next one.")
    ] = False,
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")] = False,
) -> None:
    """Show what a job makes of each event: decoded, looked up, windows, features, score, decision, with microseconds.

    By the worker's own code, one event at a time, until Ctrl-C. It takes no lease and writes nothing: the job, and its
    workers, do not notice.

    Example: [bold]gridscore job preview card-fraud --key c0012[/]
    """
    from gridscore.operations.preview import of_file, of_journal
    from gridscore.operations.subject import is_file, subject_of

    if file is None and is_file(job):
        raise UsageError(
            "A job file has no events of its own.", "Give some with --input FILE, or name a submitted job."
        )
    if oldest and file is not None:
        raise UsageError("--oldest is for the events of a submitted job.", "Leave it out.")
    if lookups is not None and file is None:
        raise UsageError("--lookups is for the events of a file.", "Leave it out, or give --input FILE.")

    async def main() -> None:
        task = asyncio.current_task()
        on_signals(lambda _: task and task.cancel())
        async with subject_of(lambda: working(connection), job, [model], lookups) as subject:
            ((_, loaded),) = subject.sides
            if file is not None:
                passed = of_file(subject.job, loaded, subject.given, file, key)
            else:
                errors.print(f"Events of [bold]{safe(subject.job.events)}[/]; nothing is written. Ctrl-C ends.")
                passed = of_journal(subject, key=key, oldest=oldest, missed=_missed)
            await _show(passed, limit, as_json=as_json)

    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):  # Ctrl-C is the normal end
        run(main())


def _missed(count: int) -> None:
    say(f"… {count:,} events were overwritten before they were read", "dim")


async def _show(passed: Any, limit: int | None, *, as_json: bool) -> None:
    shown = 0
    async with aclosing(passed) as events:
        async for event in events:
            if as_json:
                sys.stdout.write(json_text(event.to_json()) + "\n")
                sys.stdout.flush()
            else:
                _print(event)
            shown += 1
            if shown == limit:
                return


def _print(event: Passed) -> None:
    where = (
        f"partition {event.partition}, sequence {event.sequence}" if event.partition >= 0 else f"row {event.sequence}"
    )
    console.print(f"[bold]{safe(shorten(event.key, 100))}[/]  {where}, {sum(event.micros.values()):,.0f} µs")
    for stage, text, micros in _lines(event):
        took = "" if micros is None else f"{micros:,.0f} µs"
        console.print(f"  {stage:<9} {took:>9}  {safe(shorten(text, _LONGEST))}")


def _lines(event: Passed) -> Iterator[tuple[str, str, float | None]]:
    micros = event.micros
    yield "raw", event.raw, None
    if event.decoded is not None:
        yield "decoded", values_text(event.decoded), micros.get("decode")
    for text in lookup_texts(event.lookups):
        yield "looked up", text, micros.get("fetch")
    if event.windows:
        yield "windows", values_text(event.windows), micros.get("windows")
    if event.features:
        yield "features", values_text(event.features), micros.get("features")
    if event.margin is not None:
        yield "margin", value_text(event.margin), None
    if event.result is not None:
        yield "score", json_text(event.result["score"]), micros.get("predict")
        what = event.result.get("decision")
        yield "decision", "none: the job has no decisions" if what is None else what, micros.get("encode")
    if event.rejected is not None:
        yield "rejected", f"{event.rejected['stage']}: {event.rejected['error']}", None
