"""What a listener saw of a steady load: when each event was due, when its result was seen, and of which epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.grid.writer import MapWriter, partition_of
from gridscore.proving.bench.steady import SteadyLoad

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray


class _Result(msgspec.Struct):
    epoch: int


_decode = msgspec.json.Decoder(_Result).decode


class SeenLoad(SteadyLoad):
    """A steady load of which all is kept that the listener saw."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.repeated = 0  # results that were seen once more
        self._texts_seen: list[tuple[float, str, str]] = []

    def _arrived(self, event: Any) -> None:
        key = event.key
        if key.startswith(self._prefix):
            self.repeated += key in self._found
            self._texts_seen.append((time.perf_counter(), key, event.value.to_string()))
        super()._arrived(event)

    def sights(self) -> Sights:
        """What was seen; call it when the load has ended."""
        writer, count = MapWriter(self._grid, self._job.events), self._grid.partition_count
        seen = self._texts_seen
        numbers = np.array([int(key[len(self._prefix) :]) for _, key, _ in seen], dtype=np.int64)
        return Sights(
            due=self._start + (numbers + 1) / self._rate,
            seen=np.array([at for at, _, _ in seen]),
            partition=np.array([partition_of(writer.serialize_key(key), count) for _, key, _ in seen]),
            epoch=np.array([_decode(text).epoch for _, _, text in seen]),
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
