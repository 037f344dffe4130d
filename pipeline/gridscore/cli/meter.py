"""Lines on a terminal about sources and sinks: figures, what is wrong, and a bar for what has an end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.text import Text

from gridscore.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.progress import Task

_RATE_SECONDS = 1.0
_BAR_WIDTH = 24


class _IfFinite(ProgressColumn):
    """A column only for what has an end."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._column(task)


class Meter:
    """A line for each of several things that run. A context manager; leaving it removes the lines."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            _IfFinite(BarColumn(bar_width=_BAR_WIDTH)),
            _IfFinite(TaskProgressColumn()),
            _IfFinite(TimeLeftColumn(compact=True)),
            TextColumn("{task.fields[trouble]}", style="yellow", markup=False),
            console=console,
            transient=True,
        )
        self._lines = [self._progress.add_task(visible(name), total=None, figures="", trouble="") for name in names]
        self._marks = [(time.monotonic(), 0, 0.0)] * len(names)

    def show(self, index: int, figures: str, trouble: str = "", progress: tuple[int, int] | None = None) -> None:
        """Show how one of them, by the index of its name, is doing; the rest as in `plug_run.Line`."""
        done, total = progress or (0, None)
        self._progress.update(
            self._lines[index], figures=figures, trouble=visible(trouble), completed=done, total=total or None
        )

    def rate(self, index: int, count: int) -> float:
        """How much a counter of one of them grows in a second, measured over a second or more."""
        since, before, rate = self._marks[index]
        now = time.monotonic()
        if now - since >= _RATE_SECONDS:
            rate = (count - before) / (now - since)
            self._marks[index] = (now, count, rate)
        return rate

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
