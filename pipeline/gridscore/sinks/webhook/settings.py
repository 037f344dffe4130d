"""Settings of the web hook sink: where results are posted, how they are signed, how long attempts go on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import SinkSettings, Texts
from gridscore.job.types import Duration  # noqa: TC001 -- pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Iterable


def _url(value: str) -> str:
    if not re.match(r"https?://|\$\{", value):
        # The value may hold a password, so it is not shown.
        raise ValueError("this is not the address of a web hook: write it as https://shop.example.com/decisions")
    return value


def _from_environment(value: str) -> str:
    if not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", value):
        raise ValueError("do not write the secret here: write ${NAME}, and put it into the environment variable NAME")
    return value


def check_credentials(url: str, headers: Iterable[str]) -> None:
    """Refuse credentials both in the address and in a header `Authorization`.

    Raises ValueError if there are both. The message shows neither.
    """
    try:
        inside = "@" in urlsplit(url).netloc
    except ValueError:
        return
    if inside and any(name.lower() == "authorization" for name in headers):
        raise ValueError(
            "the address has a user and password, and there is a header `Authorization` as well: leave out one"
        )


Url = Annotated[str, Field(max_length=2_000), AfterValidator(_url)]
SecretName = Annotated[str, AfterValidator(_from_environment)]


class WebhookSinkSettings(SinkSettings):
    """Results that are posted to a web hook, signed as in Standard Webhooks."""

    kind: Literal["webhook"] = "webhook"
    url: Url = Field(description="Where to post: https://…; may hold `${NAME}`, an environment variable.")
    secret: tuple[SecretName, ...] = Field(
        min_length=1,
        max_length=4,
        description="Key for the signatures: `${NAME}`, an environment variable that holds `whsec_` and 24 to 64 bytes "
        "in Base64. Several while one replaces the other.",
    )
    headers: Texts = Field(
        default_factory=dict, max_length=16, description="Further headers: `Authorization: Bearer ${NAME}`."
    )
    batch: int = Field(
        default=1, ge=1, le=10_000, description="The most results of a request; with more than 1, the body is a list."
    )
    connections: int = Field(
        default=8, ge=1, le=256, description="The most requests at a time, to this host from this process."
    )
    timeout: Duration = Field(default="10s", description="How long an answer may take.")
    deadline: Duration = Field(
        default="15m",
        description="How long a result is tried before the sink stops; the next start goes on with it. Meanwhile, "
        "results wait in the journal.",
    )
    public_only: bool = Field(
        default=False, description="Refuse private, loopback, link-local and other addresses that are not public."
    )
    ca_file: str | None = Field(
        default=None, description="File with the certificates (PEM) that the host's is checked against."
    )

    @model_validator(mode="after")
    def _credentials_once(self) -> WebhookSinkSettings:
        check_credentials(self.url, self.headers)
        return self
