"""Records of the log for programs: one JSON object a line, with the job, source or sink that each is about."""

from __future__ import annotations

import datetime as dt
import json
import logging
from contextvars import ContextVar
from typing import Any, Literal

_ABOUT: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_STANDARD = frozenset((*logging.makeLogRecord({}).__dict__, "message", "asctime"))
_VALUES = (str, int, float, bool, type(None))


def about(kind: Literal["job", "source", "sink"], name: str) -> None:
    """What this task, and those that it starts, log is about this one."""
    _ABOUT.set({kind: name})


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, pid; then what it is about, and what its caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class's."""
        found: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **(_ABOUT.get() or {}),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and isinstance(value, _VALUES):
                found.setdefault(name, value)
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found)  # ASCII, so that no terminal obeys what was in the data
