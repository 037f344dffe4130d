"""A model file's bytes as the document they hold: XGBoost's JSON or UBJ, read with every length and type checked.

XGBoost's own readers trust their input: an empty or truncated file can end the whole process, not just the call
(tried with 3.2). A worker must survive any bytes that the grid holds, so they are read here before XGBoost sees them.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import numpy as np

from gridscore.errors import ModelError

SAVE_HINT = "Save the model as XGBoost UBJ, with `booster.save_model('model.ubj')`, and push that file."

_NUMBERS = frozenset((int, float, bool))
_DEPTH = 64
_VALUE_BYTES = 8
_SPARE_VALUES = 1_000
"""A file has at least so many bytes for each value outside of arrays of numbers: its names of keys alone are longer.

A list of empty lists would take forty times its bytes in memory; so no file takes more than twenty times its bytes.
"""
_MOST_VALUES = 4_000_000
"""Values and names outside of arrays of numbers, at most: some hundred megabytes, and those of 90,000 trees.

A model is pushed from a machine that may be larger than a worker's.
"""
# Bytes of JSON at most: its arrays of numbers may take eight times as many before they are packed. UBJ has no need.
MAX_JSON = 64 << 20
_LONG = struct.Struct(">q")
_SCALARS = {
    ord("i"): struct.Struct(">b"),
    ord("U"): struct.Struct(">B"),
    ord("C"): struct.Struct(">B"),
    ord("I"): struct.Struct(">h"),
    ord("l"): struct.Struct(">i"),
    ord("L"): _LONG,
    ord("d"): struct.Struct(">f"),
    ord("D"): struct.Struct(">d"),
}
_ARRAYS = {kind: np.dtype(scalar.format) for kind, scalar in _SCALARS.items() if kind != ord("C")}
_CONSTANTS = {ord("Z"): None, ord("T"): True, ord("F"): False}

_JSON_START = re.compile(rb"\s*\{\s*[\"}]")
_UBJ_START = re.compile(rb"\{[L#}]")
# What people push by mistake, by the bytes it begins with.
_OTHERS = (
    (re.compile(rb"\x80[\x02-\x05]"), "a Python pickle"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive (a PyTorch, Keras or Spark model?)"),
    (re.compile(rb"\x1f\x8b|\x78[\x01\x5e\x9c\xda]|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd"), "compressed (by joblib?)"),
    (re.compile(rb"\x89HDF"), "an HDF5 file"),
    (re.compile(rb"tree\s*\nversion="), "a LightGBM model"),
    (re.compile(rb"CBM1"), "a CatBoost model"),
    (re.compile(rb"binf|bs64"), "in XGBoost's old binary format"),
    (re.compile(rb"\x08[\x01-\x0f]\x12"), "an ONNX model"),
)


def read_document(payload: bytes, source: str) -> dict[str, Any]:
    """The document in a model file's bytes; its arrays of numbers are numpy arrays.

    Raises ModelError if they are not XGBoost JSON or UBJ, or are damaged.
    """
    if not payload:
        raise ModelError(f"{source} is empty.", SAVE_HINT)
    try:
        if _UBJ_START.match(payload):
            return _Ubj(payload).document()
        if _JSON_START.match(payload):
            if len(payload) > MAX_JSON:
                raise ModelError(
                    f"{source} has {-(-len(payload) >> 20):,} MiB of JSON; {MAX_JSON >> 20} MiB at most are taken.",
                    SAVE_HINT,
                )
            return _json(payload)
    except MemoryError:
        raise ModelError(f"{source} needs more memory than there is here.", SAVE_HINT) from None
    except RecursionError:
        raise ModelError(f"{source} is nested too deep to be an XGBoost model.", SAVE_HINT) from None
    except ValueError as error:
        raise ModelError(
            f"{source} is damaged or incomplete: {error}.", "Copy it again, or save it anew from training."
        ) from None
    what = next((name for pattern, name in _OTHERS if pattern.match(payload)), "not XGBoost JSON or UBJ")
    raise ModelError(f"{source} is {what}; only XGBoost models in JSON or UBJ are taken.", SAVE_HINT)


def _json(payload: bytes) -> dict[str, Any]:
    if payload.count(b"[") + payload.count(b"{") > _most_values(payload):
        raise ValueError("it has too many values for its size")
    if payload.count(b'"') // 2 + payload.count(b"[") + payload.count(b"{") > _MOST_VALUES:
        raise ValueError(_TOO_MANY)
    value = json.loads(payload.decode(), object_pairs_hook=_unique_arrays)
    if not isinstance(value, dict):  # cannot be: it begins with a brace
        raise TypeError("not an object")
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return value
    raise RecursionError


_TOO_MANY = f"it has more than {_MOST_VALUES:,} values outside of arrays of numbers"


def _most_values(payload: bytes) -> int:
    return _SPARE_VALUES + len(payload) // _VALUE_BYTES


def _unique_arrays(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Called as each object ends: the numbers of one tree at most are Python objects."""
    return _unique([(key, _packed(value)) for key, value in pairs])


def array_of(values: Any, name: str) -> np.ndarray:
    """An array of a list of numbers, or of an array.

    Raises:
        TypeError: Something in it is not a number. A text among numbers would make each of them as large as itself.
    """
    if isinstance(values, list) and not _NUMBERS.issuperset(map(type, values)):
        raise TypeError(f"{name} is not a list of numbers")
    return np.asarray(values)


def _packed(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        return value
    try:
        array = array_of(value, "a list")
    except (TypeError, OverflowError):
        return value
    return array if array.dtype.kind in "iufb" else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers might take different ones, and what was checked would not be what scores.
        raise ValueError("a key is given twice")
    return found


class _Ubj:
    """The subset of Universal Binary JSON that XGBoost writes."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0
        self._left, self._room = _most_values(payload), _MOST_VALUES

    def document(self) -> dict[str, Any]:
        value = self._value(0)
        if self._at != len(self._payload):
            raise ValueError(f"{len(self._payload) - self._at:,} bytes follow its end")
        if isinstance(value.get("version"), np.ndarray):
            # XGBoost refuses it with a message that holds the whole document; an array of doubles in there ends the
            # process (tried with 3.4).
            raise ValueError("its version is not a plain list")  # noqa: TRY004
        return value  # type: ignore[no-any-return]  # it begins with a brace

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > len(self._payload):
            raise ValueError(f"it ends in the middle, at byte {len(self._payload):,}")
        taken, self._at = self._payload[self._at : end], end
        return taken

    def _marker(self) -> int:
        return self._take(1)[0]

    def _peek(self, marker: bytes) -> bool:
        if self._payload.startswith(marker, self._at):
            self._at += 1
            return True
        return False

    def _length(self) -> int:
        if self._marker() != ord("L"):
            raise ValueError(f"no length at byte {self._at - 1:,}")
        length: int = _LONG.unpack(self._take(8))[0]
        return length

    def _text(self) -> str:
        return self._take(self._length()).decode()

    def _value(self, depth: int) -> Any:
        if depth > _DEPTH:
            raise RecursionError
        self._left -= 1
        self._room -= 1
        if self._left < 0:
            raise ValueError("it has too many values for its size")
        if self._room < 0:
            raise ValueError(_TOO_MANY)
        marker = self._marker()
        if marker == ord("{"):
            return self._object(depth)
        if marker == ord("["):
            return self._array(depth)
        if marker == ord("S"):
            return self._text()
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if (scalar := _SCALARS.get(marker)) is not None:
            return scalar.unpack(self._take(scalar.size))[0]
        raise ValueError(f"an unknown type {bytes((marker,))!r} at byte {self._at - 1:,}")

    def _object(self, depth: int) -> dict[str, Any]:
        pairs = []
        while not self._peek(b"}"):
            key = self._text()
            self._room -= 1
            pairs.append((key, self._value(depth + 1)))
        return _unique(pairs)

    def _array(self, depth: int) -> Any:
        if self._peek(b"$"):
            dtype = _ARRAYS.get(self._marker())
            if dtype is None or not self._peek(b"#"):
                raise ValueError(f"an array of an unknown type at byte {self._at:,}")
            count = self._length()
            values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
            return values.astype(dtype.newbyteorder("="))
        if self._peek(b"#"):
            count = self._length()
            if not 0 <= count <= len(self._payload) - self._at:  # each item has a byte at least
                raise ValueError(f"an array of {count:,} items at byte {self._at:,}")
            return [self._value(depth + 1) for _ in range(count)]
        items = []
        while not self._peek(b"]"):
            items.append(self._value(depth + 1))
        return items
