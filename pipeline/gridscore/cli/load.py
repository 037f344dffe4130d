"""`gridscore load`: tables into a job's lookup maps, rows of a history, a file or a query into any map."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, Json, map_names, run_on, valid, working
from gridscore.cli.output import console, print_json, progress_bar, run, visible
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.progress import Progress, ProgressColumn, TaskID

    from gridscore.features.cells import CellKind
    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.producer.room import Waiting
    from gridscore.sources.loading import Loaded

_AT_ONCE = 5_000
_KINDS = ("string", "int", "float", "bool")


def load(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB]", help="The job file; not needed with --to.", show_default=False)
    ] = None,
    *,
    lookups: Annotated[Path | None, typer.Option(help="Directory with a CSV or Parquet file for each lookup.")] = None,
    events: Annotated[Path | None, typer.Option(help="Events as rows: CSV, Parquet or JSON lines.")] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE", help="Rows, however many: CSV, Parquet or JSON lines; repeatable."),
    ] = None,
    query: Annotated[str | None, typer.Option(metavar="SQL", help="Rows of a query; with --database.")] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A PostgreSQL database, postgresql://…; ${NAME} is taken from the environment."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="MAP", autocompletion=map_names, help="Map for the rows of --from or --query.")
    ] = None,
    lookup: Annotated[
        str | None, typer.Option(metavar="NAME", help="The same: map and key of a lookup of the job.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Column that makes the key; repeatable: joined by `|`.", metavar="COLUMN")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=TYPE",
            help="What a column of CSV holds, where it should not be guessed: string, int, float or bool; repeatable.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last load of this file or query ended.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="ROWS", help="Put at most this many rows.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read, and count them.")
    ] = False,
    max_wait: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give up when a job has made no room for this long, such as 30s.")
    ] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Put tables into the maps that a job reads: its lookups, its events, or both (lookups first); or into any map.

    --lookups and --events take the files of `gridscore features`, and put the very entries that it computes with. What
    --from and --query load may be of any size, and can be resumed after what the cluster has confirmed. Loading again
    writes the same entries again, which does no harm.

    Loading waits, and says so, rather than overwrite events that a job has not scored yet.

    Example: [bold]gridscore load job.yaml --lookups lookups/ --events history.csv --key id[/]

    Example: [bold]gridscore load --from clicks.jsonl --to events.clicks --key id --resume[/]
    """
    from gridscore.features.cells import JSON_LINES
    from gridscore.job import load_job
    from gridscore.job.types import Duration, seconds_of

    patience = None if max_wait is None else seconds_of(valid(Duration, "--max-wait", max_wait))
    job = None if job_file is None else load_job(job_file)
    if events is not None and events.name.lower().endswith(JSON_LINES):
        rows, events = [*(rows or []), events], None
    if job is not None and not job.is_complete:
        from gridscore.client import Client

        partial = job
        job = run_on(connection, lambda grid: Client(grid).completed(partial))
    if rows or query is not None:
        if lookups is not None or events is not None:
            raise UsageError("--from and --query go without --lookups and --events.", "Load one after the other.")
        target = _target(job, to, lookup, key)
        plan = _Plan(rows or [], query, database, replace(target, kinds={**target.kinds, **_kinds(types)}))
        how = {"limit": limit, "skip_bad": skip_bad, "max_wait": patience}
        counts = run(_put_rows(plan, connection, resume, how))
    else:
        if given := [name for name, value in (("--to", to), ("--lookup", lookup), ("--database", database)) if value]:
            raise UsageError(f"{given[0]} needs rows to load.", "Give --from FILE or --query SQL.")
        if resume or limit is not None or skip_bad:
            raise UsageError("--resume, --limit and --skip-bad are for --from and --query.", "Leave them out.")
        counts = run(_put(_tables(job, lookups, events, key), connection, patience))
    if as_json:
        print_json(counts)
        return
    for name, count in counts.items():
        if isinstance(count, int):
            console.print(f"{name}: {count:,} entries")
            continue
        more = f", {count['passed']:,} skipped as loaded before" if count["passed"] else ""
        more += f", {count['skipped']:,} left out that cannot be read" if count["skipped"] else ""
        console.print(f"{name}: {count['rows']:,} entries{more}")


# ---------------------------------------------------------------------- whole tables, checked before anything is put


def _tables(
    job: Job | None, lookups: Path | None, events: Path | None, key: list[str] | None
) -> list[tuple[str, int, Iterable[tuple[Any, bytes]]]]:
    from gridscore.features import tables
    from gridscore.features.lookup_table import newest

    if lookups is None and events is None:
        raise UsageError(
            "There is nothing to load.", "Give --lookups DIR, --events FILE --key COLUMN, --from FILE or --query SQL."
        )
    if (events is None) != (not key):
        raise UsageError("Events need a key, and a key needs events.", "Give --events FILE --key COLUMN.")
    if job is None:
        raise UsageError("--lookups and --events are those of a job.", "Give its file: gridscore load JOB …")
    # Read everything first: a wrong file should not leave half a load behind.
    loads: list[tuple[str, int, Iterable[tuple[Any, bytes]]]] = []
    if lookups is not None:
        for name, lookup in job.lookups.items():
            frame = tables.read_lookup(tables.find_lookup(lookups, name), job, name)
            entries: Iterable[tuple[Any, bytes]] = tables.lookup_entries(frame, job, name, f"lookup `{name}`")
            if lookup.valid_from is not None:
                entries = newest(lookup, entries)
            loads.append((lookup.map, len(frame), entries))
    if events is not None:
        history = tables.read_history(events, job, key or [])
        keys, texts = (
            tables.event_keys(history, key or [], str(events), job),
            tables.rows_as_json(history, job.schema_, str(events)),
        )
        loads.append((job.events, len(history), zip(keys, texts, strict=True)))
    return loads


async def _put(
    loads: list[tuple[str, int, Iterable[tuple[Any, bytes]]]], connection: Connection, max_wait: float | None
) -> Any:
    from gridscore.producer.producer import Producer

    counts: dict[str, int] = {}
    async with working(connection) as grid:
        with _progress() as progress:
            for name, total, entries in loads:
                task = progress.add_task(visible(name), total=total, waiting="")
                waits = partial(_show_waiting, progress, task)
                producer, rest = Producer(grid, name, max_wait=max_wait, on_wait=waits), iter(entries)
                while chunk := list(islice(rest, _AT_ONCE)):
                    await producer.send(chunk)
                    progress.update(task, completed=producer.acknowledged)
                await producer.flush()
                progress.update(task, completed=producer.acknowledged)
                counts[name] = producer.acknowledged
    return counts


def _progress(count: ProgressColumn | None = None) -> Progress:
    from rich.progress import TextColumn

    return progress_bar(count, TextColumn("{task.fields[waiting]}", style="yellow", markup=False))


def _show_waiting(progress: Progress, task: TaskID, waiting: Waiting | None) -> None:
    progress.update(task, waiting=visible(waiting or ""))


# ---------------------------------------------------------------------- rows, one after the other


@dataclass(frozen=True, slots=True)
class _Target:
    """Where rows go, what makes their keys, and what their columns hold."""

    map: str
    key: tuple[str, ...]
    separator: str
    kinds: Mapping[str, CellKind]
    required: tuple[str, ...] = ()
    parts: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    values: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)

    @property
    def how(self) -> dict[str, Any]:
        """How rows become entries."""
        return {name: getattr(self, name) for name in ("separator", "required", "parts", "values")}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is loaded."""

    files: list[Path]
    query: str | None
    database: str | None
    target: _Target

    def __post_init__(self) -> None:
        if self.files and self.query is not None:
            raise UsageError("--from and --query are two things to load.", "Load one after the other.")
        if (self.query is None) != (self.database is None):
            raise UsageError("--query and --database belong together.", "Give both.")
        if self.query is not None:
            from gridscore.sources.base import KINDS

            KINDS["postgres"].plug_class()  # report a missing library at once


def _target(job: Job | None, to: str | None, lookup: str | None, key: list[str] | None) -> _Target:
    from gridscore.job.types import MapName

    if to is not None and lookup is not None:
        raise UsageError("--to and --lookup are both given.", "Give one of them.")
    if lookup is not None:
        if job is None or lookup not in job.lookups:
            known = ", ".join(f"`{name}`" for name in job.lookups) if job is not None else ""
            raise UsageError(
                f"There is no lookup `{lookup}`.",
                f"The job has {known or 'none'}." if job is not None else "Give the job file: gridscore load JOB …",
            )
        return _lookup_target(job, lookup)
    if to is None and job is None:
        raise UsageError("Where should the rows go?", "Give --to MAP, or the file of the job whose events they are.")
    if not key:
        raise UsageError("Rows need a key.", "Give --key COLUMN; repeat it for a key of several columns.")
    for name, each in job.lookups.items() if job is not None else ():
        if each.map == to:
            raise UsageError(
                f"`{to}` is a lookup map of the job: its keys are what the lookup `{name}` says.",
                f"Give --lookup {name} instead of --to and --key.",
            )
    if job is None or (to is not None and to != job.events):
        return _Target(valid(MapName, "--to", to or ""), tuple(key), "|", {})
    from gridscore.features.tables import field_values, kinds_of

    fields = job.schema_
    # Fields of nested objects are not columns of JSON lines.
    flat = {name: kind for name, kind in fields.items() if len(kind.path(name)) == 1}
    required = tuple(kind.key(name) for name, kind in flat.items() if not kind.optional)
    return _Target(job.events, tuple(key), "|", kinds_of(fields), required, values=field_values(fields))


def _lookup_target(job: Job, name: str) -> _Target:
    from gridscore.features.tables import field_values, key_part, kinds_of
    from gridscore.job.check import compile_keys
    from gridscore.job.types import Type

    lookup = job.lookups[name]
    nodes = compile_keys(lookup, job.schema_)
    kinds: dict[str, CellKind] = kinds_of(lookup.fields)
    parts = {}
    for column, node in zip(lookup.key_columns, nodes, strict=True):
        parts[column] = key_part(node, single=len(nodes) == 1)
        if node.type != Type.NUMBER:
            kinds[column] = "string"
        else:
            kinds.setdefault(column, "number")
    values = field_values(lookup.fields)
    return _Target(lookup.map, tuple(lookup.key_columns), lookup.separator, kinds, parts=parts, values=values)


def _kinds(texts: list[str] | None) -> dict[str, CellKind]:
    kinds: dict[str, Any] = {}
    for text in texts or []:
        name, _, kind = text.rpartition("=")
        if not name or kind not in _KINDS:
            raise UsageError(f"--types: `{text}` is not COLUMN=TYPE.", f"Types are {', '.join(_KINDS)}.")
        kinds[name] = kind
    return kinds


async def _put_rows(plan: _Plan, connection: Connection, resume: bool, how: Mapping[str, Any]) -> Any:
    from rich.progress import TextColumn

    from gridscore.sources.loading import Load
    from gridscore.sources.tables import TableFile

    target = plan.target
    files: list[TableFile | None] = [
        TableFile(path, target.key, kinds=target.kinds, **target.how) for path in plan.files
    ]
    counts: dict[str, Any] = {}
    async with working(connection) as grid:
        with _progress(TextColumn("{task.fields[rows]} rows")) as progress:
            for file in files or [None]:
                name = target.map if file is None or len(files) == 1 else str(file.path)
                task = progress.add_task(visible(name), total=None, waiting="", rows="0")

                def shows(loaded: Loaded, task: Any = task) -> None:
                    total = loaded.size or None
                    progress.update(task, completed=loaded.done, total=total, rows=f"{loaded.rows:,}")

                waits = partial(_show_waiting, progress, task)
                load = Load(grid, target.map, **how, on_progress=shows, on_wait=waits)
                if file is not None:
                    loaded = await load.file(file, resume=resume)
                else:
                    loaded = await _put_query(grid, plan, load, resume=resume)
                counts[name] = {"rows": loaded.rows, "passed": loaded.passed, "skipped": loaded.skipped}
    return counts


async def _put_query(grid: Grid, plan: _Plan, load: Any, *, resume: bool) -> Any:
    from gridscore.sources.postgres.query import QueryRows

    target = plan.target
    rows = QueryRows(grid, plan.query or "", plan.database or "", target.map, target.key, **target.how)
    async with rows:
        return await load.query(plan.query or "", rows.chunks(), resume=resume)
