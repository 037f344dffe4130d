"""Transactions of the Kafka sink: each delivery is one, and writes down how far each partition has come.

The positions are messages of the compacted topic `TOPIC.positions`, in the same transaction as the results, so that
there is no moment at which only one of both is there. Who takes a partition over from a process that did not give it
back does, in order:

1. *Fence* that process: its transactional id is known by its identity. A transaction that it has open is aborted, and
   it can commit none any more.
2. *Read* the positions, committed ones only, to the end.
3. *Verify* that a position is of this very journal: the result that it ends with must stand in the journal where it
   says. A journal that began again has other results there, and then nothing is passed over.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # its own door
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.grid.journal import Journal
from gridscore.kafka import ANSWER_SECONDS, KafkaRefusedError, failure, made, partitions_of, taking_reports
from gridscore.sinks.base import SinkInterruptedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivered, Delivery

TRANSACTION_SECONDS = 30.0
"""After this Kafka itself aborts a transaction of a process that is gone."""

_POSITIONS_CONFIG = {
    "cleanup.policy": "compact",
    # Small segments, soon compacted: who takes over reads all that is not.
    "segment.bytes": str(8 << 20),
    "segment.ms": "60000",
    "min.cleanable.dirty.ratio": "0.1",
}

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Position(msgspec.Struct, frozen=True):
    """How far a partition has come.

    Attributes:
        next: The sequence to go on from.
        epoch: Of the lease under which it was delivered.
        last: The sequence of the last result that was delivered; -1 if it had none.
        check: CRC-32 of that result's text.
    """

    next: int
    epoch: int
    last: int
    check: int


class Transactions:
    """What a process does to deliver by transactions.

    Args:
        common: Properties of its clients.
        in_thread: Makes a call that may wait in the sink's thread.
    """

    def __init__(
        self,
        common: Mapping[str, Any],
        topic: str,
        name: str,
        identity: str,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._common = dict(common)
        self._topic = topic
        self._positions_topic = f"{topic}.positions"
        self._name = name
        self._identity = identity
        self._in_thread = in_thread
        self._unclear: tuple[str, set[Any]] | None = None
        self._done: set[Any] = set()
        self._attempts = 0

    @property
    def settings(self) -> dict[str, Any]:
        """More properties of a producer."""
        return self._settings_of(self._identity)

    def prepare(self) -> None:
        """Make the topic of positions if it is not there.

        Raises:
            SinkInterruptedError: Kafka is away.
            KafkaRefusedError: It is not there, and must not be made.
        """
        admin = made(AdminClient, self._common, self._positions_topic)
        new = NewTopic(self._positions_topic, 1, config=_POSITIONS_CONFIG)
        try:
            admin.create_topics([new], request_timeout=ANSWER_SECONDS)[self._positions_topic].result()
        except KafkaException as error:
            code = error.args[0].code()
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                try:
                    partitions_of(self._common, self._positions_topic, SinkInterruptedError)
                except KafkaRefusedError:
                    raise KafkaRefusedError(
                        f"The topic `{self._positions_topic}` cannot be made: {error.args[0].str()}",
                        "Create it with one partition and cleanup.policy=compact, or let the user create topics.",
                    ) from None

    def begin_with(self, producer: Producer) -> None:
        """Make a producer the only one of this identity, and find out what became of an unclear transaction.

        Raises:
            SinkInterruptedError: Kafka is away.
            KafkaRefusedError: The user may not.
        """
        try:
            producer.init_transactions(ANSWER_SECONDS)
        except KafkaException as error:
            raise failure(error.args[0], self._topic, SinkInterruptedError) from None

    # ------------------------------------------------------------------ a delivery

    async def deliver(
        self,
        ready: Callable[[], Awaitable[Producer]],
        delivery: Delivery,
        produce: Callable[[Producer, Sequence[Delivered]], Awaitable[list[Delivered]]],
        discard: Callable[[], Awaitable[None]],
    ) -> list[Delivered]:
        """Deliver in one transaction; returns what is too large for the topic.

        Args:
            ready: Gives the producer, for which `begin_with` was called.
            delivery: What to deliver.
            produce: Produces results and waits; returns what came back as too large.
            discard: Aborts the transaction and lets the producer go; `ready` makes another.

        Raises:
            KafkaException: It was not committed, or nobody knows; the producer is to be let go.
        """
        await self._in_thread(self._find_done)
        results = [result for result in delivery.results if _identity_of(result) not in self._done]
        refused: list[Delivered] = []
        while True:
            producer = await ready()
            producer.begin_transaction()
            too_large = await produce(producer, results)
            if not too_large:
                break
            # What is refused spoils its transaction, and its batch: it is found one by one, in transactions of its own.
            await discard()
            for result in too_large:
                alone = await ready()
                alone.begin_transaction()
                if await produce(alone, [result]):
                    refused.append(result)
                await discard()
            spoilt = {id(result) for result in refused}
            results = [result for result in results if id(result) not in spoilt]
        self._attempts += 1
        attempt = f"{self._identity}-{self._attempts}"
        self._write_positions(producer, delivery, attempt)
        await produce(producer, [])  # takes the reports of positions, too, before the commit would in its thread
        if time.monotonic() >= delivery.until:
            raise SinkInterruptedError("The leases ran out before the transaction could be committed.")
        self._unclear = attempt, {_identity_of(result) for result in delivery.results}
        await self._in_thread(lambda: self._commit(producer))
        self._unclear = None
        # What is left is of a delivery that is made in smaller parts: it comes yet.
        self._done -= {_identity_of(result) for result in delivery.results}
        return refused

    def _commit(self, producer: Producer) -> None:
        deadline = time.monotonic() + TRANSACTION_SECONDS
        while True:
            try:
                with taking_reports():
                    producer.commit_transaction(ANSWER_SECONDS)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
            else:
                return

    def _write_positions(self, producer: Producer, delivery: Delivery, attempt: str) -> None:
        last: dict[int, Delivered] = {}
        epochs: dict[int, int] = {}
        for result in delivery.results:
            epochs[result.partition] = result.epoch
            if result.sequence >= 0:
                last[result.partition] = result
        for partition, following in delivery.offsets.items():
            ending = last.get(partition)
            if ending is None:
                continue  # there is nothing that its place in the journal could be verified by, and nothing to repeat
            position = Position(following, epochs[partition], ending.sequence, zlib.crc32(ending.text))
            producer.produce(self._positions_topic, _encode(position), self._key(partition), 0)
        producer.produce(self._positions_topic, attempt.encode(), f"{self._name}/attempt/{self._identity}".encode(), 0)

    def _find_done(self) -> None:
        """If the answer to a commit was lost, find out what became of it; what was committed is not delivered again."""
        if self._unclear is None:
            return
        attempt, results = self._unclear
        if self._read().get(f"{self._name}/attempt/{self._identity}") == attempt.encode():
            self._done |= results
        self._unclear = None

    # ------------------------------------------------------------------ taking over

    def take_over(self, partitions: Mapping[int, str]) -> dict[int, Position]:
        """Fence who did not give back, and read how far partitions have come.

        Positions are read of those that were given back, too: the answer to the last commit may have been lost.

        Raises:
            SinkInterruptedError: Kafka is away.
            KafkaRefusedError: The user may not.
        """
        try:
            for owner in set(partitions.values()) - {"", self._identity}:
                made(Producer, {**self._common, **self._settings_of(owner)}, self._topic).init_transactions(
                    ANSWER_SECONDS
                )
            found = self._read()
        except KafkaException as error:
            raise failure(error.args[0], self._topic, SinkInterruptedError) from None
        positions = {}
        for partition in partitions:
            if (text := found.get(self._key(partition).decode())) is not None:
                try:
                    positions[partition] = msgspec.json.decode(text, type=Position)
                except (ValueError, RecursionError) as error:
                    _log.warning(
                        "%s: what stands under %d is not a position: %s", self._positions_topic, partition, error
                    )
        return positions

    async def verified(self, positions: Mapping[int, Position], grid: Grid, map_name: str) -> dict[int, int]:
        """The sequences to go on from, of those positions that are of the journal as it is now.

        Raises:
            SinkInterruptedError: The cluster does not answer.
        """
        journal, verified = Journal(grid, map_name), {}
        try:
            for partition, position in positions.items():
                oldest, newest = await journal.bounds(partition)
                if not oldest <= position.last <= newest:
                    continue
                # Should the journal begin again just now, there would be nothing to read until something is put.
                async with asyncio.timeout(ANSWER_SECONDS):
                    page = await journal.read(partition, position.last, 1)
                there = page is not None and page.sequences[:1] == [position.last]
                if page is not None and there and zlib.crc32(page.values[0]) == position.check:
                    verified[partition] = position.next
        except (HazelcastError, GridError, TimeoutError) as error:
            raise SinkInterruptedError(f"The journal of `{map_name}` cannot be read: {error or 'no answer'}") from None
        return verified

    def _read(self) -> dict[str, bytes]:
        """The newest committed value under each key, when every transaction before now has ended."""
        consumer = made(
            Consumer,
            {
                **self._common,
                "group.id": f"gridscore-{self._name}-positions",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            },
            self._positions_topic,
        )
        found: dict[str, bytes] = {}
        deadline = time.monotonic() + 2 * TRANSACTION_SECONDS
        try:
            end = self._end()
            consumer.assign([TopicPartition(self._positions_topic, 0, OFFSET_BEGINNING)])
            while True:
                for message in consumer.consume(1_000, 0.1):
                    error = message.error()
                    if error is None:
                        key: Any = message.key()
                        value: Any = message.value()
                        if key is not None and value is not None:  # others may write there, too
                            found[key.decode(errors="replace")] = value
                    elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
                        raise KafkaException(error)
                    elif (message.offset() or 0) >= end:
                        return found
                if time.monotonic() > deadline:
                    raise SinkInterruptedError("A transaction of another process does not come to an end.")
        finally:
            consumer.close()

    def _end(self) -> int:
        """Where the topic of positions ends, with what is in transactions that have not ended."""
        # A consumer of committed messages would tell where the first of those begins.
        admin, place = made(AdminClient, self._common, self._positions_topic), TopicPartition(self._positions_topic, 0)
        asked = admin.list_offsets(
            {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=ANSWER_SECONDS,
        )
        return int(asked[place].result().offset)

    def _settings_of(self, identity: str) -> dict[str, Any]:
        return {
            "transactional.id": f"gridscore-{self._name}-{identity}",
            "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
        }

    def _key(self, partition: int) -> bytes:
        return f"{self._name}/{partition}".encode()


def _identity_of(result: Delivered) -> tuple[int, int, Any, int]:
    return result.partition, result.sequence, result.key, zlib.crc32(result.text)
