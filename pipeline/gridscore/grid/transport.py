"""The client's private parts, all in this file: its connections, its invocations, its serialization.

hazelcast-python-client is pinned to 5.7.x (see `check_client_version`) because of it. The connection here parses what
the socket gives in one pass, from one reused buffer, and sends through an `Outbox`. The client's own reader keeps every
byte until it has caught up with the stream, and its own writer copies its largest write so far with each small one;
neither can cope with a stream that never pauses.

Frames of the protocol are little-endian: `int32 length (of the whole frame), uint16 flags`, then the content. A message
is a run of frames up to one with the final flag.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

import hazelcast
from hazelcast.asyncio import HazelcastClient
from hazelcast.errors import AuthenticationError, HazelcastError, HazelcastSerializationError, TargetDisconnectedError
from hazelcast.internal.asyncio_invocation import Invocation
from hazelcast.internal.asyncio_proxy.manager import MAP_SERVICE
from hazelcast.internal.asyncio_reactor import AsyncioConnection, AsyncioReactor, HazelcastProtocol
from hazelcast.protocol.client_message import Frame, InboundMessage, OutboundMessage
from hazelcast.protocol.codec import (
    client_get_distributed_objects_codec,
    map_entry_set_codec,
    map_key_set_codec,
    map_size_codec,
)
from hazelcast.serialization.data import Data

from gridscore.errors import UnsupportedClientError
from gridscore.grid import wire
from gridscore.grid.cutting import FRAME, INT, find_message
from gridscore.grid.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_log = logging.getLogger(__name__)

SUPPORTED_CLIENT = "5.7."

MAX_MESSAGE = 1 << 30  # bytes above which a message is not believed to come from a member
HOLD_SECONDS = 20.0  # how long the system may hold bytes that a member does not confirm; see `hold_at_most`
_AGAIN_SECONDS = 0.25
_BUFFER = 1 << 20
_MIN_READ = 1 << 16

_UNFRAGMENTED = (1 << 15) | (1 << 14)

READ_RESPONSE = 82433  # the one type of message that stays in one piece: the answer to `Map.EventJournalRead`


def check_client_version() -> None:
    """Refuse a client other than the one whose private parts are used here.

    Raises UnsupportedClientError if the installed client is another version.
    """
    if not hazelcast.__version__.startswith(SUPPORTED_CLIENT):
        raise UnsupportedClientError(
            f"hazelcast-python-client {hazelcast.__version__} is installed, but the event journal needs 5.7.x.",
            "Install it with: pip install 'hazelcast-python-client==5.7.*'",
        )


class NotSentError(HazelcastError):  # type: ignore[misc]
    """The request was not sent: it was too late, or its member was not connected."""


# What to do about members that do not answer.
SILENT_HINT = (
    "Its process or its machine is stopped, or hangs: let it go on, or end it. The others drop a member that is silent "
    "for a minute (`hazelcast.max.no.heartbeat.seconds`), and take over what it has."
)


class SilentMembersError(TimeoutError):
    """No member answered in time, but some took connections. `addresses`: of these."""

    def __init__(self, addresses: Collection[str]) -> None:
        super().__init__("no answer from " + ", ".join(sorted(addresses)))
        self.addresses = sorted(addresses)


class _Protocol(HazelcastProtocol):  # type: ignore[misc]
    """Parses messages straight from the receive buffer; joins what one turn of the event loop wrote into one send."""

    def __init__(self, connection: AsyncioConnection) -> None:
        super().__init__(connection)
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0  # of the message being received
        self._scanned = 0  # frames before here are whole
        self._end = 0  # of the bytes received
        self._outbox: Outbox | None = None

    def connection_made(self, transport: Any) -> None:
        # With TLS only the transport can write; elsewhere than on POSIX, sockets cannot be shared like this.
        if os.name == "posix" and transport.get_extra_info("ssl_object") is None:
            file = transport.get_extra_info("socket").fileno()
            self._outbox = Outbox(self._conn._loop, file, transport.abort, self._count)  # noqa: SLF001
            self._outbox.hold_at_most(self._conn._reactor.hold_seconds)  # noqa: SLF001
        super().connection_made(transport)

    def hold_at_most(self, seconds: float) -> None:
        if self._outbox is not None:
            self._outbox.hold_at_most(seconds)

    def write(self, buf: bytes | bytearray) -> None:
        if self._outbox is not None:
            self._outbox.write(bytes(buf))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(buf))
            self._count(len(buf))

    def write_until(self, buf: bytes | bytearray, until: float, expired: Callable[[], None]) -> None:
        """See `Outbox`; without one, the bound is checked here only."""
        if self._outbox is not None:
            self._outbox.write_until(bytes(buf), until, expired)
        elif time.monotonic() < until:
            self.write(buf)
        else:
            expired()

    def _count(self, size: int) -> None:
        self._conn._update_write_time(time.time())  # noqa: SLF001
        self._conn._update_sent(size)  # noqa: SLF001

    def close(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
        super().close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- the hint is no better than ours
        if len(self._buffer) - self._end < _MIN_READ:
            self._make_room()
        return self._view[self._end :]

    def _make_room(self) -> None:
        """Move the message being received to the front, into a larger buffer if it fills more than half of this one."""
        pending = self._end - self._start
        size = _BUFFER
        while size < 2 * pending:
            size *= 2
        moved = self._view[self._start : self._end]
        if size != len(self._buffer):
            self._buffer = bytearray(size)
            self._view = memoryview(self._buffer)
        self._view[:pending] = moved
        self._scanned -= self._start
        self._start, self._end = 0, pending

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        connection = self._conn
        connection._update_read_time(time.time())  # noqa: SLF001
        connection._update_received(nbytes)  # noqa: SLF001
        position, end, view = self._scanned, self._end, self._view
        while True:
            position, whole, length = find_message(view, position, end, MAX_MESSAGE)
            if length < 0:
                self._abort("something that is not a frame")
                return
            if position + length - self._start > MAX_MESSAGE:
                self._abort("a message larger than 1 GiB")
                return
            if not whole:
                break
            body = bytes(view[self._start : position])
            self._start = position
            try:
                connection._builder.on_message(_message(body))  # noqa: SLF001
            except Exception:  # noqa: BLE001 -- a listener that cannot take an entry must not cost us the connection
                _log.exception("A message of the member could not be handled", extra={"action": "message_failed"})
        self._scanned = position
        if self._start == end:
            self._start = self._scanned = self._end = 0

    def _abort(self, what: str) -> None:
        _log.error("The member sent %s: closing the connection", what, extra={"action": "protocol_error"})
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> bool:
        if self._outbox is not None:
            self._outbox.close()
        # An expected close (ours) needs no warning, unlike in the client.
        if self._conn.live:
            return bool(super().connection_lost(exc))
        return False


def _message(body: bytes) -> InboundMessage:
    length, flags = FRAME.unpack_from(body, 0)
    start = Frame(body[6:length], flags)
    if flags & _UNFRAGMENTED == _UNFRAGMENTED and INT.unpack_from(body, 6)[0] == READ_RESPONSE:
        return wire.RawMessage(start, body)
    message = InboundMessage(start)
    position, size = length, len(body)
    while position < size:
        length, flags = FRAME.unpack_from(body, position)
        message.add_frame(Frame(body[position + 6 : position + length], flags))
        position += length
    return message


class _BoundedMessage(OutboundMessage):  # type: ignore[misc]
    """A request that may be sent only before a time of the monotonic clock.

    It does not refer to its invocation, which refers to it: cycles of several objects a request would wait for the
    garbage collector, which then stops the process for as long as many events take.
    """

    __slots__ = ("service", "until")

    def is_for(self, connection: AsyncioConnection) -> bool:
        """Whether a connection leads to the partition's owner: another member would pass it on, however late."""
        invocation = self.service._pending[self.get_correlation_id()]  # noqa: SLF001
        owner = self.service._partition_service.get_partition_owner(invocation.partition_id)  # noqa: SLF001
        return owner is not None and owner == connection.remote_uuid

    def fail(self, why: str = "it was not sent in time") -> None:
        invocation = self.service._pending.get(self.get_correlation_id())  # noqa: SLF001
        if invocation is not None:
            self.service._complete_with_error(invocation, NotSentError(why))  # noqa: SLF001


class _Connection(AsyncioConnection):  # type: ignore[misc]
    def _create_protocol(self) -> _Protocol:
        return _Protocol(self)

    def send_message(self, message: OutboundMessage) -> bool:
        if type(message) is not _BoundedMessage:
            return bool(super().send_message(message))
        if not self.live or self._proto is None:
            return False
        if not message.is_for(self):
            message.fail("it was not sent: there is no connection to the partition's owner")
        else:
            self._proto.write_until(message.buf, message.until, message.fail)
        return True

    async def close_connection(self, reason: str | None, cause: Exception | None, unsafe: bool = False) -> None:
        if isinstance(cause, AuthenticationError) and not self._reactor.refused.done():
            self._reactor.refused.set_exception(cause)
        self._reactor.has_closed = True
        await super().close_connection(reason, cause, unsafe)


class _Reactor(AsyncioReactor):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.hold_seconds = HOLD_SECONDS
        self.has_closed = False  # whether a connection has, since requests were last looked through
        self.refused: asyncio.Future[None] = self._loop.create_future()
        self.silent: set[str] = set()  # members that took a connection, and have not answered on it

    def connection_factory(self, *arguments: Any) -> AsyncioConnection:
        return _Connection.create_and_connect(self._loop, self, *arguments)


async def start_client(config: Any, seconds: float) -> HazelcastClient:
    """Start a client that uses the connections of this file.

    `config`: of the client; it should look for a lost cluster for ever. `seconds` bounds the first search. Raises
    AuthenticationError if a member refused the cluster name or the credentials; SilentMembersError if no member
    answered in time, though some took connections; TimeoutError if no member answered in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await _start_client(config, deadline - loop.time())
        except HazelcastError as error:
            # A start fails whole if one member goes while it is told of the client ("Listener cannot be added").
            if type(error) is not HazelcastError or loop.time() + _AGAIN_SECONDS >= deadline:
                raise
            await asyncio.sleep(_AGAIN_SECONDS)


async def _start_client(config: Any, seconds: float) -> HazelcastClient:
    client = HazelcastClient(config)
    _refuse_pickle(client)
    _leave_out_java_stacks(client)
    _bound_authentication(client, config.connection_timeout)
    reactor = _Reactor()
    client._connection_manager._reactor = reactor  # noqa: SLF001
    _look_through_rarely(client)
    starting = asyncio.ensure_future(client._start())  # noqa: SLF001
    try:
        async with asyncio.timeout(seconds):
            # The client would go on trying a cluster that has refused it.
            await asyncio.wait((starting, reactor.refused), return_when=asyncio.FIRST_COMPLETED)
        await (starting if starting.done() else reactor.refused)
    except BaseException as error:
        silent = set(reactor.silent)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await client.shutdown()
        if silent and isinstance(error, TimeoutError):
            raise SilentMembersError(silent) from None
        raise
    return client


def _bound_authentication(client: HazelcastClient, seconds: float) -> None:
    """Give up on a member that takes connections and does not answer (one that is stopped), and ask another."""
    manager = client._connection_manager  # noqa: SLF001
    authenticate = manager._authenticate  # noqa: SLF001

    async def bounded(connection: AsyncioConnection) -> InboundMessage:
        silent = manager._reactor.silent  # noqa: SLF001
        silent.add(address := _address_text(connection.connected_address))
        try:
            answer = await asyncio.wait_for(authenticate(connection), seconds)
        except BaseException as error:
            if not isinstance(error, TimeoutError | asyncio.CancelledError):
                silent.discard(address)
            await connection.close_connection("It was not authenticated.", error)  # the client forgets it if cancelled
            raise
        silent.discard(address)
        return answer

    manager._authenticate = bounded  # noqa: SLF001


def _look_through_rarely(client: HazelcastClient) -> None:
    """Look through the requests under way when a connection has closed, and once a second for late backups.

    The client does so ten times a second, which costs a worker with 4,000 parked reads more than a percent of a core.
    """
    service, reactor = client._invocation_service, client._connection_manager._reactor  # noqa: SLF001
    period = service._CLEAN_RESOURCES_PERIOD  # noqa: SLF001

    def look_through() -> None:
        now = time.time()
        for invocation in list(service._pending.values()):  # noqa: SLF001
            connection = invocation.sent_connection
            if connection and not connection.live:
                service._notify_error(invocation, TargetDisconnectedError(connection.close_reason))  # noqa: SLF001
            elif connection and invocation.pending_response:
                service._detect_and_handle_backup_timeout(invocation, now)  # noqa: SLF001

    async def run() -> None:
        turn, turns_a_second = 0, round(1.0 / period)
        while not service._shutdown:  # noqa: SLF001
            await asyncio.sleep(period)
            turn += 1
            if reactor.has_closed or turn % turns_a_second == 0:
                reactor.has_closed = False
                look_through()

    async def start() -> None:
        service._clean_resources_task = asyncio.create_task(run())  # noqa: SLF001

    service._start_clean_resources_timer = start  # noqa: SLF001


def _refuse_pickle(client: HazelcastClient) -> None:
    """Disable the client's fallback: it would unpickle, that is run, whatever is in the grid."""

    def read(_input: Any) -> Any:
        raise HazelcastSerializationError("a pickled Python object, which Gridscore does not read")

    def write(_output: Any, value: Any) -> None:
        raise HazelcastSerializationError(f"{type(value).__name__} has no form that every client reads")

    serializer = client._serialization_service._python_serializer  # noqa: SLF001
    serializer.read, serializer.write = read, write


_FROM_MEMBER = re.compile(r"Exception from server: (?:[\w$]+\.)*(\w+?)(?:Exception|Error)?: (.*)")


def without_java(message: str) -> str:
    """What a member says went wrong, without its place in the code; the exception's name if it says nothing else."""
    line = message.split("\n", 1)[0].rstrip()
    if not (found := _FROM_MEMBER.fullmatch(line)):
        return line
    name, said = found.groups()
    is_plain = said not in ("", "null") and not re.search(r"\b(com|java)\.\w", said)
    return said if is_plain else " ".join(re.findall("[A-Z]+(?![a-z])|[A-Z][a-z]*", name)).lower()


def _leave_out_java_stacks(client: HazelcastClient) -> None:
    """Cut Java's stack traces from the errors of members: they are nothing for logs and records."""
    service = client._invocation_service  # noqa: SLF001
    notify = service._notify_error  # noqa: SLF001

    def cut(error: BaseException | None) -> None:
        if isinstance(error, HazelcastError) and len(error.args) == 2 and isinstance(error.args[0], str):
            message, cause = error.args
            error.args = (without_java(message), cause)
            cut(cause)

    def notify_cut(invocation: Any, error: BaseException) -> None:
        cut(error)
        notify(invocation, error)

    service._notify_error = notify_cut  # noqa: SLF001


def _address_text(address: Any) -> str:
    return f"{address.host}:{address.port}"


def on_connection_opened(client: HazelcastClient, callback: Callable[[object], None]) -> None:
    """Call back whenever the client has opened a connection to a member."""
    client._connection_manager.add_listener(on_connection_opened=callback)  # noqa: SLF001


def cluster_id(client: HazelcastClient) -> str:
    """Identity of the connected cluster: a new one after all members were replaced."""
    return str(client._connection_manager._cluster_id)  # noqa: SLF001


def hold_at_most(client: HazelcastClient, seconds: float) -> None:
    """Give a connection up when its member has not confirmed bytes for this long; a later call can only shorten that.

    What the system holds for an unreachable member is delivered once it can be reached again, however late. Writers
    with a lease need a bound.
    """
    manager = client._connection_manager  # noqa: SLF001
    reactor = manager._reactor  # noqa: SLF001
    reactor.hold_seconds = min(reactor.hold_seconds, seconds)
    for connection in manager.active_connections.values():
        connection._proto.hold_at_most(reactor.hold_seconds)  # noqa: SLF001


def server_versions(client: HazelcastClient) -> dict[str, str]:
    """Hazelcast version of each connected member, by address."""
    return {
        str(connection.remote_address): _version_text(connection.server_version)
        for connection in client._connection_manager.active_connections.values()  # noqa: SLF001
    }


def _version_text(number: int) -> str:
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def invoke(
    client: HazelcastClient,
    message: OutboundMessage,
    partition: int,  # whose owner to ask
    decode: Callable[[Any], Any],  # makes the future's value of the response
    *,
    # For how long the client may send it again after an error that may pass; None: as configured. With 0, it is sent
    # once: nothing can overtake it or come late.
    retry_seconds: float | None = None,
    # Of the monotonic clock: when it must no longer be sent. It then goes straight to the partition's owner, through no
    # other member. The future fails with `NotSentError` if it was not sent.
    until: float | None = None,
) -> asyncio.Future[Any]:
    """Send a request to the owner of a partition; the future holds what `decode` makes of the response."""
    service = client._invocation_service  # noqa: SLF001
    if until is not None:
        bounded = _BoundedMessage(message.buf, message.retryable, message.contains_data)
        bounded.until, bounded.service = until, service
        message = bounded
    timeout = None if retry_seconds is None else time.time() + retry_seconds
    invocation = Invocation(message, partition_id=partition, response_handler=decode, timeout=timeout)
    service.invoke(invocation)
    future: asyncio.Future[Any] = invocation.future
    return future


async def map_size(client: HazelcastClient, name: str) -> int:
    """Number of entries of a map. This and the next two do not create the map's proxy, which would list its name."""
    return int(await _ask_any(client, map_size_codec.encode_request(name), map_size_codec.decode_response))


async def map_entries(client: HazelcastClient, name: str) -> list[tuple[bytes, bytes]]:
    """Serialized keys and values of a whole small map."""
    entries = await _ask_any(client, map_entry_set_codec.encode_request(name), map_entry_set_codec.decode_response)
    return [(bytes(key.buffer), bytes(value.buffer)) for key, value in entries]


async def map_keys(client: HazelcastClient, name: str) -> list[bytes]:
    keys = await _ask_any(client, map_key_set_codec.encode_request(name), map_key_set_codec.decode_response)
    return [bytes(key.buffer) for key in keys]


def member_connections(client: HazelcastClient) -> dict[Any, Any]:
    """The open connections, by the identity of their member."""
    return dict(client._connection_manager.active_connections)  # noqa: SLF001


def ask(
    client: HazelcastClient, message: OutboundMessage, connection: Any, decode: Callable[[Any], Any]
) -> asyncio.Future[Any]:
    """Send a request to the member behind a connection."""
    invocation = Invocation(message, connection=connection, response_handler=decode)
    client._invocation_service.invoke(invocation)  # noqa: SLF001
    future: asyncio.Future[Any] = invocation.future
    return future


async def _ask_any(client: HazelcastClient, message: OutboundMessage, decode: Callable[[Any], Any]) -> Any:
    return await client._invocation_service.ainvoke(Invocation(message, response_handler=decode))  # noqa: SLF001


def to_data(client: HazelcastClient, value: Any) -> bytes:
    """Serialize a key or value as the client would."""
    return bytes(client._serialization_service.to_data(value).buffer)  # noqa: SLF001


async def map_names(client: HazelcastClient) -> set[str]:
    """Names of the maps that exist in the cluster; the asyncio client does not offer this."""
    codec = client_get_distributed_objects_codec
    objects = await _ask_any(client, codec.encode_request(), codec.decode_response)
    return {found.name for found in objects if found.service_name == MAP_SERVICE}


def key_data(client: HazelcastClient, key: Any) -> bytes:
    """Serialize a key as the client would, without its detour for strings; whole numbers above 31 bits become a Long.

    Raises HazelcastSerializationError if it has no serializer, or is a whole number of more than 64 bits;
    UnicodeEncodeError if it is a string with half a surrogate pair.
    """
    if type(key) is str:
        return wire.string_data(key.encode())
    if type(key) is int:
        if not (forms := wire.integer_forms(key)):
            raise HazelcastSerializationError("a whole number of more than 64 bits")
        return forms[0]
    return to_data(client, key)


def key_forms(client: HazelcastClient, key: Any) -> list[bytes]:
    """The serialized forms of a key: a whole number may be an Integer or a Long in the grid."""
    return wire.integer_forms(key) if type(key) is int else [key_data(client, key)]


def to_object(client: HazelcastClient, data: bytes) -> Any:
    """Deserialize a key or value as the client would."""
    return client._serialization_service.to_object(Data(data))  # noqa: SLF001


async def listen(proxy: Any, callback: Callable[[], None], *, updates: bool = True) -> Any:
    """Call back when an entry of a map has come, gone or, if wanted, changed; returns the registration.

    The client's own listener makes an object of each key, and logs a traceback where it cannot.

    `updates`: also when an entry has changed.
    """
    from hazelcast.protocol.codec import map_add_entry_listener_codec, map_remove_entry_listener_codec
    from hazelcast.proxy.base import EntryEventType

    flags = EntryEventType.ADDED | EntryEventType.REMOVED | (EntryEventType.UPDATED if updates else 0)
    return await proxy._register_listener(  # noqa: SLF001
        map_add_entry_listener_codec.encode_request(proxy.name, False, flags, proxy._is_smart),  # noqa: SLF001
        map_add_entry_listener_codec.decode_response,
        lambda registration: map_remove_entry_listener_codec.encode_request(proxy.name, registration),
        lambda message: map_add_entry_listener_codec.handle(message, lambda *_: callback()),
    )
