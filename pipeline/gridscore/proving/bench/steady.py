"""A steady load with a listener beside it: when each event was due, and when its result was seen.

Events are put at a schedule, whatever comes back, by this process. The listener is in it as well: one clock.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gridscore.errors import GridscoreError
from gridscore.producer.producer import Producer
from gridscore.results.stream import listen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.job import Job

_TICK_SECONDS = 0.01
_LATE_SECONDS = 60.0
_numbers = itertools.count()


class SteadyLoad:
    """Puts events at a rate while entered, and notes their results. Leaving it waits for all of them.

    `grid`: the connection; `job`: which reads the events and writes the results; `texts`: JSON texts of the events,
    taken again and again; `rate`: events per second; `check`: raises if there is no use in waiting.
    """

    def __init__(self, grid: Grid, job: Job, texts: Sequence[bytes], rate: float, check: Callable[[], None]) -> None:
        self._grid, self._job, self._texts = grid, job, texts
        self._rate, self._check = rate, check
        self._prefix = f"load{next(_numbers)}-"
        self._put = 0
        self._seen: list[tuple[float, str]] = []
        self._found: set[str] = set()
        self._stop = False

    async def __aenter__(self) -> Self:
        self._registration = await listen(self._grid, self._job.results, self._arrived)
        self._start = time.perf_counter()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop = True
        try:
            if kind is None:
                await self._task
                await self._finish()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await (await self._grid.map(self._job.results)).remove_entry_listener(self._registration)

    def _arrived(self, event: Any) -> None:
        key = event.key
        if key.startswith(self._prefix):
            self._found.add(key)
            self._seen.append((time.perf_counter(), key))

    async def _run(self) -> None:
        producer, texts = Producer(self._grid, self._job.events), self._texts
        while not self._stop:
            due = int((time.perf_counter() - self._start) * self._rate)
            numbers = range(self._put, due)
            await producer.send((f"{self._prefix}{n}", texts[n % len(texts)]) for n in numbers)
            self._put = due
            await asyncio.sleep(_TICK_SECONDS)
        await producer.flush()

    async def _finish(self) -> None:
        deadline = time.monotonic() + _LATE_SECONDS
        while len(self._found) < self._put:
            self._check()
            if time.monotonic() > deadline:
                raise GridscoreError(f"{self._put - len(self._found):,} events have no result after {_LATE_SECONDS} s.")
            await asyncio.sleep(_TICK_SECONDS)

    def millis(self, warm_up: float) -> NDArray[np.float64]:
        """Milliseconds from when each event was due to its result; of those that were due after the warm-up."""
        due = np.array([int(key[len(self._prefix) :]) + 1 for _, key in self._seen]) / self._rate
        waited = (np.array([at for at, _ in self._seen]) - self._start - due) * 1000
        counts: NDArray[np.float64] = waited[due >= due.min() + warm_up]
        return counts
