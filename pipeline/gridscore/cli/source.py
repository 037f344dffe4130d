"""`gridscore source`: runs sources, which put what they read into event maps."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.logs import Format, LogFormat
from gridscore.cli.metrics import Metrics, address_of, exposed
from gridscore.cli.options import App, Connection, Json, ask, run_on, working
from gridscore.cli.output import console, one_line, print_json, print_table, say
from gridscore.cli.plug_run import Line, run_until_told, running
from gridscore.cli.plugs import PlugGroup, chosen, note_of_map
from gridscore.errors import UsageError
from gridscore.sources.base import KINDS
from gridscore.texts import with_moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.job import Job
    from gridscore.job.plugs.base import SourceSettings
    from gridscore.sources.runner import SourceRunner
    from gridscore.sources.status import SourceRecord

_ROWS = "postgres"  # whose maps are lookups, as a rule


class _Sources(PlugGroup):
    plugs = KINDS
    help_text = "Runs until its end, Ctrl-C or SIGTERM."

    def start(self, settings: Any, connection: Connection, metrics: str | None) -> None:
        _run({"": settings}, connection, metrics)


app = App(cls=_Sources, no_args_is_help=True)


@app.command("run")
def run_(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Sources of its section `sources`; else all.")
    ] = None,
    *,
    metrics: Metrics = None,
    log_format: LogFormat = Format.TEXT,  # noqa: ARG001 -- the callback does it
    connection: Connection,
) -> None:
    """Run sources of a job file, all in this process, until their end, Ctrl-C or SIGTERM.

    Example: [bold]gridscore source run job.yaml clicks[/]
    """
    from gridscore.job import load_job

    job = load_job(job_file)
    _run(chosen(job_file, job.name, "source", job.sources, names), connection, metrics)


@app.command("list")
def list_(*, connection: Connection, as_json: Json = False) -> None:
    """List the sources that run, on any machine, and for a day those that failed and do not run again.

    Example: [bold]gridscore source list --json[/]
    """
    import msgspec

    from gridscore.sources.status import source_records

    found = ask(connection, source_records)
    if as_json:
        print_json(with_moments([msgspec.structs.asdict(each) for each in found]))
        return
    columns = ("NAME", "KIND", "MAP", "HOST", "PID", "STATE", "EVENTS", "EVENTS/S", "POISON", "WAITED s", "LAST ERROR")
    rows = [
        (s.name, s.kind, s.map, s.host, str(s.pid), s.state, s.events, s.rate, s.poison, s.waited, _trouble(s))
        for s in found
    ]
    print_table(columns, rows, empty="No source is running.")


@app.command()
def forget(
    name: Annotated[str, typer.Argument(help="Name of the source.", show_default=False)], *, connection: Connection
) -> None:
    """Forget the positions that a source keeps in the grid, and its last error: the next time it starts over.

    Stop it first. What is kept elsewhere, such as the offsets of Kafka's consumer groups, stays.

    Example: [bold]gridscore source forget access-log[/]
    """
    from gridscore.sources import status

    count, failed = run_on(connection, lambda grid: status.forget(grid, name))
    and_error = " and its last error" if failed else ""
    done = f"{count:,} positions{and_error} forgotten" if count or failed else "nothing was kept of such a source"
    say(f"{name}: {done}.", to=console)


def _trouble(source: SourceRecord) -> str:
    return one_line(source.waiting if source.state == "paused" else source.error)


def _run(sources: Mapping[str, SourceSettings], connection: Connection, metrics: str | None) -> None:
    """Run sources until all have ended, or told to stop."""
    address = address_of(metrics)
    for settings in sources.values():
        KINDS.check(settings)
    # Its log lines are rare, and worth reading.
    logging.getLogger("gridscore.sources").setLevel(min(logging.INFO, logging.getLogger().level))
    runners: list[SourceRunner] = []

    def stop() -> bool:
        for each in runners:
            each.stop()
        return bool(runners)  # there are none while it connects

    code = run_until_told(lambda: _read(sources, connection, address, runners), stop)
    for each in runners:
        stats = each.stats
        poison = f", {stats.poison:,} to the dead letters" if stats.poison else ""
        say(f"{each.name}: {stats.events:,} events{poison}.")
    if code:
        raise typer.Exit(code)


async def _read(
    sources: Mapping[str, SourceSettings],
    connection: Connection,
    metrics: tuple[str, int] | None,
    runners: list[SourceRunner],
) -> None:
    """Run sources; one that cannot go on stops the others, in good order."""
    from gridscore.grid.capacity import journal_capacity
    from gridscore.job import Jobs
    from gridscore.job.life import OVER
    from gridscore.sources.runner import runner_of

    async with working(connection) as grid:
        runners += [runner_of(grid, settings, name or None) for name, settings in sources.items()]
        records = await Jobs(grid).all()
        for each, settings in zip(runners, sources.values(), strict=True):
            for record in records:
                if record.state not in OVER:
                    _check_keys(record.job, settings, each.name)
        events = {record.job.events for record in records}
        for each in runners:
            say(f"{each.name}: {each.stats.kind} to {each.stats.map}. Ctrl-C stops it.")
            if note := await note_of_map(grid, each.stats.map, events):
                say(note)
            if each.stats.kind != _ROWS and await journal_capacity(grid, each.stats.map) is None:
                say(f"{each.stats.map} has no event journal: it can be looked up, and no job can score it.")
        async with exposed(grid, metrics, sources=runners), running(runners, _line) as tasks:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if pending:
                for each in runners:
                    each.stop()
                await asyncio.wait(pending)
            for task in (*done, *pending):
                task.result()


def _check_keys(job: Job, settings: SourceSettings, name: str) -> None:
    try:
        job.require_keys_of(settings, name)
    except ValueError as error:
        raise UsageError(f"{str(error)[0].upper()}{str(error)[1:]}.") from None


def _line(runner: SourceRunner, rate: float) -> Line:
    stats = runner.stats
    poison = f", {stats.poison:,} dead letters" if stats.poison else ""
    trouble = stats.waiting or (stats.error if stats.state == "interrupted" else "")
    return Line(f"{stats.events:,} events, {rate:,.0f}/s{poison}", trouble, runner.progress)
