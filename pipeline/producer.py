"""A producer: puts events into a map, and waits before it would overwrite one that some job has not scored yet.

The journal of a partition is a ring. A producer keeps a part of it free (`RESERVE`), and puts no more than a `STEP` of
it into a partition between two looks at what is unread there. Several producers see each other only by what they have
put, so the free part is for what others put unseen: with the figures here, five at once can never overrun a ring.

Events go as one put-all a partition, one under way in each partition and the next collecting behind it, so that two
writes of one key never change places; nor do a put and a removal. A put whose fate is unknown is made again: the same
key and value, so nothing but another entry in the journal comes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError

from pipeline.errors import BackPressureError, GridError, GridscoreError
from pipeline.grid.capacity import journal_capacity
from pipeline.grid.writer import MapWriter, partition_of
from pipeline.worker.room import RingReaders, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from pipeline.grid import Grid
    from pipeline.grid.capacity import Capacity
    from pipeline.worker.room import Unread

_log = logging.getLogger(__name__)

RESERVE = 1 / 4
"""Part of a ring that is kept free."""

STEP = 1 / 16
"""Part of a ring that is put into a partition between two looks at it."""

AT_ONCE_EVENTS = 32_768
AT_ONCE_BYTES = 32 << 20
"""What may wait or be under way before `put` and `send` take no more."""

SAY_SECONDS = 10.0
"""Pause between two lines in the log that say that we wait."""

_CHUNK_EVENTS = 2_000
_MESSAGE_EVENTS = 1_000
_MESSAGE_BYTES = 1 << 20
_LOOK_EARLY = 3 / 4
_LOOK_SECONDS = 0.2  # offsets are committed once a second
_RETRY_SECONDS = 0.25


class WithdrawnError(GridError):
    """The caller no longer wants the put."""


class Taken:
    """What one call has taken. It goes its way; `confirmed` waits for the end of it."""

    __slots__ = ("_answered", "count", "dropped", "error", "open")

    def __init__(self) -> None:
        self.count = 0
        self.open = 0  # not acknowledged yet
        self.error: Exception | None = None
        self.dropped = False
        self._answered: asyncio.Event = asyncio.Event()

    @property
    def is_answered(self) -> bool:
        """Whether nothing of it waits or is under way."""
        return not self.open

    async def confirmed(self) -> None:
        """Wait until the cluster has confirmed all of it.

        Raises:
            BackPressureError: A partition was full for longer than `max_wait`; the entries for others have been put.
            GridError: The cluster did not confirm a put. Putting the same again does no harm.
        """
        while self.open:
            await self._answered.wait()
        if self.error is not None:
            raise self.error

    def drop(self) -> None:
        """Put no more of it than is under way."""
        self.dropped = True

    def opened(self, count: int) -> None:
        """So many more wait."""
        self.open += count
        self._answered.clear()

    def closed(self, count: int, error: Exception | None) -> None:
        """So many are answered, or given up."""
        self.error = self.error or error
        self.open -= count
        if not self.open:
            self._answered.set()


@dataclass(slots=True)
class _Segment:
    """Entries of one call in one partition, to be put or to be removed; the texts of the latter are empty."""

    batch: Taken
    keys: list[bytes]
    texts: list[bytes]
    removes: bool = False


@dataclass(slots=True, eq=False)
class _Partition:
    """What waits and is under way in one partition.

    Attributes:
        number: Of the partition.
        queue: What waits.
        under_way: Events in the message that is under way.
        busy: Whether there is one, or one is about to be made again.
        allowance: Events that may be put since the last look.
        spent: Events put since then, or at that time not acknowledged.
        blocked_at: Since when nothing can be put; None if something can.
        failed_at: Since when puts fail; None if they do not.
        unread: As the last look has found it.
    """

    number: int
    queue: deque[_Segment] = field(default_factory=deque)
    under_way: int = 0
    busy: bool = False
    allowance: int = 0
    spent: int = 0
    blocked_at: float | None = None
    failed_at: float | None = None
    unread: Unread | None = None


class Producer:
    """Puts JSON entries into one map. Made once and used for long; any number of tasks may share it.

    For a map without a journal, and as long as no job reads the map, there is nothing to wait for.

    Args:
        grid: The connection.
        map_name: The event map.
        max_wait: Seconds that a partition may be full before what waits for it is given up; for ever if None.
        retry_seconds: How long a put is tried again that the cluster does not confirm.
        on_wait: Called when waiting begins, several times a second as long as it lasts, and with None when it ends.

    Attributes:
        acknowledged: Events that the cluster has confirmed, with their backups.
        repeated: Events that were put once more because the fate of the first put was unknown.
        waited: Seconds for which some partition had no room.
    """

    def __init__(
        self,
        grid: Grid,
        map_name: str,
        *,
        max_wait: float | None = None,
        retry_seconds: float = 60.0,
        on_wait: Callable[[Waiting | None], None] | None = None,
    ) -> None:
        self._grid = grid
        self.map_name = map_name
        self.max_wait = max_wait
        self.on_wait = on_wait
        self._retry_seconds = retry_seconds
        self._writer = MapWriter(grid, map_name)
        self._readers = RingReaders(grid, map_name)
        self._capacity: Capacity | None = None
        self._limit = self._step = 0
        self._prepared: asyncio.Task[None] | None = None
        self._partitions = [_Partition(number) for number in range(grid.partition_count)]
        self._due: set[_Partition] = set()
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = self._bytes = 0  # that wait or are under way
        self._room = asyncio.Event()
        self._sent = Taken()
        self._said_at = float("-inf")
        self._waiting_since: float | None = None
        self.acknowledged = 0
        self.repeated = 0
        self.waited = 0.0

    @property
    def capacity(self) -> Capacity | None:
        """Capacity of the journal, once something was put; None if the map has none."""
        return self._capacity

    async def put(self, entries: Iterable[tuple[Any, bytes | None]]) -> int:
        """Put entries, and return how many when the cluster has confirmed all of them.

        Args:
            entries: Keys of any type that Hazelcast serializes, with JSON texts in UTF-8; None removes the entry.

        Raises:
            BackPressureError: A partition was full for longer than `max_wait`; the entries for others have been put.
            GridError: The cluster did not confirm a put. Putting the same again does no harm.
        """
        taken = await self.take(entries)
        try:
            await taken.confirmed()
        except asyncio.CancelledError:
            taken.drop()
            raise
        return taken.count

    async def take(self, entries: Iterable[tuple[Any, bytes | None]]) -> Taken:
        """Take entries, as `put`, and return when all of them are on their way: in the order of such calls.

        Where one of them has failed already, the rest is not taken; `Taken.confirmed` says what was wrong.

        Raises:
            GridError: The journal's capacity could not be found out.
        """
        taken = Taken()
        try:
            await self._take(entries, taken)
        except BaseException:
            taken.drop()
            raise
        return taken

    async def send(self, entries: Iterable[tuple[Any, bytes | None]]) -> int:
        """Put entries without waiting for their confirmation, which `flush` does; returns how many were taken.

        Raises:
            BackPressureError: As `put`, for what was sent before.
            GridError: As `put`, for what was sent before.
        """
        count = await self._take(entries, self._sent)
        if self._sent.error is not None:
            await self.flush()
        return count

    async def flush(self) -> None:
        """Wait until everything that was sent is confirmed.

        Raises:
            BackPressureError: As `put`.
            GridError: As `put`.
        """
        sent, self._sent = self._sent, Taken()
        await sent.confirmed()

    def withdraw(self, taken: Taken) -> None:
        """Put no more of what a call has taken than is under way, and make room for others at once."""
        taken.drop()
        for partition in self._partitions:
            dropped = [segment for segment in partition.queue if segment.batch is taken]
            if dropped:
                partition.queue = deque(segment for segment in partition.queue if segment.batch is not taken)
            for segment in dropped:
                self._close(segment, _withdrawn())

    # ------------------------------------------------------------------ what waits

    async def _take(self, entries: Iterable[tuple[Any, bytes | None]], batch: Taken) -> int:
        await self._prepare()
        rest, count = iter(entries), 0
        while chunk := list(islice(rest, _CHUNK_EVENTS)):
            while self._events > AT_ONCE_EVENTS or self._bytes > AT_ONCE_BYTES:
                self._room.clear()
                await self._room.wait()
            if batch.error is not None:
                break
            for partition in self._enqueue(chunk, batch):
                self._pump(partition)
            count += len(chunk)
            batch.count += len(chunk)
            await asyncio.sleep(0)  # lets the messages go out and the answers come in
        return count

    def _enqueue(self, chunk: list[tuple[Any, bytes | None]], batch: Taken) -> list[_Partition]:
        count, serialize, size = self._grid.partition_count, self._writer.serialize_key, 0
        segments: dict[int, _Segment] = {}
        serialized = [serialize(key) for key, _ in chunk]  # before anything is queued: a key may have no form
        for data, (_, text) in zip(serialized, chunk, strict=True):
            number = partition_of(data, count)
            segment = segments.get(number)
            removes = text is None
            if segment is None or segment.removes is not removes:
                segment = segments[number] = _Segment(batch, [], [], removes)
                self._partitions[number].queue.append(segment)
            segment.keys.append(data)
            if text is not None:
                segment.texts.append(text)
                size += len(text)
            else:
                segment.texts.append(b"")
        self._events += len(chunk)
        self._bytes += size
        batch.opened(len(chunk))
        return [self._partitions[number] for number in segments]

    def _prepare(self) -> asyncio.Future[None]:
        if self._prepared is None or (self._prepared.done() and self._failed(self._prepared)):
            self._prepared = asyncio.get_running_loop().create_task(self._find_capacity())
        return asyncio.shield(self._prepared)

    @staticmethod
    def _failed(task: asyncio.Task[None]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _find_capacity(self) -> None:
        await self._writer.prepare()
        capacity = self._capacity = await journal_capacity(self._grid, self.map_name)
        if capacity is not None:
            ring = capacity.partition
            self._limit = max(1, ring - max(1, int(ring * RESERVE)))
            self._step = max(1, int(ring * STEP))

    def _close(self, segment: _Segment, error: Exception | None = None) -> None:
        """The entries of a segment are answered, or given up."""
        count = len(segment.keys)
        if error is None:
            self.acknowledged += count
        self._events -= count
        self._bytes -= sum(map(len, segment.texts))
        self._room.set()
        segment.batch.closed(count, error)

    # ------------------------------------------------------------------ what is under way

    def _pump(self, partition: _Partition) -> None:
        """Put what waits in a partition, as far as there is room for it."""
        if partition.busy:
            return
        room = _MESSAGE_EVENTS
        if self._capacity is not None:
            room = min(room, partition.allowance - partition.spent)
        parts = self._next(partition, room)
        if self._capacity is not None and partition.queue and room <= 0:
            self._look_at(partition)
        if not parts:
            return
        keys = [key for part in parts for key in part.keys]
        texts = [text for part in parts for text in part.texts]
        partition.busy, partition.under_way = True, len(keys)
        partition.spent += len(keys)
        if self._capacity is not None and partition.spent >= partition.allowance * _LOOK_EARLY:
            self._look_at(partition)  # early, so that the answer is there when it is needed
        if parts[0].removes:
            put: asyncio.Future[None] = self._spawn(self._remove(partition.number, keys))
        else:
            put = self._writer.put_partition(partition.number, keys, texts)
        put.add_done_callback(partial(self._answered, partition, parts))

    async def _remove(self, partition: int, keys: list[bytes]) -> None:
        """Remove entries, and wait for every answer: what comes next must not overtake any of them."""
        removals = [self._writer.remove(partition, key) for key in keys]
        for answer in await asyncio.gather(*removals, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    def _next(self, partition: _Partition, room: int) -> list[_Segment]:
        """Take up to so many events off the queue, and no more bytes than a message should have: puts or removals."""
        parts: list[_Segment] = []
        queue, size = partition.queue, 0
        while queue:
            segment = queue[0]
            if segment.batch.dropped:
                self._close(queue.popleft(), _withdrawn())
                continue
            if parts and parts[0].removes is not segment.removes:
                break
            count = 0
            for text in islice(segment.texts, max(0, room)):
                if size and size + len(text) > _MESSAGE_BYTES:
                    break
                size += len(text)
                count += 1
            if count == len(segment.keys):
                parts.append(queue.popleft())
                room -= count
                continue
            if count:
                parts.append(_Segment(segment.batch, segment.keys[:count], segment.texts[:count], segment.removes))
                del segment.keys[:count], segment.texts[:count]
            break
        return parts

    def _answered(self, partition: _Partition, parts: list[_Segment], put: asyncio.Future[None]) -> None:
        error = asyncio.CancelledError() if put.cancelled() else put.exception()
        partition.under_way = 0
        if error is None:
            partition.busy, partition.failed_at = False, None
            for part in parts:
                self._close(part)
            self._pump(partition)
            return
        now = self._grid.clock()
        since = partition.failed_at = now if partition.failed_at is None else partition.failed_at
        final = not isinstance(error, HazelcastError) or isinstance(error, HazelcastClientNotActiveError)
        if final or now - since >= self._retry_seconds:
            count = sum(len(part.keys) for part in parts)
            failure = GridError(
                f"The cluster did not confirm {count:,} events for partition {partition.number} of `{self.map_name}`: "
                f"{error or type(error).__name__}",
                "They may or may not be there. Putting the same events again does no harm.",
            )
            failure.__cause__ = error
            partition.busy, partition.failed_at = False, None
            for part in parts:
                self._close(part, failure)
            self._pump(partition)
            return
        # It may have happened or not. Before anything else goes into this partition it is made again.
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            _log.warning("A put into partition %d of %s is repeated: %s", partition.number, self.map_name, error)
        partition.queue.extendleft(reversed(parts))
        self.repeated += sum(len(part.keys) for part in parts)
        self._spawn_retry(partition)

    def _spawn_retry(self, partition: _Partition) -> None:
        async def again() -> None:
            await asyncio.sleep(_RETRY_SECONDS)
            partition.busy = False
            self._pump(partition)

        self._spawn(again())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------ room in the rings

    def _look_at(self, partition: _Partition) -> None:
        self._due.add(partition)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Task[None]) -> None:
        """Nobody looks any more. If that is because of an error, those who wait for room must not do so for ever."""
        error = None if looking.cancelled() else looking.exception()
        if error is not None:
            failure = GridError(f"The room in `{self.map_name}` cannot be seen: {error or type(error).__name__}")
            failure.__cause__ = error
            self._give_up([each for each in self._partitions if each.queue], failure)

    async def _look(self) -> None:
        """Look at the partitions that are due until none is."""
        while self._due:
            due = list(self._due)
            self._due.clear()
            marks = [(partition, partition.spent, partition.under_way) for partition in due]
            try:
                found = await self._readers.unread([each.number for each in due], self._limit - self._step)
            except (HazelcastError, GridscoreError) as error:
                if isinstance(error, HazelcastClientNotActiveError) or not self._grid.is_running:
                    self._give_up([each for each in self._partitions if each.queue], _closed(self.map_name, error))
                    return
                _log.warning("The room in %s cannot be seen, trying again: %s", self.map_name, error)
                self._due.update(due)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            now = self._grid.clock()
            for partition, spent, under_way in marks:
                # What was under way when we looked may or may not have been counted there.
                partition.spent += under_way - spent
                unread = partition.unread = found[partition.number]
                partition.allowance = self._step if unread.count + self._step <= self._limit else 0
                if partition.allowance or not partition.queue:
                    partition.blocked_at = None
                elif partition.blocked_at is None:
                    partition.blocked_at = now
            for partition in due:
                self._pump(partition)
            blocked = [each for each in due if each.blocked_at is not None and each.queue]
            self._tell(blocked, now)
            if blocked:
                self._due.update(blocked)
                await asyncio.sleep(_LOOK_SECONDS)
        self._tell([], self._grid.clock())

    def _tell(self, blocked: list[_Partition], now: float) -> None:
        """Say that we wait, or wait no longer; give up what has waited too long."""
        if not blocked:
            if self._waiting_since is not None and not any(each.blocked_at is not None for each in self._due):
                self.waited += now - self._waiting_since
                self._waiting_since = None
                if self.on_wait is not None:
                    self.on_wait(None)
            return
        if self._waiting_since is None:
            self._waiting_since = now
        worst = max(blocked, key=lambda each: (each.unread.count if each.unread else 0, -(each.blocked_at or 0)))
        waiting = self._waiting(worst, len(blocked), now - min(each.blocked_at or now for each in blocked))
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            _log.warning("%s: %s", self.map_name, waiting, extra={"action": "back_pressure", "job": waiting.job})
        if self.on_wait is not None:
            self.on_wait(waiting)
        if self.max_wait is None:
            return
        late = [each for each in blocked if now - (each.blocked_at or now) >= self.max_wait]
        if late:
            waiting = self._waiting(late[0], len(late), self.max_wait)
            error = BackPressureError(
                f"{sum(len(s.keys) for each in late for s in each.queue):,} events were not put into "
                f"`{self.map_name}` in {self.max_wait:g} s: {waiting}.",
                waiting.hint,
            )
            self._give_up(late, error)

    def _waiting(self, partition: _Partition, count: int, seconds: float) -> Waiting:
        unread, capacity = partition.unread, self._capacity
        return Waiting(
            self.map_name,
            job=unread.job if unread else "",
            state=unread.state if unread else "",
            partition=partition.number,
            unread=unread.count if unread else 0,
            capacity=capacity.partition if capacity else 0,
            owned=unread.owned if unread else False,
            partitions=count,
            seconds=seconds,
        )

    def _give_up(self, partitions: list[_Partition], error: GridscoreError) -> None:
        for partition in partitions:
            partition.blocked_at = None
            while partition.queue and not partition.busy:
                self._close(partition.queue.popleft(), error)


def _withdrawn() -> WithdrawnError:
    return WithdrawnError("The put was cancelled.")


def _closed(map_name: str, error: Exception) -> GridError:
    return GridError(f"The connection was closed before all events were put into `{map_name}`: {error}")
