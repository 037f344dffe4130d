"""A progress bar for programs: in notebooks by itself, elsewhere on request."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def told_progress(shown: bool | None) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with the bytes written and all bytes, while the bar is shown.

    Args:
        shown: None means: in a notebook.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    if shown is None:
        shown = console.is_jupyter
    if not shown:
        yield None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console) as bar:
        task = bar.add_task("checking", total=None)
        yield lambda done, total: bar.update(task, description="pushing", completed=done, total=total)
