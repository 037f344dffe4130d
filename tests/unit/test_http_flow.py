"""What a map, a partition or a grid that takes nothing does to those who post: no more than it must, and why."""

import asyncio
import functools
import logging

import httpx
import pytest
from http_listening import EVENTS, client, connected, listening

from gridscore.grid.heap import heaps_of
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job import Jobs, parse_job
from gridscore.producer.producer import Producer
from gridscore.sources import runner
from gridscore.sources.http import answer as http_answer
from gridscore.sources.http import app as http_app
from gridscore.sources.http import connections as http_connections
from gridscore.sources.http import health as http_health
from gridscore.sources.http import intake as http_intake
from gridscore.testing import Fault, StubCluster

FULL = "events.full"
RING = 1_000  # of the stub
JOB = """\
job: slow
events: events.full
schema: {amount: float}
features: {amount: amount}
model: slow
results: results.slow
"""


async def fill(cluster, *partitions):
    """Fill rings that a job has not read, which no worker scores; returns a key of each partition."""
    grid = await cluster.connect("filler")
    await Jobs(grid).submit(parse_job(JOB, "test"))
    writer = MapWriter(grid, FULL)
    keys = {}
    for key in (f"k{i}" for i in range(100 * cluster.partitions)):
        keys.setdefault(partition_of(writer.serialize_key(key), cluster.partitions), key)
    await writer.put((keys[partition], b"{}") for partition in partitions for _ in range(2 * RING))
    return [keys[partition] for partition in range(cluster.partitions)]


def many(source):
    return client(source, limits=httpx.Limits(max_connections=None))


async def posted(http, name, *keys):
    return await http.post(f"/events/{name}", json=[{"id": key} for key in keys])


async def test_a_map_without_room_holds_up_no_other():
    async with StubCluster(partitions=1) as cluster:
        await fill(cluster, 0)
        settings = {"key": ("id",), "also": (FULL,), "max_waiting": 100, "patience": "3s"}
        async with listening(cluster, **settings) as source, client(source) as http:
            blocked = [asyncio.create_task(posted(http, FULL, f"b{i}", f"c{i}")) for i in range(50)]
            async with asyncio.timeout(10):
                while source._intake.events < 10:  # as many as may wait for one partition
                    await asyncio.sleep(0.01)
            healthy = await asyncio.gather(*(posted(http, EVENTS, f"k{i}") for i in range(20)))
            assert {answer.status_code for answer in healthy} == {202}
            for answer in await asyncio.gather(*blocked):
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert "There is no room in `events.full`: waiting for job slow" in answer.json()["error"]
            async with asyncio.timeout(10):  # what gave up keeps no room, here or in the producer
                while source._intake.events or source.runner._producers[FULL]._events:
                    await asyncio.sleep(0.01)


async def test_a_partition_without_room_holds_up_no_other_of_its_map():
    async with StubCluster(partitions=2) as cluster:
        blocked, other = await fill(cluster, 0)
        async with listening(cluster, to=FULL, key=("id",), patience="3s") as source, client(source) as http:
            waiting = asyncio.create_task(posted(http, FULL, blocked))
            assert (await posted(http, FULL, other)).status_code == 202
            assert (await waiting).status_code == 429


async def test_a_key_with_too_many_events_holds_up_no_other_of_its_map(caplog):
    """Senders of the key fill all that may wait in the source, ten times."""
    async with StubCluster(partitions=2) as cluster:
        full, other = await fill(cluster, 0)
        settings = {"to": FULL, "key": ("id",), "max_waiting": 1_000, "patience": "5s"}
        async with listening(cluster, **settings) as source, client(source) as http, client(source) as elsewhere:
            hot = [asyncio.create_task(posted(http, FULL, *[full] * 100)) for _ in range(100)]
            await asyncio.wait(hot, return_when=asyncio.FIRST_COMPLETED)
            for answer in await asyncio.gather(*(posted(elsewhere, FULL, other) for _ in range(25))):
                assert answer.status_code == 202, answer.text
            assert sum(not each.done() for each in hot) > 1  # which may still find room
            for answer in await asyncio.gather(*hot):
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert f"partition 0 has {RING:,} unread events of {RING:,}" in answer.json()["error"]
                assert f"most events that wait for it have the key '{full}'" in answer.json()["error"]
            assert source.runner.stats.state != "interrupted"
        assert "refused" not in caplog.text


@pytest.mark.parametrize(("count", "beside"), [(280, 0), (42, 10)], ids=["alone", "among others"])
async def test_however_many_partitions_are_full_the_others_of_their_map_are_not_held_up(count, beside):
    """Each post has an event for one of seven full partitions, and some for one that is not full."""
    async with StubCluster(partitions=8) as cluster:
        *full, other = await fill(cluster, *range(7))
        settings = {"to": FULL, "key": ("id",), "max_waiting": 100, "patience": "2s"}
        async with listening(cluster, **settings) as source, many(source) as http, client(source) as elsewhere:
            posts = [asyncio.create_task(posted(http, FULL, full[n % 7], *[other] * beside)) for n in range(count)]
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
            for answer in await asyncio.gather(*(posted(elsewhere, FULL, other) for _ in range(20))):
                assert answer.status_code == 202, answer.text
            assert sum(not each.done() for each in posts) > 1
            for answer in await asyncio.gather(*posts):
                assert answer.status_code == 429
                assert f"has {RING:,} unread events of {RING:,}" in answer.json()["error"]


async def test_posts_that_wait_for_a_full_partition_leave_places_to_others(monkeypatch):
    for module in (http_connections, http_intake):
        monkeypatch.setattr(module, "MAX_REQUESTS", 20, raising=False)
    async with StubCluster(partitions=2) as cluster:
        full, other = await fill(cluster, 0)
        settings = {"to": FULL, "key": ("id",), "patience": "2s"}
        async with listening(cluster, **settings) as source, many(source) as http, client(source) as elsewhere:
            hot = [asyncio.create_task(posted(http, FULL, full)) for _ in range(10)]
            await asyncio.wait(hot, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(4):
                hot += (more := [asyncio.create_task(posted(http, FULL, full)) for _ in range(5)])
                await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
            assert sum(not each.done() for each in hot) > 1
            for answer in await asyncio.gather(*(posted(elsewhere, FULL, other) for _ in range(10))):
                assert answer.status_code == 202, answer.text
            assert {(await each).status_code for each in hot} == {429}


async def test_a_member_that_is_nearly_out_of_heap_is_named_until_it_has_room():
    async with StubCluster() as cluster:
        (member,) = cluster.members
        member.measure(50 << 20, 100 << 20)
        async with listening(cluster, key=("id",), patience="2s") as source, client(source) as http:
            assert (await posted(http, EVENTS, "first")).status_code == 202
            member.measure(95 << 20, 100 << 20, collections=2)
            async with asyncio.timeout(10):
                while not heaps_of(source.runner._grid).stops:
                    await asyncio.sleep(0.01)
            refused = await posted(http, EVENTS, "a")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "waiting for memory: member 127.0.0.1:" in refused.json()["error"]
            assert "uses 95% of its 100 MB of heap" in refused.json()["error"]
            member.measure(50 << 20, 100 << 20)
            assert (await posted(http, EVENTS, "a")).status_code == 202
            async with asyncio.timeout(10):
                while source.runner.stats.waiting:
                    await asyncio.sleep(0.01)


async def test_a_grid_that_does_not_answer_is_told_as_such(monkeypatch):
    monkeypatch.setattr(http_health, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(http_app, "GRID_SECONDS", 0.2)
    settings = {"patience": "1s", "results": ("results.x",)}
    async with StubCluster() as cluster, listening(cluster, **settings) as source, client(source) as http:
        assert (await http.get("/healthz")).json()["status"] == "ok"
        cluster.hang("source")
        answer = await posted(http, EVENTS, "a")
        assert answer.status_code == 503
        assert "The grid does not answer" in answer.json()["error"]
        health = await http.get("/healthz")
        assert (health.status_code, "the grid has not answered for" in health.json()["status"]) == (503, True)
        assert (await http.get("/results/results.x/a?wait=100ms")).status_code == 503
        cluster.heal()
        async with asyncio.timeout(10):
            while (await http.get("/healthz")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await posted(http, EVENTS, "a")).status_code == 202


async def test_a_put_that_fails_is_told_to_its_sender_and_the_source_goes_on(monkeypatch):
    monkeypatch.setattr(runner, "Producer", functools.partial(Producer, retry_seconds=0.0))
    async with StubCluster() as cluster, listening(cluster, also=("events.y",)) as source, client(source) as http:
        cluster.faults.append(Fault("timeout", request="Map.PutAll", map="events.y", times=2))
        for _ in range(2):
            answer = await posted(http, "events.y", "a")
            assert (answer.status_code, "did not confirm" in answer.json()["error"]) == (503, True)
        # Nobody had to wait for a new attempt, with nothing listening meanwhile.
        assert source.runner.stats.state == "interrupted"
        assert (await posted(http, EVENTS, "a")).status_code == 202
        assert (await http.get("/healthz")).status_code == 200
        assert (await posted(http, "events.y", "a")).status_code == 202
        assert source.runner.stats.state == "running"


async def test_a_source_that_nobody_reads_again_does_not_say_so(monkeypatch, caplog):
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    async with StubCluster() as cluster, listening(cluster) as source, client(source) as http:
        assert (await posted(http, EVENTS, "a")).status_code == 202
        cluster.hang("source")
        posting = asyncio.create_task(posted(http, EVENTS, "a"))
        async with asyncio.timeout(10):
            while not source.runner._settling:
                await asyncio.sleep(0.01)
        source.runner.stop()
        assert (await posting).status_code == 503
        cluster.heal()
    assert "the senders are told to send it again" in caplog.text
    assert "read again" not in caplog.text


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_who_sends_all_before_it_reads_is_told_why_it_was_refused(kind):
    lines = b'{"text":"%s"}\n' % (b"x" * 100_000) * 500
    async with StubCluster() as cluster:
        (member,) = cluster.members
        member.measure(95 << 20, 100 << 20, collections=2)
        async with listening(cluster, patience="1s") as source, client(source) as http:
            answer = await http.post(f"/events/{EVENTS}", content=lines, headers={"content-type": kind})
            assert answer.status_code == (413 if kind == "application/json" else 429), answer.text


async def test_a_refusal_ends_the_connection_at_once_where_nothing_is_left_to_read(monkeypatch):
    monkeypatch.setattr(http_answer, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(http_answer, "REST_SECONDS", 60.0)
    async with StubCluster(partitions=1) as cluster:
        await fill(cluster, 0)
        async with listening(cluster, to=FULL, patience="1s") as source, connected(source) as (reader, writer):
            writer.write(b"POST /events/events.full HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: 2\r\n\r\n{}")
            async with asyncio.timeout(30):
                assert (await reader.read()).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize("results", ["results.x", "scores"])
async def test_all_who_wait_for_a_result_share_one_reader(results):
    """The second map has no journal."""
    async with StubCluster() as cluster, listening(cluster, results=(results,)) as source, client(source) as http:
        asking = [asyncio.create_task(http.get(f"/results/{results}/k{i}", params={"wait": "20s"})) for i in range(50)]
        finder = source._app._results
        async with asyncio.timeout(10):
            while not finder._outcomes or sum(map(len, (await finder._reader(results))._waiting.values())) < 50:
                await asyncio.sleep(0.01)
        grid = await cluster.connect("worker")
        await MapWriter(grid, results).put((f"k{i}", b'{"score": %d}' % i) for i in range(50))
        assert [(await each).json()["score"] for each in asking] == list(range(50))
        assert cluster.requests["Map.AddEntryListener"] == (results == "scores")
