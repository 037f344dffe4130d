"""The reference of all that is served, for people: what OpenAPI says, by what it is about, with a call of each."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KINDS = {"integer": "whole number", "boolean": "true or false", "array": "list", "null": "null"}
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
_EXAMPLES = {"string": "…", "integer": 1, "number": 0.5, "boolean": True, "array": [], "object": {}, "null": None}
_SHELL = "'", "'\\''"  # ends a text in quotes, adds a quote, and begins another


class Field(NamedTuple):
    """Something that is given."""

    name: str
    where: str  # `path`, `query` or `body`
    kind: str
    default: str  # as JSON; `required` if it must be given
    means: str


class Operation(NamedTuple):
    """Something that can be asked for."""

    id: str
    method: str
    path: str
    role: str  # that control asks for; empty for the rest
    means: str
    fields: Sequence[Field]
    body: str  # what kind of body it takes; empty if none, or one with fields
    answers: Sequence[tuple[str, str]]  # status, and what it says
    call: str  # for a shell


def operations(described: Mapping[str, Any]) -> list[tuple[str, list[Operation]]]:
    """All that is described, by what it is about."""
    schemas = described["components"]["schemas"]
    found = [
        (_about(path, said), _operation(method, path, said, schemas))
        for path, methods in described["paths"].items()
        for method, said in methods.items()
    ]
    found.sort(key=lambda each: each[0])  # what is about the same keeps its order
    return [(about, [each for _, each in group]) for about, group in groupby(found, lambda each: each[0])]


def _about(path: str, said: Mapping[str, Any]) -> str:
    parts = path.split("/")
    return f"control: {parts[2]}" if parts[1] == "control" else str(said["tags"][0])


def _operation(method: str, path: str, said: Mapping[str, Any], schemas: Mapping[str, Any]) -> Operation:
    fields = [
        Field(each["name"], each["in"], _kind(each["schema"], schemas), _default(each, each.get("required", False)), "")
        for each in said.get("parameters", ())
    ]
    content = said.get("requestBody", {}).get("content", {})
    media = next(iter(content), "")
    schema = _resolved(content[media]["schema"], schemas) if media else {}
    for name, each in schema.get("properties", {}).items():
        default = _default({"schema": each}, name in schema.get("required", ()))
        fields.append(Field(name, "body", _kind(each, schemas), default, each.get("description", "")))
    body = "" if not media or "properties" in schema else f"{_kind(schema, schemas)} ({' or '.join(content)})"
    answers = [(status, each["description"]) for status, each in said["responses"].items()]
    example = content[media].get("example", _example(schema, schemas)) if media else None
    call = _call(method, path, said, media, example, schemas)
    means, role = said.get("description", said["summary"]), said.get("x-role", "")
    return Operation(said["operationId"], method.upper(), path, role, means, fields, body, answers, call)


def _call(
    method: str,
    path: str,
    said: Mapping[str, Any],
    media: str,
    example: Any,
    schemas: Mapping[str, Any],
) -> str:
    query = []
    for each in said.get("parameters", ()):
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", each["name"].upper())
        elif each.get("required"):
            query.append(f"{each['name']}={_example(each['schema'], schemas)}")
    words = ["curl", '-H "Authorization: Bearer $KEY"']
    if media == "application/json":
        text = json.dumps(example, ensure_ascii=False)
        words.append(f"--json '{text.replace(*_SHELL)}'" + (" -X PUT" if method == "put" else ""))
    elif media:
        words.append(f"-H 'Content-Type: {media}' --data-binary @FILE")
    elif method != "get":
        words.append(f"-X {method.upper()}")
    whole = f"{path}{'?' if query else ''}{'&'.join(query)}"
    # A server behind a proxy does not know its own address.
    return " ".join([*words, f"\"$GRIDSCORE\"'{whole.replace(*_SHELL)}'"])


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _kind(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    schema = _resolved(schema, schemas)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(each, schemas) for each in several)
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    kind: str = schema.get("type", "any value")
    text = _KINDS.get(kind, kind)
    if kind == "array" and "items" in schema:
        each = _kind(schema["items"], schemas)
        text = f"list of ({each})" if " or " in each else f"list of {each}"
    text += "".join(f" {sign} {schema[name]:,.10g}" for name, sign in _BOUNDS if name in schema)
    for name, unit in (("maxLength", "characters"), ("maxItems", "of them")):
        if name in schema:
            text += f", at most {schema[name]:,} {unit}"
    return text


def _default(said: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = said["schema"].get("default")
    return "" if default in (None, "", [], {}) else json.dumps(default, ensure_ascii=False)


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """A value with no more than must be there."""
    schema = _resolved(schema, schemas)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return _example(several[0], schemas)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("minItems"):
        return [_example(schema["items"], schemas)]
    needed = schema.get("required", ())
    if needed:
        return {name: _example(schema["properties"][name], schemas) for name in needed}
    return schema.get("default", _EXAMPLES.get(schema.get("type", ""), "…"))
