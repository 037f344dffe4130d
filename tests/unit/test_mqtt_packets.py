"""What comes over an MQTT connection is cut into packets, however it comes in pieces; and the socket between."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from gridscore.sources.mqtt.packets import Cutter, MalformedError, Message, user_property
from gridscore.sources.mqtt.socket import MqttSocket

PINGRESP, SUBACK = b"\xd0\x00", b"\x90\x04\x00\x07\x00\x01"


def properties_of(**values):
    made = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        setattr(made, name, value)
    return made.pack()


def publish(topic=b"a/b", payload=b"{}", *, qos=1, number=1, properties=None):
    body = struct.pack(">H", len(topic)) + topic
    if qos:
        body += struct.pack(">H", number)
    if properties is not None:
        body += properties
    body += payload
    return bytes([0x30 | qos << 1]) + VariableByteIntegers.encode(len(body)) + body


def message(topic, payload, qos, number, properties=b""):
    receipt = {0: b"", 1: b"\x40\x02", 2: b"\x50\x02"}[qos] + (struct.pack(">H", number) if qos else b"")
    return Message(topic, payload, receipt, properties)


def drain(cutter, most=1_000):
    found = []
    while True:
        messages, other = cutter.take(most)
        found += messages
        if other:
            found.append(other)
        elif len(messages) < most:
            return found


topics = st.binary(min_size=1, max_size=40)
payloads = st.one_of(st.binary(max_size=200), st.integers(120, 20_000).map(lambda size: b"x" * size))
packets = st.one_of(
    st.sampled_from([PINGRESP, SUBACK]),
    st.tuples(topics, payloads, st.integers(0, 2), st.integers(1, 65_535), st.lists(st.text(max_size=40), max_size=9)),
)


@given(st.lists(packets, max_size=12), st.data(), st.booleans())
def test_packets_are_what_was_sent_however_they_come(sent, data, five):
    stream, expected = b"", []
    for each in sent:
        if isinstance(each, bytes):
            stream += each
            expected.append(each)
            continue
        topic, payload, qos, number, texts = each
        packed = b"".join(b"\x26" + (struct.pack(">H", len(t.encode())) + t.encode()) * 2 for t in texts)
        size = VariableByteIntegers.encode(len(packed))
        stream += publish(topic, payload, qos=qos, number=number, properties=size + packed if five else None)
        expected.append(message(topic, payload, qos, number, packed if five else b""))
    cutter, found = Cutter(five=five), []
    most = data.draw(st.integers(1, 4))
    while stream:
        size = data.draw(st.one_of(st.integers(1, 9), st.integers(1, 30_000)))
        cutter.feed(stream[:size])
        stream = stream[size:]
        if data.draw(st.booleans()):
            found += drain(cutter, most)
    assert found + drain(cutter, most) == expected


@pytest.mark.parametrize(
    "stream",
    [
        b"\x32\x05\x00\x09a/b",  # the topic is longer than the packet
        b"\x32\x05\x00\x03a/b" + publish(),  # no number: it would be in the next packet
        b"\x32\x01\x00",
        b"\x36\x07\x00\x01a\x00\x01{}",  # QoS 3
        b"\x32\x06\x00\x00\x00\x01{}",  # no topic
        b"\x32\x80\x80\x80\x80\x01",  # a length of five bytes
    ],
)
@pytest.mark.parametrize("five", [True, False])
def test_what_is_no_mqtt_is_said_to_be_none(stream, five):
    cutter = Cutter(five=five)
    cutter.feed(stream)
    with pytest.raises(MalformedError):
        drain(cutter)


def test_properties_that_reach_beyond_the_packet_are_none():
    cutter = Cutter(five=True)
    cutter.feed(publish(properties=b"\x7f", payload=b""))
    with pytest.raises(MalformedError):
        drain(cutter)


def test_a_user_property_is_found_among_the_others():
    packed = properties_of(
        PayloadFormatIndicator=1,
        MessageExpiryInterval=70_000,
        ContentType="application/json",
        ResponseTopic="answers",
        CorrelationData=b"\x26\x00\x02id\x00\x01x",
        SubscriptionIdentifier=[300, 7],
        UserProperty=[("other", "1"), ("id", ""), ("id", "m-é"), ("id", "later")],
    )
    _, begin = VariableByteIntegers.decode(packed)
    assert user_property(packed[begin:], "id") == "m-é"
    assert user_property(packed[begin:], "other") == "1"
    assert user_property(packed[begin:], "none") is None
    assert user_property(b"", "id") is None


@pytest.mark.parametrize("properties", [b"\x7e\x00", b"\x26\x00", b"\x26\x00\x01a\x00", b"\x0b\x80\x80\x80\x80\x80"])
def test_properties_that_are_none_of_mqtts(properties):
    with pytest.raises(MalformedError):
        user_property(properties, "id")


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield MqttSocket(ours), theirs


def test_the_library_reads_what_it_is_offered_and_nothing_else(pair):
    link, theirs = pair
    theirs.sendall(b"message")
    assert link.receive() == (b"message", False)
    assert link.receive() == (b"", False)
    with pytest.raises(BlockingIOError):
        link.recv(1)
    link.offer(PINGRESP)
    assert (link.recv(1), link.recv(9)) == (PINGRESP[:1], PINGRESP[1:])
    theirs.close()
    assert link.receive() == (b"", False)
    assert link.ended
    assert link.recv(1) == b""


def test_what_is_written_goes_out_in_order_as_soon_as_there_is_room(pair):
    link, theirs = pair
    data = bytes(range(256)) * 8_192
    assert link.send(data) == len(data)
    assert link.send(b"end") == 3
    assert not link.flush()
    received = b""
    while not link.flush():
        received += theirs.recv(1 << 20)
    link.close()
    while more := theirs.recv(1 << 20):
        received += more
    assert received == data + b"end"


def test_a_connection_that_breaks_is_an_error_for_the_library(pair):
    link, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    link.send(b"x")
    while link.flush() and not link.ended:
        link.send(b"x")
    with pytest.raises(OSError, match=r"."):
        link.recv(1)
