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
_BLOCK = 900.0
"""Seconds for which an offset from UTC is remembered, if it is the same at both ends: almost always."""
_CACHED = 100_000
FIRST, END = -62_135_596_800.0, 253_402_300_800.0
"""Years 1 to 9999, outside of which a time has no parts."""


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


def hour(seconds: Numbers) -> Numbers:
    """0 to 23."""
    return _inside(seconds, np.floor(np.mod(seconds, _DAY) / 3600.0))


def minute(seconds: Numbers) -> Numbers:
    """0 to 59."""
    return _inside(seconds, np.floor(np.mod(seconds, 3600.0) / 60.0))


def second(seconds: Numbers) -> Numbers:
    """0 to 59, without fraction."""
    return _inside(seconds, np.floor(np.mod(seconds, 60.0)))


def dayofweek(seconds: Numbers) -> Numbers:
    """Monday is 0, Sunday 6."""
    return _inside(seconds, np.mod(np.floor(seconds / _DAY) + 3.0, 7.0))


def year(seconds: Numbers) -> Numbers:
    """The year."""
    return _of_date(seconds, lambda days: days.astype("M8[Y]").astype(np.int64) + 1970)


def month(seconds: Numbers) -> Numbers:
    """1 to 12."""
    return _of_date(seconds, lambda days: days.astype("M8[M]").astype(np.int64) % 12 + 1)


def day(seconds: Numbers) -> Numbers:
    """1 to 31."""
    return _of_date(seconds, lambda days: (days - days.astype("M8[M]")).astype(np.int64) + 1)


def dayofyear(seconds: Numbers) -> Numbers:
    """1 to 366."""
    return _of_date(seconds, lambda days: _day_of_year(days) + 1)


def week(seconds: Numbers) -> Numbers:
    """1 to 53, of ISO 8601: that of the week's Thursday."""

    def part(days: Any) -> Any:
        to_thursday = 3 - (days.astype(np.int64) + 3) % 7
        return _day_of_year(days + to_thursday.astype("m8[D]")) // 7 + 1

    return _of_date(seconds, part)


def quarter(seconds: Numbers) -> Numbers:
    """1 to 4."""
    return _of_date(seconds, lambda days: days.astype("M8[M]").astype(np.int64) % 12 // 3 + 1)


def is_weekend(seconds: Numbers) -> NDArray[np.bool_]:
    """Whether it is a Saturday or a Sunday; a missing time is neither."""
    return dayofweek(seconds) >= 5.0


def _day_of_year(days: Any) -> Any:
    return (days - days.astype("M8[Y]")).astype(np.int64)


def _inside(seconds: Numbers, part: Numbers) -> Numbers:
    return np.where((seconds >= FIRST) & (seconds < END), part, np.nan)


def _of_date(seconds: Numbers, part: Callable[[Any], Any]) -> Numbers:
    inside = (seconds >= FIRST) & (seconds < END)
    days = np.floor(np.where(inside, seconds, 0.0) / _DAY).astype(np.int64).astype("M8[D]")
    return np.where(inside, part(days), np.nan)


PARTS: dict[str, Callable[[Numbers], Any]] = {
    "year": year,
    "month": month,
    "day": day,
    "hour": hour,
    "minute": minute,
    "second": second,
    "dayofweek": dayofweek,
    "dayofyear": dayofyear,
    "week": week,
    "quarter": quarter,
    "is_weekend": is_weekend,
}
"""The parts of a time by the name of their function."""
