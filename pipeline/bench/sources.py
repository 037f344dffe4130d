"""How fast one process of each kind of source puts events into the grid; and the same from memory, as the limit.

A kind is measured with a load: a server or a file that has the events, and a source that reads them. A loader is

    @asynccontextmanager
    async def NAME(folder: Path, events: int, to: str) -> AsyncIterator[Load]:

and has a line in `LOADERS`. It makes the load in the folder, gives it, and ends whatever it has started. A loader whose
server cannot be had raises `UnavailableError`.

What is measured begins with the first confirmed events, so connecting and joining a group do not count, and ends with
the last. The source runs in this process; members, servers, and who posts, in others.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.bench.meter import Meter
from pipeline.bench.rounds import Run, destroy, figures
from pipeline.errors import GridscoreError
from pipeline.leash import LeashedProcess
from pipeline.sources.runner import SourceRunner, runner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from pipeline.grid import Grid
    from pipeline.job.plugs.base import SourceSettings
    from pipeline.sources.base import Source

LOADERS = {
    "memory": "pipeline.bench.plug_loads:memory",
    "logfile": "pipeline.bench.plug_loads:logfile",
    "http": "pipeline.bench.plug_loads:http",
    "kafka": "pipeline.bench.plug_loads:kafka",
    "mqtt": "pipeline.bench.plug_loads:mqtt",
    "postgres": "pipeline.bench.plug_loads:postgres",
}

STALLED_SECONDS = 60.0
_LOOK_SECONDS = 0.005


class UnavailableError(GridscoreError):
    """The server of a kind cannot be had on this machine."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a kind is measured with.

    Attributes:
        settings: Of the source that reads the events; or
        make: what makes the source, and to which map.
        feed: Module and arguments of a process to start when the source is open, that sends events to it.
    """

    settings: SourceSettings | None = None
    make: tuple[Callable[[], Source], str] | None = None
    feed: tuple[str, Sequence[str]] | None = None

    def runner(self, grid: Grid, name: str) -> SourceRunner:
        """A runner of its source."""
        if self.settings is not None:
            return runner_of(grid, self.settings, name)
        if self.make is None:
            raise GridscoreError("The load has no source.")
        make, to = self.make
        return SourceRunner(grid, name, make, kind="bench", to=to)


async def measure(
    grid: Grid,
    pids: Sequence[int],
    folder: Path,
    *,
    kinds: Collection[str],
    events: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure kinds of sources, in turn, several times.

    Args:
        grid: A connection to a cluster made for this.
        pids: Processes of the members, for their CPU.
        folder: For files; it must be empty.
        kinds: Of `LOADERS`.
        events: How many.
        rounds: How often each is measured.
        progress: Called with what is going on.

    Returns:
        Figures of each kind that could be measured, and why others could not.
    """
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    unavailable: dict[str, str] = {}
    for number in range(rounds):
        for kind in kinds:
            if kind in unavailable:
                continue
            progress(f"round {number + 1} of {rounds}: {kind}")
            own = folder / f"{kind}-{number}"
            own.mkdir()
            to = f"events.bench-{secrets.token_hex(4)}"
            try:
                async with loader(LOADERS, kind)(own, events, to) as load:
                    runs[kind].append(await _run(grid, pids, load, to, events, own / "feed.log"))
            except UnavailableError as error:
                unavailable[kind] = str(error)
            finally:
                await destroy(grid, to)
    return {
        "events": events,
        "rounds": rounds,
        "members": len(pids),
        "sources": {kind: figures(found) for kind, found in runs.items() if found},
        "unavailable": unavailable,
    }


def loader(loaders: Mapping[str, str], kind: str) -> Any:
    """What makes the load of a kind."""
    module, _, name = loaders[kind].partition(":")
    return getattr(importlib.import_module(module), name)


async def _run(grid: Grid, pids: Sequence[int], load: Load, to: str, events: int, log: Path) -> Run:
    runner = load.runner(grid, f"bench-{to.rpartition('-')[2]}")
    stats, meter = runner.stats, Meter([], pids)
    running = asyncio.create_task(runner.run())
    with contextlib.ExitStack() as stack:
        feeder: LeashedProcess | None = None
        try:
            await until(running, lambda: stats.events, lambda: stats.state == "running")
            if load.feed is not None:
                feeder = stack.enter_context(LeashedProcess(*load.feed, log))
            from_the_open = Meter([], pids)
            await until(running, lambda: stats.events, lambda: stats.events > 0)
            meter.begin()
            before = stats.events
            if before > events // 2:  # so few that most are there at the first look
                meter, before = from_the_open, 0
            await until(running, lambda: stats.events, lambda: stats.events + stats.poison >= events)
            run = Run.of(stats.events - before, meter)
        except GridscoreError as error:
            if feeder is not None:
                raise GridscoreError(f"{error}\nWhoever sends events said:\n{feeder.last_lines()}") from None
            raise
        finally:
            runner.stop()
            await asyncio.gather(running, return_exceptions=True)
    if stats.poison:
        raise GridscoreError(f"{stats.poison:,} of {events:,} went to the dead letters: nothing was measured.")
    return run


async def until(running: asyncio.Task[None], done: Callable[[], int], condition: Callable[[], bool]) -> None:
    """Wait for something, as long as a source or a sink gets on.

    Args:
        running: Runs it.
        done: How much it has done.
        condition: What to wait for.

    Raises:
        GridscoreError: It has ended, or does not get on.
    """
    loop = asyncio.get_running_loop()
    last, at = -1, loop.time()
    while not condition():
        if running.done():
            running.result()
            if condition():
                return
            raise GridscoreError(f"It ended after {done():,}.")
        if done() != last:
            last, at = done(), loop.time()
        elif loop.time() - at > STALLED_SECONDS:
            raise GridscoreError(f"Nothing has moved for {STALLED_SECONDS:g} s, after {last:,}.")
        await asyncio.sleep(_LOOK_SECONDS)
