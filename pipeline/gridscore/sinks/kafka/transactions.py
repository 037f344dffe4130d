"""Transactions of the Kafka sink: each delivery is one, and writes down how far each partition has come.

The positions are messages of the compacted topic `TOPIC.positions`, in the same transaction as the results, so that
both appear at the same moment. A process that takes a partition from one that did not give it back does this, in order:

1. *Fence* that process: its transactional id contains its identity. An open transaction of it is aborted, and it can
   commit no more.
2. *Read* the committed positions, to the end.
3. *Verify* that a position belongs to this journal: the journal must have the last delivered result where the position
   says. A journal that has begun again has other results there, and then nothing is skipped.
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

TRANSACTION_SECONDS = 30.0  # after this time, Kafka aborts a transaction of a process that has died
_POSITIONS_CONFIG = {
    "cleanup.policy": "compact",
    # Small segments, soon compacted, because taking over reads all that is not compacted.
    "segment.bytes": str(8 << 20),
    "segment.ms": "60000",
    "min.cleanable.dirty.ratio": "0.1",
}

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Position(msgspec.Struct, frozen=True):
    """How far a partition has come."""

    next: int  # the offset
    epoch: int  # of the lease under which it was delivered
    last: int  # the sequence of the last result that was delivered; -1 if it had none
    check: int  # CRC-32 of that result's text


class Transactions:
    """Delivers by transactions; its methods raise as those of `KafkaSink` do.

    `common`: properties of its clients; `in_thread`: makes a call that may wait, in the sink's thread.
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
        self._name, self._identity, self._in_thread = name, identity, in_thread
        self._unclear: tuple[str, set[Any]] | None = None
        self._done: set[Any] = set()
        self._attempts = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Further properties of a producer."""
        return self._settings_of(self._identity)

    def prepare(self) -> None:
        """Make the topic of positions if it is missing."""
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
        """Make a producer the only one of this identity, and find out what became of an unclear transaction."""
        try:
            producer.init_transactions(ANSWER_SECONDS)
        except KafkaException as error:
            raise failure(error.args[0], self._topic, SinkInterruptedError) from None

    # ------------------------------------------------------------------ a delivery

    async def deliver(
        self,
        ready: Callable[[], Awaitable[Producer]],  # returns the producer, for which `begin_with` was called
        delivery: Delivery,
        # Produces results and waits; returns what came back as too large.
        produce: Callable[[Producer, Sequence[Delivered]], Awaitable[list[Delivered]]],
        discard: Callable[[], Awaitable[None]],  # aborts the transaction and closes the producer; `ready` makes another
    ) -> list[Delivered]:
        """Deliver in one transaction; returns what is too large for the topic.

        Raises KafkaException if it was not committed, or that is not known; discard the producer.
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
            # A refused message spoils its transaction and its batch: find it one by one, in transactions of their own.
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
        await produce(producer, [])  # takes the reports of positions here, not in the commit's thread
        if time.monotonic() >= delivery.until:
            raise SinkInterruptedError("The leases ran out before the transaction could be committed.")
        self._unclear = attempt, {_identity_of(result) for result in delivery.results}
        await self._in_thread(lambda: self._commit(producer))
        self._unclear = None
        # Others are of a delivery that is made in parts, and still to come.
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
                continue  # there is nothing to verify it by, and nothing to repeat
            position = Position(following, epochs[partition], ending.sequence, zlib.crc32(ending.text))
            producer.produce(self._positions_topic, _encode(position), self._key(partition), 0)
        producer.produce(self._positions_topic, attempt.encode(), f"{self._name}/attempt/{self._identity}".encode(), 0)

    def _find_done(self) -> None:
        """If the answer to a commit was lost, find out whether it was committed, so as not to deliver it again."""
        if self._unclear is None:
            return
        attempt, results = self._unclear
        if self._read().get(f"{self._name}/attempt/{self._identity}") == attempt.encode():
            self._done |= results
        self._unclear = None

    # ------------------------------------------------------------------ taking over

    def take_over(self, partitions: Mapping[int, str]) -> dict[int, Position]:
        """Fence the owners that did not give partitions back, and read how far all have come.

        Also of those that were given back, for the answer to the last commit may have been lost.
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
                        "%s: the value under %d is not a position: %s", self._positions_topic, partition, error
                    )
        return positions

    async def verified(self, positions: Mapping[int, Position], grid: Grid, map_name: str) -> dict[int, int]:
        """The offsets of the positions that belong to the present journal."""
        journal, verified = Journal(grid, map_name), {}
        try:
            for partition, position in positions.items():
                oldest, newest = await journal.bounds(partition)
                if not oldest <= position.last <= newest:
                    continue
                # If the journal begins again just now, there is nothing to read until something is put.
                async with asyncio.timeout(ANSWER_SECONDS):
                    page = await journal.read(partition, position.last, 1)
                has_it = page is not None and page.sequences[:1] == [position.last]
                if page is not None and has_it and zlib.crc32(page.values[0]) == position.check:
                    verified[partition] = position.next
        except (HazelcastError, GridError, TimeoutError) as error:
            raise GridError(f"The journal of `{map_name}` cannot be read: {error or 'no answer'}") from None
        return verified

    def _read(self) -> dict[str, bytes]:
        """The newest committed value under each key, once every present transaction has ended."""
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
                        if key is not None and value is not None:  # others may write here, too
                            found[key.decode(errors="replace")] = value
                    elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
                        raise KafkaException(error)
                    elif (message.offset() or 0) >= end:
                        return found
                if time.monotonic() > deadline:
                    raise SinkInterruptedError("A transaction of another process does not end.")
        finally:
            consumer.close()

    def _end(self) -> int:
        """The end of the topic of positions, with messages of open transactions."""
        # A read-committed consumer would tell the beginning of the first open transaction.
        admin = made(AdminClient, self._common, self._positions_topic)
        partition = TopicPartition(self._positions_topic, 0)
        asked = admin.list_offsets(
            {partition: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=ANSWER_SECONDS,
        )
        return int(asked[partition].result().offset)

    def _settings_of(self, identity: str) -> dict[str, Any]:
        return {
            "transactional.id": f"gridscore-{self._name}-{identity}",
            "transaction.timeout.ms": int(TRANSACTION_SECONDS * 1000),
        }

    def _key(self, partition: int) -> bytes:
        return f"{self._name}/{partition}".encode()


def _identity_of(result: Delivered) -> tuple[int, int, Any, int]:
    return result.partition, result.sequence, result.key, zlib.crc32(result.text)
