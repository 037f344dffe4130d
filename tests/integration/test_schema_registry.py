"""Avro with a schema registry's frame: against an HTTP server that answers as Confluent's registry does.

The real registry cannot be had from a package registry. The server here is a real one, of the standard library, with
the two requests of the real API that are made: `GET /schemas/ids/{id}` and `GET /subjects/{subject}/versions/{n}`.
"""

from __future__ import annotations

import base64
import io
import json
import ssl
import struct
import threading
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fastavro
import pytest
import trustme

from pipeline.job.plugs.kafka_source import KafkaSourceSettings
from pipeline.kafka import KafkaRefusedError
from pipeline.sources.base import SourceInterruptedError
from pipeline.sources.kafka_messages import NoEventError
from pipeline.sources.schema_registry import AvroReader

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
NUMBER = {"type": "record", "name": "Number", "fields": [{"name": "n", "type": "int"}]}


@pytest.fixture
def registry():
    answers = {
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

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            user = base64.b64encode(b"alice:secret").decode()
            if self.server.closed_to_strangers and self.headers.get("Authorization") != f"Basic {user}":
                return self._answer(401, {"error_code": 40101})
            if self.path in answers:
                return self._answer(self.server.status, answers[self.path])
            return self._answer(404, {"error_code": 40403, "message": "Schema not found"})

        def _answer(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.asked, server.status, server.closed_to_strangers = [], 200, False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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
