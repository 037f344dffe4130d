"""Arrays of events: their items, and what is computed of all of them, each row by itself.

A sum is the exact one, rounded once (`math.fsum`): the same bits in every version, which Python's and numpy's are not.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features.columns import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gridscore.job import FieldType

_NAN = math.nan


def items(field: str, index: int) -> Callable[[Sequence[Any]], list[Any]]:
    """The item at an index of each array, as decoded, or its field of that name; None if there is none.

    `field`: of the items; empty if they are values themselves; `index`: from 0 on, or from -1 at the end.
    """
    part = attrgetter(field) if field else _itself
    needed = index + 1 if index >= 0 else -index

    def found(arrays: Sequence[Any]) -> list[Any]:
        return [None if array is None or len(array) < needed else part(array[index]) for array in arrays]

    return found


def numbers(kind: FieldType) -> Callable[[Sequence[Any]], NDArray[np.float64]]:
    """Decoded values as float64, times as seconds; NaN where there is none."""
    number = number_of(kind)
    return lambda values: np.fromiter((_NAN if v is None else number(v) for v in values), np.float64, len(values))


def lengths(arrays: Sequence[Any]) -> NDArray[np.float64]:
    """How many items each array has."""
    return np.fromiter((_NAN if array is None else len(array) for array in arrays), np.float64, len(arrays))


def computed(function: str, field: str, kind: FieldType) -> Callable[[Sequence[Any]], NDArray[np.float64]]:
    """What a function gives of those items of each array that are not missing; NaN where there is no array.

    `function`: `count`, `sum`, `mean`, `min` or `max`; `field`: of the items; empty if they are values themselves;
    `kind`: its type.
    """
    part, compute = attrgetter(field) if field else _itself, _FUNCTIONS[function]
    number = _itself if function == "count" else number_of(kind)

    def found(arrays: Sequence[Any]) -> NDArray[np.float64]:
        present = (
            None if array is None else [number(value) for item in array if (value := part(item)) is not None]
            for array in arrays
        )
        return np.fromiter((_NAN if each is None else compute(each) for each in present), np.float64, len(arrays))

    return found


def _itself(item: Any) -> Any:
    return item


def _sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:  # on the way, or in the end
        total = sum(map(Fraction, values), Fraction(0))
        limit = sys.float_info.max
        return float(total) if abs(total) <= limit else math.inf if total > 0 else -math.inf


def _mean(values: list[float]) -> float:
    return _sum(values) / len(values) if values else _NAN


def _least(values: list[float]) -> float:
    return min(values, default=_NAN)


def _most(values: list[float]) -> float:
    return max(values, default=_NAN)


_FUNCTIONS: dict[str, Callable[[list[float]], float]] = {
    "count": len,
    "sum": _sum,
    "mean": _mean,
    "min": _least,
    "max": _most,
}
