"""What the pages show of the cluster, which is looked at only while somebody has a page open, and not too often."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.dead_letters.letters import text_of_key
from gridscore.grid.journal import Journal
from gridscore.operations.health import committed_between
from gridscore.operations.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.operations.flow import Flow
    from gridscore.operations.status import JobStatus

# Least time between two looks; more if a look takes long, so that looking takes a fifth of the time at most.
LOOK_SECONDS = 1.5

WAIT_SECONDS = 3.0  # how long a page waits for a look, before it shows the last one and says so
_LONGEST_PAUSE = 15.0
_KEPT = 400  # points of a chart, and results of a map, that are kept
_POINTS_SECONDS = 600.0
_UNUSED_SECONDS = 60.0
_PARTITIONS, _OF_EACH = 48, 8  # partitions from which a look at results reads at most, and results of each
_MAX_RESULT = 64 << 10  # bytes of a result above which it is not shown in lists


class Point(NamedTuple):
    """A job at one moment: events that wait; that came and were scored a second; p99 in ms; its workers."""

    at: float
    lag: int | None
    comes: float
    scored: float
    p99: float | None
    workers: int


class _Result(msgspec.Struct):
    score: float | list[float]
    version: int
    decision: str | None = None
    label: str | int | None = None
    scored_at: int = 0


_decode = msgspec.json.Decoder(_Result).decode


class Recent(NamedTuple):
    """A result of late."""

    key: str
    result: _Result


class Observation:
    """Looks for all pages together."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.watcher = Watcher(grid)
        self._looking = asyncio.Lock()
        self._next_at = float("-inf")
        self._points: dict[str, deque[Point]] = {}
        self._tails: dict[str, _Tail] = {}

    async def look(self) -> Flow | None:
        """The newest look; None if none has succeeded yet."""
        async with self._looking:
            began = time.monotonic()
            if began >= self._next_at:
                before = self.watcher.flow
                await self.watcher.look(WAIT_SECONDS)
                flow = self.watcher.flow
                if flow is not None and flow is not before:
                    self._note(before, flow)
                ended = time.monotonic()
                self._next_at = ended + min(max(LOOK_SECONDS, 4 * (ended - began)), _LONGEST_PAUSE)
        return self.watcher.flow

    def points(self, job: str) -> list[Point]:
        """How a job was in the last minutes, as far as somebody looked."""
        return list(self._points.get(job, ()))

    async def results(self, map_name: str) -> list[Recent]:
        """Some of the newest results of a map, the newest first.

        Raises JournalMissingError if the map has no journal; TimeoutError if the cluster does not answer in time.
        """
        now = time.monotonic()
        for name in [name for name, tail in self._tails.items() if now - tail.used_at > _UNUSED_SECONDS]:
            del self._tails[name]
        tail = self._tails.setdefault(map_name, _Tail(self._grid, map_name))
        tail.used_at = now
        async with tail.reading, asyncio.timeout(WAIT_SECONDS):
            if time.monotonic() - tail.read_at >= LOOK_SECONDS:
                await tail.read()
        return sorted(tail.results, key=lambda each: -each.result.scored_at)

    async def close(self) -> None:
        """End a look that is under way."""
        await self.watcher.give_up()

    def _note(self, before: Flow | None, flow: Flow) -> None:
        known = {} if before is None else {each.record.name: each for each in before.overview.jobs}
        seconds = 0.0 if before is None else flow.at - before.at
        names = {each.record.name for each in flow.overview.jobs}
        for name in self._points.keys() - names:
            del self._points[name]
        for status in flow.overview.jobs:
            earlier = known.get(status.record.name)
            if earlier is None or not status.record.is_same_run(earlier.record):
                continue
            points = self._points.setdefault(status.record.name, deque(maxlen=_KEPT))
            points.append(_point(earlier, status, flow.at, seconds))
            while flow.at - points[0].at > _POINTS_SECONDS:
                points.popleft()


def _point(before: JobStatus, now: JobStatus, at: float, seconds: float) -> Point:
    done = committed_between(before.positions, now.positions)
    more = (now.lag or 0) - (before.lag or 0) if None not in (now.lag, before.lag) else 0
    comes, scored = max(0, done + more) / seconds, done / seconds
    return Point(at, now.lag, comes, scored, now.latency_ms["p99"], now.workers)


class _Tail:
    """The newest results of a map: a look costs the same however many are written."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self._journal = grid, Journal(grid, map_name)
        self._newest: Sequence[int] = [-1] * grid.partition_count
        self.results: deque[Recent] = deque(maxlen=_KEPT)
        self.reading = asyncio.Lock()
        self.used_at, self.read_at = 0.0, float("-inf")

    async def read(self) -> None:
        bounds = await asyncio.gather(*map(self._journal.bounds, range(len(self._newest))))
        # A journal that begins again has lower sequences than those that are known.
        known = [before if before <= newest else -1 for before, (_, newest) in zip(self._newest, bounds, strict=True)]
        more = [p for p, (oldest, newest) in enumerate(bounds) if newest >= oldest and newest > known[p]]
        chosen = random.sample(more, min(len(more), _PARTITIONS))
        reads = []
        for partition in chosen:
            oldest, newest = bounds[partition]
            begin = max(oldest, known[partition] + 1, newest - _OF_EACH + 1)
            reads.append(self._journal.read(partition, begin, _OF_EACH))
        for page in await asyncio.gather(*reads):
            if page is not None:
                self._take(page)
        self._newest, self.read_at = [newest for _, newest in bounds], time.monotonic()

    def _take(self, page: Page) -> None:
        for index, text in enumerate(page.values):
            if index in page.foreign or len(text) > _MAX_RESULT:
                continue
            try:
                found: Any = _decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue  # another program wrote it
            self.results.append(Recent(text_of_key(self._grid, page.keys[index]), found))
