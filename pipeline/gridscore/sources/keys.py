"""Keys of events from their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def key_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | int:
    """The key that fields make: the value of one, or the values of several joined by `|`.

    Raises:
        ValueError: One is not there, or is neither text nor a whole number.
    """
    parts: list[str | int] = []
    for name in names:
        part = fields.get(name)
        if isinstance(part, bool) or not isinstance(part, (str, int)) or part == "":
            raise ValueError(f"The field `{name}` makes the key, and is {'missing' if part is None else 'no key'}.")
        parts.append(part)
    return parts[0] if len(parts) == 1 else "|".join(map(str, parts))
