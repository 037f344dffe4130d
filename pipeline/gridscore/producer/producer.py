"""A producer: puts events into a map, and waits before it would overwrite one that some job has not scored yet.

The journal of a partition is a ring. A producer keeps a part of it free (`RESERVE`), and puts at most a `STEP` of it
into a partition between two looks at what is unread there. Producers do not see what others are about to put; the free
part is for that: with the figures here, five at once can never overrun a ring.

A full partition holds up only its own events: up to a bound, those that wait for it do not count against what others
may put. Nor may more be put than the members' heaps have room for (`grid.heap`), which holds up everything.

Events go as one put-all a partition, one under way in each partition while the next collects behind it, so that two
writes of one key never change places; nor do a put and a removal. A put whose fate is unknown is repeated: with the
same key and value, it only adds another entry to the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError

from gridscore.errors import BackPressureError, GridError, GridscoreError, UsageError
from gridscore.grid import transport
from gridscore.grid.capacity import journal_capacity
from gridscore.grid.heap import SLOW, heaps_of
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.producer.queue import (
    AT_ONCE_BYTES,
    AT_ONCE_EVENTS,
    HELD_EVENTS,
    PartitionQueue,
    Receipt,
    Segment,
    WithdrawnError,
)
from gridscore.producer.room import RingReaders, WaitingForJob, WaitingForMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from gridscore.grid import Grid
    from gridscore.grid.capacity import Capacity
    from gridscore.producer.room import Waiting

_log = logging.getLogger(__name__)

RESERVE = 1 / 4  # part of a ring to keep free
STEP = 1 / 16  # most of a ring to put into a partition between two looks at it
SAY_SECONDS = 10.0  # pause between two log lines about waiting
_TEXTS = (bytes, bytearray, memoryview)
_CHUNK_EVENTS, _CHUNK_BYTES = 2_000, 1 << 20
_MESSAGE_EVENTS = 1_000
_MESSAGE_BYTES = 1 << 20
_LOOK_EARLY = 3 / 4
# Pauses between looks at full partitions: they grow from the first to the second while nothing moves.
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.02, 0.2

_MEMORY_SECONDS, _MEASURING_SECONDS = 0.1, 3.0
_HOT_SAMPLE, _HOT = 500, 3 / 4
_RETRY_SECONDS = 0.25


class Producer:
    """Puts JSON entries into one map. Keep one for long; any number of tasks may share it.

    A map without a journal, or that no job reads, is never waited for.
    """

    def __init__(
        self,
        grid: Grid,
        map_name: str,
        *,
        # Seconds that a partition, or a member's heap, may be full before what waits is given up; for ever if None.
        max_wait: float | None = None,
        retry_seconds: float = 60.0,  # how long to retry a put that the cluster does not confirm
        # Called when waiting begins, several times a second while it lasts, and with None when it ends.
        on_wait: Callable[[Waiting | None], None] | None = None,
        # Events, bytes and calls that may wait for full partitions; a quarter of it for one of them. More is refused at
        # once. If None, a caller that brings more waits, and brings nothing else meanwhile.
        most_held: tuple[int, int, int] | None = None,
    ) -> None:
        self._grid, self.map_name, self.max_wait = grid, map_name, max_wait
        self.on_wait, self._most_held, self._retry_seconds = on_wait, most_held, retry_seconds
        self._writer = MapWriter(grid, map_name)
        self._readers = RingReaders(grid, map_name)
        self._capacity: Capacity | None = None
        self._limit = self._step = 0
        self._prepared: asyncio.Task[None] | None = None
        self._partitions = [PartitionQueue(number) for number in range(grid.partition_count)]
        self._due: set[PartitionQueue] = set()
        self._full: set[PartitionQueue] = set()
        self._held: dict[Receipt, None] = {}  # calls that wait for full partitions, oldest first
        self._wanted = asyncio.Event()  # a look
        self._heaps = heaps_of(grid)
        self._for_memory: asyncio.Task[None] | None = None  # waits for it
        self._short_of_memory = False  # and was reported
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = self._bytes = 0  # waiting or under way
        self._room = asyncio.Event()
        self._sent = Receipt()
        self._said_at = float("-inf")
        self._said: tuple[str, str] | None = None  # the last reason to wait
        self._waiting_since: float | None = None
        self._chunk = 16
        self.acknowledged = 0  # events that the cluster has confirmed, with their backups
        self.repeated = 0  # events that were put again because the fate of the first put was unknown
        self.waited = 0.0  # seconds during which a partition, or a member's heap, had no room

    @property
    def capacity(self) -> Capacity | None:
        """Capacity of the journal, known once something was put; None if the map has none."""
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

    async def take(self, entries: Iterable[tuple[Any, bytes | None]]) -> Receipt:
        """Take entries, as `put`, and return when all of them are on their way, in the order of the calls.

        If one of them has failed already, the rest is not taken; `Receipt.confirmed` raises the error.

        Raises GridError if the journal's capacity is unknown.
        """
        taken = Receipt()
        try:
            await self._take(entries, taken)
        except BaseException:
            taken.drop()
            raise
        return taken

    async def send(self, entries: Iterable[tuple[Any, bytes | None]]) -> int:
        """Put entries without waiting for their confirmation, as `flush` does; returns how many were taken.

        Raises BackPressureError: as `put`, for what was sent before; GridError: as `put`, for what was sent before.
        """
        count = await self._take(entries, self._sent)
        if self._sent.error is not None:
            await self.flush()
        return count

    async def flush(self) -> None:
        """Wait until everything that was sent is confirmed. Raises BackPressureError: as `put`; GridError: as `put`."""
        sent, self._sent = self._sent, Receipt()
        await sent.confirmed()

    def withdraw(self, taken: Receipt) -> None:
        """Drop what a call has taken and is not under way yet, and make room for others at once."""
        self._withdraw(taken, _withdrawn())

    def _withdraw(self, taken: Receipt, error: GridError) -> None:
        taken.drop()
        for partition in taken.partitions:
            dropped = [segment for segment in partition.queue if segment.batch is taken]
            if dropped:
                partition.queue = deque(segment for segment in partition.queue if segment.batch is not taken)
            for segment in dropped:
                self._close(segment, error)

    # ------------------------------------------------------------------ waiting

    async def _take(self, entries: Iterable[tuple[Any, bytes | None]], batch: Receipt) -> int:
        await self._prepare()
        rest, count = iter(entries), 0
        while chunk := list(islice(rest, self._chunk)):
            while not self._has_room():
                self._room.clear()
                await self._room.wait()
            if batch.error is not None:
                break
            segments = self._split(chunk, batch)
            late: list[Segment] = []
            crowded: set[PartitionQueue] = set()
            for segment in segments:
                if self._most_held is None and (segment.partition in crowded or segment.partition.is_crowded):
                    crowded.add(segment.partition)
                    late.append(segment)
                else:
                    self._enqueue(segment)
            count += len(chunk)
            batch.count += len(chunk)
            for partition in dict.fromkeys(each.partition for each in segments):
                self._pump(partition)
            self._hold(batch.partitions & self._full, [batch])
            await asyncio.sleep(0)  # let messages go out and answers come in
            for segment in late:
                await self._enter(segment)
        return count

    def _has_room(self) -> bool:
        events, size = self._events, self._bytes
        most = self._most_under_way
        if events <= AT_ONCE_EVENTS and size <= most:
            return True
        held = sum(each.events for each in self._full)
        held_size = sum(each.bytes for each in self._full)
        return max(events - held, held) <= AT_ONCE_EVENTS and max(size - held_size, held_size) <= most

    @property
    def _most_under_way(self) -> float:
        """Bytes that may wait or be under way; as many more may wait for full partitions."""
        return min(AT_ONCE_BYTES, self._heaps.most_under_way)

    def _split(self, chunk: list[tuple[Any, bytes | None]], batch: Receipt) -> list[Segment]:
        """The entries by partition, in the order of the chunk within each."""
        count, serialize, size = self._grid.partition_count, self._writer.serialize_key, 0
        latest: dict[int, Segment] = {}
        segments = []
        serialized = [serialize(key) for key, _ in chunk]  # before anything is queued: a key may not be serializable
        for data, (_, text) in zip(serialized, chunk, strict=True):
            number = partition_of(data, count)
            segment = latest.get(number)
            removes = text is None
            if segment is None or segment.removes is not removes:
                segment = latest[number] = Segment(batch, self._partitions[number], [], [], removes)
                segments.append(segment)
            segment.keys.append(data)
            if text is not None:
                segment.texts.append(text)
                size += len(text)
            else:
                segment.texts.append(b"")
        # Before anything is queued, or whoever sends it would fail, and nobody be told.
        if wrong := [kind for each in segments for kind in set(map(type, each.texts)) if not issubclass(kind, _TEXTS)]:
            raise UsageError(
                f"The producer takes texts of JSON as bytes, not `{wrong[0].__name__}`.",
                "Encode it: `json.dumps(event).encode()`; or use `put_events`, which takes dictionaries.",
            )
        # Smaller chunks as soon as events are larger: a chunk is always taken whole.
        self._chunk = max(1, min(_CHUNK_EVENTS, _CHUNK_BYTES * len(chunk) // max(1, size)))
        return segments

    def _enqueue(self, segment: Segment) -> None:
        partition, count, size = segment.partition, len(segment.keys), sum(map(len, segment.texts))
        partition.queue.append(segment)
        partition.events += count
        partition.bytes += size
        self._events += count
        self._bytes += size
        segment.batch.opened(count)
        segment.batch.size += size
        segment.batch.partitions.add(partition)

    async def _enter(self, segment: Segment) -> None:
        """Enqueue a segment of a crowded partition when there is room, in turn."""
        partition = segment.partition
        if partition.is_crowded:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            partition.entering.append(turn)
            try:
                await turn
                if segment.batch.error is None:
                    self._enqueue(segment)
            finally:
                partition.entering.remove(turn)
                self._admit(partition)
        else:
            self._enqueue(segment)
        self._pump(partition)

    @staticmethod
    def _admit(partition: PartitionQueue) -> None:
        if partition.entering and not partition.holds_enough and not partition.entering[0].done():
            partition.entering[0].set_result(None)

    def _prepare(self) -> asyncio.Future[None]:
        if self._prepared is None or (self._prepared.done() and self._failed(self._prepared)):
            self._prepared = asyncio.get_running_loop().create_task(self._find_capacity())
        return asyncio.shield(self._prepared)

    @staticmethod
    def _failed(task: asyncio.Task[None]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _find_capacity(self) -> None:
        await self._writer.prepare()
        await self._heaps.start()
        capacity = self._capacity = await journal_capacity(self._grid, self.map_name)
        if capacity is not None:
            ring = capacity.partition
            self._limit = max(1, ring - max(1, int(ring * RESERVE)))
            self._step = max(1, int(ring * STEP))

    def _close(self, segment: Segment, error: Exception | None = None) -> None:
        """Count the entries of a segment as answered, or given up."""
        count, size, partition = len(segment.keys), sum(map(len, segment.texts)), segment.partition
        if error is None:
            self.acknowledged += count
        self._events -= count
        self._bytes -= size
        partition.events -= count
        partition.bytes -= size
        self._room.set()
        self._admit(partition)
        segment.batch.closed(count, error)

    # ------------------------------------------------------------------ putting

    def _pump(self, partition: PartitionQueue) -> None:
        """Put what waits in a partition, as far as there is room."""
        if partition.busy:
            return
        if partition.queue and self._lacks_memory(partition):
            self._next(partition, 0)  # drops what was withdrawn
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
        if not parts[0].removes:
            self._heaps.spend(len(keys), sum(map(len, keys)) + sum(map(len, texts)))
        if self._capacity is not None and partition.spent >= partition.allowance * _LOOK_EARLY:
            self._look_at(partition)  # early, so that the answer is there in time
        if parts[0].removes:
            put: asyncio.Future[None] = self._spawn(self._remove(partition.number, keys))
        else:
            put = self._writer.put_partition(partition.number, keys, texts)
        put.add_done_callback(partial(self._answered, partition, parts))

    async def _remove(self, partition: int, keys: list[bytes]) -> None:
        """Remove entries, and wait for every answer: nothing may overtake them."""
        removals = [self._writer.remove(partition, key) for key in keys]
        for answer in await asyncio.gather(*removals, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    def _next(self, partition: PartitionQueue, room: int) -> list[Segment]:
        """Take the next message off the queue: puts or removals, at most `room` of them."""
        parts: list[Segment] = []
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
                keys, texts = segment.keys[:count], segment.texts[:count]
                parts.append(Segment(segment.batch, partition, keys, texts, segment.removes))
                del segment.keys[:count], segment.texts[:count]
            break
        return parts

    def _answered(self, partition: PartitionQueue, parts: list[Segment], put: asyncio.Future[None]) -> None:
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
                "They may or may not have been put. Putting the same events again does no harm.",
            )
            failure.__cause__ = error
            partition.busy, partition.failed_at = False, None
            for part in parts:
                self._close(part, failure)
            self._pump(partition)
            return
        # It may or may not have happened: repeat it before anything else goes into this partition.
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            _log.warning("A put into partition %d of %s is repeated: %s", partition.number, self.map_name, error)
        partition.queue.extendleft(reversed(parts))
        self.repeated += sum(len(part.keys) for part in parts)
        self._spawn_retry(partition)

    def _spawn_retry(self, partition: PartitionQueue) -> None:
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

    # ------------------------------------------------------------------ room in the heaps

    def _lacks_memory(self, partition: PartitionQueue) -> bool:
        """Whether memory is too short for what is next; it is then put as soon as there is enough."""
        if partition.queue[0].removes or self._heaps.has_room:
            return False
        if self._for_memory is None:
            self._for_memory = self._spawn(self._go_on_with_memory())
            self._for_memory.add_done_callback(self._looked)
        return True

    async def _go_on_with_memory(self) -> None:
        try:
            await self._wait_for_memory()
        finally:
            self._for_memory = None
        for partition in self._partitions:
            self._pump(partition)
        if self._short_of_memory and self._for_memory is None:
            self._short_of_memory = False
            if self._waiting_since is None and self.on_wait is not None:
                self.on_wait(None)

    async def _wait_for_memory(self) -> None:
        """Wait until something may be put, or nothing is left to put."""
        began = self._grid.clock()
        while (held := [each for each in self._partitions if each.queue]) and not self._heaps.has_room:
            now, worst = self._grid.clock(), self._heaps.worst
            seconds = now - began
            # The next measurement of a heap that is not full brings room: report it only if that takes long.
            if worst is not None and (worst.share >= SLOW or seconds >= _MEASURING_SECONDS):
                self._short_of_memory = True
                waiting = WaitingForMemory(map_name=self.map_name, seconds=seconds, heap=worst, stops=self._heaps.stops)
                self._say(waiting, now)
                if self.max_wait is not None and seconds >= self.max_wait:
                    self._give_up_late(held, waiting)
            for partition in held:
                self._pump(partition)
            await asyncio.sleep(_MEMORY_SECONDS)
        self.waited += self._grid.clock() - began

    # ------------------------------------------------------------------ room in the rings

    def _look_at(self, partition: PartitionQueue) -> None:
        if partition not in self._full:  # full ones have a pace of their own
            self._due.add(partition)
            self._wanted.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Task[None]) -> None:
        """Looking has ended. If it has failed, nothing may wait for room for ever."""
        error = None if looking.cancelled() else looking.exception()
        if error is not None:
            failure = GridError(f"The room in `{self.map_name}` is unknown: {error or type(error).__name__}")
            failure.__cause__ = error
            self._give_up([each for each in self._partitions if each.queue], failure)

    async def _look(self) -> None:
        """Look at the partitions that are due or full, until there are none."""
        pause, again_at = _FIRST_LOOK_SECONDS, 0.0
        while self._due or self._full:
            self._wanted.clear()
            now = self._grid.clock()
            full = set(self._full) if now >= again_at else set()
            due = list(self._due | full)  # each once, as what was put since the last look is subtracted
            self._due.clear()
            if due and not await self._look_into(due):
                return
            now = self._grid.clock()
            if full:
                pause = _FIRST_LOOK_SECONDS if not full <= self._full else min(_LOOK_SECONDS, pause * 2)
                again_at = now + pause
            elif not self._full:
                again_at, pause = 0.0, _FIRST_LOOK_SECONDS
            elif not again_at:
                again_at = now + pause
            self._tell(now)
            if self._waiting_since is not None and not self._full:
                await asyncio.sleep(_LOOK_SECONDS)  # calls that were given up hear why before it is over
            if self._full and not self._due:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, again_at - now)):
                        await self._wanted.wait()
        self._tell(self._grid.clock())

    async def _look_into(self, due: list[PartitionQueue]) -> bool:
        """Find out how much may be put into partitions, and put it; False if the connection is gone."""
        marks = [(partition, partition.spent, partition.under_way) for partition in due]
        try:
            found = await self._readers.unread([each.number for each in due], self._limit - self._step)
        except (HazelcastError, GridscoreError) as error:
            if isinstance(error, HazelcastClientNotActiveError) or not self._grid.is_running:
                self._give_up([each for each in self._partitions if each.queue], _closed(self.map_name, error))
                return False
            _log.warning("The room in %s is unknown, trying again: %s", self.map_name, error)
            self._due.update(each for each in due if each not in self._full)
            await asyncio.sleep(_RETRY_SECONDS)
            return True
        now = self._grid.clock()
        for partition, spent, under_way in marks:
            # What was under way at the look may or may not have been counted.
            partition.spent += under_way - spent
            unread = partition.unread = found[partition.number]
            partition.allowance = self._step if unread.count + self._step <= self._limit else 0
            if partition.allowance or not partition.queue:
                partition.blocked_at = None
                self._full.discard(partition)
            else:
                self._full.add(partition)
                if partition.blocked_at is None:
                    partition.blocked_at = now
        self._room.set()  # what waits for full partitions does not count against what others may put
        for partition in due:
            self._admit(partition)
            self._pump(partition)
        full = self._full.intersection(due)
        self._hold(full, (segment.batch for each in full for segment in each.queue))
        return True

    def _tell(self, now: float) -> None:
        """Report whether we wait; give up what has waited too long."""
        full = [each for each in self._full if each.queue]
        if not full:
            if self._waiting_since is not None and not self._full:
                self.waited += now - self._waiting_since
                self._waiting_since = None
                if self.on_wait is not None and self._for_memory is None:
                    self.on_wait(None)
            return
        if self._waiting_since is None:
            self._waiting_since = now
        worst = max(full, key=lambda each: (each.unread.count if each.unread else 0, -(each.blocked_at or 0)))
        self._say(self._waiting(worst, len(full), now - min(each.blocked_at or now for each in full)), now)
        if self.max_wait is None:
            return
        late = [each for each in full if now - (each.blocked_at or now) >= self.max_wait]
        if late:
            self._give_up_late(late, self._waiting(late[0], len(late), self.max_wait))

    def _say(self, waiting: Waiting, now: float) -> None:
        reason = (waiting.job, str(waiting).partition(":")[0])
        if now - self._said_at >= SAY_SECONDS or reason != self._said:
            self._said_at, self._said = now, reason
            _log.warning("%s: %s", self.map_name, waiting, extra={"action": "back_pressure", "job": waiting.job})
        if self.on_wait is not None:
            self.on_wait(waiting)

    def _waiting(self, partition: PartitionQueue, count: int, seconds: float) -> WaitingForJob:
        unread, capacity = partition.unread, self._capacity
        return WaitingForJob(
            map_name=self.map_name,
            job=unread.job if unread else "",
            state=unread.state if unread else "",
            partition=partition.number,
            key=self._hot_key(partition),
            unread=unread.count if unread else 0,
            capacity=capacity.partition if capacity else 0,
            owned=unread.owned if unread else False,
            partitions=count,
            seconds=seconds,
        )

    def _hot_key(self, partition: PartitionQueue) -> str:
        """The key of most entries that wait for a partition; empty if they have many, or few wait."""
        keys = list(islice((key for segment in partition.queue for key in segment.keys), _HOT_SAMPLE))
        if len(keys) < self._step:
            return ""
        (key, count), *_ = Counter(keys).most_common(1)
        if count < len(keys) * _HOT:
            return ""
        try:
            return repr(transport.to_object(self._grid.client, key))[:100]
        except HazelcastError:  # of a type that is not registered here
            return ""

    def _hold(self, full: set[PartitionQueue], calls: Iterable[Receipt]) -> None:
        """Note calls that wait for full partitions; refuse the last ones if more wait than may."""
        if self._most_held is None or not full:
            return
        events, size, count = self._most_held
        events, size = min(AT_ONCE_EVENTS // 2, events), min(int(self._most_under_way) // 2, size)
        for partition in full:
            while len(partition.queue) > 1 and (
                partition.events > min(HELD_EVENTS, events // 4)
                or partition.bytes > size // 4
                or len(partition.queue) > count // 4
            ):
                self._refuse(partition.queue[-1].batch)
        self._held.update(dict.fromkeys(calls))
        held = [each for each in self._held if each.open]
        events, size = sum(each.count for each in held) - events, sum(each.size for each in held) - size
        while len(held) > 1 and (events > 0 or size > 0 or len(held) > count):
            call = held.pop()
            events, size = events - call.count, size - call.size
            self._refuse(call)
        self._held = dict.fromkeys(held)

    def _refuse(self, call: Receipt) -> None:
        partition = next(each for each in call.partitions if each in self._full)
        waiting = self._waiting(partition, 1, self._grid.clock() - (partition.blocked_at or 0.0))
        self._withdraw(call, BackPressureError(f"There is no room in `{self.map_name}`: {waiting}.", waiting.hint))

    def _give_up_late(self, partitions: list[PartitionQueue], waiting: Waiting) -> None:
        count = sum(len(segment.keys) for each in partitions for segment in each.queue)
        text = f"{count:,} events were not put into `{self.map_name}` in {self.max_wait:g} s: {waiting}."
        self._give_up(partitions, BackPressureError(text, waiting.hint))

    def _give_up(self, partitions: list[PartitionQueue], error: GridscoreError) -> None:
        for partition in partitions:
            partition.blocked_at = None
            self._full.discard(partition)
            while partition.queue and not partition.busy:
                self._close(partition.queue.popleft(), error)


def _withdrawn() -> WithdrawnError:
    return WithdrawnError("The put was cancelled.")


def _closed(map_name: str, error: Exception) -> GridError:
    return GridError(f"The connection was closed before all events were put into `{map_name}`: {error}")
