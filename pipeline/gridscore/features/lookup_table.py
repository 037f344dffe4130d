"""The local table of a lookup: entries of a map in typed columns, found by key, gathered for a whole batch at once.

Row 0 is what an event gets that has no entry: the lookup's defaults, else NaN or None. An entry that cannot be decoded
is held by key at row 0 too, counted, and harms no other.

Offline, a table may have a history: several entries of a key, each valid from a time on. The lookup map of a cluster
holds the newest of them.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from itertools import count, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features.columns import number_of
from gridscore.features.events import reason_of, struct_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.job import Lookup, LookupField

_versions = count(1)
_FIRST_CAPACITY = 1_024
_NAN = math.nan


class LookupTable:
    """A table of entries by key.

    `lookup`: what the job file says of it. `bad`: entries held that cannot be decoded, and count as missing;
    `last_error`: why the last one could not be.
    """

    def __init__(self, lookup: Lookup) -> None:
        with_default = [name for name, field in lookup.fields.items() if field.default is not None]
        self._decode = struct_decoder("Entry", lookup.fields, may_lack=with_default)
        self._values = _tuple_getter(tuple(lookup.fields))
        self._index: dict[Hashable, int] = {}
        self._version = next(_versions)  # of the index
        self._free: list[int] = []
        self._used = 1
        self._capacity = _FIRST_CAPACITY
        self._names = tuple(lookup.fields)
        self._convert = [_converter(field) for field in lookup.fields.values()]
        self._strings = [field.type == "string" for field in lookup.fields.values()]
        # Of whole numbers the columns hold what computes; beyond 2**53 that is not all their digits.
        self._whole = {
            name: np.zeros(self._capacity, np.int64) for name, field in lookup.fields.items() if field.type == "int"
        }
        self._defaults = {name: int(lookup.fields[name].default or 0) for name in self._whole}
        for name, whole in self._whole.items():
            whole[0] = self._defaults[name]
        self._columns: list[Any] = []
        for string, convert in zip(self._strings, self._convert, strict=True):
            column: Any = [None] * self._capacity if string else np.full(self._capacity, _NAN)
            column[0] = convert(None)
            self._columns.append(column)
        self.bad = 0
        self.last_error = ""

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return self._index.get(key, 0) != 0

    def keys(self) -> Iterable[Any]:
        return self._index.keys()

    def put(self, key: Any, payload: bytes | str) -> None:
        """Take an entry, in the place of the one that has the key already."""
        try:
            row = self._index.get(key)
        except TypeError:
            key = f"\0{key!r}"  # no event can have such a key; it is held to be counted
            row = self._index.get(key)
        try:
            entry = self._values(self._decode(payload))
            values = [convert(value) for convert, value in zip(self._convert, entry, strict=True)]
        except (ValueError, OverflowError, RecursionError, TypeError) as error:
            self.last_error = f"the entry of {key!r}: {reason_of(error)}"
            if row != 0:
                self.bad += 1
                if row is not None:
                    self._free.append(row)
            self._index[key] = 0
            self._version = next(_versions)
            return
        if not row:
            self.bad -= row == 0
            self._index[key] = row = self._new_row()
            self._version = next(_versions)
        for column, value in zip(self._columns, values, strict=True):
            column[row] = value
        for name, whole in self._whole.items():
            whole[row] = self._defaults[name] if (given := entry[self._names.index(name)]) is None else given

    def remove(self, key: Any) -> None:
        """Forget an entry; nothing happens if there is none."""
        try:
            row = self._index.pop(key, None)
        except TypeError:
            row = self._index.pop(f"\0{key!r}", None)
        self._version = next(_versions)
        if row:
            self._free.append(row)
        elif row == 0:
            self.bad -= 1

    def clear(self) -> None:
        """Forget all entries."""
        self._index.clear()
        self._version = next(_versions)
        self._free.clear()
        self._used = 1
        self.bad = 0

    def rows(self, keys: Sequence[Any]) -> NDArray[np.intp]:
        """The row of each key; 0 is that of missing entries."""
        return np.fromiter(map(self._index.get, keys, repeat(0)), np.intp, len(keys))

    def rows_of(self, events: EventColumns, field: str) -> NDArray[np.intp]:
        """The row of each event whose field is the key, as `rows` has it."""
        return events.rows(field, self._index, self._version)

    def column(self, name: str) -> Any:
        """The values of a field by row: float64 (timestamps as seconds), or a list of strings.

        It must be asked for again after the table has changed.
        """
        return self._columns[self._names.index(name)]

    def gather(self, name: str, rows: NDArray[np.intp]) -> Any:
        """The values of a field in these rows."""
        column = self.column(name)
        if isinstance(column, list):
            return list(map(column.__getitem__, rows.tolist()))
        return column.take(rows)

    def gather_texts(self, name: str, rows: NDArray[np.intp]) -> list[str | None]:
        """The values of a field of whole numbers in these rows, with all their digits."""
        missing = np.isnan(self.gather(name, rows)).tolist()
        return [
            None if no else str(value) for no, value in zip(missing, self._whole[name].take(rows).tolist(), strict=True)
        ]

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        row = self._used
        if row == self._capacity:
            for position, column in enumerate(self._columns):
                if self._strings[position]:
                    column.extend([None] * self._capacity)
                else:
                    self._columns[position] = np.concatenate([column, np.full(self._capacity, _NAN)])
            self._whole = {name: np.concatenate([each, np.zeros_like(each)]) for name, each in self._whole.items()}
            self._capacity *= 2
        self._used += 1
        return row


def _tuple_getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) == 1:
        single = attrgetter(names[0])
        return lambda entry: (single(entry),)
    return attrgetter(*names)


def _converter(field: LookupField) -> Callable[[Any], Any]:
    default = field.default
    if field.type == "string":
        return lambda value: default if value is None else value
    missing = _NAN if default is None else float(default)
    number = number_of(field)
    return lambda value: missing if value is None else number(value)


class LookupHistory(LookupTable):
    """A table of entries by key and by the time from which each is valid.

    `lookup`: what the job file says of it, with `valid_from`.
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
