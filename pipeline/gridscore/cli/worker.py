"""`gridscore worker`: scores for the submitted jobs until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore import leash
from gridscore.cli.logs import Format, LogFormat, is_json, relay
from gridscore.cli.metrics import Metrics, address_of, exposed
from gridscore.cli.options import AllowPythonInWorkers, Connection, modules_in, working
from gridscore.cli.output import errors, run, say
from gridscore.cli.signals import on_signals
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.scoring.processes import WorkerProcesses

_MAX_PROCESSES = 512


def worker(
    *,
    processes: Annotated[
        str | None,
        typer.Option("--processes", "-p", metavar="N|auto", help="How many worker processes; auto: one for each core."),
    ] = None,
    jobs: Annotated[str | None, typer.Option(metavar="A,B", help="Score only for these jobs; else for all.")] = None,
    lease: Annotated[
        float, typer.Option(min=2.0, max=600.0, help="Seconds after which a killed worker is replaced.")
    ] = 5.0,
    allow_python: AllowPythonInWorkers = None,
    metrics: Metrics = None,
    log_format: LogFormat = Format.TEXT,  # noqa: ARG001 -- the callback does it
    connection: Connection,
    leashed: Annotated[bool, typer.Option("--leashed", hidden=True)] = False,
) -> None:
    """Find submitted jobs and score for them; Ctrl-C or SIGTERM stops it cleanly, a second one at once.

    Nothing needs to be installed on the members, and a worker keeps nothing on disk: start it anywhere.

    With --processes, worker processes that die are started again, and none outlives the command.

    With --metrics and --processes, the first process serves at that port, the second at the next, and so on.

    Example: [bold]gridscore worker --processes auto[/]
    """
    only = [name for name in jobs.split(",") if name] if jobs else None
    modules = modules_in(allow_python)
    if processes is not None:
        count = _count(processes)
        address = address_of(metrics, processes=count)
        code = run(supervise(supervised(command_of(jobs, lease, connection, allow_python), count, address)))
        if code:
            raise typer.Exit(code)
        return
    address = address_of(metrics)
    gc.disable()  # until all is imported, or it would search that again and again
    from gridscore.scoring.process import import_xgboost, tune

    import_xgboost()
    tune()
    for log in map(logging.getLogger, ("gridscore.scoring", "gridscore.group", "gridscore.dead_letters")):
        if not log.isEnabledFor(logging.INFO):
            log.setLevel(logging.INFO)  # the log should say which job, revision and model version it takes
    run(_score(only, lease, connection, address, modules, leashed=leashed))


async def _score(
    only: list[str] | None,
    lease: float,
    connection: Connection,
    metrics: tuple[str, int] | None,
    modules: list[str],
    *,
    leashed: bool,
) -> None:
    """Be a worker until told to stop."""
    from gridscore.scoring import Worker
    from gridscore.scoring.processes import STOP_SECONDS, say_ready

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    stopping = signals = False

    def stop() -> None:
        nonlocal stopping
        if not stopping and task is not None:
            stopping = True
            task.cancel()

    def signalled() -> None:
        nonlocal signals
        if signals:
            # A second signal means now; the leases run out by themselves.
            os._exit(130)
        # The leash does not count: a service manager signals the parent, which lets go, and us at the same moment.
        signals = True
        stop()

    on_signals(lambda _name: signalled())
    if leashed:
        leash.hold(lambda: loop.call_soon_threadsafe(stop), STOP_SECONDS)
    try:
        async with working(connection) as grid:
            scoring = Worker(grid, only, lease_seconds=lease, times=metrics is not None, allow_python=modules)
            async with exposed(grid, metrics, worker=scoring):
                if leashed:
                    say_ready()
                errors.print(f"Worker {scoring.id} is looking for jobs." + ("" if leashed else " Ctrl-C stops it."))
                await scoring.run()
    except asyncio.CancelledError:
        if not stopping:
            raise
    errors.print("Worker stopped.")


def supervised(command: list[str], count: int, metrics: tuple[str, int] | None = None) -> WorkerProcesses:
    """Worker processes whose lines are shown; `supervise` runs them.

    `metrics`: where the first serves its metrics: each has a port of its own.
    """
    from gridscore.scoring.processes import WorkerProcesses

    def show(number: int, line: str) -> None:
        if is_json():  # records tell processes apart by themselves
            relay(line)
            return
        prefix = f"{number:>{len(str(count))}} | " if number else ""
        say(prefix + line)

    def own(number: int) -> list[str]:
        if metrics is None:
            return []
        host, port = metrics
        return ["--metrics", f"[{host}]:{port and port + number - 1}"]

    return WorkerProcesses(command, count, own=own, show=show, tell=partial(say, style="yellow"))


async def supervise(workers: WorkerProcesses) -> int:
    """Keep worker processes running until told to stop; returns the exit code."""
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            errors.print("Stopping; once more to stop at once.")
        workers.stop()

    on_signals(lambda _name: stop())
    started = count_text(workers.count, "worker process", "worker processes")
    errors.print(f"Starting {started}. Ctrl-C stops.")
    code = await workers.run()
    if told and not code:
        errors.print("All workers stopped.")
    return code


def command_of(jobs: str | None, lease: float, connection: Connection, allow_python: str | None = None) -> list[str]:
    """The command line of a worker process that is like this one."""
    # The same package as ours, not one that happens to lie in the working folder.
    own_path = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]  # noqa: PTH109 -- as the interpreter writes it
    verbose = ["--verbose"] if logging.getLogger().isEnabledFor(logging.DEBUG) else []
    command = [sys.executable, *own_path, "-m", "gridscore.cli", *verbose, "worker", "--leashed", "--lease", str(lease)]
    if is_json():
        command += ["--log-format", Format.JSON]
    members, cluster_name, settings, _ = connection
    given = {"--jobs": jobs, "--allow-python": allow_python, "--cluster-name": cluster_name, "--settings": settings}
    for option, value in given.items():
        if value is not None:
            command += [option, str(value)]
    for member in members or ():
        command += ["--members", member]
    return command


def _count(text: str) -> int:
    """How many processes. Raises UsageError if the text is neither a number of them nor `auto`."""
    from gridscore.errors import UsageError
    from gridscore.scoring.processes import core_count

    if text == "auto":
        return core_count()
    if text.isdecimal() and 1 <= int(text) <= _MAX_PROCESSES:
        return int(text)
    raise UsageError(
        f"--processes: `{text}` is not a number from 1 to {_MAX_PROCESSES}.", "Or say auto, for one on each core."
    )
