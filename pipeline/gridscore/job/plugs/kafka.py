"""What the settings of the Kafka source and sink have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from gridscore.job.plugs.base import Texts

_OURS = {
    "bootstrap.servers": "use `brokers`",
    "metadata.broker.list": "use `brokers`",
    "group.id": "use `group`",
    "auto.offset.reset": "use `start`",
    "enable.auto.commit": "positions are committed when the grid has the events",
    "enable.auto.offset.store": "positions are committed when the grid has the events",
    "partition.assignment.strategy": "partitions move one by one (cooperative-sticky)",
    "enable.idempotence": "the sink relies on it",
    "acks": "the sink waits for all replicas",
    "request.required.acks": "the sink waits for all replicas",
    "transactional.id": "use `transactions`",
}
# Properties that make librdkafka load a library or run a command. A job file is read, and runs nothing.
_RUNS = {"plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location", "ssl.providers"}


def _each(value: Any) -> Any:
    """Brokers are often kept as one text, `kafka-1:9092,kafka-2:9092`."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(broker.strip() for part in parts for broker in part.split(","))


def _broker(value: str) -> str:
    if "${" in value:
        return value
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:,\[\]]+):\d{1,5}", value):
        raise ValueError(f"`{value}` is not a broker: write it as `kafka.example.com:9092`")
    return value


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError(f"`{value}` cannot be the name of a topic: use letters, digits and `. _ -`")
    return value


def _options(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name in _OURS:
            raise ValueError(f"`{name}` is set by Gridscore: {_OURS[name]}")
        if name in _RUNS:
            raise ValueError(f"`{name}` loads libraries or runs commands, which settings must not")
    return value


# Addresses to begin with, `host:port`; a text has them separated by commas.
Brokers = Annotated[
    tuple[Annotated[str, AfterValidator(_broker)], ...], Field(min_length=1, max_length=64), BeforeValidator(_each)
]
Topic = Annotated[str, AfterValidator(_topic)]  # the name of a topic
ClientOptions = Annotated[Texts, Field(max_length=64), AfterValidator(_options)]  # properties of librdkafka, by name
# Description of a field of `ClientOptions`.
OPTIONS = (
    "Property of Kafka's client (librdkafka), such as `security.protocol: SASL_SSL`; a value may hold `${NAME}`, an "
    "environment variable."
)
