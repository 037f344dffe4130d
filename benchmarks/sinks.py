"""`python -m benchmarks.sinks`: how fast one process of each kind of sink delivers; and to nowhere, as the limit.

The result map is filled before, as a worker fills it, and every sink begins at its oldest result. A kind is measured
with a load: a server or a folder, and a sink that delivers there. A loader is

    @asynccontextmanager
    async def NAME(folder: Path, count: int, results: str) -> AsyncIterator[Load]:

and has a line in `LOADERS`. It makes the load in the folder, gives it, and ends whatever it has started. A loader whose
server cannot be had raises `UnavailableError`.

What is measured begins when the process has all partitions and its first delivery is done, so connecting and joining
the group do not count, and ends with the last. The sink runs in this process; members and servers in others.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from benchmarks.plugs import Kinds, chosen, measure_in_turn, report_on, until
from gridscore.cli.bench import Heap, MemberCount, Rounds  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.errors import GridscoreError
from gridscore.proving.bench.rounds import Meter, Run, figures, put_events
from gridscore.sinks.runner import SinkRunner, runner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.job.plugs.base import SinkSettings
    from gridscore.sinks.base import Sink

LOADERS = {
    "nowhere": "benchmarks.sink_loads:nowhere",
    "postgres": "benchmarks.sink_loads:postgres",
    "postgres-typed": "benchmarks.sink_loads:postgres_typed",
    "kafka": "benchmarks.sink_loads:kafka",
    "kafka-transactions": "benchmarks.sink_loads:kafka_transactions",
    "files": "benchmarks.sink_loads:files",
    "files-jsonl": "benchmarks.sink_loads:files_jsonl",
    "webhook": "benchmarks.sink_loads:webhook",
    "webhook-batches": "benchmarks.sink_loads:webhook_batches",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What a kind is measured with.

    Attributes:
        settings: Of the sink.
        make: Makes the sink, instead of what the settings say.
        most: Results to deliver at most, for a kind that would take minutes for all.
    """

    settings: SinkSettings
    make: Callable[[], Sink] | None = None
    most: int | None = None

    def runner(self, grid: Grid, name: str) -> SinkRunner:
        """A runner of its sink."""
        if self.make is not None:
            return SinkRunner(grid, name, "bench", self.settings, self.make)
        return runner_of(grid, self.settings, name)


async def measure(
    grid: Grid,
    pids: Sequence[int],
    folder: Path,
    *,
    kinds: Collection[str],
    count: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure kinds of sinks, in turn, several times.

    Args:
        grid: A connection to a cluster made for this.
        pids: Processes of the members, for their CPU.
        folder: For files; it must be empty.
        kinds: Of `LOADERS`.
        count: Results to deliver.
        rounds: How often each is measured.
        progress: Called with what is going on.

    Returns:
        Figures of each kind that could be measured, and why others could not.

    Raises:
        GridscoreError: A sink could not be measured.
    """
    results = f"results.bench-{secrets.token_hex(4)}"

    async def once(loader: Any, own: Path) -> Run:
        async with loader(own, count, results) as load:
            return await _run(grid, pids, load, count)

    try:
        await put_events(
            grid, results, _results(count), lambda done: progress(f"putting {done:,} of {count:,} results")
        )
        runs, unavailable = await measure_in_turn(LOADERS, kinds, rounds, folder, once, progress)
    finally:
        await grid.destroy(results)
    return {
        "results": count,
        "rounds": rounds,
        "members": len(pids),
        "sinks": {kind: _of_results(figures(found)) for kind, found in runs.items()},
        "unavailable": unavailable,
    }


def _results(count: int) -> Iterator[tuple[str, bytes]]:
    """Keys and JSON texts of about 180 bytes, as a job writes them whose results include two fields of the event."""
    draw = random.Random(6)
    encode, now = msgspec.json.encode, time.time_ns() // 1_000_000
    for number in range(count):
        score = draw.random()
        yield (
            f"e{number}",
            encode(
                {
                    "score": round(score, 8),
                    "decision": "decline" if score > 0.9 else "approve",
                    "sequence": number // 271,
                    "epoch": 1,
                    "version": 3,
                    "model": "bench-card",
                    "scored_at": now + number // 50,
                    "amount": round(draw.lognormvariate(3, 1), 2),
                    "user": f"u{draw.randrange(10_000)}",
                }
            ),
        )


def _of_results(found: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("event", "result"): value for name, value in found.items()}


async def _run(grid: Grid, pids: Sequence[int], load: Load, count: int) -> Run:
    wanted = min(count, load.most or count)
    runner = load.runner(grid, f"bench-{secrets.token_hex(4)}")
    stats = runner.stats
    running = asyncio.create_task(runner.run())
    try:
        await until(running, lambda: stats.events, lambda: len(runner.group.held) > 0)
        from_the_first_partition = Meter(pids)
        everywhere = grid.partition_count
        await until(running, lambda: stats.events, lambda: len(runner.group.held) == everywhere and stats.events > 0)
        meter, before = Meter(pids), stats.events
        if before > wanted // 2:  # so quick that most is done while partitions come
            meter, before = from_the_first_partition, 0
        await until(running, lambda: stats.events, lambda: stats.events >= wanted)
        run = Run.of(stats.events - before, meter)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if stats.dead or stats.lost:
        raise GridscoreError(f"{stats.dead:,} dead letters, {stats.lost:,} lost: nothing was measured.")
    return run


def main(
    kinds: Kinds = None,
    *,
    results: Annotated[int, typer.Option(min=1_000, max=900_000, help="Results to deliver.")] = 200_000,
    rounds: Rounds = 3,
    members: MemberCount = 1,
    heap: Heap = "2g",
    as_json: Json = False,
) -> None:
    """Measure sinks: results per second from a result map by one process, and its CPU per result.

    Starts members, servers and files of its own and ends them. Kinds whose server cannot be had are left out, and said.
    `nowhere` is a sink that costs nothing: the limit of all others. `webhook` posts one by one, and 20,000 at most.

    Example: python -m benchmarks.sinks postgres kafka --rounds 5
    """
    how = {"kinds": chosen(kinds, LOADERS), "count": results, "rounds": rounds}
    report_on(measure, how, members=members, heap=heap, as_json=as_json, side="sink", unit="result")


if __name__ == "__main__":
    typer.run(main)
