"""Settings of the Kafka source: which topic, what becomes the event's key, and how messages are read."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.kafka import OPTIONS, Brokers, ClientOptions, Topic


def _start(value: str) -> str:
    if value not in {"oldest", "latest"}:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"`{value}` is not a start: write `oldest`, `latest`, or a time as 2026-01-31T12:00:00Z"
            ) from None
        if moment.tzinfo is None:
            raise ValueError(f"`{value}` has no time zone: write it as 2026-01-31T12:00:00Z, or +01:00 for the Z")
    return value


def _registry(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s@?#]+", value):
        raise ValueError(f"`{value}` is not a schema registry: write its URL, without user and password")
    return value


class KafkaSourceSettings(SourceSettings):
    """Messages of a topic of Kafka; several processes of one group share it."""

    kind: Literal["kafka"] = "kafka"
    brokers: Brokers = Field(description="Address of a broker, `host:port`; one is enough, more are safer.")
    topic: Topic = Field(description="The topic.")
    group: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Consumer group, which keeps the positions in Kafka; the source's name if not given.",
    )
    key: tuple[str, ...] = Field(
        default=(),
        max_length=8,
        description="Fields that make the event's key; several are joined by `|`. Without any, the key follows from "
        "the message's place: topic-partition-offset.",
    )
    message_key: bool = Field(default=False, description="Take the message's key, as text, for the event's.")
    key_field: str | None = Field(
        default=None, min_length=1, max_length=200, description="Field of the event that takes the message's key."
    )
    headers_field: str | None = Field(
        default=None, min_length=1, max_length=200, description="Field of the event that takes the message's headers."
    )
    format: Literal["json", "avro"] = Field(
        default="json", description="What values are: JSON objects, or Avro records framed by a schema registry."
    )
    registry: Annotated[str, AfterValidator(_registry)] | None = Field(
        default=None, description="URL of the schema registry, for Avro."
    )
    registry_username: str = Field(default="", description="User name at the registry; may be `${NAME}`.")
    registry_password: str = Field(
        default="", description="Password at the registry: `${NAME}`, an environment variable."
    )
    registry_ca_file: str | None = Field(
        default=None,
        description="For TLS: file with certificates to trust the registry by, PEM; the system's if not given.",
    )
    start: Annotated[str, AfterValidator(_start)] = Field(
        default="oldest",
        description="Where a group begins that has no positions yet: `oldest`, `latest` or a time, "
        "2026-01-31T12:00:00Z.",
    )
    max_event: int = Field(default=1 << 20, ge=64, le=1 << 24, description="The most bytes of an event.")
    set: ClientOptions = Field(default_factory=dict, description=OPTIONS)

    @model_validator(mode="after")
    def _fits(self) -> KafkaSourceSettings:
        if (self.format == "avro") != (self.registry is not None):
            raise ValueError("`format: avro` and `registry` go together: give both, or neither")
        if self.key and self.message_key:
            raise ValueError("the key comes from `key` or from `message_key`, not from both")
        if len(set(self.key)) != len(self.key):
            raise ValueError("`key` has a name twice")
        if self.key_field is not None and self.key_field == self.headers_field:
            raise ValueError("`key_field` and `headers_field` cannot be the same field")
        return self

    @property
    def start_time(self) -> datetime | None:
        """The time to begin at, if it is one."""
        return None if self.start in {"oldest", "latest"} else datetime.fromisoformat(self.start)
