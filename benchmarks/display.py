"""What a person sees while the benchmark runs: a bar over its steps by the time that they should take, and lines."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gridscore.cli.output import errors

if TYPE_CHECKING:
    from collections.abc import Iterator


class Display:
    """On standard error. A context manager.

    Args:
        seconds: How long it should take in all.
    """

    def __init__(self, seconds: float) -> None:
        self._bar = Progress(
            TimeElapsedColumn(),
            TextColumn(f"of about {duration(seconds)}"),
            BarColumn(20),
            TextColumn("{task.description}", markup=False),
            console=errors,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=max(seconds, 1.0))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """What is going on."""
        self._bar.update(self._task, description=line)

    def note(self, line: str) -> None:
        """A line that stays."""
        errors.print(line, markup=False, highlight=False)

    @contextmanager
    def step(self, what: str, seconds: float) -> Iterator[None]:
        """Something that should take so long."""
        self.say(what)
        yield
        self._bar.advance(self._task, seconds)


def duration(seconds: float) -> str:
    """In words."""
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes > 1 else "one minute" if minutes else f"{seconds:.0f} seconds"
