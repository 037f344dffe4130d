"""Numbers as people read them in messages."""

from __future__ import annotations


def count_text(number: float, one: str, many: str = "") -> str:
    """A number of things: `1 event`, `1,204 events`."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"
