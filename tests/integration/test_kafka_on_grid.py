"""The Kafka source that the cluster itself runs, by its SQL: a real member with the connector, and a real broker."""

from __future__ import annotations

import asyncio
import os

import pytest
from kafka_server import PASSWORD, USER

from pipeline.errors import GridError, MemberError, UsageError
from pipeline.grid import GridSettings, connect
from pipeline.grid.engine import engine_jobs
from pipeline.grid.member import Cluster
from pipeline.job.plugs.kafka_source import KafkaSourceSettings
from pipeline.kafka import KafkaRefusedError
from pipeline.sources import kafka_on_grid
from pipeline.sources.kafka_on_grid import drop, job_of, sources_on_grid, submit

SECONDS = 60


@pytest.fixture(scope="module")
def with_connector():
    """A member that has the Kafka connector."""
    try:
        started = Cluster.start(1, port=0, heap="512m", kafka=True)
    except MemberError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            raise
        pytest.skip(f"no member with the connector: {error}")
    with started:
        yield started


@pytest.fixture
async def grid(with_connector, monkeypatch):
    monkeypatch.setattr(kafka_on_grid, "STEADY_SECONDS", 0.5)
    settings = GridSettings.load(members=with_connector.addresses, cluster_name=with_connector.cluster_name)
    async with await connect(settings) as connected:
        yield connected


@pytest.fixture
def topic(kafka, unique):
    return kafka.create(f"clicks-{unique}")


@pytest.fixture
def settings(kafka, topic, unique):
    def make(**more):
        given = {"to": f"events.grid-{unique}", "brokers": [kafka.address], "topic": topic, "message_key": True, **more}
        return KafkaSourceSettings(**given)

    return make


async def entries(grid, map_name, count):
    """What a map has when it has so many."""
    events = await grid.map(map_name)
    async with asyncio.timeout(SECONDS):
        while await events.size() < count:
            await asyncio.sleep(0.05)
    return {key: value.to_string() for key, value in await events.entry_set()}


async def test_the_cluster_reads_the_topic_until_it_is_dropped(kafka, topic, settings, grid, unique):
    kafka.produce(topic, [(f"k{n}", b'{"n":%d,"s":"\xc3\xbc"}' % n) for n in range(20)])
    kafka.produce(topic, [("dead", None), (None, b'{"n":1}'), ("poison", b"no json")])
    given = settings()
    assert await submit(grid, given, unique) == ""
    found = await entries(grid, given.to, 21)
    assert found == {f"k{n}": f'{{"n":{n},"s":"ü"}}' for n in range(20)} | {"poison": "no json"}
    (listed,) = [each for each in await sources_on_grid(grid) if each.name == unique]
    assert listed == (unique, given.to, "running", "")
    with pytest.raises(UsageError, match="on the grid already: its job is running"):
        await submit(grid, given, unique)
    kafka.produce(topic, [("late", b"{}")])
    await entries(grid, given.to, 22)
    assert await drop(grid, unique)
    assert not await drop(grid, unique)
    assert [job.state for job in await engine_jobs(grid) if job.name == job_of(unique)] == ["dropped"]
    assert unique not in {each.name for each in await sources_on_grid(grid)}
    assert len(await entries(grid, given.to, 22)) == 22


async def test_fields_make_the_key_and_what_has_none_is_left_out(kafka, topic, settings, grid, unique):
    kafka.produce(
        topic,
        [
            (None, b'{"id": 7, "the site": "a|b"}'),
            (None, b'{"id": "x", "the site": "it\'s"}'),
            (None, b'{"id": 8}'),
            (None, b'{"id": {}, "the site": "c"}'),
            (None, b'{"id": "", "the site": "c"}'),
            (None, b"no json"),
        ],
    )
    given = settings(message_key=False, key=["id", "the site"])
    await submit(grid, given, unique)
    assert set(await entries(grid, given.to, 2)) == {"7|a|b", "x|it's"}
    await drop(grid, unique)


async def test_by_tls_and_by_password(kafka, topic, settings, grid, unique, monkeypatch):
    kafka.produce(topic, [("a", b"{}")])
    tls = {"security.protocol": "ssl", "ssl.ca.location": str(kafka.ca_file)}
    monkeypatch.setenv("KAFKA_TEST_PASSWORD", PASSWORD)
    sasl = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": "${KAFKA_TEST_PASSWORD}",
    }
    ways = {"tls": (kafka.broker.tls_address, tls), "sasl": (kafka.broker.sasl_address, sasl)}
    for way, (address, options) in ways.items():
        given = settings(to=f"events.{way}-{unique}", brokers=[address], set=options)
        assert await submit(grid, given, f"{way}-{unique}") == ""
        assert set(await entries(grid, given.to, 1)) == {"a"}
        await drop(grid, f"{way}-{unique}")


async def test_a_broker_that_is_killed_and_comes_back_costs_nothing(kafka, topic, settings, grid, unique):
    kafka.produce(topic, [(f"k{n}", b"{}") for n in range(100)])
    given = settings()
    await submit(grid, given, unique)
    await entries(grid, given.to, 100)
    await asyncio.to_thread(kafka.broker.kill)
    await asyncio.to_thread(kafka.broker.restart)
    await asyncio.to_thread(kafka.produce, topic, [(f"k{n}", b"{}") for n in range(100, 200)])
    assert set(await entries(grid, given.to, 200)) == {f"k{n}" for n in range(200)}
    await drop(grid, unique)


async def test_what_is_wrong_is_one_message(kafka, settings, grid, unique):
    with pytest.raises(KafkaRefusedError, match="There is no topic `nope`"):
        await submit(grid, settings(topic="nope"), unique)
    sasl = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": USER}
    wrong = settings(brokers=[kafka.broker.sasl_address], set={**sasl, "sasl.password": "guessed"})
    with pytest.raises(KafkaRefusedError, match="refuses the credentials") as info:
        await submit(grid, wrong, unique)
    assert "guessed" not in str(info.value)
    assert await sources_on_grid(grid) == []


async def test_members_without_the_connector_are_told_of(settings, grid_settings, unique):
    async with await connect(grid_settings) as bare:
        with pytest.raises(GridError, match="lack Hazelcast's Kafka connector") as info:
            await submit(bare, settings(), unique)
        assert "gridscore up --kafka" in str(info.value)
        assert unique not in {each.name for each in await sources_on_grid(bare)}


async def test_a_job_that_somebody_drops_while_it_starts_is_missed(settings, grid, unique, monkeypatch):
    monkeypatch.setattr(kafka_on_grid, "STEADY_SECONDS", SECONDS)
    submitting = asyncio.create_task(submit(grid, settings(), unique))
    async with asyncio.timeout(SECONDS):
        while not any(job.name == job_of(unique) and job.state == "running" for job in await engine_jobs(grid)):
            await asyncio.sleep(0.05)
        await drop(grid, unique)
        with pytest.raises(GridError, match="somebody has dropped it"):
            await submitting
