"""Connections of the HTTP source that begin with TLS: they are counted before their handshake, which ends in time.

asyncio's own server makes a protocol only after the handshake. Until then it knows no address, counts nothing, and
waits for a minute: silent clients could use up all file descriptors of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from gridscore.sources.http.connections import Connections
    from gridscore.sources.http.protocol import BoundedHeads

HANDSHAKE_SECONDS = 10.0
"""Time for a handshake."""

GOODBYE_SECONDS = 2.0
"""Time for the other side to confirm the end."""

_PAUSE_SECONDS = 0.5
"""Pause when no connection can be accepted, for example because too many files are open."""


class _Handshake:
    """A connection whose handshake is under way."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def close(self) -> None:
        """Make room for another."""
        self._task.cancel()


class TlsServer:
    """Listens, in the place of an asyncio.Server.

    Args:
        listening: The socket, which listens already and does not block.
        make: Makes the protocol of a connection.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        connections: Connections,
        make: Callable[[], BoundedHeads],
    ) -> None:
        self._context, self._connections, self._make = context, connections, make
        self._listening = listening.dup()  # closed only when nothing waits for it
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Stop accepting, and end handshakes."""
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until accepting and handshakes have ended."""
        await asyncio.wait([self._accepting, *self._handshakes])

    async def _accept(self) -> None:
        with self._listening:
            while True:
                try:
                    accepted, address = await self._loop.sock_accept(self._listening)
                except OSError:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                task = self._loop.create_task(self._begin(accepted, str(address[0])))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _begin(self, accepted: socket.socket, host: str) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- for the types: it runs in one
        handshake = _Handshake(task)
        if not self._connections.enter(handshake, host):
            accepted.close()
            return

        def make() -> BoundedHeads:
            protocol = self._make()
            protocol.handshake = handshake
            return protocol

        try:
            # Closes the socket if it fails.
            with contextlib.suppress(OSError):
                await self._loop.connect_accepted_socket(
                    make,
                    accepted,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=GOODBYE_SECONDS,
                )
        finally:
            self._connections.leave(handshake)
