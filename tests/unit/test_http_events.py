import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridscore.sources.http import events as http_events
from gridscore.sources.http.events import MAX_KEY, EventReader, Lines, array_slices, elements_of

LIMIT = 1 << 20


def read(texts, *key, **options):
    return EventReader(key, options.pop("max_event", LIMIT)).read(texts, **options)


def test_keys_come_from_a_field_as_text():
    taken = read([b'{"id": "a"}', b'{"x": [{}], "id": 12345678901}'], "id")
    assert taken.entries == [("a", b'{"id": "a"}'), ("12345678901", b'{"x": [{}], "id": 12345678901}')]
    assert not taken.errors


def test_several_fields_make_a_key_together():
    taken = read([b'{"id": 7, "shop": "s1"}', b'{"id": 7}', b'{"id": 1.5, "shop": "s1"}'], "id", "shop")
    assert [key for key, _ in taken.entries] == ["7|s1"]
    assert ["field `shop`" in taken.errors[0].error, "field `id`" in taken.errors[1].error] == [True, True]


def test_keys_are_made_if_nobody_gives_them():
    keys = [key for key, _ in read([b"{}"] * 100).entries]
    assert len(set(keys)) == 100
    assert all(len(key) == 26 for key in keys)


def test_a_request_can_give_the_key():
    assert [key for key, _ in read([b'{"id": 1}'], "id", prefix="k", single=True).entries] == ["k"]
    assert [key for key, _ in read([b"{}", b"x", b"{}"], prefix="k", first=5).entries] == ["k-5", "k-7"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "not JSON"),
        (b"[]", "an event is a JSON object"),
        (b"7", "an event is a JSON object"),
        (b'{"id": 1} {}', "not JSON"),
        (b'{"id": 1,}', "not JSON"),
        (b'{"id": NaN}', "not JSON"),
        (b'{"id": 1, "x": "\xff"}', "not UTF-8"),
        (b"{}", "the field `id`, which makes the key, is not there"),
        (b'{"id": null}', "is not there"),
        (b'{"id": 1.5}', "a string or a whole number is wanted"),
        (b'{"id": true}', "a string or a whole number is wanted"),
        (b'{"id": ""}', "cannot be a key"),
        (b'{"id": "' + b"k" * (MAX_KEY + 1) + b'"}', "cannot be a key"),
        (b'{"id": 1, "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"id": 1, "x": "' + b"x" * LIMIT + b'"}', "more than 1,048,576 bytes"),
    ],
)
def test_what_is_no_event_harms_no_neighbour(text, error):
    taken = read([b'{"id": 1}', text, b'{"id": 2}'], "id")
    assert [key for key, _ in taken.entries] == ["1", "2"]
    [found] = taken.errors
    assert found.number == 1
    assert error in found.error


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), st.lists(st.integers(1, 20)))
def test_lines_are_the_same_however_they_arrive(texts, sizes):
    stream, lines, found = b"\n".join(texts), Lines(100), []
    for size in sizes:
        found += lines.feed(stream[:size])
        stream = stream[size:]
    found += lines.feed(stream) + lines.end()
    assert found == [text.strip() for text in texts if text.strip()]


@given(st.integers(11, 60), st.integers(1, 25), st.booleans())
def test_of_a_line_that_is_too_long_only_the_beginning_is_kept(length, size, ends):
    stream, lines, found, kept = b"a" * length + b"\nok" + (b"\n" if ends else b""), Lines(10), [], 0
    while stream:
        found += lines.feed(stream[:size])
        stream = stream[size:]
        kept = max(kept, len(lines._rest))
    found += lines.end()
    assert len(found) == 2
    assert len(found[0]) > 10
    assert found[1] == b"ok"
    assert kept <= 10


def test_a_line_that_comes_byte_by_byte_is_not_copied_each_time():
    lines = Lines(1_000)
    assert lines.feed(b"a") == []
    rest = lines._rest
    assert lines.feed(b"b") == []
    assert lines._rest is rest
    assert lines.held == 2
    assert lines.feed(b"\n") == [b"ab"]
    assert lines.held == 0


def array_texts(body):
    places = [place for place in array_slices(body) if place is not None]
    return [text for place in places for text in elements_of(body, *place)]


def test_elements_of_an_array_are_texts_as_they_were_sent():
    assert array_texts(b' [{"a": 1.0},\n{ }, "x" ] ') == [b'{"a": 1.0}', b"{ }", b'"x"']
    assert array_texts(b"[]") == []


_json = st.recursive(
    st.none() | st.integers() | st.text('a"\\,[]{}:', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


@given(st.lists(_json, max_size=20), st.sampled_from([(",", ":"), (" , ", " : ")]), st.integers(1, 40))
def test_an_array_is_the_same_however_it_is_sliced(values, separators, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_events, "SLICE", size)
        texts = array_texts(json.dumps(values, separators=separators).encode())
    assert [json.loads(text) for text in texts] == values


@pytest.mark.parametrize("size", [3, 1 << 16])
@pytest.mark.parametrize(
    "body",
    [b"[", b"[1", b"[1,]", b"[1,2,3,4,]", b"[,1]", b"[1,,2,3]", b"[1}", b"[1]]", b"[" * 100_000, b"[" * 2_000 + b"]"],
)
def test_what_is_no_array_is_refused(monkeypatch, body, size):
    monkeypatch.setattr(http_events, "SLICE", size)
    with pytest.raises(ValueError, match=r"array|nested"):
        array_texts(body)


def test_tiny_elements_of_an_array_do_not_fill_the_memory():
    body = b"[" + b"1," * 500_000 + b"1]"  # as objects, they would be 60 MiB
    tracemalloc.start()
    try:
        steps = sum(1 for _ in array_slices(body))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert steps > 15
    assert most < 16 << 20


def test_the_decoder_checks_what_it_passes_over():
    # `read` relies on it: fields that are not declared must still be JSON.
    form = msgspec.defstruct("Form", [])
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b'{"a": {"b": [1, 2, }}', type=form)
