"""The reader: one long-poll read of the journal in flight per partition, and what has arrived, in order, until taken.

A read parks at the member until there is something: no polling, no timer. What arrives while a batch is being scored
is the next batch. Every answer is compared with what was asked for: a gap is counted loss, a step back a regression.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError, UnsupportedOperationError

from pipeline.errors import GridscoreError
from pipeline.grid.journal import Journal, journal_missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid import Grid
    from pipeline.grid.journal import Page

_log = logging.getLogger(__name__)

PAGE_EVENTS = 512
"""Events of one read at most."""

PAGE_BYTES = 256 * 1024
"""Bytes that a read should give at most. The protocol has no such limit: it is kept by the size of what came before."""

FIRST_EVENT_BYTES = 64 * 1024
"""What an event is taken to weigh before one was seen: the first reads ask for few."""

READ_AHEAD_EVENTS = 16_384
READ_AHEAD_BYTES = 32 * 1024 * 1024
"""What may wait to be taken before partitions are no longer read ahead."""

_RETRY_SECONDS = 0.5


@dataclass(slots=True, eq=False)
class Cursor:
    """Where a partition is being read. A new cursor for the same partition makes answers to the old one void."""

    partition: int
    position: int
    reading: bool = False


class Arrival(NamedTuple):
    """A page of one partition, and the cursor that read it."""

    partition: int
    page: Page
    cursor: Cursor


@dataclass(slots=True)
class LossCount:
    """What the sequences showed.

    Attributes:
        lost: Events overwritten before they were read.
        regressions: Times that a journal began again below what had been read.
    """

    lost: int = 0
    regressions: int = 0


class JournalReader:
    """Reads the partitions that it is told to, and keeps what arrives until it is taken.

    Args:
        grid: The connection.
        map_name: The event map.
        regressed: Called with a partition and the sequence at which its journal has begun again.
    """

    def __init__(self, grid: Grid, map_name: str, regressed: Callable[[int, int], None]) -> None:
        self._journal = Journal(grid, map_name)
        self._regressed = regressed
        self._cursors: dict[int, Cursor] = {}
        self._inbox: deque[tuple[Cursor, Page]] = deque()
        self._inbox_events = self._inbox_bytes = 0
        self._event_bytes = float(FIRST_EVENT_BYTES)
        self._closed = False
        self._arrived = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: GridscoreError | None = None
        self.losses = LossCount()

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Oldest and newest sequence of a partition's journal."""
        return await self._journal.bounds(partition)

    def is_current(self, cursor: Cursor) -> bool:
        """Whether the partition is still read by this cursor: if not, what it read must not be written."""
        return self._cursors.get(cursor.partition) is cursor

    def reads(self, partition: int) -> bool:
        """Whether the partition is being read."""
        return partition in self._cursors

    def start(self, partition: int, position: int) -> None:
        """Read a partition from a sequence on, forgetting what was read of it and not taken yet."""
        self.stop(partition)
        if self._closed:
            return
        cursor = self._cursors[partition] = Cursor(partition, position)
        self._read(cursor)

    def stop(self, partition: int) -> None:
        """Stop reading a partition. The parked read stays at the member; its answer will be ignored."""
        if self._cursors.pop(partition, None) is not None:
            kept = deque((c, page) for c, page in self._inbox if c.partition != partition)
            if len(kept) != len(self._inbox):
                self._inbox = kept
                self._inbox_events = sum(page.next - page.first for _, page in kept)
                self._inbox_bytes = sum(page.size for _, page in kept)

    def close(self) -> None:
        """Stop reading everything."""
        self._closed = True
        self._cursors.clear()
        self._inbox.clear()
        self._inbox_events = self._inbox_bytes = 0
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def check(self, partition: int) -> None:
        """Compare a partition's position with its journal: finds one that has begun again while a read was parked."""
        cursor = self._cursors.get(partition)
        if cursor is None:
            return
        before = cursor.position
        oldest, newest = await self._journal.bounds(partition)
        if self._cursors.get(partition) is cursor and newest + 1 < before:
            self._count_regression(partition, before, oldest)

    async def wait(self) -> None:
        """Return when something has arrived.

        Raises:
            GridscoreError: Reading cannot go on at all.
        """
        if not self._inbox:
            self._arrived.clear()
            await self._raise_or_wait()
        elif self._failure is not None:
            raise self._failure

    async def _raise_or_wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        await self._arrived.wait()
        if self._failure is not None:
            raise self._failure

    def take(self, max_events: int) -> list[Arrival]:
        """Take pages in the order of arrival, whole, until there are at least `max_events`, and read on behind them."""
        taken: list[Arrival] = []
        count = 0
        while self._inbox and count < max_events:
            cursor, page = self._inbox.popleft()
            size = page.next - page.first
            self._inbox_events -= size
            self._inbox_bytes -= page.size
            count += size
            taken.append(Arrival(cursor.partition, page, cursor))
            self._read(cursor)
        return taken

    def _read(self, cursor: Cursor) -> None:
        if cursor.reading:
            return
        cursor.reading = True
        wanted = max(1, min(PAGE_EVENTS, int(PAGE_BYTES / self._event_bytes)))
        future = self._journal.read(cursor.partition, cursor.position, wanted)
        future.add_done_callback(lambda done: self._answered(cursor, done))

    def _answered(self, cursor: Cursor, done: asyncio.Future[Page | None]) -> None:
        cursor.reading = False
        current = self._cursors.get(cursor.partition) is cursor
        if done.cancelled():
            return
        error = done.exception()
        if not current:
            return
        if error is not None:
            self._failed(cursor, error)
            return
        page = done.result()
        if page is None:
            self._later(cursor)
            return
        if page.first > cursor.position:
            self._count_loss(cursor, page.first)
        elif page.first < cursor.position:
            self._count_regression(cursor.partition, cursor.position, page.first)
            return
        cursor.position = page.next
        self._inbox.append((cursor, page))
        self._inbox_events += page.next - page.first
        self._inbox_bytes += page.size
        # Heavier events count at once, lighter ones by and by.
        seen = page.size / (page.next - page.first)
        self._event_bytes = max(seen, (self._event_bytes + seen) / 2)
        self._arrived.set()
        # Reading ahead keeps the member busy while we score; past the limit, the partition waits to be taken.
        if self._inbox_events < READ_AHEAD_EVENTS and self._inbox_bytes < READ_AHEAD_BYTES:
            self._read(cursor)

    def _failed(self, cursor: Cursor, error: BaseException) -> None:
        if isinstance(error, UnsupportedOperationError):
            self._failure = journal_missing(self._journal.map_name)
            self._arrived.set()
            return
        if isinstance(error, HazelcastClientNotActiveError):
            return
        level = logging.WARNING if isinstance(error, HazelcastError) else logging.ERROR
        _log.log(
            level,
            "Reading `%s` partition %d failed, trying again: %s",
            self._journal.map_name,
            cursor.partition,
            error or type(error).__name__,
            extra={"action": "read_failed"},
        )
        self._later(cursor)

    def _later(self, cursor: Cursor) -> None:
        def read() -> None:
            self._timers.discard(timer)
            if self._cursors.get(cursor.partition) is cursor:
                # The owner may have changed, and a new owner's journal may be behind: look before parking again.
                task = asyncio.get_running_loop().create_task(self._look_and_read(cursor))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        timer = asyncio.get_running_loop().call_later(_RETRY_SECONDS, read)
        self._timers.add(timer)

    async def _look_and_read(self, cursor: Cursor) -> None:
        try:
            await self.check(cursor.partition)
        except GridscoreError as error:
            self._failed(cursor, error)
            return
        if self._cursors.get(cursor.partition) is cursor:
            self._read(cursor)

    def _count_loss(self, cursor: Cursor, first: int) -> None:
        lost = first - cursor.position
        self.losses.lost += lost
        _log.error(
            "`%s` partition %d: %d events were overwritten before they were read (expected sequence %d, got %d)",
            self._journal.map_name,
            cursor.partition,
            lost,
            cursor.position,
            first,
            extra={"action": "lost", "lost": lost, "partition": cursor.partition},
        )

    def _count_regression(self, partition: int, position: int, oldest: int) -> None:
        self.losses.regressions += 1
        _log.error(
            "`%s` partition %d: its journal begins again at %d, %d had been read; the map has lost writes",
            self._journal.map_name,
            partition,
            oldest,
            position - 1,
            extra={"action": "regression", "partition": partition},
        )
        self.stop(partition)
        self._regressed(partition, oldest)
