"""What is wrong in a job file, in words: from pydantic's findings to messages with a line and a suggestion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridscore.errors import JobFileError
from gridscore.job.document import Problem
from gridscore.job.plugs.secrets import is_secret
from gridscore.job.plugs.sections import SECTIONS, class_of
from gridscore.job.types import KINDS, shown
from gridscore.texts import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel, ValidationError

    from gridscore.job.document import Document, Path

    Models = Mapping[tuple[str, ...], type[BaseModel]]

MAX_PROBLEMS = 25  # problems shown at once


def located(error: ValidationError, document: Document, models: Models) -> list[Problem]:
    """The problems that pydantic found, each in its line and in plain words.

    `document`: the file, with the lines of its values; `models`: the models of the file's parts, by their path without
    the names that a user gave.
    """
    found: dict[Path, list[Any]] = {}
    problems = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "job_parts":
            continue
        path = _path_of(detail, document)
        if detail["type"] == "extra_forbidden":
            problems.append(Problem(document.line_of(path), _unknown_key(path, _model_at(path[:-1], document, models))))
        else:
            found.setdefault(path, []).append(detail)
    for path, details in found.items():
        if details[0]["type"] == "too_short" and any(other[:-1] == path for other in found):
            continue  # those that are wrong do not count
        said = list(dict.fromkeys(_said(detail, path) for detail in details if detail["type"] != "literal_error"))
        words = [detail for detail in details if detail["type"] == "literal_error"]
        if said and words:  # a union: what it may be besides the words that it may be
            said = [f"{said[0]}; or {_words(detail)}" for detail in words]
        else:
            said += [_said(detail, path) for detail in words]
        problems += [Problem(document.line_of(path), within(path, text)) for text in said]
    return problems


def _path_of(detail: Any, document: Document) -> Path:
    """The place in the file that a finding is about, without pydantic's branches of unions and `[key]`."""
    path: Path = ()
    value = document.data
    places = [part for part in detail["loc"] if part != "[key]"]
    for number, part in enumerate(places):
        named = number == len(places) - 1 and detail["type"] in {"missing", "extra_forbidden"}
        if part in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
            value = value[part]
        elif not named and not isinstance(part, int):
            continue
        path = (*path, part)
    return path


def _said(detail: Any, path: Path) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return f"the key `{path[-1]}` is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        meant = did_you_mean(str(value), KINDS if detail["loc"][-1] == "type" else [])
        words = _words(detail)
        return f"{shown(value)} is not {words if ' or ' not in words else f'one of {words}'}{meant}"
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
        "float_parsing": "a number",
        "finite_number": "a number",
        "bool_type": "`true` or `false`",
        "bool_parsing": "`true` or `false`",
        "int_parsing_size": "a whole number, and not so large",
    }
    bounds = {
        "greater_than": ("more than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in names:
        return f"it must be {names[kind]}" + ("" if is_secret(path) else f", not {shown(value)}")
    if kind in bounds:
        words, bound = bounds[kind]
        return f"it must be {words} {context[bound]:,}, not {shown(value)}"
    if kind == "too_short":
        return f"it needs {context['min_length']} at least" if value else "it is empty"
    if kind == "too_long":
        return f"there are {len(value)} of them, at most {context.get('max_length')} are possible"
    if kind == "string_too_long":
        return f"it is longer than {context.get('max_length')} characters"
    if kind == "string_too_short":
        return "it is empty"
    return str(detail["msg"][:1].lower() + detail["msg"][1:])


def _words(detail: Any) -> str:
    return str(detail["ctx"]["expected"]).replace("'", "`")


def _model_at(path: Path, document: Document, models: Models) -> type[BaseModel] | None:
    """The model of the part of a file at a path; None for a part within a plug's settings."""
    if path and path[0] in SECTIONS:
        return class_of(str(path[0]), document.data[path[0]][path[1]]) if len(path) == 2 else None
    # The path without the names that a user gave: lookups, plane, fields, year -> lookups, fields.
    names = [part for part in path if isinstance(part, str)] if path[:1] in (("gates",), ("experiment",)) else path[::2]
    return models[tuple(map(str, names))]


def _unknown_key(path: Path, model: type[BaseModel] | None) -> str:
    *parents, key = path
    keys = [] if model is None else [field.alias or name for name, field in model.model_fields.items()]
    where = f" in `{dotted(tuple(parents))}`" if parents else ""
    possible = f"; possible are {', '.join(f'`{name}`' for name in keys)}" if keys else ""
    return f"unknown key `{key}`{where}{did_you_mean(str(key), keys) or possible}"


def within(path: Path, message: str) -> str:
    """A message with the part of the file that it is about."""
    if path[:1] == ("features",) and len(path) > 1:
        return f"feature `{path[1]}`: {message}"
    if path[:1] in (("lookups",), ("windows",)) and len(path) > 1:
        inner = f" {dotted(path[2:])}:" if len(path) > 2 else ""
        return f"{str(path[0]).removesuffix('s')} `{path[1]}`:{inner} {message}"
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
