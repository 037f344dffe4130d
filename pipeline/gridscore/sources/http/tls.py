"""Connections of the HTTP source that begin with TLS: they are counted before their handshake, which ends in time.

A certificate that is renewed is loaded when the next one connects, so nobody has to start the source again.

asyncio's own server makes a protocol only after the handshake. Until then it knows no address, counts nothing, and
waits for a minute: silent clients could use up all file descriptors of the process.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gridscore.sources.http.connections import Connections
    from gridscore.sources.http.protocol import BoundedHeads

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0  # time for a handshake
GOODBYE_SECONDS = 2.0  # time for the other side to confirm the end
LOOK_SECONDS = 1.0  # the files of the certificate are looked at no more often
_MOST_SAID = 20  # kinds of failures

_PAUSE_SECONDS = 0.5  # pause when no connection can be accepted, for example because too many files are open


class _Handshake:
    """A connection whose handshake is under way."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def close(self) -> None:
        """Make room for another."""
        self._task.cancel()


class Certificate:
    """The certificate of the server, and who issues those of its clients; it follows the files.

    `files`: the chain, its key, and the authorities that clients must have a certificate of, if they must. `context`:
    for the next connection. Raises ssl.SSLError if the files are of no use.
    """

    def __init__(self, *files: str) -> None:
        self._files = files
        self._known = self._look()
        self._due = 0.0
        self.context = self._load()

    def follow(self) -> None:
        """Load the files again if they have changed; if they are of no use, what was loaded stays."""
        if (now := time.monotonic()) < self._due:
            return
        self._due = now + LOOK_SECONDS
        known, self._known = self._known, self._look()
        if self._known == known:
            return
        try:
            self.context = self._load()
        except OSError as error:  # ssl.SSLError is one
            why = getattr(error, "reason", None) or error.strerror or error
            _log.error(
                "%s, or what belongs to it, has changed and cannot be used, the one before stays in use: %s",
                self._files[0],
                why,
                extra={"action": "certificate_refused"},
            )
        else:
            _log.info("%s has changed and is in use now", self._files[0], extra={"action": "certificate_renewed"})

    def _load(self) -> ssl.SSLContext:
        """A new context: one that was used keeps the authorities that it has once loaded."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, private_key = self._files[:2]
        context.load_cert_chain(certificate, private_key, password="")  # nobody is there to be asked
        for authorities in self._files[2:]:
            context.load_verify_locations(authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for each in self._files:
            try:
                stat = Path(each).stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        return found


class TlsServer:
    """Listens, in the place of an asyncio.Server.

    `listening`: the socket, which listens already and does not block; `make`: makes the protocol of a connection.
    """

    def __init__(
        self,
        listening: socket.socket,
        certificate: Certificate,
        connections: Connections,
        make: Callable[[], BoundedHeads],
    ) -> None:
        self._certificate, self._connections, self._make = certificate, connections, make
        self._said: set[str] = set()
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

        self._certificate.follow()
        try:
            await self._loop.connect_accepted_socket(
                make,
                accepted,
                ssl=self._certificate.context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except OSError as error:  # which has closed the socket
            self._say(error)
        finally:
            self._connections.leave(handshake)

    def _say(self, error: OSError) -> None:
        """Log what a handshake failed with, each kind once: an alert says what clients think of the certificate."""
        reason = getattr(error, "reason", None)
        if reason and reason not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(reason)
            _log.warning("A TLS handshake has failed (not said again): %s", reason, extra={"action": "handshake"})
