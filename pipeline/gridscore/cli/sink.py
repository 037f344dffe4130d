"""`gridscore sink`: runs sinks, which bring results to where applications act on them."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.logs import Format, LogFormat
from gridscore.cli.metrics import Metrics, address_of, exposed
from gridscore.cli.options import App, Connection, Json, ask, run_on, working
from gridscore.cli.output import console, one_line, print_json, print_table, say
from gridscore.cli.plug_run import Line, run_until_told, running
from gridscore.cli.plugs import PlugGroup, chosen, note_of_map
from gridscore.sinks.base import KINDS
from gridscore.texts import with_moments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.job.plugs.base import SinkSettings
    from gridscore.sinks.runner import SinkRunner


class _Sinks(PlugGroup):
    plugs = KINDS
    help_text = "Runs until Ctrl-C or SIGTERM. Start it several times, anywhere, and its processes share the work."

    def start(self, settings: Any, connection: Connection, metrics: str | None) -> None:
        _run({"": settings}, connection, metrics)


app = App(cls=_Sinks, no_args_is_help=True)


@app.command("run")
def run_(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Sinks of its section `sinks`; else all.")
    ] = None,
    *,
    metrics: Metrics = None,
    log_format: LogFormat = Format.TEXT,  # noqa: ARG001 -- the callback does it
    connection: Connection,
) -> None:
    """Run sinks of a job file, all in this process, until Ctrl-C or SIGTERM.

    Example: [bold]gridscore sink run job.yaml alerts[/]
    """
    from gridscore.job import load_job

    job = load_job(job_file)
    _run(chosen(job_file, job.name, "sink", job.sinks, names), connection, metrics)


@app.command("list")
def list_(*, connection: Connection, as_json: Json = False) -> None:
    """List the sinks, running or not: how far each has come, and its last error.

    The lag is what the journal holds beyond the committed offsets.

    Example: [bold]gridscore sink list --json[/]
    """
    from gridscore.operations.sink_status import sink_statuses

    found = ask(connection, sink_statuses)
    if as_json:
        print_json(with_moments([each.to_json() for each in found]))
        return
    columns = ("NAME", "KIND", "MAP", "STATE", "PROCESSES", "LAG", "RESULTS/S", "LOST", "DEAD LETTERS", "LAST ERROR")
    rows = []
    for each in found:
        what = (each.record.name, each.record.kind, each.record.map, each.state, len(each.processes))
        rows.append((*what, each.lag, each.rate, each.lost, each.dead_letters, one_line(each.error)))
    print_table(columns, rows, empty="There are no sinks.")


@app.command()
def forget(
    name: Annotated[str, typer.Argument(help="Name of the sink.", show_default=False)], *, connection: Connection
) -> None:
    """Forget how far a sink has come: the next time it starts over. Stop it first. Its dead letters stay.

    Example: [bold]gridscore sink forget alerts[/]
    """
    from gridscore.operations import sink_status as status

    run_on(connection, lambda grid: status.forget(grid, name))
    say(f"{name}: forgotten.", to=console)


def _run(sinks: Mapping[str, SinkSettings], connection: Connection, metrics: str | None) -> None:
    """Run sinks until told to stop."""
    address = address_of(metrics)
    for settings in sinks.values():
        KINDS.check(settings)
    runners: list[SinkRunner] = []
    code = run_until_told(lambda: _deliver(sinks, connection, address, runners), lambda: False)
    for each in runners:
        dead = f", {each.stats.dead:,} to the dead letters" if each.stats.dead else ""
        say(f"{each.name}: {each.stats.events:,} results delivered{dead}.")
    if code:
        raise typer.Exit(code)


async def _deliver(
    sinks: Mapping[str, SinkSettings],
    connection: Connection,
    metrics: tuple[str, int] | None,
    runners: list[SinkRunner],
) -> None:
    """Run sinks until cancelled; one that cannot go on stops the others, in good order."""
    from gridscore.job import Jobs
    from gridscore.sinks.runner import runner_of

    async with working(connection) as grid:
        runners += [runner_of(grid, settings, name or None) for name, settings in sinks.items()]
        results = {record.job.results for record in await Jobs(grid).all()}
        for each in runners:
            say(f"{each.name}: {each.map} to {each.kind}. Ctrl-C stops it.")
            if note := await note_of_map(grid, each.map, results):
                say(note)
        async with exposed(grid, metrics, sinks=runners), running(runners, _line) as tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()


def _line(runner: SinkRunner, rate: float) -> Line:
    stats = runner.stats
    dead = f", {stats.dead:,} dead letters" if stats.dead else ""
    figures = f"{stats.events:,} results, {rate:,.0f}/s{dead}, {stats.partitions} partitions"
    return Line(figures, stats.error)
