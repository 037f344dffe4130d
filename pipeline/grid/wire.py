"""All that leans on private parts of hazelcast-python-client: its connections, and the codecs that it lacks.

The client is pinned to 5.7.x (see `check_client_version`) because of this file alone. It holds

* a connection that parses what the socket gives in one pass, from one buffer that is reused. The client's own reader
  keeps every byte until it has caught up with the stream, and its own writer copies its largest write so far with each
  small one; neither is fit for a stream that never pauses;
* requests and responses of `Map.EventJournalSubscribe`, `Map.EventJournalRead` and `Map.FetchEntries`, and a
  `Map.PutAll` that takes bytes as they are.

Frames of the protocol are little-endian: `int32 length (of the whole frame), uint16 flags`, then the content. A message
is a run of frames up to one with the final flag. Serialized data (`Data`) inside is big-endian.
"""

from __future__ import annotations

import logging
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import hazelcast
from hazelcast.asyncio import HazelcastClient
from hazelcast.errors import AuthenticationError
from hazelcast.internal.asyncio_invocation import Invocation
from hazelcast.internal.asyncio_proxy.manager import MAP_SERVICE
from hazelcast.internal.asyncio_reactor import AsyncioConnection, AsyncioReactor, HazelcastProtocol
from hazelcast.protocol.builtin import DataCodec, EntryListCodec, StringCodec
from hazelcast.protocol.client_message import (
    BEGIN_FRAME_BUF,
    END_FINAL_FRAME_BUF,
    NULL_FINAL_FRAME_BUF,
    NULL_FRAME_BUF,
    REQUEST_HEADER_SIZE,
    RESPONSE_HEADER_SIZE,
    Frame,
    InboundMessage,
    OutboundMessage,
    create_initial_buffer,
)
from hazelcast.protocol.codec import (
    client_get_distributed_objects_codec,
    map_get_all_codec,
    map_put_if_absent_codec,
    map_replace_if_same_codec,
)
from hazelcast.serialization.data import Data

from pipeline.errors import UnsupportedClientError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

_log = logging.getLogger(__name__)

SUPPORTED_CLIENT = "5.7."

MAX_MESSAGE = 1 << 30
"""Bytes of one message above which we do not believe that the other side is a member."""

_BUFFER = 1 << 20
_MIN_READ = 1 << 16

_FRAME = struct.Struct("<iH")
_FINAL = 1 << 13
_UNFRAGMENTED = (1 << 15) | (1 << 14)

_INT = struct.Struct("<i")
_LONG = struct.Struct("<q")
_READ_PARAMETERS = struct.Struct("<qii")

_SUBSCRIBE = 82176
_READ = 82432
_READ_RESPONSE = 82433
_FETCH_ENTRIES = 79872
_PUT_ALL = 76800


def check_client_version() -> None:
    """Refuse a client other than the one whose private parts are used here.

    Raises:
        UnsupportedClientError: The installed client is another version.
    """
    if not hazelcast.__version__.startswith(SUPPORTED_CLIENT):
        raise UnsupportedClientError(
            f"hazelcast-python-client {hazelcast.__version__} is installed, but the event journal needs 5.7.x.",
            "Install it with: pip install 'hazelcast-python-client==5.7.*'",
        )


# --------------------------------------------------------------------------- connections


class RawMessage(InboundMessage):  # type: ignore[misc]  # the client is untyped
    """A response that stays in one piece: `body` is every frame as it came."""

    __slots__ = ("body",)

    def __init__(self, start_frame: Frame, body: bytes) -> None:
        super().__init__(start_frame)
        self.body = body


class _Protocol(HazelcastProtocol):  # type: ignore[misc]
    """Parses messages straight from the receive buffer; joins what one turn of the event loop wrote into one send."""

    def __init__(self, connection: AsyncioConnection) -> None:
        super().__init__(connection)
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0  # of the message being received
        self._scanned = 0  # frames before here are whole
        self._end = 0  # of the bytes received
        self._pieces: list[bytes] = []
        self._flush_scheduled = False

    def write(self, buf: bytes | bytearray) -> None:
        self._pieces.append(bytes(buf))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._conn._loop.call_soon(self._flush)  # noqa: SLF001

    def _do_write(self) -> None:
        pieces, self._pieces = self._pieces, []
        if not pieces or self._transport is None or self._transport.is_closing():
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._transport.write(data)
        self._conn._update_write_time(time.time())  # noqa: SLF001
        self._conn._update_sent(len(data))  # noqa: SLF001

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
        buffer, view, header = self._buffer, self._view, _FRAME.unpack_from
        position, end = self._scanned, self._end
        while end - position >= 6:
            length, flags = header(buffer, position)
            if not 6 <= length <= MAX_MESSAGE:
                self._abort(f"a frame of {length} bytes")
                return
            if position + length > end:
                if position + length - self._start > MAX_MESSAGE:
                    self._abort("a message larger than 1 GiB")
                    return
                break
            position += length
            if flags & _FINAL:
                body = bytes(view[self._start : position])
                self._start = position
                connection._builder.on_message(_message(body))  # noqa: SLF001
        self._scanned = position
        if self._start == end:
            self._start = self._scanned = self._end = 0

    def _abort(self, what: str) -> None:
        _log.error("The member sent %s: closing the connection", what, extra={"action": "protocol_error"})
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> bool:
        # An expected close (ours) needs no warning, unlike in the client.
        if self._conn.live:
            return bool(super().connection_lost(exc))
        return False


def _message(body: bytes) -> InboundMessage:
    length, flags = _FRAME.unpack_from(body, 0)
    start = Frame(body[6:length], flags)
    if flags & _UNFRAGMENTED == _UNFRAGMENTED and _INT.unpack_from(body, 6)[0] == _READ_RESPONSE:
        return RawMessage(start, body)
    message = InboundMessage(start)
    position, size = length, len(body)
    while position < size:
        length, flags = _FRAME.unpack_from(body, position)
        message.add_frame(Frame(body[position + 6 : position + length], flags))
        position += length
    return message


class _Connection(AsyncioConnection):  # type: ignore[misc]
    def _create_protocol(self) -> _Protocol:
        return _Protocol(self)

    async def close_connection(self, reason: str | None, cause: Exception | None, unsafe: bool = False) -> None:
        if isinstance(cause, AuthenticationError):
            self._reactor.refusal = cause
        await super().close_connection(reason, cause, unsafe)


class _Reactor(AsyncioReactor):  # type: ignore[misc]
    refusal: AuthenticationError | None = None

    def connection_factory(self, *arguments: Any) -> AsyncioConnection:
        return _Connection.create_and_connect(self._loop, self, *arguments)


async def start_client(config: Any) -> HazelcastClient:
    """Start a client that uses the connections of this file.

    Raises:
        AuthenticationError: A member refused the cluster name or the credentials.
        IllegalStateError: No member answered in the configured time.
    """
    client = HazelcastClient(config)
    reactor = _Reactor()
    client._connection_manager._reactor = reactor  # noqa: SLF001
    try:
        await client._start()  # noqa: SLF001
    except Exception:
        if reactor.refusal is not None:
            raise reactor.refusal from None
        raise
    return client


def on_connection_opened(client: HazelcastClient, callback: Callable[[object], None]) -> None:
    """Call back whenever the client has opened a connection to a member."""
    client._connection_manager.add_listener(on_connection_opened=callback)  # noqa: SLF001


def server_versions(client: HazelcastClient) -> dict[str, str]:
    """Hazelcast version of each connected member, by address."""
    return {
        str(connection.remote_address): _version_text(connection.server_version)
        for connection in client._connection_manager.active_connections.values()  # noqa: SLF001
    }


def _version_text(number: int) -> str:
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def partition_owner(client: HazelcastClient, partition: int) -> object:
    """Identity of the member that owns the partition, None while nobody does."""
    return client.partition_service.get_partition_owner(partition)


def invoke(
    client: HazelcastClient, message: OutboundMessage, partition: int, decode: Callable[[Any], Any]
) -> asyncio.Future[Any]:
    """Send a request to the owner of a partition; the future holds what `decode` makes of the response."""
    invocation = Invocation(message, partition_id=partition, response_handler=decode)
    client._invocation_service.invoke(invocation)  # noqa: SLF001
    future: asyncio.Future[Any] = invocation.future
    return future


def to_data(client: HazelcastClient, value: Any) -> bytes:
    """Serialize a key or value as the client would."""
    return bytes(client._serialization_service.to_data(value).buffer)  # noqa: SLF001


async def map_names(client: HazelcastClient) -> set[str]:
    """Names of the maps that exist in the cluster; the asyncio client does not offer this."""
    codec = client_get_distributed_objects_codec
    invocation = Invocation(codec.encode_request(), response_handler=codec.decode_response)
    objects = await client._invocation_service.ainvoke(invocation)  # noqa: SLF001
    return {found.name for found in objects if found.service_name == MAP_SERVICE}


_STRING_HEADER = struct.Struct(">iii")


def key_data(client: HazelcastClient, key: Any) -> bytes:
    """Serialize a key as the client would; strings, the usual keys, without its detour."""
    if type(key) is str:
        text = key.encode()
        return _STRING_HEADER.pack(0, -11, len(text)) + text
    return to_data(client, key)


def to_object(client: HazelcastClient, data: bytes) -> Any:
    """Deserialize a key or value as the client would."""
    return client._serialization_service.to_object(Data(data))  # noqa: SLF001


# --------------------------------------------------------------------------- journal


def encode_subscribe(name: str) -> OutboundMessage:
    """`Map.EventJournalSubscribe`: asks for the oldest and newest sequence of a partition's journal."""
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE, _SUBSCRIBE)
    StringCodec.encode(buffer, name, True)
    return OutboundMessage(buffer, True)


def decode_subscribe(message: InboundMessage) -> tuple[int, int]:
    """Oldest and newest sequence; 0 and -1 if the journal is empty."""
    frame = message.next_frame()
    oldest = _LONG.unpack_from(frame.buf, RESPONSE_HEADER_SIZE)[0]
    newest = _LONG.unpack_from(frame.buf, RESPONSE_HEADER_SIZE + 8)[0]
    return oldest, newest


def encode_read(name: str, start: int, min_size: int, max_size: int) -> OutboundMessage:
    """`Map.EventJournalRead` without predicate and projection."""
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + 16, _READ)
    _READ_PARAMETERS.pack_into(buffer, REQUEST_HEADER_SIZE, start, min_size, max_size)
    StringCodec.encode(buffer, name)
    buffer.extend(NULL_FRAME_BUF)
    buffer.extend(NULL_FINAL_FRAME_BUF)
    return OutboundMessage(buffer, True)


class Page(NamedTuple):
    """What one read of a partition's journal gave.

    Attributes:
        first: Sequence of the first item read, of whatever kind.
        next: Sequence to read from next.
        sequences: Sequence of each entry put (added, updated or loaded); removals are left out.
        keys: Serialized key of each, as it is to be written again.
        values: JSON text of each in UTF-8; a serialized value as a whole where its type is neither JSON nor string.
        foreign: Position and Hazelcast type of those that are neither JSON nor string, for their error message.
    """

    first: int
    next: int
    sequences: list[int]
    keys: list[bytes]
    values: list[bytes]
    foreign: dict[int, int]


# frame header and hash, type, 1, factory, class of the item; event type, length of the key
_ITEM = struct.Struct(">6x17xii")
# length of the value; its hash, type and, if it is text, length of the text
_VALUE = struct.Struct(">i4xii")
_LENGTH = struct.Struct(">i")
_PUT_KINDS = frozenset((1, 4, 512))
_TEXT_TYPES = frozenset((-130, -11))


def decode_read(message: RawMessage) -> Page | None:
    """Cut a response into a page; None if nothing was read.

    The layout of an item is in the shared notes on Hazelcast: type, kind of event, then key, new value and old value,
    each with its length in front.
    """
    body = message.body
    length = _INT.unpack_from(body, 0)[0]
    count = _INT.unpack_from(body, 6 + RESPONSE_HEADER_SIZE)[0]
    if count == 0:
        return None  # the next sequence is not to be trusted here: the member answers 0
    following = _LONG.unpack_from(body, 10 + RESPONSE_HEADER_SIZE)[0]
    first = following - count
    sequences: list[int] = []
    keys: list[bytes] = []
    values: list[bytes] = []
    foreign: dict[int, int] = {}
    position = length + 6  # past the begin frame of the list
    unpack_length, unpack_item, unpack_value = _INT.unpack_from, _ITEM.unpack_from, _VALUE.unpack_from
    add_sequence, add_key, add_value = sequences.append, keys.append, values.append
    for sequence in range(first, following):
        (length,) = unpack_length(body, position)
        kind, key_length = unpack_item(body, position)
        key_at = position + 31
        position += length
        if kind in _PUT_KINDS:
            value_at = key_at + key_length
            value_length, type_id, text_length = unpack_value(body, value_at)
            if type_id in _TEXT_TYPES and value_length >= 12:
                value_at += 16
                add_value(body[value_at : value_at + text_length])
            else:
                foreign[len(values)] = type_id if value_length >= 8 else 0
                add_value(body[value_at + 4 : value_at + 4 + max(value_length, 0)])
            add_sequence(sequence)
            add_key(body[key_at : key_at + key_length])
    return Page(first, following, sequences, keys, values, foreign)


# --------------------------------------------------------------------------- maps

_JSON_HEADER = struct.Struct(">iii")


def json_data(text: bytes) -> bytes:
    """Serialized HazelcastJsonValue of a JSON text in UTF-8."""
    return _JSON_HEADER.pack(0, -130, len(text)) + text


def put_all_prefix(name: str) -> bytes:
    """What every `Map.PutAll` to a map begins with."""
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + 1, _PUT_ALL)
    buffer[REQUEST_HEADER_SIZE] = 1  # go through a MapStore, if there is one
    StringCodec.encode(buffer, name)
    buffer.extend(BEGIN_FRAME_BUF)
    return bytes(buffer)


_JSON_ENTRY = struct.Struct("<iH")


def encode_put_all_json(prefix: bytes, keys: Sequence[bytes], texts: Sequence[bytes]) -> OutboundMessage:
    """`Map.PutAll` of entries of one partition: serialized keys as they are, JSON texts as JSON values."""
    pieces: list[bytes] = [prefix]
    add, frame, value_header = pieces.append, _JSON_ENTRY.pack, _JSON_HEADER.pack
    for key, text in zip(keys, texts, strict=True):
        size = len(text)
        add(frame(len(key) + 6, 0))
        add(key)
        add(frame(size + 18, 0) + value_header(0, -130, size))
        add(text)
    add(bytes(END_FINAL_FRAME_BUF))
    return OutboundMessage(bytearray().join(pieces), False)


FIRST_ENTRY = (2**31 - 1, -1)
"""Where a walk over the entries of a partition begins."""


def encode_fetch_entries(name: str, pointers: Iterable[tuple[int, int]], batch: int) -> OutboundMessage:
    """`Map.FetchEntries`: about `batch` entries of a partition from where the pointers stand.

    Args:
        name: Of the map.
        pointers: Index and table size pairs; `[FIRST_ENTRY]` to begin with, then what the last answer gave.
        batch: Number of entries wanted; the answer may hold a few more.
    """
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + 4, _FETCH_ENTRIES)
    _INT.pack_into(buffer, REQUEST_HEADER_SIZE, batch)
    StringCodec.encode(buffer, name)
    packed = b"".join(struct.pack("<ii", *pointer) for pointer in pointers)
    buffer.extend(_FRAME.pack(len(packed) + 6, _FINAL))
    buffer.extend(packed)
    return OutboundMessage(buffer, True)


def decode_fetch_entries(message: InboundMessage) -> tuple[list[tuple[int, int]], list[tuple[bytes, bytes]]]:
    """Where to go on (a last index below zero: nowhere), and serialized keys and values."""
    message.next_frame()
    packed = message.next_frame().buf
    pointers = list(struct.iter_unpack("<ii", packed))
    entries = EntryListCodec.decode(message, DataCodec.decode, DataCodec.decode)
    return pointers, [(bytes(key.buffer), bytes(value.buffer)) for key, value in entries]


def encode_get_all(name: str, keys: Sequence[bytes]) -> OutboundMessage:
    """`Map.GetAll` of serialized keys of one partition."""
    message: OutboundMessage = map_get_all_codec.encode_request(name, [Data(key) for key in keys])
    return message


def decode_get_all(message: InboundMessage) -> list[tuple[bytes, bytes]]:
    """Serialized keys and values of the entries that exist."""
    return [(bytes(key.buffer), bytes(value.buffer)) for key, value in map_get_all_codec.decode_response(message)]


def encode_replace_if_same(name: str, key: bytes, expected: bytes, text: bytes) -> OutboundMessage:
    """`Map.ReplaceIfSame`: a compare-and-set from one JSON text to another."""
    message: OutboundMessage = map_replace_if_same_codec.encode_request(
        name, Data(key), Data(json_data(expected)), Data(json_data(text)), 0
    )
    return message


def decode_replace_if_same(message: InboundMessage) -> bool:
    """Whether the value was what was expected, and now is the new one."""
    return bool(map_replace_if_same_codec.decode_response(message))


def encode_put_if_absent(name: str, key: bytes, text: bytes) -> OutboundMessage:
    """`Map.PutIfAbsent` of a JSON text, without an end of life."""
    message: OutboundMessage = map_put_if_absent_codec.encode_request(name, Data(key), Data(json_data(text)), 0, -1)
    return message


def decode_put_if_absent(message: InboundMessage) -> bool:
    """Whether there was nothing under the key, and now is the text."""
    return map_put_if_absent_codec.decode_response(message) is None
