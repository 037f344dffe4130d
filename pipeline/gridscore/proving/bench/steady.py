"""A steady load with a listener beside it: when each event was due, when its result was seen, and of which epoch.

Events are put at a schedule, whatever comes back, by this process. The listener is in it as well: one clock.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from gridscore.client.producer import Producer
from gridscore.client.results import listen
from gridscore.errors import GridscoreError
from gridscore.grid.writer import MapWriter, partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.job import Job

_TICK_SECONDS = 0.01
_LATE_SECONDS = 60.0
_numbers = itertools.count()


class _Result(msgspec.Struct):
    epoch: int


_decode = msgspec.json.Decoder(_Result).decode


class SteadyLoad:
    """Puts events at a rate while entered, and notes their results. Leaving it waits for all of them.

    Args:
        grid: The connection.
        job: Which reads the events and writes the results.
        texts: JSON texts of the events, taken again and again.
        rate: Events per second.
        check: Raises if there is no use in waiting.

    Attributes:
        repeated: Results that were seen once more.
    """

    def __init__(self, grid: Grid, job: Job, texts: Sequence[bytes], rate: float, check: Callable[[], None]) -> None:
        self._grid = grid
        self._job = job
        self._texts = texts
        self._rate = rate
        self._check = check
        self._prefix = f"load{next(_numbers)}-"
        self._put = 0
        self.repeated = 0
        self._seen: list[tuple[float, str, str]] = []
        self._found: set[str] = set()
        self._stop = False

    async def __aenter__(self) -> Self:
        self._registration = await listen(self._grid, self._job.results, self._arrived)
        self._start = time.perf_counter()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop = True
        try:
            if kind is None:
                await self._task
                await self._finish()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await (await self._grid.map(self._job.results)).remove_entry_listener(self._registration)

    def _arrived(self, event: Any) -> None:
        key = event.key
        if key.startswith(self._prefix):
            self.repeated += key in self._found
            self._found.add(key)
            self._seen.append((time.perf_counter(), key, event.value.to_string()))

    async def _run(self) -> None:
        producer, texts = Producer(self._grid, self._job.events), self._texts
        while not self._stop:
            due = int((time.perf_counter() - self._start) * self._rate)
            numbers = range(self._put, due)
            await producer.send((f"{self._prefix}{n}", texts[n % len(texts)]) for n in numbers)
            self._put = due
            await asyncio.sleep(_TICK_SECONDS)
        await producer.flush()

    async def _finish(self) -> None:
        deadline = time.monotonic() + _LATE_SECONDS
        while len(self._found) < self._put:
            self._check()
            if time.monotonic() > deadline:
                raise GridscoreError(f"{self._put - len(self._found):,} events have no result after {_LATE_SECONDS} s.")
            await asyncio.sleep(_TICK_SECONDS)

    def sights(self) -> Sights:
        """What was seen; call it when the load has ended."""
        writer, count = MapWriter(self._grid, self._job.events), self._grid.partition_count
        numbers = np.array([int(key[len(self._prefix) :]) for _, key, _ in self._seen], dtype=np.int64)
        return Sights(
            due=self._start + (numbers + 1) / self._rate,
            seen=np.array([at for at, _, _ in self._seen]),
            partition=np.array([partition_of(writer.serialize_key(key), count) for _, key, _ in self._seen]),
            epoch=np.array([_decode(text).epoch for _, _, text in self._seen]),
        )


@dataclass(frozen=True, slots=True)
class Sights:
    """Results as a listener saw them, in columns of one length, one row for each time that one was seen."""

    due: NDArray[np.float64]  # when the event was due, seconds of `time.perf_counter`
    seen: NDArray[np.float64]  # when the listener was told of the result, of the same clock
    partition: NDArray[np.int64]  # of the event
    epoch: NDArray[np.int64]  # of the lease that the result was written under

    def longest(self, partitions: Collection[int], began: float, ended: float) -> NDArray[np.float64]:
        """The longest time from due to seen in each partition, of what waited at some time within a window.

        Returns: milliseconds, one for each of the partitions that had something to do then.
        """
        there = (self.seen > began) & (self.due < ended) & np.isin(self.partition, list(partitions))
        longest: NDArray[np.float64] = np.full(int(self.partition.max(initial=0)) + 1, -np.inf)
        np.maximum.at(longest, self.partition[there], (self.seen - self.due)[there] * 1000)
        return longest[np.isfinite(longest)]

    def strangers(self, epochs: dict[int, int], began: float, ended: float) -> set[int]:
        """Those of the partitions that had a result of another epoch, seen within a window."""
        there = (self.seen > began) & (self.seen < ended)
        pairs = zip(self.partition[there].tolist(), self.epoch[there].tolist(), strict=True)
        return {partition for partition, epoch in pairs if epochs.get(partition, epoch) != epoch}
