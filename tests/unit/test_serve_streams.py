"""Streams of results: nothing is missing, whoever reads slowly is cut off with a place to go on from."""

import asyncio
import contextlib
import json
import re
from contextlib import asynccontextmanager

import httpx
import pytest
import websockets.asyncio.client as sockets
from serving import JOB, PLAIN, client, prepared, serving, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gridscore.grid.writer import MapWriter
from gridscore.keys import Keys, Role
from gridscore.serve import feed as feeds
from gridscore.serve import streams
from gridscore.sources.http import gate, protocol
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
            assert [item.text for item in (await anext(results)).items] == [
                b'{"key":"k0","score": 0, "decision": "even"}'
            ]
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
            assert b"k0" in (await anext(first)).items[0].text
            waiting = asyncio.create_task(anext(second))
            await asyncio.wait({waiting}, timeout=0.05)
            assert feed._turn.locked()
            assert not waiting.done()
            await first.aclose()
            assert b"k0" in (await waiting).items[0].text
            await second.aclose()
            monkeypatch.setattr(feeds, "CATCH_UP_SECONDS", -1.0)
            async with listening(http, place=place) as late:
                assert (await late.next())[0] == "cut"
                assert late.place == place
            feed.close()


async def test_who_cannot_listen_is_told_why():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN, JOB.replace("results.cards", "scores"))
        async with serving(cluster, "plain", listeners=1) as server, client(server) as http:
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


async def test_many_have_each_result_once_while_some_of_them_stop_reading(monkeypatch):
    monkeypatch.setattr(feeds, "KEPT_BYTES", 1_000_000)
    monkeypatch.setattr(streams, "PLACE_SECONDS", 0.0)
    ask = b"GET /results/plain/stream%b HTTP/1.1\r\nHost: x\r\n\r\n"
    large = b'{"score": %d, "decision": "%s", "why": "' + b"x" * 300_000 + b'"}'
    async with StubCluster(partitions=1) as cluster:
        await prepared(cluster, PLAIN)
        async with (
            serving(cluster, "plain", listeners=202) as server,
            client(server) as http,
            contextlib.AsyncExitStack() as stack,
        ):
            many = [await stack.enter_async_context(raw(server)) for _ in range(200)]
            for number, (reader, writer) in enumerate(many):
                writer.write(ask % (b"?decision=odd" if number < 198 else b""))
                assert b"\nid: " in await reader.readuntil(b"\n\n")
                if number >= 198:  # these take all, and that is much
                    writer.transport.pause_reading()
            feed = server._streams._feeds[MAP].result()
            await until(lambda: len(feed._waiting) == 200)
            [place] = {id(each.place): each.place for each in feed._waiting}.values()  # one for all
            await write(cluster, *range(0, 60, 2), text=large)
            await write(cluster, 61, 63)
            for reader, _ in many[:198]:
                had = b""
                while b'"k63"' not in had:
                    had += await reader.read(1 << 16)
                assert re.findall(rb'"key":"(k\d+)"', had) == [b"k61", b"k63"]
            async with listening(http, place=place) as again:
                assert await again.keys(32) == [*(f"k{n}" for n in range(0, 60, 2)), "k61", "k63"]


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


# ---------------------------------------------------------------------- by WebSocket


@asynccontextmanager
async def connected(server, path="/results/plain/stream", **options):
    address = server.http.address.replace("http", "ws", 1) + path
    async with asyncio.timeout(60), sockets.connect(address, **options) as socket:
        yield socket


async def refused(server, path="/results/plain/stream", **options):
    with pytest.raises(InvalidStatus) as error:
        async with connected(server, path, **options):
            pass
    return error.value.response.status_code


async def told(socket):
    return json.loads(await socket.recv())


async def results_of(socket, count):
    """Results, and the place that was told last."""
    found, place = [], None
    while len(found) < count:
        message = await told(socket)
        found += message.get("results", ())
        place = message.get("id", place)
    return found, place


async def test_a_websocket_tells_the_same_and_goes_on_where_it_was_left(monkeypatch):
    monkeypatch.setattr(streams, "PLACE_SECONDS", 0.0)
    async with StubCluster(partitions=1) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            odd_ones = "/results/plain/stream?decision=odd"
            async with connected(server) as socket, connected(server, odd_ones) as odd, listening(http) as stream:
                assert set(await told(socket)) == set(await told(odd)) == {"id"}
                await write(cluster, *range(6))
                found, place = await results_of(socket, 6)
                assert found[0] == {"key": "k0", "score": 0, "decision": "even"}
                assert [each["key"] for each in found] == [f"k{n}" for n in range(6)]
                assert [each["key"] for each in (await results_of(odd, 3))[0]] == ["k1", "k3", "k5"]
                assert await stream.keys(6) == [each["key"] for each in found]
                assert len(server._streams._feeds) == 1  # one reader for both doors
            await until(lambda: server._streams.listeners == 0)
            await write(cluster, 6, 7)
            # From the place of either by either.
            async with connected(server, f"/results/plain/stream?last_event_id={place}") as again:
                assert [each["key"] for each in (await results_of(again, 2))[0]] == ["k6", "k7"]
            async with listening(http, place=place) as by_events:
                assert await by_events.keys(2) == ["k6", "k7"]
            await until(lambda: server.http.connections._all.count == 1)  # of `http`


async def test_a_websocket_that_reads_slowly_is_cut_off_and_misses_nothing_all_the_same(monkeypatch):
    monkeypatch.setattr(feeds, "KEPT_BYTES", 2_000)
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 30.0)
    async with StubCluster(partitions=2) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server:
            large = b'{"score": %d, "decision": "%s", "why": "' + b"x" * 500_000 + b'"}'
            async with connected(server, max_queue=1, max_size=None) as slow:
                place = (await told(slow))["id"]
                await write(cluster, *range(60), text=large)  # far more than sockets hold
                found, last = [], {}
                while last.get("event") != "cut":
                    last = await told(slow)
                    found += last.get("results", ())
                    place = last.get("id", place)
                assert "not taken as fast" in last["error"]
                with pytest.raises(ConnectionClosed) as closed:
                    await slow.recv()
                assert closed.value.rcvd.code == 1013
            assert len(found) < 60
            async with connected(server, f"/results/plain/stream?last_event_id={place}", max_size=None) as again:
                while len({each["key"] for each in found}) < 60:
                    found += (await results_of(again, 1))[0]
            assert {each["key"] for each in found} == {f"k{number}" for number in range(60)}
            await until(lambda: server.http.connections._all.count == 0)


async def test_who_reads_nothing_at_all_is_dropped(monkeypatch):
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.2)
    async with StubCluster(partitions=2) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server:
            async with raw(server) as (reader, writer):
                writer.write(HANDSHAKE)
                assert b"101 Switching" in await reader.readuntil(b"\r\n")
                writer.transport.pause_reading()
                assert server._streams.listeners == 1
                large = b'{"score": %d, "decision": "%s", "why": "' + b"x" * 500_000 + b'"}'
                await write(cluster, *range(60), text=large)
                await until(lambda: server._streams.listeners == 0)
            await until(lambda: server.http.connections._all.count == 0)


HANDSHAKE = (
    b"GET /results/plain/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


STATUSES = [f"HTTP/1.1 {status}".encode() for status in (400, 405, 426)]


@asynccontextmanager
async def raw(server):
    host, _, port = server.http.address.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()


async def test_what_is_not_a_listener_gets_no_websocket(caplog):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server:
            async with connected(server) as socket:
                await told(socket)
                await (await socket.ping())  # is answered
                await socket.send("hello")
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd.code == 1003
            for path in ("/", "/score/plain", "/results/none/stream", "/control/jobs", "/healthz"):
                assert await refused(server, path) == 404
            assert await refused(server, "/results/plain/stream?last_event_id=x") == 400
            for wrong in (
                HANDSHAKE.replace(b"GET", b"POST"),
                HANDSHAKE.replace(b"Key: dGh", b"Kay: dGh"),
                HANDSHAKE.replace(b"Version: 13", b"Version: 1"),
                HANDSHAKE.replace(b"Host: x", b"Host: x\r\n" + b"A: b\r\n" * 300),
                HANDSHAKE.replace(b"Host: x", b"Host: " + b"x" * 20_000),
            ):
                async with raw(server) as (reader, writer):
                    writer.write(wrong)
                    assert (await reader.read())[:12] in STATUSES, wrong[:40]
            # One behind a request that is not answered yet would write into its answer.
            async with raw(server) as (reader, writer):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + HANDSHAKE)
                assert b"101" not in await reader.read()
            server._streams._most = 1
            async with connected(server) as socket:
                await told(socket)
                assert await refused(server) == 503
            await until(lambda: server.http.connections._all.count == server._streams.listeners == 0)
        assert caplog.records == []  # strangers fill no log


async def test_a_websocket_needs_a_key_and_a_page_that_may(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        (_, reads), (_, scores) = [await Keys(gridscore.grid).create([role]) for role in (Role.READ, Role.SCORE)]
        _, other = await Keys(gridscore.grid).create([Role.READ], ["cards"])
        friend = "https://shop.example"
        async with serving(cluster, "plain", keys=True, allow_origin=[friend]) as server:
            assert await refused(server) == 401
            assert await refused(server, subprotocols=["gridscore", "gs_wrong"]) == 401
            assert await refused(server, subprotocols=["other", reads]) == 401
            for text in (scores, other):
                assert await refused(server, subprotocols=["gridscore", text]) == 403
                assert await refused(server, additional_headers={"Authorization": f"Bearer {text}"}) == 403
            shown = {"subprotocols": ["gridscore", reads]}
            for origin in (None, friend, server.http.address):
                async with connected(server, origin=origin, **shown) as socket:
                    assert "id" in await told(socket)
                    assert socket.subprotocol == "gridscore"
            async with connected(server, additional_headers={"Authorization": f"Bearer {reads}"}) as socket:
                assert socket.subprotocol is None
            for origin in ("https://evil.example", "null"):
                assert await refused(server, origin=origin, **shown) == 403
        async with serving(cluster, "plain") as server:
            evil = {"origin": "http://evil.example"}
            assert await refused(server, **evil) == 403
            # A name that resolves to this machine (DNS rebinding): origin and host are the same.
            port = server.http.address.rpartition(":")[2]
            async with raw(server) as (reader, writer):
                name = f"Host: evil.example:{port}\r\nOrigin: http://evil.example:{port}".encode()
                writer.write(HANDSHAKE.replace(b"Host: x", name))
                assert b" 403 " in await reader.readuntil(b"\r\n")


async def test_who_has_no_key_any_more_listens_no_longer(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    async with StubCluster(partitions=1) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        keys = Keys(gridscore.grid)
        (gone, text), (_, short) = await keys.create([Role.READ]), await keys.create([Role.READ], seconds=3)
        _, stays = await keys.create([Role.READ])
        async with serving(cluster, "plain", keys=True) as server, client(server) as http:
            shown = [{"Authorization": f"Bearer {each}"} for each in (text, short, stays)]

            async def left(socket):
                last = await told(socket)
                while "event" not in last:
                    last = await told(socket)
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
                assert (last["event"], "no longer good" in last["error"]) == ("end", True)
                assert closed.value.rcvd.code == 1008
                return last["id"]

            async with (
                connected(server, additional_headers=shown[0]) as revoked,
                connected(server, additional_headers=shown[1]) as expired,
                connected(server, additional_headers=shown[2]) as other,
            ):
                http.headers.update(shown[0])
                async with listening(http) as stream:
                    place = (await told(other))["id"]
                    await keys.revoke(gone.id)
                    assert await left(revoked) == place
                    kind, said = await stream.next()
                    assert (kind, "no longer good" in said["error"], stream.place) == ("end", True, place)
                assert (await http.get("/results/plain/stream")).status_code == 401
                assert await left(expired) == place
                await write(cluster, 0)
                assert [each["key"] for each in (await results_of(other, 1))[0]] == ["k0"]
            # Where results never cease, too.
            key, text = await keys.create([Role.READ])
            busy = {"additional_headers": {"Authorization": f"Bearer {text}"}}
            await until_shown(http, text)
            writing = asyncio.create_task(write(cluster, *range(1_000_000)))
            try:
                async with connected(server, **busy) as socket:
                    await results_of(socket, 3)
                    await keys.revoke(key.id)
                    place = await left(socket)
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
            async with connected(
                server, f"/results/plain/stream?last_event_id={place}", additional_headers=shown[2]
            ) as again:
                assert "id" in await told(again)


async def until_shown(http, text):
    async with asyncio.timeout(30):
        while (await http.get("/jobs", headers={"Authorization": f"Bearer {text}"})).status_code != 200:
            await asyncio.sleep(0.05)


async def test_a_server_that_stops_tells_websockets_their_place():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, connected(server) as socket:
            place = (await told(socket))["id"]
            server.stop()
            last = await told(socket)
            assert (last["event"], last["id"]) == ("end", place)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd.code == 1012
