"""A real connection to a scripted MQTT broker: messages however they come in pieces, receipts, and what is not MQTT."""

import asyncio
import socket
import struct
import tracemalloc
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from gridscore.sources.base import Poison, SourceInterruptedError
from gridscore.sources.mqtt import link as links
from gridscore.sources.mqtt.link import MqttLink
from gridscore.sources.mqtt.messages import MessageDecoder
from gridscore.sources.mqtt.packets import Message, user_property
from gridscore.sources.mqtt.settings import MqttSourceSettings

SECONDS = 20
PINGRESP = b"\xd0\x00"
PINGREQ, DISCONNECT = b"\xc0\x00", b"\xe0\x00"


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


async def read_packet(reader):
    """The next packet, if its length has one byte."""
    head = await reader.readexactly(2)
    return head + await reader.readexactly(head[1])


@asynccontextmanager
async def connected(*, five=True, **more):
    """A link, and what its broker reads and writes, which has let it in and nothing else."""
    accepted = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        await read_packet(reader)
        writer.write(b"\x20\x03\x00\x00\x00" if five else b"\x20\x02\x00\x00")
        accepted.set_result((reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(SECONDS):
        address = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        more = {"to": "events.x", "topic": ["a/b"], "protocol": "5" if five else "3.1.1", "broker": address} | more
        link = MqttLink(MqttSourceSettings(**more), "c")
        try:
            await link.connect()
            reader, writer = await accepted
            yield link, reader, writer
        finally:
            await link.close()
            if accepted.done():
                accepted.result()[1].close()


topics = st.binary(min_size=1, max_size=40)
payloads = st.one_of(st.binary(max_size=200), st.integers(120, 20_000).map(lambda size: b"x" * size))
packets = st.one_of(
    st.just(PINGRESP),
    st.tuples(topics, payloads, st.integers(0, 2), st.integers(1, 65_535), st.lists(st.text(max_size=40), max_size=9)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(packets, max_size=12), st.data(), st.booleans())
def test_messages_are_what_was_sent_however_they_come(sent, data, five):
    stream, expected = b"", []
    for each in sent:
        if isinstance(each, bytes):
            stream += each
            continue
        topic, payload, qos, number, texts = each
        packed = b"".join(b"\x26" + (struct.pack(">H", len(t.encode())) + t.encode()) * 2 for t in texts)
        size = VariableByteIntegers.encode(len(packed))
        stream += publish(topic, payload, qos=qos, number=number, properties=size + packed if five else None)
        expected.append(message(topic, payload, qos, number, packed if five else b""))
    most = data.draw(st.integers(1, 4))
    pieces = []
    while stream:
        size = data.draw(st.one_of(st.integers(1, 9), st.integers(1, 30_000)))
        pieces.append(stream[:size])
        stream = stream[size:]

    async def receive():
        found = []
        async with connected(five=five, in_flight=most) as (link, reader, writer):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # so that it may be read by itself
            while len(found) < len(expected):
                await link.wait()
                taken = link.take()
                assert len(taken) <= 2 * most
                receipts = [each.receipt for each in taken if each.receipt]
                link.acknowledge(receipts)
                assert await reader.readexactly(4 * len(receipts)) == b"".join(receipts)
                found += taken
        return found

    assert asyncio.run(receive()) == expected


NOT_MQTT = [
    b"\x32\x05\x00\x09a/b",  # the topic is longer than the packet
    b"\x32\x05\x00\x03a/b" + publish(),  # no number: it would be in the next packet
    b"\x32\x01\x00",
    b"\x32\x00",
    b"\x36\x07\x00\x01a\x00\x01{}",  # QoS 3
    b"\x32\x06\x00\x00\x00\x01{}",  # no topic
    b"\x32\x80\x80\x80\x80\x01",  # a length of five bytes
    b"\x20\x00\xf0\x00",  # nothing that a broker says now
]
BEYOND = publish(properties=b"\x7f", payload=b"")  # properties that reach beyond the packet


@pytest.mark.parametrize(
    ("stream", "five"), [*((each, five) for each in NOT_MQTT for five in (True, False)), (BEYOND, True)]
)
async def test_what_is_not_mqtt_ends_the_connection(stream, five):
    async with connected(five=five) as (link, reader, writer):
        writer.write(stream)
        with pytest.raises(SourceInterruptedError, match=r"What comes from .* is not MQTT"):
            await link.wait()
        with suppress(ConnectionResetError):  # it has not read everything
            assert await reader.read() == b""


@pytest.mark.parametrize("five", [True, False])
async def test_what_is_too_large_takes_bounded_memory_and_is_poison(five):
    """A broker may let anybody send 256 MiB; it would come again at each start."""
    piece, count = b"x" * 65_536, 512
    head = publish(payload=b"", number=7, properties=b"\x00" if five else None)
    length = len(head) - 2 + count * len(piece)
    async with connected(five=five, max_event=1_000) as (link, _, writer):
        decoder = MessageDecoder(link._settings)
        tracemalloc.start()
        try:
            writer.write(head[:1] + VariableByteIntegers.encode(length) + head[2:])
            for _ in range(count):
                writer.write(piece)
                await writer.drain()
            writer.write(publish(number=8, properties=b"\x00" if five else None))
            found = []
            while len(found) < 2:
                await link.wait()
                found += link.take()
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
        large, small = found
        poison = decoder.decode(large)
        assert isinstance(poison, Poison)
        assert poison.error == "It has 33,554,432 bytes; the limit is 1,000."
        assert (large.receipt, poison.raw) == (b"\x40\x02\x00\x07", b"x" * 1_000)
        assert small == message(b"a/b", b"{}", 1, 8)


async def test_properties_that_are_too_large_make_a_message_poison():
    packed = b"\x26\x00\x01k\xff\xff" + b"v" * 65_535
    properties = VariableByteIntegers.encode(len(packed * 4)) + packed * 4
    async with connected(max_event=1_000) as (link, _, writer):
        writer.write(publish(properties=properties) + publish(number=2, properties=b"\x00"))
        found = []
        while len(found) < 2:
            await link.wait()
            found += link.take()
        assert isinstance(MessageDecoder(link._settings).decode(found[0]), Poison)
        assert found[1] == message(b"a/b", b"{}", 1, 2)


async def test_a_connection_that_breaks_is_an_error():
    async with connected() as (link, _, writer):
        writer.transport.abort()
        with pytest.raises(SourceInterruptedError, match="is lost"):
            await link.wait()
        with pytest.raises(SourceInterruptedError, match="is lost"):
            link.acknowledge([b"\x40\x02\x00\x01"])


async def test_a_password_that_no_buffer_holds_goes_out():
    connect = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        connect.set_result(await reader.readuntil(b"END"))
        writer.write(b"\x20\x02\x00\x00")
        await reader.read()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    server = await asyncio.start_server(serve, sock=listening, limit=1 << 20)
    create = links._Client._create_socket

    def small(client):
        made = create(client)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return made

    address = f"mqtt://127.0.0.1:{listening.getsockname()[1]}"
    more = {"username": "u", "password": "p" * 60_000 + "END"}
    async with server, asyncio.timeout(SECONDS):
        link = MqttLink(MqttSourceSettings(to="e", topic=["a"], protocol="3.1.1", broker=address, **more), "c")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(links._Client, "_create_socket", small)
            await link.connect()
        await link.close()
        assert b"p" * 60_000 in await connect


async def test_receipts_go_out_in_order_and_are_waited_for_at_the_end(monkeypatch):
    monkeypatch.setattr(links, "CLOSE_SECONDS", SECONDS)
    receipts = [struct.pack(">I", number) * 4_096 for number in range(512)]  # more than buffers hold
    async with connected(in_flight=1) as (link, reader, writer):
        subscribing = asyncio.create_task(link.subscribe(["a/b"]))
        identifier = (await read_packet(reader))[2:4]
        writer.write(b"\x90\x04" + identifier + b"\x00\x01")
        await subscribing
        writer.write(publish(properties=b"\x00") * 2)  # it reads no further
        await link.wait()
        link.acknowledge(receipts)
        closing = asyncio.create_task(link.close())
        assert await reader.readexactly(1 << 23) == b"".join(receipts)
        writer.write(publish(properties=b"\x00") * 5)
        assert await read_packet(reader) == PINGREQ
        assert not closing.done()
        writer.write(PINGRESP)
        assert await reader.read() == DISCONNECT
        await closing


async def test_what_has_qos_2_is_confirmed_when_we_say_so_and_done_with_when_the_broker_says_so():
    async with connected() as (link, reader, writer):
        writer.write(publish(qos=2, number=7, properties=b"\x00"))
        await link.wait()
        (taken,) = link.take()
        writer.write(b"\x62\x02\x00\x09")  # PUBREL of one that came over an earlier connection
        assert await read_packet(reader) == b"\x70\x02\x00\x09"  # nothing before it
        link.acknowledge([taken.receipt])
        assert await read_packet(reader) == b"\x50\x02\x00\x07"
        writer.write(b"\x62\x02\x00\x07")
        assert await read_packet(reader) == b"\x70\x02\x00\x07"


async def test_a_source_that_reads_no_further_gives_signs_of_life(monkeypatch):
    monkeypatch.setattr(links, "_MISC_SECONDS", 0.01)
    async with connected(in_flight=1) as (link, reader, writer):
        link._ping_seconds = 0.02
        writer.write(publish(number=1, properties=b"\x00") * 2)
        for _ in range(5):  # and does not wait for the answers
            assert await read_packet(reader) == PINGREQ
        writer.write(PINGRESP * 5 + publish(number=3, properties=b"\x00"))
        assert len(link.take()) == 2
        link.acknowledge([b"\x40\x02\x00\x01"] * 2)
        await link.wait()
        assert [each.receipt[-1] for each in link.take()] == [3]


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
def test_properties_that_are_not_mqtts(properties):
    with pytest.raises(ValueError, match="properties are not valid MQTT"):
        user_property(properties, "id")
