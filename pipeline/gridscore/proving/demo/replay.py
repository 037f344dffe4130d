"""The replay: puts events at a rate, and listens to their results as any application downstream would.

Both ends are in this process, so the latency of an event, from just before its put is sent to the call of the listener
with its result, is measured by one clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.results.stream import listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gridscore.grid import Grid

# How often events are put. A shorter tick costs more messages: one a partition that has an event in it.
TICK_SECONDS = 0.02

# Events that may wait for their result at most, however large the ring is: waiting longer only adds latency.
MAX_UNSCORED = 20_000

STALLED_SECONDS = 30.0  # without a result for so long, none is expected any more
_BATCH_EVENTS = 2_000
_RECENT_RESULTS = 65_536
_LOOK_SECONDS = 0.5


class _ResultText(msgspec.Struct, gc=False):
    """What the listener needs of a result."""

    score: float
    version: int
    decision: str = ""


@dataclass(slots=True)
class Progress:
    """What the live view shows, counted by the listener."""

    total: int  # events to replay
    put: int = 0  # sent so far
    scored: int = 0  # results seen so far, each event once
    repeated: int = 0  # results seen again for an event that had one
    decisions: Counter[str] = field(default_factory=Counter)  # results by decision
    waiting: str = ""  # why no event is being put at the moment, empty if they are
    waited_seconds: float = 0.0  # how long puts had to wait for results
    began: float = 0.0  # of the replay, by `time.perf_counter`; 0 before
    ended: float = 0.0  # when the last result came; 0 before

    @property
    def lag(self) -> int:
        """Events put and not scored yet."""
        return self.put - self.scored

    @property
    def seconds(self) -> float:
        """Since the first put, until now or the last result."""
        return (self.ended or time.perf_counter()) - self.began if self.began else 0.0


class Replay:
    """One replay of events into one map, and the results that come of it.

    `grid`: the connection; `events_map`: where to put; `results_map`: what to listen to; `keys`: of the events, in the
    order in which they are put; `ring`: events that the journal keeps of one partition.
    """

    def __init__(self, grid: Grid, events_map: str, results_map: str, keys: list[str], ring: int) -> None:
        self._grid = grid
        self._writer = MapWriter(grid, events_map)
        self._results_map = results_map
        self._positions = {key: position for position, key in enumerate(keys)}
        self._put_at: list[float] = [0.0] * len(keys)
        self._seen_at: list[float] = [0.0] * len(keys)
        self._partition_of: list[int] = [0] * len(keys)
        self._unscored = [0] * grid.partition_count
        # Half of the ring: room for what the worker reads a second time if it has to begin again at its last commit.
        self._most_a_partition = max(1, ring // 2)
        self._score: list[float] = [float("nan")] * len(keys)
        self._version: list[int] = [0] * len(keys)
        self._decode = msgspec.json.Decoder(_ResultText).decode
        self._arrived = asyncio.Event()
        self._failure: BaseException | None = None
        self._puts: set[asyncio.Future[None]] = set()
        self.progress = Progress(len(keys))  # kept current while it runs
        self._recent: list[float] = []

    @property
    def latency(self) -> NDArray[np.float64]:
        """Seconds from put to listener, by event; NaN where no result was seen."""
        put, seen = np.array(self._put_at), np.array(self._seen_at)
        return np.where(seen > 0, seen - put, np.nan)

    @property
    def scores(self) -> NDArray[np.float64]:
        """As the listener got them, by event; NaN where no result was seen."""
        return np.array(self._score)

    @property
    def versions(self) -> NDArray[np.int64]:
        """Version of the model that made each score; 0 where no result was seen."""
        return np.array(self._version)

    def take_recent(self) -> list[float]:
        """Latencies of the results since the last call, for the live view; not all of them when there are very many."""
        recent, self._recent = self._recent, []
        return recent

    async def run(self, events: Iterator[tuple[str, bytes]], rate: float, alive: Callable[[], None]) -> None:
        """Put all events, and return when each has a result, or when no more results come.

        `events`: keys and JSON texts, in the order of the keys given before; `rate`: events per second; 0: as fast as
        results come back; `alive`: called now and then; raises if there is no use in waiting. Raises GridError if a put
        was not confirmed.
        """
        proxy = await self._grid.map(self._results_map)
        registration = await listen(self._grid, self._results_map, self._result)
        try:
            coming = await self._put_all(events, rate, alive)
            while coming and self.progress.scored < self.progress.total:
                coming = await self._next_result(alive)
            self.progress.ended = max(self._seen_at) or time.perf_counter()
        except HazelcastError as error:
            raise GridError(f"Putting events into `{self._writer.map_name}` failed: {error}") from error
        finally:
            if self._grid.is_running:
                await asyncio.shield(proxy.remove_entry_listener(registration))

    async def _put_all(self, events: Iterator[tuple[str, bytes]], rate: float, alive: Callable[[], None]) -> bool:
        """Put everything; False if results stopped coming before that."""
        progress, position = self.progress, 0
        progress.began = due_from = time.perf_counter()
        while position < progress.total:
            self._raise_failure()
            alive()
            began = time.perf_counter()
            wanted = int((began - due_from) * rate) - position if rate else _BATCH_EVENTS
            if batch := list(islice(events, max(0, min(wanted, _BATCH_EVENTS)))):
                waited = progress.waited_seconds
                if not await self._put(batch, position, alive):
                    return False
                position += len(batch)
                due_from += progress.waited_seconds - waited  # what could not be put in time is not made up for
            # Full speed lets the listener and the network have their turn; a rate sleeps for the rest of the tick.
            await asyncio.sleep(max(0.0, TICK_SECONDS - (time.perf_counter() - began)) if rate else 0)
        await asyncio.gather(*self._puts)
        return True

    async def _put(self, batch: list[tuple[str, bytes]], position: int, alive: Callable[[], None]) -> bool:
        """Put a batch as soon as there is room for it: one message a partition."""
        count, serialize, most = self._grid.partition_count, self._writer.serialize_key, self._most_a_partition
        groups: dict[int, list[tuple[bytes, bytes, int]]] = {}
        for each, (key, text) in enumerate(batch, position):
            data = serialize(key)
            groups.setdefault(partition_of(data, count), []).append((data, text, each))
        progress = self.progress
        if not await self._until(lambda: progress.lag + len(batch) <= MAX_UNSCORED, alive):
            return False
        for partition, group in groups.items():
            for start in range(0, len(group), most):
                part = group[start : start + most]
                fits = partial(self._fits, partition, len(part))
                if not await self._until(fits, alive):
                    return False
                keys, texts, positions = map(list, zip(*part, strict=True))
                self._unscored[partition] += len(part)
                progress.put += len(part)
                now = time.perf_counter()
                for each in positions:
                    self._put_at[each] = now
                    self._partition_of[each] = partition
                put = self._writer.put_partition(partition, keys, texts)
                self._puts.add(put)
                put.add_done_callback(self._put_done)
        return True

    def _put_done(self, put: asyncio.Future[None]) -> None:
        self._puts.discard(put)
        if not put.cancelled() and (error := put.exception()) is not None:
            self._failure = self._failure or error
            self._arrived.set()

    def _fits(self, partition: int, events: int) -> bool:
        return self._unscored[partition] + events <= self._most_a_partition

    async def _until(self, there_is_room: Callable[[], bool], alive: Callable[[], None]) -> bool:
        """Wait until there is room. Back-pressure: a source must not overrun the ring, and says that it waits."""
        if there_is_room():
            return True
        progress, began = self.progress, time.perf_counter()
        progress.waiting = f"waiting for the worker: {progress.lag:,} events are not scored yet"
        try:
            while not there_is_room():
                if not await self._next_result(alive):
                    return False
        finally:
            progress.waiting = ""
            progress.waited_seconds += time.perf_counter() - began
        return True

    async def _next_result(self, alive: Callable[[], None]) -> bool:
        """Wait for a result; False if there was none for so long that none will come."""
        deadline = time.perf_counter() + STALLED_SECONDS
        self._arrived.clear()
        while not self._arrived.is_set():
            if time.perf_counter() > deadline:
                return False
            self._raise_failure()
            alive()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._arrived.wait()
        self._raise_failure()
        return True

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _result(self, event: Any) -> None:
        """The listener. It runs for every result, on the event loop that also puts: it must be quick."""
        now = time.perf_counter()
        position = self._positions.get(event.key)
        if position is None:
            return  # somebody else's event in the same map
        progress = self.progress
        if self._seen_at[position]:
            progress.repeated += 1
            return
        result = self._decode(event.value.to_string())
        self._seen_at[position] = now
        self._score[position] = result.score
        self._version[position] = result.version
        self._unscored[self._partition_of[position]] -= 1
        progress.scored += 1
        progress.decisions[result.decision] += 1
        if len(self._recent) < _RECENT_RESULTS:
            self._recent.append(now - self._put_at[position])
        self._arrived.set()


__all__ = ["MAX_UNSCORED", "Progress", "Replay"]
