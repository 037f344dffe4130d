"""A sink as the `Subscriber` of its group: it hears of partitions many at a time, and never while it delivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from gridscore.group.subscription import Subscriber

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from gridscore.group.leases import Lease

# Leases are granted one by one, a moment apart; after this pause, the sink hears of all of them at once.
_GATHER_SECONDS = 0.02


class _Coming(NamedTuple):
    lease: Lease
    offset: int
    known: asyncio.Future[int]


class PartitionChanges(Subscriber):
    """Partitions that come and go, in order. Whatever may have been delivered before is delivered again.

    `taken`: tells the sink of partitions that came; returns the offsets that it knows better; `dropped`: tells the sink
    of partitions that went.
    """

    def __init__(
        self,
        taken: Callable[[Mapping[int, str]], Awaitable[Mapping[int, int]]],
        dropped: Callable[[Collection[int]], Awaitable[None]],
    ) -> None:
        self._tell_taken = taken
        self._tell_dropped = dropped
        self._coming: dict[int, _Coming] = {}
        self._going: set[int] = set()
        self._told: set[int] = set()
        self._some = asyncio.Event()

    async def offset_at(self, _partition: int, _oldest: int, newest: int) -> int:
        """The journal's end."""
        return newest + 1

    async def take_over(self, lease: Lease, offset: int) -> int:
        """The offset to read a partition from, once the sink was told of it."""
        coming = self._coming[lease.partition] = _Coming(lease, offset, asyncio.get_running_loop().create_future())
        self._some.set()
        return await coming.known

    def dropped(self, partition: int) -> None:
        coming = self._coming.pop(partition, None)
        if coming is not None and not coming.known.done():
            coming.known.set_result(coming.offset)  # `take_over` returns, and the group sees that it is no longer held
        if partition in self._told:
            self._told.discard(partition)
            self._going.add(partition)
            self._some.set()

    async def run(self) -> None:
        """Tell the sink until cancelled. Raises GridscoreError if the sink cannot go on."""
        while True:
            await self._some.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._some.clear()
            await self.tell_dropped()
            if self._coming:
                coming, self._coming = self._coming, {}
                self._told.update(coming)
                known = await self._tell_taken({partition: each.lease.before for partition, each in coming.items()})
                for partition, each in coming.items():
                    if not each.known.done():
                        each.known.set_result(max(each.offset, known.get(partition, each.offset)))

    async def tell_dropped(self) -> None:
        """Tell the sink of what went."""
        if self._going:
            going, self._going = self._going, set()
            await self._tell_dropped(going)
