"""The packets of MQTT that carry the load: messages that come (PUBLISH), and their receipts (PUBACK, PUBREC).

All others are the library's affair. For a message it makes a dozen objects, some of them with locks and tables, which
takes many times as long as to cut out the few bytes that we need.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_PUBLISH, _KIND = 0x30, 0xF0
# By the two bits of a message's first byte that are its quality of service. What has QoS 2 nobody has asked for but who
# had our session before; the library answers what the broker says to its receipt.
_RECEIPTS = {0: b"", 1: b"\x40\x02", 2: b"\x50\x02"}
_MORE = 0x80

# What follows the identifier of each property that a PUBLISH may have, MQTT 5 section 2.2.2.2: a text of two bytes'
# length, two of them, a variable length integer, or so many bytes.
_TEXTS = {0x03: 1, 0x08: 1, 0x09: 1, 0x26: 2}
_BYTES = {0x01: 1, 0x02: 4, 0x23: 2}
_USER_PROPERTY, _SUBSCRIPTION = 0x26, 0x0B


class MalformedError(ValueError):
    """What has come is not MQTT."""


class Message(NamedTuple):
    """A message.

    Attributes:
        topic: Its bytes.
        payload: Its bytes.
        receipt: The packet that confirms it; empty with QoS 0.
        properties: As they came; empty if there are none, and by MQTT 3.1.1.
    """

    topic: bytes
    payload: bytes
    receipt: bytes = b""
    properties: bytes = b""


class Cutter:
    """Cuts what comes over a connection into packets.

    Args:
        five: Whether it speaks MQTT 5.
    """

    def __init__(self, *, five: bool) -> None:
        self._five = five
        self._data = b""
        self._at = 0
        self._parts: list[bytes] = []  # of a packet that is large
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        if not data:
            return
        self._missing -= len(data)
        if self._missing > 0:
            self._parts.append(data)  # joined once, not with each piece
            return
        self._data = b"".join((self._data[self._at :], *self._parts, data))
        self._parts.clear()
        self._at = self._missing = 0

    def take(self, most: int) -> tuple[list[Message], bytes]:
        """The messages that are whole, and the packet behind them if it is of another kind.

        Args:
            most: Messages at most; what there is more waits for the next call.

        Raises:
            MalformedError: It is not MQTT.
        """
        data, at, end, five = self._data, self._at, len(self._data), self._five
        messages: list[Message] = []
        other = b""
        if self._missing:
            return messages, other
        while len(messages) < most and at + 1 < end:
            first, size, body = data[at], data[at + 1], at + 2
            if size & _MORE:
                size, body = _integer(data, at + 1)
                if not body:
                    break
            after = body + size
            if after > end:
                self._missing = after - end
                break
            if first & _KIND == _PUBLISH:
                try:
                    messages.append(_message(data, body, after, _RECEIPTS[first >> 1 & 3], five=five))
                except (IndexError, KeyError):
                    raise MalformedError("A message is not valid MQTT.") from None
                at = after
            else:
                other, at = data[at:after], after
                break
        self._at = at
        return messages, other


def user_property(properties: bytes, name: str) -> str | None:
    """The first user property of that name, if it is not empty.

    Raises:
        MalformedError: These are not properties of a message.
    """
    wanted, at = name.encode(), 0
    try:
        while at < len(properties):
            kind, at = properties[at], at + 1
            if kind in _TEXTS:
                texts = []
                for _ in range(_TEXTS[kind]):
                    (size,) = struct.unpack_from(">H", properties, at)
                    texts.append(properties[at + 2 : at + 2 + size])
                    at += 2 + size
                if kind == _USER_PROPERTY and texts[0] == wanted and texts[1]:
                    return texts[1].decode()
            elif kind == _SUBSCRIPTION:
                _, at = _integer(properties, at)
                if not at:
                    break
            else:
                at += _BYTES[kind]
    except (KeyError, struct.error):
        raise MalformedError("Its properties are not valid MQTT.") from None
    return None


def _message(data: bytes, body: int, after: int, receipt: bytes, *, five: bool) -> Message:
    begin = body + 2 + (data[body] << 8 | data[body + 1])
    topic, properties = data[body + 2 : begin], b""
    if receipt:
        receipt += data[begin : begin + 2]
        begin += 2
    if five:
        size, begin = data[begin], begin + 1
        if size & _MORE:
            size, begin = _integer(data, begin - 1)
        if size:
            properties = data[begin : begin + size]
            begin += size
    # Without a topic it would be known by an alias, which we have not allowed.
    if begin > after or not topic:
        raise MalformedError("A message is not valid MQTT.")
    return Message(topic, data[begin:after], receipt, properties)


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A variable length integer, and the place behind it; 0 if it is not whole yet."""
    value = 0
    for index, byte in enumerate(data[at : at + 4]):
        value |= (byte & ~_MORE) << 7 * index
        if not byte & _MORE:
            return value, at + index + 1
    if len(data) >= at + 4:
        raise MalformedError("A length has more than four bytes.")
    return 0, 0
