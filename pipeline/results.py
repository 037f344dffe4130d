"""Results as an application sees them: a listener on the result map, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
from hazelcast.errors import HazelcastError

from pipeline.errors import GridError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

MAX_WAITING = 1_000_000
"""Results that may wait to be taken before the stream gives up, rather than fill the memory."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Result:
    """A score, and what goes with it.

    Attributes:
        key: Of the event and the result.
        value: Everything that the result holds, event fields that the job includes among it.
    """

    key: Any
    value: dict[str, Any]

    @property
    def score(self) -> Any:
        """What the model gave: a number, or a list of numbers for a model with several outputs."""
        return self.value["score"]

    @property
    def decision(self) -> str | None:
        """The decision by threshold; None if the job makes none."""
        return self.value.get("decision")

    @property
    def version(self) -> int:
        """Version of the model that made the score."""
        return int(self.value["version"])


class ResultStream:
    """Results as they are written, from the moment that the stream was opened; iterate it with `async for`.

    It is an entry listener: it shows every result that is written while the connection stands, and none from before it
    was opened. After a lost connection it goes on, and may have missed some.

    Attributes:
        skipped: Entries of the map that were no results: not JSON objects, or under keys that cannot be read.
    """

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid = grid
        self.map_name = map_name
        self._queue: asyncio.Queue[Result | None] = asyncio.Queue()
        self._registration: str | None = None
        self._overrun = False
        self.skipped = 0

    async def open(self) -> Self:
        """Register the listener. Results written from now on will be seen."""

        def arrived(event: Any) -> None:
            if self._queue.qsize() >= MAX_WAITING:
                self._overrun = True
                return
            try:
                result = Result(event.key, _decode(event.value.to_string()))
            except (HazelcastError, msgspec.DecodeError, AttributeError) as error:
                self.skipped += 1
                _log.warning("`%s` holds something that is no result: %s", self.map_name, error)
                return
            self._queue.put_nowait(result)

        self._registration = await listen(self._grid, self.map_name, arrived)
        return self

    async def close(self) -> None:
        """Remove the listener and end the iteration."""
        if self._registration is not None:
            registration, self._registration = self._registration, None
            if self._grid.is_running:
                await (await self._grid.map(self.map_name)).remove_entry_listener(registration)
        self._queue.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if self._overrun:
            raise GridError(
                f"More than {MAX_WAITING:,} results of `{self.map_name}` were waiting to be taken.",
                "Take them faster, or in more processes.",
            )
        result = await self._queue.get()
        if result is None:
            raise StopAsyncIteration
        return result


async def listen(grid: Grid, map_name: str, arrived: Callable[[Any], None]) -> str:
    """Call back with the entry event of every result written from now on; returns the listener's registration."""
    proxy = await grid.map(map_name)
    registration: str = await proxy.add_entry_listener(include_value=True, added_func=arrived, updated_func=arrived)
    return registration
