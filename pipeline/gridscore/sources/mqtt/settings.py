"""Settings of the MQTT source: which broker, which topics, and what their messages are."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.types import Duration, Name, seconds_of


def _broker(value: str) -> str:
    problem = "write it as mqtt://HOST:1883, or mqtts://HOST:8883 for TLS"
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("mqtt", "mqtts") and parts.hostname and parts.path in ("", "/")
        _ = parts.port
    except ValueError:
        fits = False
    if not fits:
        shown = f"`{value}`" if "@" not in value else "this"  # what is before an `@` may be a password
        raise ValueError(f"{shown} is not an address of a broker: {problem}")
    if "@" in parts.netloc:
        raise ValueError("the address names no user: give `username` and `password`")
    return value


def _topic(value: str) -> str:
    if "\0" in value or value.startswith("$share/"):
        raise ValueError(f"`{value}` cannot be a topic: for a shared subscription give `group`")
    levels = value.split("/")
    names = []
    for number, level in enumerate(levels):
        if found := re.fullmatch(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", level):
            names.append(found[1])
        elif level == "#" and number < len(levels) - 1:
            raise ValueError(f"`{value}`: `#` can only be the last level of a topic")
        elif level not in ("#", "+") and re.search(r"[#+{}]", level):
            raise ValueError(f"`{value}`: `+`, `#` and `{{name}}` must be a whole level of a topic")
    if len(set(names)) != len(names):
        raise ValueError(f"`{value}` has a name twice")
    return value


Broker = Annotated[str, Field(max_length=300), AfterValidator(_broker)]
Topic = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_topic)]


class MqttSourceSettings(SourceSettings):
    """Messages of an MQTT broker's topics."""

    kind: Literal["mqtt"] = "mqtt"
    broker: Broker = Field(
        default="mqtt://localhost:1883", description="Address: mqtt://HOST:1883, or mqtts://HOST:8883 for TLS."
    )
    topic: tuple[Topic, ...] = Field(
        min_length=1,
        description="Topics; `+` stands for any level, `#` for any rest, `{name}` for any level that becomes a field: "
        "`plant/{site}/+/{sensor}`.",
    )
    group: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[^/+#\s]+$",
        description="Name of a shared subscription: all sources that have it share the messages.",
    )
    client_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Name under which the broker keeps what this source has not acknowledged. Each process needs its "
        "own, and the same after a restart; gridscore-NAME if not given.",
    )
    protocol: Literal["5", "3.1.1"] = Field(default="5", description="Version of MQTT.")
    key: tuple[str, ...] = Field(
        default=(),
        description="Fields that make the event's key; several are joined by `|`. Without any, the key is a hash of "
        "the topic and the message.",
    )
    key_property: str | None = Field(
        default=None, max_length=200, description="Name of the user property that is the event's key (MQTT 5)."
    )
    value_field: Name | None = Field(
        default=None,
        description="Field that takes a message which is not a JSON object but a number, a text, true or false.",
    )
    received_field: Name | None = Field(
        default=None, description="Field that takes the time at which a message came, RFC 3339."
    )
    username: str | None = Field(default=None, description="User name at the broker; may be `${NAME}`.")
    password: str | None = Field(default=None, description="Password: `${NAME}`, an environment variable.")
    ca_file: str | None = Field(
        default=None, description="For TLS: file with certificates to trust, PEM; the system's if not given."
    )
    certificate: str | None = Field(default=None, description="For TLS: file with our own certificate chain, PEM.")
    private_key: str | None = Field(default=None, description="For TLS: file with our certificate's key, PEM.")
    session: Duration = Field(
        default="1d", description="How long the broker keeps messages for us while we are away (MQTT 5)."
    )
    keep_alive: Duration = Field(default="1m", description="Pause between two signs of life.")
    in_flight: int = Field(
        default=5_000, ge=1, le=65_535, description="The most messages that are not acknowledged yet."
    )
    max_event: int = Field(default=1 << 18, ge=16, le=1 << 20, description="The most bytes of a message.")

    @model_validator(mode="after")
    def _whole(self) -> MqttSourceSettings:
        if self.group and self.client_id is None:
            raise ValueError(
                "sources that share a load (`group`) need a `client_id` each: one that no other has, and the same "
                "after a restart"
            )
        if self.key and self.key_property:
            raise ValueError("the key comes from `key` or from `key_property`, not from both")
        if not 5 <= seconds_of(self.keep_alive) <= 3600:
            raise ValueError("`keep_alive` must be from 5s to 1h")
        if self.protocol != "5" and (self.group or self.key_property):
            raise ValueError("shared subscriptions and user properties came with MQTT 5: `protocol` must be 5")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` belong together")
        if self.password is not None and self.username is None:
            raise ValueError("`password` needs a `username`")
        if not self.broker.startswith("mqtts:") and (self.ca_file or self.certificate):
            raise ValueError("certificates are for TLS: write the broker as mqtts://HOST:8883")
        return self
