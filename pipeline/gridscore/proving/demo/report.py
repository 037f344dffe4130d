"""The report: is every result there and equal to the bit, how good were the scores, how fast did they come."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
_DECILES = 10


@dataclass(frozen=True)
class Check:
    """What must hold of results, counted where it does not."""

    events: int  # that were to be replayed
    missing: int  # events without a result in the result map
    unequal: int  # results whose score is not, bit for bit, what the model gives offline
    strange: int  # results in the map that belong to no event
    unseen: int  # events whose result the listener was not told of
    repeated: int  # results that the listener was told of again
    other_version: int  # results made by another version of the model
    first_unequal: str = ""  # an example, for people

    @property
    def problems(self) -> list[str]:
        """A line for each thing that does not hold."""
        lines = [
            (self.missing, "of {events:,} events have no result"),
            (self.unequal, "of {events:,} scores are not what Booster.predict gives offline" + self.first_unequal),
            (self.strange, "results belong to no event that was replayed"),
            (self.unseen, "results were written, but not announced to the listener"),
            (self.repeated, "results were written twice"),
            (self.other_version, "results name another version of the model"),
        ]
        return [f"{count:,} " + text.format(events=self.events) for count, text in lines if count]


@dataclass(frozen=True)
class Decile:
    """A tenth of the flights that arrived, by score."""

    low: float
    high: float
    flights: int
    predicted: float
    actual: float


@dataclass(frozen=True)
class Quality:
    """How well the live scores foretold what happened."""

    arrived: int  # flights that arrived; of the others nobody knows how late they would have been
    late: float  # part of them that was late
    auc: float | None  # area under the ROC curve
    brier: float  # mean squared difference of score and outcome
    brier_of_base_rate: float  # the same for one who always says the mean
    calibration_error: float  # mean difference of predicted and actual part, over the deciles
    deciles: tuple[Decile, ...]  # predicted and actual part that was late, by tenths of the score


def check_results(
    keys: Sequence[str],  # of the events
    written: dict[str, tuple[float, int]],  # score and model version by key, as they stand in the result map
    expected: NDArray[np.float32],  # `Booster.predict` on the offline matrix, by event
    heard: NDArray[np.float64],  # scores as the listener got them, by event; NaN where it got none
    *,
    map_size: int,  # entries of the result map
    repeated: int,  # how often the listener was told of a result again
    version: int,  # of the model that was to score
) -> Check:
    """Compare what is in the result map with the offline scores."""
    scores = np.array([written[key][0] if key in written else np.nan for key in keys], dtype=np.float64)
    there = ~np.isnan(scores)
    # A float32 written as the shortest decimal and read as a double is the same float32 again: compare the bits.
    equal = scores.astype(np.float32).view(np.uint32) == np.asarray(expected, dtype=np.float32).view(np.uint32)
    unequal = np.flatnonzero(there & ~equal)
    example = ""
    if len(unequal):
        first = int(unequal[0])
        example = f" (`{keys[first]}`: {float(np.float32(scores[first]))!r}, offline {float(expected[first])!r})"
    return Check(
        events=len(keys),
        missing=int((~there).sum()),
        unequal=len(unequal),
        strange=map_size - int(there.sum()),
        unseen=int((np.isnan(heard) & there).sum()),
        repeated=repeated,
        other_version=sum(1 for key in keys if key in written and written[key][1] != version),
        first_unequal=example,
    )


def judge(scores: NDArray[np.float64], arr_delay: NDArray[np.float64], late_minutes: float) -> Quality:
    """Compare scores with what really happened; there must be at least one flight that arrived."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    known = ~np.isnan(arr_delay) & ~np.isnan(scores)
    scores, late = scores[known], arr_delay[known] > late_minutes
    order = np.argsort(scores, kind="stable")
    deciles = tuple(
        Decile(
            low=float(scores[part[0]]),
            high=float(scores[part[-1]]),
            flights=len(part),
            predicted=float(scores[part].mean()),
            actual=float(late[part].mean()),
        )
        for part in np.array_split(order, _DECILES)
        if len(part)
    )
    base = float(late.mean())
    weights = [decile.flights for decile in deciles]
    return Quality(
        arrived=len(late),
        late=base,
        auc=float(roc_auc_score(late, scores)) if 0 < base < 1 else None,
        brier=float(brier_score_loss(late, scores)),
        brier_of_base_rate=base * (1 - base),
        calibration_error=float(np.average([abs(d.predicted - d.actual) for d in deciles], weights=weights)),
        deciles=deciles,
    )


def latency_percentiles(latency: NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds by percentile, over the results that were seen."""
    seen = latency[~np.isnan(latency)]
    if not len(seen):
        return {}
    values = np.percentile(seen * 1000, PERCENTILES)
    return {_name(p): round(float(value), 3) for p, value in zip(PERCENTILES, values, strict=True)}


def milliseconds_text(value: float) -> str:
    """Milliseconds for people; seconds where that is what they are."""
    return f"{value:,.1f} ms" if value < 1000 else f"{value / 1000:,.2f} s"


def _name(percentile: float) -> str:
    return "max" if percentile == 100 else f"p{percentile:g}"


@dataclass(frozen=True)
class Report:
    """All that the demo has found out."""

    check: Check
    quality: Quality | None
    latency_ms: dict[str, float]
    seconds: float
    rate: float
    decisions: dict[str, int]
    model: dict[str, Any]
    dead_letters: int
    lost: int
    waited_seconds: float
    problems: list[str]
    plot: str | None = None

    @property
    def throughput(self) -> float:
        """Events per second, from the first put to the last result."""
        return (self.check.events - self.check.missing) / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        check = asdict(self.check)
        check.pop("first_unequal")
        return {
            "ok": not self.problems,
            "problems": self.problems,
            **check,
            "scored": self.check.events - self.check.missing,
            "seconds": round(self.seconds, 3),
            "rate": self.rate,
            "events_per_second": round(self.throughput, 1),
            "waited_seconds": round(self.waited_seconds, 3),
            "latency_ms": self.latency_ms,
            "decisions": self.decisions,
            "model": self.model,
            "dead_letters": self.dead_letters,
            "lost": self.lost,
            "quality": None if self.quality is None else asdict(self.quality),
            "plot": self.plot,
        }
