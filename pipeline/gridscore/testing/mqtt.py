"""A real MQTT broker on this machine, a child process: Debian's mosquitto, or rumqttd out of the wheel `iotcore`.

For tests of what speaks MQTT: `with MqttBroker.start(folder) as broker:`. It can be killed, and restarted. Both speak
MQTT 3.1.1 and 5 with shared subscriptions, users and TLS; only mosquitto keeps sessions and messages over a kill.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal

import psutil

from gridscore.errors import MemberError
from gridscore.grid.ports import HOST, choose_ports
from gridscore.testing.guarded import GuardedServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Kind = Literal["mosquitto", "rumqttd"]


_LOOK_SECONDS = 0.02

_MOSQUITTO = """\
per_listener_settings false
persistence true
persistence_location {folder}/
# What it has acknowledged within the last second is lost by a kill: see `MqttBroker.save`.
autosave_interval 1
max_queued_messages 0
max_inflight_messages 2000
listener {port} {host}
"""

_RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 2000
max_segment_size = 104857600
max_segment_count = 10
"""

_RUMQTTD_LISTENER = """
[{version}.1]
name = "{version}-1"
listen = "{host}:{port}"
next_connection_delay_ms = 1
{tls}
[{version}.1.connections]
connection_timeout_ms = 5000
max_payload_size = 2097152
max_inflight_count = 2000
dynamic_filters = true
{users}
"""


class MqttBroker(GuardedServer):
    """A broker, running as a child process of this one. A context manager: leaving it stops it.

    It also ends when this process ends, whatever way. Make one with :meth:`start`.

    `kind`: which broker it is; `url`: where it listens for MQTT 5; `url_3`: where it listens for MQTT 3.1.1;
    `log_file`: what it prints.
    """

    START_SECONDS = 20.0

    def __init__(
        self, folder: Path, kind: Kind, *, users: Mapping[str, str], certificate: Path | None, private_key: Path | None
    ) -> None:
        super().__init__("MQTT broker", folder / "broker.log")
        self.kind = kind
        first, second = choose_ports(2, 0)
        self._ports = [first] if kind == "mosquitto" else [first, second]
        scheme = "mqtts" if certificate else "mqtt"
        self.url = f"{scheme}://{HOST}:{first}"
        self.url_3 = f"{scheme}://{HOST}:{self._ports[-1]}"
        make = self._mosquitto if kind == "mosquitto" else self._rumqttd
        self._command = make(folder, users, certificate, private_key)

    @classmethod
    def start(
        cls,
        folder: Path,  # for its data, its settings and its log; it must exist, and is left as it is in the end
        kind: Kind | None = None,  # which; mosquitto if it is installed and None is asked for
        *,
        users: Mapping[str, str] | None = None,  # passwords by name; anybody may come if there are none
        certificate: Path | None = None,  # for TLS: a PEM file with the chain of certificates
        private_key: Path | None = None,  # for TLS: a PEM file with its key
    ) -> MqttBroker:
        """Start a broker and return when it answers.

        Raises MemberError if it is not installed, or did not come up.
        """
        kinds = available()
        if not kinds or (kind is not None and kind not in kinds):
            raise MemberError(
                f"There is no MQTT broker{f' {kind}' if kind else ''} on this machine.",
                "Install Debian's `mosquitto`, or `pip install iotcore`.",
            )
        broker = cls(folder, kind or kinds[0], users=users or {}, certificate=certificate, private_key=private_key)
        broker._begin()
        return broker

    def save(self) -> None:
        """Let it write down all that it has acknowledged, so that a kill does not lose it; mosquitto does.

        Raises MemberError if it does not.
        """
        database = self.log_file.with_name("mosquitto.db")
        before = database.stat().st_mtime_ns if database.exists() else 0
        psutil.Process(self.pid).send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + self.START_SECONDS
        while not database.exists() or database.stat().st_mtime_ns == before:
            if time.monotonic() > deadline:
                raise MemberError(f"The MQTT broker does not save. Its last lines:\n{self.last_lines()}")
            time.sleep(_LOOK_SECONDS)

    def _is_ready(self) -> bool:
        return all(map(_answers, self._ports))

    def _mosquitto(
        self, folder: Path, users: Mapping[str, str], certificate: Path | None, private_key: Path | None
    ) -> list[str]:
        text = _MOSQUITTO.format(folder=folder, host=HOST, port=self._ports[0])
        if certificate:
            text += f"certfile {certificate}\nkeyfile {private_key}\n"
        if users:
            passwords = folder / "passwords"
            passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()), encoding="utf-8")
            subprocess.run([_path("mosquitto_passwd"), "-U", passwords], check=True, capture_output=True)
            text += f"allow_anonymous false\npassword_file {passwords}\n"
        else:
            text += "allow_anonymous true\n"
        if os_user := _root():
            text += f"user {os_user}\n"
        settings = folder / "mosquitto.conf"
        settings.write_text(text, encoding="utf-8")
        return [_path("mosquitto"), "-c", str(settings)]

    def _rumqttd(
        self, folder: Path, users: Mapping[str, str], certificate: Path | None, private_key: Path | None
    ) -> list[str]:
        text = _RUMQTTD
        for version, port in zip(("v5", "v4"), self._ports, strict=True):
            text += _RUMQTTD_LISTENER.format(
                version=version,
                host=HOST,
                port=port,
                tls=f'[{version}.1.tls]\ncertpath = "{certificate}"\nkeypath = "{private_key}"' if certificate else "",
                users=f"[{version}.1.connections.auth]\n" + "".join(f'{k} = "{v}"\n' for k, v in users.items())
                if users
                else "",
            )
        settings = folder / "rumqttd.toml"
        settings.write_text(text, encoding="utf-8")
        program = (
            f"from iotcore.iotcore import IotCoreBroker; IotCoreBroker(config_path={str(settings)!r}).run_forever()"
        )
        return [sys.executable, "-c", program]


def available() -> list[Kind]:
    """The brokers that are installed here, the better one first."""
    from importlib.util import find_spec

    found: list[Kind] = []
    if _path("mosquitto"):
        found.append("mosquitto")
    if find_spec("iotcore") is not None:
        found.append("rumqttd")
    return found


def _path(program: str) -> str:
    """Of a program; Debian keeps some where only root looks."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin") or ""


def _root() -> str:
    """As root, mosquitto would become another user, who may not write to our folder."""
    import getpass

    return getpass.getuser() if hasattr(psutil.Process(), "uids") and psutil.Process().uids().effective == 0 else ""


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
