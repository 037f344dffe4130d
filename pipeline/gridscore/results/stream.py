"""Results as an application sees them: one after the other, filtered, from any position on, without gaps."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from gridscore.errors import GridError, UsageError
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import walk
from gridscore.results.follower import Follower
from gridscore.texts import html_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from gridscore.grid import Grid
    from gridscore.group.reader import Arrival

_log = logging.getLogger(__name__)

MAX_WAITING = 1_000_000  # results that may wait in an entry listener before it gives up, rather than fill the memory
# Where a stream begins: with what is written from now on, with the oldest result still there, or at a `position`.
Start = Literal["latest", "oldest"] | dict[str, Any]

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Result:
    """A score, and what goes with it.

    Attributes:
        value: Everything that the result holds, with the event fields that the job includes.
    """

    key: Any
    value: dict[str, Any]

    def _repr_html_(self) -> str:
        return html_table({"key": self.key} | self.value)

    @property
    def score(self) -> Any:
        """What the model gave: a number, or a list of numbers for a model with several outputs."""
        return self.value["score"]

    @property
    def label(self) -> str | None:
        """The class that the model takes it for; None if the job names no classes."""
        return self.value.get("label")

    @property
    def decision(self) -> str | None:
        """The decision by threshold; None if the job makes none."""
        return self.value.get("decision")

    @property
    def version(self) -> int:
        """Version of the model that made the score."""
        return int(self.value["version"])

    @property
    def revision(self) -> int | None:
        """Revision of the job that made it; None in results of old Gridscore versions."""
        return self.value.get("revision")


class ResultStream:
    """Results as they are written; iterate it with `async for`, or give it a callback.

    It reads the journals of the result map, and misses no result that they still hold: after a lost connection, the
    death of a member, or a restart of the application with the `position` that it has kept, it goes on where it was.
    Results of one key come in the order in which they were written. Results that are not taken stay in the cluster;
    those overwritten there before they were read are counted in `lost`.

    With `journal=False` it is a plain entry listener, for a map without a journal: it shows what is written while the
    connection lasts, may miss some when that is lost, and has no position.

    Args:
        start: Where to begin: see `Start`.
        where: Which results are wanted: values that fields must have, or a function of a result.
        on_result: Called with every result, one at a time; may be a coroutine function. Then the stream is not
            iterated; `finished` waits for its end.
        journal: Whether to read the journals.
    """

    def __init__(
        self,
        grid: Grid,
        map_name: str,
        *,
        start: Start = "latest",
        where: Mapping[str, Any] | Callable[[Result], bool] | None = None,
        on_result: Callable[[Result], Any] | None = None,
        journal: bool = True,
    ) -> None:
        self.map_name, self._grid = map_name, grid
        self._wanted = _predicate(where)
        self._on_result = on_result
        self._calling: asyncio.Task[None] | None = None
        self._journal: _JournalFeed | None = None
        self._feed: _JournalFeed | _ListenerFeed
        if journal:
            self._feed = self._journal = _JournalFeed(grid, map_name, start)
        elif start != "latest":
            raise UsageError("An entry listener can only begin with what is written from now on.")
        else:
            self._feed = _ListenerFeed(grid, map_name)
        self._closed = False

    @property
    def skipped(self) -> int:
        """Entries that are not results: not JSON objects, or with keys that cannot be read."""
        return self._feed.skipped

    @property
    def lost(self) -> int:
        """Results that were overwritten in the journals before they were read. An entry listener cannot know."""
        return 0 if self._journal is None else self._journal.follower.lost

    @property
    def regressions(self) -> int:
        """How often a journal has begun again because the result map lost writes: some results may be missing."""
        return 0 if self._journal is None else self._journal.follower.regressions

    @property
    def position(self) -> dict[str, Any]:
        """The position after the last result that was taken; can be written as JSON, and given as `start`.

        Keep it when that result has been dealt with: a restart then begins with the next one.

        Raises:
            UsageError: It is an entry listener.
        """
        if self._journal is None:
            raise UsageError("An entry listener has no position.", "Read a map with a journal.")
        return {"map": self.map_name, "sequences": list(self._journal.follower.positions)}

    async def open(self) -> Self:
        """Begin. Results written from now on will be seen.

        Raises:
            JournalMissingError: The map has no journal.
            UsageError: The position is not of this map, or of another cluster.
        """
        await self._feed.open()
        if self._on_result is not None:
            self._calling = asyncio.get_running_loop().create_task(self._call(self._on_result))
        return self

    async def close(self) -> None:
        """End the iteration, or the callbacks: the one that is under way is cancelled."""
        self._closed = True
        await self._feed.close()
        if self._calling is not None and self._calling is not asyncio.current_task():
            self._calling.cancel()
            await asyncio.wait([self._calling])

    async def to_frame(self, limit: int = 1_000_000) -> pd.DataFrame:
        """The results that the map holds now, whatever the stream has seen: a row a key, a column a field.

        Args:
            limit: Most rows, since all of them come into memory.

        Raises:
            UsageError: There are more.
        """
        from gridscore.results.frames import frame_of

        grid, wanted = self._grid, self._wanted
        await grid.require_map(self.map_name)
        found: dict[Any, dict[str, Any]] = {}
        for partition in range(grid.partition_count):
            async for entries in walk(grid, self.map_name, partition, 1_000):
                for data, text in entries:
                    try:
                        result = Result(transport.to_object(grid.client, data), _decode(payload(text)))
                    except Exception:  # noqa: BLE001, S112 -- as of a journal
                        continue
                    if wanted is None or wanted(result):
                        found[result.key] = result.value
                if len(found) > limit:
                    raise UsageError(
                        f"`{self.map_name}` holds more than {limit:,} results.",
                        "Give a larger `limit`, or fewer results: `where`.",
                    )
        return frame_of(list(found), list(found.values()))

    async def finished(self) -> None:
        """Wait until the stream was closed, or a callback failed.

        Raises:
            Exception: What the callback raised. The stream's position is behind the result that it got.
            GridError: The connection was closed.
        """
        if self._calling is None:
            raise UsageError("Only a stream with a callback (`on_result`) can be waited for.")
        await asyncio.wait([self._calling])
        if not self._calling.cancelled():
            self._calling.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        wanted = self._wanted
        while not self._closed:
            result = await self._feed.next()
            if result is None:
                break
            if wanted is None or wanted(result):
                return result
        raise StopAsyncIteration

    async def _call(self, on_result: Callable[[Result], Any]) -> None:
        try:
            async for result in self:
                answer = on_result(result)
                if inspect.isawaitable(answer):
                    await answer
        except Exception:
            # A caller that does not wait for the end should still find out.
            _log.exception("Results of `%s` are no longer listened to", self.map_name, extra={"action": "callback"})
            await self._feed.close()
            raise


def _predicate(where: Mapping[str, Any] | Callable[[Result], bool] | None) -> Callable[[Result], bool] | None:
    if not where:
        return None
    if callable(where):
        return where
    wanted = tuple(where.items())
    missing = object()

    def matches(result: Result) -> bool:
        value = result.value
        return all(value.get(name, missing) == each for name, each in wanted)

    return matches


class _JournalFeed:
    """Results from the journals of a map."""

    def __init__(self, grid: Grid, map_name: str, start: Start) -> None:
        self._grid, self._start = grid, start
        self.follower = Follower(grid, map_name)
        self._arrivals: deque[Arrival] = deque()
        self._index = 0  # in the first of them
        self.skipped = 0

    async def open(self) -> None:
        await self.follower.open(self._first())

    def _first(self) -> str | list[int]:
        start = self._start
        if isinstance(start, str):
            if start not in ("latest", "oldest"):
                raise UsageError(f"A stream cannot start at `{start}`.", "Use `latest`, `oldest`, or a position.")
            return start
        sequences, count = start.get("sequences"), self._grid.partition_count
        if start.get("map") != self.follower.map_name or not isinstance(sequences, list):
            raise UsageError(
                f"This is not a position of `{self.follower.map_name}`.", "Give what `position` has given."
            )
        if len(sequences) != count or not all(type(each) is int and each >= 0 for each in sequences):
            raise UsageError(f"The position is of another cluster: this one has {count} partitions.")
        return sequences

    async def next(self) -> Result | None:
        """The next result; None when it was closed."""
        while True:
            while self._arrivals:
                result = self._from_page()
                if result is not None:
                    return result
            try:
                self._arrivals.extend(await self.follower.take())
            except GridError:
                if self.follower.closed:
                    return None
                raise

    def _from_page(self) -> Result | None:
        """The next result of the first page; None if it holds no more."""
        arrival, page = self._arrivals[0], self._arrivals[0].page
        while self._index < len(page.keys):
            index = self._index
            self._index += 1
            self.follower.move(arrival, page.sequences[index] + 1)
            if index in page.foreign:
                self._skip(f"a value of the Hazelcast type {page.foreign[index]}")
                continue
            try:
                key, value = transport.to_object(self._grid.client, page.keys[index]), _decode(page.values[index])  # noqa: PD011 -- not of pandas
            except Exception as error:  # noqa: BLE001 -- of keys the client raises anything, and no entry may end us
                self._skip(error)
                continue
            return Result(key, value)
        self.follower.move(arrival, page.next)
        self._arrivals.popleft()
        self._index = 0
        return None

    def _skip(self, what: object) -> None:
        self.skipped += 1
        _log.warning("`%s` holds something that is not a result: %s", self.follower.map_name, what)

    async def close(self) -> None:
        self.follower.close()


class _ListenerFeed:
    """Results from an entry listener."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self._map_name = grid, map_name
        self._queue: asyncio.Queue[Result | None] = asyncio.Queue()
        self._registration: str | None = None
        self._overrun = False
        self.skipped = 0

    async def open(self) -> None:
        self._registration = await listen(self._grid, self._map_name, self._arrived)

    def _arrived(self, event: Any) -> None:
        if self._queue.qsize() >= MAX_WAITING:
            self._overrun = True
            return
        try:
            result = Result(event.key, _decode(event.value.to_string()))
        except Exception as error:  # noqa: BLE001 -- as of the journal
            self.skipped += 1
            _log.warning("`%s` holds something that is not a result: %s", self._map_name, error)
            return
        self._queue.put_nowait(result)

    async def next(self) -> Result | None:
        if self._overrun:
            raise GridError(
                f"More than {MAX_WAITING:,} results of `{self._map_name}` were waiting to be taken.",
                "Take them faster, or in more processes.",
            )
        return await self._queue.get()

    async def close(self) -> None:
        if self._registration is not None:
            registration, self._registration = self._registration, None
            if self._grid.is_running:
                await (await self._grid.map(self._map_name)).remove_entry_listener(registration)
        self._queue.put_nowait(None)


async def listen(grid: Grid, map_name: str, arrived: Callable[[Any], None]) -> str:
    """Call back with the entry event of every result written from now on; returns the listener's registration."""
    proxy = await grid.map(map_name)
    registration: str = await proxy.add_entry_listener(include_value=True, added_func=arrived, updated_func=arrived)
    return registration
