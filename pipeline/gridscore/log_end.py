"""The end of a process's log, for the error that says what has become of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINES = 12


def last_lines(lines: Sequence[str], nothing: str = "it logged nothing") -> str:
    """The last of them, indented.

    Args:
        lines: Of a log.
        nothing: Said if there are none.
    """
    return "\n".join(f"  {line}" for line in lines[-_LINES:]) or f"  ({nothing})"
