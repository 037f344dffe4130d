"""Messages of Kafka as events: their keys, and their values as JSON texts."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.sources.base import MAX_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

    from gridscore.sources.kafka.settings import KafkaSourceSettings

_FRAME = 5

_encode = msgspec.json.Encoder().encode


class NoEventError(Exception):
    """A message that cannot be an event. `error`: why; `key`: that it would have had, as far as that is known."""

    def __init__(self, error: str, key: str | int | None = None) -> None:
        super().__init__(error)
        self.key = key


class MessageReader:
    """Makes events of messages.

    `read_avro`: gives the JSON text of an Avro record with its frame; None if values are JSON. Raises `NoEventError`.
    """

    def __init__(self, settings: KafkaSourceSettings, read_avro: Callable[[bytes], bytes] | None = None) -> None:
        self._topic = settings.topic
        self._limit = settings.max_event
        self._read_avro = read_avro
        self._by_message, self._named = settings.message_key, settings.key
        self._key_field, self._headers_field = settings.key_field, settings.headers_field
        self._adds = bool(self._key_field or self._headers_field)
        # A struct of just what is looked at: the rest is passed over, and checked to be JSON, without making objects.
        looked_at: list[tuple[str, Any, Any]] = []
        names = {f"key{number}": name for number, name in enumerate(self._named)}
        looked_at += [(slot, str | int | None, None) for slot in names]
        self._key_slots = tuple(names)
        for slot, field in (("key_field", self._key_field), ("headers_field", self._headers_field)):
            if field is not None and field not in self._named:
                looked_at.append((slot, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET))
                names[slot] = field
        self._shape: Any = msgspec.defstruct("Shape", looked_at, rename=names, gc=False)
        self._look = msgspec.json.Decoder(self._shape).decode
        self._slots = tuple(name for name, _, _ in looked_at if name not in self._key_slots)
        self._overlaps = not {self._key_field, self._headers_field}.isdisjoint(self._named)

    def read(self, message: Message) -> tuple[str | int, bytes | None]:
        """Key and JSON text of the event; None for a tombstone. Raises NoEventError if it is not an event."""
        value: Any = message.value()
        if value is None:
            return self._key_of_tombstone(message), None
        if len(value) > self._limit:
            raise self._too_large(value)
        if self._read_avro is not None:
            text = self._read_avro(value)
            if len(text) > self._limit:
                raise self._too_large(text)
        elif value[:1] == b"\0":  # framed by a schema registry; JSON cannot begin so
            text = value[_FRAME:]
        else:
            text = value
        try:
            shape = self._look(text)
            if not text.isascii():
                text.decode()
        except msgspec.ValidationError as error:
            _, of_field, name = str(error).partition("`$.")
            what = f"its field `{name.rstrip('`')}` is not a key" if of_field else "it is not a JSON object"
            raise NoEventError(f"{what}: {error}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise NoEventError(f"it is not JSON: {error}") from None
        except UnicodeDecodeError:
            raise NoEventError("it is not UTF-8") from None
        key = self._key(message, shape)
        if self._adds:
            try:
                text = self._added(message, text, shape)
            except RecursionError:  # a level deeper than `_look` took it
                raise NoEventError("it is nested too deeply", key) from None
            if len(text) > self._limit:
                raise NoEventError(
                    f"with key and headers it has {len(text):,} bytes; the limit is {self._limit:,}", key
                )
        return key, text

    def origin(self, message: Message) -> str:
        """The key that says where a message came from."""
        return f"{self._topic}-{message.partition()}-{message.offset()}"

    def _too_large(self, text: bytes, key: str | int | None = None) -> NoEventError:
        return NoEventError(f"it has {len(text):,} bytes; the limit is {self._limit:,} (`max_event`)", key)

    def _key(self, message: Message, shape: Any) -> str | int:
        if self._named:
            parts: list[Any] = [getattr(shape, slot) for slot in self._key_slots]
            for name, part in zip(self._named, parts, strict=True):
                if part is None:
                    raise NoEventError(f"it has no field `{name}` to take the key from")
                if part == "":
                    raise NoEventError(f"its field `{name}` is empty, and makes the key")
            return _checked(parts[0] if len(parts) == 1 else "|".join(map(str, parts)))
        if self._by_message:
            return self._message_key(message)
        return f"{self._topic}-{message.partition()}-{message.offset()}"

    def _key_of_tombstone(self, message: Message) -> str | int:
        if self._named:
            raise NoEventError(f"it is a tombstone, which has no field `{self._named[0]}` to take the key from")
        return self._message_key(message) if self._by_message else self.origin(message)

    @staticmethod
    def _message_key(message: Message) -> str | int:
        key: Any = message.key()
        if key is None:
            raise NoEventError("it has no key, and the key is to be the message's")
        try:
            return _checked(key.decode())
        except UnicodeDecodeError:
            raise NoEventError("its key is not UTF-8") from None

    def _added(self, message: Message, text: bytes, shape: Any) -> bytes:
        """The text with the message's key and headers in it, in the fields that were asked for."""
        more: dict[str, Any] = {}
        if self._key_field is not None:
            more[self._key_field] = _readable(message.key())
        if self._headers_field is not None:
            more[self._headers_field] = _headers(message.headers())
        there = any(getattr(shape, slot) is not msgspec.UNSET for slot in self._slots)
        if there or self._overlaps:
            return _encode({**msgspec.json.decode(text), **more})
        body, added = text.rstrip()[:-1], _encode(more)
        return body + (added[1:] if body.strip() == b"{" else b"," + added[1:])


def _checked(key: str | int) -> str | int:
    if isinstance(key, str):
        if not key or len(key) > MAX_KEY:
            raise NoEventError(f"its key has {len(key):,} characters: 1 to {MAX_KEY:,} are allowed")
    elif not -(1 << 63) <= key < 1 << 63:
        raise NoEventError("its key is too large a number")
    return key


def _readable(data: Any) -> Any:
    """Bytes as a JSON value: a string, or an object with their Base64 if they are not UTF-8."""
    if data is None or isinstance(data, str):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _headers(pairs: Any) -> dict[str, Any]:
    """Headers as an object; a list where a name comes more than once."""
    found: dict[str, Any] = {}
    repeated = set()
    for name, data in pairs or ():
        value = _readable(data)
        if name not in found:
            found[name] = value
        elif name in repeated:
            found[name].append(value)
        else:
            repeated.add(name)
            found[name] = [found[name], value]
    return found
