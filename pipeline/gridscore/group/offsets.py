"""Offsets: what was written for each partition, what was acknowledged, and so what may be committed.

The writes of a partition are sent in order, and answered in any. An offset may be committed once every write before it
is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.group.leases import Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class NotNowError(Exception):
    """Waiting for a partition to reach some offset is in vain: it is no longer ours, or makes no progress."""


@dataclass(slots=True, eq=False)
class Write:
    """A put-all under way, and what it allows to be committed."""

    partition: int
    next: int  # sequence to read after it
    events: int  # results in it
    lost: int  # events just before those of this write that were overwritten before they were read
    arrived_at: float  # when its events had been read, of the grid's clock
    unkept: int = 0  # events that were rejected, and have no dead letter
    done: bool = False
    counts: bool = True  # False once its partition is dropped or put back: nobody waits for its answer any more


@dataclass(slots=True)
class _Partition:
    acknowledged: Progress
    written: int
    pending: deque[Write] = field(default_factory=deque)


class Offsets:
    """The partitions that are being scored, and the progress of each.

    `unacknowledged`: results that are written and not acknowledged; `moved`: partitions that may be ahead of their
    committed offset; `Group` removes what it has committed.
    """

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._changed = asyncio.Event()
        self.unacknowledged = 0
        self.moved: set[int] = set()

    def begin(self, partition: int, progress: Progress) -> None:
        """Go on with a partition from here, and forget what was under way for it."""
        self.forget(partition)
        self._partitions[partition] = _Partition(progress, progress.offset)
        self.moved.add(partition)

    def forget(self, partition: int) -> None:
        if partition in self._partitions:
            self.rewind(partition)
            del self._partitions[partition]
        self.moved.discard(partition)
        self._changed.set()

    def sent(self, write: Write) -> None:
        """A write is under way."""
        there = self._partitions[write.partition]
        there.pending.append(write)
        there.written = max(there.written, write.next)
        self.unacknowledged += write.events

    def answered(self, write: Write) -> bool:
        """A write was answered; False if nobody waits for it any more."""
        self.unacknowledged -= write.events
        self._changed.set()
        return write.counts

    def acknowledge(self, write: Write) -> int:
        """A write has succeeded: move the offset as far as possible; returns how many results are safe now."""
        write.done = True
        there = self._partitions[write.partition]
        events = 0
        while there.pending and there.pending[0].done:
            first = there.pending.popleft()
            before = there.acknowledged
            there.acknowledged = Progress(first.next, before.lost + first.lost, before.unkept + first.unkept)
            events += first.events
            self.moved.add(write.partition)
        self._changed.set()
        return events

    def acknowledged(self, partition: int) -> Progress | None:
        """What may be committed for a partition; None if it is not being scored."""
        there = self._partitions.get(partition)
        return None if there is None else there.acknowledged

    def committable(self, partitions: Iterable[int]) -> dict[int, Progress]:
        """What may be committed for these partitions; without those that are not being scored."""
        there = self._partitions
        return {partition: there[partition].acknowledged for partition in partitions if partition in there}

    def rewind(self, partition: int) -> tuple[int, int]:
        """Forget what is under way; returns the offset to read from, and the one before which all was written."""
        there = self._partitions[partition]
        for write in there.pending:
            write.counts = False
        there.pending.clear()
        self._changed.set()
        return there.acknowledged.offset, there.written

    def settled(self, partition: int) -> bool:
        """Whether nothing is under way for a partition."""
        there = self._partitions.get(partition)
        return there is None or not there.pending

    async def settle(self, partitions: Collection[int]) -> None:
        """Return when nothing is under way for these partitions."""
        while not all(map(self.settled, partitions)):
            await self.change()

    async def stand(self, partition: int) -> bool:
        """Return when all that is under way for a partition now was acknowledged; False if it no longer counts."""
        there = self._partitions.get(partition)
        for write in there.pending.copy() if there is not None else ():
            while write.counts and not write.done:
                await self.change()
            if not write.counts:
                return False
        return there is not None

    async def change(self) -> None:
        """Return when the next write is answered, or no longer counts."""
        self._changed.clear()
        await self._changed.wait()
