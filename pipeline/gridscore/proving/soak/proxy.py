"""A network that can fail: TCP proxies between one worker and the members, and between the members themselves.

They forward bytes, or *hold* them for a while, or are *cut*: then nothing goes through in either direction, and when
the cut ends every connection is reset and what was held is thrown away.

Bytes held for long are never delivered, and that is the network's behaviour, not an indulgence: a worker gives a
connection up when a member has not confirmed its bytes for a quarter of a lease (TCP_USER_TIMEOUT). A proxy confirms
them at once, being the other end of that connection, so it has to keep this promise in the worker's place. What had
left the proxy towards a member before the cut is delivered, as with any router; a cut is not a kill.

A new connection during a hold or a cut is accepted, as the system does it, and gets no answer.

Members have no such bound among themselves. What they send to each other during a cut is held, as by a system that
sends it again and again, and arrives afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST = "127.0.0.1"
_CLOSE_SECONDS = 5.0
_NO_LINGER = struct.pack("ii", 1, 0)


class _End(asyncio.Protocol):
    """One end of a forwarded connection; `other` is the far one."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.other: _End | None = None
        self.transport: Any = None
        self.held: list[bytes] = []  # read, and not to be delivered now
        self.ended = False  # the peer has said that nothing more comes
        self.lost = False
        self._broken = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._gate.ends.add(self)

    def data_received(self, data: bytes) -> None:
        # To pause a transport is a wish: some give what they have read already, and new ones begin to read.
        if not self._gate.open or self.other is None:
            self.held.append(data)
            self.stop()
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        # A worker that was killed has still sent what its system had: it arrives, then the connection ends.
        self.ended = True
        if self._gate.open and self.other is not None:
            self.other.transport.close()
        return True  # this end is closed with the other one

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._broken = error is not None
        if self._gate.open:
            self._part()

    def _part(self) -> None:
        """This end is gone: the other one follows."""
        self._gate.ends.discard(self)
        if self.other is not None and not self.other.lost:
            if self._broken:
                self.other.transport.abort()
            else:
                self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.stop()

    def resume_writing(self) -> None:
        if self._gate.open and self.other is not None:
            self.other.go_on()

    def stop(self) -> None:
        """Read no more: what comes waits in the system's buffers."""
        if not self.lost:
            with contextlib.suppress(RuntimeError):  # of a connection that is being closed
                self.transport.pause_reading()

    def go_on(self) -> None:
        """Deliver what was held, and read again."""
        if self.other is None:
            return
        if not self.other.lost:
            for data in self.held:
                self.other.transport.write(data)
            if self.ended:
                self.other.transport.close()
        self.held.clear()
        if self.lost:
            self._part()
        else:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def reset(self) -> None:
        """End the connection by a reset, and throw away what was not delivered."""
        self.held.clear()
        if self.lost:
            self._gate.ends.discard(self)
            return
        raw = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


class Gate:
    """The way to one member from a worker, from another member, or from all clients."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._accepted: set[asyncio.Task[None]] = set()
        self.ends: set[_End] = set()
        self.open = True
        self._opened = asyncio.Event()
        self._opened.set()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self) -> _End:
        return _Near(self)

    def connected(self, near: _End) -> None:
        """A worker has connected: connect to the member for it."""
        task = asyncio.get_running_loop().create_task(self._connect(near))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)

    async def _connect(self, near: _End) -> None:
        await self._opened.wait()
        if near.lost:
            return
        far = _End(self)
        far.other = near
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self._target)
        except OSError:
            near.reset()  # as the member's system would refuse it
            return
        near.other = far
        if near.lost:
            far.transport.abort()
        elif self.open:
            near.go_on()

    def hold(self) -> None:
        """Let nothing through from now on."""
        self.open = False
        self._opened.clear()
        for end in list(self.ends):
            end.stop()

    def release(self) -> None:
        """Let everything go on, what was held included."""
        self.open = True
        self._opened.set()
        for end in list(self.ends):
            end.go_on()

    def reset(self) -> None:
        """End every connection by a reset, and let new ones through."""
        self.open = True
        self._opened.set()
        for end in list(self.ends):
            end.reset()

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        for task in list(self._accepted):
            task.cancel()
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._accepted, return_exceptions=True)
        async with asyncio.timeout(_CLOSE_SECONDS):
            while self.ends:  # noqa: ASYNC110 -- one turn of the event loop or two
                await asyncio.sleep(0)


class _Near(_End):
    """The end towards whoever connects: it waits until the member is connected."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        self._gate.connected(self)


class Network:
    """The ways from one worker to all members; an asynchronous context manager.

    `members`: addresses that the members announce, `host:port`.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self.members = list(members)
        self._gates = [Gate((host, int(port))) for host, _, port in (each.rpartition(":") for each in members)]

    async def __aenter__(self) -> Self:
        for gate in self._gates:
            await gate.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for gate in self._gates:
            await gate.close()

    @property
    def detours(self) -> dict[str, int]:
        """Port of the proxy for each member's address."""
        return {member: gate.port for member, gate in zip(self.members, self._gates, strict=True)}

    async def hold(self, seconds: float, member: int | None = None) -> None:
        """Hold all bytes for so long, to and from one member or all, and then let them go on."""
        await _shut(self._chosen(member), seconds, Gate.release)

    async def cut(self, seconds: float, member: int | None = None) -> None:
        """Let nothing through for so long, to and from one member or all, and then reset every connection."""
        await _shut(self._chosen(member), seconds, Gate.reset)

    def _chosen(self, member: int | None) -> list[Gate]:
        return self._gates if member is None else [self._gates[member]]


class Backbone:
    """The ways to all members from everybody, the other members included; an asynchronous context manager.

    Members announce its ports in place of their own, and connect to others from ports by which it knows them.

    `members`: ports at which the members listen; `outbound`: ports from which each member connects to others. `ports`:
    what the members have to announce; while it is open.
    """

    def __init__(self, members: Sequence[int], outbound: Sequence[range]) -> None:
        self._outbound = outbound
        # By whom it leads to, then by who connects; those of clients come last.
        self._gates = [[Gate((HOST, port)) for _ in (*outbound, None)] for port in members]
        self._servers: list[asyncio.Server] = []
        self.ports: list[int] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for gates in self._gates:
            self._servers.append(await loop.create_server(partial(_Arriving, gates, self._outbound), HOST, 0))
        self.ports = [server.sockets[0].getsockname()[1] for server in self._servers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for gate in self._between():
            await gate.close()
        for gates in self._gates:
            await gates[-1].close()

    async def cut(self, seconds: float, member: int) -> None:
        """Hold all bytes between one member and the others for so long; clients reach all of them."""
        await _shut(self._between(member), seconds, Gate.release)

    def _between(self, member: int | None = None) -> list[Gate]:
        return [
            gate
            for target, gates in enumerate(self._gates)
            for source, gate in enumerate(gates[:-1])
            if member is None or member in (target, source)
        ]


class _Arriving(_Near):
    """The end towards whoever connects to a member; the port that it comes from says which gate is its."""

    def __init__(self, gates: Sequence[Gate], outbound: Sequence[range]) -> None:
        super().__init__(gates[-1])
        self._choice = gates, outbound

    def connection_made(self, transport: Any) -> None:
        gates, outbound = self._choice
        port = transport.get_extra_info("peername")[1]
        self._gate = next((gate for gate, ports in zip(gates, outbound, strict=False) if port in ports), gates[-1])
        super().connection_made(transport)


async def _shut(gates: Sequence[Gate], seconds: float, end: Callable[[Gate], None]) -> None:
    try:
        for gate in gates:
            gate.hold()
        await asyncio.sleep(seconds)
    finally:
        for gate in gates:
            end(gate)
