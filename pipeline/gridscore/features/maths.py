"""Functions whose last bit is a matter of who computes them: always by the C library, never by NumPy.

NumPy computes powers, exponentials, logarithms and angles in other ways on processors with AVX-512 than on others. The
C library gives the same bits on all processors of a kind (see docs/guarantees.md).
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

_fast = compiled("gridscore.features._maths")
# What NumPy calls them, where it has another name.
_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2", "pow": "power"}


# The functions, as C calls them.
NAMES = (
    "exp",
    "expm1",
    "log",
    "log1p",
    "log10",
    "log2",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "hypot",
    "pow",
)


@cache
def digest() -> str:
    """Tells machines apart that compute other bits: of what the functions give for some numbers."""
    draw = np.random.default_rng(1)
    x, y = draw.uniform(0.001, 100, 512), draw.uniform(-1, 1, 512)
    found = hashlib.sha256()
    with np.errstate(all="ignore"):
        for name in NAMES:
            found.update(function(name)(x, y) if name in {"atan2", "hypot", "pow"} else function(name)(x))
            found.update(function(name)(y, x) if name in {"atan2", "hypot", "pow"} else function(name)(np.abs(y)))
    return found.hexdigest()[:16]


def function(name: str) -> Callable[..., Any]:
    """A function of columns or single numbers, one or two."""
    one = getattr(math, name)
    special = getattr(np, _NAMES.get(name, name))

    def exactly(*numbers: float) -> float:
        try:
            return one(*numbers)  # type: ignore[no-any-return]
        except (ValueError, OverflowError):  # infinite, or not a number, which leaves no bits to differ in
            return float(special(*numbers))

    def computed(*columns: Any) -> Any:
        args = [np.ascontiguousarray(column, np.float64) for column in columns]
        shape = np.broadcast_shapes(*(np.shape(column) for column in columns))
        out = np.empty(shape)
        if _fast is not None:
            _fast.apply(name, args[0], args[-1], out)
        else:
            out[...] = np.frompyfunc(exactly, len(columns), 1)(*(np.asarray(column, np.float64) for column in columns))
        return out

    return computed
