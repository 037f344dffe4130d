"""What a job file says of watching a model at work: labels that come late, drift, and how another version is tried."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from gridscore.job.types import Duration, MapName, Strict, seconds_of

_Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Outcome = Annotated[_Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Metric = Literal["auc", "accuracy", "precision", "recall", "log_loss", "brier", "cost", "rmse", "mae"]


def _window(value: str) -> str:
    if seconds_of(value) > 31 * 86_400:
        raise ValueError(f"`{value}`: a window of drift has 31 days at most")
    return value


class Drift(Strict):
    """When live events have moved too far from those of the training."""

    psi: Annotated[_Number, Field(gt=0)] | None = Field(
        default=0.2,
        description="Population stability index of a feature or the score; 0.1 is a small shift, 0.25 a large one.",
    )
    ks: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="Kolmogorov-Smirnov distance of a number, from 0 to 1."
    )
    missing: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=0.1, description="How much larger the share without a value may be than in training."
    )
    unseen: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=0.05, description="Share of events with a category that the model does not know."
    )
    every: Annotated[Duration, AfterValidator(_window)] = Field(
        default="5m", description="How long a window is whose events are judged together."
    )
    events: int = Field(
        default=500, ge=100, le=10_000_000, description="How many events it needs; with fewer it goes on."
    )
    alerts: MapName | None = Field(default=None, description="The map of alerts; default `alerts.JOB`.")

    @property
    def every_seconds(self) -> float:
        """How long a window is."""
        return seconds_of(self.every)


class Labels(Strict):
    """What came of events, put into a map of its own when it is known."""

    map: MapName = Field(description="The map of labels.")
    key: _Text | None = Field(
        default=None,
        description="Event field whose value is a label's key, if that is not the event's; `result.include` names it.",
    )
    field: _Text = Field(default="label", description="Where the label is in entries that are objects.")
    positive: tuple[_Outcome, ...] = Field(
        default=(),
        max_length=100,
        description="Labels that count as 1, all others as 0; without it, labels are numbers, true or false.",
    )
    cost: dict[str, tuple[_Number, _Number]] = Field(
        default={}, max_length=64, description="What each decision costs where the label is 0, and where it is 1."
    )


class OutcomeBound(Strict):
    """How good a metric of a challenger must be, by labels."""

    name: Metric = Field(description="The metric.")
    decision: _Text | None = Field(default=None, description="Of `precision` and `recall`: of which decision.")
    at_least: _Number | None = Field(default=None, description="Its lowest value, of metrics that are to be high.")
    at_most: _Number | None = Field(default=None, description="Its highest value, of the others.")
    worse_by: Annotated[_Number, Field(ge=0)] | None = Field(
        default=None, description="How much worse than the champion's it may be."
    )

    @model_validator(mode="after")
    def _right_bound(self) -> OutcomeBound:
        is_of_decision = self.name in ("precision", "recall")
        right = "at_least" if is_of_decision or self.name in ("auc", "accuracy") else "at_most"
        given = [each for each in ("at_least", "at_most", "worse_by") if getattr(self, each) is not None]
        if len(given) != 1 or given[0] not in (right, "worse_by"):
            raise ValueError(f"`{self.name}` takes `{right}` or `worse_by`, and one of them only")
        if is_of_decision is (self.decision is None):
            raise ValueError(f"`{self.name}` is {'' if is_of_decision else 'not '}that of a `decision`")
        return self


# What experiments are asked for, by files, commands and requests alike.
Percent = Annotated[float, Field(ge=0.01, le=100)]
Steps = Annotated[tuple[Percent, ...], Field(max_length=20)]
EntityKey = Annotated[str, StringConstraints(max_length=1_000)]
MaxErrors = Annotated[_Number, Field(ge=0, le=1)]
MaxUs = Annotated[_Number, Field(gt=0, le=1e9)]
MaxPsi = Annotated[_Number, Field(gt=0, le=1_000)]
Least = Annotated[int, Field(ge=1, le=10**9)]
OutcomeBounds = Annotated[tuple[OutcomeBound, ...], Field(max_length=10)]
LeastLabels = Annotated[int, Field(ge=1, le=100_000)]


class Experiment(Strict):
    """How `gridscore experiment start` tries another version, unless it is told otherwise."""

    steps: Steps = Field(default=(), description="A canary: percent of the entities, ascending.")
    every: Duration | None = Field(default=None, description="How long a step lasts at least; without it, for good.")
    split: Percent | None = Field(default=None, description="An A/B test: percent of the entities for each challenger.")
    shadow: bool = Field(default=False, description="Whether challengers score every event beside the champion.")
    key: EntityKey = Field(
        default="", description="Expression over event fields that tells entities apart; default: the event's key."
    )
    max_errors: MaxErrors | None = Field(
        default=0.01, description="Part of a challenger's events without a score, beyond the champion's, that ends it."
    )
    max_us: MaxUs | None = Field(default=None, description="CPU microseconds a row that end it.")
    max_psi: MaxPsi | None = Field(
        default=None, description="Population stability index of its scores against the champion's that ends it."
    )
    least: Least = Field(default=500, description="Events before it is judged, and in each step.")
    outcomes: OutcomeBounds = Field(
        default=(), description="Bounds of what labels say, that end it when they are not kept."
    )
    least_labels: LeastLabels | None = Field(
        default=None,
        description="Labels before these are judged, and in each step; default 200, and none without `outcomes`.",
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> Experiment:
        if (bool(self.steps), self.split is not None, self.shadow).count(True) > 1:
            raise ValueError("an experiment is a canary in `steps`, a `split` or a `shadow`: give one of them")
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("the steps do not ascend")
        if self.every is not None and len(self.steps) < 2:
            raise ValueError("`every` is for a canary of several `steps`")
        return self

    @property
    def every_seconds(self) -> float:
        """How long a step lasts at least; 0: for good."""
        return 0.0 if self.every is None else seconds_of(self.every)

    @property
    def labels_needed(self) -> int:
        """Labels before outcomes are judged, and in each step; 0: none."""
        return self.least_labels or (200 if self.outcomes else 0)
