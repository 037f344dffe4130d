"""Streams of results: `GET /results/JOB/stream`, as server-sent events, or by a WebSocket."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from hazelcast.errors import HazelcastError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection

from gridscore.errors import GridscoreError, JournalMissingError, UsageError
from gridscore.serve.feed import PULSE_SECONDS, CutOffError, Feed
from gridscore.serve.tasks import unless_left
from gridscore.sources.http.answer import http_error, later
from gridscore.sources.http.gate import SUBPROTOCOL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterator, Sequence

    from starlette.types import Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.keys import Key
    from gridscore.serve.feed import Listener, Piece
    from gridscore.serve.live_jobs import LiveJobs
    from gridscore.sources.http.gate import Guard

PLACE_SECONDS = 1.0  # how often a listener is told its place
KEY_SECONDS = 0.5  # how often is looked whether the key is still good

_NOT_PERMITTED, _RESTART, _AGAIN_LATER = 1008, 1012, 1013  # why a WebSocket is closed

_PATH = re.compile(r"/results/([^/]+)/stream")
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class _RefusedError(GridscoreError):
    """Who listens may not any more."""


class Streams:
    """Answers those who listen. `most`: streams at once, of all jobs."""

    def __init__(self, grid: Grid, jobs: LiveJobs, guard: Guard, most: int) -> None:
        self._grid, self._jobs, self._guard, self._most = grid, jobs, guard, most
        self._feeds: dict[str, asyncio.Task[Feed]] = {}
        self._watches: dict[Key, tuple[set[Listener], asyncio.Task[None]]] = {}
        self.listeners = 0

    def is_for(self, path: str) -> bool:
        """Whether a path is the stream of a known job: others may be results, for these have any keys."""
        matched = _PATH.fullmatch(path)
        return matched is not None and matched[1] in self._jobs.records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        self.listeners += 1
        try:
            await self._listen(HTTPConnection(scope), receive, send)
        except ClientDisconnect:
            pass
        except HTTPException as error:
            await (await http_error(None, error))(scope, receive, send)
        finally:
            self.listeners -= 1

    def close(self) -> None:
        """End all streams; each is told its place."""
        for opening in self._feeds.values():
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            opening.cancel()
        self._feeds.clear()

    async def _listen(self, request: HTTPConnection, receive: Receive, send: Send) -> None:
        if request.scope.get("method", "GET") != "GET":
            raise HTTPException(405, "Listen with GET.", headers={"Allow": "GET"})
        if self.listeners > self._most:
            raise later(503, "There are too many listeners.")
        matched = _PATH.fullmatch(request.scope["path"])
        name = matched[1] if matched else ""
        map_name = self._jobs.records[name].job.results
        place = request.headers.get("last-event-id") or request.query_params.get("last_event_id") or None
        try:
            feed = await self._feed(map_name)
            listener = feed.listener(place)
        except UsageError as error:
            raise HTTPException(400, str(error)) from None
        except JournalMissingError as error:
            raise HTTPException(409, str(error)) from None
        except GridscoreError as error:
            raise later(503, str(error)) from None
        feed.listeners += 1
        try:
            decisions = frozenset(request.query_params.getlist("decision"))
            voice = _Events(send) if request.scope["type"] == "http" else _Messages(send, request.scope["subprotocols"])
            with self._watched(request.scope.get("gridscore.key"), listener):
                await unless_left(receive, asyncio.ensure_future(_tell_all(feed, listener, decisions, voice)))
        finally:
            feed.listeners -= 1
            if not feed.listeners:
                feed.close()

    @contextmanager
    def _watched(self, key: Key | None, listener: Listener) -> Iterator[None]:
        """End a listener when the key that it has shown is no longer good: one watch for all with the same."""
        if key is None:
            yield
            return
        if key not in self._watches:
            those: set[Listener] = set()
            self._watches[key] = those, asyncio.create_task(self._watch(key, those))
        listeners, watch = self._watches[key]
        listeners.add(listener)
        try:
            yield
        finally:
            listeners.discard(listener)
            if not listeners:
                watch.cancel()
                del self._watches[key]

    async def _watch(self, key: Key, listeners: set[Listener]) -> None:
        while True:
            await asyncio.sleep(KEY_SECONDS)
            with suppress(HazelcastError, GridscoreError):  # looked up again
                if not await self._guard.is_good(key):
                    for each in listeners:
                        each.end()

    async def _feed(self, map_name: str) -> Feed:
        opening = self._feeds.get(map_name)
        if opening is None or (
            opening.done() and (opening.cancelled() or opening.exception() is not None or not opening.result().alive)
        ):
            opening = self._feeds[map_name] = asyncio.create_task(Feed(self._grid, map_name).open())
        return await asyncio.shield(opening)


class _Events:
    """Tells a listener by server-sent events."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def begin(self, place: str) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._write(b"retry: 1000\nid: %b\n\n" % place.encode())

    async def tell(self, body: bytes) -> None:
        await self._write(body)

    @staticmethod
    def body(texts: list[bytes], lost: int, place: str) -> bytes:
        body = b'event: lost\ndata: {"lost":%d}\n\n' % lost if lost else b""
        body += b"".join(b"data: %b\n\n" % text for text in texts)
        return body + (b"id: %b\n\n" % place.encode() if place else b"")

    async def be_there(self) -> None:
        await self._write(b":\n\n")

    async def end(self, kind: str, _code: int, place: str, why: str) -> None:
        said = kind.encode(), place.encode(), msgspec.json.encode({"error": why})
        await self._write(b"event: %b\nid: %b\ndata: %b\n\n" % said, more=False)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class _Messages:
    """Tells a listener by messages of a WebSocket, each a JSON object; the protocol itself sees who is there."""

    def __init__(self, send: Send, subprotocols: Sequence[str]) -> None:
        self._send = send
        self._subprotocol = SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    async def begin(self, place: str) -> None:
        await self._send({"type": "websocket.accept", "subprotocol": self._subprotocol})
        await self._say(b'{"id":"%b"}' % place.encode())

    async def tell(self, body: bytes) -> None:
        await self._say(body)

    @staticmethod
    def body(texts: list[bytes], lost: int, place: str) -> bytes:
        parts = [b'"lost":%d' % lost] if lost else []
        parts += [b'"results":[%b]' % b",".join(texts)] if texts else []
        parts += [b'"id":"%b"' % place.encode()] if place else []
        return b"{%b}" % b",".join(parts)

    async def be_there(self) -> None:
        pass

    async def end(self, kind: str, code: int, place: str, why: str) -> None:
        await self._say(msgspec.json.encode({"event": kind, "error": why, "id": place}))
        await self._send({"type": "websocket.close", "code": code})

    async def _say(self, text: bytes) -> None:
        await self._send({"type": "websocket.send", "text": text.decode()})


async def _tell_all(feed: Feed, listener: Listener, decisions: frozenset[str], voice: _Events | _Messages) -> None:
    now = asyncio.get_running_loop().time
    await voice.begin(listener.place)
    told, lost = now(), 0
    async with aclosing(feed.results(listener)) as results:
        while True:
            try:
                piece = await _next(results, listener, voice)
            except GridscoreError as error:
                kind, code = ("cut", _AGAIN_LATER) if isinstance(error, CutOffError) else ("end", _RESTART)
                code = _NOT_PERMITTED if isinstance(error, _RefusedError) else code
                await voice.end(kind, code, listener.place, error.message)
                return
            more, lost = listener.lost - lost, listener.lost
            place = ""
            if now() - told >= PLACE_SECONDS:
                told, place = now(), listener.place
            body = piece.body(
                (voice.body, decisions, place, more), partial(_body, voice, piece, decisions, more, place)
            )
            if body:
                await voice.tell(body)


def _body(voice: _Events | _Messages, piece: Piece, decisions: Collection[str], lost: int, place: str) -> bytes:
    texts = [item.text for item in piece.items if not decisions or item.decision in decisions]
    return voice.body(texts, lost, place) if texts or lost or place else b""


async def _next(results: AsyncGenerator[Piece], listener: Listener, voice: _Events | _Messages) -> Piece:
    """The next piece. Raises _RefusedError if the listener is to end."""
    while not listener.ended.done():
        coming = asyncio.ensure_future(anext(results)) if listener.positions is not None else None
        try:
            while coming is not None and not coming.done():  # it catches up, and hears of nothing else meanwhile
                done, _ = await asyncio.wait(
                    (coming, listener.ended), timeout=PULSE_SECONDS, return_when="FIRST_COMPLETED"
                )
                if listener.ended.done() and not coming.done():
                    raise _RefusedError("The key is no longer good.")
                if not done:
                    await voice.be_there()
            piece = await (anext(results) if coming is None else coming)
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        if piece.items:
            return piece
        if not listener.ended.done():
            await voice.be_there()
    raise _RefusedError("The key is no longer good.")
