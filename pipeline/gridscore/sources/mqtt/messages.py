"""Events from MQTT messages: fields from the topic, the payload as it comes, and a key that a repetition shares."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.sources.base import Poison, checked_key, key_of
from gridscore.sources.mqtt.packets import user_property

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.sources.mqtt.packets import Message
    from gridscore.sources.mqtt.settings import MqttSourceSettings

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class TopicTemplate:
    """A topic of the settings: `plant/{site}/+/{sensor}`. `filter`: as the broker knows it: `plant/+/+/+`."""

    def __init__(self, text: str) -> None:
        levels = text.split("/")
        self._names = [(number, level[1:-1]) for number, level in enumerate(levels) if level.startswith("{")]
        wild = ["+" if level.startswith("{") else level for level in levels]
        self.filter = "/".join(wild)
        self._rest = wild[-1] == "#"
        self._levels = wild[:-1] if self._rest else wild
        self._fixed = [(number, level) for number, level in enumerate(self._levels) if level != "+"]

    def fields(self, topic: str) -> dict[str, str] | None:
        """The fields that a topic gives; None if it is another topic."""
        levels = topic.split("/")
        count = len(self._levels)
        if len(levels) < count or (len(levels) > count and not self._rest):
            return None
        if any(levels[number] != level for number, level in self._fixed):
            return None
        return {name: levels[number] for number, name in self._names}


class MessageDecoder:
    """Makes events of messages, as the settings say."""

    def __init__(self, settings: MqttSourceSettings) -> None:
        self._settings = settings
        self._templates = [TopicTemplate(topic) for topic in settings.topic]
        self._topics: dict[str, dict[str, str]] = {}  # what has been found out of topics: devices have few each

    @property
    def filters(self) -> Sequence[str]:
        group = self._settings.group
        return [f"$share/{group}/{each.filter}" if group else each.filter for each in self._templates]

    def decode(self, message: Message) -> tuple[Any, bytes] | Poison | None:
        """An event's key and JSON text, or why it is not an event; None for what takes a retained message away."""
        payload = message.payload
        if not payload and not message.left_out:
            return None
        topic = ""
        try:
            topic = message.topic.decode()
            return self._event(message, topic, payload)
        except ValueError as error:  # a topic that is not UTF-8 among them
            key = _hash(message)
            origin = f"{topic or 'a topic that is not UTF-8'}#{key}"
            return Poison(origin, key, payload[: self._settings.max_event], str(error))

    def _event(self, message: Message, topic: str, payload: bytes) -> tuple[Any, bytes]:
        settings = self._settings
        if message.left_out or len(payload) > settings.max_event:
            size = len(payload) + message.left_out
            raise ValueError(f"It has {size:,} bytes; the limit is {settings.max_event:,}.")
        fields = self._fields(payload)
        text: bytes | None = payload
        if fields is None:
            fields, text = {settings.value_field or "": self._value(payload)}, None
        # Who may write to a topic is for the broker to say, what stands in a message is not: the topic goes before.
        if parts := self._parts(topic):
            fields.update(parts)
            text = None
        key: Any
        if settings.key:
            key = key_of(fields, settings.key)
        elif settings.key_property is not None:
            key = checked_key(user_property(message.properties, settings.key_property))
            if key is None:
                raise ValueError(f"It has no user property `{settings.key_property}`, which is the key.")
        else:
            key = _hash(message)
        if settings.received_field is not None:
            fields[settings.received_field] = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = None
        return key, _encode(fields) if text is None else text

    def _fields(self, payload: bytes) -> dict[str, Any] | None:
        """The object that a message is; None if it is something else that may be a value.

        Raises ValueError if it is neither.
        """
        try:
            value = _decode(payload)
        except RecursionError:
            raise ValueError("It is nested too deeply.") from None
        except msgspec.DecodeError as error:
            if self._settings.value_field is None:
                raise ValueError(f"It is not JSON: {error}") from None
            return None
        if isinstance(value, dict):
            return value
        if self._settings.value_field is None or isinstance(value, list):
            raise ValueError("It is JSON, but not an object; a plain value needs a `value_field` to go to.")
        return None

    @staticmethod
    def _value(payload: bytes) -> Any:
        """A number, true, false or null as JSON has it, or else a text.

        Raises ValueError if it is not UTF-8, or looks like a broken object.
        """
        try:
            return _decode(payload)
        except msgspec.DecodeError as error:
            if payload.lstrip()[:1] in (b"{", b"["):
                raise ValueError(f"It is not JSON: {error}") from None
            return payload.decode()

    def _parts(self, topic: str) -> dict[str, str]:
        parts = self._topics.get(topic)
        if parts is None:
            parts = next((found for each in self._templates if (found := each.fields(topic)) is not None), {})
            if len(topic) <= _LONGEST_KNOWN_TOPIC:
                if len(self._topics) >= _KNOWN_TOPICS:
                    self._topics.clear()
                self._topics[topic] = parts
        return parts


_KNOWN_TOPICS = 100_000
_LONGEST_KNOWN_TOPIC = 256  # anybody who may publish can make up others, of 64 KiB each


def _hash(message: Message) -> str:
    return blake2b(message.topic + b"\0" + message.payload, digest_size=16).hexdigest()
