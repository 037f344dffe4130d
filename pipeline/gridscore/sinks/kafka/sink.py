"""The Kafka sink: results as messages of a topic, under the event's key, with headers that identify duplicates.

A delivery is done when all replicas in sync have confirmed each of its messages; with transactions, when its
transaction is committed (see `transactions`).

The event loop's thread produces messages and takes their reports, in calls that do not wait; calls that may wait go to
another thread. The client takes Python's lock once a report, wanted or not: a second thread would fight the event loop
for it at every message, which costs several times the CPU of all the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Producer

from gridscore.kafka import (
    Complaints,
    TopicProbe,
    client_settings,
    failure,
    largest_message,
    made,
    permanent,
    taking_reports,
)
from gridscore.sinks.base import Refused, SinkInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from confluent_kafka import Message

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivered, Delivery
    from gridscore.sinks.kafka.settings import KafkaSinkSettings
    from gridscore.sinks.kafka.transactions import Transactions

_PRODUCER: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 2,
    "queue.buffering.max.messages": 1_000_000,
    "delivery.report.only.error": True,
    # As in Java's clients, so that a key has the same partition with all producers.
    "partitioner": "murmur2_random",
}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD}
_SPOILT = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001 -- how the library names its constants
_AT_ONCE = 1_000  # messages for which the event loop waits
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.001, 0.02
_CLOSE_SECONDS = 2.0
_PROBE_SECONDS = 3.0
_REPORT_SECONDS = 5.0  # for the report of a message that the broker has refused
_BATCH_BYTES = 1_000_000


class KafkaSink:
    """Produces to one topic; see :class:`gridscore.sinks.base.Sink`.

    What waits for Kafka raises `SinkInterruptedError` if no broker answers, and `KafkaRefusedError` if Kafka refuses
    us: there is no such topic, or credentials, a certificate, rights or settings are wrong.
    """

    def __init__(self, grid: Grid, name: str, settings: KafkaSinkSettings) -> None:
        self._grid, self._name, self._settings = grid, name, settings
        self._topic = settings.topic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-sink")
        self._complaints = Complaints(self._topic)
        self._producer: Producer | None = None
        self._probe: TopicProbe | None = None
        self._transactions: Transactions | None = None
        self._failed: list[tuple[bytes | None, bytes | None, KafkaError]] = []
        self._batch_bytes = _BATCH_BYTES
        self.max_results = settings.batch
        self.identity = uuid.uuid4().hex

    # ------------------------------------------------------------------ what the runner calls

    async def open(self) -> None:
        """Find the topic; with transactions, also the topic of positions, which is made if it is missing."""
        await self._in_thread(self._open)

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """With transactions: fence the processes that held them before, and find how far they came."""
        if self._transactions is None:
            return {}
        transactions = self._transactions
        found = await self._in_thread(lambda: transactions.take_over(partitions))
        return await transactions.verified(found, self._grid, self._settings.results)

    async def dropped(self, partitions: Collection[int]) -> None:
        """Do nothing: what was delivered is in Kafka."""

    async def look(self) -> None:
        probe = self._probe
        if probe is not None:
            await self._in_thread(lambda: probe.partitions(_PROBE_SECONDS))

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Produce, and wait until everything is confirmed, or committed."""
        await self._in_thread(self._ready)  # before the lease is checked: others fence us only after its end
        if time.monotonic() >= delivery.until:
            raise SinkInterruptedError("The leases ran out before Kafka was ready.")
        try:
            return await self._send(delivery)
        except KafkaException as error:
            await self._in_thread(self._discard)
            self._complaints.check(SinkInterruptedError)
            raise failure(error.args[0], self._topic, SinkInterruptedError) from None
        except Exception:
            await self._in_thread(self._discard)
            raise

    async def close(self) -> None:
        """Close the producer, and give up what is not confirmed."""
        with contextlib.suppress(Exception):
            await self._in_thread(self._discard)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # ------------------------------------------------------------------ in the thread

    def _open(self) -> None:
        settings = self._settings
        common = client_settings(settings.brokers, settings.set, {}, self._complaints)
        self._probe = TopicProbe(common, self._topic, SinkInterruptedError)
        self._probe.partitions()
        self._batch_bytes = max(1, min(_BATCH_BYTES, largest_message(common, self._topic, _BATCH_BYTES) * 9 // 10))
        if settings.transactions:
            from gridscore.sinks.kafka.transactions import Transactions

            self._transactions = Transactions(common, self._topic, self._name, self.identity, self._in_thread)
            self._transactions.prepare()

    def _ready(self) -> Producer:
        if self._producer is None:
            more = self._transactions.settings if self._transactions is not None else {}
            ours = {**_PRODUCER, "batch.size": self._batch_bytes, "on_delivery": self._report}
            common = client_settings(self._settings.brokers, self._settings.set, ours, self._complaints)
            self._producer = made(Producer, {**common, **more}, self._topic)
            if self._transactions is not None:
                try:
                    self._transactions.begin_with(self._producer)
                except BaseException:
                    self._discard()
                    raise
        return self._producer

    def _discard(self) -> None:
        """Close the producer, with what it has not sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            # There may be no transaction, or another process has fenced us.
            with contextlib.suppress(KafkaException), taking_reports():
                producer.purge()
                if self._transactions is not None:
                    producer.abort_transaction(_CLOSE_SECONDS)
            with contextlib.suppress(KafkaException), taking_reports():
                producer.flush(_CLOSE_SECONDS)

    # ------------------------------------------------------------------ in the event loop

    async def _send(self, delivery: Delivery) -> list[Refused]:
        refused: list[Refused] = []

        async def ready() -> Producer:
            producer: Producer = await self._in_thread(self._ready)
            return producer

        async def produce(producer: Producer, results: Sequence[Delivered]) -> list[Delivered]:
            return await self._produce(producer, results, delivery.until, refused)

        async def discard() -> None:
            await self._in_thread(self._discard)

        if self._transactions is not None:
            too_large = await self._transactions.deliver(ready, delivery, produce, discard)
        else:
            producer = self._ready()
            # The broker refuses a whole batch: find the messages that are too large one by one.
            suspects = await produce(producer, delivery.results)
            too_large = [result for result in suspects if await produce(producer, [result])]
        refused += [Refused(result, "the topic takes no message of this size") for result in too_large]
        return list({id(each.result): each for each in refused}.values())

    async def _produce(
        self, producer: Producer, results: Sequence[Delivered], until: float, refused: list[Refused]
    ) -> list[Delivered]:
        """Produce and wait; returns what came back as too large, and adds to `refused` what was not sent at all."""
        failed = self._failed = []
        spoilt: KafkaException | None = None
        try:
            await self._hand_over(producer, results, until, refused)
        except KafkaException as error:
            if self._transactions is None or error.args[0].code() != KafkaError._STATE:  # noqa: SLF001
                raise
            # The broker has refused an earlier message, so the transaction takes no more: the report says which.
            spoilt = error
        pause, given_up = _FIRST_LOOK_SECONDS, time.monotonic() + _REPORT_SECONDS
        while len(producer):
            if failed and self._transactions is not None:
                break  # the transaction is spoilt: nothing is sent before it is aborted
            if spoilt is not None and time.monotonic() > given_up:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
            self._look(producer, until)
        if spoilt is not None and not failed:
            raise spoilt
        return self._too_large(results, failed) if failed else []

    async def _hand_over(
        self, producer: Producer, results: Sequence[Delivered], until: float, refused: list[Refused]
    ) -> None:
        """Give results to the client, which sends them; adds to `refused` those that it does not take."""
        produce, topic = producer.produce, self._topic
        for begin in range(0, len(results), _AT_ONCE):
            for result in results[begin : begin + _AT_ONCE]:
                while True:
                    try:
                        produce(topic, result.text, _key(result), headers=headers_of(result))
                        break
                    except BufferError:
                        await asyncio.sleep(_LOOK_SECONDS)
                        self._look(producer, until)
                    except KafkaException as error:
                        if error.args[0].code() not in _TOO_LARGE:
                            raise
                        size = f"{len(result.text):,}"
                        refused.append(Refused(result, f"it has {size} bytes: too large for Kafka's client"))
                        break
            self._look(producer, until)
            await asyncio.sleep(0)

    def _too_large(
        self, results: Sequence[Delivered], failed: Sequence[tuple[bytes | None, bytes | None, KafkaError]]
    ) -> list[Delivered]:
        """The results that came back as too large; raises any other failure."""
        large = {(key, text) for key, text, wrong in failed if wrong.code() in _TOO_LARGE}
        for _, _, wrong in failed:
            # A message that is too large spoils the transaction, and the messages behind it.
            if wrong.code() not in _TOO_LARGE and not (large and wrong.code() in _SPOILT):
                raise permanent(wrong, self._topic) or SinkInterruptedError(f"Kafka: {wrong.str()}")
        return [result for result in results if (_key(result).encode(), result.text) in large]

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            key: Any = message.key()
            value: Any = message.value()
            self._failed.append((key, value, error))

    def _look(self, producer: Producer, until: float) -> None:
        """Take reports; raises if waiting any longer is useless."""
        with taking_reports():
            producer.poll(0)
        self._complaints.raise_refusal()
        if time.monotonic() >= until:
            trouble = self._complaints.trouble
            raise SinkInterruptedError(f"Kafka does not confirm what is sent{f': {trouble}' if trouble else '.'}")


def headers_of(result: Delivered) -> list[tuple[str, str | bytes | None]]:
    """Headers of a message: the decision, and what identifies duplicates."""
    get = result.value.get
    decision, model, version = get("decision"), get("model"), get("version")
    try:
        said = _said(decision, model, version)
    except TypeError:  # a list or an object, which has no hash
        said = _said(*(None if value is None else str(value) for value in (decision, model, version)))
    return [
        ("gridscore.id", blake2b(result.text, digest_size=12).hexdigest()),
        ("gridscore.epoch", str(result.epoch)),
        ("gridscore.sequence", str(result.sequence)),
        *said,
    ]


@functools.lru_cache(1_024, typed=True)
def _said(*values: Any) -> tuple[tuple[str, str], ...]:
    pairs = zip(("decision", "model", "version"), values, strict=True)
    return tuple((f"gridscore.{name}", str(value)) for name, value in pairs if value is not None)


def _key(result: Delivered) -> str:
    return result.key if isinstance(result.key, str) else str(result.key)
