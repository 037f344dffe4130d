"""What a producer holds back, for whom, and what it says: on a stub cluster."""

import asyncio
import json

import numpy as np
import pytest
import xgboost as xgb

from gridscore.errors import BackPressureError, UsageError
from gridscore.grid import transport
from gridscore.grid.capacity import Capacity, Source
from gridscore.grid.heap import heaps_of, look_at_heaps
from gridscore.grid.writer import partition_of
from gridscore.group import group as group_module
from gridscore.job import parse_job
from gridscore.producer import producer as producing
from gridscore.producer import queue
from gridscore.scoring import runner
from gridscore.testing import StubCluster

JOB = """\
job: clicks
events: events.clicks
schema: {amount: float}
features: {amount: amount}
model: {name: clicks, alias: champion}
results: results.clicks
"""
MEGABYTE = 1 << 20
HEAP = 256 * MEGABYTE
SMALL = b'{"amount":1}'
RING = 256


def booster():
    rows = np.linspace(0, 2, 200, dtype=np.float32).reshape(-1, 1)
    matrix = xgb.DMatrix(rows, (rows[:, 0] > 1).astype(int), feature_names=["amount"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 2)


async def submitted(cluster):
    client = await cluster.client()
    await client.push_model(booster(), "clicks", alias="champion")
    await client.submit(parse_job(JOB, "test"))
    return client


def clicks(**options):
    return StubCluster(4, journals={"events.*": RING, "results.*": RING}, **options)


def keys_of(client, partition, count):
    data = ((f"k{n}", transport.key_data(client.grid.client, f"k{n}")) for n in range(100_000))
    mine = (key for key, each in data if partition_of(each, client.grid.partition_count) == partition)
    return [next(mine) for _ in range(count)]


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def filled(cluster, client):
    """A member that is full after a collection, and the client knows it."""
    (member,) = cluster.members
    member.measure(HEAP // 2, HEAP)
    await client.put_events("lookups.x", {"first": SMALL})
    member.measure(HEAP * 95 // 100, HEAP, collections=2)
    await until(lambda: heaps_of(client.grid).stops)
    return member


@pytest.fixture(autouse=True)
def _known_ring(monkeypatch):
    """A stub does not tell how its journals are configured."""

    async def capacity(grid, map_name, **_):
        return Capacity(RING, grid.partition_count, Source.CONFIGURED) if map_name.startswith("events.") else None

    monkeypatch.setattr(producing, "journal_capacity", capacity)
    monkeypatch.setattr(runner, "journal_capacity", capacity)


async def test_a_key_that_fills_its_partition_holds_up_no_other():
    async with clicks() as cluster:
        client = await submitted(cluster)
        said = []
        producer = client.producer("events.clicks", on_wait=said.append)
        hot, same = keys_of(client, 1, 2)
        count = queue.AT_ONCE_EVENTS + 1_000
        putting = asyncio.create_task(producer.put((hot, SMALL) for _ in range(count)))  # noqa: RUF006 -- it is kept
        await until(lambda: said)
        behind = asyncio.create_task(producer.put([(same, SMALL)]))
        others = [(key, SMALL) for partition in (0, 2, 3) for key in keys_of(client, partition, 20)]
        async with asyncio.timeout(30):
            assert await producer.put(others) == len(others)
        assert not putting.done()
        assert not behind.done()
        waiting = said[-1]
        assert (waiting.partition, waiting.key) == (1, repr(hot))
        assert f"most events that wait for it have the key {hot!r}" in str(waiting)
        # What is held is bounded; the rest waits outside.
        assert producer._events <= queue.HELD_EVENTS + 4_000
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        async with cluster.worker():
            assert await behind == 1


@pytest.mark.parametrize("event", ['{"amount": 1}', {"amount": 1}])
async def test_what_is_not_a_text_of_json_is_refused_and_holds_up_nothing(event):
    async with StubCluster() as cluster, asyncio.timeout(60):
        client = await cluster.client()
        producer = client.producer("events.clicks")
        with pytest.raises(UsageError, match=rf"as bytes, not `{type(event).__name__}`"):
            await producer.put([("a", SMALL), ("b", event)])
        assert await producer.put([("a", SMALL)]) == 1
        assert (await cluster.results("events.clicks", 1)).keys() == {"a"}


async def test_events_of_a_key_keep_their_order_when_many_wait_for_its_partition(monkeypatch):
    monkeypatch.setattr(queue, "HELD_EVENTS", 50)
    async with clicks() as cluster:
        client = await submitted(cluster)
        order = []

        def changed(map_name, _partition, change):
            if map_name == "events.clicks":
                order.append(json.loads(change.value[12:])["amount"])

        cluster.on_change = changed
        producer = client.producer("events.clicks")
        calls = [[("k", json.dumps({"amount": n}).encode()) for n in range(b, b + 150)] for b in range(0, 1500, 150)]
        async with asyncio.TaskGroup() as group:
            for entries in calls:
                group.create_task(producer.put(entries))
                await asyncio.sleep(0)
            await until(lambda: producer._full)
            async with cluster.worker():
                await until(lambda: len(order) == 1500)
        for entries in calls:
            amounts = {json.loads(text)["amount"] for _, text in entries}
            mine = [each for each in order if each in amounts]
            assert mine == sorted(mine)


async def test_a_ring_that_fills_is_committed_before_its_second_is_over(monkeypatch):
    monkeypatch.setattr(group_module, "COMMIT_SECONDS", 3600.0)
    async with clicks() as cluster:
        client = await submitted(cluster)
        async with cluster.worker() as worker:
            # Twelve rings of one key: without commits that come early, three quarters of one would be the end.
            async with asyncio.timeout(60):
                assert await client.put_events("events.clicks", [("k", SMALL)] * (12 * RING)) == 12 * RING
            assert worker.runners["clicks"].stats.lost == 0


async def test_a_full_heap_stops_a_producer_which_says_so_and_goes_on_by_itself():
    async with StubCluster(4) as cluster:
        client, said = await cluster.client(), []
        member = await filled(cluster, client)
        producer = client.producer("lookups.x", on_wait=said.append)
        await producer.put([("gone", None)])  # what makes room is not held up
        putting = asyncio.create_task(producer.put((f"k{n}", SMALL) for n in range(100)))
        await until(lambda: said)
        assert str(said[-1]).startswith("waiting for memory: member 127.0.0.1:")
        assert "uses 95% of its 256 MB of heap, and above 93% nothing is put" in str(said[-1])
        assert not putting.done()
        late = client.producer("lookups.x", max_wait=0.2)
        with pytest.raises(BackPressureError, match="waiting for memory"):
            await late.put([("late", SMALL)])
        member.measure(HEAP // 2, HEAP)
        assert await putting == 100
        await until(lambda: said[-1] is None)


async def test_garbage_that_nobody_has_collected_yet_stops_no_producer():
    async with StubCluster(4) as cluster:
        (member,) = cluster.members
        client, said = await cluster.client(), []
        producer, text = client.producer("lookups.x", on_wait=said.append), json.dumps("x" * 1000).encode()
        member.measure(HEAP * 96 // 100, HEAP)  # by what is known, it may be garbage
        for used in (96, 97, 98, 99):
            member.measure(HEAP * used // 100, HEAP)
            async with asyncio.timeout(30):  # a little: a member collects only if somebody needs room
                assert await producer.put((f"k{used}-{n}", text) for n in range(50)) == 50
        assert not heaps_of(client.grid).stops
        putting = asyncio.create_task(producer.put((f"more{n}", text) for n in range(5_000)))
        await until(lambda: said)
        assert not any(each and each.stops for each in said)
        while not putting.done():  # in each measurement there is room for more
            member.measure(HEAP * 60 // 100, HEAP, collections=2)
            await asyncio.sleep(0.01)
        assert await putting == 5_000
        member.measure(HEAP * 98 // 100, HEAP, collections=2)
        await until(lambda: heaps_of(client.grid).has_room)
        assert await producer.put([("k", text)]) == 1


async def test_what_is_cancelled_while_memory_is_waited_for_is_not_put_later():
    async with StubCluster(4) as cluster:
        client, said = await cluster.client(), []
        member = await filled(cluster, client)
        producer = client.producer("lookups.x", on_wait=said.append)
        putting = asyncio.create_task(producer.put([("k", SMALL)]))
        await until(lambda: said)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await until(lambda: not producer._events)
        await until(lambda: said[-1] is None)  # nothing is waited for
        member.measure(HEAP // 2, HEAP)
        assert await producer.put([("other", SMALL)]) == 1
        assert producer.acknowledged == 1


async def test_a_member_that_measures_rarely_is_said_to_be_waited_for(monkeypatch):
    monkeypatch.setattr(producing, "_MEASURING_SECONDS", 0.0)
    async with StubCluster(4) as cluster:
        (member,) = cluster.members
        member.measure(MEGABYTE // 10, MEGABYTE)
        client, said = await cluster.client(), []
        producer = client.producer("lookups.x", on_wait=said.append)
        putting = asyncio.create_task(producer.put((f"k{n}", b'"' + b"x" * 1000 + b'"') for n in range(1000)))
        await until(lambda: said)
        assert "waiting for member 127.0.0.1:" in str(said[-1])
        assert "collection-frequency-seconds" in said[-1].hint
        member.measure(MEGABYTE, 100 * MEGABYTE)
        assert await putting == 1000


async def test_between_two_measurements_no_more_is_put_than_there_is_room_for():
    async with StubCluster(4) as cluster:
        (member,) = cluster.members
        member.measure(HEAP * 84 // 100, HEAP)
        client = await cluster.client()
        producer = client.producer("lookups.x")
        text = json.dumps("x" * (MEGABYTE // 2)).encode()
        putting = asyncio.create_task(producer.put((f"k{n}", text) for n in range(200)))
        await until(lambda: not producer._heaps.has_room)
        await asyncio.sleep(0.1)
        # An eighth of what is free below 93 %, and what was under way when that was used up.
        assert producer.acknowledged * MEGABYTE // 2 <= HEAP * 9 // 800 + 2 * MEGABYTE
        assert producer._bytes <= HEAP // 32 + 2 * MEGABYTE
        putting.cancel()


async def test_a_member_that_does_not_tell_bounds_nothing():
    async with StubCluster(4) as cluster:
        client = await cluster.client()
        (heap,) = await look_at_heaps(client.grid)
        assert "measured" in heap.refusal
        assert await client.put_events("lookups.x", {"k": SMALL}) == 1
