"""What a job file says of watching a model at work: labels that come late, and drift from what training has seen."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from gridscore.job.types import Duration, MapName, Strict, seconds_of

_Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Outcome = Annotated[_Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


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
