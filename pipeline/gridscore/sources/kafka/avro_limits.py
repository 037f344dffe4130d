"""What an Avro schema may make of a message: schemas come from all who may write to the registry.

Types nest, and a few bytes can stand for any number of values: an array of nulls takes none for its items, and records
in records double with each level. A type within itself lets a message choose how deep the reader calls itself, which
in fastavro ends the process (tried with 1.13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_COST = 2_048  # memory that a byte of a message may cost, about
MAX_DEPTH = 64  # levels of types within types
_VALUE = 64
_OF_MESSAGE = 64  # bytes that are granted to a message once, so that one of very few may be
_BYTES = {"null": 0, "float": 4, "double": 8}


class _Size(NamedTuple):
    """Of one value of a type: the fewest bytes that it has in a message, what it costs when it is read, and levels."""

    fewest: int
    cost: int
    depth: int = 1


def check_schema(schema: Any, named: Mapping[str, Any]) -> None:
    """Refuse a schema whose messages could be far larger than they look.

    `schema`: as fastavro has parsed it; `named`: its named types, and those that it refers to. Raises ValueError if it
    is one.
    """
    _Measure(named).bounded(schema, _OF_MESSAGE)


class _Measure:
    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, _Size] = {}
        self._within: set[str] = set()

    def bounded(self, schema: Any, more: int) -> _Size:
        """The size of a type of which a message may have any number, each with so many bytes more."""
        size = self._size(schema)
        if size.depth > MAX_DEPTH:
            raise ValueError(f"its types are nested more than {MAX_DEPTH} levels deep")
        if size.cost > MAX_COST * (size.fewest + more):
            raise ValueError("a few bytes of a message could stand for very many values")
        return size

    def _size(self, schema: Any) -> _Size:
        if isinstance(schema, list):
            # The branch takes a byte to say which it is.
            branches = [self.bounded(branch, 1) for branch in schema]
            return _Size(
                1 + min(each.fewest for each in branches),
                max(each.cost for each in branches),
                1 + max(each.depth for each in branches),
            )
        if isinstance(schema, str):
            return self._by_name(schema) if schema in self._named else _Size(_BYTES.get(schema, 1), _VALUE)
        name = schema.get("name")
        if isinstance(name, str):
            return self._of_named(name, schema)
        kind = schema["type"]
        if kind == "array":
            depth = self.bounded(schema["items"], 0).depth
        elif kind == "map":
            depth = self.bounded(schema["values"], 1).depth
        else:
            return self._size(kind)
        return _Size(1, _VALUE, 1 + depth)

    def _by_name(self, name: str) -> _Size:
        return self._known[name] if name in self._known else self._of_named(name, self._named[name])

    def _of_named(self, name: str, schema: Mapping[str, Any]) -> _Size:
        if name in self._within:
            raise ValueError(f"its type `{name}` is within itself, which is not supported")
        if name in self._known:
            return self._known[name]
        self._within.add(name)
        kind = schema["type"]
        if kind == "enum":
            size = _Size(1, _VALUE + max(map(len, schema["symbols"]), default=0))
        elif kind == "fixed":
            size = _Size(schema["size"], _VALUE + schema["size"])
        else:
            fields = [(len(field["name"]), self._size(field["type"])) for field in schema["fields"]]
            fewest = sum(each.fewest for _, each in fields)
            cost = _VALUE + sum(length + each.cost for length, each in fields)
            size = _Size(fewest, cost, 1 + max((each.depth for _, each in fields), default=0))
        self._within.discard(name)
        self._known[name] = size
        return size
