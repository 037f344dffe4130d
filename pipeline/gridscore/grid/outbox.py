"""The outbox of a connection: sends what one turn of the event loop wrote in one call, and nothing too late.

A process may be paused at any moment, and sends what it had in hand when it goes on. A writer with a lease (see
`group.leases`) therefore needs the clock read last of all, right before the system takes the bytes: not when it asks
for the write, nor before the bytes wait in a transport's buffer. So the outbox sends by itself, drops what is too late,
and tells the writer. The system, too, may hold bytes while the other side does not answer: `hold_at_most` bounds that.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

SEND_BYTES = 1 << 20  # bytes from which on nothing more is joined into a call


def _nothing() -> None:
    return None


@dataclass(slots=True)
class _Piece:
    """Bytes that may be sent only before `until`, of the monotonic clock."""

    data: bytes
    until: float = math.inf
    expired: Callable[[], None] = _nothing
    begun: bool = False


class Outbox:
    """Sends on the socket of a transport, which must not write itself."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: int,  # of the transport's socket; it is duplicated, so the transport may close its own
        broken: Callable[[], None],  # called when nothing more can be sent: the connection is to be aborted
        sent: Callable[[int], None] = lambda _: None,  # called with the number of bytes that the system has taken
    ) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=os.dup(file))
        self._socket.setblocking(False)
        self._broken, self._sent = broken, sent
        self._pieces: deque[_Piece] = deque()
        self._scheduled = False
        self._waiting = False  # for the socket to take more
        self._closed = False

    def hold_at_most(self, seconds: float) -> None:
        """Let the system (only Linux can) give the connection up when bytes were not confirmed for this long."""
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, option, max(1, int(seconds * 1000)))

    def write(self, data: bytes) -> None:
        """Send, in the order of the calls, in the next turn of the event loop."""
        self._append(_Piece(data))

    def write_until(self, data: bytes, until: float, expired: Callable[[], None]) -> None:
        """Send, but not once `until` (of the monotonic clock) has come; then `expired` is called instead."""
        self._append(_Piece(data, until, expired))

    def close(self) -> None:
        """Send no more. A second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._waiting:
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._pieces.clear()

    def _append(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        if not self._scheduled and not self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if not self._closed and not self._waiting:
            self._send()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self._waiting = False
        self._send()

    def _send(self) -> None:
        """Send until nothing is left, or the socket takes no more."""
        while self._pieces and not self._waiting and not self._closed:
            batch = self._take()
            if not batch:
                continue
            data = batch[0].data if len(batch) == 1 else b"".join([piece.data for piece in batch])
            until = min([piece.until for piece in batch])
            try:
                # Two calls lie between here and the system's taking the bytes; neither waits.
                if time.monotonic() >= until:
                    self._pieces.extendleft(reversed(batch))
                    continue
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._give_up()
                return
            self._sent(sent)
            if sent < len(data):
                self._keep(batch, sent)

    def _take(self) -> list[_Piece]:
        """What to send next; what is too late is dropped."""
        pieces, batch, size = self._pieces, list[_Piece](), 0
        now = time.monotonic()
        while pieces and size < SEND_BYTES:
            piece = pieces.popleft()
            if now < piece.until:
                batch.append(piece)
                size += len(piece.data)
            elif piece.begun:
                # Half of it has been sent. Without the rest, the other side drops it together with the connection.
                self._give_up()
                return []
            else:
                piece.expired()
        return batch

    def _keep(self, batch: list[_Piece], sent: int) -> None:
        """Keep what was not sent, and go on when the socket takes more."""
        while sent >= len(batch[0].data):
            sent -= len(batch.pop(0).data)
        if sent:
            batch[0].data = batch[0].data[sent:]
            batch[0].begun = True
        self._pieces.extendleft(reversed(batch))
        self._waiting = True
        self._loop.add_writer(self._socket.fileno(), self._writable)

    def _give_up(self) -> None:
        self._broken()
        self.close()
