"""What the HTTP source and `gridscore serve` share: where they listen, who may come, what they may post, how much."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import MAX_FURTHER_MAPS
from gridscore.job.types import Duration, MapName, Strict


def _origin(value: str) -> str:
    """An origin as browsers write it, without a path."""
    if value != "*" and not re.fullmatch(r"https?://[^/\s?#@*]+", value):
        raise ValueError(f"`{value}` is not an origin: write it as https://shop.example.com, or `*` for any page")
    return value


def private_address(value: str) -> str:
    """An address of which nobody on the way can change the answer: by TLS, or on this machine.

    Raises ValueError if it is another.
    """
    parts = urlsplit(value)
    host = parts.hostname or ""
    is_here = host == "localhost" or (bool(re.fullmatch(r"[0-9.]+|.*:.*", host)) and ip_address(host).is_loopback)
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_here)) or "@" in parts.netloc:
        raise ValueError(f"`{value}` must begin with https://; with http:// it must be on this machine")
    return value


Origin = Annotated[str, AfterValidator(_origin)]
Grants = Annotated[dict[str, str], Field(max_length=1_000)]


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
    oidc_issuer: Annotated[str, Field(max_length=1_000), AfterValidator(private_address)] | None = Field(
        default=None,
        description="Take tokens (JWT) of this OpenID Connect issuer: https://login.example.com. Needs `oidc_audience` "
        "and `oidc_grant`.",
    )
    oidc_audience: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), max_length=10, description="Whom its tokens must be for."
    )
    oidc_claim: str = Field(
        default="scope", min_length=1, description="The claim that `oidc_grant` goes by; `a.b` for `b` in `a`."
    )
    oidc_grant: Grants = Field(
        default={},
        description="What somebody with this value in the claim may do: roles of keys, and perhaps the names that they "
        "are for: `analysts: score,read:card-fraud`. The first that fits counts.",
    )
    client_ca: str | None = Field(
        default=None,
        description="Ask every client for a certificate that an authority of this file, PEM, has issued. Needs "
        "`certificate`.",
    )
    client_grant: Grants = Field(
        default={},
        description="What a client may do whose certificate has this name, without a key: `till7: score`. Needs "
        "`client_ca`.",
    )
    public: bool = Field(
        default=False,
        description="Let anybody who reaches it do all that it offers; else it listens beyond this machine only with "
        "`keys`, `token`, `oidc_issuer` or `client_grant`.",
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
        le=22_000,
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
        given = bool(self.oidc_issuer), bool(self.oidc_audience), bool(self.oidc_grant)
        if any(given) != all(given):
            raise ValueError("`oidc_issuer`, `oidc_audience` and `oidc_grant` belong together")
        if (self.client_grant and not self.client_ca) or (self.client_ca and not self.certificate):
            raise ValueError("`client_grant` needs `client_ca`, which needs `certificate`")
        if self.client_grant and "*" in self.allow_origin:  # browsers show a certificate for whatever page asks
            raise ValueError("with `client_grant`, `allow_origin` must name the pages: any could act as its visitor")
        return self
