"""Rows to judge models by: features by name, with categories as texts, so that any version can score them.

A labelled one is kept in the grid for gates; `pack` and `unpack` say how. What is unpacked may come from anybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.errors import ModelError, TableError
from gridscore.features import OfflineMatrix
from gridscore.features.definitions import fingerprints_of
from gridscore.models.record import MAX_SAMPLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gridscore.models.version import ModelVersion

MAX_ROWS = 1_000_000

Inputs = tuple["NDArray[np.float32]", "NDArray[np.float32] | None"]


class Rows(Protocol):
    """What versions can be compared on."""

    def __len__(self) -> int: ...

    def inputs(self, version: ModelVersion) -> Inputs:
        """The matrix that a version scores, and its margins."""


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The bytes of a sample: little-endian, a row after the other."""

    format: int
    features: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100_000)]
    categories: dict[str, tuple[str, ...]]
    values: bytes
    labels: bytes
    margins: bytes
    encodings: Annotated[dict[str, str], Meta(max_length=1_000)] = {}


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of features, perhaps with labels."""

    features: tuple[str, ...]
    values: NDArray[np.float32]  # shape (n, features), float32
    categories: Mapping[str, Sequence[str]]  # texts in the order of their codes, by feature
    labels: NDArray[np.float64] | None = None  # float64 of shape (n,); None if there are none
    margins: NDArray[np.float32] | None = None  # float32 of shape (n,); None if there are none
    # Fingerprints of those that the values were made with, by feature.
    encodings: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def from_parquet(cls, path: Path, label: str | None = None) -> Sample:
        """From a matrix of `gridscore features`, with a column that it kept as the label.

        Raises TableError if it cannot be read, is not such a matrix, is too large, or has no such column of numbers.
        """
        matrix = OfflineMatrix.from_parquet(path)
        if not 0 < len(matrix) <= MAX_ROWS:
            raise TableError(f"`{path}` has {len(matrix):,} rows; a sample has 1 to {MAX_ROWS:,}.")
        labels = None
        if label is not None:
            if matrix.kept is None or label not in matrix.kept:
                kept = ", ".join(map(str, [] if matrix.kept is None else matrix.kept)) or "none"
                raise TableError(
                    f"`{path}` has no column `{label}` beside its features.",
                    f"Keep it: `gridscore features … --keep {label}`. Kept are: {kept}.",
                )
            try:
                labels = matrix.kept[label].to_numpy(np.float64)
            except (TypeError, ValueError):
                labels = np.array([math.nan])
            if not np.isfinite(labels).all():
                raise TableError(f"The column `{label}` of `{path}` holds something that is not a number.")
        encodings = fingerprints_of(matrix.definitions)
        return cls(matrix.names, matrix.values, matrix.categories, labels, matrix.margins, encodings)

    def inputs(self, version: ModelVersion) -> Inputs:
        """The matrix of a version: its features in its order, categories by its codes.

        Raises ModelError if the sample lacks one of its features, or has it by another encoding, or has margins and the
        version was trained without, or the other way round.
        """
        if version.margin is not None and bool(version.margin) != (self.margins is not None):
            trained, has = ("a margin", "none") if version.margin else ("no margin", "margins")
            raise ModelError(
                f"{version} was trained with {trained}, the sample has {has}: scores would not be those of the job.",
                "Make the sample by the job file that the version was trained for: `gridscore features`.",
            )
        matrix = np.empty((len(self), len(version.features)), np.float32)
        encodings = fingerprints_of(version.definitions)
        for column, name in enumerate(version.features):
            if name not in self.features:
                raise ModelError(
                    f"{version} has a feature `{name}`, which the sample does not have.",
                    "Make the sample with the features of this version: `gridscore features`.",
                )
            if self.encodings.get(name) != encodings.get(name):
                raise ModelError(
                    f"{version} has another encoding of `{name}` than the sample was made with: it would be judged by "
                    "numbers that it never gets.",
                    "Make the sample by `gridscore features … --model FILE` of this version; `gridscore backtest` "
                    "compares versions with different encodings.",
                )
            matrix[:, column] = self._column(name, version)
        return matrix, self.margins

    def _column(self, name: str, version: ModelVersion) -> NDArray[np.float32]:
        column = self.values[:, self.features.index(name)]
        texts, known = self.categories.get(name), version.categories.get(name)
        if texts is None or known is None or tuple(texts) == tuple(known):
            return column
        codes = {text: code for code, text in enumerate(known)}
        # A text that the version has not been trained with is missing to it, as it is live.
        translated = np.array([codes.get(text, math.nan) for text in texts] + [math.nan], np.float32)
        with np.errstate(invalid="ignore"):
            is_code = (column >= 0) & (column < len(texts))
            return translated[np.where(is_code, column, len(texts)).astype(np.int64)]

    def pack(self) -> bytes:
        """As bytes. Raises ModelError if they would be too many."""
        labels, margins = self.labels, self.margins
        packed = _Packed(
            1,
            self.features,
            {name: tuple(texts) for name, texts in self.categories.items()},
            np.ascontiguousarray(self.values, "<f4").tobytes(),
            b"" if labels is None else labels.astype("<f8").tobytes(),
            b"" if margins is None else margins.astype("<f4").tobytes(),
            dict(self.encodings),
        )
        payload = msgspec.msgpack.encode(packed)
        if len(payload) > MAX_SAMPLE:
            raise ModelError(f"The sample has {len(payload):,} bytes; the limit is {MAX_SAMPLE:,}.", "Take fewer rows.")
        return payload

    @classmethod
    def unpack(cls, payload: bytes, source: str) -> Sample:
        """The sample of these bytes. Raises ModelError if they are not one."""
        try:
            packed = msgspec.msgpack.decode(payload, type=_Packed)
            values = np.frombuffer(packed.values, "<f4").reshape(-1, len(packed.features)).astype(np.float32)
            labels = np.frombuffer(packed.labels, "<f8").astype(np.float64) if packed.labels else None
            margins = np.frombuffer(packed.margins, "<f4").astype(np.float32) if packed.margins else None
            rows = [len(each) for each in (labels, margins) if each is not None]
            if packed.format != 1 or not len(values) or any(count != len(values) for count in rows):
                raise ValueError("its parts do not fit together")  # noqa: TRY301
            if labels is not None and not np.isfinite(labels).all():
                raise ValueError("a label is not a number")  # noqa: TRY301
        except (msgspec.DecodeError, ValueError) as error:
            raise ModelError(f"{source} in the grid is not valid: {error}.", "Store it again.") from None
        return cls(packed.features, values, packed.categories, labels, margins, packed.encodings)


def golden_inputs(rows: Sequence[Mapping[str, Any]], version: ModelVersion) -> NDArray[np.float32]:
    """The matrix of rows that people wrote: numbers, texts of categories, and None for what is missing.

    Raises:
        ModelError: A row lacks a feature, or has one that the version does not have, or a text that is not a category.
    """
    matrix = np.empty((len(rows), len(version.features)), np.float32)
    for number, row in enumerate(rows):
        if row.keys() != set(version.features):
            other = min(row.keys() ^ set(version.features))
            has = "has a feature that is not of" if other in row else "lacks a feature of"
            raise ModelError(f"The golden row {number + 1} {has} {version}: `{other}`.")
        for column, name in enumerate(version.features):
            value = row[name]
            if isinstance(value, str):
                known = version.categories.get(name, ())
                if not known:
                    raise ModelError(f"The golden row {number + 1} has a text for `{name}`, a number to {version}.")
                # As live: what training has not seen is missing.
                value = float(known.index(value)) if value in known else math.nan
            matrix[number, column] = math.nan if value is None else value
    return matrix
