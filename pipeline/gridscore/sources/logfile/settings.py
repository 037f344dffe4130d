"""Settings of the source of log files: which files, the format of their lines, and where to begin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import SourceSettings

LogFormat = Literal["json", "csv", "combined", "regex"]
ValueType = Literal["string", "int", "float", "bool"]


def _pattern(value: str) -> str:
    try:
        names = re.compile(value).groupindex
    except re.error as error:
        raise ValueError(f"the pattern is not a regular expression: {error}") from None
    if not names:
        raise ValueError("the pattern names no field: write each as `(?P<name>…)`")
    return value


def _speed(value: str) -> str:
    try:
        fits = value == "max" or 0 < float(value) < float("inf")
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`{value}` is not a speed: write `max`, or how many times faster, such as `1` or `60`")
    return value


Pattern = Annotated[str, Field(max_length=10_000), AfterValidator(_pattern)]
Speed = Annotated[str, AfterValidator(_speed)]


class LogfileSourceSettings(SourceSettings):
    """Lines of log files, followed as the files grow and are rotated."""

    kind: Literal["logfile"] = "logfile"
    path: tuple[str, ...] = Field(
        min_length=1,
        description="Files, `*`, `?`, `[…]` and `**` allowed; let it cover the rotated ones, too: `/var/log/app.log*`.",
    )
    format: LogFormat = Field(
        default="json",
        description="What a line is: a JSON object, a CSV record, an access log line of Apache or nginx (combined), or "
        "what `pattern` says.",
    )
    pattern: Pattern | None = Field(
        default=None, description="For `regex`: matches a whole line, and names its fields: `(?P<user>\\w+) …`."
    )
    types: dict[str, ValueType] = Field(
        default_factory=dict,
        description="Types of fields of `csv` and `regex`: `amount=float`. Others are strings; an empty one with a "
        "type is null.",
    )
    columns: tuple[str, ...] = Field(
        default=(), description="For `csv` without a header: names of the columns, in order."
    )
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="For `csv`: what separates fields.")
    key: tuple[str, ...] = Field(
        default=(),
        description="Fields that make the event's key; several are joined by `|`. Without any, the key follows from "
        "the file and the position in it.",
    )
    start: Literal["oldest", "latest"] = Field(
        default="oldest",
        description="Where files that are there at the very first start begin: at their beginning or at their end.",
    )
    until_end: bool = Field(default=False, description="Stop at the end of the files, instead of waiting for more.")
    replay_speed: Speed | None = Field(
        default=None,
        description="Replay a history at its own pace (1), so many times faster (60), or as fast as it goes (`max`).",
    )
    time_field: str | None = Field(
        default=None, description="For a replay: field with the time, RFC 3339, or seconds or milliseconds since 1970."
    )
    max_event: int = Field(default=1 << 16, ge=64, le=1 << 20, description="The most bytes of a line.")

    @property
    def has_end(self) -> bool:
        return self.until_end

    @model_validator(mode="after")
    def _whole(self) -> LogfileSourceSettings:
        if (self.format == "regex") != (self.pattern is not None):
            raise ValueError("`pattern` and the format `regex` belong together")
        if self.types and self.format not in ("csv", "regex"):
            raise ValueError(f"`types` are for csv and regex: the format {self.format} has its own")
        if self.columns and self.format != "csv":
            raise ValueError("`columns` are for the format csv")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("`columns` has a name twice")
        if self.replay_speed not in (None, "max") and self.time_field is None:
            raise ValueError("a replay at a pace needs `time_field`: the field with the time of an event")
        return self
