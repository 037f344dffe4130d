"""Room in the members' heaps: how much more may be put before one of them runs out of memory.

Members measure their heaps every few seconds. Between two measurements a process may put only a part of what is free:
little near `STOP`, and above it nothing. Processes do not see each other, so each takes a share of that part: what it
contributed to the heap's latest growth, and a small one at first.

Use includes garbage: a healthy member may be at 99 % before it collects. So what counts is the lowest measurement since
the last collection, plus what we have put since. Members collect garbage only when they need room, so a producer that
put nothing might wait for long: it goes on to put a little until a measurement after a collection says that no more
fits.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError, TargetDisconnectedError

from gridscore.errors import GridError
from gridscore.grid.management import address_of, read_heap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from gridscore.grid.connection import Grid
    from gridscore.grid.metrics import Sample

_log = logging.getLogger(__name__)

SLOW = 0.8  # part of a heap from which on producers are slowed down noticeably
STOP = 0.93  # part of a heap above which nothing more is put: members need the rest for their own work
# Parts of what is free below `SLOW` and `STOP` that may be put between two measurements; the larger counts.
_BEFORE_SLOW, _BEFORE_STOP = 1 / 2, 1 / 8

_LEAST_SHARE = 1 / 16  # a process's share at first, and at least: 16 of them cannot overrun a heap
_LEAST = 1 / 256  # part of a heap that may always be put between two measurements while garbage may be what fills it
# Above `SLOW`, part of what is free with garbage counted that may be put: it bounds what several processes put.
_TO_END = 1 / 8

_LEAST_SHARE_TO_END = 1 / 4  # a process's share of that, at least: 16 of them put half of what is free
HEAP_ADVICE = (
    "Remove entries or maps that nobody needs, or give the members more heap, or start more members. A journal keeps "
    "what is removed from its map until newer events overwrite it: a smaller `capacity` keeps less."
)

MEASURE_ADVICE = "Let members measure more often: `metrics: {collection-frequency-seconds: 1}` in their hazelcast.yaml."

ENTRY_BYTES = 200  # what an entry takes besides its text: its key, its record, its place in the journal
UNDER_WAY = 1 / 32  # part of the smallest heap that this process may have under way at once
_ANSWER_SECONDS = 10.0
_MISSING_SECONDS = 60.0  # how long a member that reports no heap is not asked again
_RETRY_SECONDS = 1.0
_STALE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MemberHeap:
    """A member's heap."""

    address: str  # where the cluster says that it is
    used: int = 0  # bytes in use, uncollected garbage included
    most: int = 0  # bytes that it may have
    refusal: str = ""  # why it is not known; the figures are 0 then
    collections: int = 0  # how often garbage was collected

    @property
    def share(self) -> float:
        """Part of it that is in use."""
        return self.used / self.most if self.most else 0.0

    def __str__(self) -> str:
        return f"member {self.address} uses {self.share:.0%} of its {size_text(self.most)} of heap"


def size_text(count: int) -> str:
    """Bytes for people: `256 MB`, `3.5 GB`."""
    megabytes = count / (1 << 20)
    if megabytes >= 1000:
        return f"{megabytes / 1024:.1f} GB"
    return f"{megabytes:.0f} MB"


async def look_at_heaps(grid: Grid, seconds: float = _ANSWER_SECONDS) -> list[MemberHeap]:
    """The heaps as the members last measured them; with a refusal where one is not known."""

    async def look(member: Any) -> MemberHeap:
        address = address_of(member)
        try:
            async with asyncio.timeout(seconds):
                sample, _ = await read_heap(grid, member.uuid, 0)
        except TimeoutError:
            return MemberHeap(address, refusal="it does not answer")
        except (HazelcastError, GridError) as error:
            return MemberHeap(address, refusal=str(error))
        return MemberHeap(address, sample.used, sample.most, collections=sample.collections)

    return list(await asyncio.gather(*map(look, grid.members)))


class _Mark(NamedTuple):
    """A measurement, what we had put by then, and whether a collection preceded it."""

    sample: Sample
    spent: int
    collected: bool = False


class _Marks(NamedTuple):
    """The lowest measurement since the last collection, the last one, and our share of the heap's growth.

    Garbage, and what others put, make up the rest of the growth.
    """

    floor: _Mark
    last: _Mark
    share: float = _LEAST_SHARE

    @property
    def used(self) -> int:
        """What is used if all that we have put since the floor stays."""
        return self.floor.sample.used + self.last.spent - self.floor.spent

    @property
    def is_full(self) -> bool:
        """Whether it was too full even after a collection."""
        return self.floor.collected and self.floor.sample.used >= STOP * self.floor.sample.most

    @classmethod
    def after(cls, before: _Marks | None, sample: Sample, spent: int) -> _Marks:
        if before is None:
            return cls(_Mark(sample, spent), _Mark(sample, spent))
        collected = sample.collections != before.last.sample.collections
        last = _Mark(sample, spent, collected or before.floor.collected)
        since = before.floor if collected else before.last  # the two differ by what was put, not by garbage
        share, ours, grown = before.share, spent - since.spent, sample.used - since.sample.used
        if ours:
            share = max(min(ours / grown if grown > 0 else 1.0, 2 * share, 1.0), _LEAST_SHARE)
        now = cls(before.floor, last, share)
        return cls(last, last, share) if collected or sample.used <= now.used else now


class HeapWatch:
    """The members' heaps as producers of this process see them, one a connection.

    While something is put, it asks each member once a measurement. A member that reports no heap bounds nothing.

    `worst`: the heap with the least room; None if none is known; `stops`: whether nothing may be put because of it;
    otherwise a little may; `most_under_way`: bytes that may be under way at once.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._marks: dict[UUID, _Marks] = {}
        self._followers: dict[UUID, asyncio.Task[None]] = {}
        self._used = asyncio.Event()
        self._spent = 0
        self._until = float("inf")
        self._closed = False
        self.worst: MemberHeap | None = None
        self.stops = False
        self.most_under_way = float("inf")

    async def start(self) -> None:
        """Begin to look, unless it has begun, and go on in the background."""
        fresh = [self._follow(member) for member in self._grid.members if member.uuid not in self._followers]
        if fresh:
            try:
                async with asyncio.timeout(_RETRY_SECONDS):
                    await asyncio.gather(*(first.wait() for first in fresh))
            except TimeoutError:
                pass  # it comes later, or never

    def close(self) -> None:
        self._closed = True
        for task in self._followers.values():
            task.cancel()

    # ------------------------------------------------------------------ what may be put

    @property
    def has_room(self) -> bool:
        """Whether something may be put now. Those who wait ask repeatedly, which keeps the measurements coming."""
        if self._spent < self._until:
            return True
        self._used.set()
        return False

    def spend(self, entries: int, size: int) -> None:
        """Note that this many entries and bytes are on their way."""
        self._spent += size + entries * ENTRY_BYTES
        self._used.set()
        if not self._followers and not self._closed:
            self._judge()  # all members were gone; there may be new ones

    # ------------------------------------------------------------------ measurements

    def _follow(self, member: Any) -> asyncio.Event:
        first = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._ask(member, first))
        self._followers[member.uuid] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._followers.pop(member.uuid, None)
            self._marks.pop(member.uuid, None)
            first.set()
            self._judge()

        task.add_done_callback(ended)
        return first

    async def _ask(self, member: Any, first: asyncio.Event) -> None:
        """Ask a member for one measurement after the other until it has left."""
        since = 0
        while any(each.uuid == member.uuid for each in self._grid.members):
            try:
                # This takes until the member measures again: some have reasons to wait for minutes.
                sample, since = await read_heap(self._grid, member.uuid, since)
            except Exception as error:  # noqa: BLE001 -- whatever went wrong, nobody waits for this member for ever
                what = str(error) or type(error).__name__
                _log.debug("%s does not tell how full its heap is: %s", address_of(member), what)
                self._marks.pop(member.uuid, None)
                first.set()
                self._judge()
                since = 0
                lost = isinstance(error, TargetDisconnectedError | HazelcastClientNotActiveError)
                await asyncio.sleep(_RETRY_SECONDS if lost else _MISSING_SECONDS)
                continue
            self._marks[member.uuid] = _Marks.after(self._marks.get(member.uuid), sample, self._spent)
            first.set()
            self._judge()
            self._used.clear()
            idle_since = asyncio.get_running_loop().time()
            await self._used.wait()
            if asyncio.get_running_loop().time() - idle_since > _STALE_SECONDS:
                self._marks.pop(member.uuid, None)  # others may have filled it since

    def _judge(self) -> None:
        """Decide what may be put until the next measurement."""
        until, worst, stops, smallest = float("inf"), None, False, float("inf")
        for member in self._grid.members:
            if member.uuid not in self._followers and not self._closed:
                self._follow(member)
            marks = self._marks.get(member.uuid)
            if marks is None:
                continue
            most, used, raw = marks.last.sample.most, marks.used, marks.last.sample.used
            room = max((SLOW * most - used) * _BEFORE_SLOW, (STOP * most - used) * _BEFORE_STOP) * marks.share
            if not marks.is_full:
                room = max(room, most * _LEAST)
            if raw > SLOW * most:
                room = min(room, (most - raw) * _TO_END * max(marks.share, _LEAST_SHARE_TO_END))
            smallest = min(smallest, most)
            if marks.last.spent + room < until:
                until, stops = marks.last.spent + room, marks.is_full
                worst = MemberHeap(address_of(member), used, most, collections=marks.last.sample.collections)
        self._until, self.worst, self.stops = until, worst, stops
        self.most_under_way = smallest * UNDER_WAY


def heaps_of(grid: Grid) -> HeapWatch:
    """The heaps as all producers of a connection see them."""
    watch: HeapWatch | None = grid.shared.get(HeapWatch)
    if watch is None:
        watch = grid.shared[HeapWatch] = HeapWatch(grid)
        grid.on_close(watch.close)
    return watch


def worst_of(heaps: Sequence[MemberHeap]) -> MemberHeap | None:
    """The fullest of those that are known."""
    return max((heap for heap in heaps if heap.most), key=lambda heap: heap.share, default=None)
