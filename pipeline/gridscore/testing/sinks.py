"""A sink that keeps what it gets, in a list that several processes share; and what may go wrong with a destination."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.errors import GridscoreError
from gridscore.sinks.base import Refused, SinkInterruptedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gridscore.sinks.base import Delivered, Delivery


@dataclass(frozen=True, slots=True)
class ABORT:
    """The destination goes away in the middle of a delivery."""

    after: int = 0  # results of it that have been delivered by then
    for_good: bool = False  # it will never take any more: the sink stops


@dataclass(frozen=True, slots=True)
class PAUSE:
    """The destination takes its time: until `resume` is set, and then gets the delivery."""

    resume: asyncio.Event  # when to go on


@dataclass(slots=True)
class Received:
    """What a destination has received, from all processes."""

    results: list[Delivered] = field(default_factory=list)  # in the order of their arrival, with those that came again
    deliveries: list[int] = field(default_factory=list)  # how many results each delivery had
    # What is to happen to the next deliveries: `ABORT`, `PAUSE`, or None for nothing.
    faults: deque[ABORT | PAUSE | None] = field(default_factory=deque)
    refuses: set[object] = field(default_factory=set)  # keys of results that it does not take
    # Time that each result takes it; of a delivery that takes longer than it may, it keeps nothing.
    seconds_each: float = 0.0
    # Partitions by the process that was told of them last, each with the one that it took them over from.
    held: dict[str, dict[int, str]] = field(default_factory=dict)
    identities: set[str] = field(default_factory=set)  # of the processes that have opened it

    def then(self, *faults: ABORT | PAUSE | None) -> None:
        """Say what is to happen to the next deliveries."""
        self.faults.extend(faults)

    def newest(self) -> dict[object, Delivered]:
        """The newest result of each key, as a destination keeps it that compares epoch and sequence."""
        found: dict[object, Delivered] = {}
        for result in self.results:
            there = found.get(result.key)
            if there is None or (result.epoch, result.sequence) >= (there.epoch, there.sequence):
                found[result.key] = result
        return found


class ListSink:
    """Delivers to a list."""

    def __init__(
        self,
        received: Received,  # the list, and what is to go wrong with it
        name: str = "",  # of the process, for `Received.held`
        *,
        max_results: int = 1_000,  # results of one delivery at most
        linger: float = 0.0,  # seconds for which a delivery is filled
        positions: Mapping[int, int] | None = None,  # what it knows better than the grid, by partition
    ) -> None:
        self._received = received
        self._held = received.held.setdefault(name, {})
        self._positions = dict(positions or {})
        self.max_results, self.linger = max_results, linger
        self.identity = ""

    async def open(self) -> None:
        """Nothing can be wrong."""
        self._received.identities.add(self.identity)

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """Note who held them; gives the positions that it was made with."""
        self._held.update(partitions)
        return {partition: self._positions[partition] for partition in partitions if partition in self._positions}

    async def dropped(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._held.pop(partition, None)  # one may be taken away while we are being told of it

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Keep the results, unless something goes wrong.

        Raises SinkInterruptedError: `ABORT`; or it takes too long; GridscoreError: `ABORT(for_good=True)`.
        """
        if self._received.seconds_each:
            await self._take_time(len(delivery.results) * self._received.seconds_each, delivery.until)
        fault = self._received.faults.popleft() if self._received.faults else None
        if isinstance(fault, ABORT):
            self._keep(delivery.results[: fault.after])
            if fault.for_good:
                raise GridscoreError("The list takes nothing any more.")
            raise SinkInterruptedError("The list is away.")
        if isinstance(fault, PAUSE):
            await fault.resume.wait()
        self._received.deliveries.append(len(delivery.results))
        self._keep(delivery.results)
        refused = self._received.refuses
        return [Refused(result, "the list refuses it") for result in delivery.results if result.key in refused]

    async def close(self) -> None:
        """Nothing is kept open."""

    @staticmethod
    async def _take_time(seconds: float, until: float) -> None:
        left = max(0.0, until - time.monotonic())
        await asyncio.sleep(min(seconds, left))
        if seconds > left:
            raise SinkInterruptedError("The list is too slow.")

    def _keep(self, results: Iterable[Delivered]) -> None:
        self._received.results += [each for each in results if each.key not in self._received.refuses]
