"""What becomes an event, and what does not."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Message

from gridscore.sources.kafka.messages import MessageReader, NoEventError
from gridscore.sources.kafka.settings import KafkaSourceSettings


def sent(value, key=None, headers=None):
    return Message(topic="clicks", partition=3, offset=42, value=value, key=key, headers=headers)


def reader(**settings):
    return MessageReader(KafkaSourceSettings(to="events.x", brokers=["k:1"], topic="clicks", **settings))


def test_a_message_is_an_event_under_its_origin_with_the_bytes_that_came():
    assert reader().read(sent(b' {"a": 1.50}\n')) == ("clicks-3-42", b' {"a": 1.50}\n')


def test_a_frame_of_a_schema_registry_around_json_is_taken_off():
    assert reader().read(sent(b'\0\0\0\0\x07{"a":1}'))[1] == b'{"a":1}'


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"[1]", "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"a":1}{"a":2}', "not JSON"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"a":"' + b"x" * 100 + b'"}', "108 bytes; the limit is 100"),
        (b'{"a":' + b"[" * 40 + b"", "not JSON"),
        (b"\0\0\0", "not JSON"),
    ],
)
def test_what_is_no_object_in_utf8_is_no_event(value, why):
    with pytest.raises(NoEventError, match=why):
        reader(max_event=100).read(sent(value))


def test_deep_nesting_is_no_crash():
    with pytest.raises(NoEventError, match="not JSON"):
        reader().read(sent(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))


@pytest.mark.parametrize(
    ("value", "key"), [(b'{"id":"x","b":1}', "x"), (b'{"b":{"id":"y"},"id":7}', 7), ('{"id":"ü"}'.encode(), "ü")]
)
def test_a_field_may_be_the_key(value, key):
    assert reader(key=("id",)).read(sent(value)) == (key, value)


def test_several_fields_make_a_key_together():
    assert reader(key=("id", "shop")).read(sent(b'{"shop":"s1","id":7}'))[0] == "7|s1"
    with pytest.raises(NoEventError, match="field `shop`"):
        reader(key=("id", "shop")).read(sent(b'{"id":7,"shop":1.5}'))


@pytest.mark.parametrize(
    "value",
    [b'{"b":1}', b'{"id":null}', b'{"id":1.5}', b'{"id":true}', b'{"id":""}', b'{"id":99999999999999999999}', None],
)
def test_without_a_usable_field_there_is_no_key(value):
    with pytest.raises(NoEventError, match="key"):
        reader(key=("id",)).read(sent(value))


def test_the_message_s_key_may_be_the_key():
    assert reader(message_key=True).read(sent(b"{}", "ü".encode())) == ("ü", b"{}")
    with pytest.raises(NoEventError, match="no key"):
        reader(message_key=True).read(sent(b"{}"))
    with pytest.raises(NoEventError, match="key is not UTF-8"):
        reader(message_key=True).read(sent(b"{}", b"\xff"))


def test_a_tombstone_removes_the_event_under_its_key():
    assert reader(message_key=True).read(sent(None, b"k")) == ("k", None)
    assert reader().read(sent(None, b"k")) == ("clicks-3-42", None)


@pytest.mark.parametrize(
    ("value", "event"), [(b"{}", {}), (b'{"a":1} ', {"a": 1}), (b'{ "k" : 0, "h":[], "a":2}', {"a": 2})]
)
def test_key_and_headers_are_kept_in_the_fields_that_were_named(value, event):
    headers = [("trace", b"t1"), ("n", b"1"), ("n", b"2"), ("bin", b"\xff"), ("none", None), ("n", b"3")]
    _, text = reader(key_field="k", headers_field="h").read(sent(value, b"c7", headers))
    kept = {"trace": "t1", "n": ["1", "2", "3"], "bin": {"base64": "/w=="}, "none": None}
    assert json.loads(text) == {**event, "k": "c7", "h": kept}
    assert text.count(b'"k"') == 1


def test_no_key_and_no_headers_are_kept_as_such():
    _, text = reader(key_field="k", headers_field="h").read(sent(b'{"a":1}'))
    assert json.loads(text) == {"a": 1, "k": None, "h": {}}


def test_the_field_that_is_the_key_may_be_filled_by_the_message_s():
    key, text = reader(key=("id",), key_field="id").read(sent(b'{"id":"x"}', b"m"))
    assert (key, json.loads(text)) == ("x", {"id": "m"})


def test_what_is_added_counts_for_the_limit():
    with pytest.raises(NoEventError, match="the limit is 64"):
        reader(headers_field="h", max_event=64).read(sent(b"{}", None, [("h", b"x" * 80)]))
