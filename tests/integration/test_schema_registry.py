"""Avro with a schema registry's frame: against an HTTP server that answers as Confluent's registry does."""

from __future__ import annotations

import io
import json
import ssl
import struct
from datetime import UTC, datetime
from decimal import Decimal

import fastavro
import pytest
import schema_registry
import trustme

from gridscore.kafka import KafkaRefusedError
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.kafka.messages import NoEventError
from gridscore.sources.kafka.schema_registry import AvroReader
from gridscore.sources.kafka.settings import KafkaSourceSettings

CUSTOMER = {"type": "record", "name": "Customer", "namespace": "shop", "fields": [{"name": "id", "type": "string"}]}
PAYMENT = {
    "type": "record",
    "name": "Payment",
    "namespace": "shop",
    "fields": [
        {"name": "customer", "type": "shop.Customer"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}
LONG = "x" * 9_000
NUMBER = {"type": "record", "name": "Number", "fields": [{"name": "n", "type": "int"}]}


@pytest.fixture
def answers():
    return {
        "/schemas/ids/1": {"schema": json.dumps(NUMBER)},
        "/schemas/ids/2": {
            "schema": json.dumps(PAYMENT),
            "references": [{"name": "shop.Customer", "subject": "shop/customer", "version": 3}],
        },
        "/subjects/shop%2Fcustomer/versions/3": {"schema": json.dumps(CUSTOMER), "id": 7},
        "/schemas/ids/3": {"schema": '"string"'},
        "/schemas/ids/4": {"schema": "{}", "schemaType": "PROTOBUF"},
        "/schemas/types": ["AVRO"],
    }


@pytest.fixture
def registry(answers):
    with schema_registry.serving(answers) as server:
        yield server


def reader(server, scheme="http", **more):
    url = f"{scheme}://127.0.0.1:{server.server_port}"
    given = {"to": "events.x", "brokers": ["k:1"], "topic": "t", "format": "avro", "registry": url, **more}
    return AvroReader(KafkaSourceSettings(**given))


def framed(schema_id, record, schema=NUMBER):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return struct.pack(">bI", 0, schema_id) + stream.getvalue()


def test_a_record_becomes_json_and_its_schema_is_asked_for_once(registry):
    read = reader(registry)
    assert [json.loads(read(framed(1, {"n": n}))) for n in range(3)] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert registry.asked == ["/schemas/ids/1"]
    read.close()


def test_references_and_logical_types_are_understood(registry):
    read = reader(registry)
    whole = {**PAYMENT, "fields": [{"name": "customer", "type": CUSTOMER}, *PAYMENT["fields"][1:]]}
    record = {"customer": {"id": "c1"}, "amount": Decimal("12.50"), "at": datetime(2026, 1, 31, 12, tzinfo=UTC)}
    assert json.loads(read(framed(2, {**record, "note": None}, whole))) == {
        "customer": {"id": "c1"},
        "amount": 12.5,
        "at": "2026-01-31T12:00:00Z",
        "note": None,
    }
    read.close()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b'{"n":1}', "no frame"),
        (b"\0\0\0", "no frame"),
        (struct.pack(">bI", 0, 99) + b"\x02", "has no schema 99"),
        (struct.pack(">bI", 0, 1), "does not fit schema 1"),
        (struct.pack(">bI", 0, 1) + b"\x02\x02", "1 bytes are left over"),
        (struct.pack(">bI", 0, 4) + b"\x02", "not Avro but PROTOBUF"),
    ],
)
def test_what_is_no_record_of_its_schema_is_no_event(registry, value, why):
    read = reader(registry)
    for _ in range(2):
        with pytest.raises(NoEventError, match=why):
            read(value)
    assert len(registry.asked) <= 1
    read.close()


def test_a_user_is_sent_and_one_that_is_refused_is_told(registry):
    registry.closed_to_strangers = True
    stranger = reader(registry)
    with pytest.raises(KafkaRefusedError, match="refuses us: 401"):
        stranger.check()
    stranger.close()
    known = reader(registry, registry_username="alice", registry_password="secret")  # noqa: S106 -- of this test
    known.check()
    known.close()


def test_a_registry_in_trouble_is_tried_again(registry):
    registry.status = 503
    read = reader(registry)
    with pytest.raises(SourceInterruptedError, match="answers 503"):
        read(framed(1, {"n": 1}))
    registry.status = 200
    assert read(framed(1, {"n": 1})) == b'{"n":1}'
    read.close()


def test_a_certificate_must_be_trusted(registry, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    registry.socket = context.wrap_socket(registry.socket, server_side=True)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger = reader(registry, "https")
    with pytest.raises(KafkaRefusedError, match="certificate"):
        stranger.check()
    stranger.close()
    known = reader(registry, "https", registry_ca_file=str(tmp_path / "ca.pem"))
    known.check()
    known.close()


def nested(depth):
    """Records within records, each with two of the one below, so that no bytes stand for very many."""
    schema = {"type": "record", "name": "R0", "fields": []}
    for level in range(1, depth):
        fields = [{"name": "a", "type": schema}, {"name": "b", "type": f"R{level - 1}"}]
        schema = {"type": "record", "name": f"R{level}", "fields": fields}
    return schema


def chain(length):
    """A record whose fields define types, each with the one before in it: flat to look at, and very deep."""
    fields = [{"name": "f0", "type": {"type": "record", "name": "C0", "fields": [{"name": "x", "type": "int"}]}}]
    fields += [
        {
            "name": f"f{number}",
            "type": {"type": "record", "name": f"C{number}", "fields": [{"name": "x", "type": f"C{number - 1}"}]},
        }
        for number in range(1, length)
    ]
    return {"type": "record", "name": "Chain", "fields": fields}


@pytest.mark.parametrize(
    ("schema", "body", "why"),
    [
        ({"type": "record", "name": "A", "fields": [{"name": "a", "type": "A"}]}, b"", "within itself"),
        (
            {"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "A"]}]},
            b"\x02" * 100_000 + b"\0",
            "within itself",
        ),
        ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", "very many values"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, b"\0", "very many values"),
        ({"type": "array", "items": {"type": "enum", "name": "E", "symbols": ["x" * 10_000]}}, b"\0", "very many"),
        (
            {
                "type": "map",
                "values": {"type": "record", "name": "W", "fields": [{"name": "x" * 9_000, "type": "int"}]},
            },
            b"\0",
            "very many values",
        ),
        (nested(30), b"", "very many values"),
        (chain(500), b"", "64 levels"),
    ],
    ids=["itself", "itself or null", "nulls", "nothing", "symbols", "names", "doubling", "chain"],
)
def test_a_schema_that_makes_much_of_few_bytes_is_refused(registry, answers, schema, body, why):
    answers["/schemas/ids/9"] = {"schema": json.dumps(schema)}
    read = reader(registry)
    with pytest.raises(NoEventError, match=why):
        read(struct.pack(">bI", 0, 9) + body)
    read.close()


def test_a_wide_record_and_a_small_one_are_read(registry, answers):
    wide = [{"name": f"a_field_with_a_long_name_{number}", "type": ["null", "string"]} for number in range(1_000)]
    for number, fields in ((8, wide), (9, [{"name": "n", "type": "null"}])):
        schema = {"type": "record", "name": "R", "fields": fields}
        answers[f"/schemas/ids/{number}"] = {"schema": json.dumps(schema)}
        read = reader(registry)
        record = {field["name"]: None for field in fields}
        assert json.loads(read(framed(number, record, schema))) == record
        read.close()


def test_references_that_lead_to_ever_more_of_them_end(registry, answers):
    references = [{"name": f"n{number}", "subject": "all", "version": 1} for number in range(50)]
    answers["/schemas/ids/9"] = {"schema": json.dumps(NUMBER), "references": references}
    answers["/subjects/all/versions/1"] = {"schema": json.dumps(NUMBER), "references": references}
    read = reader(registry)
    with pytest.raises(NoEventError, match="references"):
        read(framed(9, {"n": 1}))
    assert len(registry.asked) < 200
    read.close()


@pytest.mark.parametrize(
    "answer",
    [
        ["AVRO"],
        "text",
        {"schema": json.dumps(NUMBER), "references": [{"name": "a", "subject": "a\nb", "version": 1}]},
        {"schema": json.dumps(NUMBER), "references": [{"name": "a", "subject": "types", "version": 1}]},
        {"schema": json.dumps(NUMBER), "references": ["a"]},
        {"schema": 7},
        {},
    ],
)
def test_an_answer_that_is_no_schema_is_no_event(registry, answers, answer):
    answers["/schemas/ids/9"] = answer
    answers["/subjects/types/versions/1"] = ["AVRO"]
    read = reader(registry)
    with pytest.raises(NoEventError):
        read(framed(9, {"n": 1}))
    read.close()
