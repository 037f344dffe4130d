"""The functions of the expression language: what each takes and gives. How they are computed is in `features`."""

from __future__ import annotations

from dataclasses import dataclass

from gridscore.job.types import Type

N, S, T, B = Type.NUMBER, Type.STRING, Type.TIMESTAMP, Type.BOOL


@dataclass(frozen=True, slots=True)
class Function:
    """Signature of a function."""

    takes: tuple[Type, ...]  # types of its arguments; the last may be repeated up to `most`
    gives: Type  # type of its value
    example: str  # a call, for messages and the documentation
    least: int = -1  # arguments that it needs, if not all of `takes`
    most: int = -1  # arguments that it can take, if more than `takes`
    # Positions of arguments that must be written out, because they cannot differ from row to row.
    constant: frozenset[int] = frozenset()

    @property
    def arity(self) -> tuple[int, int]:
        """The fewest and the most arguments."""
        count = len(self.takes)
        return (count if self.least < 0 else self.least), max(count, self.most)


_MATHS = ("abs", "sqrt", "exp", "expm1", "log", "log1p", "log10", "log2", "floor", "ceil", "sign")
_ANGLES = ("sin", "cos", "tan", "asin", "acos", "atan", "radians", "degrees")
_PARTS = ("year", "month", "day", "hour", "minute", "second", "dayofweek", "dayofyear", "week", "quarter")
_TEXT = ("lower", "upper", "strip")
_SEARCH = ("startswith", "endswith", "contains")

# Functions whose arguments have fixed types.
FUNCTIONS: dict[str, Function] = {
    **{name: Function((N,), N, f"{name}(x)") for name in (*_MATHS, *_ANGLES)},
    **{name: Function((N, N), N, f"{name}(x, y)") for name in ("hypot", "atan2")},
    **{name: Function((N, N), N, f"{name}(x, y)", most=16) for name in ("min", "max")},
    "round": Function((N, N), N, "round(x, 2)", least=1, constant=frozenset({1})),
    "clip": Function((N, N, N), N, "clip(x, 0, 100)"),
    **{
        name: Function((T, S), N, f'{name}(time, "America/New_York")', least=1, constant=frozenset({1}))
        for name in _PARTS
    },
    "is_weekend": Function((T, S), B, 'is_weekend(time, "America/New_York")', least=1, constant=frozenset({1})),
    "epoch": Function((T,), N, "epoch(time)"),
    "timestamp": Function((S,), T, 'timestamp("2026-01-31T00:00:00Z")', constant=frozenset({0})),
    "len": Function((S,), N, "len(text)"),
    **{name: Function((S,), S, f"{name}(text)") for name in _TEXT},
    **{name: Function((S, S), B, f'{name}(text, "N1")', constant=frozenset({1})) for name in _SEARCH},
    "replace": Function((S, S, S), S, 'replace(text, "-", "")', constant=frozenset({1, 2})),
    "split": Function((S, S, N), S, 'split(text, "-", 0)', constant=frozenset({1, 2})),
    "substring": Function((S, N, N), S, "substring(text, 0, 3)", least=2, constant=frozenset({1, 2})),
    "number": Function((S,), N, "number(text)"),
    "haversine": Function((N, N, N, N), N, "haversine(lat1, lon1, lat2, lon2)"),
    "geohash": Function((N, N, N), S, "geohash(lat, lon, 6)", constant=frozenset({2})),
}

# Functions whose types depend on their arguments, with an example each.
SPECIAL = {
    "where": "where(condition, a, b)",
    "isnull": "isnull(x)",
    "coalesce": "coalesce(x, y, 0)",
    "string": "string(x)",
    "category": "category(text)",
    "target": "target(merchant, smoothing=20)",
    "frequency": "frequency(merchant)",
    "onehot": "onehot(country, 1)",
    "hash": "hash(x, 1000)",
    "bucket": "bucket(x, [10, 100])",
    "regex": 'regex(text, "^N[0-9]+")',
    "case": "case(x < 10, 1, x < 100, 2, 3)",
}

# Those that make a number of a text by what training has learnt of it; see `features.encodings`.
LEARNT = ("target", "frequency", "onehot")

# Functions of the events of an entity, with an example each; see `windows`.
WINDOWED = {
    "count": 'count(card, "1h")',
    **{
        name: f'{name}(amount, card, "1h")'
        for name in ("sum", "mean", "min", "max", "std", "distinct", "seen", "first")
    },
    "last": "last(amount, card)",
    "lag": "lag(amount, card, 2)",
    "seconds_since_last": "seconds_since_last(card)",
    "decayed": 'decayed(amount, card, "1h")',
}

# Functions that take an array as well, or a field of its items.
OF_ARRAYS = ("len", "count", "sum", "mean", "min", "max")

NAMES = tuple(dict.fromkeys((*FUNCTIONS, *SPECIAL, *WINDOWED)))


def example_of(name: str) -> str:
    """A call of a function."""
    return FUNCTIONS[name].example if name in FUNCTIONS else SPECIAL.get(name) or WINDOWED[name]
