"""Properties of librdkafka, which our settings have, as those of Kafka's Java client, which the members run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAME = {
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "fetch.max.bytes",
    "fetch.min.bytes",
    "isolation.level",
    "max.partition.fetch.bytes",
    "metadata.max.age.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.service.name",
    "socket.connection.setup.timeout.ms",
    "ssl.key.password",
}
_RENAMED = {
    "fetch.message.max.bytes": "max.partition.fetch.bytes",
    "fetch.wait.max.ms": "fetch.max.wait.ms",
    "socket.receive.buffer.bytes": "receive.buffer.bytes",
    "socket.send.buffer.bytes": "send.buffer.bytes",
    "topic.metadata.refresh.interval.ms": "metadata.max.age.ms",
}
_PEM = {
    "ssl.ca": ("ssl.truststore.type", "ssl.truststore.certificates"),
    "ssl.certificate": ("ssl.keystore.type", "ssl.keystore.certificate.chain"),
    "ssl.key": ("ssl.keystore.type", "ssl.keystore.key"),
}
_LOGIN = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}


def java_properties(given: Mapping[str, str], *, show: bool) -> dict[str, str]:
    """Properties of a Java consumer that mean what these mean to librdkafka.

    Args:
        given: Properties of librdkafka.
        show: Whether they are for people: then the private key's file is named, not read.

    Raises:
        UsageError: One has no counterpart, a file cannot be read, or they do not go together.
    """
    made: dict[str, str] = {}
    for name, value in given.items():
        stem, _, form = name.rpartition(".")
        if name in _SAME or name in _RENAMED:
            made[_RENAMED.get(name, name)] = value
        elif stem in _PEM and form in {"location", "pem"}:
            kind, target = _PEM[stem]
            made[kind] = "PEM"
            made[target] = _pem(name, value, show=show and stem == "ssl.key")
        elif name == "security.protocol":
            made[name] = value.upper()
        elif name == "ssl.endpoint.identification.algorithm":
            made[name] = "" if value == "none" else value
        elif name not in {"sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"}:
            raise UsageError(
                f"`{name}` has no counterpart in Kafka's Java client, which the members run.",
                "Leave it out, or let a process of its own read the topic, without --on-grid.",
            )
    if ("ssl.keystore.key" in made) != ("ssl.keystore.certificate.chain" in made):
        raise UsageError("`ssl.certificate.location` and `ssl.key.location` go together: give both, or neither.")
    return made | _sasl(given)


def _sasl(given: Mapping[str, str]) -> dict[str, str]:
    mechanism = given.get("sasl.mechanism", given.get("sasl.mechanisms", ""))
    user, password = given.get("sasl.username"), given.get("sasl.password")
    if user is None and password is None and not mechanism:
        return {}
    module = _LOGIN.get(mechanism.upper())
    if module is None or user is None or password is None:
        raise UsageError(
            "On the grid, SASL needs `sasl.username`, `sasl.password`, and a `sasl.mechanism` of "
            f"{', '.join(_LOGIN)}{f'; not `{mechanism}`' if mechanism and module is None else ''}."
        )
    login = f"{module} required username={_jaas(user)} password={_jaas(password)};"
    return {"sasl.mechanism": mechanism.upper(), "sasl.jaas.config": login}


def _jaas(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _pem(name: str, value: str, *, show: bool) -> str:
    """The text itself, so that no file must lie on each member."""
    if name.endswith(".pem"):
        text, where = value, f"`{name}`"
    else:
        where = f"`{name}`: {value}"
        try:
            text = Path(value).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UsageError(f"{where} cannot be read: {reason or 'it is no PEM file'}.") from None
    if name.startswith("ssl.key.") and "${" not in text and "-----BEGIN PRIVATE KEY-----" not in text:
        if "-----BEGIN ENCRYPTED PRIVATE KEY-----" not in text:
            raise UsageError(
                f"{where} has no private key that Java reads.",
                "It reads PKCS #8: openssl pkcs8 -topk8 -in key.pem -out key8.pem",
            )
    elif "${" not in text and "-----BEGIN " not in text:
        raise UsageError(f"{where} is no PEM text.")
    return "${the contents of " + value + "}" if show and not name.endswith(".pem") else text
