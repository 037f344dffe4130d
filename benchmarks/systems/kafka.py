"""Events in a Kafka topic, results in a Kafka topic: by a plain consumer loop, or by Quix Streams. No grid at all."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # its own door
from filelock import FileLock

from benchmarks.features import Result
from benchmarks.systems.base import System
from gridscore.errors import GridscoreError
from gridscore.grid.artifacts import cache_folder
from gridscore.leash import LeashedProcess
from gridscore.testing.kafka import Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from benchmarks.systems.base import Bed

PARTITIONS = 8
QUIX_VERSION = "3.28.1"

_BACKLOG = "events"
_WARM_UP = "w"
"""Key of events that only show that the system is there; no other is as short."""

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_WATCH_SECONDS = 0.1
_SEEN_AT_ONCE = 1_000
_READ_AT_ONCE = 10_000


class _Kafka(System):
    """What both have in common: the broker, its topics, and processes that go from one to the other.

    A run writes to a topic of its own, with a consumer group of its own. The backlog is in a topic that all runs read
    from its beginning; live events have a topic of the run.
    """

    in_grid = False
    module: str
    processes: int = 1

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self._runs = 0
        self._broker: Broker | None = None
        self._admin: AdminClient | None = None
        self._producer: Producer | None = None
        self._loops: list[LeashedProcess] = []
        self._topics: list[str] = []  # of the run
        self._events, self._results = _BACKLOG, ""
        self._before = 0
        self._watch: _Watch | None = None
        self._error: KafkaError | None = None

    async def prepare(self) -> None:
        """Start the broker, and put the backlog into its topic."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.bed.folder))
        self._broker = await asyncio.to_thread(Broker.start, folder, on_progress=self.bed.progress)
        # Errors only: that topics go is not news.
        servers: dict[str, Any] = {"bootstrap.servers": self._broker.address, "log_level": 3}
        self._admin = AdminClient(servers)
        self._producer = Producer(
            {
                **servers,
                "acks": "all",
                "linger.ms": 0,
                "queue.buffering.max.messages": 1_000_000,
                "on_delivery": self._delivered,
                "delivery.report.only.error": True,
            }
        )
        await self._create(_BACKLOG)
        count = round(self.bed.work.count * self.share)
        self.bed.progress(f"{self.name}: putting {count:,} events into a topic")
        await asyncio.to_thread(self._produce, _BACKLOG, self.bed.work.events(count))

    async def start(self, *, backlog: bool) -> None:
        """Create the topics of the run and start its processes; for live events, see some through."""
        self._runs += 1
        self._results = f"results-{self._runs}"
        self._events = _BACKLOG if backlog else f"live-{self._runs}"
        self._topics = [self._results] if backlog else [self._events, self._results]
        await self._create(*self._topics)
        group = f"{self.name}-{self._runs}"
        address = self._running().address
        for number in range(self.processes):
            arguments = [address, group, self._events, self._results, str(self.bed.files), *self.more_arguments()]
            log = self.bed.folder / f"{group}-{number}.log"
            self._loops.append(LeashedProcess(self.module, arguments, log))
        deadline = time.monotonic() + _WAIT_SECONDS
        while not all("ready" in loop.log_file.read_text(encoding="utf-8").split() for loop in self._loops):
            await self._pause(deadline)
        self._before, self._error = 0, None
        if not backlog:
            await self._warm_up(deadline)

    async def _warm_up(self, deadline: float) -> None:
        """See an event of each partition through: the group is whole then, and its connections are."""
        [(_, text)] = self.bed.work.events(1)
        for partition in range(PARTITIONS):
            self._ready_producer().produce(self._events, text, _WARM_UP, partition)
        while await self.results() < PARTITIONS:
            await self._pause(deadline)
        self._before = PARTITIONS

    async def _pause(self, deadline: float) -> None:
        await self.check()
        if time.monotonic() > deadline:
            lines = "\n".join(loop.last_lines() for loop in self._loops)
            raise GridscoreError(f"{self.title} does not score after {_WAIT_SECONDS:.0f} s. Its last lines:\n{lines}")
        await asyncio.sleep(_LOOK_SECONDS)

    def more_arguments(self) -> list[str]:
        """For the module, behind those that both take."""
        return []

    async def results(self) -> int:
        """Offsets given away in the topic of results."""
        return sum((await self._high_watermarks()).values()) - self._before

    async def scores(self, numbers: Collection[int]) -> dict[int, float]:
        """Read the topic of results from its beginning, until all of them are found."""
        ends = await self._high_watermarks()
        return await asyncio.to_thread(self._read_scores, {b"e%d" % number for number in numbers}, ends)

    def _read_scores(self, wanted: set[bytes], ends: dict[int, int]) -> dict[int, float]:
        left = sum(ends.values())
        found: dict[int, float] = {}
        consumer = Consumer({"bootstrap.servers": self._running().address, "group.id": "scores"})
        consumer.assign([TopicPartition(self._results, partition, 0) for partition in ends])
        try:
            while left > 0 and len(found) < len(wanted):
                messages = consumer.consume(min(left, _READ_AT_ONCE), _WAIT_SECONDS)
                if not messages:
                    break
                left -= len(messages)
                for message in messages:
                    key: Any = message.key()
                    if key in wanted and message.error() is None:
                        found[int(key[1:])] = msgspec.json.decode(message.value() or b"", type=Result).score
        finally:
            consumer.close()
        return found

    async def _high_watermarks(self) -> dict[int, int]:
        asked = {TopicPartition(self._results, p): OffsetSpec.latest() for p in range(PARTITIONS)}  # type: ignore[no-untyped-call]
        answers = self._ready_admin().list_offsets(asked)
        found: list[Any] = await asyncio.gather(*map(asyncio.wrap_future, answers.values()))
        return {asked.partition: answer.offset for asked, answer in zip(answers, found, strict=True)}

    async def stop(self) -> None:
        """End the processes and the watch, and delete the topics of the run."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            await asyncio.to_thread(watch.close)
        while self._loops:
            await asyncio.to_thread(self._loops.pop().stop)
        if self._topics and self._broker is not None and self._broker.alive:
            topics, self._topics = self._topics, []
            await asyncio.to_thread(self._ready_producer().flush, _WAIT_SECONDS)  # no event may follow its topic
            await _all(self._ready_admin().delete_topics(topics).values())

    async def close(self) -> None:
        """End everything."""
        try:
            with contextlib.suppress(KafkaException):
                await self.stop()
        finally:
            if self._broker is not None:
                broker, self._broker = self._broker, None
                self._producer = self._admin = None
                await asyncio.to_thread(broker.stop)

    def pids(self) -> list[int]:
        """The loops."""
        return [loop.pid for loop in self._loops]

    def service_pids(self) -> list[int]:
        """The broker."""
        return [self._running().pid]

    async def watch(self, seen: Callable[[int], None]) -> None:
        """Consume the topic of results, in a thread; `seen` is called in the event loop. After a start without backlog.

        It returns when what warmed up the run has been seen: the watch's own connections are there then.
        """
        self._watch = _Watch(self._running().address, self._results, seen)
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._watch.warm < PARTITIONS:
            await self._pause(deadline)

    def send(self, number: int, text: bytes) -> None:
        """Produce one message that does not linger; `check` raises if it has failed."""
        producer = self._ready_producer()
        producer.produce(self._events, text, f"e{number}")
        producer.poll(0)

    async def check(self) -> None:
        """Raise if a process, the broker or the watch has ended, or an event could not be sent.

        Raises:
            GridscoreError: With the last lines, or the error.
        """
        for loop in self._loops:
            if loop.exit_code is not None:
                raise GridscoreError(f"{self.title} ended. Its last lines:\n{loop.last_lines()}")
        broker = self._running()
        if not broker.alive:
            raise GridscoreError(f"The Kafka broker ended. Its last lines:\n{broker.last_lines()}")
        error = self._error or (self._watch and self._watch.error)
        if error is not None:
            raise GridscoreError(f"{self.title}: {error}")

    def _running(self) -> Broker:
        if self._broker is None:
            raise GridscoreError(f"{self.title} has not been prepared.")
        return self._broker

    def _ready_admin(self) -> AdminClient:
        if self._admin is None:
            raise GridscoreError(f"{self.title} has not been prepared.")
        return self._admin

    def _ready_producer(self) -> Producer:
        if self._producer is None:
            raise GridscoreError(f"{self.title} has not been prepared.")
        return self._producer

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        self._error = self._error or error

    def _produce(self, topic: str, events: Iterable[tuple[str, bytes]]) -> None:
        producer = self._ready_producer()
        for key, text in events:
            while True:
                try:
                    producer.produce(topic, text, key)
                    break
                except BufferError:
                    producer.poll(_LOOK_SECONDS)
        producer.flush()
        if self._error is not None:
            raise GridscoreError(f"The events could not be put into a topic: {self._error}")

    async def _create(self, *topics: str) -> None:
        made = self._ready_admin().create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
        await _all(made.values())
        # The answer comes when the controller has decided; a client may still be told that there is no such topic.
        deadline = time.monotonic() + _WAIT_SECONDS
        for topic in topics:
            while not await asyncio.to_thread(self._has_leaders, topic):
                await self._pause(deadline)

    def _has_leaders(self, topic: str) -> bool:
        found = self._ready_admin().list_topics(topic, timeout=_WAIT_SECONDS).topics[topic]
        return len(found.partitions) == PARTITIONS and all(p.leader >= 0 for p in found.partitions.values())


class KafkaConsumer(_Kafka):
    """A plain consumer loop; see `kafka_loop`."""

    name = "kafka-consumer"
    title = "Kafka topic to topic, a plain consumer loop"
    tuning = (
        f"One broker (KRaft, 1 GB of heap), {PARTITIONS} partitions, acks=all. A confluent-kafka consumer takes one "
        "event as soon as it comes and with it all that are there, up to 4,096, and prefetches 100,000. They are "
        "scored as one batch, with one thread. Results go to the partition of their event, by an idempotent "
        "producer that lingers 1 ms. Offsets are committed once a second, after a flush: at least once."
    )
    module = "benchmarks.systems.kafka_loop"


class QuixStreams(_Kafka):
    """Quix Streams; see `quix_loop`. It wants older releases of what we use: it lives in a folder of its own."""

    name = "quix-streams"
    title = "Kafka topic to topic, Quix Streams"
    tuning = (
        f"Quix Streams {QUIX_VERSION} on the same broker, topics and client settings. Its documented way, a function "
        "applied to each event, would be a prediction an event; instead a sink gathers events, and at each "
        "checkpoint scores them as one batch, writes and flushes the results, before offsets are committed. A "
        "checkpoint is every 4,096 events or 20 ms."
    )
    module = "benchmarks.systems.quix_loop"
    share = 0.3

    async def prepare(self) -> None:
        """Install Quix Streams, if it is not there yet; start the broker, and put the backlog into its topic."""
        await asyncio.to_thread(quix_folder, self.bed.progress)
        await super().prepare()

    def more_arguments(self) -> list[str]:
        """Where Quix Streams is, and where it may write."""
        return [str(quix_folder(self.bed.progress)), str(self.bed.folder / "quix-state")]


class _Watch:
    """A thread that consumes results and hands their numbers to the event loop.

    Attributes:
        error: Why it ended by itself, if it did.
        warm: Results of warm-up events that it has seen.
    """

    def __init__(self, broker: str, topic: str, seen: Callable[[int], None]) -> None:
        self.error: KafkaError | None = None
        self.warm = 0
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": "watch",
                "enable.auto.commit": False,
                "fetch.min.bytes": 1,
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        self._loop = asyncio.get_running_loop()
        self._seen = seen
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        consume, call = self._consumer.consume, self._loop.call_soon_threadsafe
        while not self._closed:
            messages = consume(1, _WATCH_SECONDS)  # it waits until it has as many as it may return
            if not messages:
                continue
            messages += consume(_SEEN_AT_ONCE, 0)
            numbers = []
            for message in messages:
                if (error := message.error()) is not None:
                    self.error = error
                    return
                key: Any = message.key()
                if len(key) > 1:
                    numbers.append(int(key[1:]))
                else:
                    self.warm += 1
            call(self._tell, numbers)

    def _tell(self, numbers: list[int]) -> None:
        for number in numbers:
            self._seen(number)


def quix_folder(progress: Callable[[str], None]) -> Path:
    """Where Quix Streams is installed, with what it needs; the first call installs it.

    Not into our own environment: it allows pydantic and confluent-kafka only below the releases that are there.

    Raises:
        GridscoreError: It cannot be installed.
    """
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / f"quixstreams-{QUIX_VERSION}-{python}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        progress(f"Installing Quix Streams {QUIX_VERSION} into a folder of its own (about 100 MB, only once)")
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "packages"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(made)]
            done = subprocess.run(
                [*command, f"quixstreams=={QUIX_VERSION}"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise GridscoreError(
                    f"Quix Streams {QUIX_VERSION} cannot be installed:\n{done.stdout}{done.stderr}",
                    "Leave it out of the comparison, or see to pip's network.",
                )
            made.rename(folder)
    return folder


async def _all(futures: Iterable[Any]) -> None:
    await asyncio.gather(*map(asyncio.wrap_future, futures))
