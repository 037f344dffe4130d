"""The event journal of a map: what was put into each partition, in order."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError, UnsupportedOperationError

from gridscore.errors import GridError, JournalMissingError
from gridscore.grid import transport, wire
from gridscore.grid.management import first_config

if TYPE_CHECKING:
    from gridscore.grid.connection import Grid
    from gridscore.grid.wire import Page


class _Parked:
    """A read that waits at the member, and the futures that wait for it here."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: set[asyncio.Future[Page | None]] = set()

    def wait(self) -> asyncio.Future[Page | None]:
        future: asyncio.Future[Page | None] = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        future.add_done_callback(self.waiting.discard)
        return future

    def answer(self, done: asyncio.Future[Page | None]) -> None:
        error = None if done.cancelled() else done.exception()
        for future in list(self.waiting):
            if future.done():
                continue
            if done.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())


class Journal:
    """Reads the journal of one map.

    Entries may have been overwritten: compare `Page.first` with the sequence that you asked for.
    """

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid = grid
        self._client = grid.client
        self._parked: dict[tuple[str, int, int], _Parked] = grid.parked_reads
        self.map_name = map_name

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Oldest and newest sequence of a partition; the newest is one less than the oldest if it is empty.

        Raises JournalMissingError if the map has no journal.
        """
        await self._require()
        try:
            oldest, newest = await transport.invoke(
                self._client, wire.encode_subscribe(self.map_name), partition, wire.decode_subscribe
            )
        except UnsupportedOperationError:
            raise journal_missing(self.map_name) from None
        except HazelcastError as error:
            raise GridError(f"The journal of `{self.map_name}` could not be read: {error}") from error
        return oldest, newest

    @property
    def ring(self) -> int | None:
        """Entries that the ring of one partition holds by configuration; None if that is not known (yet)."""
        total = self._grid.journalled.get(self.map_name)
        return None if total is None else max(1, total // self._grid.partition_count)

    async def _require(self) -> None:
        """Refuse a map whose configuration has no journal, before any request names the map.

        A request creates the map with its present configuration. A later one, by `prepare`, would reach only the
        members that were not asked.
        """
        grid = self._grid
        if self.map_name in grid.journalled:
            return
        if grid.config_look is None or grid.config_look.done():  # one look serves all partitions
            grid.config_look = asyncio.ensure_future(first_config(grid))
        config = await asyncio.shield(grid.config_look)
        if config is not None and config.map(self.map_name).journal_capacity is None:
            raise journal_missing(self.map_name)
        grid.journalled[self.map_name] = None if config is None else config.map(self.map_name).journal_capacity

    def read(self, partition: int, start: int, max_size: int) -> asyncio.Future[Page | None]:
        """Read from a sequence on; waits at the member until there is something to read.

        The member keeps a waiting read until something is put: nothing but the connection's end cancels it. So reads of
        the same sequence share one request, and a request that nobody wants any more (cancel the future) is there for
        the next. The page begins at `start`, unless that was overwritten (then later) or never written (then earlier).

        `max_size`: events at most. There is no limit in bytes, so keep it modest.
        """
        key = (self.map_name, partition, start)
        parked = self._parked.get(key)
        if parked is None:
            parked = self._parked[key] = _Parked()
            message = wire.encode_read(self.map_name, start, 1, max_size)
            future = transport.invoke(self._client, message, partition, wire.decode_read)
            future.add_done_callback(partial(self._answered, key, parked))
        return parked.wait()

    async def held(self, partition: int, begin: int, most: int) -> Page | None:
        """Entries from a sequence on, or None if the ring does not hold that; unlike `read`, it never waits for a put.

        Raises JournalMissingError if the map has no journal.
        """
        oldest, newest = await self.bounds(partition)
        return await self.read(partition, begin, most) if oldest <= begin <= newest else None

    async def newest(self, partition: int, most: int) -> Page | None:
        """The newest entries of a partition, or None if there are none; as `held`, it never waits."""
        oldest, newest = await self.bounds(partition)
        return await self.read(partition, max(oldest, newest - most + 1), most) if oldest <= newest else None

    def _answered(self, key: tuple[str, int, int], parked: _Parked, done: asyncio.Future[Page | None]) -> None:
        del self._parked[key]
        parked.answer(done)


def journal_missing(map_name: str) -> JournalMissingError:
    """The error for a map without a journal."""
    return JournalMissingError(
        f"The map `{map_name}` has no event journal, so nothing that is put into it can be seen in order.",
        "If nothing has been put into it yet, `gridscore prepare JOB_FILE` gives it one, without a restart. Otherwise "
        "name another map; or configure one in the members' hazelcast.yaml (`events.*` in ours) and restart them.",
    )
