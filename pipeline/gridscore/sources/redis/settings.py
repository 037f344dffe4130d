"""Settings of the Redis source: which stream, who shares it, and what its entries are."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.types import Duration  # noqa: TC001 -- pydantic reads it


def _server(value: str) -> str:
    if "@" in value:  # what is before it may be a password
        raise ValueError("the address names no user: give `username` and `password`")
    if not re.fullmatch(r"rediss?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#:\[\]]+)(:[0-9]{1,5})?(/[0-9]{0,5})?", value):
        raise ValueError(f"`{value}` is not an address of a Redis server: write it as redis://HOST:6379")
    return value


Server = Annotated[str, Field(max_length=300), AfterValidator(_server)]
Some = Annotated[str, Field(min_length=1, max_length=200)]


class RedisSourceSettings(SourceSettings):
    """Entries of a Redis stream; several processes of one group share it."""

    kind: Literal["redis"] = "redis"
    server: Server = Field(
        default="redis://localhost:6379",
        description="Address: redis://HOST:6379, or rediss://HOST:6379 for TLS; with /1 at its end, the database 1.",
    )
    stream: Some = Field(description="Key of the stream.")
    group: Some | None = Field(
        default=None, description="Consumer group, which keeps the position in Redis; the source's name if not given."
    )
    consumer: Some | None = Field(
        default=None,
        description="Name of this process in the group, its own, and the same after a restart; the host's name if "
        "not given.",
    )
    start: Literal["oldest", "latest"] = Field(default="oldest", description="Where a new group begins.")
    claim_after: Duration = Field(
        default="1m", description="Take over what another process holds that has given no sign of life for so long."
    )
    key: tuple[str, ...] = Field(
        default=(),
        max_length=8,
        description="Fields that make the event's key; several are joined by `|`. Without any, it is STREAM/ID.",
    )
    field: Some | None = Field(
        default=None,
        description="Field of an entry that has the event, a JSON object. Without it, the fields are the event's.",
    )
    number: tuple[Some, ...] = Field(default=(), description="Field of an entry that is a number, and not a text.")
    username: str | None = Field(default=None, description="User name at the server; may be `${NAME}`.")
    password: str | None = Field(default=None, description="Password: `${NAME}`, an environment variable.")
    ca_file: str | None = Field(
        default=None, description="For TLS: file with certificates to trust beside the system's, PEM."
    )
    batch: int = Field(default=1_000, ge=1, le=10_000, description="The most entries to read in one go.")
    max_event: int = Field(
        default=1 << 20,
        ge=64,
        le=1 << 24,
        description="The most bytes of an entry. A larger one is in memory before it is refused: only Redis' own "
        "`proto-max-bulk-len` bounds that.",
    )

    @model_validator(mode="after")
    def _fits(self) -> RedisSourceSettings:
        if self.field is not None and self.number:
            raise ValueError("`number` is for fields of entries: JSON (`field`) has numbers of its own")
        if self.username is not None and self.password is None:
            raise ValueError("`username` needs a `password`")
        if self.ca_file is not None and not self.server.startswith("rediss:"):
            raise ValueError("certificates are for TLS: write the server as rediss://HOST:6379")
        return self
