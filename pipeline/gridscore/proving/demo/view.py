"""What the demo shows while it runs: its steps, and the replay live; plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gridscore.proving.demo.report import milliseconds_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from gridscore.proving.demo.replay import Progress, Replay

_REFRESH_SECONDS = 0.25
_PLAIN_SECONDS = 2.0
_WINDOW_SECONDS = 5.0
_COLOURS = ("red", "green", "cyan", "yellow", "magenta", "blue")


class Step:
    """A step that is under way."""

    def __init__(self, console: Console, doing: str) -> None:
        self._console = console
        self._status = console.status(escape(doing))
        self.outcome = doing

    def progress(self, text: str) -> None:
        self._status.update(escape(text))
        if not self._console.is_terminal:
            self._console.print(f"  {text}", style="dim", highlight=False, markup=False, soft_wrap=True)

    def done(self, text: str) -> None:
        self.outcome = text

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._status.start()
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        self._status.stop()
        if failure is None:
            seconds = time.perf_counter() - self._began
            text = f"[green]✓[/] {escape(self.outcome)} [dim]{seconds:.1f} s[/]"
            self._console.print(text, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class _Moment:
    at: float
    scored: int
    latencies: list[float]


class LiveView:
    """The replay, live.

    `console`: where to show it; `replay`: what to show; `title`: what stands above; `decisions`: the job's decisions,
    so that they do not jump about as they first appear.
    """

    def __init__(self, console: Console, replay: Replay, title: str, decisions: tuple[str, ...]) -> None:
        self._console, self._replay, self._title = console, replay, title
        self._decisions = decisions
        self._moments: deque[_Moment] = deque()

    async def show(self) -> None:
        """Show it until cancelled; the last state stays on the screen."""
        self._figures()  # where the first rate is counted from
        if not self._console.is_terminal:
            await self._lines()
            return
        with Live(self._frame(), console=self._console, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(_REFRESH_SECONDS)
                    live.update(self._frame(), refresh=True)
            finally:
                live.update(self._frame(), refresh=True)

    async def _lines(self) -> None:
        try:
            while True:
                await asyncio.sleep(_PLAIN_SECONDS)
                self._line()
        finally:
            self._line()

    def _line(self) -> None:
        progress = self._replay.progress
        rate, p50, p99 = self._figures()
        decided = ", ".join(f"{name} {count:,}" for name, count in self._shares(progress))
        text = (
            f"  {progress.seconds:4.0f} s  {progress.scored:,} of {progress.total:,} scored  {rate:,.0f} events/s  "
            f"lag {progress.lag:,}  p50 {_ms(p50)}  p99 {_ms(p99)}  {decided}  {progress.waiting}"
        )
        self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def _frame(self) -> RenderableType:
        progress = self._replay.progress
        rate, p50, p99 = self._figures()
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=max(progress.total, 1), completed=progress.scored),
            f"{progress.scored:,} of {progress.total:,}  {_left(progress)}",
        )
        figures = Table.grid(expand=True)
        for _ in range(4):
            figures.add_column(justify="center", ratio=1)
        figures.add_row(*(f"[bold]{value}[/]" for value in (f"{rate:,.0f}", f"{progress.lag:,}", _ms(p50), _ms(p99))))
        figures.add_row(*(f"[dim]{name}[/]" for name in ("events/s", "lag, events", "latency p50", "latency p99")))
        note = Text(progress.waiting or "put → journal → features → model → result map → listener", style="dim")
        if progress.waiting:
            note.stylize("yellow")
        return Panel(
            Group(bar, Text(), figures, Text(), self._decided(progress), Text(), note),
            title=self._title,
            title_align="left",
            border_style="cyan",
            padding=(1, 2),
        )

    def _decided(self, progress: Progress) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(justify="right", no_wrap=True)
        for colour, (name, count) in zip(_COLOURS * 10, self._shares(progress), strict=False):
            bar = ProgressBar(
                total=max(progress.scored, 1), completed=count, complete_style=colour, finished_style=colour
            )
            share = count / progress.scored if progress.scored else 0.0
            table.add_row(escape(name), bar, f"{count:,}  {share:6.1%}")
        return table

    def _shares(self, progress: Progress) -> list[tuple[str, int]]:
        return [(name, progress.decisions[name]) for name in self._decisions]

    def _figures(self) -> tuple[float, float, float]:
        """Events per second and latency of the last few seconds."""
        now, scored = time.perf_counter(), self._replay.progress.scored
        self._moments.append(_Moment(now, scored, self._replay.take_recent()))
        while len(self._moments) > 2 and now - self._moments[0].at > _WINDOW_SECONDS:
            self._moments.popleft()
        first = self._moments[0]
        rate = (scored - first.scored) / (now - first.at) if now > first.at else 0.0
        latencies = [each for moment in self._moments for each in moment.latencies]
        if not latencies:
            return rate, float("nan"), float("nan")
        p50, p99 = np.percentile(latencies, (50, 99)) * 1000
        return rate, float(p50), float(p99)


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else milliseconds_text(value)


def _left(progress: Progress) -> str:
    if progress.ended or not progress.scored:
        return f"{progress.seconds:.0f} s"
    left = progress.seconds / progress.scored * (progress.total - progress.scored)
    return f"{progress.seconds:.0f} s, {left:.0f} s left"
