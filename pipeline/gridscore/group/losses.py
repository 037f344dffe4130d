"""What a group does about loss, as its job or sink says: `on_loss: rescan`, `continue` or `halt`.

Losses are counted in the lease records, together with the offset that passes them, and so exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import EventsLostError
from gridscore.group import rescan

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.errors import GridscoreError
    from gridscore.grid import Grid
    from gridscore.group.leases import Leases
    from gridscore.group.offsets import Offsets
    from gridscore.group.stats import GroupStats
    from gridscore.group.subscription import Subscription

_log = logging.getLogger(__name__)

_HALT_SECONDS = 4.0
_ASK_ALL_SECONDS = 10.0


class Losses:
    """Acts on the losses of one group's partitions.

    Args:
        grid: The connection.
        subscription: What the group reads.
        stats: Where to count.
        leases: Of the partitions.
        offsets: Of the partitions.
        fail: Ends the reading with an error.
    """

    def __init__(
        self,
        grid: Grid,
        subscription: Subscription,
        stats: GroupStats,
        leases: Leases,
        offsets: Offsets,
        fail: Callable[[GridscoreError], None],
    ) -> None:
        self._grid = grid
        self._subscription = subscription
        self._name = subscription.group
        self._stats = stats
        self._leases = leases
        self._offsets = offsets
        self._fail = fail
        self._asked_all = float("-inf")
        self._counted: dict[int, int] = {}  # by partition, up to where its gaps are counted: one may be met again

    async def begin(self, partition: int) -> None:
        """Events were overwritten before anybody began: they are nobody's loss, but they are not left, either.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        if self._subscription.rescans:
            await rescan.request(self._grid, self._name, [partition], "begin")

    async def gap(self, partition: int, expected: int, first: int) -> None:
        """Events were overwritten before they were read.

        Args:
            partition: Of the event map.
            expected: Sequence that was to be read.
            first: Sequence that was read instead.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        lost = first - expected
        if (new := first - max(expected, self._counted.get(partition, expected))) > 0:
            self._counted[partition] = first
            self._stats.lost += new
            _log.error(
                "%s: partition %d lost %d events, overwritten before they were read (expected sequence %d, got %d)",
                self._name,
                partition,
                new,
                first - new,
                first,
                extra={"action": "lost", "lost": new, "partition": partition},
            )
        if self._subscription.rescans:
            # Written before the offset passes the gap, so that it outlives us.
            await rescan.request(self._grid, self._name, [partition], "gap")
        elif self._subscription.on_loss == "halt":
            await self._pass(partition, expected, first, lost)
            self._fail(
                EventsLostError(
                    f"Partition {partition} of `{self._subscription.map}` lost {lost} events before they were read, "
                    f"and `{self._name}` says `on_loss: halt`.",
                    f"{self._subscription.again} goes on behind the gap; give the journal more capacity, or start more "
                    "processes to read it.",
                )
            )

    async def regression(self, partition: int) -> None:
        """A journal has begun again.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        self._stats.regressions += 1
        self._counted.pop(partition, None)
        if not self._subscription.rescans:
            return
        await rescan.request(self._grid, self._name, [partition], "regression")
        if self._grid.clock() - self._asked_all > _ASK_ALL_SECONDS:
            # What befell this journal befell others, and may not show: where new events have covered it already.
            self._asked_all = self._grid.clock()
            await rescan.request(self._grid, self._name, range(self._grid.partition_count), "regression")

    def after_regression(self, partition: int) -> None:
        """The offset was set to where the journal begins now."""
        if self._subscription.on_loss == "halt":
            self._fail(
                EventsLostError(
                    f"The journal of partition {partition} of `{self._subscription.map}` has begun again: its map has "
                    f"lost writes, and `{self._name}` says `on_loss: halt`.",
                    f"{self._subscription.again} reads what the journal has now; give the map a backup-count.",
                )
            )

    async def _pass(self, partition: int, expected: int, first: int, lost: int) -> None:
        """Commit past a gap, so that what is started again goes on behind it; but not past what is still to be done.

        What was read before the gap was found may wait to be written. If that takes too long nothing is committed, and
        what is started again comes to the gap once more.
        """
        try:
            async with asyncio.timeout(_HALT_SECONDS):
                while (there := self._offsets.acknowledged(partition)) is not None and there.offset < expected:
                    await self._offsets.change()
                if there is not None:
                    behind = there._replace(offset=first, lost=there.lost + lost)
                    await self._leases.commit({partition: behind}, [partition])
                    self._offsets.begin(partition, behind)
        except (HazelcastError, TimeoutError) as error:
            _log.warning("%s: the gap could not be committed: %s", self._name, error or "no answer")
