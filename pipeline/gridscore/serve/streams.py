"""Streams of results: `GET /results/JOB/stream`, as server-sent events that any browser or `curl` reads."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from gridscore.errors import GridscoreError, JournalMissingError, UsageError
from gridscore.serve.feed import CutOffError, Feed
from gridscore.serve.tasks import unless_left
from gridscore.sources.http.answer import http_error, later

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from starlette.types import Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.serve.feed import Item, Listener
    from gridscore.serve.live_jobs import LiveJobs

MAX_LISTENERS = 500  # streams at once, of all jobs: half of the requests that there may be
PLACE_SECONDS = 1.0  # how often a listener is told its place
# After this time without a result a comment is sent, so that nobody on the way takes the connection for dead.
IDLE_SECONDS = 15.0

_PATH = re.compile(r"/results/([^/]+)/stream")
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class Streams:
    """Answers those who listen."""

    def __init__(self, grid: Grid, jobs: LiveJobs) -> None:
        self._grid, self._jobs = grid, jobs
        self._feeds: dict[str, asyncio.Task[Feed]] = {}
        self.listeners = 0

    def is_for(self, path: str) -> bool:
        """Whether a path is the stream of a known job: others may be results, for these have any keys."""
        matched = _PATH.fullmatch(path)
        return matched is not None and matched[1] in self._jobs.records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        self.listeners += 1
        try:
            await self._listen(request, send)
        except ClientDisconnect:
            pass
        except HTTPException as error:
            await (await http_error(request, error))(scope, receive, send)
        finally:
            self.listeners -= 1

    def close(self) -> None:
        """End all streams; each is told its place."""
        for opening in self._feeds.values():
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            opening.cancel()
        self._feeds.clear()

    async def _listen(self, request: Request, send: Send) -> None:
        if request.method != "GET":
            raise HTTPException(405, "Listen with GET.", headers={"Allow": "GET"})
        if self.listeners > MAX_LISTENERS:
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
            work = asyncio.ensure_future(_send_all(feed, listener, decisions, send))
            await unless_left(request, work)
        finally:
            feed.listeners -= 1
            if not feed.listeners:
                feed.close()

    async def _feed(self, map_name: str) -> Feed:
        opening = self._feeds.get(map_name)
        if opening is None or (
            opening.done() and (opening.cancelled() or opening.exception() is not None or not opening.result().alive)
        ):
            opening = self._feeds[map_name] = asyncio.create_task(Feed(self._grid, map_name).open())
        return await asyncio.shield(opening)


async def _send_all(feed: Feed, listener: Listener, decisions: Collection[str], send: Send) -> None:
    now = asyncio.get_running_loop().time
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await _write(send, b"retry: 1000\nid: %b\n\n" % listener.place.encode())
    told, lost = now(), 0
    async with aclosing(feed.results(listener)) as results:
        while True:
            coming = asyncio.ensure_future(anext(results))
            try:
                while not coming.done():
                    await asyncio.wait({coming}, timeout=IDLE_SECONDS)
                    if not coming.done():
                        await _write(send, b":\n\n")
                items = coming.result()
            except GridscoreError as error:
                kind = b"cut" if isinstance(error, CutOffError) else b"end"
                why = msgspec.json.encode({"error": error.message})
                last = b"event: %b\nid: %b\ndata: %b\n\n" % (kind, listener.place.encode(), why)
                await send({"type": "http.response.body", "body": last, "more_body": False})
                return
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            body = _events(items, decisions)
            if listener.lost > lost:
                body = b'event: lost\ndata: {"lost":%d}\n\n' % (listener.lost - lost) + body
                lost = listener.lost
            if now() - told >= PLACE_SECONDS:
                body += b"id: %b\n\n" % listener.place.encode()
                told = now()
            if body:
                await _write(send, body)


def _events(items: Iterable[Item], decisions: Collection[str]) -> bytes:
    return b"".join(b"data: %b\n\n" % item.text for item in items if not decisions or item.decision in decisions)


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
