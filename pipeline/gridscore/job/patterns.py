"""Patterns of `regex`. RE2 matches in time that is linear in the text, whatever the pattern; Python's `re` does not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gridscore.errors import ExpressionError

MAX_PATTERN = 1_000
MAX_TEXT = 65_536
_MAX_STEPS = 10_000_000  # characters times the size of the pattern: RE2 takes up to 20 ns for each
_MEMORY = 1 << 18  # bytes of a compiled pattern, and of what matching remembers


@lru_cache(maxsize=1_024)
def compiled(pattern: str) -> Any:
    """A pattern, ready to search UTF-8. Raises ExpressionError if it is not one, or too large."""
    import re2  # few jobs have patterns

    if len(pattern) > MAX_PATTERN:
        raise ExpressionError(f"the pattern has {len(pattern):,} characters, more than {MAX_PATTERN:,}")
    options = re2.Options()
    options.max_mem, options.log_errors = _MEMORY, False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else str(error)
        if "repetition size" in reason or "too large" in reason:
            reason = f"too large ({reason})"
        elif "invalid perl operator" in reason or "escape sequence: \\" in reason:
            reason += "; RE2 looks neither around nor back"
        shown = pattern[:60].encode(errors="backslashreplace").decode()
        raise ExpressionError(f"`{shown}` is not a pattern of RE2: {reason}") from None


def longest(pattern: str) -> int:
    """Characters of a text that is searched; a longer one counts as missing."""
    return min(MAX_TEXT, _MAX_STEPS // int(compiled(pattern).programsize))
