"""What training has seen, column by column, as shares of bins: what live events are counted in to tell drift.

It travels with the model, so it is small whatever the matrix: some tenths a feature, the frequent texts of a category.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_BYTES = 512 << 10  # of a baseline as JSON; features that do not fit any more are left out
MAX_SCORES = 16  # outputs of a model that are watched, the first ones
_TENTHS = 10
_BEYOND = 0.05  # how far values may lie from a reference that is always the same
_LEAST_SHARE = 1e-4
# Texts of a category with bins of their own, and the share that each has at least: of few events, rare ones say more of
# chance than of a shift.
_TEXTS, _FREQUENT = 50, 0.005
_TEXT = 200
_ROWS = 100_000

Share = Annotated[float, Meta(ge=0, le=1)]


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """A feature, or an output of the model."""

    # Of numbers: where one bin ends and the next begins, which the edge belongs to.
    edges: Annotated[tuple[float, ...], Meta(max_length=32)] = ()
    # Of a category: the frequent ones, a bin each; the last bin is for all others.
    texts: Annotated[tuple[Annotated[str, Meta(max_length=_TEXT)], ...], Meta(max_length=_TEXTS)] = ()
    # Of the rows with a value, a bin each; empty if training has seen none.
    shares: Annotated[tuple[Share, ...], Meta(max_length=_TEXTS + 1)] = ()
    missing: Share = 0.0  # share of the rows without a value

    def __post_init__(self) -> None:
        if self.edges and (self.texts or not np.isfinite(self.edges).all() or (np.diff(self.edges) <= 0).any()):
            raise ValueError("the edges of bins are not in order")
        if self.shares and len(self.shares) != self.bins:
            raise ValueError("it has not one share a bin")

    @property
    def bins(self) -> int:
        return len(self.texts or self.edges) + 1


class Baseline(msgspec.Struct, frozen=True):
    """All columns."""

    rows: Annotated[int, Meta(ge=1, lt=2**53)]
    # By name; those that were too many are left out.
    features: Annotated[dict[Annotated[str, Meta(max_length=1_000)], Column], Meta(max_length=100_000)]
    # What the model gives for the matrix, by output.
    scores: Annotated[tuple[Column, ...], Meta(max_length=MAX_SCORES)] = ()

    @property
    def columns(self) -> dict[str, Column]:
        """All by name, the scores last. No feature can have such a name."""
        return {**self.features, **{score_name(number, self.scores): each for number, each in enumerate(self.scores)}}


def score_name(number: int, scores: Sequence[object]) -> str:
    """What an output is called beside features."""
    return "<score>" if len(scores) == 1 else f"<score {number}>"


def baseline_of(
    names: Sequence[str],
    values: NDArray[np.float32],
    categories: Mapping[str, Sequence[str]],
    scores: NDArray[np.float32] | None,
    rows: int,
) -> Baseline | None:
    """The baseline of a matrix and its scores, which are a sample of so many rows; None if there is none."""
    if not len(values):
        return None
    features: dict[str, Column] = {}
    given = () if scores is None else scores.reshape(len(scores), -1).T[:MAX_SCORES]
    outputs = tuple(_numbers(each) for each in given)
    room = MAX_BYTES - len(msgspec.json.encode(outputs))
    for name, column in zip(names, values.T, strict=True):
        found = _texts(column, categories[name]) if name in categories else _numbers(column)
        room -= len(msgspec.json.encode((name, found)))
        if room < 0:
            break
        features[name] = found
    return Baseline(rows, features, outputs)


def sample(rows: int) -> slice:
    """Rows of a matrix that a baseline is made of, evenly spread."""
    return slice(None, None, max(1, -(-rows // _ROWS)))


def edges_of(reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where bins end that hold about a tenth of a reference each, with one more beyond either end.

    The bins are divided halfway between the tenths, not at them: many rows may have the very same value, and a little
    more or less is not a shift.
    """
    tenths = np.unique(np.quantile(reference.astype(np.float64), np.linspace(0, 1, _TENTHS + 1)))
    beyond = (tenths[-1] - tenths[0]) / (2 * _TENTHS) or _BEYOND
    edges: NDArray[np.float64] = np.r_[tenths[0] - beyond, (tenths[1:] + tenths[:-1]) / 2, tenths[-1] + beyond]
    return edges


def counts_in(edges: NDArray[np.float64], values: NDArray[np.float32]) -> NDArray[np.intp]:
    """How many values each bin holds; NaN counts in the last."""
    places = np.searchsorted(edges, values.astype(np.float64), side="right")
    counts: NDArray[np.intp] = np.bincount(places, minlength=len(edges) + 1)
    return counts


def psi(reference: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Population stability index of two lists of shares: 0.1 is a small shift, 0.25 a large one."""
    before, after = (np.maximum(each, _LEAST_SHARE) for each in (reference, shares))
    return float(((after - before) * np.log(after / before)).sum())


def _numbers(column: NDArray[np.float32]) -> Column:
    there = column[np.isfinite(column)]
    missing = 1 - len(there) / len(column)
    if not len(there):
        return Column(missing=1.0)
    edges = np.unique([float(f"{edge:.9g}") for edge in edges_of(there)])
    shares = counts_in(edges, there) / len(there)
    return Column(tuple(edges.tolist()), (), _short(shares), round(missing, 6))


def _texts(column: NDArray[np.float32], texts: Sequence[str]) -> Column:
    codes = column[(column >= 0) & (column < len(texts))].astype(np.intp)  # a feature's default is not a code
    missing = round(1 - len(codes) / len(column), 6)
    if not len(codes):
        return Column(missing=1.0)
    counts = np.bincount(codes, minlength=len(texts))
    most = [code for code in np.argsort(-counts, kind="stable")[:_TEXTS] if counts[code] >= _FREQUENT * len(codes)]
    kept = [int(code) for code in most if code < len(texts) and len(texts[code]) <= _TEXT]
    own = counts[kept]
    shares = np.r_[own, len(codes) - own.sum()] / len(codes)
    return Column((), tuple(texts[code] for code in kept), _short(shares), missing)


def _short(shares: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(each), 6) for each in shares)
