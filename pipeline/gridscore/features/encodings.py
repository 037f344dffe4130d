"""Encodings: numbers that stand for texts, learnt of a history and shipped with the model, as categories are."""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

# Parts of a history, drawn by this seed: what the mean of the label is for a row is learnt of the four others.
FOLDS, SEED = 5, 0

# Texts that an encoding has numbers for, the most frequent; all others have the number of what is not known.
MOST = 10_000

_LONGEST = 1_000


class Encoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers by text."""

    numbers: Annotated[dict[Annotated[str, Meta(max_length=_LONGEST)], float], Meta(max_length=MOST)]  # what is known
    other: float = 0.0  # the number of every other text

    @property
    def texts(self) -> list[str]:
        """What is known, for people."""
        return [f"{text} {number:g}" for text, number in self.numbers.items()]

    @property
    def fingerprint(self) -> str:
        """Equal for equal encodings only, in whatever order they name their texts."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]

    def encoder(self) -> Callable[[Sequence[str | None]], NDArray[np.float64]]:
        """What makes numbers of texts; what is missing stays so."""
        known: dict[str | None, float] = {None: np.nan}
        known.update(self.numbers)
        other = self.other
        return lambda texts: np.fromiter(map(known.get, texts, repeat(other)), np.float64, len(texts))


class How(NamedTuple):
    """What is to be learnt: `target` with its smoothing, `frequency`, `onehot` of a place among the most frequent."""

    name: str
    parameter: float


class Texts:
    """The texts of a feature, numbered as they come, and which each row of a history has.

    `how`: what is learnt of them; `rows`: of the history.
    """

    def __init__(self, how: How, rows: int) -> None:
        self.how = how
        self._numbers: dict[str, int] = {}
        self._of_row = np.full(rows, -1, np.int64)

    def add(self, rows: Sequence[int], texts: Sequence[str | None]) -> None:
        numbers = self._numbers
        self._of_row[rows] = [-1 if text is None else numbers.setdefault(text, len(numbers)) for text in texts]

    def learnt(self, rows: NDArray[np.bool_], labels: NDArray[np.float64] | None) -> Encoding:
        """What some rows teach: always the same of the same rows in the same order."""
        numbers, texts = self._of_row, list(self._numbers)
        there = rows & (numbers >= 0)
        counts = np.bincount(numbers[there], minlength=len(texts))
        frequent = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (-counts[number], texts[number]))
        kept = [number for number in frequent if len(texts[number]) <= _LONGEST][:MOST]
        name, parameter = self.how
        if name == "onehot":
            rank = int(parameter)
            return Encoding({texts[number]: 1.0 for number in kept[rank - 1 : rank]})
        if name == "frequency" or labels is None:
            shares = counts / max(int(counts.sum()), 1)
            return Encoding({texts[number]: float(shares[number]) for number in kept})
        labelled = rows & np.isfinite(labels)
        prior = float(labels[labelled].mean()) if labelled.any() else 0.0
        there &= labelled
        counts = np.bincount(numbers[there], minlength=len(texts))
        sums = np.bincount(numbers[there], labels[there], minlength=len(texts)) + parameter * prior
        return Encoding({texts[n]: float(sums[n] / (counts[n] + parameter)) for n in kept if counts[n]}, prior)


def encodings_of(
    found: Mapping[str, Texts], rows: NDArray[np.bool_], labels: NDArray[np.float64] | None
) -> dict[str, Encoding]:
    """What some rows teach of all features."""
    return {name: texts.learnt(rows, labels) for name, texts in found.items()}


def folds_of(rows: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.random.default_rng(SEED).permutation(rows) % FOLDS
    return found


Learnt = Any  # of a feature, its categories in the order of their codes (a sequence of texts), or its :class:`Encoding`
