"""The reader: keeps one read of the journal in flight per partition, and what has arrived, in order, until it is taken.

A read parks at the member until there is something: no polling, no timer. What arrives while a batch is being scored
is the next batch. Every answer is compared with the request: a gap is loss, a step back a regression. A page that is
not simply the next one (a gap precedes it, or its events may have results already) is looked into before it can be
taken, while other partitions go on.

Hashes of the newest entries are remembered. Reads do not wait for backups: when a member dies, we may have read what
its backup lacks, and later entries get the same sequences. Only the entries themselves show that, or that a journal has
begun again and is as long as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError, UnsupportedOperationError

from gridscore.errors import GridError, GridscoreError
from gridscore.grid.journal import Journal, journal_missing
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, KeysView, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.leases import Lease

_log = logging.getLogger(__name__)

PAGE_EVENTS = 512  # events of one read at most
# Bytes that a read should return at most; estimated from earlier pages, since the protocol has no such limit.
PAGE_BYTES = 256 * 1024

FIRST_EVENT_BYTES = 64 * 1024  # the assumed size of an event before one was seen, so that the first reads ask for few
READ_AHEAD_EVENTS = 16_384
READ_AHEAD_BYTES = 32 * 1024 * 1024  # how much may wait to be taken; above that, nothing is read ahead
_RETRY_SECONDS = 0.5
_LOG_SECONDS, _SAME_LOG_SECONDS = 1.0, 60.0
_TOGETHER_SECONDS = 0.5
_LOOK_SECONDS = 10.0


_REMEMBERED = 128  # entries of a partition that are remembered
# Of those, how many of one page: to hash 16 of 512 entries costs 4 ns an event, a quarter of a percent; all, 70 ns.
_OF_PAGE = 16

_UNKNOWN = -1


@dataclass(slots=True, eq=False)
class Cursor:
    """Where a partition is being read, and the claim to what was read: is it still ours to write?

    A new cursor for a partition makes answers to the old one void, and what they led to.
    """

    partition: int
    offset: int
    epoch: int = 0  # of the lease under which it is read
    lease: Lease | None = None  # that one; None for those who only read
    doubt: int = 0  # sequence before which events may already have results by a previous owner
    # False once it reads no more: the partition was lost, is given back, or is read again from elsewhere.
    is_current: bool = True
    # Sequence and hash of the entries that are remembered.
    seen: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    reading: bool = False
    parked: asyncio.Future[Page | None] | None = None

    @property
    def until(self) -> float:
        """Until when, of the grid's clock, what was read may be written; minus infinity if it may not.

        While the partition is given back, what is under way is still written, though the cursor is not current.
        """
        return float("-inf") if self.lease is None else self.lease.until


class _Before(NamedTuple):
    """Of a journal that has changed: its oldest sequence now, our offset, and the entries that are remembered."""

    oldest: int
    offset: int
    seen: Sequence[tuple[int, int]]


class Arrival(NamedTuple):
    """A page of one partition."""

    partition: int
    page: Page
    cursor: Cursor  # that read it
    lost: int  # events just before this page that were overwritten before they were read
    at: float  # when it arrived, of the grid's clock


class JournalReader:
    """Reads partitions, and keeps what arrives until it is taken."""

    def __init__(
        self,
        grid: Grid,
        map_name: str,
        # Called with a partition and the sequence at which its journal has begun again; reading stops.
        regressed: Callable[[int, int], None],
        # Called with a cursor, a page in doubt or behind a gap, and the size of the gap; returns the page to take
        # instead. If it fails, the page is read again.
        look_into: Callable[[Cursor, Page, int], Awaitable[Page]],
    ) -> None:
        self._grid = grid
        self._journal = Journal(grid, map_name)
        self._regressed, self._look_into = regressed, look_into
        self._before: dict[int, _Before] = {}  # journals that have changed
        self._cursors: dict[int, Cursor] = {}
        self._inbox: deque[Arrival] = deque()
        self._inbox_events = self._inbox_bytes = 0
        self._event_bytes = float(FIRST_EVENT_BYTES)
        self._failed_reads: set[int] = set()  # partitions, since it was said
        self._said = ""
        self._begun_again: list[tuple[int, int, int]] = []  # partition, oldest, and offset; not logged yet
        self._logged_at = float("-inf")
        self._noted: dict[int, set[bytes]] = {}
        self._closed = False
        self.page_events = PAGE_EVENTS  # events of one read at most
        self._arrived = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: GridscoreError | None = None

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Oldest and newest sequence of a partition's journal."""
        return await self._journal.bounds(partition)

    @property
    def partitions(self) -> KeysView[int]:
        """Those that are being read."""
        return self._cursors.keys()

    def cursor(self, partition: int) -> Cursor | None:
        """The cursor that reads a partition now; None if it is not read."""
        return self._cursors.get(partition)

    def start(self, partition: int, offset: int, *, lease: Lease | None = None, doubt: int = 0) -> None:
        """Read a partition from an offset on; see `Cursor`. What was read of it and not taken yet is forgotten."""
        self.stop(partition)
        if self._closed:
            return
        epoch = 0 if lease is None else lease.record.epoch
        cursor = Cursor(partition, offset, epoch, lease, doubt)
        self._cursors[partition] = cursor
        self._read(cursor)

    def stop(self, partition: int) -> None:
        """Stop reading a partition. The parked read stays at the member, for the next reader from there."""
        cursor = self._cursors.pop(partition, None)
        if cursor is not None:
            cursor.is_current = False
            if cursor.parked is not None:
                cursor.parked.cancel()
            kept = deque(arrival for arrival in self._inbox if arrival.partition != partition)
            if len(kept) != len(self._inbox):
                self._inbox = kept
                self._inbox_events = sum(arrival.page.next - arrival.page.first for arrival in kept)
                self._inbox_bytes = sum(arrival.page.size for arrival in kept)

    @contextmanager
    def note_keys(self, partition: int) -> Iterator[set[bytes]]:
        """Within the context, the serialized keys that arrive of a partition."""
        noted = self._noted[partition] = set()
        try:
            yield noted
        finally:
            del self._noted[partition]

    def insert(self, partition: int, page: Page) -> bool:
        """Append a page that was found elsewhere, which moves no offset; False if the partition is not read."""
        cursor = self._cursors.get(partition)
        if cursor is None:
            return False
        there = page._replace(first=cursor.offset, next=cursor.offset)
        self._append(Arrival(partition, there, cursor, 0, self._grid.clock()))
        return True

    def fail(self, error: GridscoreError) -> None:
        """Raise this error for those who wait for events."""
        self._failure = error
        self._arrived.set()

    def close(self) -> None:
        """Stop reading everything."""
        self._closed = True
        for partition in list(self._cursors):
            self.stop(partition)
        self._inbox.clear()
        self._inbox_events = self._inbox_bytes = 0
        for timer in self._timers:
            timer.cancel()
        self._log_begun_again()
        for task in self._tasks:
            task.cancel()

    async def check(self, partition: int, destroyed: Cursor | None = None) -> None:
        """Compare a partition's offset and remembered entries with its journal.

        The first shows a journal that has begun again while a read was parked; the second, one that has lost its newest
        entries and has others in their place.

        `destroyed`: what read it when the map was destroyed: the same entries may be there again since.
        """
        cursor = self._cursors.get(partition)
        if cursor is None:
            return
        if is_new := cursor is destroyed and cursor.offset > 0:
            cursor.seen.clear()
        before, seen = cursor.offset, list(cursor.seen)[-_OF_PAGE:]
        oldest, newest = await self._journal.bounds(partition)
        another = is_new or newest + 1 < before
        if not another and seen and seen[-1][0] >= oldest:
            another = await self._last_same(partition, seen, oldest, newest) not in (seen[-1][0], _UNKNOWN)
        if another and cursor.is_current:
            self._begin_again(partition, before, oldest)

    async def last_standing(self, partition: int) -> int | None:
        """The last sequence up to which a journal that has changed still has what was read of it.

        None if it has begun again: it has none of the remembered entries, or none are remembered.
        """
        before, last = self._before.pop(partition), None
        if before.seen:
            last = await self._last_same(partition, before.seen, *await self._journal.bounds(partition))
        if last not in (None, _UNKNOWN):
            return last
        self.note_begun_again(partition, before.oldest, before.offset)
        return None

    def note_begun_again(self, partition: int, oldest: int, offset: int) -> None:
        """Log that a journal begins again, which had been read up to an offset.

        A map that was destroyed begins again in each partition: one line, not 271.
        """
        self._begun_again.append((partition, oldest, offset))
        if len(self._begun_again) == 1:
            self._call_later(_TOGETHER_SECONDS, self._log_begun_again)

    async def _last_same(self, partition: int, seen: Sequence[tuple[int, int]], oldest: int, newest: int) -> int | None:
        """Sequence of the last of these entries up to which the journal still has them.

        None if it has others; `_UNKNOWN` if they were overwritten, or it ends before them.
        """
        wanted = [sequence for sequence, _ in seen if oldest <= sequence <= newest]
        if not wanted:
            return _UNKNOWN
        there: dict[int, int] = {}
        begin = offset = wanted[0]
        try:
            # If it loses more just now, there is nothing to read until something is put.
            async with asyncio.timeout(_LOOK_SECONDS):
                while offset <= wanted[-1]:
                    page = await self._journal.read(partition, offset, self._page_events)
                    if page is None:
                        break
                    if page.first > offset:
                        begin = page.first  # what was overwritten meanwhile proves nothing
                    there.update(_hashes(page, len(page.keys)))
                    offset = page.next
        except (HazelcastError, TimeoutError) as error:
            what = error or "no answer"
            raise GridError(f"The journal of `{self._journal.map_name}` could not be read: {what}") from error
        last: int | None = None
        compared = [(sequence, each) for sequence, each in seen if begin <= sequence <= newest]
        for sequence, each in compared:
            if there.get(sequence) != each:
                break
            last = sequence
        return last if compared else _UNKNOWN

    async def wait(self) -> None:
        """Return when something has arrived. Raises GridscoreError if reading cannot go on at all."""
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
        """Take whole pages in the order of arrival, until there are at least `max_events`, and read on behind them."""
        taken: list[Arrival] = []
        count = 0
        while self._inbox and count < max_events:
            arrival = self._inbox.popleft()
            page = arrival.page
            size = page.next - page.first
            self._inbox_events -= size
            self._inbox_bytes -= page.size
            count += size
            taken.append(arrival)
            self._read(arrival.cursor)
        return taken

    @property
    def _page_events(self) -> int:
        """How many events a read asks for."""
        return max(1, min(self.page_events, int(PAGE_BYTES / self._event_bytes)))

    def _read(self, cursor: Cursor) -> None:
        if cursor.reading:
            return
        cursor.reading = True
        cursor.parked = self._journal.read(cursor.partition, cursor.offset, self._page_events)
        cursor.parked.add_done_callback(lambda done: self._answered(cursor, done))

    def _answered(self, cursor: Cursor, done: asyncio.Future[Page | None]) -> None:
        cursor.reading = False
        cursor.parked = None
        if done.cancelled():
            return
        error = done.exception()
        if not cursor.is_current:
            return
        if error is not None:
            self._failed(cursor, error)
            return
        page = done.result()
        if page is None:
            self._later(cursor)
        elif page.first < cursor.offset:
            self._begin_again(cursor.partition, cursor.offset, page.first)
        elif page.first > cursor.offset or page.first < cursor.doubt:
            cursor.reading = True
            self._spawn(self._take_in(cursor, page, page.first - cursor.offset))
        else:
            self._accept(cursor, page, 0, page)

    async def _take_in(self, cursor: Cursor, page: Page, gap: int) -> None:
        """Look into a page, and accept it."""
        try:
            rest = await self._look_into(cursor, page, gap)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the partition must not stand still for ever
            cursor.reading = False
            if cursor.is_current:
                self._failed(cursor, error)
            return
        cursor.reading = False
        if cursor.is_current:
            self._accept(cursor, rest, gap, page)

    def _accept(self, cursor: Cursor, page: Page, gap: int, read: Page) -> None:
        cursor.offset = page.next
        cursor.seen.extend(_hashes(read, _OF_PAGE))
        # Heavier events count at once, lighter ones gradually.
        seen = page.size / (page.next - page.first)
        self._event_bytes = max(seen, (self._event_bytes + seen) / 2)
        self._append(Arrival(cursor.partition, page, cursor, gap, self._grid.clock()))
        # Reading ahead keeps the member busy while we score; above the limit, the next read waits for `take`.
        if self._inbox_events < READ_AHEAD_EVENTS and self._inbox_bytes < READ_AHEAD_BYTES:
            self._read(cursor)

    def _append(self, arrival: Arrival) -> None:
        if self._noted and arrival.partition in self._noted:
            self._noted[arrival.partition].update(arrival.page.keys)
        self._inbox.append(arrival)
        self._inbox_events += arrival.page.next - arrival.page.first
        self._inbox_bytes += arrival.page.size
        self._arrived.set()

    def _failed(self, cursor: Cursor, error: BaseException) -> None:
        if isinstance(error, UnsupportedOperationError):
            self.fail(journal_missing(self._journal.map_name))
            return
        if isinstance(error, HazelcastClientNotActiveError):
            return
        self._failed_reads.add(cursor.partition)
        now, text = self._grid.clock(), str(error) or type(error).__name__
        if now - self._logged_at > (_SAME_LOG_SECONDS if text == self._said else _LOG_SECONDS):
            _log.warning(
                "Reading `%s` failed in %s, trying again: %s",
                self._journal.map_name,
                count_text(len(self._failed_reads), "partition"),
                text,
                extra={"action": "read_failed"},
            )
            self._failed_reads, self._logged_at, self._said = set(), now, text
        self._later(cursor)

    def _later(self, cursor: Cursor) -> None:
        def read() -> None:
            if cursor.is_current:
                # The owner may have changed, and the new one's journal may be behind: look before parking again.
                self._spawn(self._look_and_read(cursor))

        self._call_later(_RETRY_SECONDS, read)

    def _call_later(self, seconds: float, work: Callable[[], None]) -> None:
        def call() -> None:
            self._timers.discard(timer)
            work()

        timer = asyncio.get_running_loop().call_later(seconds, call)
        self._timers.add(timer)

    async def _look_and_read(self, cursor: Cursor) -> None:
        try:
            await self.check(cursor.partition)
        except GridscoreError as error:
            self._failed(cursor, error)
            return
        if cursor.is_current:
            self._read(cursor)

    def _begin_again(self, partition: int, offset: int, oldest: int) -> None:
        cursor = self._cursors.get(partition)
        self._before[partition] = _Before(oldest, offset, [] if cursor is None else list(cursor.seen))
        self.stop(partition)
        self._regressed(partition, oldest)

    def _log_begun_again(self) -> None:
        if not self._begun_again:
            return
        (partition, oldest, offset), others = self._begun_again[0], len(self._begun_again) - 1
        self._begun_again = []
        _log.error(
            "`%s` partition %d: its journal begins again at %d, %d had been read%s; the map has lost writes, or was "
            "destroyed",
            self._journal.map_name,
            partition,
            oldest,
            offset - 1,
            f" (and {others} more partitions)" if others else "",
            extra={"action": "regression", "partition": partition, "others": others},
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _hashes(page: Page, most: int) -> Iterator[tuple[int, int]]:
    """Sequence and hash of the last entries of a page."""
    entries = zip(page.keys[-most:], page.values[-most:], strict=True)
    return zip(page.sequences[-most:], map(hash, entries), strict=True)
