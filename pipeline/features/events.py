"""Events: from the JSON of a journal entry to a typed struct, strictly, at the speed of msgspec."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pipeline.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.job import FieldType, Job

Event = Any
"""A decoded event: an instance of a msgspec struct that is made from the job's schema."""

_INT = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES: dict[str, Any] = {
    "float": float,
    "int": _INT,
    "string": str,
    "bool": bool,
    "iso": Annotated[dt.datetime, msgspec.Meta(tz=True)],
    "s": _INT | float,
    "ms": _INT | float,
}
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "int | float": "a number",
    "str": "a string",
    "bool": "true or false",
    "datetime": "a time (RFC 3339)",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


class DecodeError(GridscoreError):
    """An event is not JSON, or is not what the schema says."""


def struct_type(name: str, fields: Mapping[str, FieldType], *, may_lack: Iterable[str] = ()) -> type[msgspec.Struct]:
    """A struct type for JSON objects with these fields; others are ignored.

    Args:
        name: Of the type.
        fields: By name.
        may_lack: Fields that may be absent or null whatever their type says.
    """
    lacking = set(may_lack)
    definition: list[Any] = []
    for field, kind in fields.items():
        decoded = _TYPES[kind.unit if kind.type == "timestamp" else kind.type]
        if kind.optional or field in lacking:
            definition.append((field, decoded | None, None))
        else:
            definition.append((field, decoded))
    renamed = {field: kind.json_name for field, kind in fields.items() if kind.json_name}
    # The values are all atoms: the garbage collector need not look at these structs.
    return msgspec.defstruct(name, definition, rename=renamed or None, kw_only=True, gc=False)


def reason_of(error: Exception) -> str:
    """Why something could not be decoded, for people."""
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.start} of a string"
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return f"not JSON: {text[:1].lower()}{text[1:]}".replace("not JSON: jSON is malformed", "not JSON")
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"the field `{missing[1]}` is missing"
    text, _, place = text.partition(" - at `$")
    where = f"field `{place.rstrip('`').lstrip('.')}`: " if place else ""
    if found := re.fullmatch(r"Expected `(.+)`, got `(.+)`", text):
        wanted = found[1]
        null = " or null" if wanted.endswith(" | null") else ""
        wanted = wanted.removesuffix(" | null")
        return f"{where}expected {_WORDS.get(wanted, wanted)}{null}, got {_WORDS.get(found[2], found[2])}"
    return f"{where}{text[:1].lower()}{text[1:]}"


class EventDecoder:
    """Decodes the events of a job.

    Types are strict: `"1"` is not a number and `1.0` not an `int`. Fields that the schema does not name are ignored.

    Attributes:
        event_type: The struct type of its events.
    """

    def __init__(self, job: Job) -> None:
        self.event_type = struct_type("Event", job.schema_)
        self._decode = msgspec.json.Decoder(self.event_type).decode

    def decode(self, payload: bytes) -> Event:
        """Decode one event.

        Raises:
            DecodeError: It is not JSON, or breaks the schema.
        """
        try:
            return self._decode(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError(reason_of(error)) from None

    def decode_all(self, payloads: Iterable[bytes]) -> list[Event]:
        """Decode many events, at half the cost of one by one.

        Raises:
            DecodeError: One of them cannot be decoded; `decode` tells which.
        """
        try:
            return list(map(self._decode, payloads))
        except (ValueError, RecursionError) as error:
            raise DecodeError(reason_of(error)) from None
