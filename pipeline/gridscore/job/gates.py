"""Gates: what a version must pass before an alias that the job follows points at it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gridscore.job.types import FeatureName, Strict

_Number = Annotated[float, Field(ge=-3.0e38, le=3.0e38, allow_inf_nan=False, strict=True)]
Metric = Literal["auc", "accuracy", "log_loss", "brier", "rmse", "mae"]


class GoldenRow(Strict):
    """Features whose score is known."""

    features: dict[FeatureName, _Number | Annotated[str, StringConstraints(max_length=1_000)] | None] = Field(
        min_length=1, max_length=2_000, description="All features: numbers, texts of categories, nothing for missing."
    )
    margin: _Number | None = Field(default=None, description="What the score begins with, if the job has a `margin`.")
    score: _Number | None = Field(default=None, description="The score, give or take `within`.")
    within: _Number = Field(default=1e-6, ge=0, description="How far the score may be from `score`.")
    at_least: _Number | None = Field(default=None, description="The lowest score.")
    at_most: _Number | None = Field(default=None, description="The highest score.")

    @model_validator(mode="after")
    def _expects_something(self) -> GoldenRow:
        if self.score is None and self.at_least is None and self.at_most is None:
            raise ValueError("a golden row says what its score is: `score`, `at_least` or `at_most`")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which the score must be."""
        low, high = self.at_least, self.at_most
        lows = [low] if low is not None else []
        highs = [high] if high is not None else []
        if self.score is not None:
            lows.append(self.score - self.within)
            highs.append(self.score + self.within)
        return max(lows, default=-math.inf), min(highs, default=math.inf)


class MetricGate(Strict):
    """How good the scores of the model's labelled sample must be."""

    name: Metric = Field(description="The metric.")
    at_least: _Number | None = Field(default=None, description="For `auc` and `accuracy`: their lowest value.")
    at_most: _Number | None = Field(default=None, description="For the others: their highest value.")

    @model_validator(mode="after")
    def _right_bound(self) -> MetricGate:
        right = "at_least" if self.name in ("auc", "accuracy") else "at_most"
        if getattr(self, right) is None or (self.at_least is not None and self.at_most is not None):
            raise ValueError(f"`{self.name}` takes `{right}`, and only that")
        return self


class ChampionGate(Strict):
    """How much worse than the version that scores now it may be, on the model's labelled sample."""

    name: Metric = Field(description="The metric.")
    worse_by: _Number = Field(ge=0, description="By how much at most.")


class LatencyGate(Strict):
    """How long a row may take."""

    us_per_row: _Number = Field(gt=0, description="Microseconds of CPU a row, in batches of 256.")


class ShiftGate(Strict):
    """How far its scores of the latest events may lie from those of the version that scores now."""

    psi: _Number = Field(
        gt=0, description="Population stability index at most; 0.1 is a small shift, 0.25 a large one."
    )
    events: int = Field(default=10_000, ge=100, le=100_000, description="How many of the latest events.")


class ParityGate(Strict):
    """A certificate that the worker's code gives what the same events give offline."""

    events: int = Field(
        default=1_000, ge=1, le=1_000_000, description="How many events it must have compared at least."
    )


class Gates(Strict):
    """What a version must pass before it goes live; each is optional."""

    golden: tuple[GoldenRow, ...] = Field(default=(), max_length=100, description="Rows whose scores are known.")
    metric: MetricGate | None = Field(default=None, description="A minimum on the labelled sample.")
    champion: ChampionGate | None = Field(default=None, description="Not worse than what scores now.")
    latency: LatencyGate | None = Field(default=None, description="What a row may cost.")
    shift: ShiftGate | None = Field(default=None, description="How far scores may move.")

    parity: ParityGate | None = Field(default=None, description="A certificate of `gridscore parity`.")

    def __bool__(self) -> bool:
        return self != Gates()
