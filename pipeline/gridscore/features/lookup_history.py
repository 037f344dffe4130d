"""The history of a lookup: several entries of a key, each valid from a time on, for a history of events.

It is offline only: the lookup map of a cluster holds the newest entry of each key.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features.columns import number_of
from gridscore.features.events import struct_decoder
from gridscore.features.lookup_table import LookupTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gridscore.job import Lookup


class LookupHistory(LookupTable):
    """A table of entries by key and by the time from which each is valid.

    Args:
        lookup: What the job file says of it, with `valid_from`.
    """

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(lookup)
        self._valid_from = str(lookup.valid_from)
        self._moments: dict[Any, list[tuple[float, int]]] = {}
        self._is_sorted = True

    def put(self, key: Any, payload: bytes | str) -> None:
        """Take an entry, beside others of the key; of two from the same time on, the one that is put last counts."""
        number = len(self)
        super().put((key, number), payload)
        if row := self._index[key, number]:
            moment = float(self.column(self._valid_from)[row])
            self._moments.setdefault(key, []).append((moment, row))
            self._is_sorted = False

    def rows_at(self, keys: Sequence[Any], times: NDArray[np.float64]) -> NDArray[np.intp]:
        """The row of each key at a time: that of the newest entry which is valid from then or before; 0 if none is."""
        if not self._is_sorted:
            for moments in self._moments.values():
                moments.sort()
            self._is_sorted = True
        found = np.zeros(len(keys), np.intp)
        for position, (key, moment) in enumerate(zip(keys, times.tolist(), strict=True)):
            moments = self._moments.get(key, [])
            if before := bisect_right(moments, (moment, math.inf)):
                found[position] = moments[before - 1][1]
        return found


def newest(lookup: Lookup, entries: Iterable[tuple[Any, bytes]]) -> list[tuple[Any, bytes]]:
    """Of the entries of a lookup with `valid_from`, those that are in force now: what its map should hold."""
    name = str(lookup.valid_from)
    kind = lookup.fields[name]
    decode, number, now = struct_decoder("Moment", {name: kind}), number_of(kind), time.time()
    found: dict[Any, tuple[float, bytes]] = {}
    for key, row in entries:
        try:
            moment = number(getattr(decode(row), name))
        except (ValueError, OverflowError):
            moment = -math.inf  # whoever looks it up says what is wrong with it
        if moment <= now and (key not in found or moment >= found[key][0]):
            found[key] = moment, row
    return [(key, row) for key, (_, row) in found.items()]
