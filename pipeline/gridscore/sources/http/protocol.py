"""Limits of a connection around its requests: for heads, requests at once, and answers that nobody reads.

uvicorn has none of these with httptools. Without them, connections that send or read nothing take up all room for ever,
and an endless header fills the memory.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from gridscore.sources.http.connections import Connection, Connections

# Of uvicorn's messages log only our own faults: a stranger who sends nonsense must not fill the log.
faults = logging.getLogger(f"{__name__}.faults")
faults.setLevel(logging.ERROR)

HEAD_SECONDS = 10.0  # time from the connection, or from the last answer, until a request's head must be there
# Most bytes of a head, or after the last chunk of a body; up to two reads of the socket may exceed it.
MAX_HEAD = 64 << 10

# Requests that may wait for the answer to the one before; together their heads have `MAX_HEAD` bytes at most.
MAX_PIPELINED = 16

STALLED_SECONDS = 10.0  # how long an answer may stay unread until its connection is ended
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json\r\ncontent-length: 49\r\nconnection: close\r\n\r\n"
    b'{"error":"The head of the request is too large."}'
)

_CROWDED = b'{"error":"There are too many connections: come back later."}'
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_CROWDED), _CROWDED)
)
_refuse = Response(_CROWDED, 503, {"Retry-After": "1", "Connection": "close"}, media_type="application/json")


class Unread:
    """A part of a connection that ends it when nobody reads what is written."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stalled: asyncio.TimerHandle | None = None

    def _abort(self) -> None:
        self.transport.abort()

    def _watch(self) -> None:
        """End the connection when nobody reads any more."""
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        self._stalled = None
        size = self.transport.get_write_buffer_size()
        if size >= before:
            self._abort()
        elif size:
            self._watch()


class BoundedHeads(Unread, HttpToolsProtocol):
    """A connection whose heads are bounded in time and in size, and that counts among the connections.

    `handshake`: what has counted for it during its TLS handshake.
    """

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = faults
        self._connections = connections
        self.handshake: Connection | None = None
        self._names: frozenset[str] = frozenset()
        self._deadline: asyncio.TimerHandle | None = None
        self._head_until = math.inf
        self._reading_head = True
        self._moved = False  # whether the current read made progress: a head began or ended, or body came
        self._silent = 0  # bytes without progress
        self._ahead = 0  # bytes of the heads of requests that wait
        self._running: RequestResponseCycle | None = None  # uvicorn only knows the last one
        if self.ws_protocol_class is not None:
            self.ws_protocol_class = partial(self._socket, self.ws_protocol_class)  # type: ignore[assignment]

    def _socket(self, kind: type[asyncio.Protocol], **options: Any) -> asyncio.Protocol:
        """What a WebSocket's connection goes on with."""
        return kind(connections=self._connections, names=self._names, **options)  # type: ignore[call-arg]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """A client has connected: a head must follow."""
        super().connection_made(transport)
        if self.handshake is not None:
            self._connections.leave(self.handshake)
            self._names = _names(transport.get_extra_info("peercert") or {})
        if self._connections.enter(self, self.client[0] if self.client else ""):
            self._expect_head()
        else:
            transport.write(REFUSED)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timers()
        self._connections.leave(self)
        self._answer_nobody()
        super().connection_lost(exc)

    def close(self) -> None:
        """Make room for another, even if nobody reads the answer."""
        if self.transport.get_write_buffer_size():
            self._abort()
        elif not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        """An answer is not being read as fast as it is written."""
        super().pause_writing()
        self._connections.stalled(self)
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.received(self)

    def data_received(self, data: bytes) -> None:
        """Take data, unless there is too much that is neither a whole head nor a body."""
        self._moved = False
        super().data_received(data)
        self._silent = 0 if self._moved else self._silent + len(data)
        if self._silent > MAX_HEAD and not self.transport.is_closing():
            if self._reading_head and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._moved = self._reading_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but none after a body: nobody asks for them."""
        if self._reading_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._moved, self._reading_head = True, False
        self._expect_nothing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._ahead += len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if len(self.pipeline) >= MAX_PIPELINED or self._ahead > MAX_HEAD or self.transport.is_closing():
                self._abort()
                return
        app = self.app
        if not self._connections.begin(self):
            self.app = _refuse
        super().on_headers_complete()
        self.app = app

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._moved = True
        self._connections.moved(self)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._moved = True
        self._connections.received(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request was answered: the next one may follow."""
        waits = bool(self.pipeline)
        if not waits:
            self._ahead = 0
        if self.transport.get_write_buffer_size():
            self._watch()
        super().on_response_complete()
        if not waits:
            self._connections.end(self)
            self._expect_head()

    def handle_websocket_upgrade(self) -> None:
        """Let a WebSocket go on with the connection, unless an answer is under way on it."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._abort()
            return
        self._end_timers()
        self._connections.leave(self)
        super().handle_websocket_upgrade()

    def _end_timers(self) -> None:
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]  # a TypedDict
        # For those who answer many at once, and need not answer who has left; and who need not wait for a body.
        scope["gridscore.has_left"] = lambda: cycle.disconnected
        scope["gridscore.is_whole"] = lambda: not cycle.more_body
        if self._names:
            scope["gridscore.names"] = self._names
        super()._start_asgi_task(cycle, app)

    def _abort(self) -> None:
        self._answer_nobody()
        self.transport.abort()

    def _answer_nobody(self) -> None:
        """Write nothing more: it would fail, and be logged as our fault."""
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _expect_head(self) -> None:
        # A timer goes on from request to request: a new one for each would cost a tenth of it.
        self._head_until = self.loop.time() + HEAD_SECONDS
        if self._deadline is None:
            self._deadline = self.loop.call_at(self._head_until, self._look_for_head)

    def _expect_nothing(self) -> None:
        self._head_until = math.inf

    def _look_for_head(self) -> None:
        self._deadline = None
        if self._head_until <= self.loop.time():
            self.close()
        elif self._head_until < math.inf:
            self._deadline = self.loop.call_at(self._head_until, self._look_for_head)


def _names(certificate: dict[str, Any]) -> frozenset[str]:
    """The names in a client's certificate: of its subject, and further ones."""
    subject = (pair for each in certificate.get("subject", ()) for pair in each)
    further = certificate.get("subjectAltName", ())
    return frozenset([*(name for kind, name in subject if kind == "commonName"), *(name for _, name in further)])
