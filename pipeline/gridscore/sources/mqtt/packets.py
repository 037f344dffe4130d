"""Messages as they come (PUBLISH): the four of their fields that make an event, and the receipt (PUBACK, PUBREC)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from paho.mqtt.exception import MalformedPacket
from paho.mqtt.properties import VariableByteIntegers

# By the two bits of a message's first byte that are its quality of service. What has QoS 2 nobody has asked for but who
# had our session before; the library answers what the broker says to its receipt.
_RECEIPTS = {0: b"", 1: b"\x40\x02", 2: b"\x50\x02"}

# What follows the identifier of each property that a PUBLISH may have, MQTT 5 section 2.2.2.2: a text of two bytes'
# length, two of them, a variable length integer, or so many bytes.
_TEXTS = {0x03: 1, 0x08: 1, 0x09: 1, 0x26: 2}
_BYTES = {0x01: 1, 0x02: 4, 0x23: 2}
_USER_PROPERTY, _SUBSCRIPTION = 0x26, 0x0B


class Message(NamedTuple):
    """A message."""

    topic: bytes  # its bytes
    payload: bytes  # its bytes
    receipt: bytes = b""  # the packet that confirms it; empty with QoS 0
    properties: bytes = b""  # as they came; empty if there are none, and by MQTT 3.1.1
    left_out: int = 0  # bytes of its end, of its payload at least, that were left out because it is too large


def read_message(first: int, body: bytes, length: int, *, five: bool) -> Message:
    """Take a PUBLISH apart.

    `first`: its first byte; `body`: what follows the length, or so much of it as there was room for; `length`: the
    bytes that follow; `five`: whether it is one of MQTT 5. Raises MalformedPacket if it is not one.
    """
    begin = 2 + int.from_bytes(body[:2])
    topic, properties = body[2:begin], b""
    receipt = _RECEIPTS.get(first >> 1 & 3)
    if receipt:
        receipt += body[begin : begin + 2]
        begin += 2
    if five:
        size, taken = VariableByteIntegers.decode(body[begin : begin + 4])  # type: ignore[no-untyped-call]
        begin += taken
        properties = body[begin : begin + size]
        begin += size
    # Without a topic it would be known by an alias, which we have not allowed.
    if receipt is None or begin > length or not topic:
        raise MalformedPacket("A message is not valid MQTT.")
    return Message(topic, body[begin:], receipt, properties, length - len(body))


def user_property(properties: bytes, name: str) -> str | None:
    """The first user property of that name, if it is not empty.

    Raises ValueError if these are not properties of a message.
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
                at += VariableByteIntegers.decode(properties[at : at + 4])[1]  # type: ignore[no-untyped-call]
            else:
                at += _BYTES[kind]
    except (KeyError, struct.error, MalformedPacket):
        raise ValueError("Its properties are not valid MQTT.") from None
    return None
