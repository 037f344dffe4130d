"""The operations of expressions, on whole columns: numbers as float64 arrays, strings as lists.

A missing number is NaN and a missing string None. Operations here never fail on a value: what cannot be computed is
missing or infinite, as in pandas.
"""

from __future__ import annotations

import math
from functools import partial
from hashlib import blake2b
from itertools import compress
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from gridscore.features import maths, places, times
from gridscore.job import patterns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Strings = Sequence[str | None]


class TextsTooLongError(Exception):
    """The texts of so many events are too much at once; of half of them they may not be."""


def check_texts(texts: Strings, most: int) -> Strings:
    """Refuse too many characters, but never those of the fewest events that are computed at once."""
    if len(texts) > 3 and sum(map(len, filter(None, texts))) > most:
        raise TextsTooLongError
    return texts


MAX_REPLACED = 65_536  # characters of a text that `replace` may make longer: what would be longer is missing
# Characters at most of the texts that an operation makes longer, of all events that are computed at once.
MAX_TEXTS = 1 << 22

# Operations that numpy broadcasts: an argument is a column or a single number.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.true_divide,
    "floor_divide": np.floor_divide,
    "modulo": np.mod,
    "power": maths.function("pow"),
    "negative": np.negative,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "where": np.where,
    "coalesce": lambda a, b: np.where(np.isfinite(a), a, b),
    "isnull": lambda value: ~np.isfinite(value),
    "to_number": lambda value: np.multiply(value, 1.0),
    "truth": lambda value: np.equal(value, 1.0),
    "epoch": lambda value: value,
    "abs": np.abs,
    **{name: maths.function(name) for name in maths.NAMES if name != "pow"},
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "sign": np.sign,
    "radians": np.radians,
    "degrees": np.degrees,
    "min": np.minimum,
    "max": np.maximum,
    "haversine": places.haversine,
}


# Of strings; each takes columns and gives one.


def _bools(values: Iterable[bool], count: int) -> Bools:
    return np.fromiter(values, np.bool_, count)


def _compared(test: Callable[[str, str], bool]) -> Callable[[Strings, Strings], Bools]:
    def compare(a: Strings, b: Strings) -> Bools:
        pairs = zip(a, b, strict=True)
        return _bools([x is not None and y is not None and test(x, y) for x, y in pairs], len(a))

    return compare


def _differ(a: Strings, b: Strings) -> Bools:
    return _bools([x is None or y is None or x != y for x, y in zip(a, b, strict=True)], len(a))


def _searched(test: Callable[[str, str], bool]) -> Callable[[Any], Callable[[Strings], Bools]]:
    def with_text(text: str) -> Callable[[Strings], Bools]:
        return lambda column: _bools([x is not None and test(x, text) for x in column], len(column))

    return with_text


def _each(change: Callable[[str], str]) -> Callable[[Strings], Strings]:
    return lambda column: [None if x is None else change(x) for x in column]


def _replaced(value: Any) -> Callable[[Strings], Strings]:
    old, new = value
    growth = max(len(new) - len(old), 0)
    if not growth:
        return lambda column: [None if x is None else x.replace(old, new) for x in column]

    def replace(column: Strings) -> Strings:
        sizes = [0 if x is None else len(x) + x.count(old) * growth for x in column]
        fits = [size <= MAX_REPLACED for size in sizes]
        if len(column) > 3 and sum(compress(sizes, fits)) > MAX_TEXTS:
            raise TextsTooLongError
        return [x.replace(old, new) if x is not None and fit else None for x, fit in zip(column, fits, strict=True)]

    return replace


def _split(value: Any) -> Callable[[Strings], list[str | None]]:
    separator, index = value
    # From the end, all must be found: where separators overlap, those from the beginning count.
    most, needed = (-1, -index) if index < 0 else (index + 1, index + 1)

    def split(column: Strings) -> list[str | None]:
        parts = (() if x is None else x.split(separator, most) for x in column)
        return [each[index] if len(each) >= needed else None for each in parts]

    return split


def _substring(value: Any) -> Callable[[Strings], Strings]:
    begin, length = value
    return lambda column: [None if x is None else x[begin:][:length] for x in column]


def _regex(value: Any) -> Callable[[Strings], Any]:
    pattern, group = value
    search, longest = patterns.compiled(pattern).search, patterns.longest(pattern)

    def found(text: str | None) -> Any:
        match = None
        if text is not None and len(text) <= longest:
            match = search(text.encode("utf-8", "surrogatepass"))  # as in `_hash`
        if group is None:
            return match is not None
        part = None if match is None else match.group(group)
        return None if part is None else part.decode("utf-8", "replace")

    def column_of(column: Strings) -> Any:
        known = {text: found(text) for text in set(column)}
        values = map(known.__getitem__, column)
        return _bools(values, len(column)) if group is None else list(values)

    return column_of


def _string_in(items: Any) -> Callable[[Strings], Bools]:
    held = frozenset(items).__contains__
    return lambda column: _bools(map(held, column), len(column))


def _number_in(items: Any) -> Callable[[Any], Any]:
    if len(items) > 8:
        held = frozenset(items).__contains__
        return lambda column: _bools(map(held, column.tolist()), len(column))

    def any_of(column: Any) -> Any:
        found = np.zeros(len(column), np.bool_)
        for item in items:
            np.logical_or(found, np.equal(column, item), out=found)
        return found

    return any_of


def _hash(count: Any) -> Callable[[Strings], Any]:
    def hashed(column: Strings) -> Any:
        # A text that is written out can hold half of a surrogate pair.
        values = (math.nan if x is None else crc32(x.encode("utf-8", "surrogatepass")) % count for x in column)
        return np.fromiter(values, np.float64, len(column))

    return hashed


def _codes(column: Strings) -> Any:
    """A number for each text that tells it from others: 53 bits of its BLAKE2b."""
    codes = {x: math.nan if x is None else float(_digest(x) >> 11) for x in set(column)}
    return np.fromiter(map(codes.__getitem__, column), np.float64, len(column))


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _bucket(edges: Any) -> Callable[[Any], Any]:
    bounds = np.array(edges, np.float64)
    return lambda column: np.where(np.isnan(column), np.nan, np.searchsorted(bounds, column, side="right"))


def _length(column: Strings) -> Any:
    return np.fromiter([math.nan if x is None else len(x) for x in column], np.float64, len(column))


def _number(column: Strings) -> Any:
    return np.fromiter(map(parse_number, column), np.float64, len(column))


def parse_number(text: str | None) -> float:
    """The number that a text is; NaN if it is not a number."""
    # Python reads `1_000`, `inf` and the digits of all scripts as numbers; nobody else does.
    if text is None or len(text) > 64 or "_" in text or not text.isascii() or text.rstrip()[-1:].isalpha():
        return math.nan
    try:
        return float(text)
    except ValueError:
        return math.nan


def number_text(value: float) -> str | None:
    """A number as text: without a fraction if it has none. None if it is missing or infinite."""
    if not math.isfinite(value):
        return None
    if abs(value) < 2.0**63 and value.is_integer():
        return str(int(value))
    return repr(value)


def _concat(a: Strings, b: Strings) -> Strings:
    return check_texts([None if x is None or y is None else x + y for x, y in zip(a, b, strict=True)], MAX_TEXTS)


def _always(operation: Any, _: Any) -> Any:
    return operation


# Operations whose arguments are whole columns, made from the node's constant.
COLUMNAR: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "round": lambda digits: lambda column: np.round(column, digits),
    "number_in": _number_in,
    "string_in": _string_in,
    "string_equal": lambda _: _compared(str.__eq__),
    "string_not_equal": lambda _: _differ,
    "string_less": lambda _: _compared(str.__lt__),
    "string_less_equal": lambda _: _compared(str.__le__),
    "string_greater": lambda _: _compared(str.__gt__),
    "string_greater_equal": lambda _: _compared(str.__ge__),
    "string_where": lambda _: (
        lambda condition, a, b: [x if c else y for c, x, y in zip(condition.tolist(), a, b, strict=True)]
    ),
    "string_coalesce": lambda _: lambda a, b: [y if x is None else x for x, y in zip(a, b, strict=True)],
    "string_isnull": lambda _: lambda column: _bools([x is None for x in column], len(column)),
    "string_of_int": lambda _: _each(str),
    "string_of_number": lambda _: lambda column: list(map(number_text, column.tolist())),
    "string_of_bool": lambda _: lambda column: list(map({1.0: "true", 0.0: "false"}.get, column.tolist())),
    "string_of_timestamp": lambda _: times.to_text(),
    "concat": lambda _: _concat,
    "len": lambda _: _length,
    "lower": lambda _: _each(str.lower),
    "upper": lambda _: _each(str.upper),
    "strip": lambda _: _each(str.strip),
    "replace": _replaced,
    "split": _split,
    "substring": _substring,
    "startswith": _searched(str.startswith),
    "endswith": _searched(str.endswith),
    "contains": _searched(str.__contains__),
    "number": lambda _: _number,
    "regex": _regex,
    "hash": _hash,
    "code": lambda _: _codes,
    "bucket": _bucket,
    "geohash": places.geohash,
    "local": times.to_local,
    **{name: partial(_always, part) for name, part in times.PARTS.items()},
}
