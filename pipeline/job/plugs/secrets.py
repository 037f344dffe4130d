"""Secrets that stand in a job file: they are refused, as the file goes into the cluster, where others read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECRET = re.compile(r"(^|[._-])(password|passwd|secret|token|authorization|api-?key)$", re.IGNORECASE)
"""Keys whose values are secrets: `password`, `registry_password`, `sasl.password`, `Authorization`."""
_IN_TEXT = re.compile(r"(?:^|[\s?&])(?:ssl)?password=(?!\$\{)[^\s&]", re.IGNORECASE)
"""A password as libpq takes it in a text: `host=db password=…`, `?password=…`."""


def is_secret(key: object) -> bool:
    """Whether the value of a key is a secret."""
    return isinstance(key, str) and _SECRET.search(key) is not None


def plain_secrets(settings: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The paths of secrets that stand in settings as they are, and not as `${NAME}`.

    Args:
        settings: An entry of a job file.
    """
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from ((key, *path) for path in plain_secrets(value))
        elif any(_is_plain(key, text) for text in _texts(value)):
            yield (key,)


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, str)]


def _is_plain(key: str, text: str) -> bool:
    if is_secret(key):
        return bool(text) and "${" not in text
    if _IN_TEXT.search(text):
        return True
    try:
        password = urlsplit(text).password if "://" in text else None
    except ValueError:  # such as a port that is none
        return False
    return bool(password) and "${" not in str(password)
