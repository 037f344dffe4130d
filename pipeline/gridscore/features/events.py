"""Events: from the JSON of journal entries to typed values, strictly, as msgspec understands it."""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from gridscore.compiled import compiled
from gridscore.errors import GridscoreError
from gridscore.features.columns import EventColumns, StructCells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gridscore.job import FieldType, Job

Event = Any  # a decoded event: an instance of a msgspec struct that is made from the job's schema
_INT = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
MAX_ITEMS = 10_000  # items of an array
_TYPES: dict[str, Any] = {
    "float": float,
    "int": _INT,
    "string": str,
    "bool": bool,
    "iso": Annotated[dt.datetime, msgspec.Meta(tz=True)],
    "s": _INT | float,
    "ms": _INT | float,
}
# How the compiled module numbers the kinds of values.
_KINDS = {"float": 0, "int": 1, "string": 2, "bool": 3, "iso": 4, "s": 5, "ms": 5}
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

    `may_lack`: fields that may be absent or null whatever their type says.
    """
    lacking = set(may_lack)
    definition: list[Any] = []
    for field, kind in fields.items():
        if kind.optional or field in lacking:
            definition.append((field, _type(kind) | None, None))
        else:
            definition.append((field, _type(kind)))
    renamed = {field: kind.json_name for field, kind in fields.items() if kind.json_name}
    # The values are atoms, or lists of such: there are no circles for the garbage collector to look for.
    return msgspec.defstruct(name, definition, rename=renamed or None, kw_only=True, gc=False)


def _type(kind: FieldType) -> Any:
    if kind.type == "array":
        one = kind.of.get("")
        if one is None:
            item: Any = struct_type("Item", kind.of)
        else:
            item = _type(one) | None if one.optional else _type(one)
        return Annotated[list[item], msgspec.Meta(max_length=MAX_ITEMS)]
    return _TYPES[kind.unit if kind.type == "timestamp" else kind.type]


def struct_decoder(
    name: str, fields: Mapping[str, FieldType], *, may_lack: Iterable[str] = ()
) -> Callable[[bytes | str], Any]:
    """What makes a struct of `struct_type` of a JSON text, and raises what msgspec raises.

    A field that lies in nested objects is looked for under its name with dots as well, as flat tables have it.
    """
    lacking = frozenset(may_lack)
    made = struct_type(name, fields, may_lack=lacking)
    if _are_flat(fields):
        return msgspec.json.Decoder(made).decode
    required = {kind.key(field) for field, kind in fields.items() if not (kind.optional or field in lacking)}
    tree: dict[str, Any] = {}
    for field, kind in fields.items():
        key, wanted = kind.key(field), _type(kind) | msgspec.UnsetType
        tree[key] = wanted if key in required else wanted | None
    for field, kind in fields.items():
        *around, last = kind.path(field)
        node = tree
        for each in around:
            node = node.setdefault(each, {})
        node[last] = tree[kind.key(field)]
    decode = msgspec.json.Decoder(_objects(tree)).decode
    places = [
        (kind.key(field), _attributes(tree, (kind.key(field),)), _attributes(tree, kind.path(field)))
        for field, kind in fields.items()
    ]

    def decoded(text: bytes | str) -> Any:
        event = decode(text)
        values = []
        for key, flat, nested in places:
            value = _at(event, flat)
            if value is msgspec.UNSET:
                value = _at(event, nested)
            if value is msgspec.UNSET:
                value = None
            if value is None and key in required:
                raise msgspec.ValidationError(f"Object missing required field `{key}`")
            values.append(value)
        return made(**dict(zip(fields, values, strict=True)))

    return decoded


def _are_flat(fields: Mapping[str, FieldType]) -> bool:
    """Whether none of the fields lies in nested objects."""
    return all(len(kind.path(field)) == 1 for field, kind in fields.items())


def _objects(tree: Mapping[str, Any]) -> type[msgspec.Struct]:
    """A struct type for JSON objects with these keys, each with its type, or with what lies within."""
    definition: list[Any] = [
        (f"k{n}", _objects(kind) | None, None) if isinstance(kind, dict) else (f"k{n}", kind, msgspec.UNSET)
        for n, (key, kind) in enumerate(tree.items())
    ]
    return msgspec.defstruct("Objects", definition, rename={f"k{n}": key for n, key in enumerate(tree)}, kw_only=True)


def _at(value: Any, attributes: Sequence[str]) -> Any:
    for attribute in attributes:
        value = None if value is None else getattr(value, attribute)
    return value


def _attributes(tree: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    """Where `_objects` has put what lies there."""
    found = []
    for part in path:
        found.append(f"k{list(tree).index(part)}")
        tree = tree[part]
    return found


def reason_of(error: Exception) -> str:
    """Why something could not be decoded, for people."""
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.start} of a string"
    return _reason(str(error), isinstance(error, msgspec.ValidationError))


@lru_cache(maxsize=1024)  # events of one sender are wrong in the same way
def _reason(text: str, breaks_schema: bool) -> str:
    if text == "Invalid UTF-8 encoded string":  # msgspec 0.23 no longer says where
        return "not UTF-8 text"
    if not breaks_schema:
        return f"not JSON: {text[:1].lower()}{text[1:]}".replace("not JSON: jSON is malformed", "not JSON")
    text, _, place = text.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"the field `{place}{'.' * bool(place)}{missing[1]}` is missing"
    where = f"field `{place}`: " if place else ""
    if found := re.fullmatch(r"Expected `(.+)`, got `(.+)`", text):
        wanted = found[1]
        null = " or null" if wanted.endswith(" | null") else ""
        wanted = wanted.removesuffix(" | null")
        return f"{where}expected {_WORDS.get(wanted, wanted)}{null}, got {_WORDS.get(found[2], found[2])}"
    return f"{where}{text[:1].lower()}{text[1:]}"


class EventDecoder:
    """Decodes the events of a job.

    Types are strict: `"1"` is not a number and `1.0` not an `int`. Fields that the schema does not name are ignored.
    """

    def __init__(self, job: Job) -> None:
        job.require_features()
        self._schema = job.schema_
        self._decode = struct_decoder("Event", job.schema_)
        # Arrays, and what lies in nested objects, are read by msgspec alone.
        is_plain = _are_flat(job.schema_) and all(kind.type != "array" for kind in job.schema_.values())
        module = compiled("gridscore.features._columns") if is_plain else None
        self._cells = None if module is None else module.Decoder(tuple(map(_cell, job.schema_.items()))).decode

    def decode(self, payload: bytes) -> Event:
        """Decode one event. Raises DecodeError if it is not JSON, or breaks the schema."""
        try:
            return self._decode(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError(reason_of(error)) from None

    def decode_all(self, payloads: Iterable[bytes]) -> EventColumns:
        """Decode many events, far faster than one by one.

        Raises DecodeError if one of them cannot be decoded; `decode_good` tells which.
        """
        events, bad = self.decode_good(list(payloads))
        for reason in bad.values():
            raise DecodeError(reason)
        return events

    def decode_good(self, payloads: Sequence[bytes]) -> tuple[EventColumns, dict[int, str]]:
        """Decode those of many events that can be decoded; and for each other, by its position, why it cannot."""
        bad: dict[int, str] = {}

        def decode(position: int) -> Event | None:
            try:
                return self._decode(payloads[position])
            except (ValueError, RecursionError) as error:
                bad[position] = reason_of(error)
                return None

        if self._cells is not None:
            return EventColumns(self._schema, self._cells(payloads, decode)), bad
        try:
            events = list(map(self._decode, payloads))
        except (ValueError, RecursionError):
            events = [event for position in range(len(payloads)) if (event := decode(position)) is not None]
        return EventColumns(self._schema, StructCells(self._schema, events)), bad


def _cell(field: tuple[str, FieldType]) -> tuple[str, bytes, int, bool]:
    name, kind = field
    number = _KINDS[kind.unit if kind.type == "timestamp" else kind.type]
    return name, (kind.json_name or name).encode(), number, kind.optional
