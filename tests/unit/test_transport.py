"""The parser of the socket's bytes, and the cutting of journal pages: the same whatever the pieces."""

import struct
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore.grid import transport, wire

FINAL, UNFRAGMENTED = 1 << 13, (1 << 15) | (1 << 14)


def frame(content, flags=0):
    return struct.pack("<iH", len(content) + 6, flags) + content


def message(kind, correlation, contents):
    """A response: type, correlation, no backups; then its frames."""
    frames = [frame(struct.pack("<iqB", kind, correlation, 0), UNFRAGMENTED), *map(frame, contents)]
    last = bytearray(frames[-1])
    flags = struct.unpack_from("<H", last, 4)[0]
    struct.pack_into("<H", last, 4, flags | FINAL)
    return b"".join([*frames[:-1], last])


def data(type_id, content):
    return struct.pack(">ii", 0, type_id) + content


def text(type_id, value):
    return data(type_id, struct.pack(">i", len(value)) + value)


def sized(value):
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def item(kind, key, new, *, last_byte=True):
    head = struct.pack(">iibiii", 0, -2, 1, -4, 132, kind)
    return head + sized(key) + sized(new) + sized(None) + (b"\0" if last_byte else b"")


def read_response(items, following):
    head = struct.pack("<iqBiq", transport.READ_RESPONSE, 7, 0, len(items), following)
    sequences = b"".join(struct.pack("<q", following - len(items) + i) for i in range(len(items)))
    frames = [
        frame(head, UNFRAGMENTED),
        frame(b"", 1 << 12),
        *map(frame, items),
        frame(b"", 1 << 11),
        frame(sequences, FINAL),
    ]
    return b"".join(frames)


class Receiver:
    """As much of a connection as the parser needs, and what it has made of the bytes."""

    def __init__(self):
        self.messages = []
        self._builder = types.SimpleNamespace(on_message=self.messages.append)
        self._loop = None
        self.live = True
        self.aborted = False
        self.protocol = transport._Protocol(self)
        self.protocol._transport = self

    def abort(self):
        self.aborted = True

    def _update_read_time(self, _time):
        pass

    def _update_received(self, _count):
        pass

    def feed(self, payload):
        while payload:
            buffer = self.protocol.get_buffer(-1)
            count = min(len(buffer), len(payload))
            buffer[:count] = payload[:count]
            payload = payload[count:]
            self.protocol.buffer_updated(count)


def frames_of(inbound):
    found = []
    while (one := inbound.next_frame()) is not None:
        found.append((bytes(one.buf), one.flags))
    return found


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=50),
)
def test_messages_are_the_same_however_the_bytes_arrive(contents, cuts):
    stream = b"".join(message(5, i, frames) for i, frames in enumerate(contents))
    receiver, position = Receiver(), 0
    for cut in cuts:
        receiver.feed(stream[position : position + cut])
        position += cut
    receiver.feed(stream[position:])

    assert [m.get_correlation_id() for m in receiver.messages] == list(range(len(contents)))
    for got, frames in zip(receiver.messages, contents, strict=True):
        assert [content for content, _ in frames_of(got)[1:]] == frames


@pytest.mark.parametrize("size", [10, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_message_larger_than_the_buffer_comes_whole(size):
    receiver = Receiver()
    receiver.feed(message(5, 1, [b"a" * size]) + message(5, 2, [b"b"]))
    first, second = receiver.messages
    assert frames_of(first)[1][0] == b"a" * size
    assert frames_of(second)[1][0] == b"b"


def test_many_messages_do_not_grow_the_buffer():
    receiver = Receiver()
    for i in range(500):
        receiver.feed(message(5, i, [b"x" * 20_000])[:-1])
        receiver.feed(message(5, i, [b"x" * 20_000])[-1:])
    assert len(receiver.messages) == 500
    assert len(receiver.protocol._buffer) == transport._BUFFER


@pytest.mark.parametrize("length", [5, 0, -1, 2**31 - 1])
def test_a_frame_that_no_member_sends_ends_the_connection(length):
    receiver = Receiver()
    receiver.feed(struct.pack("<iH", length, FINAL) + b"x" * 20)
    assert receiver.aborted
    assert receiver.messages == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 4, 8, 512]),
            st.binary(min_size=8, max_size=20),
            st.one_of(
                st.binary(max_size=50).map(lambda v: ("json", v)),
                st.binary(max_size=50).map(lambda v: ("string", v)),
                st.binary(max_size=50).map(lambda v: ("other", v)),
                st.none(),
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_a_page_holds_what_was_put(entries, last_byte, first):
    forms = {"json": lambda v: text(-130, v), "string": lambda v: text(-11, v), "other": lambda v: data(-55, v)}
    items = [item(kind, key, forms[new[0]](new[1]) if new else None, last_byte=last_byte) for kind, key, new in entries]
    receiver = Receiver()
    receiver.feed(read_response(items, first + len(items)))
    page = wire.decode_read(receiver.messages[0])

    put = [(first + i, key, new) for i, (kind, key, new) in enumerate(entries) if kind in (1, 4, 512)]
    assert (page.first, page.next) == (first, first + len(items))
    assert page.sequences == [sequence for sequence, _, _ in put]
    assert page.keys == [key for _, key, _ in put]
    for position, (_, _, new) in enumerate(put):
        if new is not None and new[0] != "other":
            assert page.values[position] == new[1]
            assert position not in page.foreign
        else:
            assert position in page.foreign


def test_an_empty_read_is_nothing():
    receiver = Receiver()
    receiver.feed(read_response([], 0))
    assert wire.decode_read(receiver.messages[0]) is None


_MEMBER, _AT = "Exception from server: ", "\n \tat a.B.c(B.java:1)"


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (f"{_MEMBER}com.x.DistributedObjectDestroyedException: null{_AT}", "distributed object destroyed"),
        (f"{_MEMBER}com.x.GoneException: Object[com.hazelcast.Service] is gone", "gone"),
        (f"{_MEMBER}java.lang.OutOfMemoryError: Java heap space{_AT}", "Java heap space"),
        (f"{_MEMBER}com.hazelcast.core.HazelcastException: Map `x`: gone\n ", "Map `x`: gone"),
        ("connection closed", "connection closed"),
    ],
)  # fmt: skip
def test_what_a_member_says_is_told_without_names_of_java_classes(message, plain):
    assert transport.without_java(message) == plain
