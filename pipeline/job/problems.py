"""What is wrong in a job file, in words: from pydantic's findings to messages with a line and a suggestion."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobFileError
from pipeline.job.document import Problem
from pipeline.job.plugs.secrets import is_secret
from pipeline.job.plugs.sections import SECTIONS, class_of
from pipeline.job.types import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel, ValidationError

    from pipeline.job.document import Document, Path

    Models = Mapping[tuple[str, ...], type[BaseModel]]

MAX_PROBLEMS = 25
"""Problems shown at once."""


def located(error: ValidationError, document: Document, models: Models) -> list[Problem]:
    """The problems that pydantic found, each in its line and in plain words.

    Args:
        error: What pydantic found.
        document: The file, with the lines of its values.
        models: The models of the file's parts, by their path without the names that a user gave.
    """
    found = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "job_parts":
            continue
        path: Path = tuple(part for part in detail["loc"] if part != "[key]")
        if detail["type"] == "extra_forbidden":
            found.append(Problem(document.line_of(path), _unknown_key(path, _model_at(path[:-1], document, models))))
            continue
        if path and path[-1] in {"float", "bool", "str"} and path[:-1] in document.lines:
            path = path[:-1]  # a branch of a union
        found.append(Problem(document.line_of(path), within(path, _said(detail, path))))
    return found


def _said(detail: Any, path: Path) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return f"the key `{path[-1]}` is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        text = str(value)
        close = difflib.get_close_matches(text, KINDS if path[-1] == "type" else [], n=1)
        meant = f", did you mean `{close[0]}`?" if close else ""
        return f"`{text}` is not one of {context['expected'].replace(chr(39), '`')}{meant}"
    names = {
        "model_type": "a mapping (`key: value`)",
        "dict_type": "a mapping (`key: value`)",
        "model_attributes_type": "a mapping (`key: value`)",
        "string_type": "a text",
        "float_type": "a number",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "tuple_type": "a list",
    }
    if kind in names:
        return f"it must be {names[kind]}" + ("" if any(map(is_secret, path)) else f", not {_shown(value)}")
    if kind == "too_short":
        return "it is empty"
    if kind == "too_long":
        return f"there are {len(value)} of them, at most {context.get('max_length')} are possible"
    if kind == "string_too_long":
        return f"it is longer than {context.get('max_length')} characters"
    if kind == "string_too_short":
        return "it is empty"
    return str(detail["msg"][:1].lower() + detail["msg"][1:])


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _model_at(path: Path, document: Document, models: Models) -> type[BaseModel] | None:
    """The model of the part of a file at a path; None for a part within a plug's settings."""
    if path and path[0] in SECTIONS:
        return class_of(str(path[0]), document.data[path[0]][path[1]]) if len(path) == 2 else None
    # The path without the names that a user gave: lookups, plane, fields, year -> lookups, fields.
    return models[tuple(str(part) for part in path[::2])]


def _unknown_key(path: Path, model: type[BaseModel] | None) -> str:
    *parents, key = path
    keys = [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(key), keys, n=1)
    where = f" in `{dotted(tuple(parents))}`" if parents else ""
    possible = f"; possible are {', '.join(f'`{name}`' for name in keys)}" if keys else ""
    meant = f", did you mean `{close[0]}`?" if close else possible
    return f"unknown key `{key}`{where}{meant}"


def within(path: Path, message: str) -> str:
    """A message with the part of the file that it is about."""
    if path[:1] == ("features",) and len(path) > 1:
        return f"feature `{path[1]}`: {message}"
    if path[:1] == ("lookups",) and len(path) > 1:
        inner = f" {dotted(path[2:])}:" if len(path) > 2 else ""
        return f"lookup `{path[1]}`:{inner} {message}"
    if path and path[0] in SECTIONS and len(path) > 1:
        inner = f" `{dotted(path[2:])}`:" if len(path) > 2 and "is missing" not in message else ""
        return f"{SECTIONS[str(path[0])]} `{path[1]}`:{inner} {message}"
    if path[:1] == ("schema",) and len(path) > 1:
        return f"schema field `{path[1]}`: {message}"
    if not path or "is missing" in message:
        return message if len(path) < 2 else f"`{dotted(path[:-1])}`: {message}"
    return f"`{dotted(path)}`: {message}"


def dotted(path: Path) -> str:
    """A path as people write it."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def error_of(problems: list[Problem], source: str) -> JobFileError:
    """One error for all problems, in the order of their lines."""
    ordered = sorted(set(problems))
    lines = [f"{source} line {problem.line}: {problem.message}" for problem in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"... and {len(ordered) - MAX_PROBLEMS} more")
    return JobFileError("\n".join(lines))
