"""Live local copies of lookup maps: loaded once, kept current by a listener, checked, and loaded again when in doubt.

Hazelcast's listeners may miss events around a reconnect (hazelcast#8847, #12857). A copy is therefore loaded again
after every reconnect, and whenever its size is not the map's; in place, so that no reader sees a half-empty table.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, LookupTooLargeError
from gridscore.grid import transport, wire
from gridscore.grid.cutting import JSON, STRING
from gridscore.grid.entries import walk
from gridscore.grid.watches import wait_for
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from gridscore.grid.connection import Grid

_log = logging.getLogger(__name__)

_LOAD_BATCH = 4_096
_LOAD_CONCURRENCY = 16
_SPREAD_SECONDS = 10.0


class Table(Protocol):
    """What a copy fills: the entries of one map by key."""

    def put(self, key: Any, payload: bytes) -> None:
        """Take an entry; the payload is what `payload` made of its value."""

    def remove(self, key: Any) -> None:
        """Forget an entry, if it is there."""

    def keys(self) -> Iterable[Any]:
        """The keys held now."""

    def __len__(self) -> int:
        """Number of entries held."""


class LiveCopy:
    """A copy of a whole map in a table of this process."""

    def __init__(
        self,
        grid: Grid,
        map_name: str,
        table: Table,  # what to fill; only the event loop touches it
        *,
        max_entries: int,  # entries that it may hold
        verify_seconds: float = 5.0,  # pause between two comparisons of its size with the map's
        reload_seconds: float = 600.0,  # age of the last load at which the map is loaded again, whatever the sizes say
    ) -> None:
        self._grid, self.map_name, self._table = grid, map_name, table
        self._max_entries, self._verify_seconds = max_entries, verify_seconds
        self._reload_seconds = reload_seconds
        self._touched: set[Any] | None = None  # keys changed while loading, by the listener
        self._doubt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._registration: str | None = None
        self._stops: list[Callable[[], None]] = []
        self._loaded_at = 0.0
        self.loads = 0
        self.changes = 0
        self.trouble = ""  # why it could not be checked the last time

    @property
    def age(self) -> float:
        """Seconds since the copy surely held what the map held: since its load, for equal sizes prove nothing."""
        return time.monotonic() - self._loaded_at

    async def start(self) -> None:
        """Load the map and begin to follow it.

        Raises MapNotFoundError if there is no such map; LookupTooLargeError if it has more entries than the copy may
        hold.
        """
        await self._grid.require_map(self.map_name)
        self._stops.append(self._grid.on_reconnect(self._reconnected))
        try:
            # A map that is refilled to the same size would look unchanged.
            self._stops.append(await self._grid.on_destroyed(self.map_name, self._doubt.set))
            await self._load()
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._follow(), name=f"copy of {self.map_name}")

    async def _listen(self) -> None:
        """Register a new listener: the old one of a map that was destroyed hears nothing more."""
        proxy, before = await self._grid.map(self.map_name), self._registration
        self._registration = await proxy.add_entry_listener(
            include_value=True,
            added_func=self._put,
            updated_func=self._put,
            loaded_func=self._put,
            removed_func=self._removed,
            evicted_func=self._removed,
            expired_func=self._removed,
            clear_all_func=self._all_gone,
            evict_all_func=self._all_gone,
        )
        if before is not None:
            await proxy.remove_entry_listener(before)

    def _reconnected(self) -> None:
        """Load again, but not at the same moment as all other processes that lost the member."""
        asyncio.get_running_loop().call_later(random.uniform(0, _SPREAD_SECONDS), self._doubt.set)  # noqa: S311

    async def close(self) -> None:
        """Stop following the map."""
        while self._stops:
            self._stops.pop()()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._registration is not None and self._grid.is_running:
            registration, self._registration = self._registration, None
            try:
                await (await self._grid.map(self.map_name)).remove_entry_listener(registration)
            except HazelcastError:
                _log.debug("The listener on %s could not be removed", self.map_name, exc_info=True)

    async def _follow(self) -> None:
        while True:
            await wait_for(self._doubt, self._verify_seconds)
            try:
                await self._check()
            except Exception as error:  # noqa: BLE001 -- a copy that is no longer checked would grow stale unseen
                text = str(error) or type(error).__name__
                if text != self.trouble:  # tried every second, perhaps for hours
                    _log.warning(
                        "The copy of `%s` could not be checked, it is %.0f s old: %s",
                        self.map_name,
                        self.age,
                        text,
                        extra={"action": "copy_stale"},
                    )
                self.trouble = text
                self._doubt.set()
                await asyncio.sleep(1.0)
            else:
                self.trouble = ""

    async def _check(self) -> None:
        asked_at = time.monotonic()
        if not self._doubt.is_set() and asked_at - self._loaded_at < self._reload_seconds:
            changes = self.changes
            size = await (await self._grid.map(self.map_name)).size()
            if size == len(self._table):
                return
            if changes != self.changes:
                return  # it is changing now: compare again next time
            _log.warning(
                "The copy of `%s` has %d entries, the map %d: loading it again",
                self.map_name,
                len(self._table),
                size,
                extra={"action": "copy_differs"},
            )
        self._doubt.clear()
        await self._load()

    async def _load(self) -> None:
        began = time.monotonic()
        await self._refuse_if_too_large(await (await self._grid.map(self.map_name)).size())
        # First the listener, then the load: no change in between is missed.
        await self._listen()
        self._touched = set()
        seen: set[Any] = set()
        limit = asyncio.Semaphore(_LOAD_CONCURRENCY)

        async def load(partition: int) -> None:
            async with limit:
                await self._load_partition(partition, seen)

        try:
            async with asyncio.TaskGroup() as group:
                for partition in range(self._grid.partition_count):
                    group.create_task(load(partition))
        except ExceptionGroup as failures:
            error = failures.exceptions[0]
            if isinstance(error, HazelcastError):
                raise GridError(f"The lookup map `{self.map_name}` could not be loaded: {error}") from error
            raise error from None
        finally:
            touched, self._touched = self._touched, None
        for key in [key for key in self._table.keys() if key not in seen and key not in touched]:  # noqa: SIM118
            self._table.remove(key)
        self.loads += 1
        self._loaded_at = began

    async def _load_partition(self, partition: int, seen: set[Any]) -> None:
        table = self._table
        async for entries in walk(self._grid, self.map_name, partition, _LOAD_BATCH):
            for key_data, value_data in entries:
                key = self._key(key_data)
                seen.add(key)
                # What the listener has said meanwhile is newer than what we load.
                if self._touched is None or key not in self._touched:
                    table.put(key, payload(value_data))
            await self._refuse_if_too_large(len(seen))

    def _key(self, data: bytes) -> Any:
        try:
            return transport.to_object(self._grid.client, data)
        except HazelcastError:
            return data  # unreadable: no event has such a key, but the entry counts

    async def _refuse_if_too_large(self, size: int) -> None:
        if size > self._max_entries:
            raise LookupTooLargeError(
                f"The lookup map `{self.map_name}` has {size:,} entries, more than the {self._max_entries:,} that a "
                "local copy may hold.",
                "Raise `max_entries` of the lookup if every worker has the memory, or set `mode: fetch` to look up "
                "each batch's keys in the grid.",
            )

    def _put(self, event: Any) -> None:
        self.changes += 1
        try:
            key, text = event.key, _text(event.value)
        except HazelcastError:
            return  # unreadable; the next check counts it
        if self._touched is not None:
            self._touched.add(key)
        if len(self._table) < self._max_entries:
            self._table.put(key, text)
        else:
            # The next check finds that the sizes differ, and fails with the reason.
            self._table.remove(key)

    def _removed(self, event: Any) -> None:
        self.changes += 1
        try:
            key = event.key
        except HazelcastError:
            return
        if self._touched is not None:
            self._touched.add(key)
        self._table.remove(key)

    def _all_gone(self, _event: object) -> None:
        # Members do not order this event and those of keys: later puts may have arrived before it. So load again.
        self.changes += 1
        self._doubt.set()


def payload(value_data: bytes) -> bytes:
    """JSON text of a serialized value; empty if it is neither JSON nor a string."""
    if len(value_data) >= 12 and wire.type_of(value_data) in (JSON, STRING):
        return value_data[12:]
    return b""


def _text(value: Any) -> bytes:
    if hasattr(value, "to_string"):
        value = value.to_string()
    return value.encode() if isinstance(value, str) else b""


class Fetcher:
    """Looks up the keys of one batch in the grid, for maps too big to copy; keeps nothing between batches."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self.map_name = grid, map_name

    def fetch(self, keys: Iterable[Any]) -> Awaitable[list[tuple[Any, bytes]]]:
        """Entries of the keys that exist, one call a partition."""
        client, count = self._grid.client, self._grid.partition_count
        by_data: dict[bytes, Any] = {}
        by_partition: dict[int, list[bytes]] = {}
        for key in keys:
            for data in transport.key_forms(client, key):
                by_data[data] = key
                by_partition.setdefault(partition_of(data, count), []).append(data)
        calls = [
            transport.invoke(client, wire.encode_get_all(self.map_name, group), partition, wire.decode_get_all)
            for partition, group in by_partition.items()
        ]
        return self._collect(calls, by_data)

    async def _collect(self, calls: Sequence[Awaitable[Any]], by_data: dict[bytes, Any]) -> list[tuple[Any, bytes]]:
        answers = await asyncio.gather(*calls)
        return [(by_data[key], payload(value)) for entries in answers for key, value in entries]
