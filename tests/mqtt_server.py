"""Real MQTT brokers for the session: Debian's mosquitto and rumqttd, and one with users and a certificate."""

from __future__ import annotations

import subprocess

import pytest
from servers import not_here

from gridscore.testing.mqtt import MqttBroker, available

USER, PASSWORD = "device", "right-password"


def start(folder, kind="mosquitto", **more):
    if kind not in available():
        not_here(f"no MQTT broker {kind}")
    return MqttBroker.start(folder, kind, **more)


@pytest.fixture(scope="session", params=["mosquitto", "rumqttd"])
def mqtt(request, tmp_path_factory):
    """A broker that takes anybody."""
    with start(tmp_path_factory.mktemp(request.param), request.param) as broker:
        yield broker


@pytest.fixture
def mosquitto(tmp_path_factory):
    """A broker of one's own, which may be killed and keeps what it has."""
    with start(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key, PEM files."""
    folder = tmp_path_factory.mktemp("certificates")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="session", params=["mosquitto", "rumqttd"])
def guarded_mqtt(request, tmp_path_factory, certificates):
    """A broker with TLS that knows one user."""
    certificate, key = certificates
    users = {USER: PASSWORD}
    with start(
        tmp_path_factory.mktemp(request.param), request.param, users=users, certificate=certificate, private_key=key
    ) as broker:
        yield broker
