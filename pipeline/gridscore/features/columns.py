"""Events in columns: what a batch of events is to all that computes with it.

Behind them are cells: those that the compiled module `_columns` reads straight from JSON, without an object an event,
or their twin here, which takes them from structs. Both give the same.
"""

from __future__ import annotations

import datetime as dt
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.job import FieldType

    Event = Any

_NAN = float("nan")


class Cells(Protocol):
    """Decoded events: a cell for each row and each field of the schema, which is given by its position."""

    def __len__(self) -> int:
        """The rows."""

    def objects(self, field: int, /) -> list[Any]:
        """The values as decoded; None where there is none."""

    def numbers(self, field: int, /) -> bytearray | NDArray[Any]:
        """The values as float64, times as seconds; NaN where there is none."""

    def rows(self, field: int, index: dict[Any, int], version: int, /) -> bytearray | NDArray[Any]:
        """What the index has for each value as `intp`, or had at the same version; 0 if nothing."""

    def take(self, rows: Iterable[int], /) -> Cells:
        """The cells of some rows."""


class EventColumns:
    """The events of a batch.

    `windows`: what each has found in its windows: a column a call; `returned`: what Python functions have returned: a
    column by the number of its feature among those.
    """

    def __init__(
        self,
        schema: Mapping[str, FieldType],
        cells: Cells,
        windows: Sequence[NDArray[np.float64]] = (),
        returned: Mapping[int, NDArray[np.float64]] | None = None,
    ) -> None:
        self._schema = schema
        self._positions = {name: position for position, name in enumerate(schema)}
        self._cells = cells
        self._windows = windows
        self.returned = returned

    @classmethod
    def of(cls, schema: Mapping[str, FieldType], events: EventColumns | Sequence[Event]) -> EventColumns:
        """These events in columns, if they are not yet."""
        return events if isinstance(events, EventColumns) else cls(schema, StructCells(schema, events))

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, rows: slice) -> EventColumns:
        wanted = range(len(self))[rows]
        return self if wanted == range(len(self)) else self.take(wanted)

    def take(self, rows: Iterable[int]) -> EventColumns:
        """Some of them; one may be taken more than once."""
        if not self._windows and not self.returned:
            return EventColumns(self._schema, self._cells.take(rows))
        rows = np.fromiter(rows, np.intp)
        taken = [column[rows] for column in self._windows]
        returned = self.returned and {number: column[rows] for number, column in self.returned.items()}
        return EventColumns(self._schema, self._cells.take(rows.tolist()), taken, returned)

    def without(self, rows: Collection[int]) -> EventColumns:
        return self.take([row for row in range(len(self)) if row not in rows])

    def with_windows(self, windows: Sequence[NDArray[np.float64]]) -> EventColumns:
        """The same events, and what they have found in their windows."""
        return EventColumns(self._schema, self._cells, windows)

    def with_returned(self, columns: Mapping[int, NDArray[np.float64]]) -> EventColumns:
        """The same events, and more of what functions have returned for them."""
        return EventColumns(self._schema, self._cells, self._windows, {**(self.returned or {}), **columns})

    def window(self, number: int) -> NDArray[np.float64]:
        """What they have found in their windows by a call, of the job's in order."""
        return self._windows[number]

    def objects(self, name: str) -> list[Any]:
        """The values of a field as decoded; None where there is none."""
        return self._cells.objects(self._positions[name])

    def column(self, name: str) -> Any:
        """The values of a field as expressions see them.

        A list of strings for a string, and an array for all else: bool for what is always true or false, float64 for
        numbers (NaN is a missing one) and timestamps (in seconds).
        """
        kind = self._schema[name]
        if kind.type == "string":
            return self.objects(name)
        numbers = np.frombuffer(self._cells.numbers(self._positions[name]), np.float64)
        if kind.type == "timestamp" and kind.unit == "ms":
            return numbers / 1000.0
        return numbers.astype(np.bool_) if kind.type == "bool" and not kind.optional else numbers

    def rows(self, name: str, index: dict[Any, int], version: int) -> NDArray[np.intp]:
        """What an index has for the values of a field, as decoded; 0 if nothing.

        `index`: of rows by key; `version`: a number above 0 that no other index has or had, nor this one when it was
        different.
        """
        found: NDArray[np.intp] = np.frombuffer(self._cells.rows(self._positions[name], index, version), np.intp)
        return found


def number_of(kind: FieldType) -> Callable[[Any], float]:
    """What makes a number of a decoded value: of a time, its seconds."""
    if kind.type != "timestamp":
        return float
    if kind.unit == "iso":
        return dt.datetime.timestamp
    return (lambda value: value / 1000.0) if kind.unit == "ms" else float


class StructCells:
    """Cells that are the attributes of structs."""

    def __init__(self, schema: Mapping[str, FieldType], events: Sequence[Event]) -> None:
        self._schema = schema
        self._fields = list(schema.items())
        self._events = events

    def __len__(self) -> int:
        return len(self._events)

    def objects(self, field: int, /) -> list[Any]:
        # A pass a field is faster than one pass that makes a tuple an event: the garbage collector looks at tuples.
        return list(map(attrgetter(self._fields[field][0]), self._events))

    def numbers(self, field: int, /) -> NDArray[np.float64]:
        values, kind = self.objects(field), self._fields[field][1]
        if kind.type == "timestamp" and kind.unit == "iso":
            return _times(values)
        try:
            return np.fromiter(values, np.float64, len(values))
        except TypeError:
            return np.array(values, np.float64)  # twice as slow, but None is NaN to it

    def rows(self, field: int, index: dict[Any, int], _version: int, /) -> NDArray[np.intp]:
        return np.fromiter(map(index.get, self.objects(field), repeat(0)), np.intp, len(self._events))

    def take(self, rows: Iterable[int], /) -> StructCells:
        return StructCells(self._schema, [self._events[row] for row in rows])


def _times(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.fromiter(map(dt.datetime.timestamp, values), np.float64, len(values))
    except TypeError:
        return np.fromiter([_NAN if t is None else t.timestamp() for t in values], np.float64, len(values))
