"""The HTTP side of the source: its addresses, what a request must have, and the answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gridscore.errors import BackPressureError, EventRejectedError, GridError
from gridscore.job.types import seconds_of
from gridscore.sources.http.answer import MAX_AFTER, Answer, failure, http_error, json_response, later
from gridscore.sources.http.events import MAX_KEY, SLICE, EventReader, Lines, array_slices, elements_of
from gridscore.sources.http.health import GridHealth
from gridscore.sources.http.intake import Intake, Ticket
from gridscore.sources.http.requests import Bodies, seconds, sequence
from gridscore.sources.http.results import ResultFinder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gridscore.grid import Grid
    from gridscore.sources.http.settings import HttpSourceSettings

MAX_WAITING_FOR_RESULTS = 1_000  # requests that may wait for a result at once
GRID_SECONDS = 5.0  # how long the grid may take to find a result, besides the time that the request waits
_PIECE = 2_000
_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
_JSON = ("application/json",)
_TEXT = ("", "text/plain")  # as `navigator.sendBeacon` sends a string, or a blob without a type


class EventsApp:
    """Answers requests; the events go into the intake. `intake`: where events wait for the grid."""

    def __init__(self, grid: Grid, settings: HttpSourceSettings, intake: Intake) -> None:
        self._grid, self._settings, self._intake = grid, settings, intake
        self._maps = {settings.to, *settings.also}
        self._reader = EventReader(settings.key, settings.max_event)
        self._health_of_grid = GridHealth(grid, settings.to)
        self._results = ResultFinder(grid)
        self._bodies = Bodies(settings.max_body, settings.max_waiting_bytes)
        self._waiting_for_results = 0
        self._snippet = files("gridscore.sources.http").joinpath("gridscore.js").read_bytes()
        self.refused = 0  # things in requests that were not events

    def asgi(self) -> Starlette:
        """The application, without its gate."""
        return Starlette(
            routes=[
                Route("/events/{map}", self._post_events, methods=["POST"]),
                Route("/results/{map}/{key:path}", self._get_result, methods=["GET"]),
                Route("/healthz", self._get_health, methods=["GET"]),
                Route("/gridscore.js", self._get_snippet, methods=["GET"]),
            ],
            exception_handlers={HTTPException: http_error, Exception: failure},
        )

    def close(self) -> None:
        """Stop asking the grid."""
        self._health_of_grid.close()
        self._results.close()

    # ------------------------------------------------------------------ events

    async def _post_events(self, request: Request) -> Response:
        map_name = request.path_params["map"]
        if map_name not in self._maps:
            raise HTTPException(404, f"`{map_name}` takes no events here: the source must be started with it.")
        if not self._grid.is_connected:
            raise later(503, "The connection to the grid is lost.")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (*_LINES, *_JSON, *_TEXT):
            raise HTTPException(
                415, f"`{content_type}` is not understood: send application/json, application/x-ndjson or text/plain."
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "A compressed body is not understood.")
        prefix = request.query_params.get("key") or request.headers.get("idempotency-key") or None
        if prefix is not None and len(prefix) > MAX_KEY:
            raise HTTPException(400, f"A key has {MAX_KEY} characters at most.")
        if not request.headers.get("content-length", "1").isdigit():
            raise HTTPException(400, "The Content-Length is not a number.")
        intake, ticket = self._intake, Ticket(map_name)
        answer = Answer(ticket, MAX_AFTER if self._settings.results else 0)
        try:
            if content_type in _LINES:
                await self._take_lines(request, ticket, answer, prefix)
            else:
                await self._take_body(request, ticket, answer, prefix, text=content_type in _TEXT)
            answer.is_read = True
            await intake.confirmed(ticket)
            if answer.listed:
                answer.after = await self._results.sequences_before(map_name, answer.listed)
        except BackPressureError as error:
            # A lost connection also means no room, but needs another remedy.
            return answer.failed(429 if self._grid.is_connected else 503, str(error))
        except GridError as error:
            return answer.failed(503, str(error))
        except _IdleError as error:
            return answer.failed(408, str(error))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it; whole events stay
        finally:
            intake.drop(ticket)
            self.refused += answer.refused
        return answer.given()

    async def _take_lines(self, request: Request, ticket: Ticket, answer: Answer, prefix: str | None) -> None:
        lines, held = Lines(self._settings.max_event), 0
        try:
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    await self._take(lines.feed(chunk), ticket, answer, prefix)
                    # Nor may many streams, each in the middle of a long line, fill the memory.
                    self._bodies.held += lines.held - held
                    held = lines.held
                    if held and self._bodies.held > self._settings.max_waiting_bytes:
                        raise BackPressureError("Too much is being sent at once.")
            await self._take(lines.end(), ticket, answer, prefix)
        finally:
            self._bodies.held -= held

    async def _chunks(self, request: Request) -> AsyncGenerator[bytes]:
        """The body as it arrives; fails when we close, or nothing comes for too long."""
        stream, idle = request.stream(), seconds_of(self._settings.idle)
        closed = asyncio.ensure_future(self._intake.closed.wait())
        try:
            while True:
                chunk = asyncio.ensure_future(anext(stream, None))
                await asyncio.wait((chunk, closed), timeout=idle, return_when=asyncio.FIRST_COMPLETED)
                if not chunk.done():
                    chunk.cancel()
                    if not closed.done():
                        raise _IdleError(f"Nothing came for {idle:g} s: an empty line keeps the stream open.")
                    raise GridError("This source is being stopped.", "Send what is not confirmed again.")
                data = chunk.result()
                if data is None:
                    return
                yield data
        finally:
            closed.cancel()

    async def _take_body(
        self, request: Request, ticket: Ticket, answer: Answer, prefix: str | None, *, text: bool
    ) -> None:
        received = bytearray()
        try:
            await self._bodies.receive(request, received)
            body = bytes(received)
            start = body.lstrip()[:1]
            if not start:
                raise HTTPException(400, "There is no event in the body.")
            if start == b"[":
                for begin, end in await _slices(body):
                    await self._take(elements_of(body, begin, end), ticket, answer, prefix)
            elif text and b"\n" in body.strip() and not _is_json(body):
                lines = Lines(self._settings.max_event)
                for begin in range(0, len(body), SLICE):
                    await self._take(lines.feed(body[begin : begin + SLICE]), ticket, answer, prefix)
                await self._take(lines.end(), ticket, answer, prefix)
            else:
                answer.single = True
                await self._take([body.strip()], ticket, answer, prefix, single=True)
        finally:
            self._bodies.held -= len(received)

    async def _take(
        self, texts: list[bytes], ticket: Ticket, answer: Answer, prefix: str | None, *, single: bool = False
    ) -> None:
        for start in range(0, len(texts), _PIECE):
            taken = self._reader.read(texts[start : start + _PIECE], answer.seen, prefix, single=single)
            answer.add(taken)
            await self._intake.offer(ticket, taken.entries)
            await asyncio.sleep(0)  # others have their turn, too, if nothing of this was an event

    # ------------------------------------------------------------------ the rest

    async def _get_result(self, request: Request) -> Response:
        map_name, key = request.path_params["map"], request.path_params["key"]
        if map_name not in self._settings.results:
            raise HTTPException(404, f"`{map_name}` may not be asked here: the source must be started with it.")
        if not 1 <= len(key) <= MAX_KEY + 20:
            raise HTTPException(400, "This cannot be a key.")
        wait, after = (
            seconds("wait", request.query_params.get("wait", "0")),
            sequence("after", request.query_params.get("after")),
        )
        if not self._grid.is_connected:
            raise later(503, "The connection to the grid is lost.")
        if self._waiting_for_results >= MAX_WAITING_FOR_RESULTS:
            raise later(429, "Too many are waiting for results.")
        self._waiting_for_results += 1
        try:
            async with asyncio.timeout(wait + GRID_SECONDS):
                found = await self._unless_closed(self._results.find(map_name, key, wait, after))
        except EventRejectedError as error:
            rejected = {"job": error.job, "stage": error.stage, "reason": error.reason, "dead_letter": error.letter}
            return json_response(422, {"error": error.message, "rejected": rejected}, {"Cache-Control": "no-store"})
        except (HazelcastError, GridError, TimeoutError):
            raise later(503, "The grid did not answer.") from None
        finally:
            self._waiting_for_results -= 1
        if found is None:
            newer = "" if after is None else f" of an event after the sequence {after}"
            raise HTTPException(404, f"There is no result{newer} for `{key}`{f' after {wait:g} s' if wait else ''}.")
        return Response(found, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _unless_closed(self, looking: Any) -> bytes | None:
        look = asyncio.ensure_future(looking)
        closed = asyncio.ensure_future(self._intake.closed.wait())
        try:
            await asyncio.wait((look, closed), return_when=asyncio.FIRST_COMPLETED)
            if not look.done():
                raise later(503, "This source is being stopped.")
            result: bytes | None = look.result()
            return result
        finally:
            closed.cancel()
            look.cancel()

    async def health(self) -> tuple[str, dict[str, int]]:
        """`ok` or what is wrong, and counts."""
        state = "stopping" if self._intake.closed.is_set() else await self._health_of_grid.problem() or "ok"
        return state, self.counts()

    def counts(self) -> dict[str, int]:
        """Events that are confirmed and that wait, and what was not an event."""
        intake = self._intake
        return {
            "confirmed": intake.acknowledged,
            "waiting": intake.events,
            "waiting_bytes": intake.size,
            "refused": self.refused,
        }

    async def _get_health(self, _request: Request) -> Response:
        state, counts = await self.health()
        return json_response(200 if state == "ok" else 503, {"status": state, **counts})

    async def _get_snippet(self, _request: Request) -> Response:
        return Response(
            self._snippet,
            media_type="text/javascript; charset=utf-8",
            headers={"Cache-Control": "public, max-age=3600", "Cross-Origin-Resource-Policy": "cross-origin"},
        )


class _IdleError(Exception):
    """A stream has fallen silent."""


async def _slices(body: bytes) -> list[tuple[int, int]]:
    """Begin and end of the slices of an array, all of which is JSON."""
    found = []
    try:
        for bounds in array_slices(body):
            if bounds is not None:
                found.append(bounds)
            await asyncio.sleep(0)
    except ValueError as error:
        raise HTTPException(400, f"{str(error).capitalize()}.") from None
    return found


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
