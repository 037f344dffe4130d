"""The servers that pages speak of: real ones, each started for the first page that wants it, with something to read."""

import contextlib
import json
import ssl
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kafka_server
import mqtt_server
import paho.mqtt.publish
import postgres_server
import redis
import redis_server
import schema_registry
from confluent_kafka import KafkaException
from issuer import Issuer
from standardwebhooks import Webhook

from gridscore.grid.ports import HOST, choose_ports

PASSWORDS = {
    "DB_PASSWORD": "db-secret",
    "HOOK_SECRET": "whsec_" + "c2VjcmV0" * 4,
    "KAFKA_PASSWORD": kafka_server.PASSWORD,
    "MQTT_PASSWORD": mqtt_server.PASSWORD,
    "REDIS_PASSWORD": "redis-secret",
    "REGISTRY_PASSWORD": schema_registry.PASSWORD,
}
"""What pages take from the environment."""

EVENTS = [{"id": f"k{number}", "customer": "ann", "amount": 1.5 + number} for number in range(9)]
TABLES = """
CREATE ROLE app SUPERUSER LOGIN PASSWORD '{DB_PASSWORD}';
CREATE TABLE orders AS SELECT 1 AS id, 2.5 AS amount;
CREATE SCHEMA shop;
CREATE TABLE customers (id int PRIMARY KEY, name text);
INSERT INTO customers VALUES (1, 'ann')
"""


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Webhook(PASSWORDS["HOOK_SECRET"]).verify(body, dict(self.headers), json_parse=False)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def _receiver():
    with ThreadingHTTPServer((HOST, 0), _Hook) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


class Servers:
    """Addresses of servers, which end with the test's module."""

    def __init__(self, request):
        self._request = request
        self._started = {}
        self._resources = contextlib.ExitStack()

    def close(self):
        self._resources.close()

    def _server(self, name, start):
        """The server of that name; `start` makes one with its data in a folder."""
        if name not in self._started:
            folder = Path(tempfile.mkdtemp(prefix=name))
            self._started[name] = self._resources.enter_context(start(folder))
        return self._started[name]

    @property
    def certificate(self):
        """The files of the certificate that MQTT and Redis show, and of its key."""
        return [*map(str, self._request.getfixturevalue("certificates"))]

    def context(self):
        """Who comes with that certificate, to a server that has it."""
        context = ssl.create_default_context(cafile=self.certificate[0])
        context.load_cert_chain(*self.certificate)
        return context

    def issuer(self):
        """The address of an issuer of tokens."""
        return self._server("issuer", lambda _: contextlib.closing(Issuer())).address

    def receiver(self):
        """The address of a web hook that takes what is signed."""
        return f"http://{HOST}:{self._server('receiver', lambda _: _receiver()).server_port}"

    def kafka(self, *topics):
        """The address of a broker that has these topics; one of their messages is not an event."""
        kafka = self._request.getfixturevalue("kafka")
        for topic in topics:
            with contextlib.suppress(KafkaException):  # it is there
                kafka.create(topic)
                messages = [*map(json.dumps, EVENTS), "[1]"]
                kafka.produce(topic, [(f"k{number}", text) for number, text in enumerate(messages)])
        return kafka.address

    def kafka_of_users(self, *topics):
        self.kafka(*topics)
        return self._request.getfixturevalue("kafka").broker.sasl_address

    def registry(self):
        server = self._server("registry", lambda _: schema_registry.serving({}))
        return f"http://{HOST}:{server.server_port}"

    def postgres(self):
        """Where a database `shop` has tables; its user `app` may do everything."""
        server = self._server("postgres", postgres_server.start)
        if "shop" not in self._started:
            self._started["shop"] = server.create_database("shop")
            for statement in TABLES.format(**PASSWORDS).split(";"):
                server.execute(statement, "shop")
        return f"{HOST}:{server.port}"

    def redis(self):
        """A server with two streams, one of them in the database 1."""
        return self._redis().url

    def redis_of_users(self):
        self._redis()
        return f"rediss://{HOST}:{self._started['redis port']}"

    def _redis(self):
        certificate, key = self.certificate
        ports = ["--tls-port", str(self._started.setdefault("redis port", choose_ports(1, 0)[0]))]
        more = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
        more += ["--tls-auth-clients", "no"]
        is_new = "redis" not in self._started
        server = self._server("redis", lambda folder: redis_server.start(folder, *ports, *more))
        if is_new:
            with server.client() as client:
                rights = {"keys": ["*"], "commands": ["+@all"]}
                client.acl_setuser("app", enabled=True, passwords=[f"+{PASSWORDS['REDIS_PASSWORD']}"], **rights)
                for event in EVENTS:
                    client.xadd("payments", event)
            with redis.Redis(port=server.port, db=1) as client:
                for event in EVENTS:
                    client.xadd("orders", {"payload": json.dumps(event)})
        return server

    def mqtt(self):
        """A broker with TLS and a user, to which a sensor has sent something."""
        certificate, key = self._request.getfixturevalue("certificates")
        more = {"users": {mqtt_server.USER: mqtt_server.PASSWORD}, "certificate": certificate, "private_key": key}
        broker = self._server("mqtt", lambda folder: mqtt_server.start(folder, **more))
        paho.mqtt.publish.single(
            "plant/a/1/heat",
            '{"celsius": 21.5}',
            qos=1,
            retain=True,
            hostname=HOST,
            port=int(broker.url.rpartition(":")[2]),
            auth={"username": mqtt_server.USER, "password": mqtt_server.PASSWORD},
            tls={"ca_certs": str(certificate)},
        )
        return broker.url
