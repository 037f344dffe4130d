"""WebSockets to which only we write: bounded as the connections that they begin as, and ended when nobody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gridscore.sources.http.protocol import REFUSED, Unread, faults

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame
    from websockets.http11 import Request

    from gridscore.sources.http.connections import Connections

MAX_MESSAGE = 4_096  # bytes of a frame of a client, which has nothing to say but that it is there, or goes

_NOT_ONE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 47\r\nconnection: close\r\n\r\n"
    b'{"error":"This is not how a WebSocket begins."}'
)


class BoundedSocket(Unread, WebSocketsSansIOProtocol):
    """A connection that has become a WebSocket."""

    def __init__(self, *arguments: Any, connections: Connections, names: frozenset[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = faults
        self._bounds, self._names = connections, names  # those of the client's certificate

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """A request is there; it counts among the requests as long as the WebSocket is open."""
        super().connection_made(transport)
        if self._bounds.enter(self, self.client[0] if self.client else "") and self._bounds.begin(self):
            self._bounds.received(self)
        else:
            transport.write(REFUSED)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._stalled is not None:
            self._stalled.cancel()
        self._bounds.leave(self)
        super().connection_lost(exc)
        self.writable.set()  # or who waits for it would do so for ever: uvicorn before 0.53 does not

    def close(self) -> None:
        """Make room for another."""
        self._abort()

    def data_received(self, data: bytes) -> None:
        """Take data; the first is a whole request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.write(_NOT_ONE)
            self.transport.close()

    def pause_writing(self) -> None:
        """What was written is not read: nothing more is taken, for each ping would be answered."""
        super().pause_writing()
        if not self.transport.is_closing():
            self.transport.pause_reading()
        self._bounds.stalled(self)
        self._watch()

    def resume_writing(self) -> None:
        """It was read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self._bounds.received(self)

    def handle_connect(self, event: Request) -> None:
        """Tell the application also what the certificate says."""
        super().handle_connect(event)
        if self._names and self.handshake_initiated and not self.handshake_complete:
            self.scope["gridscore.names"] = self._names  # type: ignore[typeddict-unknown-key]

    def handle_text(self, event: Frame) -> None:  # noqa: ARG002 -- whatever it is
        """End the connection of who sends something."""
        self.conn.fail(1003, "Nothing is to be sent here.")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1003})
        self.transport.close()

    handle_bytes = handle_cont = handle_text

    async def send(self, message: ASGISendEvent) -> None:
        """As uvicorn's, which takes an answer that is not a WebSocket for none, and would log that as our fault."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True
