"""A follower: reads the journals of all partitions of a map, without a lease, for programs that watch what is written.

Unlike an entry listener it misses nothing that the rings still hold: after a lost connection, or the death of a member,
it reads on from where it was, and counts what was overwritten meanwhile. What is not taken stays in the rings.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError
from hazelcast.lifecycle import LifecycleState

from gridscore.errors import GridError, GridscoreError
from gridscore.grid.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.reader import Arrival, Cursor

_log = logging.getLogger(__name__)

_TAKE = 1_024
_CHECK_SECONDS = 10.0
_RETRY_SECONDS = 0.5
_REMEMBER = 64  # entries of a partition; backups lack only what was under way


class Follower:
    """Reads a map's journals."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        # Here, as it brings the worker with it: the command line starts faster without.
        from gridscore.group.reader import JournalReader

        self._grid, self.map_name = grid, map_name
        self._reader = JournalReader(grid, map_name, self._regressed, self._look_into)
        self._journal = Journal(grid, map_name)
        self._cursors: dict[int, Cursor] = {}
        self._limits: dict[Cursor, int] = {}  # how far pages of former cursors may move a position
        self._taken: dict[int, int] = {}
        self._seen: dict[int, dict[int, int]] = {}  # hashes of the last entries taken, by partition
        self._resuming: set[asyncio.Task[None]] = set()
        self._ends: list[Any] = []
        self._checking: asyncio.Task[None] | None = None
        self._closed = False
        self.positions: list[int] = []  # by partition, the next sequence to see; moved on by the consumer of the pages
        self.lost = 0  # entries that were overwritten before they were read
        self.regressions = 0  # how often a journal has begun again, because its map has lost writes

    async def open(self, start: str | Sequence[int]) -> None:
        """Begin to read; what is written from now on will be seen.

        `start`: `latest`, `oldest`, or a sequence for each partition. Raises JournalMissingError if the map has no
        journal.
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

        Raises GridError if the connection was closed, or this follower was.
        """
        while True:
            await self._reader.wait()
            arrivals = self._reader.take(_TAKE)
            if arrivals:
                for arrival in arrivals:
                    self._remember(arrival)
                return arrivals

    def move(self, arrival: Arrival, position: int) -> None:
        """Everything before this sequence was seen in the arrival's partition."""
        partition, position = arrival.partition, min(position, self._limits.get(arrival.cursor, position))
        self.positions[partition] = max(self.positions[partition], position)

    @property
    def closed(self) -> bool:
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
        for task in self._resuming:
            task.cancel()

    def _remember(self, arrival: Arrival) -> None:
        page = arrival.page
        self._taken[arrival.partition] = page.next
        self._seen[arrival.partition] = {
            sequence: hash((key, text))
            for sequence, key, text in zip(
                page.sequences[-_REMEMBER:], page.keys[-_REMEMBER:], page.values[-_REMEMBER:], strict=True
            )
        }

    def _start(self, partition: int, position: int) -> None:
        self.positions[partition] = self._taken[partition] = position
        self._read(partition, position)

    def _read(self, partition: int, position: int) -> None:
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

    def _regressed(self, partition: int, _oldest: int) -> None:
        task = asyncio.get_running_loop().create_task(self._resume(partition))
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _resume(self, partition: int) -> None:
        """Read on in a journal that ends before where we were: it has begun again, or is only a few entries behind.

        Reads do not wait for backups. So when a member is killed, we may have read what its backup does not have, and
        what its writer then puts again: it still is the same journal if it holds what we saw last.
        """
        while True:
            try:
                oldest, last, same = await self._compare(partition)
            except (GridscoreError, HazelcastError) as error:
                _log.debug("`%s` partition %d: %s", self.map_name, partition, error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            break
        former, taken = self._cursors[partition], self._taken[partition]
        if same:
            self._limits[former] = self._taken[partition] = last + 1
            self.positions[partition] = min(self.positions[partition], last + 1)
            self._read(partition, last + 1)
            return
        self.lost += former.offset - taken  # was read and not taken, and is dropped
        self._limits[former] = 0
        self._note_regression(partition, taken, oldest)
        self._start(partition, oldest)

    async def _compare(self, partition: int) -> tuple[int, int, bool]:
        """Oldest sequence, the last one that we saw, and whether the journal still has the same entry there."""
        oldest, newest = await self._journal.bounds(partition)
        last = min(self._taken[partition], newest + 1) - 1
        seen = self._seen.get(partition, {}).get(last)
        if seen is None or last < oldest:
            return oldest, last, False
        page = await self._journal.read(partition, last, 1)
        same = page is not None and page.sequences[:1] == [last] and hash((page.keys[0], page.values[0])) == seen
        return oldest, last, same

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
        """See from time to time, and when a member comes or goes, whether a journal has begun again."""
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
