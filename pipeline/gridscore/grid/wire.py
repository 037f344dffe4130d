"""The codecs that the client lacks, or has only for objects: journal, entries, compare-and-set, all on bytes.

Requests and responses of `Map.EventJournalSubscribe`, `Map.EventJournalRead` and `Map.FetchEntries`, and `Map.PutAll`,
`Map.GetAll`, `Map.ReplaceIfSame` and `Map.PutIfAbsent` of serialized keys and JSON texts as they are.

Frames are little-endian (see `transport`); serialized data (`Data`) inside them is big-endian.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from hazelcast.protocol.builtin import DataCodec, EntryListCodec, StringCodec
from hazelcast.protocol.client_message import (
    BEGIN_FRAME_BUF,
    END_FINAL_FRAME_BUF,
    NULL_FINAL_FRAME_BUF,
    NULL_FRAME_BUF,
    REQUEST_HEADER_SIZE,
    RESPONSE_HEADER_SIZE,
    InboundMessage,
    OutboundMessage,
    create_initial_buffer,
)
from hazelcast.protocol.codec import (
    map_get_all_codec,
    map_put_if_absent_codec,
    map_remove_if_same_codec,
    map_replace_if_same_codec,
)
from hazelcast.serialization.data import Data

from gridscore.grid.cutting import FINAL, FRAME, INT, INTEGER, JSON, LONG, STRING, TEXT_HEADER, cut_items, join_entries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from hazelcast.protocol.client_message import Frame

_LONG = struct.Struct("<q")
_READ_PARAMETERS = struct.Struct("<qii")
_INTEGER_DATA, _LONG_DATA = struct.Struct(">iii"), struct.Struct(">iiq")

_SUBSCRIBE = 82176
_READ = 82432
_FETCH_ENTRIES = 79872
_PUT_ALL = 76800
_REPLACE_IF_SAME = 66816


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
    """What one read of a partition's journal gave."""

    first: int  # sequence of the first item read, a removal or not
    next: int  # sequence to read from next
    sequences: list[int]  # sequence of each entry put (added, updated or loaded); removals are left out
    keys: list[bytes]  # serialized key of each, ready to be written again
    # JSON text of each in UTF-8; the whole serialized value where its type is neither JSON nor string.
    values: list[bytes]
    # Hazelcast type by index of those that are neither JSON nor string, for their error message.
    foreign: dict[int, int]
    size: int
    scored: Collection[int] = ()  # indexes of those that have their result, if they were left in

    @property
    def texts(self) -> list[bytes]:
        """The values that are JSON or strings."""
        return [text for index, text in enumerate(self.values) if index not in self.foreign]


class RawMessage(InboundMessage):  # type: ignore[misc]  # the client is untyped
    """A response that stays in one piece: `body` holds all its frames as they came."""

    __slots__ = ("body",)

    def __init__(self, start_frame: Frame, body: bytes) -> None:
        super().__init__(start_frame)
        self.body = body


def decode_read(message: RawMessage) -> Page | None:
    """Cut a response into a page; None if nothing was read. Raises ValueError if an item is cut short."""
    body = message.body
    length = INT.unpack_from(body, 0)[0]
    count = INT.unpack_from(body, 6 + RESPONSE_HEADER_SIZE)[0]
    if count == 0:
        return None  # the next sequence means nothing here: the member answers 0
    following = _LONG.unpack_from(body, 10 + RESPONSE_HEADER_SIZE)[0]
    first = following - count
    # past the begin frame of the list
    sequences, keys, values, foreign = cut_items(body, length + 6, first, count)
    return Page(first, following, sequences, keys, values, foreign, len(body))


def type_of(data: bytes) -> int:
    """Hazelcast's type of a serialized key or value."""
    return int.from_bytes(data[4:8], "big", signed=True)


def string_data(text: bytes, hashed: int = 0) -> bytes:
    """Serialized string of a text in UTF-8; as a key, in the partition of its hash, or of the one given."""
    return TEXT_HEADER.pack(hashed, STRING, len(text)) + text


def integer_forms(number: int) -> list[bytes]:
    """The serialized forms of a whole number, which may be an Integer or a Long; none if it has more than 64 bits."""
    forms = [_INTEGER_DATA.pack(0, INTEGER, number)] if -(2**31) <= number < 2**31 else []
    return [*forms, _LONG_DATA.pack(0, LONG, number)] if -(2**63) <= number < 2**63 else forms


def json_data(text: bytes) -> bytes:
    """Serialized HazelcastJsonValue of a JSON text in UTF-8."""
    return TEXT_HEADER.pack(0, JSON, len(text)) + text


def put_all_prefix(name: str) -> bytes:
    """What every `Map.PutAll` to a map begins with."""
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + 1, _PUT_ALL)
    buffer[REQUEST_HEADER_SIZE] = 1  # go through a MapStore, if there is one
    StringCodec.encode(buffer, name)
    buffer.extend(BEGIN_FRAME_BUF)
    return bytes(buffer)


_END_FINAL = bytes(END_FINAL_FRAME_BUF)


def encode_put_all_json(prefix: bytes, keys: list[bytes], texts: list[bytes]) -> OutboundMessage:
    """`Map.PutAll` of entries of one partition: serialized keys as they are, JSON texts as JSON values."""
    return OutboundMessage(join_entries(prefix, keys, texts, _END_FINAL), False)


FIRST_ENTRY = (2**31 - 1, -1)  # where a walk over the entries of a partition begins


def encode_fetch_entries(name: str, pointers: Iterable[tuple[int, int]], batch: int) -> OutboundMessage:
    """`Map.FetchEntries`: about `batch` entries of a partition from where the pointers stand.

    `pointers`: pairs of index and table size; `[FIRST_ENTRY]` first, then those of the last answer; `batch`: number of
    entries wanted; the answer may hold a few more.
    """
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + 4, _FETCH_ENTRIES)
    INT.pack_into(buffer, REQUEST_HEADER_SIZE, batch)
    StringCodec.encode(buffer, name)
    packed = b"".join(struct.pack("<ii", *pointer) for pointer in pointers)
    buffer.extend(FRAME.pack(len(packed) + 6, FINAL))
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


def replace_if_same_prefix(name: str, key: bytes) -> bytes:
    """What every `Map.ReplaceIfSame` of a serialized key begins with."""
    buffer = create_initial_buffer(REQUEST_HEADER_SIZE + _LONG.size, _REPLACE_IF_SAME)
    StringCodec.encode(buffer, name)
    DataCodec.encode(buffer, Data(key))
    return bytes(buffer)


def encode_replace_if_same(prefix: bytes, before: bytes, after: bytes) -> OutboundMessage:
    """`Map.ReplaceIfSame`: a compare-and-set from one serialized value to another."""
    buffer = bytearray(prefix)
    buffer += FRAME.pack(len(before) + 6, 0) + before
    buffer += FRAME.pack(len(after) + 6, FINAL) + after
    return OutboundMessage(buffer, False, True)


def decode_replace_if_same(message: InboundMessage) -> bool:
    """Whether the value was the expected one, and has been replaced."""
    return bool(map_replace_if_same_codec.decode_response(message))


def encode_put_if_absent(name: str, key: bytes, text: bytes) -> OutboundMessage:
    """`Map.PutIfAbsent` of a JSON text, without a TTL."""
    message: OutboundMessage = map_put_if_absent_codec.encode_request(name, Data(key), Data(json_data(text)), 0, -1)
    return message


def decode_put_if_absent(message: InboundMessage) -> bool:
    """Whether nothing was under the key, and the text is there now."""
    return map_put_if_absent_codec.decode_response(message) is None


def decode_nothing(_message: InboundMessage) -> None:
    """An empty response: it was done."""


def encode_remove_if_same(name: str, key: bytes, value: bytes) -> OutboundMessage:
    """`Map.RemoveIfSame`: removes a serialized key if its value is this serialized one, byte by byte."""
    message: OutboundMessage = map_remove_if_same_codec.encode_request(name, Data(key), Data(value), 0)
    return message


def decode_remove_if_same(message: InboundMessage) -> bool:
    """Whether the value was the expected one, and has been removed."""
    return bool(map_remove_if_same_codec.decode_response(message))
