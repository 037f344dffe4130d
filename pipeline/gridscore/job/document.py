"""YAML with positions: what a job file says and in which line, refusing all of YAML that surprises or explodes.

A job file needs mappings, lists and plain values. Anchors, aliases, tags, several documents and repeated keys are
errors; `yes`, `no`, `on` and dates are plain text, as in YAML 1.2, because a carrier may well be called `no`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 1 << 20
MAX_DEPTH = 16

Path = tuple[str | int, ...]

# libyaml where the wheel has it: ten times faster, the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong in a job file."""

    line: int
    message: str


@dataclass(slots=True)
class Document:
    """What a YAML file says."""

    data: Any = None  # plain Python values
    lines: dict[Path, int] = field(default_factory=dict)  # line of each value by its path; of the key, if it has one
    problems: list[Problem] = field(default_factory=list)  # what was wrong with the YAML itself

    def line_of(self, path: Path) -> int:
        """Line of the value at a path, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Refused(Exception):  # noqa: N818 -- it never leaves this module
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(line, message)


def read_yaml(text: str) -> Document:
    """Read a YAML text; what is wrong with it is in the result's `problems`."""
    document = Document()
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        document.problems.append(Problem(1, f"the file is larger than {MAX_BYTES >> 10} KiB"))
        return document
    try:
        events = iter(yaml.parse(text, Loader=_Loader))
        next(events)  # the stream's start
        _document_start(next(events), document)
        document.data = _value(next(events), events, (), document)
        next(events)  # the document's end
        following: Any = next(events)
        if not isinstance(following, yaml.StreamEndEvent):
            line = following.start_mark.line + 1
            document.problems.append(Problem(line, "a job file is one document: `---` begins a second one"))
    except StopIteration:
        document.problems.append(Problem(1, "the file is empty"))
    except _Refused as refused:
        document.problems.append(refused.problem)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not valid YAML"
        line = mark.line if mark else 0
        if "${" in "".join(text.splitlines()[line : line + 1]):
            what += "; within `{ }` and `[ ]`, `${NAME}` needs quotes"
        document.problems.append(Problem(line + 1, f"not valid YAML: {what}"))
    except yaml.YAMLError as error:
        document.problems.append(Problem(1, f"not valid YAML: {' '.join(str(error).split())}"))
    return document


def _document_start(event: Any, document: Document) -> None:
    if isinstance(event, yaml.StreamEndEvent):
        raise StopIteration
    document.lines[()] = event.start_mark.line + 1


def _value(event: Any, events: Iterator[Any], path: Path, document: Document) -> Any:
    line = event.start_mark.line + 1
    document.lines.setdefault(path, line)
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _Refused(line, "anchors and aliases (`&`, `*`) cannot be used here; put the text in quotes if it is one")
    if event.tag is not None and not (isinstance(event, yaml.ScalarEvent) and event.tag == "!"):
        raise _Refused(line, f"tags cannot be used here: `{event.tag}`")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if len(path) >= MAX_DEPTH:
        raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_value(item, events, (*path, len(items)), document))
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarEvent) or key.anchor is not None:
            raise _Refused(key_line, "a key must be plain text")
        name = key.value
        if name in mapping:
            first = document.lines[(*path, name)]
            document.problems.append(Problem(key_line, f"the key `{name}` is here twice, first in line {first}"))
            _value(next(events), events, (*path, name, "twice"), document)
            continue
        document.lines[(*path, name)] = key_line
        mapping[name] = _value(next(events), events, (*path, name), document)
    return mapping


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.style:  # quoted, or a block
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) <= 40:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text
