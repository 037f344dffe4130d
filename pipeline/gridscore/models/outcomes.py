"""How the variants of an experiment turn out, by labels that come later, and when that is bad enough to end one.

Intervals hold at every look together, not at one look only: they are a confidence sequence (a mixture of normal
distributions, narrowest at `least_labels`), and wider the more bounds and challengers there are. Their standard errors
come of leaving out each group of entities in turn (the jackknife), so an entity with many events counts as one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from msgspec import Meta, Struct

from gridscore.errors import ModelError
from gridscore.grid.records import Count  # noqa: TC001 -- msgspec reads the annotations
from gridscore.job.monitoring import Metric  # noqa: TC001 -- msgspec reads the annotations
from gridscore.models.metrics import HIGHER_IS_BETTER, measure
from gridscore.models.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.models.metrics import Measure

_RISING = HIGHER_IS_BETTER | {"precision", "recall"}
_MEANS = frozenset(("accuracy", "precision", "recall", "cost"))  # of values so few that all rows may have the same one
_LEAST_ROWS = 30  # of these metrics, that count for one
_LEAST_GROUPS = 8
LOOK_SECONDS = 30.0  # between two looks at the labels of an experiment, at least
_RARE = 50  # times as long as a look takes, the next one waits
_PATIENCE = 4  # such pauses after which a look is too old to go by: the second worker has one after three
_ALPHA, _NARROWEST = 0.05, 8.0  # where a sequence of this confidence is narrowest, in units of its variance

Number = Annotated[float, Meta(ge=-1e38, le=1e38)]
_Text = Annotated[str, Meta(max_length=1_000)]


class Bound(Struct, frozen=True, omit_defaults=True):
    """How good a metric of a challenger must be."""

    name: Metric
    decision: Annotated[str, Meta(max_length=200)] = ""  # of `precision` and `recall`: of which decision
    at_least: Number | None = None
    at_most: Number | None = None
    worse_by: Number | None = None  # how much worse than the champion's it may be

    def __post_init__(self) -> None:
        if (self.at_least, self.at_most, self.worse_by).count(None) != 2:
            raise ValueError("a bound is `at_least`, `at_most` or `worse_by`")

    @property
    def metric(self) -> str:
        """What is bounded, for people."""
        return f"{self.name} of {self.decision}" if self.decision else self.name

    @property
    def text(self) -> str:
        """What it asks, for people."""
        if self.worse_by is not None:
            return f"at most {self.worse_by:g} worse than the champion's"
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    def room(self, value: float) -> float:
        """How far a value, of the metric or of how much worse it is, keeps the bound; below 0 it does not."""
        most = self.worse_by if self.worse_by is not None else self.at_most
        return value - self.at_least if self.at_least is not None else most - value  # type: ignore[operator]


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What labels say of a challenger and a bound."""

    variant: Variant
    bound: Annotated[int, Meta(ge=0, lt=10)]  # which of the experiment's
    value: Number | None = None  # the metric; of `champion`, the champion's
    champion: Number | None = None
    worse: Number | None = None  # how much worse it is than the champion's, if that is bounded
    low: Number | None = None  # the lower end of the interval of what is bounded
    high: Number | None = None
    problem: _Text = ""  # why it cannot be said


class Labelled(Struct, frozen=True, omit_defaults=True):
    """How many labels of a variant there are, and how many of events that were scored in this step."""

    all: Count = 0
    of_step: Count = 0


class Outcomes(Struct, frozen=True, omit_defaults=True):
    """What a look at the labels of an experiment has found."""

    number: Count = 0  # how many looks there were
    at: Count = 0  # when the last one that could be made began, in milliseconds since 1970
    step: Count = 0  # at which the experiment was then
    seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0  # how long it took
    labels: dict[Variant, Labelled] = {}
    found: Annotated[tuple[Outcome, ...], Meta(max_length=40)] = ()
    invalid: Count = 0  # labels that cannot be used
    problem: _Text = ""  # why outcomes cannot be judged

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return max(LOOK_SECONDS, _RARE * self.seconds)

    def is_old(self, now: float) -> bool:
        """Whether looks have stopped, at this time in seconds since 1970."""
        return now - self.at / 1000 > _PATIENCE * self.pause

    def labelled(self, variant: Variant) -> Labelled:
        """How many labels of a variant there are."""
        return self.labels.get(variant) or Labelled()


class Rows(NamedTuple):
    """The labelled results of a variant, a value each."""

    labels: NDArray[np.float64]
    scores: NDArray[np.float32]
    decisions: NDArray[np.int64]  # the number of each one's decision; -1: none
    groups: NDArray[np.int64]  # that of its entity
    one_of: int = 1  # so many was taken, by its key

    @property
    def seen(self) -> int:
        """How many there are, as far as a part of them tells."""
        return len(self.labels) * self.one_of


class _Judged(NamedTuple):
    of: Measure
    counts: NDArray[np.bool_]  # which rows count for it
    least_error: float  # below which its standard error is not


def outcomes_of(
    bounds: Sequence[Bound],
    rows: Sequence[Rows],
    least: int,
    decisions: Sequence[str],
    costs: Mapping[str, tuple[float, float]],
    tried: int,
) -> list[Outcome]:
    """What labels say of each bound of each challenger that has rows. Takes a while: not for the event loop.

    `rows`: of the champion, and of each challenger; each may be a part of all, and intervals are those of the part;
    `tried`: how many challengers there are: the more, the wider all intervals are.
    """
    found = []
    alpha = _ALPHA / max(1, len(bounds) * tried)
    for number, theirs in enumerate(rows[1:], 1):
        for place, bound in enumerate(bounds):
            both = [theirs] if bound.worse_by is None else [theirs, rows[0]]
            if min(each.seen for each in both) < least:
                continue
            try:
                measures = [_measure(bound, each, decisions, costs) for each in both]
                made = _outcome(bound, measures, both, _width(min(len(each.labels) for each in both), least, alpha))
            except ModelError as error:
                found.append(Outcome(VARIANTS[number], place, problem=error.message[:1_000]))
            else:
                found.append(Outcome(VARIANTS[number], place, **made))  # type: ignore[arg-type]
    return found


def _outcome(bound: Bound, judged: list[_Judged], rows: list[Rows], width: float) -> dict[str, float | str]:
    few = f"`{bound.metric}` cannot be said of so few labels"
    fewest = min(int(each.counts.sum()) for each in judged)
    if bound.name in _MEANS and fewest < _LEAST_ROWS:
        raise ModelError(f"{few}: {fewest} count for it, and {_LEAST_ROWS} are needed")
    sides = [np.unique(its.groups[each.counts]) for its, each in zip(rows, judged, strict=True)]
    least = min(map(len, sides))
    if least < _LEAST_GROUPS:
        raise ModelError(
            f"all labels that count for `{bound.metric}` are of {least} groups of entities; {_LEAST_GROUPS} of 64 are "
            "needed"
        )
    groups = np.unique(np.concatenate(sides))
    values = [each.of(None) for each in judged]
    try:
        without = np.array(
            [
                [each.of((its.groups != group).astype(np.float64)) for its, each in zip(rows, judged, strict=True)]
                for group in groups.tolist()
            ]
        )
    except ZeroDivisionError:  # without this group there is nothing left
        raise ModelError(few) from None
    made: dict[str, float | str] = {"value": values[0]}
    sign = 1.0 if bound.name in _RISING else -1.0
    of, replicates = values[0], without[:, 0]
    if len(values) == 2:
        of, replicates = sign * (values[1] - values[0]), sign * (without[:, 1] - without[:, 0])
        made |= {"champion": values[1], "worse": of}
    error = math.sqrt((len(groups) - 1) / len(groups) * float(((replicates - replicates.mean()) ** 2).sum()))
    error = max(error, math.hypot(*(each.least_error for each in judged)))
    wide = _students(width, least - 1) * error
    if not (math.isfinite(of) and math.isfinite(wide)):
        raise ModelError(few)
    if not error:  # all groups are alike by chance: that says nothing of how far it may be off
        return {
            **made,
            "problem": f"how far `{bound.metric}` may be off cannot be said: all groups of entities have the same",
        }
    return {**made, "low": of - wide, "high": of + wide}


def _students(normal: float, freedom: int) -> float:
    """As far out in Student's distribution as that is in the normal one: Cornish and Fisher, without SciPy."""
    z, squared = normal, normal * normal
    first = z * (squared + 1) / 4
    second = z * ((5 * squared + 16) * squared + 3) / 96
    third = z * (((3 * squared + 19) * squared + 17) * squared - 15) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _width(labels: int, least: int, alpha: float) -> float:
    """Standard errors to either side that hold at this look and all others."""
    variance = _NARROWEST * labels / least
    return math.sqrt((1 + 1 / variance) * math.log((1 + variance) / alpha**2))


def _measure(bound: Bound, rows: Rows, decisions: Sequence[str], costs: Mapping[str, tuple[float, float]]) -> _Judged:
    if bound.name == "cost":
        values = costs_of(rows.decisions, rows.labels, decisions, costs)
        return _mean(values, ~np.isnan(values), [cost for each in costs.values() for cost in each])
    if bound.name not in ("precision", "recall"):
        of = measure(bound.name, rows.labels, rows.scores)  # type: ignore[arg-type]
        count = len(rows.labels)
        right = np.arange(count) < round(of(None) * count) if bound.name == "accuracy" else np.zeros(0)
        return _Judged(of, np.ones(count, np.bool_), _least_error(right, (0.0, 1.0)) if right.size else 0.0)
    if not np.isin(rows.labels, (0, 1)).all():
        raise ModelError(f"`{bound.name}` needs labels that are 0 and 1.")
    decided, positive = rows.decisions == decisions.index(bound.decision), rows.labels == 1
    both = (positive, decided) if bound.name == "precision" else (decided, positive)
    return _mean(*both, (0.0, 1.0))


def costs_of(
    decisions: NDArray[np.integer],
    labels: NDArray[np.float64],
    names: Sequence[str],
    costs: Mapping[str, tuple[float, float]],
) -> NDArray[np.float64]:
    """What the decision of each row, a place in `names`, costs by its label; NaN where that is not known."""
    values = np.full(len(labels), np.nan)
    for number, name in enumerate(names):
        for label, cost in enumerate(costs.get(name, ())):
            values[(decisions == number) & (labels == label)] = cost
    return values


def _mean(values: NDArray[np.generic], where: NDArray[np.bool_], possible: Sequence[float]) -> _Judged:
    """The mean of the values there; NaN if there are none."""
    taken = values[where].astype(np.float64)

    def mean(weights: NDArray[np.float64] | None) -> float:
        counts = np.ones(len(taken)) if weights is None else weights[where]
        return float((taken * counts).sum() / counts.sum()) if counts.any() else math.nan

    return _Judged(mean, where, _least_error(taken, possible) if taken.size else 0.0)


def _least_error(values: NDArray[np.generic], possible: Sequence[float]) -> float:
    """The standard error of their mean, were there one more at each end of what is possible: of a share, Laplace's."""
    return float(np.std(np.r_[values, min(possible), max(possible)]) / math.sqrt(len(values)))
