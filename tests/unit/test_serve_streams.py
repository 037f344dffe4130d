"""Streams of results: nothing is missing, whoever reads slowly is cut off with a place to go on from."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
from serving import JOB, PLAIN, client, prepared, serving, until

from gridscore.grid.writer import MapWriter
from gridscore.serve import feed as feeds
from gridscore.serve import streams
from gridscore.testing import StubCluster

MAP = "results.plain"


class Stream:
    """What a listener gets, as a browser reads it."""

    def __init__(self, answer):
        self.answer, self.place, self._lines = answer, None, answer.aiter_lines()

    async def next(self):
        """Kind and data of the next event."""
        kind, data = "message", None
        async with asyncio.timeout(30):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    self.place = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    data = json.loads(value)
                elif not line and data is not None:
                    return kind, data
        return "closed", None

    async def keys(self, count):
        return [(await self.next())[1]["key"] for _ in range(count)]


@asynccontextmanager
async def listening(http, job="plain", place=None, **query):
    headers = {"Last-Event-ID": place} if place else {}
    async with http.stream("GET", f"/results/{job}/stream", params=query, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"] == "text/event-stream"
        stream = Stream(answer)
        while stream.place is None:
            name, _, value = (await anext(stream._lines)).partition(": ")
            stream.place = value if name == "id" else None
        yield stream


async def write(cluster, *numbers, text=b'{"score": %d, "decision": "%s"}'):
    grid = await cluster.connect("writer")
    for number in numbers:
        decision = b"odd" if number % 2 else b"even"
        await MapWriter(grid, MAP).put([(f"k{number}", text % (number, decision))])


async def test_results_come_as_they_are_written_and_the_stream_goes_on_where_it_was_left(monkeypatch):
    monkeypatch.setattr(streams, "PLACE_SECONDS", 0.0)
    async with StubCluster(partitions=1) as cluster:  # so all results have one order
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            async with listening(http) as stream, listening(http, decision="odd") as odd:
                assert len(server._streams._feeds) == 1
                await write(cluster, *range(6))
                assert await stream.next() == ("message", {"key": "k0", "score": 0, "decision": "even"})
                assert await stream.keys(5) == ["k1", "k2", "k3", "k4", "k5"]
                assert await odd.keys(3) == ["k1", "k3", "k5"]
                await write(cluster, 6, text=b'{"score":\n%d,\r\n"decision": "%s"}\n')
                assert await stream.next() == ("message", {"key": "k6", "score": 6, "decision": "even"})
                await write(cluster, 7)
                assert await stream.keys(1) == ["k7"]  # so the place behind k6 has been told
                place = stream.place
            await until(lambda: server._streams.listeners == 0)
            # Nobody listens now, so nothing is kept: the journal is read from the place on.
            await write(cluster, 8, 9)
            async with listening(http, place=place) as late:
                assert await late.keys(3) == ["k7", "k8", "k9"]
                await write(cluster, 10)
                assert await late.keys(1) == ["k10"]
                opened = cluster.requests["Map.EventJournalSubscribe"]
                # While somebody listens, what is kept will do.
                async with listening(http, place=late.place) as later:
                    assert (await later.keys(1)) in (["k9"], ["k10"])
                assert cluster.requests["Map.EventJournalSubscribe"] == opened


async def test_who_reads_slowly_is_cut_off_and_misses_nothing_all_the_same(monkeypatch):
    monkeypatch.setattr(feeds, "KEPT_BYTES", 2_000)
    async with StubCluster(partitions=4) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            feed = await server._streams._feed(MAP)
            slow = feed.listener(None)
            results = feed.results(slow)
            await write(cluster, 0)
            assert [item.text for item in await anext(results)] == [b'{"key":"k0","score": 0, "decision": "even"}']
            place = slow.place
            async with listening(http) as fast:
                await write(cluster, *range(1, 60))
                assert await fast.keys(59) == [f"k{number}" for number in range(1, 60)]
            assert feed._size <= 2_000
            try:
                while True:
                    await anext(results)
            except feeds.CutOffError:
                pass
            assert slow.place == place
            async with listening(http, place=place) as again:
                assert sorted(await again.keys(59)) == sorted(f"k{number}" for number in range(1, 60))


async def test_what_was_overwritten_before_it_was_read_is_counted(monkeypatch):
    monkeypatch.setattr(feeds, "KEPT_BYTES", 0)
    async with StubCluster(partitions=1, journals={"events.*": 1_000, "results.*": 10}) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            async with listening(http) as stream:
                place = stream.place
            await until(lambda: server._streams.listeners == 0)
            await write(cluster, *range(30))
            async with listening(http, place=place) as stream:
                assert await stream.next() == ("lost", {"lost": 20})
                assert await stream.keys(10) == [f"k{number}" for number in range(20, 30)]


async def test_few_catch_up_at_once_and_none_for_long(monkeypatch):
    monkeypatch.setattr(feeds, "CATCHING_UP", 1)
    async with StubCluster(partitions=1) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            async with listening(http) as stream:
                place = stream.place
            await until(lambda: server._streams.listeners == 0)
            await write(cluster, 0, 1)
            feed = await server._streams._feed(MAP)
            first, second = (feed.results(feed.listener(place)) for _ in range(2))
            assert b"k0" in (await anext(first))[0].text
            waiting = asyncio.create_task(anext(second))
            await asyncio.wait({waiting}, timeout=0.05)
            assert feed._turn.locked()
            assert not waiting.done()
            await first.aclose()
            assert b"k0" in (await waiting)[0].text
            await second.aclose()
            monkeypatch.setattr(feeds, "CATCH_UP_SECONDS", -1.0)
            async with listening(http, place=place) as late:
                assert (await late.next())[0] == "cut"
                assert late.place == place
            feed.close()


async def test_who_cannot_listen_is_told_why(monkeypatch):
    monkeypatch.setattr(streams, "MAX_LISTENERS", 1)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN, JOB.replace("results.cards", "scores"))
        async with serving(cluster, "plain") as server, client(server) as http:
            for place in ("x", "eJwDAAAAAAE", "-", "A" * 5_000):
                wrong = await http.get("/results/plain/stream", headers={"Last-Event-ID": place})
                assert (wrong.status_code, "is not one of this stream" in wrong.json()["error"]) == (400, True)
            assert (await http.get("/results/cards/stream")).status_code == 409  # its map has no journal
            assert (await http.get("/results/none/stream")).status_code == 404
            assert (await http.post("/results/plain/stream")).status_code == 405
            async with listening(http):
                crowded = await http.get("/results/plain/stream")
                assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
            await until(lambda: server._streams.listeners == 0)
            async with listening(http):
                pass


async def test_a_server_that_stops_tells_listeners_their_place():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with httpx.AsyncClient(timeout=30) as http, serving(cluster, "plain") as server:
            http.base_url = server.http.address
            waiting = listening(http)
            stream = await waiting.__aenter__()
            place = stream.place
            server.stop()
            kind, said = await stream.next()
            assert (kind, stream.place) == ("end", place)
            assert "no longer read" in said["error"]
            await waiting.__aexit__(None, None, None)
