"""The network between clients and the stub cluster: connections without sockets, with latency, cuts and silence.

The client's own connection classes run on it: they are given a loop whose `create_connection` makes a `Link`.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from hazelcast.core import Address

from gridscore.grid.transport import _Connection, _Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.testing.cluster import StubCluster
    from gridscore.testing.member import Member

_FRAME = struct.Struct("<iH")
_FINAL = 1 << 13
_STARTER = b"CP2"


class _Socket:
    """What the client wants to know of a socket."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 0


class _Pipe:
    """One direction of a connection: messages arrive in order, each after the latency of its time.

    `loop`: on whose time they arrive; `deliver`: takes a message; `latency`: gives the seconds that the next message
    takes.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[bytes], None], latency: Callable[[], float]
    ) -> None:
        self._loop, self._deliver, self._latency = loop, deliver, latency
        self._queue: deque[tuple[float, bytes]] = deque()
        self._due = 0.0
        self._timer: asyncio.Handle | None = None
        self.held = False

    def __len__(self) -> int:
        return len(self._queue)

    def send(self, body: bytes) -> None:
        """Let a message arrive in time."""
        self._due = max(self._due, self._loop.time() + self._latency())
        self._queue.append((self._due, body))
        self._schedule()

    def release(self) -> None:
        """Deliver what was held."""
        self.held = False
        self._schedule()

    def clear(self) -> None:
        """Lose what is under way."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is None and self._queue and not self.held:
            due = self._queue[0][0]
            if due <= self._loop.time():
                self._timer = self._loop.call_soon(self._arrive)
            else:
                self._timer = self._loop.call_at(due, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        # Only what is there now: an answer to it comes a turn later, as from a socket.
        try:
            for _ in range(len(self._queue)):
                if self.held or not self._queue or self._queue[0][0] > self._loop.time():
                    break
                self._deliver(self._queue.popleft()[1])
        finally:
            self._schedule()


class Link(asyncio.Transport):
    """A connection of a client to a member; to the client, the transport of a socket.

    `client`: name of the client, once it has said it; `member`: the member at the other end; `alive`: whether either
    side may still send.
    """

    def __init__(
        self,
        cluster: StubCluster,
        member: Member,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BufferedProtocol,
        client: str,
        hold_seconds: Callable[[], float],
    ) -> None:
        super().__init__()
        self._cluster, self._loop, self._protocol = cluster, loop, protocol
        self._hold_seconds = hold_seconds
        self._patience: asyncio.TimerHandle | None = None
        self.client, self.member = client, member
        self.alive = True
        members_loop = cluster.loop or loop
        self._up = _Pipe(members_loop, self._received, cluster.latency)
        self._down = _Pipe(members_loop, self._answered, cluster.latency)

    # ------------------------------------------------------------------ for the client

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Claims to be encrypted, so that the client leaves writing to us: there is no file descriptor to write to."""
        return {"socket": _Socket(), "ssl_object": self}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send whole messages."""
        if not self.alive or data == _STARTER:
            return
        body, begin, at = bytes(data), 0, 0
        while at < len(body):
            length, flags = _FRAME.unpack_from(body, at)
            at += length
            if flags & _FINAL:
                self._up.send(body[begin:at])
                begin = at
        self._lose_patience()

    def _lose_patience(self) -> None:
        """Begin to count for how long nobody confirms what was sent; the system does, though the client be paused."""
        if self._up.held and self._up and self._patience is None:
            loop = self._cluster.loop or self._loop
            self._patience = loop.call_later(self._hold_seconds(), self._give_up)

    def is_closing(self) -> bool:
        return not self.alive

    def close(self) -> None:
        """Close it; what was sent still arrives."""
        if self.alive:
            self.alive = False
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._finish()

    def abort(self) -> None:
        """Close it at once."""
        self.close()

    # ------------------------------------------------------------------ for the member and the faults

    def answer(self, body: bytes) -> None:
        """Send a message to the client."""
        if self.alive:
            self._down.send(body)

    def cut(self) -> None:
        """Break it, as a reset does: what is under way is lost, both sides notice."""
        if self.alive:
            self.alive = False
            self._up.clear()
            self._down.clear()
            self._loop.call_soon(self._protocol.connection_lost, ConnectionResetError("cut"))
            self._finish()

    def hang(self) -> None:
        """Deliver nothing in either direction, and tell nobody."""
        self._up.held = self._down.held = True
        self._lose_patience()

    def heal(self) -> None:
        """Deliver what was held."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._up.release()
        self._down.release()

    def die(self) -> None:
        """The client's process is gone: what it has sent arrives, nothing reaches it."""
        self.alive = False
        self._down.clear()
        self._finish()

    def _give_up(self) -> None:
        """The system ends a connection whose bytes nobody confirms."""
        self.cut()

    def _finish(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._down.clear()
        self._cluster.disconnected(self)

    def _received(self, body: bytes) -> None:
        self.member.receive(self, body)

    def _answered(self, body: bytes) -> None:
        self._loop.call_soon(self._feed, body)

    def _feed(self, body: bytes) -> None:
        view = memoryview(body)
        while view and self.alive:
            buffer = cast("memoryview", self._protocol.get_buffer(len(view)))
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
            self._protocol.buffer_updated(size)
            view = view[size:]


class _StubLoop:
    """The client's event loop, with connections to the stub cluster in place of sockets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cluster: StubCluster, reactor: StubReactor) -> None:
        self._loop, self._cluster, self._reactor = loop, cluster, reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], asyncio.BufferedProtocol], *, host: str, port: int, **_: Any
    ) -> tuple[Link, asyncio.BufferedProtocol]:
        """Connect to the member with that address.

        Raises ConnectionRefusedError if it is not there, or this client is cut off.
        """
        await asyncio.sleep(self._cluster.latency())
        member = self._cluster.listening(Address(host, port), self._reactor.client)
        protocol = factory()
        link = Link(
            self._cluster, member, self._loop, protocol, self._reactor.client, lambda: self._reactor.hold_seconds
        )
        self._cluster.links.append(link)
        protocol.connection_made(link)
        return link, protocol


class StubReactor(_Reactor):
    """Makes the client's connections, to the stub cluster."""

    hold_seconds = 20.0

    def __init__(self, cluster: StubCluster, client: str) -> None:
        super().__init__()
        self.client = client
        self._stub_loop = _StubLoop(self._loop, cluster, self)

    def connection_factory(self, *arguments: Any) -> Any:
        """A connection of the client's own class."""
        return _Connection.create_and_connect(self._stub_loop, self, *arguments)
