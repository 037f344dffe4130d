"""Running sources and sinks from the command line: until their end or a signal, with a line for each on a terminal."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gridscore.cli.output import errors, run
from gridscore.cli.signals import on_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from gridscore.sinks.runner import SinkRunner
    from gridscore.sources.runner import SourceRunner

_SHOW_SECONDS = 0.25

_Runner = TypeVar("_Runner", bound="SourceRunner | SinkRunner")


class Line(NamedTuple):
    """What to show of one that runs."""

    figures: str  # what it has done
    trouble: str  # what is wrong; empty if nothing
    progress: tuple[int, int] | None = None  # what is done, and what there is to do; None if unknown


def run_until_told(main: Callable[[], Awaitable[None]], stop: Callable[[], bool]) -> int:
    """Run a coroutine until its end, Ctrl-C or SIGTERM.

    `stop`: called at the first signal; returns whether it then ends by itself. Else it is cancelled. Returns: the exit
    code: 130 after Ctrl-C, else 0.
    """
    signals: list[str] = []

    async def until_told() -> None:
        task = asyncio.current_task()

        def told(name: str) -> None:
            if signals:
                os._exit(130)  # a second signal means now; what is not committed comes again
            signals.append(name)
            if not stop() and task is not None:
                task.cancel()

        on_signals(told)
        try:
            await main()
        except asyncio.CancelledError:
            if not signals:
                raise

    run(until_told())
    return 130 if "SIGINT" in signals else 0


@asynccontextmanager
async def running(
    runners: Sequence[_Runner], line: Callable[[_Runner, float], Line]
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Their tasks, with a line for each on a terminal; with a bar and the time left for what has an end.

    Leaving it cancels what still runs.

    `line`: makes a line of one, and of its events a second.
    """
    tasks = [asyncio.create_task(each.run()) for each in runners]
    all_tasks = [*tasks, asyncio.create_task(_show(runners, line))]
    try:
        yield tasks
    finally:
        for task in all_tasks:
            task.cancel()
        await asyncio.gather(*all_tasks, return_exceptions=True)


async def _show(runners: Sequence[_Runner], line: Callable[[_Runner, float], Line]) -> None:
    from gridscore.cli.meter import Meter

    if not errors.is_terminal:
        return
    with Meter(errors, [each.name for each in runners]) as meter:
        while True:
            for index, each in enumerate(runners):
                meter.show(index, *line(each, meter.rate(index, each.stats.events)))
            await asyncio.sleep(_SHOW_SECONDS)
