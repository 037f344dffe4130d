"""`${NAME}` in a plug's settings: taken from the environment when the plug starts, and never shown.

What is submitted, stored, listed or printed is the text as it was written. Only the settings that a plug gets hold the
values, and what it says in an error goes through `Hidden.hide`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, SecretStr

from gridscore.errors import GridscoreError, SettingsError
from gridscore.job.plugs.secrets import is_plain_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHORTEST = 4  # characters of a value below which hiding it would make messages unreadable and hide nothing
_SHORTEST_PATH = 8  # the same for the path of an address
_Settings = TypeVar("_Settings", bound=BaseModel)
_Error = TypeVar("_Error", bound=GridscoreError)


class Hidden(NamedTuple):
    """Values that must not be shown, each with what is shown instead."""

    values: tuple[tuple[str, str], ...] = ()

    def hide(self, text: str) -> str:
        """The text with every value replaced by its `${NAME}`."""
        for value, shown in self.values:
            text = text.replace(value, shown)
        return text

    def within(self, error: _Error) -> _Error:
        """The error, its texts changed so."""
        error.message, error.hint = self.hide(error.message), self.hide(error.hint)
        error.args = (error.message,)
        return error


def from_environment(settings: _Settings, environment: Mapping[str, str] | None = None) -> tuple[_Settings, Hidden]:
    """Settings with every `${NAME}` in their texts replaced, and what must be hidden from now on.

    `environment`: where names are looked up; that of the process if None. Raises SettingsError if a variable is not set
    or empty, or what stands in the braces is not a name.
    """
    reader = _Reader(os.environ if environment is None else environment)
    made = reader.model(settings, ())
    values = {
        form: f"${{{name}}}" for name, value in reader.used.items() for form in _forms(value) if len(form) >= _SHORTEST
    } | {value: "**********" for value in reader.secrets if len(value) >= _SHORTEST}
    # The longest first: one value may be a part of another.
    return made, Hidden(tuple(sorted(values.items(), key=lambda item: -len(item[0]))))


def _forms(value: str) -> set[str]:
    """A value, and of an address what libraries show of it: quoted, its path, its query, its password."""
    forms = {value}
    if "://" not in value:
        return forms
    for text in (value, quote(value, safe="%/:=&?#[]@!$'()*+,;~")):
        forms.add(text)
        with suppress(ValueError):
            parts = urlsplit(text)
            paths = (parts.path, f"{parts.path}?{parts.query}") if len(parts.path) >= _SHORTEST_PATH else ()
            forms.update(form for form in (*paths, parts.query, parts.password or parts.username) if form)
    return forms


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.used: dict[str, str] = {}
        self.secrets: set[str] = set()

    def model(self, settings: _Settings, path: tuple[str, ...]) -> _Settings:
        # Not validated again: an error would show the value.
        fields = {
            name: made
            for name in type(settings).model_fields
            if (made := self.value(old := getattr(settings, name), (*path, name))) is not old
        }
        return settings.model_copy(update=fields) if fields else settings

    def value(self, value: Any, path: tuple[str, ...]) -> Any:
        """The value itself if nothing in it is replaced. What comes from the environment is not looked at again."""
        if isinstance(value, str):
            if is_plain_secret(path, value):
                self.secrets.add(value)
            return _REFERENCE.sub(lambda found: self.look_up(found[1], path), value) if "${" in value else value
        if isinstance(value, SecretStr):
            old = value.get_secret_value()
            made = self.value(old, path)
            if made is old:
                self.secrets.add(old)
            return value if made is old else SecretStr(made)
        if isinstance(value, BaseModel):
            return self.model(value, path)
        if isinstance(value, dict):
            pairs = {key: self.value(each, (*path, str(key))) for key, each in value.items()}
            return pairs if any(pairs[key] is not value[key] for key in pairs) else value
        if isinstance(value, tuple | list):
            items = [self.value(each, path) for each in value]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        return value

    def look_up(self, name: str, path: tuple[str, ...]) -> str:
        where = ".".join(path)
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"`{where}`: `${{{name}}}` does not name an environment variable.",
                "Write `${NAME}`, of letters, digits and `_`, no digit first.",
            )
        if name not in self._environment:
            raise SettingsError(
                f"`{where}`: the environment variable {name} is not set.", f"Set it before the start: export {name}=…"
            )
        value = self.used[name] = self._environment[name]
        if not value:
            # A token that is empty by mistake would let everybody in.
            raise SettingsError(f"`{where}`: the environment variable {name} is empty.", "Give it a value.")
        return value
