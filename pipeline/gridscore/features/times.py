"""Times in columns: seconds since 1970 as float64, their local time, their parts, and their text."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.job import zones

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_DAY = 86_400.0
_BLOCK = 900.0  # seconds for which an offset from UTC is remembered, if it is the same at both ends: almost always
_CACHED = 100_000
FIRST, END = -62_135_596_800.0, 253_402_300_800.0  # years 1 to 9999, outside of which a time has no parts


class _Offsets(dict[float, float]):
    """Offset from UTC in seconds, by quarter of an hour since 1970; infinite where it changes within."""

    def __init__(self, zone: str) -> None:
        super().__init__()
        self._zone = zones.zone(zone)

    def __missing__(self, block: float) -> float:
        if not math.isfinite(block):
            return math.nan
        begin = block * _BLOCK
        found = self.at(begin)
        if found != self.at(begin + _BLOCK - 1):
            found = math.inf
        if len(self) >= _CACHED:
            self.clear()
        self[block] = found
        return found

    def at(self, seconds: float) -> float:
        """The offset at a time in whole seconds."""
        # Beside the first and the last day there are no others, and no switches.
        moment = dt.datetime.fromtimestamp(min(max(seconds, FIRST + _DAY), END - _DAY), self._zone)
        offset = moment.utcoffset()
        return 0.0 if offset is None else offset.total_seconds()


class _Texts(dict[float, str]):
    """RFC 3339 text of times."""

    def __missing__(self, seconds: float) -> str | None:
        if not FIRST <= seconds < END:
            return None
        text = dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")
        if len(self) >= _CACHED:
            self.clear()
        self[seconds] = text
        return text


def to_local(zone: str) -> Callable[[Numbers], Numbers]:
    """A function from times to the seconds that a clock in the zone would have counted."""
    offsets = _Offsets(zone)
    offset_of = offsets.__getitem__

    def local(seconds: Numbers) -> Numbers:
        blocks = np.floor(seconds / _BLOCK).tolist()
        found = np.fromiter(map(offset_of, blocks), np.float64, len(blocks))
        for row in np.flatnonzero(np.isposinf(found)).tolist():
            found[row] = offsets.at(math.floor(seconds[row]))
        return seconds + found

    return local


def to_text() -> Callable[[Numbers], list[str | None]]:
    """A function from times to text as in `2026-01-31T00:00:00Z`."""
    text_of = _Texts().__getitem__

    def text(seconds: Numbers) -> list[str | None]:
        return list(map(text_of, seconds.tolist()))

    return text


def _of_day(part: Callable[[Numbers], Numbers]) -> Callable[[Numbers], Numbers]:
    """A part of a time by its seconds."""
    return lambda seconds: np.where((seconds >= FIRST) & (seconds < END), part(seconds), np.nan)


def _of_date(part: Callable[[Any], Any]) -> Callable[[Numbers], Numbers]:
    """A part of a time by its date, which NumPy has as days, months and years."""

    def found(seconds: Numbers) -> Numbers:
        inside = (seconds >= FIRST) & (seconds < END)
        days = np.floor(np.where(inside, seconds, 0.0) / _DAY).astype(np.int64).astype("M8[D]")
        return np.where(inside, part(days), np.nan)

    return found


def _month(days: Any) -> Any:
    return days.astype("M8[M]").astype(np.int64) % 12


def _day_of_year(days: Any) -> Any:
    return (days - days.astype("M8[Y]")).astype(np.int64)


def _thursday(days: Any) -> Any:
    """That of the same week: ISO 8601 counts weeks by it."""
    return days + (3 - (days.astype(np.int64) + 3) % 7).astype("m8[D]")


_weekday = _of_day(lambda seconds: np.mod(np.floor(seconds / _DAY) + 3.0, 7.0))

# The parts of a time by the name of their function.
PARTS: dict[str, Callable[[Numbers], Any]] = {
    "year": _of_date(lambda days: days.astype("M8[Y]").astype(np.int64) + 1970),
    "month": _of_date(lambda days: _month(days) + 1),
    "day": _of_date(lambda days: (days - days.astype("M8[M]")).astype(np.int64) + 1),
    "hour": _of_day(lambda seconds: np.floor(np.mod(seconds, _DAY) / 3600.0)),
    "minute": _of_day(lambda seconds: np.floor(np.mod(seconds, 3600.0) / 60.0)),
    "second": _of_day(lambda seconds: np.floor(np.mod(seconds, 60.0))),
    "dayofweek": _weekday,  # Monday is 0
    "dayofyear": _of_date(lambda days: _day_of_year(days) + 1),
    "week": _of_date(lambda days: _day_of_year(_thursday(days)) // 7 + 1),
    "quarter": _of_date(lambda days: _month(days) // 3 + 1),
    "is_weekend": lambda seconds: _weekday(seconds) >= 5.0,  # a missing time is not
}
