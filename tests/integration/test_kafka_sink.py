"""The Kafka sink against a real broker and a real member, driven as the runner drives it, and by the real runner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
import scoring
from confluent_kafka import KafkaException
from kafka_server import PASSWORD, USER

from gridscore.grid import connect
from gridscore.grid.journal import Journal
from gridscore.kafka import KafkaRefusedError
from gridscore.producer.producer import Producer
from gridscore.sinks.base import Delivered, Delivery, SinkInterruptedError
from gridscore.sinks.kafka import sink as kafka_module
from gridscore.sinks.kafka.settings import KafkaSinkSettings
from gridscore.sinks.kafka.sink import KafkaSink, headers_of

SECONDS = 60
FOREVER = float("inf")


@pytest.fixture
def topic(kafka, unique):
    return kafka.create(f"scores-{unique}")


@pytest.fixture
def settings(kafka, topic, unique):
    def make(**more):
        given = {"results": f"results.k-{unique}", "brokers": [kafka.address], "topic": topic, **more}
        return KafkaSinkSettings(**given)

    return make


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as connected:
        yield connected


@asynccontextmanager
async def opened(settings, grid=None, identity="one"):
    sink = KafkaSink(grid, "scores", settings)
    sink.identity = identity
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


def result(key, sequence=0, *, epoch=1, partition=0, size=0):
    value = {"score": 0.5, "decision": "decline", "model": "fraud", "version": 3, "sequence": 7, "pad": "x" * size}
    return Delivered(key, msgspec.json.encode(value), value, partition, sequence, epoch)


def delivery(results, until=FOREVER):
    offsets = {each.partition: each.sequence + 1 for each in results}
    return Delivery(results, offsets, until)


async def test_a_delivery_is_in_the_topic_when_it_returns_with_key_and_headers(kafka, topic, settings):
    async with opened(settings()) as sink:
        assert await sink.deliver(delivery([result("a", 4, epoch=9), result(12)])) == []
        found = {each.key(): each for each in kafka.messages(topic)}
    assert found.keys() == {b"a", b"12"}
    assert found[b"a"].value() == result("a").text
    headers = dict(found[b"a"].headers())
    assert len(headers.pop("gridscore.id")) == 24
    assert headers == {
        "gridscore.epoch": b"9",
        "gridscore.sequence": b"4",
        "gridscore.decision": b"decline",
        "gridscore.model": b"fraud",
        "gridscore.version": b"3",
    }


async def test_what_comes_again_has_the_same_id(kafka, topic, settings):
    async with opened(settings()) as sink:
        await sink.deliver(delivery([result("a", 4, epoch=1)]))
        await sink.deliver(delivery([result("a", 4, epoch=2)]))
    ids = [dict(each.headers())["gridscore.id"] for each in kafka.messages(topic)]
    assert len(ids) == 2
    assert len(set(ids)) == 1


@pytest.mark.parametrize("transactions", [False, True])
async def test_what_is_too_large_is_refused_and_its_neighbours_are_delivered(kafka, settings, unique, transactions):
    small = kafka.create(f"small-{unique}-{transactions}", 1, **{"max.message.bytes": "3000"})
    results = [result(f"k{n}", n, size=5_000 if n == 7 else 2_000_000 if n == 8 else 10) for n in range(40)]
    async with opened(settings(topic=small, transactions=transactions)) as sink:
        refused = await sink.deliver(delivery(results))
    assert {each.result.key for each in refused} == {"k7", "k8"}
    assert {each.key().decode() for each in kafka.messages(small)} == {f"k{n}" for n in range(40)} - {"k7", "k8"}


async def test_what_is_refused_while_its_transaction_is_filled_spoils_no_delivery(kafka, settings, unique, monkeypatch):
    small = kafka.create(f"small-{unique}", 1, **{"max.message.bytes": "3000"})
    results = [result(f"k{n}", n, size=5_000 if n == 7 else 10) for n in range(20)]
    paused = []

    def headers(each):
        if each.sequence == 12 and not paused:
            paused.append(time.sleep(2))  # the broker refuses the seventh meanwhile
        return headers_of(each)

    monkeypatch.setattr(kafka_module, "headers_of", headers)
    async with opened(settings(topic=small, transactions=True)) as sink:
        refused = await sink.deliver(delivery(results))
    assert [each.result.key for each in refused] == ["k7"]
    assert {each.key().decode() for each in kafka.messages(small)} == {f"k{n}" for n in range(20)} - {"k7"}


async def test_after_the_leases_nothing_is_sent(kafka, topic, settings):
    async with opened(settings()) as sink:
        with pytest.raises(SinkInterruptedError, match="leases"):
            await sink.deliver(delivery([result("a")], time.monotonic()))
    assert kafka.messages(topic) == []


async def fails(settings):
    """The message of what is permanent."""
    with pytest.raises(KafkaRefusedError) as info:
        async with opened(settings):
            pass
    return str(info.value)


async def test_what_cannot_heal_stops_it_with_one_message(kafka, topic, settings, unique):
    assert f"There is no topic `nope-{unique}`" in await fails(settings(topic=f"nope-{unique}"))
    sasl = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER}
    address = [kafka.broker.sasl_address]
    assert "refuses the credentials" in await fails(settings(brokers=address, set={**sasl, "sasl.password": "x"}))
    tls = {"security.protocol": "SSL"}
    assert "certificate" in await fails(settings(brokers=[kafka.broker.tls_address], set=tls))
    kafka.deny(topic, USER)
    assert "does not allow" in await fails(settings(brokers=address, set={**sasl, "sasl.password": PASSWORD}))


async def test_a_broker_that_is_away_may_come_back(settings):
    with pytest.raises(SinkInterruptedError, match="No broker of Kafka can be reached"):
        async with opened(settings(brokers=["127.0.0.1:1"])):
            pass


async def test_a_broker_that_goes_away_while_there_is_nothing_to_deliver_is_seen(kafka, settings):
    async with opened(settings()) as sink:
        await sink.look()
        await asyncio.to_thread(kafka.broker.kill)
        try:
            for _ in range(2):
                with pytest.raises(SinkInterruptedError):
                    await sink.look()
        finally:
            await asyncio.to_thread(kafka.broker.restart)
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    await sink.look()
                except SinkInterruptedError:
                    continue  # it takes some seconds itself
                break


# ---------------------------------------------------------------------- transactions


async def put(grid, map_name, count):
    texts = [(f"k{n}", result(f"k{n}").text[:-1] + b',"n":%d}' % n) for n in range(count)]
    await Producer(grid, map_name).put(texts)


async def in_journal(grid, map_name, epoch=1):
    """Everything in the journal, by partition."""
    journal, found = Journal(grid, map_name), {}
    for partition in range(grid.partition_count):
        oldest, newest = await journal.bounds(partition)
        if newest < oldest:
            continue
        page = await journal.read(partition, oldest, 1_000)
        found[partition] = [
            Delivered(f"p{partition}s{sequence}", text, msgspec.json.decode(text), partition, sequence, epoch)
            for sequence, text in zip(page.sequences, page.values, strict=True)
        ]
    return found


def all_of(found, beginning=None):
    return [
        each for part in found.values() for each in part if each.sequence >= (beginning or {}).get(each.partition, 0)
    ]


async def test_who_takes_over_goes_on_where_the_dead_one_committed(kafka, topic, settings, grid, unique):
    map_name = f"results.k-{unique}"
    await put(grid, map_name, 60)
    found = await in_journal(grid, map_name)
    half = {partition: part[: (len(part) + 1) // 2] for partition, part in found.items()}
    async with opened(settings(transactions=True), grid, "dead") as dead:
        assert await dead.taken(dict.fromkeys(found, "")) == {}
        await dead.deliver(delivery(all_of(half)))
    async with opened(settings(transactions=True), grid, "heir") as heir:
        positions = await heir.taken(dict.fromkeys(found, "dead"))
        assert positions == {partition: part[-1].sequence + 1 for partition, part in half.items()}
        await heir.deliver(delivery(all_of(found, positions)))
    assert sorted(each.key().decode() for each in kafka.messages(topic)) == sorted(each.key for each in all_of(found))


async def test_a_zombie_whose_reports_come_behind_its_fatal_error_begins_anew(topic, settings, grid, unique):
    map_name = f"results.k-{unique}"
    await put(grid, map_name, 20)
    found = await in_journal(grid, map_name)
    async with (
        opened(settings(transactions=True), grid, "zombie") as zombie,
        opened(settings(transactions=True), grid, "heir") as heir,
    ):
        await zombie.deliver(delivery([result("first", -1)]))
        assert await heir.taken(dict.fromkeys(found, "zombie")) == {}
        producer = zombie._producer
        producer.begin_transaction()

        def is_fatal():
            try:
                producer.produce(topic, b"{}", "late")  # takes no reports
            except KafkaException:
                return True
            return False

        await scoring.until(is_fatal)
        with pytest.raises(SinkInterruptedError):
            await zombie.deliver(delivery([result("later", -1)]))
        await zombie.deliver(delivery([result("later", -1)]))


async def test_a_zombie_commits_nothing_once_its_partitions_were_taken(kafka, topic, settings, grid, unique):
    map_name = f"results.k-{unique}"
    await put(grid, map_name, 20)
    found = await in_journal(grid, map_name)
    async with (
        opened(settings(transactions=True), grid, "zombie") as zombie,
        opened(settings(transactions=True), grid, "heir") as heir,
    ):
        await zombie.deliver(delivery([result("first", -1)]))
        zombie._producer.begin_transaction()
        zombie._producer.produce(topic, b"{}", "late")  # and here it is paused
        assert await heir.taken(dict.fromkeys(found, "zombie")) == {}
        await heir.deliver(delivery(all_of(found)))
        with pytest.raises(Exception, match=r"(?i)fence"):
            await asyncio.to_thread(zombie._producer.commit_transaction, 10)
        with pytest.raises(SinkInterruptedError):
            await zombie.deliver(delivery([result("later", -1)]))
        await zombie.deliver(delivery([result("again mine", -1)]))  # what it still holds goes on
    keys = [each.key().decode() for each in kafka.messages(topic)]
    assert sorted(keys) == sorted(["first", "again mine", *(each.key for each in all_of(found))])


async def test_a_position_of_another_journal_is_not_used(settings, grid, unique):
    map_name = f"results.k-{unique}"
    await put(grid, map_name, 60)
    found = await in_journal(grid, map_name)
    other = {  # the same sequences, other results: a journal that has begun again
        partition: [each._replace(text=each.text.replace(b"decline", b"approve")) for each in part]
        for partition, part in found.items()
    }
    async with opened(settings(transactions=True), grid, "dead") as dead:
        await dead.deliver(delivery(all_of(other)))
    async with opened(settings(transactions=True), grid, "heir") as heir:
        assert await heir.taken(dict.fromkeys(found, "dead")) == {}
        assert await heir.taken({1_000_000: "dead"}) == {}


async def test_a_commit_whose_answer_was_lost_is_not_made_twice(kafka, topic, settings, monkeypatch):
    results = [result(f"k{n}", n) for n in range(10)]
    async with opened(settings(transactions=True)) as sink:
        await sink.deliver(delivery([result("first", 0, partition=1)]))
        transactions = sink._transactions
        commit = transactions._commit

        def lost(producer):
            commit(producer)
            raise SinkInterruptedError("no answer")

        monkeypatch.setattr(transactions, "_commit", lost)
        with pytest.raises(SinkInterruptedError):
            await sink.deliver(delivery(results))
        monkeypatch.setattr(transactions, "_commit", commit)
        for again in (results[:3], results[3:]):  # the runner makes smaller what took too long
            await sink.deliver(delivery(again))
        await sink.deliver(delivery([result("last", 10)]))
    keys = sorted(each.key().decode() for each in kafka.messages(topic))
    assert keys == sorted(["first", "last", *(each.key for each in results)])


async def test_positions_are_read_when_the_transactions_of_before_have_ended(settings, grid, unique, monkeypatch):
    map_name = f"results.k-{unique}"
    await put(grid, map_name, 20)
    found = await in_journal(grid, map_name)
    written, go_on = threading.Event(), threading.Event()
    async with (
        opened(settings(transactions=True), grid, "leaver") as leaver,
        opened(settings(transactions=True), grid, "heir") as heir,
    ):
        commit = leaver._transactions._commit

        def slow(producer):
            producer.flush(10)
            written.set()
            go_on.wait(SECONDS)
            commit(producer)

        monkeypatch.setattr(leaver._transactions, "_commit", slow)
        delivering = asyncio.create_task(leaver.deliver(delivery(all_of(found))))
        try:
            assert await asyncio.to_thread(written.wait, SECONDS)
            # Given back in good order, so that nobody is fenced.
            taking = asyncio.create_task(heir.taken(dict.fromkeys(found, "")))
            assert (await asyncio.wait({taking}, timeout=3))[0] == set()
        finally:
            go_on.set()
        await delivering
        assert await taking == {partition: part[-1].sequence + 1 for partition, part in found.items()}


SINK = "from gridscore.cli import main; main()"


async def test_killed_sinks_leave_each_result_once_for_who_reads_committed(kafka, topic, grid, cluster, unique):
    map_name, count = f"results.k-{unique}", 6_000
    command = [sys.executable, "-c", SINK, "sink", "kafka", "--from", map_name, "--brokers", kafka.address]
    command += ["--topic", topic, "--name", f"s-{unique}", "--transactions", "--batch", "100"]
    command += ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]

    def start():
        return asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )

    def keys():
        return [each.key().decode() for each in kafka.messages(topic)]

    await put(grid, map_name, count)
    async with asyncio.timeout(SECONDS):
        sink = await start()
        try:
            for most in (500, 2_500):
                while len(seen := await asyncio.to_thread(keys)) < most:
                    assert sink.returncode is None
                    await asyncio.sleep(0.05)
                os.kill(sink.pid, signal.SIGKILL)
                await sink.wait()
                sink = await start()
            while len(seen := await asyncio.to_thread(keys)) < count:
                assert sink.returncode is None
                await asyncio.sleep(0.2)
        finally:
            if sink.returncode is None:
                sink.terminate()
                await sink.wait()
    seen = await asyncio.to_thread(keys)
    assert len(seen) == count
    assert set(seen) == {f"k{n}" for n in range(count)}
