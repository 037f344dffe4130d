"""What commands print: tables for people, JSON for scripts, notes on the error stream.

Keys, events, names and messages come from anywhere, and must not act as terminal codes or as rich's markup:
:func:`visible` is for text that is printed as it is, :func:`safe` for text within markup.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gridscore.errors import UsageError
from gridscore.texts import NOT_LAYOUT
from gridscore.texts import visible as visible  # noqa: PLC0414 -- the commands take it from here

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from rich.progress import Progress, ProgressColumn

_PIPE_WIDTH = 10_000
_CELL = 60  # most characters of a cell that is not in the last column
_LAST_CELL = 10  # least characters of the last column, however narrow the terminal


def _environment(stream: TextIO | None) -> Mapping[str, str]:
    """Without a width and height where a terminal has its own, which changes: a screen that is larger is not seen."""
    try:
        known = stream is not None and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # no terminal
        known = False
    return {name: value for name, value in os.environ.items() if not (known and name in ("COLUMNS", "LINES"))}


class _Console(Console):
    """Leaves it to the terminal to break lines of text, so that they can be copied whole."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **more: Any) -> None:
        super().print(*objects, soft_wrap=soft_wrap or all(isinstance(each, str) for each in objects), **more)


def _console(*, stderr: bool = False) -> Console:
    environment = _environment(sys.stderr if stderr else sys.stdout)
    made = _Console(stderr=stderr, emoji=False, highlight=False, _environ=environment)
    if not made.is_terminal:
        # In a pipe a row is one line, however narrow the terminal is.
        made.size = ConsoleDimensions(_PIPE_WIDTH, 25)
    return made


console = _console()
errors = _console(stderr=True)


def safe(value: Any, *, layout: bool = False) -> str:
    """Text for a place within rich's markup, with control characters spelled out."""
    return escape(visible(value, layout=layout))


def one_line(text: str) -> str:
    """A text of several lines, as messages with a hint are, in one."""
    return " ".join(text.split())


def shorten(text: str, length: int) -> str:
    """The text, cut with an ellipsis if it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON that is safe to look at: what a terminal would obey is escaped, all else is readable."""
    text = json.dumps(value, indent=indent, default=str, ensure_ascii=False)
    return NOT_LAYOUT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def value_text(value: Any) -> str:
    """A field, a feature, or what a window saw, for people."""
    return "missing" if value is None else f"{value:.7g}" if isinstance(value, float) else json_text(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Such values with their names, in a line."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def lookup_texts(lookups: Mapping[str, Any]) -> Iterator[str]:
    """A line for each lookup: the key that was asked for, and what the entry held."""
    for name, found in lookups.items():
        entry = "no entry" if found["entry"] is None else values_text(found["entry"])
        yield f"{name}[{json_text(found['key'])}]: {entry}"


def say(text: Any, style: str | None = None, *, to: Console | None = None, layout: bool = False) -> None:
    """Print a text as it is, on standard error by default."""
    (to or errors).print(visible(text, layout=layout), style=style, markup=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON, without colours."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def progress_bar(count: ProgressColumn | None = None, *more: ProgressColumn) -> Progress:
    """A bar for a terminal, with a description, a count and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), count or MofNCompleteColumn(), TimeRemainingColumn(), *more)
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


@contextmanager
def counted(first: str, then: str = "", count: ProgressColumn | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for one work; what this gives is called with how much is done, and of how much.

    `first`: what is done until then; `then`: what is done from then on, if it is something else.
    """
    with progress_bar(count) as bar:
        task = bar.add_task(first, total=None)
        yield lambda done, total: bar.update(task, description=then or first, completed=done, total=total)


def print_warnings(texts: Iterable[str]) -> None:
    """Print what does not stop a command."""
    for text in texts:
        errors.print(f"[yellow]warning:[/] {safe(text, layout=True)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows under column names; numbers to the right; the text `empty` if there is none.

    Only the last column is folded where the terminal is narrow, so let it be the one with the long texts. Where that is
    not enough, each row is a paragraph, with a line for each cell that has something.
    """
    rows = [list(row) for row in rows]
    if not rows:
        console.print(visible(empty), markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    last = len(columns) - 1
    cells = [[_cell(value, None if i == last else _CELL) for i, value in enumerate(row)] for row in rows]
    widths = []
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        fixed = index < last or numeric
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=fixed)
        width = max(cell_len(text) for text in (column, *(row[index] for row in cells)))
        widths.append(width if fixed else min(width, max(_LAST_CELL, cell_len(column))))
    for row in cells:
        table.add_row(*map(Text, row))
    gap = 2 if sum(widths) + 2 * last <= console.width else 1
    table.padding = (0, gap, 0, 0)
    if sum(widths) + gap * last <= console.width:
        console.print(table, crop=False)
        return
    for number, values in enumerate(rows):
        paragraph = Table(box=None, pad_edge=False, show_header=False)
        paragraph.add_column(style="bold", no_wrap=True)
        paragraph.add_column(overflow="fold")
        for column, value in zip(columns, values, strict=True):
            if value != "":
                paragraph.add_row(column, Text(_cell(value)))
        if number:
            console.print()
        console.print(paragraph, crop=False)


def _cell(value: Any, length: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = str(value)
    return visible(text if length is None else shorten(text, length))


def selection(members: Sequence[str], cluster_name: str) -> dict[str, str]:
    """The environment in which other commands find a cluster."""
    return {"GRIDSCORE_MEMBERS": ",".join(members), "GRIDSCORE_CLUSTER_NAME": cluster_name}


def print_selection(screen: Console, environment: Mapping[str, str]) -> None:
    """Print what makes other commands find a cluster, ready to be pasted."""
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    screen.print(f"Selected by [bold]export {safe(exports)}[/]")


def confirmed(question: str, *, as_json: bool = False) -> bool:
    """Ask the user at the terminal; the answer.

    Raises UsageError if there is no terminal, or a script reads the output.
    """
    if as_json or not sys.stdin.isatty():
        raise UsageError("This needs confirmation, and there is no terminal.", "Give --yes, or --dry-run.")
    return typer.confirm(question, err=True)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine to its end, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
