"""What stands in a request's query, as numbers."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException

MAX_WAIT = 60.0
"""Most seconds that a request may wait for anything."""


def sequence(name: str, text: str | None) -> int | None:
    """A sequence, or -1 for any.

    Raises:
        HTTPException: It is neither.
    """
    if text is None:
        return None
    if not re.fullmatch(r"-1|[0-9]{1,18}", text):
        raise HTTPException(400, f"`{name}={text}` is not a sequence: take it from the answer to the event.")
    return int(text)


def seconds(name: str, text: str) -> float:
    """Seconds of `2s`, `500ms` or `1.5`, `MAX_WAIT` at most.

    Raises:
        HTTPException: It is not one of these.
    """
    matched = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|ms)?", text)
    if matched is None:
        raise HTTPException(400, f"`{name}={text}` is not a time: write 2s or 500ms.")
    return min(float(matched[1]) / (1000 if matched[2] == "ms" else 1), MAX_WAIT)


def flag(name: str, text: str) -> bool:
    """`true` or `false`.

    Raises:
        HTTPException: It is neither.
    """
    if text not in ("true", "false"):
        raise HTTPException(400, f"`{name}={text}` is neither true nor false.")
    return text == "true"
