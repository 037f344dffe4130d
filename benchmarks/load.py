"""The load on a system that scores live events: at exact times whatever comes back, or as many as it answers.

Sender and listener live in this process, so there is one clock. Latency counts from when an event was *due*: a sender
that is late, or a system that makes it wait, hides nothing (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.meter import Meter, Usage
from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from benchmarks.systems.base import System

OUTSTANDING = 2_000
"""Events sent and not answered, at most, in a closed loop."""

BEHIND_SECONDS = 2.0
"""How far results may fall behind before a steady rate is given up."""

STALLED_SECONDS = 30.0
"""How long nothing may come back in a closed loop."""

_TICK_SECONDS = 0.001
"""Between two looks at what is due; the timers of the event loop are no finer."""

_LOOK_SECONDS = 0.1
_LEAD_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Sights:
    """Events in columns, by number, of one length.

    Attributes:
        due: When each was due; seconds from the beginning.
        sent: When it was sent; NaN if it was not.
        seen: When its result was seen first; NaN if it was not.
        usages: From each mark to the next, or to the end; there are fewer than marks if it ended before.
        behind: Results fell too far behind: what was not sent then was not sent at all.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    seen: NDArray[np.float64]
    usages: list[Usage]
    behind: bool

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """From due to seen; NaN where nothing was."""
        return (self.seen - self.due) * 1e3


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: results that came within the window, and what that took."""

    events: int
    usage: Usage


def schedule(*phases: tuple[float, float]) -> NDArray[np.float64]:
    """When each event is due, in seconds.

    Args:
        phases: Events per second, which may be 0, and for how many seconds.
    """
    parts, begin = [np.empty(0)], 0.0
    for rate, seconds in phases:
        parts.append(begin + np.arange(round(rate * seconds)) / max(rate, 1e-9))
        begin += seconds
    return np.concatenate(parts)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage is collected in this process meanwhile."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def open_loop(
    system: System,
    texts: Sequence[bytes],
    due: NDArray[np.float64],
    marks: Sequence[float],
    behind_seconds: float = BEHIND_SECONDS,
) -> Sights:
    """Send each event when it is due, and wait for what was sent.

    Args:
        system: Started for live events.
        texts: Of the events; they are taken again and again.
        due: See `schedule`.
        marks: Seconds at which usage is counted anew, rising.
        behind_seconds: How far results may fall behind before the rest is not sent, and not waited for.

    Raises:
        GridscoreError: The system has ended.
    """
    count, size = len(due), len(texts)
    due_at: list[float] = due.tolist()
    seen_at: list[float] = [0.0] * count
    sent_at: list[float] = [0.0] * count
    clock, send, number, came = time.perf_counter, system.send, 0, 0
    all_came = asyncio.Event()

    def seen(which: int) -> None:
        nonlocal came
        if which < count and not seen_at[which]:
            seen_at[which] = clock()
            came += 1
            if came == count:
                all_came.set()

    await system.watch(seen)
    meter, usages = Meter(system.pids(), system.service_pids()), list[Usage]()
    with _undisturbed():
        start = clock() + _LEAD_SECONDS
        look_at, behind, marked = start + _LOOK_SECONDS, False, 0
        while number < count:
            now = clock()
            passed = now - start
            while number < count and due_at[number] <= passed:
                send(number, texts[number % size])
                sent_at[number] = clock()
                number += 1
            if now >= look_at:
                look_at = now + _LOOK_SECONDS
                await system.check()
                if marked < len(marks) and passed >= marks[marked]:
                    if marked:
                        usages.append(meter.read())
                    meter.begin()
                    marked += 1
                if came < np.searchsorted(due, passed - behind_seconds):
                    behind = True
                    break
            if number < count:
                # Not until the next is due: there may be none for long, and a mark before it.
                wait = min(due_at[number] - (clock() - start), _LOOK_SECONDS)
                await asyncio.sleep(max(_TICK_SECONDS, wait))
        if not behind:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(behind_seconds):
                    await all_came.wait()
        if marked:
            usages.append(meter.read())
    columns = [np.array(column) for column in (sent_at, seen_at)]
    sent, seen_ = (np.where(column > 0, column - start, np.nan) for column in columns)
    return Sights(due, sent, seen_, usages, behind or came < number)


async def closed_loop(
    system: System, texts: Sequence[bytes], *, count: int | None = None, warm_up: float = 0.0, seconds: float = 0.0
) -> Closed:
    """Send as fast as results come, with up to `OUTSTANDING` events sent and not answered.

    Args:
        system: Started for live events.
        texts: Of the events; they are taken again and again.
        count: So many events; the window goes from the first tenth of their results to the last.
        warm_up: Without a count: seconds before the window.
        seconds: Without a count: length of the window.

    Raises:
        GridscoreError: The system has ended, or nothing comes back.
    """
    clock, send, size = time.perf_counter, system.send, len(texts)
    number = came = 0
    began = clock()
    end = clock() + warm_up + seconds
    last_came, last_at, look_at = 0, began, began
    answered = asyncio.Event()
    found = set[int]()

    def seen(which: int) -> None:
        nonlocal came
        if which < number and which not in found:
            found.add(which)
            came += 1
            answered.set()

    def over() -> bool:
        return came >= count if count is not None else clock() >= end

    await system.watch(seen)
    meter, before = Meter(system.pids(), system.service_pids()), -1
    with _undisturbed():
        while not over():
            while number - came < OUTSTANDING and (count is None or number < count):
                send(number, texts[number % size])
                number += 1
            now = clock()
            if before < 0 and (came >= count / 10 if count is not None else now - began >= warm_up):
                meter.begin()
                before = came
            if now >= look_at:
                look_at = now + _LOOK_SECONDS
                await system.check()
                if came > last_came:
                    last_came, last_at = came, now
                elif now - last_at > STALLED_SECONDS:
                    raise GridscoreError(f"No result came for {STALLED_SECONDS:.0f} s, after {came:,} of {number:,}.")
            answered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await answered.wait()
        usage = meter.read()
        if before < 0 or came == before:
            raise GridscoreError("No results came within the time.")
        return Closed(came - before, usage)
