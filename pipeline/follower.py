"""A follower: reads the journals of all partitions of a map, without a lease, for whoever wants to see what is written.

Unlike an entry listener it misses nothing that the rings still hold: after a lost connection, or the death of a member,
it reads on from where it was, and what was overwritten meanwhile is counted. What is not taken is not read ahead
without bounds: it stays in the rings.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hazelcast.lifecycle import LifecycleState

from pipeline.errors import GridError, GridscoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid import Grid
    from pipeline.grid.journal import Page
    from pipeline.worker.reader import Arrival, Cursor

_log = logging.getLogger(__name__)

_TAKE = 1_024
_CHECK_SECONDS = 10.0


class Follower:
    """Reads a map's journals.

    Args:
        grid: The connection.
        map_name: Of a map with a journal.

    Attributes:
        positions: By partition, the sequence from which on nothing was seen; moved on by whoever takes pages.
        lost: Entries that were overwritten before they were read.
        regressions: How often a journal has begun again, as its map has lost writes.
    """

    def __init__(self, grid: Grid, map_name: str) -> None:
        # Here, as it brings the worker with it, and the command line is quicker without.
        from pipeline.worker.reader import JournalReader

        self._grid = grid
        self.map_name = map_name
        self._reader = JournalReader(grid, map_name, self._regressed, self._look_into)
        self._cursors: dict[int, Cursor] = {}
        self._taken: dict[int, int] = {}
        self._ends: list[Any] = []
        self._checking: asyncio.Task[None] | None = None
        self._closed = False
        self.positions: list[int] = []
        self.lost = 0
        self.regressions = 0

    async def open(self, start: str | Sequence[int]) -> None:
        """Begin to read; what is written from now on will be seen.

        Args:
            start: `latest`, `oldest`, or a sequence for each partition.

        Raises:
            JournalMissingError: The map has no journal.
            GridError: The cluster did not answer.
        """
        await self._grid.map(self.map_name)
        partitions = range(self._grid.partition_count)
        bounds = await asyncio.gather(*map(self._reader.bounds, partitions))
        self.positions = [0] * len(bounds)
        for partition, (oldest, newest) in enumerate(bounds):
            if isinstance(start, str):
                position = oldest if start == "oldest" else newest + 1
            elif start[partition] > newest + 1:
                self._note_regression(partition, start[partition], oldest)
                position = oldest
            else:
                position = start[partition]
            self._start(partition, position)
        service = self._grid.client.lifecycle_service
        listener = service.add_listener(self._lifecycle_changed)
        self._ends = [lambda: service.remove_listener(listener)]
        self._checking = asyncio.get_running_loop().create_task(self._check())

    async def take(self) -> list[Arrival]:
        """What has arrived, in order within each partition; waits for it.

        Raises:
            GridError: The connection was closed, or this follower was.
        """
        while True:
            await self._reader.wait()
            arrivals = self._reader.take(_TAKE)
            if arrivals:
                for arrival in arrivals:
                    self._taken[arrival.partition] = arrival.page.next
                return arrivals

    def move(self, arrival: Arrival, position: int) -> None:
        """Everything before a sequence was seen, of the partition that an arrival is of."""
        if self._reader.is_current(arrival.cursor):
            self.positions[arrival.partition] = position

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop reading; a `take` that waits fails."""
        if self._closed:
            return
        self._closed = True
        self._reader.fail(GridError(f"`{self.map_name}` is no longer followed."))
        self._reader.close()
        for end in self._ends:
            end()
        if self._checking is not None:
            self._checking.cancel()

    def _start(self, partition: int, position: int) -> None:
        self.positions[partition] = self._taken[partition] = position
        self._reader.start(partition, position)
        cursor = self._reader.cursor(partition)
        if cursor is not None:
            self._cursors[partition] = cursor

    async def _look_into(self, _cursor: Cursor, page: Page, gap: int) -> Page:
        if gap:
            self.lost += gap
            _log.error(
                "%d entries of `%s` were overwritten before they were read",
                gap,
                self.map_name,
                extra={"action": "lost", "lost": gap},
            )
        return page

    def _regressed(self, partition: int, oldest: int) -> None:
        # What was read and not taken has been dropped.
        self.lost += self._cursors[partition].position - self._taken[partition]
        self._note_regression(partition, self._taken[partition], oldest)
        self._start(partition, oldest)

    def _note_regression(self, partition: int, position: int, oldest: int) -> None:
        self.regressions += 1
        _log.error(
            "`%s` partition %d: its journal begins again at %d, %d was to come",
            self.map_name,
            partition,
            oldest,
            position,
            extra={"action": "regression", "partition": partition},
        )

    async def _check(self) -> None:
        """Look now and then, and when a member has come or gone, whether a journal has begun again."""
        changed = asyncio.Event()
        self._ends.append(self._grid.on_member_change(changed.set))
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _CHECK_SECONDS)
            changed.clear()
            await asyncio.gather(*map(self._check_one, range(len(self.positions))))

    async def _check_one(self, partition: int) -> None:
        try:
            await self._reader.check(partition)
        except GridscoreError as error:
            _log.debug("checking `%s` partition %d failed: %s", self.map_name, partition, error)

    def _lifecycle_changed(self, state: str) -> None:
        if state == LifecycleState.SHUTDOWN and not self._closed:
            self._reader.fail(GridError(f"The connection to the cluster of `{self.map_name}` is closed."))
