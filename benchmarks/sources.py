"""`python -m benchmarks.sources`: how fast one process of each kind of source is; and from memory, as the limit.

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
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.plugs import Kinds, chosen, measure_in_turn, report_on, until
from gridscore.cli.bench import Heap, MemberCount, Rounds  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.errors import GridscoreError
from gridscore.leash import LeashedProcess
from gridscore.proving.bench.rounds import Meter, Run, figures
from gridscore.sources.runner import SourceRunner, runner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.job.plugs.base import SourceSettings
    from gridscore.sources.base import Source

LOADERS = {
    "memory": "benchmarks.source_loads:memory",
    "logfile": "benchmarks.source_loads:logfile",
    "http": "benchmarks.source_loads:http",
    "kafka": "benchmarks.source_loads:kafka",
    "mqtt": "benchmarks.source_loads:mqtt",
    "postgres": "benchmarks.source_loads:postgres",
}


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

    async def once(loader: Any, own: Path) -> Run:
        to = f"events.bench-{secrets.token_hex(4)}"
        try:
            async with loader(own, events, to) as load:
                return await _run(grid, pids, load, to, events, own / "feed.log")
        finally:
            await grid.destroy(to)

    runs, unavailable = await measure_in_turn(LOADERS, kinds, rounds, folder, once, progress)
    return {
        "events": events,
        "rounds": rounds,
        "members": len(pids),
        "sources": {kind: figures(found) for kind, found in runs.items()},
        "unavailable": unavailable,
    }


async def _run(grid: Grid, pids: Sequence[int], load: Load, to: str, events: int, log: Path) -> Run:
    runner = load.runner(grid, f"bench-{to.rpartition('-')[2]}")
    stats = runner.stats
    running = asyncio.create_task(runner.run())
    with contextlib.ExitStack() as stack:
        feeder: LeashedProcess | None = None
        try:
            await until(running, lambda: stats.events, lambda: stats.state == "running")
            if load.feed is not None:
                feeder = stack.enter_context(LeashedProcess(*load.feed, log))
            from_the_open = Meter(pids)
            await until(running, lambda: stats.events, lambda: stats.events > 0)
            meter, before = Meter(pids), stats.events
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


def main(
    kinds: Kinds = None,
    *,
    events: Annotated[int, typer.Option(min=1_000, max=900_000, help="Events to put.")] = 200_000,
    rounds: Rounds = 3,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure sources: events per second into the grid from one process, and its CPU per event.

    Starts members, servers and files of its own and ends them. Kinds whose server cannot be had are left out, and said.
    `memory` is a source that costs nothing: the limit of all others.

    Example: python -m benchmarks.sources logfile --events 200000
    """
    how = {"kinds": chosen(kinds, LOADERS), "events": events, "rounds": rounds}
    report_on(measure, how, members=members, heap=heap, as_json=as_json, side="source", unit="event")


if __name__ == "__main__":
    typer.run(main)
