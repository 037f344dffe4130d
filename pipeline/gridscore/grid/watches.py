"""Control maps that are read only when they may have changed; and waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from gridscore.grid.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid.connection import Grid

_T = TypeVar("_T")

READ_ANYWAY_SECONDS = 60.0  # how often a watched map is read though no change was heard of: listeners may miss some


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than so many seconds; whether it has come."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Watched(Generic[_T]):
    """What a control map holds, read only when it may have changed.

    `parse`: what to make of each record; `pause`: seconds between two reads, however much changes.
    """

    def __init__(self, grid: Grid, map_name: str, parse: Callable[[Record], _T], pause: float) -> None:
        self._grid = grid
        self._records = Records(grid, map_name)
        self._parse = parse
        self._found: dict[str, _T] = {}
        self._pause = pause
        self._read_at = float("-inf")
        self._has_changed = True
        self._reading = asyncio.Lock()
        self._is_watching = False

    async def read(self) -> dict[str, _T]:
        async with self._reading:
            if not self._is_watching:
                await self._records.watch(self._changed)
                self._is_watching = True
            age = self._grid.clock() - self._read_at
            if age >= self._pause and (self._has_changed or age > READ_ANYWAY_SECONDS):
                self._has_changed = False  # before it is read: what changes meanwhile is read again
                try:
                    self._found = await self._records.read(self._parse)
                except BaseException:
                    self._has_changed = True
                    raise
                self._read_at = self._grid.clock()
        return self._found

    def _changed(self) -> None:
        self._has_changed = True
