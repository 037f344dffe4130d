"""The inner loops of the wire in Python: they run where `_wire.c` is not compiled, and document what it does.

The rest of the room takes `find_message`, `cut_items` and `join_entries` from here, compiled or not.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from gridscore.compiled import compiled

if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

FRAME = struct.Struct("<iH")  # length of the whole frame, and flags
FINAL = 1 << 13
INT = struct.Struct("<i")
JSON, STRING, LONG, INTEGER = -130, -11, -8, -7  # Hazelcast's types of serialized values
TEXT_HEADER = struct.Struct(">iii")  # what precedes a serialized text: hash, type, length
# frame header and hash, type, 1, factory, class of the item; event type, length of the key
_ITEM = struct.Struct(">6x17xii")
_ITEM_HEADER = 31
_LENGTH = struct.Struct(">i")
_TEXT = struct.Struct(">4xii")  # hash, then type and, if it is text, length of the text
_PUT_KINDS = frozenset((1, 4, 512))
_TEXT_TYPES = frozenset((JSON, STRING))


def _find_message(buffer: Buffer, position: int, end: int, largest: int) -> tuple[int, bool, int]:
    """Walk over the frames of a message.

    Args:
        position: Where a frame begins.
        end: Of what was received.
        largest: Bytes above which a frame is not believed.

    Returns:
        Where the last whole frame ends; whether it was the last one of a message, where the walk stops; and the length
        of the incomplete frame behind it: 0 if not even that has arrived, -1 if it cannot be one.

    Raises:
        ValueError: `position` or `end` are not in the buffer.
    """
    if position < 0 or end > memoryview(buffer).nbytes:
        raise ValueError("bounds outside of the buffer")
    header = FRAME.unpack_from
    while end - position >= 6:
        length, flags = header(buffer, position)
        if not 6 <= length <= largest:
            return position, False, -1
        if length > end - position:
            return position, False, length
        position += length
        if flags & FINAL:
            return position, True, 0
    return position, False, 0


def _cut_items(
    body: Buffer, position: int, first: int, count: int
) -> tuple[list[int], list[bytes], list[bytes], dict[int, int]]:
    """Cut the items of a journal's page; removals are left out.

    An item is its type and the kind of event, then key, new value and old value, each preceded by its length.

    Args:
        position: Where the frame of the first item begins.
        first: Its sequence.
        count: Of the items.

    Returns:
        Sequences, serialized keys, texts (whole serialized values where they are neither JSON nor string), and the
        Hazelcast type of the latter by row.

    Raises:
        ValueError: An item is longer than the answer, or its parts are longer than the item.
    """
    if position < 0:
        raise ValueError(_MALFORMED)
    view = bytes(body)
    size = len(view)
    sequences: list[int] = []
    keys: list[bytes] = []
    values: list[bytes] = []
    foreign: dict[int, int] = {}
    unpack_length, unpack_item, unpack_text = INT.unpack_from, _ITEM.unpack_from, _TEXT.unpack_from
    add_sequence, add_key, add_value = sequences.append, keys.append, values.append
    try:
        for sequence in range(first, first + count):
            (length,) = unpack_length(view, position)
            kind, key_length = unpack_item(view, position)
            key_at, end = position + _ITEM_HEADER, position + length
            if key_at > end or end > size:
                raise ValueError(_MALFORMED)
            position = end
            if kind not in _PUT_KINDS:
                continue
            value_at = key_at + key_length + 4
            if key_length < 0 or value_at > end:
                raise ValueError(_MALFORMED)
            (value_length,) = _LENGTH.unpack_from(view, value_at - 4)
            if value_length > end - value_at:
                raise ValueError(_MALFORMED)
            type_id, text_length = unpack_text(view, value_at) if value_length >= 12 else (0, 0)
            if type_id in _TEXT_TYPES:
                if not 0 <= text_length <= value_length - 12:
                    raise ValueError(_MALFORMED)
                add_value(view[value_at + 12 : value_at + 12 + text_length])
            else:
                foreign[len(values)] = _LENGTH.unpack_from(view, value_at + 4)[0] if value_length >= 8 else 0
                add_value(view[value_at : value_at + max(value_length, 0)])
            add_sequence(sequence)
            add_key(view[key_at : key_at + key_length])
    except struct.error:
        raise ValueError(_MALFORMED) from None
    return sequences, keys, values, foreign


_MALFORMED = "an item of the journal ends before its parts do"


# Sizes repeat, so headers are cached.
@lru_cache(maxsize=4096)
def _key_header(size: int) -> bytes:
    return FRAME.pack(size + 6, 0)


@lru_cache(maxsize=4096)
def _value_header(size: int) -> bytes:
    return FRAME.pack(size + 18, 0) + TEXT_HEADER.pack(0, JSON, size)


def _join_entries(prefix: Buffer, keys: list[bytes], texts: list[bytes], suffix: Buffer) -> bytearray:
    """Entries of a put-all as frames: serialized keys as they are, JSON texts as JSON values.

    Raises ValueError if there are not as many keys as texts.
    """
    key_headers, value_headers = map(_key_header, map(len, keys)), map(_value_header, map(len, texts))
    entries = zip(key_headers, keys, value_headers, texts, strict=True)
    return bytearray().join(chain((prefix,), chain.from_iterable(entries), (suffix,)))


_fast = compiled("gridscore.grid._wire")
find_message = _fast.find_message if _fast else _find_message
cut_items = _fast.cut_items if _fast else _cut_items
join_entries = _fast.join_entries if _fast else _join_entries
