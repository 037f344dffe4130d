"""Settings of the Kafka sink: which topic, and whether consumers want transactions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.kafka import OPTIONS, Brokers, ClientOptions, Topic


class KafkaSinkSettings(SinkSettings):
    """Results as messages of a topic of Kafka, under the key of the event."""

    kind: Literal["kafka"] = "kafka"
    brokers: Brokers = Field(description="Address of a broker, `host:port`; one is enough, more are safer.")
    topic: Topic = Field(description="The topic, which must exist.")
    transactions: bool = Field(
        default=False,
        description="Exactly once for read-committed consumers: each delivery is a transaction, with its positions in "
        "the topic TOPIC.positions.",
    )
    batch: int = Field(default=5_000, ge=1, le=100_000, description="The most results of a delivery.")
    set: ClientOptions = Field(default_factory=dict, description=OPTIONS)

    @property
    def destination(self) -> str:
        """The topic."""
        return f"the topic {self.topic}"
