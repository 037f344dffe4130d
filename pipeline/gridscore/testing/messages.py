"""Messages of the client protocol from the member's side: requests read, responses and events built.

Frames are little-endian: `int32 length (of the whole frame), uint16 flags`, then the content. The first content begins
with `int32 type, int64 correlation`; then a request has `int32 partition`, a response `uint8 backups to wait for`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from hazelcast.protocol import ErrorHolder
from hazelcast.protocol.builtin import FixSizedTypesCodec, ListMultiFrameCodec, StringCodec
from hazelcast.protocol.codec.custom.error_holder_codec import ErrorHolderCodec

from gridscore.grid.transport import _message

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable

_FRAME = struct.Struct("<iH")
_REQUEST = struct.Struct("<iqi")
_RESPONSE = struct.Struct("<iqB")
_WHOLE = (1 << 15) | (1 << 14)
_FINAL, _BEGIN, _END, _NULL, _EVENT = 1 << 13, 1 << 12, 1 << 11, 1 << 10, 1 << 9

FIXED = _REQUEST.size  # where the parameters of fixed size begin in a request's first frame
# The requests that the stub knows, by type: the names of Hazelcast's protocol definitions.
NAMES = {
    0x000100: "Client.Authentication",
    0x000300: "Client.AddClusterViewListener",
    0x000400: "Client.CreateProxy",
    0x000500: "Client.DestroyProxy",
    0x000800: "Client.GetDistributedObjects",
    0x000900: "Client.AddDistributedObjectListener",
    0x000A00: "Client.RemoveDistributedObjectListener",
    0x000B00: "Client.Ping",
    0x000C00: "Client.Statistics",
    0x000F00: "Client.LocalBackupListener",
    0x010100: "Map.Put",
    0x010200: "Map.Get",
    0x010300: "Map.Remove",
    0x010400: "Map.Replace",
    0x010500: "Map.ReplaceIfSame",
    0x010600: "Map.ContainsKey",
    0x010800: "Map.RemoveIfSame",
    0x010900: "Map.Delete",
    0x010E00: "Map.PutIfAbsent",
    0x010F00: "Map.Set",
    0x011900: "Map.AddEntryListener",
    0x011A00: "Map.RemoveEntryListener",
    0x012200: "Map.KeySet",
    0x012300: "Map.GetAll",
    0x012400: "Map.Values",
    0x012500: "Map.EntrySet",
    0x012A00: "Map.Size",
    0x012B00: "Map.IsEmpty",
    0x012C00: "Map.PutAll",
    0x012D00: "Map.Clear",
    0x013800: "Map.FetchEntries",
    0x014100: "Map.EventJournalSubscribe",
    0x014200: "Map.EventJournalRead",
    0x200100: "MC.ReadMetrics",
}

# The errors that the stub answers with, and their codes.
CODES = {
    "OperationTimeout": 38,
    "PartitionMigrating": 39,
    "UnsupportedOperation": 61,
    "IndeterminateOperationState": 80,
}


class Request:
    """A request as a member reads it; call the readers in the order of the parameters."""

    def __init__(self, body: bytes) -> None:
        self._message = _message(body)
        self._first = self._message.next_frame().buf
        self.type, self.correlation, self.partition = _REQUEST.unpack_from(self._first)
        self.name = NAMES.get(self.type, f"0x{self.type:06x}")

    def fixed(self, layout: str, offset: int = 0) -> tuple[Any, ...]:
        """Parameters of fixed size, as `struct` lays them out without padding."""
        return struct.unpack_from("<" + layout, self._first, FIXED + offset)

    def uuid(self, offset: int = 0) -> uuid.UUID:
        """A UUID among the parameters of fixed size."""
        found: uuid.UUID = FixSizedTypesCodec.decode_uuid(self._first, FIXED + offset)
        return found

    def text(self) -> str:
        return str(StringCodec.decode(self._message))

    def nullable_text(self) -> str | None:
        if self._message.peek_next_frame().is_null_frame():
            self._message.next_frame()
            return None
        return self.text()

    def data(self) -> bytes:
        """A serialized key or value, or any other frame."""
        return bytes(self._message.next_frame().buf)

    def list(self, read: Callable[[], Any]) -> list[Any]:
        self._message.next_frame()
        found = []
        while not self._message.peek_next_frame().is_end_frame():
            found.append(read())
        self._message.next_frame()
        return found


class Reply:
    """A response or an event being built."""

    def __init__(self, kind: int, correlation: int, fixed: bytes = b"", *, event: bool = False) -> None:
        self._buffer = bytearray()
        self._last = 0
        if event:
            self._frame(_REQUEST.pack(kind, correlation, -1) + fixed, _WHOLE | _EVENT)
        else:
            self._frame(_RESPONSE.pack(kind, correlation, 0) + fixed, _WHOLE)

    def data(self, content: bytes | None) -> Reply:
        """Add serialized data, a string in UTF-8, or null."""
        return self._frame(b"", _NULL) if content is None else self._frame(content)

    def list(self, contents: Iterable[bytes]) -> Reply:
        """Add a list of frames; a list of entries has keys and values in turn."""
        self._frame(b"", _BEGIN)
        for content in contents:
            self._frame(content)
        return self._frame(b"", _END)

    def encoded(self, encode: Callable[..., None], *values: Any) -> Reply:
        """Add what one of the client's codecs encodes."""
        # Codecs say by a flag what is last. Encoded without it, the last frame is found by walking.
        at = len(self._buffer)
        encode(self._buffer, *values)
        while at < len(self._buffer):
            self._last = at
            at += _FRAME.unpack_from(self._buffer, at)[0]
        return self

    def wait_for_backups(self, count: int) -> Reply:
        """Let the client wait for so many backups before it takes the response."""
        self._buffer[_FRAME.size + _RESPONSE.size - 1] = count
        return self

    def encode(self) -> bytes:
        length, flags = _FRAME.unpack_from(self._buffer, self._last)
        _FRAME.pack_into(self._buffer, self._last, length, flags | _FINAL)
        return bytes(self._buffer)

    def _frame(self, content: bytes, flags: int = 0) -> Reply:
        self._last = len(self._buffer)
        self._buffer += _FRAME.pack(len(content) + _FRAME.size, flags) + content
        return self


def error(correlation: int, name: str, text: str) -> bytes:
    """The answer that a request failed."""
    holder = ErrorHolder(CODES[name], f"com.hazelcast.{name}Exception", text, [])
    return Reply(0, correlation).encoded(ListMultiFrameCodec.encode, [holder], ErrorHolderCodec.encode).encode()


def done(request: Request) -> Reply:
    """The answer to a request, to be filled, or left empty."""
    return Reply(request.type + 1, request.correlation)


def boolean(request: Request, value: bool) -> Reply:
    """The answer yes or no."""
    return Reply(request.type + 1, request.correlation, struct.pack("<?", value))


def uuid_bytes(value: uuid.UUID) -> bytes:
    """A UUID as a parameter of fixed size."""
    buffer = bytearray(17)
    FixSizedTypesCodec.encode_uuid(buffer, 0, value)
    return bytes(buffer)
