"""How good scores are: metrics with intervals by bootstrap, how far two sets of scores lie apart, what a row costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gridscore.errors import ModelError
from gridscore.features import baseline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gridscore.models.loaded import LoadedModel

    Measure = Callable[[NDArray[np.float64] | None], float]
    """A metric of rows that each count as often as the weights say; once, if these are None."""

Name = Literal["auc", "accuracy", "log_loss", "brier", "rmse", "mae"]

HIGHER_IS_BETTER = frozenset(("auc", "accuracy"))

_ROUNDS = 500
_LATENCY_ROWS = 256
_LATENCY_REPEATS = 9


class Interval(NamedTuple):
    """An estimate, and between which values it lies with a confidence of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 %: {self.low:.4g} to {self.high:.4g})"


def measure(name: Name, labels: NDArray[np.float64], scores: NDArray[np.float32]) -> Measure:
    """A metric of scores.

    `labels`: a number a row: 0 or 1, the number of the class, or what regression should give; `scores`: of shape (n,),
    or (n, classes). Raises ModelError if the metric is not for such labels or scores.
    """
    if name == "auc":
        return _auc(labels, scores)
    losses = _losses(name, labels, scores.astype(np.float64))

    def mean(weights: NDArray[np.float64] | None) -> float:
        value = float(np.average(losses, weights=weights))
        return float(np.sqrt(value)) if name == "rmse" else value

    return mean


def intervals(measures: Sequence[Measure], rows: int) -> tuple[list[Interval], Interval | None]:
    """Each metric with its interval, and, if there are two, how much less the first is than the second.

    The rows are drawn again 500 times, the same ones for all, so that what two models have in common does not count.
    """
    generator = np.random.default_rng(0)
    drawn = np.empty((_ROUNDS, len(measures)))
    for each in drawn:
        weights = np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(np.float64)
        each[:] = [of(weights) for of in measures]
    values = [of(None) for of in measures]
    found = [_interval(value, column) for value, column in zip(values, drawn.T, strict=True)]
    less = _interval(values[1] - values[0], drawn[:, 1] - drawn[:, 0]) if len(measures) == 2 else None
    return found, less


def psi(reference: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """Population stability index, by tenths of the reference; scores beyond it count, too. Of outputs, the largest."""
    found = []
    for outputs in zip(*(each.reshape(len(each), -1).T for each in (reference, scores)), strict=True):
        edges = baseline.edges_of(outputs[0])
        found.append(baseline.psi(*(baseline.counts_in(edges, each) / len(each) for each in outputs)))
    return max(found)


def microseconds_a_row(model: LoadedModel) -> float:
    """CPU time of a row in a batch of 256, at best: what a worker pays for the model alone under load."""
    generator = np.random.default_rng(0)
    shape = (_LATENCY_ROWS, len(model.version.features))
    matrix = np.ascontiguousarray(generator.normal(size=shape), dtype=np.float32)
    codes = [name in model.version.categories for name in model.version.features]
    matrix[:, codes] = 0
    took = []
    for _ in range(_LATENCY_REPEATS):
        began = time.thread_time_ns()
        model.predict(matrix)
        took.append(time.thread_time_ns() - began)
    return min(took) / 1_000 / _LATENCY_ROWS


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if np.isfinite(drawn).any() else (value, value)
    return Interval(value, float(low), float(high))


def _auc(labels: NDArray[np.float64], scores: NDArray[np.float32]) -> Measure:
    if scores.ndim != 1:
        raise ModelError("`auc` needs one score a row; the model gives several.", "Take `accuracy` or `log_loss`.")
    if set(np.unique(labels)) != {0.0, 1.0}:
        raise ModelError("`auc` needs labels that are 0 and 1, and both of them.")
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of rows with the same score

    def area(weights: NDArray[np.float64] | None) -> float:
        ones = positive if weights is None else positive * weights[order]
        zeros = 1 - positive if weights is None else (1 - positive) * weights[order]
        above, below = np.add.reduceat(ones, starts), np.add.reduceat(zeros, starts)
        pairs = above.sum() * below.sum()
        return float((above * (np.cumsum(below) - below / 2)).sum() / pairs) if pairs else float("nan")

    return area


def _losses(name: str, labels: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row adds to a metric."""
    several = scores.ndim > 1
    if name in ("log_loss", "brier") and not ((scores >= 0) & (scores <= 1)).all():
        raise ModelError(f"`{name}` needs scores that are probabilities, and the model gives others.")
    if several:
        classes = labels.astype(np.int64)
        if name not in ("accuracy", "log_loss"):
            raise ModelError(f"`{name}` needs one score a row; the model gives several.", "Take `accuracy`.")
        if not np.allclose(scores.sum(axis=1), 1, atol=1e-3):
            raise ModelError(f"`{name}` needs the probabilities of classes; the model gives a score for each target.")
        if (classes != labels).any() or classes.min() < 0 or classes.max() >= scores.shape[1]:
            raise ModelError(f"The labels are not numbers of the model's {scores.shape[1]} classes.")
        if name == "accuracy":
            return _as_numbers(scores.argmax(axis=1) == classes)
        return _log_loss(scores[np.arange(len(scores)), classes])
    if name in ("log_loss", "brier") and not np.isin(labels, (0, 1)).all():
        raise ModelError(f"`{name}` needs labels that are 0 and 1.")
    if name == "accuracy":
        if (scores == np.rint(scores)).all():  # numbers of classes
            return _as_numbers(scores == labels)
        if not (np.isin(labels, (0, 1)).all() and ((scores >= 0) & (scores <= 1)).all()):
            raise ModelError("`accuracy` needs numbers of classes, or labels that are 0 and 1 and their probabilities.")
        return _as_numbers((scores >= 0.5) == labels)
    if name == "log_loss":
        return _log_loss(np.where(labels == 1, scores, 1 - scores))
    difference: NDArray[np.float64] = np.abs(scores - labels)
    return difference if name == "mae" else difference * difference


def _as_numbers(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    return right.astype(np.float64)


def _log_loss(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    loss: NDArray[np.float64] = -np.log(np.maximum(probability, 1e-15))
    return loss
