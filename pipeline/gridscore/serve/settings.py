"""Settings of the server: where it listens, who may come, what it scores, and how much may wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from gridscore.job.plugs.http import PostSettings
from gridscore.job.types import JobName, MapName, ModuleName  # noqa: TC001 -- pydantic reads them

if TYPE_CHECKING:
    from gridscore.sources.http.settings import HttpSourceSettings


class ServeSettings(PostSettings):
    """One application for all that comes by HTTP."""

    jobs: tuple[JobName, ...] = Field(default=(), max_length=1_000, description="Score for these jobs; else for all.")
    to: MapName | None = Field(
        default=None, description="An event map that may be posted to, as with `gridscore source http`."
    )
    name: JobName | None = Field(default=None, description="Name of the source that posts become, with `to`.")
    grpc: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for the Open Inference Protocol by gRPC as well; 0 for any that is free. Default: none.",
    )
    max_scoring: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Events of a job at most that wait to be scored; who comes then is told to come later.",
    )
    allow_python: tuple[ModuleName, ...] = Field(
        default=(),
        max_length=100,
        description="Modules whose functions the features of jobs may call, with all below them. Default: none.",
    )
    listeners: int = Field(
        default=500, ge=1, le=20_000, description="Streams of results at once; as many connections more are let in."
    )
    dashboard: bool = Field(default=True, description="Show what runs, as pages, at `/`.")

    @model_validator(mode="after")
    def _posts_need_a_map(self) -> ServeSettings:
        if self.to is None and (given := {"also", "name", "results"} & self.model_fields_set):
            raise ValueError(f"`{min(given)}` needs `to`, the map that is posted to")
        return self

    def source(self) -> HttpSourceSettings | None:
        """Of the source that posts become; None if there are none."""
        if self.to is None:
            return None
        from gridscore.sources.http.settings import HttpSourceSettings

        shared = HttpSourceSettings.model_fields.keys() & type(self).model_fields
        return HttpSourceSettings(**{name: getattr(self, name) for name in shared})
