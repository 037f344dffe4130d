"""The variants of an experiment: what was counted of each, and which differences may be chance.

Each worker keeps what it has counted in `gridscore.experiment-counts`, under `job/worker`.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.grid.records import Count
from gridscore.models.metrics import psi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gridscore.grid.records import Record

COUNTS_MAP = "gridscore.experiment-counts"

Variant = Literal["champion", "challenger", "challenger-2", "challenger-3", "challenger-4"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)  # what results call who made them
GROUPS = 64  # groups of entities by which chance is judged: the events of one entity are alike, and all in one group
_BIN_BITS = 18  # of a float32 that a bin does not tell apart: a thirty-second of the number at most
_BINS, _HALF = 1 << (32 - _BIN_BITS), 1 << (31 - _BIN_BITS)
_DRAWN = 10_000

Counts64 = Annotated[tuple[Count, ...], Meta(min_length=GROUPS, max_length=GROUPS)]
Sum = Annotated[float, Meta(ge=-1e100, le=1e100)]
_NONE = (0,) * GROUPS


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of a variant."""

    errors: Count = 0  # events that it gave no score
    ns: Count = 0  # CPU nanoseconds of its predictions
    # Events that it scored, by group of entities; sums of their scores, and who was chosen, likewise.
    groups: Counts64 = _NONE
    sums: Annotated[tuple[Sum, ...], Meta(min_length=GROUPS, max_length=GROUPS)] = (0.0,) * GROUPS
    chosen: Annotated[dict[Annotated[str, Meta(max_length=200)], Counts64], Meta(max_length=1_000)] = {}
    # How many scores lay where, see `Tally`.
    bins: Annotated[dict[Annotated[int, Meta(ge=0, lt=_BINS)], Count], Meta(max_length=_BINS)] = {}
    behind: Count = 0  # its events that the champion scored, because a worker has not loaded it
    error: Annotated[str, Meta(max_length=1_000)] = ""  # why a worker does not use it; empty if it does

    @property
    def events(self) -> int:
        """Events that it scored."""
        return sum(self.groups)

    @property
    def error_share(self) -> float:
        """Part of its events that it gave no score."""
        return self.errors / max(1, self.events + self.errors)

    @property
    def us_per_row(self) -> float:
        """CPU microseconds that a row took."""
        return self.ns / 1_000 / max(1, self.events + self.errors)

    def scores(self) -> NDArray[np.float32]:
        """Scores that lie as those that were counted, ten thousand at most."""
        bins = np.array(sorted(self.bins), np.int64)
        until = np.cumsum([float(self.bins[each]) for each in bins.tolist()])
        count = min(_DRAWN, int(until[-1]))
        drawn = bins[np.searchsorted(until, (np.arange(count) + 0.5) / count * until[-1])] - _HALF
        ordered = ((drawn << _BIN_BITS) + (1 << (_BIN_BITS - 1))).astype(np.int32)
        found: NDArray[np.float32] = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(np.float32)
        return found


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker, or all of them, counted of an experiment."""

    id: Annotated[str, Meta(max_length=40)]
    variants: dict[Variant, Counted] = {}
    nobodys: Count = 0  # events without an entity, which the champion scores
    unseen: Count = 0  # events that a shadow has not scored, because its results are not acknowledged fast enough

    def of(self, variant: Variant) -> Counted:
        """What was counted of a variant."""
        return self.variants.get(variant) or Counted()

    def without_errors(self) -> Counts:
        """As of a process that begins."""
        variants = {name: msgspec.structs.replace(each, error="") for name, each in self.variants.items()}
        return msgspec.structs.replace(self, variants=variants)

    def plus(self, other: Counts, sign: int = 1) -> Counts:
        """What was counted by both; or, with -1, since the other."""
        found: Counts = _sum(self, other, sign)
        return found

    def to_json(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self, str_keys=True))

    @classmethod
    def of_record(cls, record: Record) -> Counts:
        """Of a control record; raises `msgspec.ValidationError`."""
        return msgspec.convert(record.value, cls, str_keys=True)


def _sum(one: Any, other: Any, sign: int) -> Any:
    """Numbers added wherever they are; of texts, the first."""
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, msgspec.Struct):
        names = one.__struct_fields__
        return type(one)(**{name: _sum(getattr(one, name), getattr(other, name), sign) for name in names})
    if isinstance(one, dict):
        return {key: _sum(one.get(key), other.get(key), sign) for key in one | other}
    if isinstance(one, tuple):
        return tuple(_sum(*both, sign) for both in zip(one, other, strict=True))
    return one or other if isinstance(one, str) else one + sign * other


class Tally:
    """Counts a variant, batch by batch. A bin holds the scores whose first 14 bits are alike, in their order."""

    def __init__(self) -> None:
        self.errors = self.ns = self.behind = 0
        self.error = ""
        self._groups = np.zeros(GROUPS, np.int64)
        self._sums = np.zeros(GROUPS)
        self._chosen: dict[str, NDArray[np.int64]] = {}
        self._bins = np.zeros(_BINS, np.int64)

    def add(
        self,
        draws: NDArray[np.int64],
        scores: NDArray[np.float32],
        names: Sequence[str],
        choices: NDArray[np.intp],
    ) -> None:
        """Count events.

        `draws`: the numbers of their entities; `scores`: finite; of several a row, the highest counts; `names`: of
        decisions or classes; empty if there are none; `choices`: which of these each event got.
        """
        values = np.ascontiguousarray(scores if scores.ndim == 1 else scores.max(axis=1), np.float32)
        groups = draws % GROUPS
        self._groups += np.bincount(groups, minlength=GROUPS)
        self._sums += np.bincount(groups, values, GROUPS)
        bits = values.view(np.int32)
        # Of negative numbers, the bits descend.
        self._bins += np.bincount((np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> _BIN_BITS) + _HALF, minlength=_BINS)
        for number in np.unique(choices).tolist() if names else ():
            found = np.bincount(groups[choices == number], minlength=GROUPS)
            self._chosen[names[number]] = self._chosen.get(names[number], 0) + found

    def counted(self) -> Counted:
        """What was counted so far."""
        held = np.flatnonzero(self._bins)
        return Counted(
            errors=self.errors,
            ns=self.ns,
            groups=tuple(self._groups.tolist()),
            sums=tuple(self._sums.tolist()),
            chosen={name: tuple(counts.tolist()) for name, counts in self._chosen.items()},
            bins=dict(zip(held.tolist(), self._bins[held].tolist(), strict=True)),
            behind=self.behind,
            error=self.error[:1_000],
        )


def shift_of(counts: Counts, variant: Variant, least: int = 1) -> float | None:
    """The PSI of a challenger's scores against the champion's; None if there are fewer than so many of either."""
    both = [counts.of("champion"), counts.of(variant)]
    return None if min(sum(each.bins.values()) for each in both) < least else psi(*(each.scores() for each in both))


class Compared(NamedTuple):
    """A figure of a challenger and the champion, and whether they differ by more than chance."""

    variant: Variant  # the challenger
    what: str  # `score` for its mean, or the decision or class of which this is the share
    champion: float
    challenger: float
    less: float  # the difference, challenger minus champion, at least; all of a report hold with a confidence of 95 %
    most: float  # and at most
    p: float  # how likely so large a difference is if there is none, adjusted for all that are compared


def compared(counts: Counts, *, paired: bool) -> list[Compared]:
    """The mean score, and the share of each decision, of each challenger and the champion.

    Two-sample z tests of ratios whose variances come from 64 groups of entities (Taylor linearization, as surveys with
    clusters do): an entity with many events does not count as many entities. With one event an entity, that is the
    two-proportion z test. The more is compared, the more differs by chance: intervals are those of Bonferroni, p values
    those of Holm.

    `paired`: whether all scored the same events.
    """
    first, found = counts.of("champion"), []
    for variant in VARIANTS[1:]:
        second = counts.of(variant)
        if not (first.events and second.events):
            continue
        rows = [("score", first.sums, second.sums)]
        names = sorted(first.chosen | second.chosen)
        rows += [(name, first.chosen.get(name, _NONE), second.chosen.get(name, _NONE)) for name in names]
        for what, *sums in rows:
            ratios, residuals = [], []
            for counted, values in zip((first, second), sums, strict=True):
                events, of = np.array(counted.groups, np.float64), np.array(values, np.float64)
                ratios.append(float(of.sum() / events.sum()))
                residuals.append((of - ratios[-1] * events) / events.sum())
            spread = [residuals[1] - residuals[0]] if paired else residuals
            error = math.sqrt(sum(float((each**2).sum()) for each in spread) * GROUPS / (GROUPS - 1))
            by = ratios[1] - ratios[0]
            p = math.erfc(abs(by) / error / math.sqrt(2)) if error else float(not by)
            found.append(Compared(variant, what, ratios[0], ratios[1], by, error, p))
    wide = NormalDist().inv_cdf(1 - 0.025 / max(1, len(found)))
    adjusted = holm([each.p for each in found])
    return [
        each._replace(less=each.less - wide * each.most, most=each.less + wide * each.most, p=p)
        for each, p in zip(found, adjusted, strict=True)
    ]


def holm(found: Sequence[float]) -> list[float]:
    """P values adjusted so that one of them is below 0.05 by chance in one report of twenty, by Holm's method."""
    adjusted, least = [0.0] * len(found), 0.0
    for rank, place in enumerate(sorted(range(len(found)), key=found.__getitem__)):
        adjusted[place] = least = min(1.0, max(least, (len(found) - rank) * found[place]))
    return adjusted
