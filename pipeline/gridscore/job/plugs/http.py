"""What the HTTP source and `gridscore serve` share: where they listen, who may come, what they may post, how much."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import MAX_FURTHER_MAPS
from gridscore.job.types import Duration, MapName, Strict


def _origin(value: str) -> str:
    """An origin as browsers write it, without a path."""
    if value != "*" and not re.fullmatch(r"https?://[^/\s?#@*]+", value):
        raise ValueError(f"`{value}` is not an origin: write it as https://shop.example.com, or `*` for any page")
    return value


Origin = Annotated[str, AfterValidator(_origin)]


class PostSettings(Strict):
    """Where to listen, who may come, what they may post, and how much of it may wait."""

    also: tuple[MapName, ...] = Field(
        default=(), max_length=MAX_FURTHER_MAPS, description="Further maps that may be posted to."
    )
    results: tuple[MapName, ...] = Field(
        default=(), description="Result maps that may be asked for results: `GET /results/MAP/KEY?wait=2s`."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 for any that is free.")
    key: tuple[str, ...] = Field(
        default=(),
        max_length=8,
        description="Fields that make the event's key; several are joined by `|`. Without any, and without a key in "
        "the request, keys are made.",
    )
    token: str = Field(
        default="",
        description="What a request must show as `Authorization: Bearer …`: `${NAME}`, an environment variable.",
    )
    keys: bool = Field(default=False, description="Ask for a key that `gridscore key create` makes, or the token.")
    public: bool = Field(
        default=False,
        description="Let anybody who reaches it do all that it offers; else it listens beyond this machine only with "
        "`keys` or `token`.",
    )
    allow_origin: tuple[Origin, ...] = Field(
        default=(), description="Origins of web pages that may post: https://shop.example.com, or `*` for any."
    )
    certificate: str | None = Field(default=None, description="For TLS: file with the certificate chain, PEM.")
    private_key: str | None = Field(default=None, description="For TLS: file with the certificate's key, PEM.")
    max_event: int = Field(default=1 << 20, ge=64, le=1 << 24, description="The most bytes of an event.")
    max_body: int = Field(
        default=8 << 20, ge=64, le=1 << 28, description="The most bytes of a body, unless it is a stream of lines."
    )
    max_waiting: int = Field(
        default=50_000, ge=100, le=10_000_000, description="The most events that may wait for the grid's confirmation."
    )
    max_waiting_bytes: int = Field(default=64 << 20, ge=1 << 20, description="The same in bytes.")
    max_per_address: int = Field(
        default=500,
        ge=1,
        le=2_000,
        description="The most connections from one address; behind a proxy, all requests have its address.",
    )
    patience: Duration = Field(
        default="10s", description="How long a request waits for room and for confirmation before it is told to retry."
    )
    idle: Duration = Field(
        default="5m",
        description="How long a stream of lines may bring nothing before it is ended; an empty line keeps it open.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(set(self.key)) != len(self.key):
            raise ValueError("`key` has a name twice")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` belong together")
        return self
