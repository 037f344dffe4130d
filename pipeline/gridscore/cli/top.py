"""`gridscore top`: sources, jobs, workers and sinks, live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Connection, job_names, run_on
from gridscore.cli.output import console, json_text
from gridscore.cli.signals import on_signals
from gridscore.texts import clock_text, count_text, moment_text, with_moments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.cli.board import Scene
    from gridscore.grid import Grid
    from gridscore.operations.watcher import Watcher

_REFRESH_SECONDS = 1.0


def top(
    job: Annotated[
        str | None,
        typer.Argument(help="Only this job, its sources and its sinks.", autocompletion=job_names, show_default=False),
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
        from gridscore.operations.watcher import Watcher

        watcher = Watcher(grid, job)
        await watcher.first_look()
        screen = _Screen(grid, watcher)
        if as_json:
            await screen.print_json(once=once)
        elif once or not console.is_terminal:
            screen.print_once()
        else:
            await screen.show()

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):  # Ctrl-C is the normal end
        run_on(connection, main, tells_of_silence=True)


class _Screen:
    """Looks once a second, and shows what the last looks say."""

    def __init__(self, grid: Grid, watcher: Watcher) -> None:
        self._grid, self._watcher = grid, watcher

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
                    await self._watcher.look(_REFRESH_SECONDS, ended)
        await self._watcher.give_up()

    async def print_json(self, *, once: bool) -> None:
        """Print JSON, once or every second until a signal."""
        ended = asyncio.Event()
        on_signals(lambda _: ended.set())
        while True:
            sys.stdout.write(json_text(with_moments(self._json()), indent=2 if once else None) + "\n")
            sys.stdout.flush()
            if once:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_SECONDS):
                    await ended.wait()
            if ended.is_set():
                await self._watcher.give_up()
                return
            await self._watcher.look(_REFRESH_SECONDS, ended)

    def print_once(self) -> None:
        from gridscore.cli.board import board

        console.print(board(self._scene(), console.width), crop=False, soft_wrap=not console.is_terminal)

    def _frame(self) -> Any:
        from gridscore.cli.board import board

        return board(self._scene(), console.width, console.height, hint="q quits")

    def _scene(self) -> Scene:
        from gridscore.cli.board import Scene

        members = len(self._grid.members)
        cluster = f"{self._grid.settings.cluster_name} · {count_text(members, 'member')}"
        watcher = self._watcher
        return Scene(cluster, clock_text(), watcher.flow, watcher.history.findings(), watcher.silence)

    def _json(self) -> dict[str, Any]:
        import msgspec

        from gridscore.operations.flow import to_json

        at = moment_text()
        if (flow := self._watcher.flow) is None or (silence := self._watcher.silence):
            return {"at": at, "error": silence, "sources": [], "jobs": [], "sinks": [], "workers": []}
        lags = {status.record.name: status for status in flow.overview.jobs}
        workers = []
        for worker in flow.overview.workers:
            value = msgspec.to_builtins(worker)
            for name, figures in value["jobs"].items():
                figures["lag"] = lags[name].lag_of(worker.id) if name in lags else None
                figures["commit_age"] = worker.commit_age(name)
            workers.append(value)
        return {"at": at, "error": "", **to_json(flow, self._watcher.history.findings()), "workers": workers}


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
