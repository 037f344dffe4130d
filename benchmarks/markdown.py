"""Figures and tables as Markdown: three significant digits, a dash for what there is not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from benchmarks.outcome import Spread

DASH = "\N{EN DASH}"
NOT_MEASURED = "Not measured in this run."

_MOST_DECIMALS = 3


def number(value: float | None) -> str:
    """Three significant digits, thousands separated: `123,000`, `12.3`, `0.123`; a dash for None."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = round(value, _decimals(value))
    return f"{rounded:,.{max(0, min(_decimals(rounded), _MOST_DECIMALS))}f}"


def spread_text(spread: Spread | None) -> str:
    """Median, lowest and highest: 1.34 (1.28 to 1.41); the median alone of one round, a dash for None."""
    if spread is None:
        return DASH
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}{DASH}{number(spread.high)})"


def cell(text: str) -> str:
    """A text on one line that ends no column."""
    return " ".join(text.split()).replace("|", "\\|")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[str] = ("",)) -> str:
    """A table; a column that is empty in all rows is left out.

    Args:
        columns: Titles.
        rows: Cells, one for each column.
        texts: Titles of those that are on the left, as the first is; figures are on the right.
    """
    kept = list(rows)
    wanted = [at for at in range(len(columns)) if at == 0 or any(row[at] for row in kept)]
    lines = [
        [columns[at] for at in wanted],
        ["---" if at == 0 or columns[at] in texts else "---:" for at in wanted],
        *([cell(row[at]) for at in wanted] for row in kept),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _decimals(value: float) -> int:
    return 2 - math.floor(math.log10(abs(value))) if value else 0
