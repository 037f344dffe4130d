"""Settings of the HTTP source."""

from __future__ import annotations

from typing import ClassVar, Literal

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.http import PostSettings


class HttpSourceSettings(SourceSettings, PostSettings):
    """Events that others post: `POST /events/MAP`."""

    makes_texts_of_keys: ClassVar[bool] = True
    kind: Literal["http"] = "http"
