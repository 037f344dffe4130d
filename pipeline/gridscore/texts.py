"""Numbers, foreign texts and the ends of logs as people read them in messages."""

from __future__ import annotations

import datetime as dt
import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

# What a terminal obeys or hides: C0, DEL, C1, line separators, marks that turn the direction; and lone surrogates,
# which no stream can encode.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
NOT_LAYOUT = re.compile(rf"(?![\n\t])[{_CONTROLS}]")


def count_text(number: float, one: str, many: str = "") -> str:
    """A number of things: `1 event`, `1,204 events`."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers in order, with their ranges together: `0-67, 70`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def clock_text() -> str:
    """The time of day: `13:05:59`."""
    return dt.datetime.now().astimezone().strftime("%H:%M:%S")


def duration_text(seconds: float) -> str:
    """A time span in its largest unit: `0.3 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, length in (("min", 60), ("h", 3_600)):
        if seconds < length * (60 if unit == "min" else 48):
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def milliseconds_text(value: float | None) -> str:
    """A latency: `0.84 ms`, `12 ms`, `1.2 s`; a dash for none."""
    if value is None:
        return "-"
    if value >= 1_000:
        return f"{value / 1_000:,.1f} s"
    return f"{value:.2g} ms" if value < 1 else f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def visible(value: Any, *, layout: bool = False) -> str:
    r"""Text with control characters spelled out, as in `\x1b`.

    `value`: whatever is to be shown; `layout`: keep newlines and tabs, for text whose lines are its own.
    """
    return (NOT_LAYOUT if layout else _CONTROL).sub(_spelled, str(value))


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_CELL = 200  # most characters of a cell


def html_table(*rows: Mapping[str, Any]) -> str:
    """Rows of the same columns as a notebook shows them; whatever a cell holds is only ever text."""

    def line(tag: str, values: Iterable[Any]) -> str:
        texts = ("" if each is None else visible(each) for each in values)
        cut = (html.escape(text if len(text) <= _CELL else f"{text[: _CELL - 1]}…") for text in texts)
        return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in cut)}</tr>"

    lines = [*(line("th", row) for row in rows[:1]), *(line("td", row.values()) for row in rows)]
    # Or notebooks would set what lies between two `$` as a formula.
    return f'<table class="mathjax_ignore tex2jax_ignore">{"".join(lines)}</table>'


_LINES = 12


def last_lines(lines: Sequence[str], nothing: str = "it logged nothing") -> str:
    """The last of them, indented. `lines`: of a log; `nothing`: said if there are none."""
    return "\n".join(f"  {line}" for line in lines[-_LINES:]) or f"  ({nothing})"


def nearest(name: str, known: Collection[str]) -> str:
    """Which of the known names is most like a name that is not known; empty if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def did_you_mean(name: str, known: Collection[str], *, as_sentence: bool = False) -> str:
    """What to add to a message about a name that is not known; empty if none is like it."""
    meant = nearest(name, known)
    return f"{' Did' if as_sentence else ', did'} you mean `{meant}`?" if meant else ""


def moment_text(moment: dt.datetime | None = None) -> str:
    """A moment as records have it, RFC 3339 in UTC: `2026-01-31T12:00:00.000Z`; now if None."""
    moment = dt.datetime.now(dt.UTC) if moment is None else moment.astimezone(dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_seconds(text: str) -> float:
    """Seconds since 1970 of such a moment; 0 if the text is not one."""
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# Fields of our records that are times in milliseconds since 1970.
_MILLISECONDS = frozenset({"began_at", "committed_at", "error_at", "last_at", "lost_at", "seen_at"})


def with_moments(value: Any) -> Any:
    """It, with our records' milliseconds as all of `--json` has times: RFC 3339 in UTC, null for never."""
    if isinstance(value, dict):
        return {
            name: moment_at(each / 1000) if name in _MILLISECONDS and isinstance(each, int) else with_moments(each)
            for name, each in value.items()
        }
    return [with_moments(each) for each in value] if isinstance(value, list | tuple) else value


def moment_at(seconds: float) -> str | None:
    """A time in seconds since 1970 as `--json` has it; None for 0, which is never, and where no calendar has it."""
    try:
        return moment_text(dt.datetime.fromtimestamp(seconds, dt.UTC)) if seconds else None
    except (ValueError, OverflowError, OSError):
        return None
