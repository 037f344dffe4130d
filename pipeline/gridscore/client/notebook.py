"""What only a notebook has: the commands as a magic, `%load_ext gridscore`, and bars under a cell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Told: TypeAlias = Callable[[int, int], None]

T = TypeVar("T")

_MANY = 1_000  # rows from which on they have a bar


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython."""
    shell.register_magic_function(_command, magic_name="gridscore")


def _command(line: str) -> None:
    """Run a command of Gridscore: `%gridscore jobs`."""
    from IPython.core.error import UsageError  # which IPython shows without a traceback

    try:
        words = [sys.executable, "-m", "gridscore.cli", *shlex.split(line)]
    except ValueError as error:
        raise UsageError(f"`gridscore {line}`: {error}.") from None
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, text=True, **pipes) as command:
        try:
            for text in command.stdout or ():
                sys.stdout.write(text)
        except KeyboardInterrupt:
            command.terminate()
    if command.returncode:
        raise UsageError(f"`gridscore {line}` ended with exit code {command.returncode}.")


@contextmanager
def told_progress(shown: bool | None = None) -> Iterator[Told | None]:
    """What to call with how much is done, and of how much, while a bar is shown. `shown`: None means: in a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    if shown is False or not (shown or console.is_jupyter):
        yield None
    elif console.is_jupyter:
        yield _bar()
    else:
        with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console) as bar:
            task = bar.add_task("checking", total=None)
            yield lambda done, total: bar.update(task, description="pushing", completed=done, total=total)


def _bar() -> Told:
    """IPython's own: that of rich needs widgets, which not every notebook has."""
    from IPython.display import ProgressBar

    bar = ProgressBar(1)
    bar.display()

    def told(done: int, total: int) -> None:
        if (bar.progress, bar.total) != (percent := done * 100 // max(total, 1), 100):
            bar.total, bar.progress = 100, percent

    return told


def counted(items: Iterable[T], total: int) -> Iterator[T]:
    """The items, with a bar in a notebook if they are many; of few, nobody pays for looking whether it is one."""
    if total < _MANY:
        yield from items
        return
    with told_progress() as told:
        for done, item in enumerate(items, 1):
            yield item
            if told is not None:
                told(done, total)
