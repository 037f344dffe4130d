"""`gridscore load`: tables into a job's lookup maps, rows of a history into its event map."""

from __future__ import annotations

from itertools import islice
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, errors, print_json, run, visible
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

    from pipeline.job import Job
    from pipeline.worker.room import Waiting

_AT_ONCE = 5_000


def load(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)],
    *,
    lookups: Annotated[
        Path | None, typer.Option("--lookups", help="Directory with a CSV or Parquet file for each lookup.")
    ] = None,
    events: Annotated[Path | None, typer.Option("--events", help="Events as rows: CSV or Parquet.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="Column that makes the event's key; repeatable: joined by `|`.", metavar="COLUMN"),
    ] = None,
    max_wait: Annotated[
        float | None,
        typer.Option("--max-wait", min=0.0, metavar="SECONDS", help="Give up when a job has made no room for so long."),
    ] = None,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Put tables into the maps that a job reads: its lookups, its events, or both (lookups first).

    The files are those of `gridscore features`, and become the very entries that it computes with. Loading again
    writes the same entries again, which does no harm.

    Events wait, and say so, where they would overwrite some that a job has not scored yet.

    Example: [bold]gridscore load job.yaml --lookups lookups/ --events history.csv --key id[/]
    """
    from pipeline.features import tables
    from pipeline.job import load_job

    if lookups is None and events is None:
        raise UsageError("There is nothing to load.", "Give --lookups DIR, --events FILE --key COLUMN, or both.")
    if (events is None) != (not key):
        raise UsageError("Events need a key, and a key needs events.", "Give --events FILE --key COLUMN.")
    job = load_job(job_file)
    # Read everything before anything is put: a wrong file should not leave half a load behind.
    loads: list[tuple[str, int, Iterable[tuple[Any, bytes]]]] = []
    if lookups is not None:
        for name, lookup in job.lookups.items():
            frame = tables.read_lookup(tables.find_lookup(lookups, name), job, name)
            loads.append((lookup.map, len(frame), tables.lookup_entries(frame, job, name, f"lookup `{name}`")))
    if events is not None:
        history = tables.read_history(events, job)
        loads.append((job.events, len(history), _events(history, job, key or [], str(events))))

    counts = run(_put(loads, (members, cluster_name, settings), max_wait))
    if as_json:
        print_json(counts)
        return
    for name, count in counts.items():
        console.print(f"{name}: {count:,} entries", highlight=False)


def _events(history: pd.DataFrame, job: Job, key: list[str], source: str) -> Iterator[tuple[str, bytes]]:
    from pipeline.features import tables

    columns = tables.take_columns(history, key, source)
    keys = ("|".join(map(str, parts)) for parts in columns.itertuples(index=False, name=None))
    return zip(keys, tables.rows_as_json(history, job.schema_, source), strict=True)


async def _put(
    loads: list[tuple[str, int, Iterable[tuple[Any, bytes]]]], connection: tuple[Any, Any, Any], max_wait: float | None
) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.producer import Producer

    counts: dict[str, int] = {}
    async with connected(*connection) as grid:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[waiting]}", style="yellow", markup=False),
        )
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            for name, total, entries in loads:
                task = progress.add_task(visible(name), total=total, waiting="")

                def waits(waiting: Waiting | None, task: Any = task) -> None:
                    progress.update(task, waiting=visible(waiting or ""))

                producer, rest = Producer(grid, name, max_wait=max_wait, on_wait=waits), iter(entries)
                while chunk := list(islice(rest, _AT_ONCE)):
                    await producer.send(chunk)
                    progress.update(task, completed=producer.acknowledged)
                await producer.flush()
                progress.update(task, completed=producer.acknowledged)
                counts[name] = producer.acknowledged
    return counts
