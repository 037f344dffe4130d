"""Kafka source and sinks through a killed broker and killed processes of their own: real ones of each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager

import msgspec
import pytest
from confluent_kafka import Producer as KafkaProducer

from gridscore.grid import connect
from gridscore.producer.producer import Producer

SECONDS = 180
COMMAND = "from gridscore.cli import main; main()"


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as connected:
        yield connected


class Process:
    """A command of ours that can be killed, and started again."""

    def __init__(self, arguments, log):
        self._arguments = arguments
        self._log = log
        self._running = None

    async def start(self):
        with self._log.open("a") as file:
            self._running = await asyncio.create_subprocess_exec(
                sys.executable, "-c", COMMAND, *self._arguments, stdout=file, stderr=file
            )

    async def kill(self):
        os.kill(self._running.pid, signal.SIGKILL)
        await self._running.wait()

    def check(self):
        assert self._running.returncode is None, self._log.read_text()

    async def end(self):
        if self._running is not None and self._running.returncode is None:
            self._running.kill()
            await self._running.wait()


@pytest.fixture
def process(cluster, kafka, tmp_path):
    """Runs a command for the time of a `with`."""
    connection = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]

    @asynccontextmanager
    async def run(*arguments):
        made = Process([*arguments, "--brokers", kafka.address, *connection], tmp_path / f"{arguments[0]}.log")
        try:
            await made.start()
            yield made
        finally:
            await made.end()

    return run


async def until(condition, *processes):
    """Wait for what a coroutine gives, as long as the processes run."""
    while not await condition():
        for each in processes:
            each.check()
        await asyncio.sleep(0.1)


def produce_slowly(kafka, topic, numbers):
    """Some hundred messages a second, each once in the topic, whatever the broker does."""
    producer = KafkaProducer({**kafka.common, "enable.idempotence": True, "acks": "all", "linger.ms": 5})
    for n in numbers:
        producer.produce(topic, b'{"n":%d}' % n, b"k%d" % n)
        if n % 10 == 0:
            producer.poll(0.02)
    assert producer.flush(SECONDS) == 0


async def restart_broker(kafka):
    await asyncio.to_thread(kafka.broker.kill)
    await asyncio.to_thread(kafka.broker.restart)


async def test_each_message_is_an_event_once_under_its_key(kafka, grid, process, unique):
    topic, to, count = kafka.create(f"clicks-{unique}", 4), f"events.clicks-{unique}", 2_000
    events = await grid.map(to)
    quick = ["--set", "session.timeout.ms=3000", "--set", "heartbeat.interval.ms=500"]

    async def size(wanted):
        return await events.size() >= wanted

    async with (
        asyncio.timeout(SECONDS),
        process("source", "kafka", "--topic", topic, "--to", to, *quick) as source,
    ):
        await asyncio.to_thread(produce_slowly, kafka, topic, range(500))
        await until(lambda: size(250), source)
        producing = asyncio.create_task(asyncio.to_thread(produce_slowly, kafka, topic, range(500, 1_000)))
        await until(lambda: size(510), source)
        await restart_broker(kafka)
        await producing
        await until(lambda: size(1_000), source)
        producing = asyncio.create_task(asyncio.to_thread(produce_slowly, kafka, topic, range(1_000, count)))
        await until(lambda: size(1_010), source)
        await source.kill()
        await source.start()
        await producing
        await until(lambda: size(count), source)
    found = await events.entry_set()
    assert len(found) == count
    assert sorted(json.loads(value.to_string())["n"] for _, value in found) == list(range(count))


async def test_each_result_is_delivered_and_once_to_who_reads_committed(kafka, grid, process, unique):
    map_name, count = f"results.f-{unique}", 2_000
    plain, exact = kafka.create(f"plain-{unique}"), kafka.create(f"exact-{unique}")
    common = ["kafka", "--from", map_name, "--batch", "50"]

    producer = Producer(grid, map_name)

    async def put_slowly(first, end):
        for begin in range(first, end, 10):
            numbers = range(begin, begin + 10)
            await producer.put([(f"k{n}", msgspec.json.encode({"score": n / count, "n": n})) for n in numbers])
            await asyncio.sleep(0.02)

    async def has(topic, wanted):
        return len({each.key() for each in await asyncio.to_thread(kafka.messages, topic)}) >= wanted

    async with (
        asyncio.timeout(SECONDS),
        process("sink", *common, "--topic", plain, "--name", f"plain-{unique}") as one,
        process("sink", *common, "--topic", exact, "--name", f"exact-{unique}", "--transactions") as two,
    ):
        await put_slowly(0, 500)
        await until(lambda: has(plain, 250), one, two)
        await until(lambda: has(exact, 250), one, two)
        putting = asyncio.create_task(put_slowly(500, 1_000))
        await restart_broker(kafka)
        await putting
        await until(lambda: has(plain, 1_000), one, two)
        await until(lambda: has(exact, 1_000), one, two)
        putting = asyncio.create_task(put_slowly(1_000, count))
        await until(lambda: has(exact, 1_010), one, two)
        for each in (one, two):
            await each.kill()
            await each.start()
        await putting
        await until(lambda: has(plain, count), one, two)
        await until(lambda: has(exact, count), one, two)
    expected = {f"k{n}".encode(): n for n in range(count)}
    there = {(each.key(), dict(each.headers())["gridscore.id"]): each.value() for each in kafka.messages(plain)}
    assert {key: json.loads(value)["n"] for (key, _), value in there.items()} == expected
    assert len(there) == count
    committed = kafka.messages(exact)
    assert {each.key(): json.loads(each.value())["n"] for each in committed} == expected
    assert len(committed) == count
