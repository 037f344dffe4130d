"""A process that scores one map's events into another map, until it is ended: the least that does the work.

What it does not do is what it is there for: whoever reads it sees what leases, offsets, dead letters, loss accounting
and fencing are paid with. Its arguments: cluster name, events map, results map, `oldest` or `latest`, the folder of the
work, addresses of members.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.features import Work
from gridscore.grid import GridSettings, connect
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.scoring.process import tune

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.grid.wire import Page

READY = "reading"
"""What it prints when it reads all partitions."""

_PAGE_EVENTS = 512
_BATCH_EVENTS = 4_096
_READ_AHEAD_EVENTS = 16_384
_UNANSWERED_WRITES = 2_048


class Loop:
    """Reads every partition ahead, scores what has arrived, writes it, and so on.

    Args:
        grid: The connection.
        events: Name of the map of events.
        results: Name of the map of results.
        work: Model and lookups.
    """

    def __init__(self, grid: Grid, events: str, results: str, work: Work) -> None:
        self._grid = grid
        self._journal = Journal(grid, events)
        self._writer = MapWriter(grid, results)
        self._work = work
        self._arrived: deque[tuple[int, Page]] = deque()
        self._waiting = 0
        self._held: dict[int, int] = {}
        self._unanswered = 0
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self, begin: str) -> None:
        """Score from the `oldest` events on, or from the `latest`, until something fails."""
        await self._writer.prepare()
        bounds = await asyncio.gather(*(self._journal.bounds(p) for p in range(self._grid.partition_count)))
        for partition, (oldest, newest) in enumerate(bounds):
            self._read(partition, oldest if begin == "oldest" else newest + 1)
        print(READY, flush=True)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._arrived and self._unanswered < _UNANSWERED_WRITES:
                self._score()
                await asyncio.sleep(0)  # the event loop sends, and receives
            if self._failure is not None:
                raise self._failure

    def _read(self, partition: int, position: int) -> None:
        read = self._journal.read(partition, position, _PAGE_EVENTS)
        read.add_done_callback(partial(self._came, partition, position))

    def _came(self, partition: int, position: int, read: asyncio.Future[Page | None]) -> None:
        try:
            page = read.result()
        except Exception as error:  # noqa: BLE001 -- `run` raises it
            self._failure = error
            self._wake.set()
            return
        if page is None:
            self._read(partition, position)
            return
        self._arrived.append((partition, page))
        self._waiting += len(page.values)
        if self._waiting < _READ_AHEAD_EVENTS:
            self._read(partition, page.next)
        else:
            self._held[partition] = page.next
        self._wake.set()

    def _score(self) -> None:
        pages: list[tuple[int, Page]] = []
        texts: list[bytes] = []
        while self._arrived and len(texts) < _BATCH_EVENTS:
            partition, page = self._arrived.popleft()
            pages.append((partition, page))
            texts += page.values
        self._waiting -= len(texts)
        if self._held and self._waiting < _READ_AHEAD_EVENTS:
            held, self._held = self._held, {}
            for partition, position in held.items():
                self._read(partition, position)
        results, begin = self._work.results(texts), 0
        for partition, page in pages:
            end = begin + len(page.keys)
            self._unanswered += 1
            write = self._writer.put_partition(partition, page.keys, results[begin:end])
            write.add_done_callback(self._written)
            begin = end

    def _written(self, write: asyncio.Future[None]) -> None:
        self._unanswered -= 1
        if not write.cancelled():
            self._failure = self._failure or write.exception()
        self._wake.set()


async def _main(name: str, events: str, results: str, begin: str, files: str, *addresses: str) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with await connect(GridSettings(members=list(addresses), cluster_name=name)) as grid:
            await Loop(grid, events, results, Work(Path(files))).run(begin)


if __name__ == "__main__":
    tune()
    uvloop.run(_main(*sys.argv[1:]))
