"""What waits to be put by a producer: the entries of each call, and the queue of each partition."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.errors import GridError

if TYPE_CHECKING:
    from gridscore.producer.room import Unread

AT_ONCE_EVENTS = 32_768
# What may wait or be under way before `put` and `send` take no more; as much again may wait for full partitions.
AT_ONCE_BYTES = 32 << 20

# What may wait or be under way in one partition before callers with more for it must wait.
HELD_EVENTS, HELD_BYTES = AT_ONCE_EVENTS // 4, AT_ONCE_BYTES // 4


class WithdrawnError(GridError):
    """The caller no longer wants the put."""


class Receipt:
    """What one call has taken; `confirmed` waits for its end."""

    __slots__ = ("_answered", "count", "dropped", "error", "open", "partitions", "size")

    def __init__(self) -> None:
        self.count = self.size = 0
        self.partitions: set[PartitionQueue] = set()  # that it puts into
        self.open = 0  # not acknowledged yet
        self.error: Exception | None = None
        self.dropped = False
        self._answered: asyncio.Event = asyncio.Event()

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
        """Drop what is not under way yet."""
        self.dropped = True

    def opened(self, count: int) -> None:
        """Count entries that begin to wait."""
        self.open += count
        self._answered.clear()

    def closed(self, count: int, error: Exception | None) -> None:
        """Count entries that are answered, or given up."""
        self.error = self.error or error
        self.open -= count
        if not self.open:
            self._answered.set()


@dataclass(slots=True)
class Segment:
    """Entries of one call in one partition, to put or to remove; texts of removals are empty."""

    batch: Receipt
    partition: PartitionQueue
    keys: list[bytes]
    texts: list[bytes]
    removes: bool = False


@dataclass(slots=True, eq=False)
class PartitionQueue:
    """What waits and is under way in one partition."""

    number: int
    queue: deque[Segment] = field(default_factory=deque)
    entering: deque[asyncio.Future[None]] = field(default_factory=deque)  # callers that wait for room in the queue
    events: int = 0  # events that wait or are under way
    bytes: int = 0
    under_way: int = 0  # events in the message that is under way
    busy: bool = False  # whether there is one, or one is about to be repeated
    allowance: int = 0  # events that may be put since the last look
    spent: int = 0  # events put since then, or not acknowledged at that time
    blocked_at: float | None = None  # since when nothing can be put; None if something can
    failed_at: float | None = None  # since when puts fail; None if they do not
    unread: Unread | None = None  # what the last look found

    @property
    def is_crowded(self) -> bool:
        """Whether callers with more for it must wait."""
        return self.holds_enough or bool(self.entering)

    @property
    def holds_enough(self) -> bool:
        return self.events >= HELD_EVENTS or self.bytes >= HELD_BYTES
