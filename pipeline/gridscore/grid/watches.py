"""One listener for each control map and connection, however many want to hear of its changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gridscore.grid import transport
from gridscore.grid.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid.connection import Grid

_T = TypeVar("_T")

READ_ANYWAY_SECONDS = 60.0
"""How often a watched map is read though no change was heard of: listeners may miss some."""


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than so many seconds; whether it has come."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


@dataclass(slots=True, eq=False)
class _Watch:
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    registering: asyncio.Future[Any] | None = None

    def call(self) -> None:
        for callback in list(self.callbacks):
            callback()


class Watches:
    """The listeners of one connection, and the callbacks of each."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._watches: dict[tuple[str, bool], _Watch] = {}
        grid.on_reconnect(self._reconnected)

    async def add(self, proxy: Any, callback: Callable[[], None], *, updates: bool) -> Callable[[], Any]:
        """Call back when an entry has come, gone or, if wanted, changed, and after a reconnect; see `Records.watch`."""
        place = (proxy.name, updates)
        watch = self._watches.setdefault(place, _Watch())
        watch.callbacks.append(callback)
        if watch.registering is None:
            watch.registering = asyncio.ensure_future(transport.listen(proxy, watch.call, updates=updates))

        async def stop() -> None:
            watch.callbacks.remove(callback)
            if not watch.callbacks and self._watches.get(place) is watch:
                del self._watches[place]
                if self._grid.is_running:
                    await proxy.remove_entry_listener(await registering)

        registering = watch.registering
        try:
            await asyncio.shield(registering)
        except BaseException:
            if self._watches.get(place) is watch and registering.done():
                del self._watches[place]
            watch.callbacks.remove(callback)
            raise
        return stop

    def _reconnected(self) -> None:
        for watch in list(self._watches.values()):
            watch.call()


class Watched(Generic[_T]):
    """What a control map holds, read only when it may have changed.

    Args:
        parse: What to make of each record.
        pause: Seconds between two reads, however much changes.
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
        """What is there, by key."""
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
