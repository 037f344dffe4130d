"""The Kafka source against a real broker, driven as the runner drives it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, asynccontextmanager

import pytest
import source_reading
from confluent_kafka import KafkaError, KafkaException
from kafka_server import PASSWORD, USER
from source_reading import read

from gridscore.dead_letters.letters import POSITIONS_MAP
from gridscore.grid import Records
from gridscore.kafka import KafkaRefusedError
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.kafka.settings import KafkaSourceSettings
from gridscore.sources.kafka.source import KafkaSource
from gridscore.sources.position import forget_all
from gridscore.testing import StubCluster

SECONDS = 30


@pytest.fixture
def topic(kafka, unique):
    return kafka.create(f"clicks-{unique}")


@pytest.fixture
def settings(kafka, topic):
    def make(**more):
        given = {"to": "events.clicks", "brokers": [kafka.address], "topic": topic, **more}
        return KafkaSourceSettings(**given)

    return make


@pytest.fixture
async def grid():
    """Where a source that does not begin at the oldest keeps that it has begun."""
    async with StubCluster() as cluster:
        yield await cluster.connect()


@asynccontextmanager
async def opened(settings, name="s", grid=None):
    async with StubCluster(partitions=2) as cluster:
        grid = grid or await cluster.connect()
        async with source_reading.opened(KafkaSource(grid, name, settings)) as source:
            yield source


def numbered(first, count):
    return [(f"k{n}".encode(), b'{"n":%d}' % n) for n in range(first, first + count)]


async def test_what_is_acknowledged_is_not_read_again_and_what_is_not_is(kafka, topic, settings):
    kafka.produce(topic, numbered(0, 10))
    async with opened(settings()) as source:
        entries, poison = await read(source, 10)
        assert not poison
        assert len(dict(entries)) == 10
    assert sum(kafka.committed(topic, "s").values()) == 10
    kafka.produce(topic, numbered(10, 5))
    async with opened(settings()) as source:
        seen, _ = await read(source, 5, acknowledge=False)
    async with opened(settings()) as source:
        again, _ = await read(source, 5)
    assert sorted(seen) == sorted(again)
    assert {text for _, text in again} == {text for _, text in numbered(10, 5)}


async def test_a_group_goes_back_once_when_the_grid_was_restored(kafka, topic, settings, grid):
    kafka.produce(topic, numbered(0, 4), partition=0)
    kafka.produce(topic, numbered(4, 4), partition=1)
    async with opened(settings(), grid=grid) as source:
        assert source.positions() == {}
        await read(source, 8)
        assert source.positions() == {f"{topic} s": {"0": 4, "1": 4}}
    restored = {"writer": "backup", "position": {"begun": True, "restored": {"0": 3, "1": 9}}}
    await Records(grid, POSITIONS_MAP).put(f"s/{topic} s", restored)
    async with opened(settings(), grid=grid) as source:
        assert {text for _, text in (await read(source, 1))[0]} == {b'{"n":3}'}
    kafka.produce(topic, numbered(8, 1), partition=0)
    async with opened(settings(), grid=grid) as source:
        assert {text for _, text in (await read(source, 1))[0]} == {b'{"n":8}'}


async def test_origins_are_the_keys_unless_the_message_says(kafka, topic, settings):
    kafka.produce(topic, [(b"a", b'{"n":1}'), (b"a", None), (b"b", b"no json"), (None, b"{}")], partition=1)
    async with opened(settings(), "origins") as source:
        entries, poison = await read(source, 4)
    assert entries == [(f"{topic}-1-0", b'{"n":1}'), (f"{topic}-1-1", None), (f"{topic}-1-3", b"{}")]
    assert [(each.origin, each.key, each.raw) for each in poison] == [(f"{topic}/1@2", f"{topic}-1-2", b"no json")]
    async with opened(settings(message_key=True), "messages") as source:
        entries, poison = await read(source, 4)
    assert entries == [("a", b'{"n":1}'), ("a", None)]
    assert [each.error for each in poison][1] == "it has no key, and the key is to be the message's"


async def test_poison_alone_moves_the_position_too(kafka, topic, settings):
    kafka.produce(topic, [(None, b"x")] * 3, partition=0)
    async with opened(settings()) as source:
        assert len((await read(source, 3))[1]) == 3
    assert kafka.committed(topic, "s") == {0: 3}


async def test_latest_means_from_now_on_even_after_a_crash_before_the_first_event(kafka, topic, settings, grid):
    kafka.produce(topic, numbered(0, 5))
    async with opened(settings(start="latest"), grid=grid):
        pass
    kafka.produce(topic, numbered(5, 3))
    async with opened(settings(start="latest"), grid=grid) as source:
        entries, _ = await read(source, 3)
    assert {text for _, text in entries} == {text for _, text in numbered(5, 3)}


async def test_a_group_that_kafka_has_lost_passes_nothing_over(kafka, topic, settings, grid, caplog):
    async with opened(settings(start="latest"), grid=grid) as source:
        await read_until(source, lambda: kafka.produce(topic, numbered(0, 1)))
    kafka.produce(topic, numbered(1, 3))
    await asyncio.to_thread(kafka.forget_group, "s")
    async with opened(settings(start="latest"), grid=grid) as source:
        entries, _ = await read(source, 4)
    assert {text for _, text in entries} >= {text for _, text in numbered(1, 3)}
    assert "Kafka has lost the positions of the group `s`" in caplog.text
    # Whoever wants the end again has it forgotten.
    await asyncio.to_thread(kafka.forget_group, "s")
    assert await forget_all(grid, "s") == 1
    async with opened(settings(start="latest"), grid=grid) as source:
        entries, _ = await read_until(source, lambda: kafka.produce(topic, numbered(9, 1)))
    assert {text for _, text in entries} == {text for _, text in numbered(9, 1)}


async def read_until(source, happens):
    """What is read of what happens once the source is open."""
    happens()
    return await read(source, 1)


async def test_a_time_is_a_start(kafka, topic, settings, grid):
    kafka.produce(topic, numbered(0, 5))
    await asyncio.sleep(0.01)  # so that the times differ
    moment = time.time()
    await asyncio.sleep(0.01)
    kafka.produce(topic, numbered(5, 3))
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03d}Z"
    async with opened(settings(start=start), grid=grid) as source:
        entries, _ = await read(source, 3)
    assert {text for _, text in entries} == {text for _, text in numbered(5, 3)}


async def test_a_second_process_takes_its_share_and_nothing_is_read_twice(kafka, topic, settings):
    seen = []

    async def run(source, done):
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                await asyncio.sleep(0.01)  # the grid takes its time
                seen.extend(key for key, _ in batch.entries)
                await source.acknowledge(batch)
                done.set()

    quick = settings(set={"heartbeat.interval.ms": "200"})
    async with asyncio.timeout(SECONDS), opened(quick) as one:
        first, second = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(run(one, first))
        kafka.produce(topic, numbered(0, 100))
        await first.wait()
        async with opened(quick) as two:
            joining = asyncio.create_task(run(two, second))
            while not (len(one._owned) == len(two._owned) == 1):
                await asyncio.to_thread(kafka.produce, topic, numbered(0, 20))
                await asyncio.sleep(0.05)
            kafka.produce(topic, numbered(0, 100))
            await second.wait()
            total = sum(1 for _ in await asyncio.to_thread(kafka.messages, topic))
            while len(set(seen)) < total:
                await asyncio.sleep(0.05)
            joining.cancel()
            await asyncio.wait([joining])
        while len(one._owned) < 2:  # and back
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
    assert len(seen) == len(set(seen)) == total
    assert sum(kafka.committed(topic, "s").values()) == total


async def test_what_was_acknowledged_after_the_partition_went_is_not_committed(kafka, topic, settings):
    kafka.produce(topic, numbered(0, 4), partition=0)
    async with asyncio.timeout(SECONDS), opened(settings()) as source, aclosing(source.batches()) as batches:
        batch = await anext(batches)
        source._forget(source._consumer.assignment())
        await source.acknowledge(batch)
        assert not source._due()
    assert kafka.committed(topic, "s") == {}


async def test_what_was_read_before_its_partition_went_is_left_to_the_next_owner(kafka, topic, settings):
    async with asyncio.timeout(SECONDS), opened(settings()) as source:
        for partition in (0, 1):
            kafka.produce(topic, numbered(10 * partition, 5), partition=partition)
        messages = []
        while len(messages) < 10:
            messages += await asyncio.to_thread(source._consumer.consume, 10, 0.1)
        before = dict(source._owned)
        assert source._without_those_that_went(messages, before) == messages
        went, _ = source._consumer.assignment()
        source._forget([went])
        kept = source._without_those_that_went(messages, before)
        assert {each.partition() for each in kept} == {0, 1} - {went.partition}
        source._owned[went.partition] = 99  # which came back at once
        with pytest.raises(SourceInterruptedError):
            source._without_those_that_went(messages, before)


async def test_a_source_that_waits_for_the_grid_keeps_its_place(kafka, topic, settings, monkeypatch):
    monkeypatch.setattr("gridscore.sources.kafka.source._IDLE_SECONDS", 0.2)
    given = {"max.poll.interval.ms": "2000", "session.timeout.ms": "2000", "heartbeat.interval.ms": "500"}
    kafka.produce(topic, numbered(0, 5), partition=0)
    async with asyncio.timeout(SECONDS), opened(settings(set=given)) as source, aclosing(source.batches()) as batches:
        batch = await anext(batches)
        kafka.produce(topic, numbered(5, 5), partition=0)
        await asyncio.sleep(4)  # twice as long as Kafka would wait
        assert source._owned
        await source.acknowledge(batch)
        count = len(batch.entries)
        while count < 10:
            batch = await anext(batches)
            count += len(batch.entries)
            await source.acknowledge(batch)
    assert kafka.committed(topic, "s") == {0: 10}


async def test_what_goes_wrong_while_it_waits_is_told_by_the_next_read(kafka, topic, settings, monkeypatch):
    monkeypatch.setattr("gridscore.sources.kafka.source._IDLE_SECONDS", 0.2)
    kafka.produce(topic, numbered(0, 1), partition=0)
    async with asyncio.timeout(SECONDS), opened(settings()) as source, aclosing(source.batches()) as batches:
        await anext(batches)
        assigned = asyncio.Event()
        loop = asyncio.get_running_loop()

        def failing(_partitions):
            loop.call_soon_threadsafe(assigned.set)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

        # While nothing is asked for, partitions come, and it cannot be found out where they begin.
        monkeypatch.setattr(source, "_positions", failing)
        source._consumer.unsubscribe()
        handlers = {"on_assign": source._on_assign, "on_revoke": source._on_revoke, "on_lost": source._on_lost}
        source._consumer.subscribe([topic], **handlers)
        await assigned.wait()
        with pytest.raises(SourceInterruptedError):
            _ = [batch async for batch in batches]


@pytest.mark.parametrize("left", [5, 0])
async def test_what_retention_has_removed_is_counted_once_and_passed_over(kafka, topic, settings, left):
    kafka.produce(topic, numbered(0, 10), partition=0)
    async with opened(settings()) as source:
        await read(source, 10)
    kafka.produce(topic, numbered(10, 10), partition=0)
    kafka.delete_records(topic, 0, 20 - left)
    entries, lost = [], 0
    async with opened(settings()) as source, aclosing(source.batches()) as batches, asyncio.timeout(SECONDS):
        async for batch in batches:
            entries += batch.entries
            lost += batch.lost
            await source.acknowledge(batch)
            if lost and len(entries) == left:
                break
    assert lost == 10 - left
    assert [text for _, text in entries] == [text for _, text in numbered(20 - left, left)]
    assert kafka.committed(topic, "s") == {0: 20}
    kafka.produce(topic, numbered(20, 1), partition=0)
    async with opened(settings()) as source, aclosing(source.batches()) as batches, asyncio.timeout(SECONDS):
        batch = await anext(batches)
        assert (batch.lost, len(batch.entries)) == (0, 1)


async def fails(settings):
    """The message of what is permanent."""
    with pytest.raises(KafkaRefusedError) as info:
        async with opened(settings):
            pass
    return str(info.value)


async def test_a_topic_that_is_not_there_is_named(kafka, settings, unique):
    assert f"There is no topic `nope-{unique}`" in await fails(settings(topic=f"nope-{unique}"))
    assert f"nope-{unique}" not in await asyncio.to_thread(kafka.topics)


async def test_bad_credentials_stop_it(kafka, settings):
    sasl = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER}
    address = [kafka.broker.sasl_address]
    message = await fails(settings(brokers=address, set={**sasl, "sasl.password": "guessed"}))
    assert "refuses the credentials" in message
    assert "guessed" not in message
    async with opened(settings(brokers=address, set={**sasl, "sasl.password": PASSWORD})):
        pass


async def test_a_user_without_the_right_is_told(kafka, topic, settings):
    kafka.deny(topic, USER)
    sasl = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
    }
    assert "does not allow this user" in await fails(settings(brokers=[kafka.broker.sasl_address], set=sasl))


async def test_a_certificate_that_is_not_trusted_stops_it_and_one_that_is_does_not(kafka, topic, settings):
    kafka.produce(topic, numbered(0, 1))
    tls = {"security.protocol": "SSL"}
    address = [kafka.broker.tls_address]
    assert "certificate" in await fails(settings(brokers=address, set=tls))
    trusting = {**tls, "ssl.ca.location": str(kafka.ca_file)}
    async with opened(settings(brokers=address, set=trusting)) as source:
        assert len((await read(source, 1))[0]) == 1


async def test_a_broker_that_is_away_may_come_back(settings):
    with pytest.raises(SourceInterruptedError, match="No broker of Kafka can be reached"):
        async with opened(settings(brokers=["127.0.0.1:1"])):
            pass


async def test_settings_that_the_client_does_not_know_stop_it(settings):
    assert "No such configuration property" in await fails(settings(set={"no.such.thing": "1"}))
