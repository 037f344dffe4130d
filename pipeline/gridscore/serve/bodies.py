"""What verbs are given in bodies: JSON objects, strict, and bounded in every part."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gridscore.job import monitoring  # noqa: TC001 -- pydantic reads it
from gridscore.job.types import Duration, MapName  # noqa: TC001 -- pydantic reads them
from gridscore.keys import Role
from gridscore.operations.actions import MAX_WHY

MOST_IDS = 1_000  # dead letters that are named at once

Number = Annotated[int, Field(ge=1, lt=1 << 31)]
Text = Annotated[str, Field(max_length=MAX_WHY)]
Alias = Annotated[str, Field(max_length=64)]
Ids = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MOST_IDS)]


class Act(BaseModel):
    """What every action may be given."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    why: Text = Field(default="", description="The reason, for the logs.")


class Move(Act):
    """An alias that is to point elsewhere."""

    alias: Alias = "champion"
    points_at: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="Where the alias must point now, 0 for nowhere; else 409."
    )
    allow_changed_features: bool = False


class Promotion(Move):
    """A version that is to go live."""

    version: Number
    override: Text = Field(default="", description="Why it goes live even if gates have failed.")


class Rollback(Move):
    """Back to where the alias pointed before. With `points_at`, twice the same request is one rollback."""


class Submission(Act):
    """A job file, and how it is submitted."""

    job: dict[str, Any] | Annotated[str, Field(max_length=1 << 20)] = Field(
        description="The job file: its YAML text, or the same as an object."
    )
    update: bool = Field(default=False, description="Replace an active job of this name, and go on.")
    version: Number | None = Field(default=None, description="A version that goes live together with the job.")
    allow_changed_features: bool = False
    prepare: bool = Field(default=True, description="Give the job's maps the journals that they lack.")
    suspended: bool = Field(default=False, description="Score nothing before `resume`.")
    override: Text = ""


class Restart(Act):
    """Where to begin."""

    begin: Annotated[str, Field(max_length=40)] = Field(
        default="committed", description="`oldest`, `latest`, `committed`, or a time as 2026-01-31T12:00:00Z."
    )


class Auditing(Act):
    """How to look for events without a result."""

    repair: bool | None = Field(default=None, description="Have them scored; else only if the job began at `oldest`.")
    patience: float = Field(default=20.0, ge=0, le=30, description="Seconds that the job may stand still.")


_Tried = Number | Annotated[str, Field(max_length=64)]


class Trial(Act):
    """An experiment; what is not given is as `experiment` in the job file says."""

    version: _Tried | Annotated[list[_Tried], Field(min_length=1, max_length=4)]
    steps: monitoring.Steps | None = None
    every: Duration | None = None
    split: monitoring.Percent | None = None
    shadow: bool | None = None
    key: monitoring.EntityKey | None = None
    max_errors: monitoring.MaxErrors | None = None
    max_us: monitoring.MaxUs | None = None
    max_psi: monitoring.MaxPsi | None = None
    least: monitoring.Least | None = None
    outcomes: monitoring.OutcomeBounds | None = None
    least_labels: monitoring.LeastLabels | None = None
    allow_changed_features: bool = False


class Stopping(Act):
    """How an experiment, or one of several challengers, ends."""

    version: Number | None = None
    experiment: Annotated[str, Field(max_length=40)] | None = Field(
        default=None, description="The `id` of the one that is meant; 409 if it is another by now."
    )


class Ending(Stopping):
    """How a challenger becomes the champion."""

    allow_changed_features: bool = False
    override: Text = ""


class Notes(Act):
    """What to note of a version, or of the model itself."""

    version: Number | None = None
    description: Annotated[str, Field(max_length=10_000)] | None = None
    tags: dict[str, str] = Field(default={}, max_length=100)
    remove: list[str] = Field(default=[], max_length=100)


class Replaying(Act):
    """Dead letters to put back: some, or all."""

    ids: Ids = []
    all: bool = False
    force: bool = Field(default=False, description="Even if its key has a newer event by now.")


class Discarding(Act):
    """Single dead letters to remove."""

    ids: Annotated[Ids, Field(min_length=1)]
    with_events: bool = False


class Purge(Act):
    """Dead letters to remove: all, or those that meet all conditions."""

    all: bool = False
    older_than: Duration | None = None
    reason: Text = ""
    superseded: bool = False
    with_events: bool = False
    dry_run: bool = False


class NewKey(Act):
    """What a new key may do."""

    roles: Annotated[list[Role], Field(min_length=1, max_length=len(Role))]
    only: Annotated[list[MapName], Field(max_length=100)] = []
    note: Annotated[str, Field(max_length=200)] = ""
    expires: Duration | None = None
    rate: Annotated[str, Field(max_length=20)] = ""
