"""`--log-format json`: all that a command prints on its error stream becomes records of the log, one a line."""

from __future__ import annotations

import io
import json
import logging
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.output import errors
from gridscore.log_records import JsonFormatter

if TYPE_CHECKING:
    from types import TracebackType

_log = logging.getLogger("gridscore.cli")


class Format(StrEnum):
    """Of the log."""

    TEXT = "text"
    JSON = "json"


class _Notes(io.TextIOBase):
    """Where a console prints to: each line becomes a record."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        """Log the lines that are whole."""
        from rich.text import Text

        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            plain = Text.from_ansi(line).plain
            word = plain.partition(":")[0]
            level = {"error": logging.ERROR, "warning": logging.WARNING}.get(word, logging.INFO)
            if plain:
                _log.log(level, "%s", plain.removeprefix(f"{word}: ") if level > logging.INFO else plain)
        return len(text)


def is_json() -> bool:
    """Whether the log is for programs."""
    return isinstance(errors.file, _Notes)


def relay(line: str) -> None:
    """Print a line of a child's error stream: a record as it is; anything else becomes one."""
    try:
        json.loads(line)["level"]
    except (ValueError, KeyError, TypeError, RecursionError):
        _log.warning("%s", line)
    else:
        sys.stderr.write(f"{line}\n")


def _use(chosen: Format) -> Format:
    if chosen == Format.JSON and not is_json():
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
        _log.setLevel(min(logging.INFO, logging.getLogger().level))
        errors.file = _Notes()  # type: ignore[assignment]  # all of a file that a console needs
        sys.excepthook = _fail
    return chosen


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


LogFormat = Annotated[
    Format,
    typer.Option("--log-format", help="json: one object a line, for programs.", callback=_use, show_default=False),
]
