"""`gridscore top`: sources, jobs, workers and sinks, live."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, run_on
from gridscore.cli.output import console, json_text
from gridscore.cli.signals import on_signals
from gridscore.errors import GridscoreError, JobError
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.cli.board import Scene
    from gridscore.grid import Grid
    from gridscore.operations.flow import Flow

_REFRESH_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
"""A look that takes longer is given up, and tried again."""

_WINDOW_SECONDS = 6.0
"""How far back findings look."""


def top(
    job: Annotated[
        str | None, typer.Argument(help="Only this job, its sources and its sinks.", show_default=False)
    ] = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a second, or just one with --once.")] = False,
) -> None:
    """Show jobs, workers, sources and sinks live: rates, lag, losses, and what is wrong. q or Ctrl-C ends it.

    Columns that matter less are left out where the terminal is narrow. In a pipe it prints once.

    Example: [bold]gridscore top[/]
    """

    async def main(grid: Grid) -> None:
        watcher = _Watcher(grid, job)
        await watcher.first_look()
        if as_json:
            await watcher.print_json(once=once)
        elif once or not console.is_terminal:
            watcher.print_once()
        else:
            await watcher.show()

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C is the normal end
        run_on(connection, main)


class _Watcher:
    """Looks once a second, and shows what the last looks say."""

    def __init__(self, grid: Grid, job: str | None) -> None:
        from gridscore.operations.flow import FlowObserver, History

        self._grid = grid
        self._observer = FlowObserver(grid, job)
        self._flow: Flow | None = None
        self._seen_at = ""
        self._history = History(_WINDOW_SECONDS)
        self._looking: asyncio.Task[Flow] | None = None
        self._asked_at = self._answered_at = time.monotonic()
        self._failure = ""

    async def first_look(self) -> None:
        """Look once; unlike later ones, it may fail.

        Raises:
            JobError: There is no such job.
            GridscoreError: The cluster does not answer.
        """
        await self._look(_ANSWER_SECONDS * 2)
        if self._flow is None:
            raise GridscoreError(self._failure or "The cluster does not answer.", "Are all its members well?")

    async def show(self) -> None:
        """Show it in the terminal until a key or a signal ends it."""
        from rich.live import Live

        ended = asyncio.Event()
        on_signals(lambda _: ended.set())
        with (
            _quiet(),
            _ended_by_key(ended),
            Live(self._frame(), console=console, screen=True, auto_refresh=False) as live,
        ):
            while not ended.is_set():
                live.update(self._frame(), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_SECONDS):
                        await ended.wait()
                if not ended.is_set():
                    await self._look(_REFRESH_SECONDS, ended)
        await self._give_up()

    async def print_json(self, *, once: bool) -> None:
        """Print JSON, once or every second until a signal."""
        ended = asyncio.Event()
        on_signals(lambda _: ended.set())
        while True:
            sys.stdout.write(json_text(self._json(), indent=2 if once else None) + "\n")
            sys.stdout.flush()
            if once:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_SECONDS):
                    await ended.wait()
            if ended.is_set():
                await self._give_up()
                return
            await self._look(_REFRESH_SECONDS, ended)

    def print_once(self) -> None:
        """Print it once."""
        from gridscore.cli.board import board

        console.print(board(self._scene(), console.width), crop=False, soft_wrap=not console.is_terminal)

    async def _look(self, seconds: float, ended: asyncio.Event | None = None) -> None:
        """Look, or wait for a look that is under way, so long at most."""
        from hazelcast.errors import HazelcastError

        if self._looking is None:
            self._asked_at = time.monotonic()
            self._looking = asyncio.create_task(self._observer.look())
        waiting: set[asyncio.Task[Any]] = {self._looking}
        if ended is not None:
            waiting.add(quitting := asyncio.create_task(ended.wait()))
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ended is not None:
            quitting.cancel()
        if not self._looking.done():
            if time.monotonic() - self._asked_at > _ANSWER_SECONDS:
                await self._give_up()
            return
        looking, self._looking = self._looking, None
        try:
            self._take(looking.result())
        except JobError as error:
            if self._flow is None:
                raise
            self._failure = error.message
        except (HazelcastError, GridscoreError) as error:
            self._failure = f"The cluster does not answer as it should: {error}"

    async def _give_up(self) -> None:
        if self._looking is not None:
            looking, self._looking = self._looking, None
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _take(self, flow: Flow) -> None:
        self._flow, self._failure = flow, ""
        self._answered_at, self._seen_at = time.monotonic(), _clock()
        self._history.add(flow)

    def _frame(self) -> Any:
        from gridscore.cli.board import board

        return board(self._scene(), console.width, console.height, hint="q quits")

    def _scene(self) -> Scene:
        from gridscore.cli.board import Scene

        members = len(self._grid.members)
        cluster = f"{self._grid.settings.cluster_name} · {count_text(members, 'member')}"
        return Scene(cluster, _clock(), self._flow, self._history.findings(), self._silence())

    def _silence(self) -> str:
        silent = time.monotonic() - self._answered_at
        if self._failure:
            return f"{self._failure} The figures are of {self._seen_at}; trying again."
        if silent > _ANSWER_SECONDS / 2:
            return f"No answer from the cluster for {silent:.0f} s. The figures are of {self._seen_at}; trying again."
        return ""

    def _json(self) -> dict[str, Any]:
        import msgspec

        from gridscore.operations.flow import to_json

        at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if (flow := self._flow) is None or (silence := self._silence()):
            return {"at": at, "error": silence, "sources": [], "jobs": [], "sinks": [], "workers": []}
        lags = {status.record.name: status for status in flow.overview.jobs}
        workers = []
        for worker in flow.overview.workers:
            value = msgspec.to_builtins(worker)
            for name, figures in value["jobs"].items():
                figures["lag"] = lags[name].lag_of(worker.id) if name in lags else None
                figures["commit_age"] = worker.commit_age(name)
            workers.append(value)
        return {"at": at, "error": "", **to_json(flow, self._history.findings()), "workers": workers}


def _clock() -> str:
    return dt.datetime.now().astimezone().strftime("%H:%M:%S")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lines of the log, which would spoil the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _ended_by_key(ended: asyncio.Event) -> Iterator[None]:
    """Ends with the key q, where there is a keyboard that can be asked for single keys."""
    try:
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (ImportError, OSError, ValueError, termios.error):  # Windows, or no terminal
        yield
        return
    import os

    def pressed() -> None:
        keys = os.read(keyboard, 64)
        if not keys or keys.lower().startswith(b"q"):
            ended.set()

    loop = asyncio.get_running_loop()
    tty.setcbreak(keyboard, termios.TCSANOW)
    try:
        loop.add_reader(keyboard, pressed)
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
