"""Settings of the Kafka source and sink, and what needs no broker."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gridscore.kafka import Complaints, client_settings
from gridscore.sinks.base import Delivered
from gridscore.sinks.kafka.settings import KafkaSinkSettings
from gridscore.sinks.kafka.sink import headers_of
from gridscore.sources.kafka.settings import KafkaSourceSettings

SOURCE = {"to": "events.x", "brokers": ["kafka:9092"], "topic": "clicks"}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"brokers": ["kafka"]}, "is not a broker"),
        ({"brokers": []}, "at least 1"),
        ({"topic": "a b"}, "name of a topic"),
        ({"key": ("id", "id")}, "a name twice"),
        ({"key": ("id",), "message_key": True}, "not from both"),
        ({"start": "yesterday"}, "is not a start"),
        ({"start": "2026-01-31T12:00:00"}, "no time zone"),
        ({"format": "avro"}, "go together"),
        ({"registry": "http://r:8081"}, "go together"),
        ({"format": "avro", "registry": "http://user:secret@r:8081"}, "without user and password"),
        ({"key_field": "k", "headers_field": "k"}, "cannot be the same"),
        ({"set": {"group.id": "x"}}, "use `group`"),
        ({"set": {"enable.auto.commit": "true"}}, "set by Gridscore"),
        ({"set": {"plugin.library.paths": "/tmp/x.so"}}, "loads libraries or runs commands"),  # noqa: S108 -- a name
        ({"set": {"sasl.kerberos.kinit.cmd": "touch x"}}, "loads libraries or runs commands"),
        ({"set": {"ssl.engine.location": "x.so"}}, "loads libraries or runs commands"),
        ({"max_event": 1}, "greater than or equal"),
        ({"topics": "x"}, "not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused(more, complaint):
    with pytest.raises(ValidationError, match=complaint):
        KafkaSourceSettings(**{**SOURCE, **more})


def test_defaults_say_once_under_each_origin():
    settings = KafkaSourceSettings(**SOURCE)
    assert (settings.key, settings.message_key, settings.start, settings.format) == ((), False, "oldest", "json")
    assert settings.start_time is None
    assert KafkaSourceSettings(**SOURCE, start="2026-01-31T12:00:00Z").start_time.year == 2026


def test_brokers_may_be_one_text_and_come_from_the_environment():
    for brokers in ("a:1, b:2", ["a:1,b:2"], ("a:1", "b:2")):
        assert KafkaSourceSettings(**{**SOURCE, "brokers": brokers}).brokers == ("a:1", "b:2")
    assert KafkaSourceSettings(**{**SOURCE, "brokers": ["${KAFKA}"]}).brokers == ("${KAFKA}",)


def test_the_sink_keeps_what_it_relies_on():
    with pytest.raises(ValidationError, match="use `transactions`"):
        KafkaSinkSettings(results="results.x", brokers=["k:1"], topic="t", set={"transactional.id": "x"})


def test_what_is_given_goes_over_what_is_ours():
    made = client_settings(["a:1", "b:2"], {"linger.ms": "7"}, {"linger.ms": 2, "acks": "all"}, Complaints("t"))
    assert made["linger.ms"] == "7"
    assert made["acks"] == "all"
    assert made["bootstrap.servers"] == "a:1,b:2"


def test_headers_say_what_the_result_says_as_text():
    def said(**value):
        return dict(headers_of(Delivered("k", b"{}", value, 3, 7, 2)))

    assert (
        said(decision="approve", model="m", version=1).items()
        >= {
            "gridscore.epoch": "2",
            "gridscore.sequence": "7",
            "gridscore.decision": "approve",
            "gridscore.version": "1",
        }.items()
    )
    assert said(version=True)["gridscore.version"] == "True"
    assert said(decision=["a"])["gridscore.decision"] == "['a']"
    assert "gridscore.model" not in said(model=None)
