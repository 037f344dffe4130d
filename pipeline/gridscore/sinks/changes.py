"""Tells a sink which partitions come and go, many at a time, and never while it delivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from gridscore.group.leases import Lease

_GATHER_SECONDS = 0.02
"""Leases are granted one by one, a moment apart: so long, and a sink hears of all of them at once."""


class _Coming(NamedTuple):
    lease: Lease
    offset: int
    position: asyncio.Future[int]


class PartitionChanges:
    """Partitions that come and go, in order.

    Args:
        taken: Tells the sink of partitions that came; gives the positions that it knows better.
        dropped: Tells the sink of partitions that went.
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

    async def take_over(self, lease: Lease, offset: int) -> int:
        """Returns when the sink has been told of a partition: where to read it from."""
        there = _Coming(lease, offset, asyncio.get_running_loop().create_future())
        self._coming[lease.partition] = there
        self._some.set()
        return await there.position

    def dropped(self, partition: int) -> None:
        """A partition went."""
        there = self._coming.pop(partition, None)
        if there is not None and not there.position.done():
            there.position.set_result(there.offset)  # whoever waits sees that it is no longer held
        if partition in self._told:
            self._told.discard(partition)
            self._going.add(partition)
            self._some.set()

    async def run(self) -> None:
        """Tell the sink until cancelled.

        Raises:
            GridscoreError: The sink cannot go on.
        """
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
                    if not each.position.done():
                        each.position.set_result(max(each.offset, known.get(partition, each.offset)))

    async def tell_dropped(self) -> None:
        """Tell the sink of what went."""
        if self._going:
            going, self._going = self._going, set()
            await self._tell_dropped(going)
