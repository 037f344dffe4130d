"""Loads to measure sources with: events in memory, in files, in brokers, and from those who send them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

from benchmarks.plugs import UnavailableError, need, server
from benchmarks.sources import Load
from gridscore.errors import MemberError
from gridscore.grid.ports import choose_ports
from gridscore.proving.bench import card
from gridscore.sources.base import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_BATCH = 2_000
TOPIC, _PARTITIONS = "bench", 6
_TABLE = """
    CREATE TABLE bench AS
    SELECT 10000000 + i AS id, round((random() * 100)::numeric, 2)::float8 AS amount, 'u' || i % 10000 AS user,
        'm' || i % 1000 AS merchant, 1700000000000 + i * 37 AS ts
    FROM generate_series(1, {count}::bigint) AS i
"""


class _FromMemory:
    """A source that costs nothing: what the runner and the producer take is the limit of all others."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    async def open(self) -> None:
        """Nothing to connect to."""

    async def batches(self) -> AsyncIterator[Batch]:
        """Batches that were made before."""
        for batch in self._batches:
            yield batch

    async def acknowledge(self, batch: Batch) -> None:
        """Nothing to move."""

    async def close(self) -> None:
        """Nothing to let go."""


@asynccontextmanager
async def memory(folder: Path, events: int, to: str) -> AsyncIterator[Load]:  # noqa: ARG001 -- no files
    """Batches of 2,000 events that are in memory already."""
    rest, batches = card.events(events), []
    while entries := list(islice(rest, _BATCH)):
        batches.append(Batch(entries))
    yield Load(make=(lambda: _FromMemory(batches), to))


@asynccontextmanager
async def logfile(folder: Path, events: int, to: str) -> AsyncIterator[Load]:
    """A log file of JSON lines."""
    from gridscore.sources.logfile.settings import LogfileSourceSettings

    need("watchfiles", "logfile")
    path = folder / "events.log"
    with path.open("wb") as file:
        file.writelines(text + b"\n" for _, text in card.events(events))
    yield Load(LogfileSourceSettings(to=to, path=(str(path),)))


@asynccontextmanager
async def http(folder: Path, events: int, to: str) -> AsyncIterator[Load]:  # noqa: ARG001 -- no files
    """Streams of lines, posted by several connections of another process."""
    from gridscore.sources.http.settings import HttpSourceSettings

    need("uvicorn", "http")
    (port,) = choose_ports(1, 0)
    settings = HttpSourceSettings(to=to, port=port, key=("id",))
    arguments = [f"127.0.0.1:{port}", f"/events/{to}", str(events)]
    yield Load(settings, feed=("benchmarks.http_feed", arguments))


@asynccontextmanager
async def kafka(folder: Path, events: int, to: str) -> AsyncIterator[Load]:
    """A topic of some partitions on a broker of its own."""
    from gridscore.sources.kafka.settings import KafkaSourceSettings
    from gridscore.testing.kafka import Broker

    need("confluent_kafka", "kafka")
    async with server(Broker.start, folder, MemberError) as broker:
        await asyncio.to_thread(_produce, broker.address, events)
        yield Load(KafkaSourceSettings(to=to, brokers=(broker.address,), topic=TOPIC))


def create_topic(address: str) -> None:
    """Make the topic of the benchmark on a new broker."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": address})  # what it was asked for ends with it, so it has a name
    for created in admin.create_topics([NewTopic(TOPIC, _PARTITIONS)]).values():
        created.result(30)


def _produce(address: str, events: int) -> None:
    from confluent_kafka import Producer

    create_topic(address)
    producer = Producer({"bootstrap.servers": address, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    for key, text in card.events(events):
        producer.produce(TOPIC, text, key)
    if producer.flush(60):
        raise UnavailableError("The broker did not take all messages in a minute.")


@asynccontextmanager
async def mqtt(folder: Path, events: int, to: str) -> AsyncIterator[Load]:
    """Messages with QoS 1, published by another process to a broker of its own."""
    from gridscore.sources.mqtt.settings import MqttSourceSettings

    need("paho", "mqtt")
    from gridscore.testing.mqtt import MqttBroker

    async with server(MqttBroker.start, folder, MemberError) as broker:
        port = broker.url.rpartition(":")[2]
        settings = MqttSourceSettings(to=to, broker=broker.url, topic=(f"{TOPIC}/#",), key=("id",))
        yield Load(settings, feed=("benchmarks.mqtt_feed", [port, TOPIC, str(events)]))


@asynccontextmanager
async def postgres(folder: Path, events: int, to: str) -> AsyncIterator[Load]:
    """Rows of a table on a server of its own."""
    from gridscore.sources.postgres.settings import PostgresSourceSettings

    need("psycopg", "postgres")
    from gridscore.errors import MemberError
    from gridscore.testing.postgres import PostgresServer

    async with server(PostgresServer.start, folder, MemberError) as database:
        await asyncio.to_thread(database.execute, _TABLE.format(count=events))
        yield Load(PostgresSourceSettings(to=to, database=database.url(), table="bench", key=("id",)))
