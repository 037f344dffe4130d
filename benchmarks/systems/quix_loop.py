"""From a Kafka topic to a Kafka topic by Quix Streams, scored in batches.

A function applied to each event would call the model once an event. What Quix Streams offers for batches without a
state store is a sink: it gathers events, and is flushed at each checkpoint, before offsets are committed. This one
scores what it has gathered and writes the results to the other topic: at least once, as the sinks that come with it.

Run as a module (`-h` says how); it prints `ready` before it joins its consumer group.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.features import Work
from benchmarks.systems.kafka_settings import BATCH_EVENTS, CONSUMER, PRODUCER

COMMIT_SECONDS = 0.02


def run(broker: str, group: str, events: str, results: str, work: Work, state: Path) -> None:
    """Score until SIGTERM.

    Args:
        broker: Where, `host:port`.
        group: The consumer group.
        events: Topic to read.
        results: Topic to write, with as many partitions.
        work: What to do.
        state: A folder for what Quix Streams keeps.
    """
    from quixstreams import Application
    from quixstreams.sinks import BaseSink

    class Scores(BaseSink):  # type: ignore[misc]  # it is not installed where types are checked
        """Scores what has come since the last checkpoint."""

        def __init__(self, producer: Any) -> None:
            super().__init__()
            self._producer = producer
            self._texts: list[bytes] = []
            self._places: list[tuple[bytes, int]] = []

        def add(
            self,
            value: bytes,
            key: bytes,
            timestamp: int,  # noqa: ARG002 -- the names are those that it is called with
            headers: Any,  # noqa: ARG002
            topic: str,  # noqa: ARG002
            partition: int,
            offset: int,  # noqa: ARG002
        ) -> None:
            """Gather an event."""
            self._texts.append(value)
            self._places.append((key, partition))

        def flush(self) -> None:
            """Score and write what there is, and wait until it is acknowledged."""
            produce = self._producer.produce
            for (key, partition), result in zip(self._places, work.results(self._texts), strict=True):
                produce(results, result, key, partition=partition)  # the same partition: nothing is hashed
            self._texts.clear()
            self._places.clear()
            if left := self._producer.flush():
                raise RuntimeError(f"{left} results could not be written.")

        def on_paused(self) -> None:
            """Forget what will come again."""
            self._texts.clear()
            self._places.clear()

    application = Application(
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_interval=COMMIT_SECONDS,
        commit_every=BATCH_EVENTS,
        consumer_poll_timeout=COMMIT_SECONDS,
        consumer_extra_config=CONSUMER,
        producer_extra_config=PRODUCER,
        auto_create_topics=False,
        state_dir=state,
        broker_availability_timeout=0,
    )
    topic = application.topic(events, key_deserializer="bytes", value_deserializer="bytes")
    with application.get_producer() as producer:
        application.dataframe(topic).sink(Scores(producer))
        print("ready", flush=True)
        application.run()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("broker", "group", "events", "results"):
        parser.add_argument(name)
    for name in ("files", "packages", "state"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.packages))
    work = Work(arguments.files)
    run(arguments.broker, arguments.group, arguments.events, arguments.results, work, arguments.state)


if __name__ == "__main__":
    main()
