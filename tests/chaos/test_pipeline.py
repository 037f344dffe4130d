"""From a topic, by scores, to a table and two topics, while everything on the way is killed with -9 and started again.

Killed are the source, the worker, a sink of each kind, the database and the broker, each while events flow, and the
next only when results have come through to all three destinations again. The ordinary form takes a minute or two;
GRIDSCORE_PIPELINE_EVENTS=200000 makes it the full one, which kills everything twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack

import msgspec
import pytest
from confluent_kafka import Producer
from servers import not_here

from gridscore.client import connect
from gridscore.errors import MemberError
from gridscore.grid import transport
from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.leash import LeashedProcess
from gridscore.operations.sink_status import sink_statuses
from gridscore.operations.status import lag
from gridscore.proving.soak.checker import expected_scores
from gridscore.proving.soak.evidence import Acknowledged
from gridscore.proving.soak.workload import booster, customers, event, soak_job
from gridscore.testing.postgres import PostgresServer

EVENTS = int(os.environ.get("GRIDSCORE_PIPELINE_EVENTS", "20000"))
FULL = EVENTS >= 200_000
SEED = 7
MOST = 800_000  # what the journals hold, with room to spare
RECOVERY_SECONDS = 120.0
READY = "Ctrl-C"  # what a process prints when it is there


class Part:
    """A process of `gridscore`, which can be killed and started again."""

    def __init__(self, name, arguments, folder):
        self.name = name
        self._arguments = arguments
        self._folder = folder
        self._process = None
        self._starts = 0

    def start(self):
        log = self._folder / f"{self.name}-{self._starts}.log"
        self._process = LeashedProcess("gridscore.cli", self._arguments, log)
        self._starts += 1

    def check(self):
        """It runs, unless it was killed."""
        code = self._process.exit_code
        assert code is None, f"{self.name} has ended with {code}:\n{self._process.last_lines()}"

    async def kill_and_restart(self):
        self.check()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.stop()
        self.start()
        await until(lambda: READY in self._process.log_file.read_text(), self)

    async def leave(self):
        """End it in order."""
        self.check()
        os.kill(self._process.pid, signal.SIGTERM)
        await until(lambda: self._process.exit_code is not None)
        assert self._process.exit_code == 0, self._process.last_lines()

    def stop(self):
        if self._process is not None:
            self._process.stop()


class Feed:
    """Produces events to a topic, from a thread, until it is told to stop and has produced enough.

    The pace is steady, and a quarter of that when there are enough, for as long as it takes to kill everything.
    """

    def __init__(self, address, topic, rate):
        self._address, self._topic, self._rate = address, topic, rate
        self._enough = threading.Event()
        self._given_up = threading.Event()
        self.produced = self.acknowledged = 0
        self.errors = []

    def run(self):
        producer = Producer(
            {
                "bootstrap.servers": self._address,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                "reconnect.backoff.max.ms": 500,
                "queue.buffering.max.messages": MOST,
            }
        )
        began = time.monotonic()
        while not self._given_up.is_set() and (self.produced < EVENTS or not self._enough.is_set()):
            due = (time.monotonic() - began) * self._rate
            due = min(MOST, int(due if due < EVENTS else EVENTS + (due - EVENTS) / 4))
            for number in range(self.produced, due):
                each = event(SEED, number)
                producer.produce(self._topic, each.text, each.key, on_delivery=self._delivered)
            self.produced = max(self.produced, due)
            producer.poll(0.01)
        assert self._given_up.is_set() or producer.flush(60) == 0

    def _delivered(self, error, _message):
        if error is None:
            self.acknowledged += 1
        else:
            self.errors.append(error)

    def stop(self):
        self._enough.set()

    def give_up(self):
        self._given_up.set()


async def until(condition, *parts, seconds=RECOVERY_SECONDS):
    """Wait for a condition, asynchronous or not, as long as these processes run."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            for part in parts:
                part.check()
            await asyncio.sleep(0.05)


class Line:
    """Everything between the topic of events and the destinations of results."""

    def __init__(self, name, cluster, kafka, folder):
        self.name = name
        self.topics = [kafka.create(f"{each}-{name}", 3) for each in ("events", "scores", "exact")]
        where = ["--cluster-name", cluster.cluster_name, *(f"--members={member}" for member in cluster.addresses)]
        brokers, (events, scores, exact) = ["--brokers", kafka.address], self.topics
        # A consumer that was killed is missed after its session, ours or Kafka's default.
        quick = ["--set", "session.timeout.ms=3000", "--set", "heartbeat.interval.ms=500"]
        results = ["--from", f"results.{name}"]
        self.sinks = [f"{each}-{name}" for each in ("table", "scores", "exact")]
        table, topic, transactions = (["--name", each] for each in self.sinks)

        def part(*arguments):
            return Part("-".join(arguments[:2]), [*arguments, *where], folder)

        self.parts = [
            part("source", "kafka", *brokers, "--topic", events, "--to", f"events.{name}", *quick),
            part("worker", "--jobs", name),
            part("sink", "postgres", *results, *table, "--database", "${TEST_DATABASE}", "--table", "scores"),
            part("sink", "kafka", *results, *topic, *brokers, "--topic", scores),
            part("sink", "kafka", *results, *transactions, *brokers, "--topic", exact, "--transactions"),
        ]
        for number, each in enumerate(self.parts):
            each.name = f"{number}-{each.name}"

    async def statuses(self, grid):
        return [each for each in await sink_statuses(grid) if each.record.name in self.sinks]

    async def delivered(self, grid):
        """Results that each sink has committed."""
        found = {each.record.name: sum(max(0, p.offset) for p in each.positions) for each in await self.statuses(grid)}
        return [found.get(name, 0) for name in self.sinks]


async def kill_each(line, grid, kafka, server):
    """Kill everything on the way, one after the other, each while results come through to every destination."""

    async def database():
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)

    async def broker():
        await asyncio.to_thread(kafka.broker.kill)
        await asyncio.to_thread(kafka.broker.restart)

    faults = [each.kill_and_restart for each in line.parts] + [database, broker]
    before = [0, 0, 0]

    async def flowing():
        now = await line.delivered(grid)
        return all(there - then >= EVENTS // 200 for there, then in zip(now, before, strict=True))

    for fault in faults * (2 if FULL else 1):
        await until(flowing, *line.parts)
        await fault()
        before = await line.delivered(grid)
    await until(flowing, *line.parts)


async def drained(line, grid, job, count):
    """Whether every event has its result, and all sinks have delivered all results."""
    if await transport.map_size(grid.client, job.job.results) < count or (await lag(grid, job))[0] != 0:
        return False
    return all(each.lag == 0 for each in await line.statuses(grid))


async def written(grid, map_name):
    """Everything that was ever written to a map, from its journal: keys and texts, those of a key in order."""
    journal, found = Journal(grid, map_name), []
    for partition in range(grid.partition_count):
        position, newest = await journal.bounds(partition)
        assert position == 0, "the journal holds everything"
        while position <= newest:
            page = await journal.read(partition, position, 1_000)
            found += [(key[12:].decode(), text) for key, text in zip(page.keys, page.values, strict=True)]
            position = page.next
    return found


def identity(text):
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def place_of(message):
    """How new a result is, by the headers."""
    headers = dict(message.headers())
    return int(headers["gridscore.epoch"]), int(headers["gridscore.sequence"])


@pytest.fixture
def server(tmp_path):
    try:
        started = PostgresServer.start(tmp_path)
    except MemberError as error:
        not_here(f"no PostgreSQL: {error}")
    with started:
        yield started


@pytest.mark.timeout(1_800 if FULL else 600)
async def test_every_event_arrives_once_with_its_score_whatever_is_killed(
    cluster, kafka, server, tmp_path, unique, monkeypatch
):
    monkeypatch.setenv("TEST_DATABASE", server.create_database("shop"))
    name = f"line-{unique}"
    job, lookups = soak_job(name), customers(SEED)
    model = booster(SEED, job.feature_names)
    line = Line(name, cluster, kafka, tmp_path)
    events, scores, exact = line.topics
    feed = Feed(kafka.address, events, EVENTS / 50)
    async with (
        connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client,
        AsyncExitStack() as stack,
    ):
        grid = client.grid
        await client.put_events(f"lookups.{name}", lookups)
        await client.push_model(model, name)
        submitted = await client.submit(job)
        for part in line.parts:
            stack.callback(part.stop)
            part.start()
        feeding = asyncio.create_task(asyncio.to_thread(feed.run))
        stack.callback(feed.give_up)
        await kill_each(line, grid, kafka, server)
        feed.stop()
        await feeding
        assert feed.errors == []
        count = feed.produced
        assert EVENTS <= count == feed.acknowledged
        await until(lambda: drained(line, grid, submitted, count), *line.parts)
        for part in line.parts:
            await part.leave()

        # Nothing was overwritten unread, refused, or put under a second key.
        assert await transport.map_size(grid.client, job.events) == count
        assert await transport.map_size(grid.client, job.results) == count
        assert not any(record.lost for record in (await read_records(grid, name)).values())
        assert [(each.lag, each.lost, each.dead_letters, each.rescans) for each in await line.statuses(grid)] == [
            (0, 0, 0, 0)
        ] * 3
        results = await written(grid, job.results)

    # What a result should say follows from the event alone, by pandas and XGBoost alone.
    ledger = [Acknowledged(0, number, "", event(SEED, number).text) for number in range(count)]
    expected = await asyncio.to_thread(expected_scores, model, lookups, ledger)
    newest = dict(results)
    decoded = {key: msgspec.json.decode(text) for key, text in newest.items()}
    assert sorted(each["n"] for each in decoded.values()) == list(range(count))
    wrong = [
        each
        for each in map(msgspec.json.decode, dict.fromkeys(text for _, text in results))
        if each["score"] != expected[each["n"]]
    ]
    assert wrong == []

    # The table: every event once, with the newest of its results.
    rows = await asyncio.to_thread(server.execute, "SELECT key, result::text FROM scores", "shop")
    assert len(rows) == count
    assert {key: msgspec.json.decode(text) for key, text in rows} == decoded

    # The topic: every result at least once. Key and id tell what came twice, epoch and sequence what is the newest.
    messages = await asyncio.to_thread(kafka.messages, scores)
    told = {(each.key().decode(), dict(each.headers())["gridscore.id"].decode()) for each in messages}
    assert told == {(key, identity(text)) for key, text in results}
    last = {each.key().decode(): each.value() for each in sorted(messages, key=place_of)}
    assert last == newest

    # The topic with transactions: every result exactly once, for who reads what is committed.
    committed = await asyncio.to_thread(kafka.messages, exact)
    assert Counter((each.key().decode(), each.value()) for each in committed) == Counter(results)
    print(  # noqa: T201 -- shown if it fails, or on demand
        f"{count:,} events, {len(results):,} results, {len(messages):,} messages, {len(committed):,} with transactions"
    )
