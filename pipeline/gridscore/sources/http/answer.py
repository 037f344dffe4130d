"""The answer to a request with events: how many the grid has, under which keys, and what was not an event."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from gridscore.sources.http.events import EventError, RequestEvents
    from gridscore.sources.http.intake import Ticket

_log = logging.getLogger(__name__)

MAX_LISTED = 1_000  # most keys that an answer lists; if there are more, none
MAX_ERRORS = 100  # most errors that an answer lists; all are counted
MAX_AFTER = 100  # most events for which an answer has `after`; if there are more, none
# How long the rest of a refused body is read and thrown away: in all, and while nothing comes.
REST_SECONDS, SILENT_SECONDS = 10.0, 1.0


class Answer:
    """The answer to a request, once its events are confirmed."""

    def __init__(self, ticket: Ticket, most_listed: int) -> None:
        self._ticket, self._most_listed = ticket, most_listed
        self.listed: list[tuple[str, bytes]] = []  # the events of `after`
        self.after: list[int | None] = []
        self._keys: list[str] | None = []
        self._errors: list[EventError] = []
        self.seen = self.refused = 0
        self.single = False
        self.is_read = False  # the whole body

    def add(self, taken: RequestEvents) -> None:
        """Add events of the request."""
        self.seen += len(taken.entries) + len(taken.errors)
        self.refused += len(taken.errors)
        self._errors += taken.errors[: MAX_ERRORS - len(self._errors)]
        if self._most_listed:
            self.listed += taken.entries
            if len(self.listed) > self._most_listed:
                self._most_listed, self.listed = 0, []
        if self._keys is not None:
            self._keys += [key for key, _ in taken.entries]
            if len(self._keys) > MAX_LISTED:
                self._keys = None  # an endless stream would have too many

    def given(self) -> Response:
        """The answer when all events are in the grid."""
        if self.single and self._errors:
            [error] = self._errors
            return json_response(413 if error.too_large else 400, {"error": f"{error.error}."})
        status = 202 if not self.refused else 207 if self._ticket.confirmed else 400
        return json_response(status, self._value())

    def failed(self, status: int, error: str) -> Response:
        """The answer when not all are in the grid, or that is unknown."""
        answer = json_response if self.is_read else refusal
        return answer(status, {"error": error, **self._value()}, {"Retry-After": "1", "Connection": "close"})

    def _value(self) -> dict[str, Any]:
        value: dict[str, Any] = {"accepted": self._ticket.confirmed}
        if self._keys is not None:
            value["keys"] = self._keys[: self._ticket.confirmed]
        if self.after:
            value["after"] = self.after
        if self.refused:
            value["refused"] = self.refused
            value["errors"] = [{"index": each.number, "error": each.error} for each in self._errors]
        return value


class _Refusal(Response):
    """An answer that ends the connection, perhaps before the whole body was read.

    Many clients send the whole body before they read an answer, and closing a connection with unread data resets it:
    they would never see the answer. So the rest is read and thrown away for some seconds.
    """

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, read on, and end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
                while (await asyncio.wait_for(receive(), SILENT_SECONDS)).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


def refusal(status: int, value: Any, headers: dict[str, str]) -> Response:
    """An answer in JSON to a request whose rest is not read."""
    headers = {**headers, "Connection": "close"}
    return _Refusal(msgspec.json.encode(value), status, headers, media_type="application/json")


def json_response(status: int, value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def later(status: int, message: str) -> HTTPException:
    """A refusal that holds only for now."""
    return HTTPException(status, message, headers={"Retry-After": "1"})


async def http_error(_request: Request | None, error: Exception) -> Response:
    """The answer to a request that was refused."""
    if not isinstance(error, HTTPException):
        raise error
    answer = refusal if error.status_code in (408, 413, 429) else json_response  # there may be more of the body
    return answer(error.status_code, {"error": error.detail}, dict(error.headers or {}))


async def failure(_request: Request, error: Exception) -> Response:
    """The answer to a request that has failed by our fault."""
    _log.error("a request failed", exc_info=error)
    return json_response(500, {"error": "Something went wrong here; the log says what."})
