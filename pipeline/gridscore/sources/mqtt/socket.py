"""The socket between the MQTT library and the network: read much at once, written in one go.

The library reads a byte, a length and a rest from its socket for each packet, and writes each packet by itself. Here it
gets the packets that are its own from memory, and what it writes goes out with our confirmations.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

_CHUNK = 1 << 16
_AT_ONCE = 1 << 18
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class MqttSocket:
    """A socket as the library wants one.

    Args:
        inner: The real one; it does not block.

    Attributes:
        ended: Whether nothing more can be read: the library finds out why when it reads.
    """

    def __init__(self, inner: SocketLike) -> None:
        self._inner = inner
        self._by_records = isinstance(inner, ssl.SSLSocket)
        self._packet = b""
        self._out = bytearray()
        self._error: OSError | None = None
        self.ended = False

    # ------------------------------------------------------------------ our side

    def receive(self) -> tuple[bytes, bool]:
        """What has come, and whether there may be more at once: the system does not say so again of what TLS holds."""
        chunks, size = [], 0
        while size < _AT_ONCE:
            try:
                chunk = self._inner.recv(_CHUNK)
            except _NOT_NOW:
                break
            except OSError as error:
                self._error, self.ended = error, True
                break
            if not chunk:
                self.ended = True
                break
            chunks.append(chunk)
            size += len(chunk)
            if len(chunk) < _CHUNK and not self._by_records:
                break
        return b"".join(chunks), size >= _AT_ONCE

    def offer(self, packet: bytes) -> None:
        """Let the library read this next, and nothing else."""
        self._packet = packet

    def flush(self) -> bool:
        """Write what was gathered, as far as it goes; whether nothing is left."""
        while self._out:
            try:
                sent = self._inner.send(self._out)
            except _NOT_NOW:
                return False
            except OSError as error:
                self._error, self.ended = error, True
                self._out.clear()
                break
            del self._out[:sent]
        return True

    # ------------------------------------------------------------------ the library's side

    def recv(self, buffer_size: int) -> bytes:
        """What was offered; or why nothing more comes.

        Raises:
            BlockingIOError: There is nothing.
            OSError: The connection is broken.
        """
        if self._packet:
            data, self._packet = self._packet[:buffer_size], self._packet[buffer_size:]
            return data
        if self._error is not None:
            raise self._error
        if self.ended:
            return b""
        raise BlockingIOError

    def send(self, buffer: bytes | bytearray) -> int:
        """Gather it."""
        self._out += buffer
        return len(buffer)

    def close(self) -> None:
        """Write what can be, and close."""
        with contextlib.suppress(OSError):
            self.flush()
        self._inner.close()

    def fileno(self) -> int:
        """Of the real one."""
        return self._inner.fileno()

    def setblocking(self, flag: bool) -> None:
        """Of the real one."""
        self._inner.setblocking(flag)
