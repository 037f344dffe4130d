"""The kernel of windows, in plain Python: what it does is what `_windows.c` does, bit by bit.

An entity keeps series of elements in the order of their times, of equal times in the order of their values, so that the
order in which they came leaves no trace. An element is an event, or several that were put together:

- The *floor* is the time of the newest event less the lateness. What is older when it comes is late: it sees its
  windows as they were at the floor, and changes nothing. So below the floor nothing is added any more: elements there
  are *closed*, one after the other, in their order.
- Closed elements are put together where there are many of them (see `Kind`); those that no event can see any more go.
- At most `MAX_OPEN` elements of a series are above the floor. Where there are more, it rises.
- A state that was made of a history up to a moment (`until`) has all events before it: such a one only looks.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from gridscore.features.times import END, FIRST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_OPEN = 128
MAX_CLOSED = 64  # closed elements of a time; above, those are put together that lie in the same of `CELLS` parts of it
CELLS = 32
MAX_VALUES = 256  # closed values that are told apart
# Half-lives without an event after which `decayed` is 0: states have an end, and a history sees none either.
HALF_LIVES = 32


class Kind(IntEnum):
    """How closed elements of a series are kept."""

    SPAN = 0  # those of a time, put together where there are more than `MAX_CLOSED`
    LAST = 1  # the last so many
    VALUES = 2  # of a time, the newest of each value; of the newest `MAX_VALUES` values
    DECAY = 3  # all as one, each weighed by its age
    ROWS = 4  # the last so many of all events, also of those that do not count: these have no value


FUNCTIONS = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "std",
    "first",
    "last",
    "lag",
    "distinct",
    "seen",
    "seconds_since_last",
    "decayed",
)

_HEADER = struct.Struct("<qdddI")
LOOK = -2  # instead of the sequence of an event that only looks
# What the state of an entity without events would begin with.
EMPTY_HEAD = _HEADER.pack(-1, -math.inf, -math.inf, -math.inf, 0)
_COUNTS = struct.Struct("<HH")
_ELEMENT = struct.Struct("<dI")
_VALUE = struct.Struct("<d")
_MANY = struct.Struct("<dddddd")
_OPEN_BYTES = MAX_OPEN * (_ELEMENT.size + _VALUE.size) + _COUNTS.size
# The most that an entity's state takes: its head, and a series of each kind; of `LAST`, without the last.
MOST_BYTES = {
    "header": _HEADER.size,
    "SPAN": _OPEN_BYTES + MAX_CLOSED * (_ELEMENT.size + _MANY.size),
    "LAST": _OPEN_BYTES,
    "ROWS": _OPEN_BYTES,
    "VALUES": _OPEN_BYTES + MAX_VALUES * (_ELEMENT.size + _VALUE.size),
    "DECAY": _OPEN_BYTES + _ELEMENT.size + _VALUE.size,
}

_FOREIGN, _CUT = "a state is not one of these windows", "a state is cut off"
_NAN = math.nan
_MOST = 2**32 - 1


class Head(NamedTuple):
    """What a state begins with."""

    sequence: int  # of the newest event that was added; -1 if that is not known
    newest: float  # time of the newest event
    floor: float  # time below which nothing is added
    until: float  # time before which all events are in it already, by a history
    late: int  # events that were too late


def head_of(state: bytes) -> Head:
    """What a state begins with. Raises ValueError if it is not one."""
    try:
        return Head(*_HEADER.unpack_from(state))
    except struct.error:
        raise ValueError(_CUT) from None


def loaded(state: bytes, until: float) -> bytes:
    """A state that was made of the events before a moment, which says so."""
    head = head_of(state)
    return _HEADER.pack(*head._replace(until=until)) + state[_HEADER.size :]


def cut(state: bytes, bare: Sequence[bool]) -> tuple[bytes, list[bytes]]:
    """A state's head, and the bytes of each of its series, given whether these keep no values.

    Raises ValueError if it is not a state of such series.
    """
    place, parts = _HEADER.size, []
    try:
        for one in bare:
            begin = place
            closed, total = _COUNTS.unpack_from(state, place)
            if closed > total:
                raise ValueError(_FOREIGN)
            place += _COUNTS.size
            for _ in range(total):
                _, count = _ELEMENT.unpack_from(state, place)
                place += _ELEMENT.size + (0 if one else _VALUE.size if count == 1 else _MANY.size)
            parts.append(state[begin:place])
    except struct.error:
        raise ValueError(_CUT) from None
    if place != len(state):
        raise ValueError(_FOREIGN)
    return state[: _HEADER.size], parts


def last_of(part: bytes, series: Sequence[float]) -> bytes:
    """The bytes of a series, which may have kept more of the last events than it does now; none: an empty one."""
    if not part:
        return _COUNTS.pack(0, 0)
    kept = _Kept(series)
    closed, total = _COUNTS.unpack_from(part)
    if not kept.last or closed <= kept.last:
        return part
    gone = closed - kept.last
    begin = _COUNTS.size + gone * (_ELEMENT.size + (0 if kept.bare else _VALUE.size))
    return _COUNTS.pack(kept.last, total - gone) + part[begin:]


class _Element(NamedTuple):
    time: float
    events: int
    sum: float
    squares: float  # of the distances from the mean
    low: float
    high: float
    first: float
    last: float


class _Kept:
    """A series of an entity."""

    def __init__(self, spec: Sequence[float]) -> None:
        self.kind, self.last, self.column, self.bare = Kind(int(spec[0])), int(spec[2]), int(spec[3]), bool(spec[4])
        self.seconds = float(spec[1])
        self.closed = 0
        self.elements: list[_Element] = []

    def insert(self, time: float, value: float) -> None:
        elements = self.elements
        value = value + 0.0 if math.isfinite(value) else _NAN  # there is one zero, and one NaN
        place = len(elements)
        while place > self.closed and _is_after(elements[place - 1], time, value):
            place -= 1
        elements.insert(place, _Element(time, 1, value, 0.0, value, value, value, value))

    def takes(self, value: float) -> bool:
        """Whether an event with that value belongs here."""
        return self.kind == Kind.ROWS or math.isfinite(value)

    @property
    def most_closed(self) -> int:
        """The closed elements that the series can have."""
        return {Kind.SPAN: MAX_CLOSED, Kind.VALUES: MAX_VALUES, Kind.DECAY: 1}.get(self.kind, self.last)

    def close(self) -> None:
        """Close the oldest open element."""
        elements = self.elements
        new = elements[self.closed]
        if self.kind in (Kind.SPAN, Kind.VALUES):
            self.expire(new.time)
        if self.kind == Kind.VALUES:
            for place in range(self.closed):
                if elements[place].last == new.last:
                    del elements[place]
                    self.closed -= 1
                    break
        if self.kind == Kind.DECAY and self.closed:
            before = elements[0]
            value = _faded(before.sum, new.time - before.time, self.seconds) + new.sum
            elements[:2] = [_Element(new.time, 1, value, 0.0, value, value, value, value)]
            return
        self.closed += 1
        if self.closed <= self.most_closed:
            return
        if self.kind != Kind.SPAN:
            del elements[0]
            self.closed -= 1
        else:
            self._put_together()

    def _put_together(self) -> None:
        cell = self.seconds / CELLS
        kept: list[_Element] = []
        for each in self.elements[: self.closed]:
            if kept and _floor(kept[-1].time / cell) == _floor(each.time / cell):
                kept[-1] = _together(kept[-1], each)
            else:
                kept.append(each)
        self.elements[: self.closed] = kept
        self.closed = len(kept)

    def expire(self, now: float) -> None:
        """Drop what no event of now or later sees."""
        gone = 0
        while gone < self.closed and self.elements[gone].time <= now - self.seconds:
            gone += 1
        del self.elements[:gone]
        self.closed -= gone


def _is_after(element: _Element, time: float, value: float) -> bool:
    if element.time != time:
        return element.time > time
    return element.last > value or (math.isnan(value) and not math.isnan(element.last))


def _floor(value: float) -> float:
    return math.floor(value) if math.isfinite(value) else value


def _together(a: _Element, b: _Element) -> _Element:
    n, m = float(a.events), float(b.events)
    apart = b.sum / m - a.sum / n
    squares = a.squares + b.squares + apart * apart * (n * m / (n + m))
    low, high = min(a.low, b.low), max(a.high, b.high)
    count = min(a.events + b.events, _MOST)
    return _Element(b.time, count, a.sum + b.sum, squares, low, high, a.first, b.last)


def _faded(total: float, seconds: float, half_life: float) -> float:
    """What is left of a sum after that time."""
    if seconds >= half_life * HALF_LIVES:
        return 0.0  # not by the product: what is below 0, or infinite in a state that is not ours, would leave a trace
    try:
        return total * math.pow(2.0, -seconds / half_life)
    except OverflowError:  # not of a state of ours
        return total * math.inf


class _Entity:
    """An entity's state."""

    def __init__(self, specs: Sequence[Sequence[float]], state: bytes) -> None:
        self.sequence, self.newest, self.floor, self.until, self.late = _HEADER.unpack(EMPTY_HEAD)
        self.series = [_Kept(spec) for spec in specs]
        if not state:
            return
        try:
            self.sequence, self.newest, self.floor, self.until, self.late = _HEADER.unpack_from(state)
            is_timely = FIRST <= self.newest < END and self.floor <= self.newest and self.until < END
            if self.sequence < -1 or not is_timely:
                raise ValueError(_FOREIGN)
            place = _HEADER.size
            for kept in self.series:
                place = _decode(kept, state, place, self.newest)
        except struct.error:
            raise ValueError(_CUT) from None
        if place != len(state):
            raise ValueError("a state is too long")

    def encode(self) -> bytes:
        if self.newest < FIRST:
            return b""  # it has had no events
        parts = [_HEADER.pack(self.sequence, self.newest, self.floor, self.until, self.late)]
        for kept in self.series:
            parts.append(_COUNTS.pack(kept.closed, len(kept.elements)))
            for each in kept.elements:
                parts.append(_ELEMENT.pack(each.time, each.events))
                if kept.bare:
                    continue
                parts.append(_VALUE.pack(each.sum) if each.events == 1 else _MANY.pack(*each[2:]))
        return b"".join(parts)

    def apply(self, lateness: float, sequence: int, time: float, values: Sequence[float]) -> bool:
        """Add an event, unless it was added before, or only looks; returns whether it is late."""
        if 0 <= sequence <= self.sequence or sequence == LOOK or time < self.until:
            return False
        self.sequence = max(self.sequence, sequence)
        if time < self.floor:
            self.late = min(self.late + 1, _MOST)
            return True
        for kept in self.series:
            value = values[kept.column]
            if kept.takes(value):
                kept.insert(time, value)
        self.newest = max(self.newest, time)
        for kept in self.series:
            while len(kept.elements) - kept.closed > MAX_OPEN:
                self.floor = max(self.floor, kept.elements[kept.closed].time)
                kept.close()
        self.floor = max(self.floor, self.newest - lateness)
        for kept in self.series:
            while kept.closed < len(kept.elements) and kept.elements[kept.closed].time < self.floor:
                kept.close()
            if kept.kind in (Kind.SPAN, Kind.VALUES):
                kept.expire(self.floor)
        return False

    def ask(self, call: Sequence[float], time: float, values: Sequence[float]) -> float:
        """What an event of that time sees."""
        name, kept, last = FUNCTIONS[int(call[0])], self.series[int(call[1])], int(call[2])
        now = max(time, self.floor)
        elements = kept.elements
        end = bisect_right(elements, now, key=lambda each: each.time)
        if kept.kind == Kind.DECAY:
            return _decayed(elements[:end], now, kept.seconds)
        if kept.kind in (Kind.LAST, Kind.ROWS):
            begin = max(end - last, 0)
        else:
            begin = bisect_right(elements, now - kept.seconds, 0, end, key=lambda each: each.time)
        seen = elements[begin:end]
        if kept.kind == Kind.ROWS:
            seen = [each for each in seen if not math.isnan(each.last)]
        return _answer(name, seen, last, now, values[int(call[3])])


def _decode(kept: _Kept, state: bytes, place: int, newest: float) -> int:
    closed, total = _COUNTS.unpack_from(state, place)
    place += _COUNTS.size
    if closed > total or closed > kept.most_closed or total - closed > MAX_OPEN:
        raise ValueError(_FOREIGN)
    kept.closed, before = closed, FIRST
    for _ in range(total):
        time, count = _ELEMENT.unpack_from(state, place)
        place += _ELEMENT.size
        if not count or (count > 1 and kept.kind != Kind.SPAN) or not before <= time <= newest:
            raise ValueError(_FOREIGN)
        before = time
        rest: tuple[float, ...] = (float(count), 0.0, 1.0, 1.0, 1.0, 1.0)
        if not kept.bare and count == 1:
            (value,) = _VALUE.unpack_from(state, place)
            place += _VALUE.size
            if (
                kept.kind != Kind.DECAY
                and not math.isfinite(value)
                and not (kept.kind == Kind.ROWS and math.isnan(value))
            ):
                raise ValueError(_FOREIGN)
            rest = (value, 0.0, value, value, value, value)
        elif not kept.bare:
            rest = _MANY.unpack_from(state, place)
            place += _MANY.size
        kept.elements.append(_Element(time, count, *rest))
    return place


def _decayed(elements: Sequence[_Element], now: float, half_life: float) -> float:
    total, at = 0.0, now
    for each in elements:
        total = _faded(total, each.time - at, half_life) + each.sum if total else each.sum
        at = each.time
    return _faded(total, now - at, half_life)


def _answer(name: str, seen: Sequence[_Element], last: int, now: float, value: float) -> float:
    match name:
        case "distinct":
            return float(len({each.last for each in seen}))
        case "seen":
            return float(any(each.last == value + 0.0 for each in seen)) if math.isfinite(value) else _NAN
        case "seconds_since_last":
            return now - seen[-1].time if seen else _NAN
        case "lag":
            return seen[0].last if len(seen) == last else _NAN
        case "first":
            return seen[0].first if seen else _NAN
        case "last":
            return seen[-1].last if seen else _NAN
    if name == "count":
        return float(sum(each.events for each in seen))
    if not seen:
        return 0.0 if name == "sum" else _NAN
    all_of = seen[0]
    for each in seen[1:]:
        all_of = _together(all_of, each)
    match name:
        case "sum":
            return all_of.sum
        case "mean":
            return all_of.sum / all_of.events
        case "min":
            return all_of.low
        case "max":
            return all_of.high
        case _:
            return (
                math.sqrt(all_of.squares / (all_of.events - 1.0)) if all_of.events > 1 and all_of.squares >= 0 else _NAN
            )


def run(
    series: NDArray[Any],  # a row each, as `windows.Series`
    calls: NDArray[Any],  # a row each, as `windows.Call`
    lateness: float,  # in seconds
    states: Sequence[bytes],  # of the entities; empty for one that had no events
    entities: NDArray[Any],  # the number of each event's; -1 if it has none
    sequences: NDArray[Any],  # of the events; -1 if there is none, `LOOK` if it is not to be added
    times: NDArray[Any],
    columns: NDArray[Any],  # a row a column
    out: NDArray[Any],  # a row a call, filled with NaN; what each event sees
) -> tuple[list[bytes], int]:
    """Let events ask their entity's windows, then add them, one after the other.

    In `out`, a row more than calls gets how many seconds a late event is older than the newest one of its entity.
    Returns: the states afterwards, and how many events were late. Raises ValueError if a state is not one of these
    series.
    """
    kept = [_Entity(series.tolist(), state) for state in states]
    asked, late = calls.tolist(), 0
    rows = zip(entities.tolist(), sequences.tolist(), times.tolist(), columns.T.tolist(), strict=True)
    for row, (number, sequence, time, values) in enumerate(rows):
        if number < 0:
            continue
        entity = kept[number]
        for each, call in enumerate(asked):
            out[each, row] = entity.ask(call, time, values)
        if entity.apply(lateness, sequence, time, values):
            late += 1
            out[len(asked) :, row] = entity.newest - time
    return [entity.encode() for entity in kept], late
