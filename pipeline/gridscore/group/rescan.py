"""What a group does about loss, as its job or sink says: `on_loss: rescan | continue | halt`.

Losses are counted in the lease records, together with the offset that passes them, and so exactly once. With `rescan`,
lost events of a partition are searched for in the map itself. A request is a record in the control map
`gridscore.rescans`, under group and partition: the partition's owner does it, and removes the request when nothing is
missing any more. So a request outlives the process that made it. Users of the group know what is missing: a job misses
events without a result, a sink all that the map has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import EventsLostError, GridError
from gridscore.grid.copies import payload
from gridscore.grid.records import Count, Records, Word, partition_in
from gridscore.grid.watches import Watched
from gridscore.grid.wire import Page, type_of
from gridscore.group.offsets import NotNowError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from gridscore.errors import GridscoreError
    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.group.leases import Leases
    from gridscore.group.offsets import Offsets
    from gridscore.group.subscription import GroupStats, Subscription

_log = logging.getLogger(__name__)

RESCANS_MAP = "gridscore.rescans"
LOOK_SECONDS = 2.0

_HALT_SECONDS = 4.0
_ASK_ALL_SECONDS = 10.0


async def request(grid: Grid, group: str, partitions: Iterable[int], reason: str) -> None:
    """Ask for partitions to be rescanned. `reason`: for people: `gap`, `regression`, `audit`."""
    records = Records(grid, RESCANS_MAP)
    value = {"reason": reason, "at": int(time.time() * 1000)}
    # This replaces an older request, so a worker that has just done that one does not remove it.
    await asyncio.gather(*(records.put(f"{group}/{partition}", value) for partition in partitions))


class Request(msgspec.Struct, frozen=True):
    """What the record of a request holds."""

    reason: Word
    at: Count  # since when, in milliseconds since 1970
    record: Any = None  # a `Record`


def request_of(record: Record, partition_count: int) -> Request:
    """The request in a control record. Raises ValueError if it is not valid."""
    partition_in(record.key, partition_count)
    return replace(msgspec.convert(record.value, Request), record=record)


async def all_requests(grid: Grid) -> dict[str, Request]:
    """Requests that are not done yet, by key."""
    count = grid.partition_count
    return await Records(grid, RESCANS_MAP).read(lambda record: request_of(record, count))


async def pending(grid: Grid, group: str) -> dict[int, Record]:
    """Requests for a group that are not done yet, by partition."""
    return {partition: found.record for partition, found in requests_of(group, await all_requests(grid)).items()}


async def watched(grid: Grid, group: str) -> dict[int, Record]:
    """The same, read once for all groups of a process, and only after a change."""
    count = grid.partition_count
    there = grid.shared.get(RESCANS_MAP)
    if there is None:
        there = grid.shared[RESCANS_MAP] = Watched(
            grid, RESCANS_MAP, lambda record: request_of(record, count), LOOK_SECONDS * 0.9
        )
    return {partition: found.record for partition, found in requests_of(group, await there.read()).items()}


def requests_of(group: str, requests: Mapping[str, Request]) -> dict[int, Request]:
    """The requests for a group among those for all, by partition."""
    found = {}
    for key, each in requests.items():
        name, _, partition = key.rpartition("/")
        if name == group:
            found[int(partition)] = each
    return found


async def forget(grid: Grid, group: str) -> None:
    """Remove a group's requests."""
    for record in (await pending(grid, group)).values():
        await Records(grid, RESCANS_MAP).remove(record)


class Rescanner:
    """Does the rescans that are requested for the partitions of a process, one after the other.

    `held`: returns the partitions that the group holds here; `rescan`: finds what a partition is missing, and returns
    when that is made good; raises `NotNowError` to leave it for later.
    """

    def __init__(
        self,
        grid: Grid,
        held: Callable[[], Collection[int]],
        name: str,
        stats: GroupStats,
        rescan: Callable[[int], Awaitable[None]],
    ) -> None:
        self._grid, self._held, self._name = grid, held, name
        self._stats, self._rescan = stats, rescan

    async def run(self) -> None:
        """Look for requests until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                requests = await watched(self._grid, self._name)
                self._stats.rescans = sum(1 for partition in requests if partition in self._held())
                for partition, record in requests.items():
                    if partition in self._held():
                        await self._do(partition, record)
            except (HazelcastError, GridError) as error:
                _log.warning("%s: a rescan failed, trying again: %s", self._name, error)

    async def _do(self, partition: int, record: Record) -> None:
        where = {"partition": partition}
        try:
            await self._rescan(partition)
        except NotNowError:
            _log.info("%s: the rescan of partition %d is left for later", self._name, partition, extra=where)
            return
        await Records(self._grid, RESCANS_MAP).remove(record)
        self._stats.rescans -= 1


class Event(NamedTuple):
    """An entry of the event map: serialized key and value."""

    key: bytes
    value: bytes


def page_of(events: list[Event], sequence: int = -1) -> Page:
    """Events as a page of a journal, but all with the same sequence."""
    values, foreign = [], {}
    for index, (_, value) in enumerate(events):
        text = payload(value)
        values.append(text or value)
        if not text:
            foreign[index] = type_of(value)
    keys = [event.key for event in events]
    return Page(0, 0, [sequence] * len(keys), keys, values, foreign, sum(map(len, values)))


class Losses:
    """Acts on the losses of one group's partitions. `fail`: ends the reading with an error."""

    def __init__(
        self,
        grid: Grid,
        subscription: Subscription,
        stats: GroupStats,
        leases: Leases,
        offsets: Offsets,
        fail: Callable[[GridscoreError], None],
    ) -> None:
        self._grid, self._subscription = grid, subscription
        self._name = subscription.group
        self._stats, self._leases, self._offsets = stats, leases, offsets
        self._fail = fail
        self._asked_all = float("-inf")
        self._counted: dict[int, int] = {}  # by partition, up to where gaps were counted: one may be met again

    async def begin(self, partition: int) -> None:
        """Events were overwritten before anybody began. They do not count as lost, but are searched for."""
        if self._subscription.rescans:
            await request(self._grid, self._name, [partition], "begin")

    async def gap(self, partition: int, expected: int, first: int) -> None:
        """Events were overwritten before they were read.

        `expected`: sequence that was to be read; `first`: sequence that was read instead.
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
            await request(self._grid, self._name, [partition], "gap")
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
        """A journal has begun again."""
        self._stats.regressions += 1
        self._counted.pop(partition, None)
        if not self._subscription.rescans:
            return
        await request(self._grid, self._name, [partition], "regression")
        if self._grid.clock() - self._asked_all > _ASK_ALL_SECONDS:
            # Others have begun again as well, and new events may hide it.
            self._asked_all = self._grid.clock()
            await request(self._grid, self._name, range(self._grid.partition_count), "regression")

    def after_regression(self, partition: int) -> None:
        """The offset was reset to the journal's beginning."""
        if self._subscription.on_loss == "halt":
            self._fail(
                EventsLostError(
                    f"The journal of partition {partition} of `{self._subscription.map}` has begun again: its map has "
                    f"lost writes or was destroyed, and `{self._name}` says `on_loss: halt`.",
                    f"{self._subscription.again} reads what the journal has now; give the map a backup-count.",
                )
            )

    async def _pass(self, partition: int, expected: int, first: int, lost: int) -> None:
        """Commit past a gap, so that a restart goes on behind it; but not past events that are not done yet.

        Events from before the gap may still wait to be written. If that takes too long nothing is committed, and a
        restart meets the gap again.
        """
        try:
            async with asyncio.timeout(_HALT_SECONDS):
                while (done := self._offsets.acknowledged(partition)) is not None and done.offset < expected:
                    await self._offsets.change()
                if done is not None:
                    behind = done._replace(offset=first, lost=done.lost + lost)
                    await self._leases.commit({partition: behind}, [partition])
                    self._offsets.begin(partition, behind)
        except (HazelcastError, TimeoutError) as error:
            _log.warning("%s: the gap could not be committed: %s", self._name, error or "no answer")
