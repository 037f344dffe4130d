"""The Kafka source: messages of a topic as events, once under each key.

All calls of the consumer are made in one thread. What is read goes to the runner; an offset is committed only when the
runner has said that the grid has everything before it. When partitions move to another process of the group, what is
under way gets a few seconds to arrive, what has arrived is committed, and the rest is read again by the new owner.

Partitions go in the middle of a call that reads. So what was read before that call and has not been given to the runner
is dropped if its partition went, and commits are made by the same thread: none can come late, over the new owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from gridscore.kafka import ANSWER_SECONDS, Complaints, client_settings, failure, made, partitions_of, permanent
from gridscore.sources.base import Batch, Poison, SourceInterruptedError
from gridscore.sources.kafka.messages import MessageReader, NoEventError
from gridscore.sources.position import Beginning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from confluent_kafka import Message

    from gridscore.grid import Grid
    from gridscore.sources.kafka.schema_registry import AvroReader
    from gridscore.sources.kafka.settings import KafkaSourceSettings

_log = logging.getLogger(__name__)

AT_ONCE = 4_000  # messages of one batch at most
GIVE_BACK_SECONDS = 5.0  # how long a rebalance waits for what is under way
_WAIT_SECONDS = 0.5
_COMMIT_SECONDS = 0.2
_IDLE_SECONDS = 10.0  # without a question from the runner; Kafka expects us to ask every five minutes

_CONSUMER: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # What retention has removed is an error, of which we tell, not a silent jump.
    "auto.offset.reset": "error",
    # Partitions that stay are not paused when others move.
    "partition.assignment.strategy": "cooperative-sticky",
    # After so long without a sign of life others get the partitions of a killed process; the library waits 45 s.
    "session.timeout.ms": 10_000,
    "allow.auto.create.topics": False,
    "isolation.level": "read_committed",
    "topic.metadata.refresh.interval.ms": 30_000,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 20_000,
    "queued.max.messages.kbytes": 32_768,
    "fetch.queue.backoff.ms": 20,
}

_GONE = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._NO_OFFSET,  # noqa: SLF001 -- how the library names its constants
}
_Positions = dict[int, tuple[int, int]]  # by partition: number of its assignment, next offset


class KafkaSource:
    """Reads one topic as a member of a consumer group.

    `grid`: the connection to the cluster, which keeps that the source has begun; `name`: of the source; the consumer
    group's, unless the settings name another.
    """

    def __init__(self, grid: Grid, name: str, settings: KafkaSourceSettings) -> None:
        self._settings = settings
        self._topic = settings.topic
        self._group = settings.group or name
        self._item = f"{self._topic} {self._group}"
        self._beginning = Beginning(grid, name, self._item)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-source")
        self._complaints = Complaints(self._topic)
        self._avro: AvroReader | None = None
        self._reader: MessageReader | None = None
        self._consumer: Consumer | None = None
        self._changed = threading.Condition()
        # Changed by the thread; guarded by the condition, as the event loop uses them, too.
        self._owned: dict[int, int] = {}
        self._started: dict[int, int] = {}  # where each that was assigned begins
        self._assignments = 0
        self._under_way = 0
        self._acknowledged: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._closing = False
        self._committed_at = 0.0
        self._asked_at = 0.0
        self._paused: list[TopicPartition] = []
        self._left: list[tuple[Message, int]] = []  # each with the assignment of its partition
        self._untold: KafkaException | None = None  # what went wrong while nothing was asked for
        self._skipped = 0  # since the last batch

    # ------------------------------------------------------------------ what the runner calls

    async def open(self) -> None:
        """Find the topic, see that we may read it, and join the group.

        Raises SourceInterruptedError if no broker, or no schema registry, answers; KafkaRefusedError if there is no
        such topic, or credentials, a certificate, rights or settings are wrong.
        """
        begun = await self._beginning.known()
        oldest, restored = self._settings.start == "oldest", self._beginning.restored
        await self._in_thread(lambda: self._open(begun=begun, restored=restored))
        if restored or not oldest:
            await self._beginning.note()

    def positions(self) -> dict[str, dict[str, int]]:
        """Up to where each partition of ours was acknowledged, by topic and group, and partition."""
        with self._changed:
            found = {str(number): self._acknowledged.get(number, self._started[number]) for number in self._owned}
        return {self._item: found} if found else {}

    async def batches(self) -> AsyncIterator[Batch]:
        """What the topic has, and then what comes; never ends.

        Raises SourceInterruptedError if Kafka is away; KafkaRefusedError if Kafka refuses us.
        """
        idle = asyncio.create_task(self._stay())
        try:
            while True:
                batch = await self._in_thread(self._read)
                self._asked_at = time.monotonic()
                if batch is not None:
                    yield batch
        finally:
            idle.cancel()

    async def acknowledge(self, batch: Batch) -> None:
        """Commit what a batch has brought, soon; what was assigned to others meanwhile is theirs to read again.

        Raises KafkaRefusedError if Kafka refuses us.
        """
        positions: _Positions = batch.position
        with self._changed:
            self._under_way -= 1
            for partition, (assignment, offset) in positions.items():
                if self._owned.get(partition) == assignment:
                    before = self._acknowledged.get(partition, offset)
                    assert before <= offset, "an offset never goes back"  # noqa: S101 -- a wrong commit loses events
                    self._acknowledged[partition] = offset
            self._changed.notify_all()
        self._complaints.check(SourceInterruptedError)

    async def close(self) -> None:
        """Commit what was acknowledged, and leave the group."""
        self._closing = True
        with self._changed:
            self._changed.notify_all()
        with contextlib.suppress(Exception):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # ------------------------------------------------------------------ in the thread: begin and end

    def _open(self, *, begun: bool, restored: dict[str, int]) -> None:
        settings = self._settings
        if settings.format == "avro":
            from gridscore.sources.kafka.schema_registry import AvroReader

            self._avro = AvroReader(settings)
            self._avro.check()
        self._reader = MessageReader(settings, self._avro)
        common = client_settings(settings.brokers, settings.set, {}, self._complaints)
        count = partitions_of(common, self._topic, SourceInterruptedError)
        self._consumer = made(
            Consumer, {**_CONSUMER, **common, "group.id": self._group, "on_commit": self._on_commit}, self._topic
        )
        try:
            if restored:
                self._go_back(count, restored)
            self._begin(count, begun=begun)
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            self._complaints.check(SourceInterruptedError)
            raise failure(error.args[0], self._topic, SourceInterruptedError) from None

    def _go_back(self, count: int, restored: dict[str, int]) -> None:
        """Go back to where every message before had its result, when the grid with the others was lost.

        A partition that was not known then had none.
        """
        partitions = self._positions([TopicPartition(self._topic, number) for number in range(count)])
        for each in partitions:
            safe = restored.get(str(each.partition), 0)
            each.offset = min(each.offset, safe) if each.offset >= 0 else safe
        try:
            _check_each(self._ready().commit(offsets=partitions, asynchronous=False) or [])
        except KafkaException as error:
            if error.args[0].code() not in _GONE:
                raise
            raise SourceInterruptedError(
                f"The grid was restored, and the group `{self._group}` has to go back; Kafka does not let it while it "
                "has other processes, or has not missed them yet."
            ) from None
        _log.warning(
            "%s: the grid was restored: going back to %s", self._topic, restored, extra={"action": "went_back"}
        )

    def _begin(self, count: int, *, begun: bool) -> None:
        """Write down where a new group begins, before anything is read: a crash must not move it."""
        if self._settings.start == "oldest":
            return  # where a partition without a position begins anyway, also one that is added later
        consumer = self._ready()
        partitions = [TopicPartition(self._topic, number) for number in range(count)]
        if any(each.offset >= 0 for each in self._positions(partitions)):
            return
        if begun:
            _log.error(
                "%s: Kafka has lost the positions of the group `%s`: the topic is read from its beginning",
                self._topic,
                self._group,
                extra={"action": "source_reset"},
            )
            return
        moment = self._settings.start_time
        if moment is not None:
            asked = [TopicPartition(self._topic, each.partition, int(moment.timestamp() * 1000)) for each in partitions]
            partitions = consumer.offsets_for_times(asked, timeout=ANSWER_SECONDS)
            _check_each(partitions)
        for each in partitions:
            if each.offset < 0:  # asked for the end, or nothing is as young as that time
                each.offset = self._bounds(each.partition)[1]
        try:
            consumer.commit(offsets=partitions, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in _GONE:
                raise
            # Somebody has joined in the meantime, and written down the beginning before.

    def _positions(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        found = self._ready().committed(partitions, timeout=ANSWER_SECONDS)
        _check_each(found)
        return found

    def _bounds(self, partition: int) -> tuple[int, int]:
        bounds = self._ready().get_watermark_offsets(TopicPartition(self._topic, partition), timeout=ANSWER_SECONDS)
        if bounds is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001
        return bounds

    def _close(self) -> None:
        if self._avro is not None:
            self._avro.close()
        if self._consumer is not None:
            self._consumer.close()  # which calls `_on_revoke`

    def _ready(self) -> Consumer:
        if self._consumer is None:
            raise SourceInterruptedError("The source has not been opened.")
        return self._consumer

    # ------------------------------------------------------------------ in the thread: reading

    def _read(self) -> Batch | None:
        consumer = self._ready()
        if self._untold is not None:
            # Partitions may have come of which we do not know, and which would never be committed.
            raise failure(self._untold.args[0], self._topic, SourceInterruptedError)
        if self._paused:
            paused, self._paused = self._paused, []
            with contextlib.suppress(KafkaException):  # some may have gone to others
                consumer.resume(paused)
        try:
            left, self._left = self._left, []
            messages = [message for message, assignment in left if self._assignment_of(message) == assignment]
            # It waits until it has as many as it may return.
            messages = messages or consumer.consume(1, _WAIT_SECONDS)
            if messages:
                before = dict(self._owned)
                messages += consumer.consume(AT_ONCE - 1, 0)
                messages = self._without_those_that_went(messages, before)
        except KafkaException as error:
            raise failure(error.args[0], self._topic, SourceInterruptedError) from None
        self._commit_if_due()
        self._complaints.check(SourceInterruptedError)
        return self._batch(messages) if messages else None

    def _assignment_of(self, message: Message) -> int:
        return self._owned.get(_partition(message), -1)

    def _without_those_that_went(self, messages: list[Message], before: dict[int, int]) -> list[Message]:
        """What was read in a call, less what is of partitions that went in it: their next owner reads that."""
        went = {number for number, assignment in before.items() if self._owned.get(number) != assignment}
        if not went.isdisjoint(self._owned):
            # It cannot be told what was read before and what after.
            raise SourceInterruptedError("Kafka: a partition went and came back at once.")
        return [message for message in messages if _partition(message) not in went] if went else messages

    def _batch(self, messages: list[Message]) -> Batch | None:
        assert self._reader is not None  # noqa: S101 -- for the type checker
        read, topic = self._reader.read, self._topic
        entries: list[tuple[Any, bytes | None]] = []
        poison: list[Poison] = []
        nexts: dict[int, int] = {}
        for message in messages:
            if (error := message.error()) is not None:
                if (begins := self._take_error(error, message)) is not None:
                    nexts[_partition(message)] = begins
                continue
            partition: Any = message.partition()
            offset: Any = message.offset()
            try:
                entries.append(read(message))
            except NoEventError as no_event:
                key = self._reader.origin(message) if no_event.key is None else no_event.key
                raw: Any = message.value()
                poison.append(Poison(f"{topic}/{partition}@{offset}", key, raw or b"", str(no_event)))
            nexts[partition] = offset + 1
        if not nexts:
            return None
        skipped, self._skipped = self._skipped, 0
        with self._changed:
            positions = {partition: (self._owned.get(partition, -1), offset) for partition, offset in nexts.items()}
            self._under_way += 1
        return Batch(entries, poison, positions, lost=skipped)

    def _take_error(self, error: KafkaError, message: Message) -> int | None:
        """Deal with an error; where its partition begins again, if it does."""
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            return self._begin_again(message)
        if code == KafkaError._MAX_POLL_EXCEEDED:  # noqa: SLF001
            _log.warning("%s: the group went on without us, as nothing was read for long", self._topic)
        elif (refusal := permanent(error, self._topic)) is not None:
            raise refusal
        elif not error.retriable():
            raise SourceInterruptedError(f"Kafka: {error.str()}")
        return None

    def _begin_again(self, message: Message) -> int:
        """A position is not in the partition any more: retention was faster, or the topic is another one.

        Where it begins now: that is committed with the next batch, so that a loss is counted once.
        """
        number = _partition(message)
        if number not in self._owned:
            raise SourceInterruptedError("Kafka: a partition came, and where to begin in it could not be found out.")
        try:
            low, high = self._bounds(number)
            asked = message.offset()
            asked = -1 if asked is None else asked
            if 0 <= asked < low:
                self._skipped += low - asked
                _log.error(
                    "%s/%d: up to %d messages were removed by Kafka's retention before they were read",
                    self._topic,
                    number,
                    low - asked,
                    extra={"action": "source_skipped", "partition": number, "count": low - asked},
                )
            else:
                _log.error(
                    "%s/%d: Kafka has no offset %d, only %d to %d: the partition is read from its beginning",
                    self._topic,
                    number,
                    asked,
                    low,
                    high,
                    extra={"action": "source_reset", "partition": number},
                )
            with self._changed:
                # What is under way from before is of no use for a position here.
                self._assignments += 1
                self._owned[number] = self._assignments
                self._started[number] = low
                self._acknowledged.pop(number, None)
                self._committed.pop(number, None)
            # A seek does not wake a partition that has failed.
            self._ready().incremental_unassign([TopicPartition(self._topic, number)])
            self._ready().incremental_assign([TopicPartition(self._topic, number, low)])
        except KafkaException as error:
            raise failure(error.args[0], self._topic, SourceInterruptedError) from None
        return low

    async def _stay(self) -> None:
        """Keep our place in the group while the grid has no room, and nothing is asked for."""
        self._asked_at = time.monotonic()
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 4)
            if time.monotonic() - self._asked_at > _IDLE_SECONDS:
                try:
                    await self._in_thread(self._poll)
                except KafkaException as error:
                    self._untold = error
            else:
                await self._in_thread(self._commit_if_due)

    def _poll(self) -> None:
        if time.monotonic() - self._asked_at <= _IDLE_SECONDS:
            return  # a read went before us
        consumer = self._ready()
        self._paused = consumer.assignment()
        consumer.pause(self._paused)
        # Paused partitions give nothing, but one that is assigned in this very call may.
        if (message := consumer.poll(0)) is not None:
            self._left.append((message, self._assignment_of(message)))
        self._commit_if_due()

    # ------------------------------------------------------------------ positions

    def _due(self) -> list[TopicPartition]:
        with self._changed:
            return [
                TopicPartition(self._topic, partition, offset)
                for partition, offset in self._acknowledged.items()
                if self._committed.get(partition) != offset
            ]

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if self._consumer is None or self._closing or now - self._committed_at < _COMMIT_SECONDS:
            return
        if offsets := self._due():
            self._committed_at = now
            with contextlib.suppress(KafkaException):
                self._consumer.commit(offsets=offsets, asynchronous=True)

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        with self._changed:
            for each in offsets:
                if error is None and each.error is None and each.partition in self._owned:
                    self._committed[each.partition] = each.offset
        for wrong in [error, *(each.error for each in offsets)]:
            if wrong is not None and wrong.code() not in _GONE:
                refusal = permanent(wrong, self._topic)
                self._complaints.refusal = self._complaints.refusal or refusal
                _log.warning("%s: a commit has failed: %s", self._topic, wrong.str())
                return

    # ------------------------------------------------------------------ partitions come and go, in the thread

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in self._positions(partitions):
            if each.offset < 0:
                each.offset = OFFSET_BEGINNING
            next(mine for mine in partitions if mine.partition == each.partition).offset = each.offset
        consumer.incremental_assign(partitions)
        with self._changed:
            for each in partitions:
                self._assignments += 1
                self._owned[each.partition] = self._assignments
                self._started[each.partition] = max(0, each.offset)
                self._acknowledged.pop(each.partition, None)
                self._committed.pop(each.partition, None)
        _log.info("%s: partitions %s came", self._topic, _numbers(partitions), extra={"action": "source_assigned"})

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        with self._changed:
            # Their next owner must not overtake what is under way, if that can be had in a short time.
            self._changed.wait_for(lambda: self._closing or not self._under_way, GIVE_BACK_SECONDS)
        going = {each.partition for each in partitions}
        offsets = [each for each in self._due() if each.partition in going]
        if offsets and not self._complaints.down:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                _log.warning("%s: the last commit has failed: %s", self._topic, error.args[0].str())
        self._forget(partitions)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.warning("%s: partitions %s were given to others", self._topic, _numbers(partitions))
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        with self._changed:
            for each in partitions:
                for kept in (self._owned, self._acknowledged, self._committed):
                    kept.pop(each.partition, None)


def _check_each(partitions: list[TopicPartition]) -> None:
    for each in partitions:
        if each.error is not None:
            raise KafkaException(each.error)


def _partition(message: Message) -> int:
    number = message.partition()
    return -1 if number is None else number


def _numbers(partitions: list[TopicPartition]) -> str:
    return ", ".join(str(each.partition) for each in partitions)
