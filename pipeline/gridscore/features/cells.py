"""Cells of CSV files: from text to the value that the JSON of an event, or of a lookup's entry, has.

One rule says what is missing: an empty cell, quoted or not; and in columns of numbers, booleans and times in numbers
also what programs write for it, such as `NA` and `nan`. In a column of strings these are strings: Namibia is `NA`.
"""

from __future__ import annotations

import decimal
import math
import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

# What a column holds; a `number` is whole if it is written so, an `array` is JSON.
CellKind = Literal["string", "int", "float", "bool", "number", "array"]

# What is missing in a column of anything but strings.
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
)

# How the names of files of JSON lines end, in small letters.
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
_NUMBER = re.compile(r"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,9})?|inf(inity)?)", re.IGNORECASE)
# What true and false are, in small letters.
BOOLS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}


def _string(cell: str) -> str | None:
    return cell or None


def _int(cell: str) -> int | None:
    text = cell.strip()
    if text in MISSING:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    if len(text) <= 64 and _NUMBER.fullmatch(text):
        number = decimal.Decimal(text)  # a float would lose digits
        if number.is_finite() and number.adjusted() <= 40 and int(number) == number:
            return int(number)
    raise ValueError(f"`{cell[:50]}` is not a whole number")


def _float(cell: str) -> float | None:
    text = cell.strip()
    if text in MISSING:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"`{cell[:50]}` is not a number")
    number = float(text)
    return number if math.isfinite(number) else None  # JSON has no infinity


def _number(cell: str) -> float | None:
    return int(cell) if _WHOLE.fullmatch(cell) else _float(cell)


def _bool(cell: str) -> bool | None:
    text = cell.strip()
    if text in MISSING:
        return None
    if text.lower() not in BOOLS:
        raise ValueError(f"`{cell[:50]}` is neither true nor false")
    return BOOLS[text.lower()]


def _array(cell: str) -> list[Any] | None:
    if cell.strip() in MISSING:
        return None
    try:
        return msgspec.json.decode(cell, type=list[Any])
    except (ValueError, RecursionError):
        raise ValueError(f"`{cell[:50]}` is not an array in JSON") from None


# What makes a value of a cell: None if it is missing; ValueError, with the reason, if it is of another kind.
READERS: dict[CellKind, Callable[[str], Any]] = {
    "string": _string,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "number": _number,
    "array": _array,
}
