"""From a Kafka topic to a Kafka topic, as an engineer would write it: a consumer, a model, a producer, and a loop.

At least once: offsets are committed when the results of what lies before them have been acknowledged. Run as a module
(`-h` says how); it prints `ready` before it joins its consumer group.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from benchmarks.features import Work
from benchmarks.systems.kafka_settings import BATCH_EVENTS, CONSUMER, PRODUCER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import KafkaError, Message

COMMIT_SECONDS = 1.0
UNACKNOWLEDGED = 100_000

_IDLE_SECONDS = 0.2
_POLL_SECONDS = 0.005

_CONSUMER = {
    **CONSUMER,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
}
_PRODUCER = {**PRODUCER, "delivery.report.only.error": True}


class Loop:
    """The loop.

    Args:
        broker: Where, `host:port`.
        group: The consumer group.
        events: Topic to read.
        results: Topic to write, with as many partitions.
        work: What to do.
    """

    def __init__(self, broker: str, group: str, events: str, results: str, work: Work) -> None:
        self._consumer = Consumer({**_CONSUMER, "bootstrap.servers": broker, "group.id": group})
        self._producer = Producer({**_PRODUCER, "bootstrap.servers": broker, "on_delivery": self._failed})
        self._events, self._results, self._work = events, results, work
        self._offsets: dict[int, int] = {}
        self._error: KafkaError | None = None
        self._stopped = False

    def stop(self) -> None:
        """End after the batch at hand."""
        self._stopped = True

    def run(self) -> None:
        """Score until stopped.

        Raises:
            KafkaException: A result could not be written, or events not read.
        """
        consumer = self._consumer
        consumer.subscribe([self._events], on_revoke=self._revoked)
        commit_at = time.monotonic() + COMMIT_SECONDS
        while not self._stopped:
            # `consume` waits until it has as many as it may return: first for one, then for none more than are here.
            messages = consumer.consume(1, _IDLE_SECONDS)
            if messages:
                messages += consumer.consume(BATCH_EVENTS - 1, 0)
                self._score(messages)
            if (now := time.monotonic()) >= commit_at:
                self._commit(wait=False)
                commit_at = now + COMMIT_SECONDS
        self._commit(wait=True)
        consumer.close()

    def _score(self, messages: Sequence[Message]) -> None:
        texts: list[bytes] = []
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            texts.append(message.value())  # type: ignore[arg-type]  # no event is null
        produce, topic, offsets = self._producer.produce, self._results, self._offsets
        for message, result in zip(messages, self._work.results(texts), strict=True):
            partition: Any = message.partition()
            produce(topic, result, message.key(), partition)  # the same partition: nothing is hashed
            offsets[partition] = message.offset() + 1  # type: ignore[operator]  # what was consumed has an offset
        self._producer.poll(0)
        while len(self._producer) > UNACKNOWLEDGED:
            self._producer.poll(_POLL_SECONDS)

    def _commit(self, *, wait: bool) -> None:
        if not self._offsets:
            return
        self._producer.flush()
        if self._error is not None:
            raise KafkaException(self._error)
        offsets = [TopicPartition(self._events, partition, offset) for partition, offset in self._offsets.items()]
        self._offsets.clear()
        if wait:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        else:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def _revoked(self, _consumer: Consumer, _partitions: Sequence[TopicPartition]) -> None:
        self._commit(wait=True)

    def _failed(self, error: KafkaError | None, _message: Message) -> None:
        self._error = self._error or error


def main() -> None:
    """Run it until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("broker", "group", "events", "results"):
        parser.add_argument(name)
    parser.add_argument("files", type=Path)
    arguments = parser.parse_args()
    work = Work(arguments.files)
    loop = Loop(arguments.broker, arguments.group, arguments.events, arguments.results, work)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
