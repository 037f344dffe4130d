"""The SQL by which the cluster reads a topic itself: what settings become, and what they cannot."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from pipeline.grid.engine import identifier, literal
from pipeline.job.plugs.kafka_source import KafkaSourceSettings
from pipeline.sources.kafka_java import java_properties
from pipeline.sources.kafka_on_grid import _explained, statements

SOURCE = {"to": "events.x", "brokers": ["k1:9092", "k2:9092"], "topic": "clicks", "message_key": True}
PEM = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"


def sql(**more):
    return statements(KafkaSourceSettings(**{**SOURCE, **more}), "shop")


def java(given, *, show=False):
    return java_properties(given, show=show)


def test_two_mappings_and_a_job_of_the_sources_own_name():
    topic, to, job = sql()
    assert topic.startswith(
        'CREATE OR REPLACE EXTERNAL MAPPING "gridscore.source.shop.topic"\nEXTERNAL NAME "clicks" ('
    )
    assert "(__key VARCHAR, this JSON)\nTYPE Kafka" in topic
    assert "'bootstrap.servers' = 'k1:9092,k2:9092'" in topic
    assert "'auto.offset.reset' = 'earliest'" in topic
    assert "'group.id' = 'shop'" in topic
    assert 'EXTERNAL NAME "events.x" (__key VARCHAR, this JSON)\nTYPE IMap' in to
    assert job.startswith('CREATE JOB IF NOT EXISTS "gridscore.source.shop"\n')
    assert "'processingGuarantee' = 'atLeastOnce'" in job
    assert 'SELECT __key, this FROM "gridscore.source.shop.topic"' in job


def test_no_secret_is_shown():
    secrets = {"ssl.key.pem": "-----BEGIN PRIVATE KEY-----\nMII=", "ssl.key.password": "hunter2"}
    sasl = {"sasl.mechanism": "PLAIN", "sasl.username": "app", "sasl.password": 'hun"ter3'}
    topic, _, _ = sql(set={**secrets, **sasl, "ssl.certificate.pem": PEM})
    assert "app" in topic
    assert "hun" not in topic
    assert "PRIVATE KEY" not in topic


def test_fields_make_the_key():
    topic, _, job = sql(message_key=False, key=["id", "the site"])
    assert "__key" not in topic
    assert "keyFormat" not in topic
    assert """SELECT JSON_VALUE(this, '$.id') || '|' || JSON_VALUE(this, '$["the site"]'), this""" in job


def test_whatever_stands_in_a_name_or_a_value_stays_in_it():
    assert identifier('a"; DROP JOB b') == '"a""; DROP JOB b"'
    assert literal("it's") == "'it''s'"
    topic, _, _ = sql(group="o'clock', 'x'='y")
    assert "'group.id' = 'o''clock'', ''x''=''y'" in topic


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"message_key": False}, "the key must come from the message"),
        ({"message_key": False, "key": ["a'b"]}, "can have no quotes"),
        ({"key_field": "k"}, "`key_field` cannot be done on the grid"),
        ({"headers_field": "h"}, "`headers_field` cannot"),
        ({"format": "avro", "registry": "http://r:8081"}, "`format` cannot"),
        ({"max_event": 1000}, "`max_event` cannot"),
        ({"max_wait": "5s"}, "`max_wait` cannot"),
        ({"start": "2026-01-31T12:00:00Z"}, "`oldest` or `latest`"),
        ({"set": {"debug": "all"}}, "no counterpart"),
    ],
)
def test_what_the_grid_cannot_do_is_refused(more, complaint):
    with pytest.raises(UsageError, match=complaint):
        sql(**more)


def test_properties_become_those_of_the_java_client(tmp_path):
    authority = tmp_path / "ca.pem"
    authority.write_text(PEM)
    made = java(
        {
            "security.protocol": "sasl_ssl",
            "sasl.mechanisms": "scram-sha-256",
            "sasl.username": "app",
            "sasl.password": 'a"b\\c',
            "ssl.ca.location": str(authority),
            "ssl.endpoint.identification.algorithm": "none",
            "fetch.wait.max.ms": "50",
            "client.id": "me",
        }
    )
    login = 'org.apache.kafka.common.security.scram.ScramLoginModule required username="app" password="a\\"b\\\\c";'
    assert made == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.jaas.config": login,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": PEM,
        "ssl.endpoint.identification.algorithm": "",
        "fetch.max.wait.ms": "50",
        "client.id": "me",
    }


def test_a_private_key_is_read_but_not_shown(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n")
    certificate.write_text(PEM)
    given = {"ssl.key.location": str(key), "ssl.certificate.location": str(certificate)}
    assert "SECRET" in java(given)["ssl.keystore.key"]
    shown = java(given, show=True)
    assert shown["ssl.keystore.key"] == f"${{the contents of {key}}}"
    assert shown["ssl.keystore.certificate.chain"] == PEM


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"ssl.ca.location": "/no/such/file"}, "cannot be read: No such file"),
        ({"ssl.ca.pem": "MII="}, "is no PEM text"),
        ({"ssl.certificate.pem": PEM}, "go together"),
        ({"ssl.key.pem": "-----BEGIN RSA PRIVATE KEY-----"}, "PKCS #8"),
        ({"sasl.username": "app", "sasl.password": "x"}, "SASL needs"),
        ({"sasl.mechanism": "GSSAPI", "sasl.username": "app", "sasl.password": "x"}, "not `GSSAPI`"),
        ({"enable.ssl.certificate.verification": "false"}, "no counterpart"),
    ],
)
def test_properties_that_say_nothing_to_java_are_refused(given, complaint):
    with pytest.raises(UsageError, match=complaint):
        java(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Unknown connector type: Kafka", "lack Hazelcast's Kafka connector"),
        (
            "a.JetException: b\n\tat x\nCaused by: java.lang.NoClassDefFoundError: org/slf4j/LoggerFactory\n\tat y",
            "org/slf4j/LoggerFactory is missing",
        ),
        ("com.hazelcast.jet.JetException: a\n\tat x\nCaused by: b\n\t... 3 more\nCaused by: c: d\n\tat y", "c: d"),
        ("The Jet engine is disabled.", "engine is disabled"),
    ],
)
def test_what_the_cluster_says_is_put_for_people(text, message):
    assert message in str(_explained(text))
