"""Copies of lookup maps, which the jobs of a process share if they want the same fields of the same map."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import GridscoreError
from gridscore.features import LookupTable
from gridscore.grid.copies import Fetcher, LiveCopy

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import Job, Lookup


@dataclass(slots=True, eq=False)
class SharedCopy:
    """A copy that several jobs may look into."""

    table: LookupTable
    copy: LiveCopy
    users: int = 0  # jobs that have started and not closed it
    starting: asyncio.Task[None] | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Lookups:
    """The copies of one process."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._copies: dict[tuple[str, int, str], SharedCopy] = {}

    def of(self, lookup: Lookup) -> SharedCopy:
        """The copy for a lookup."""
        key = (lookup.map, lookup.max_entries, repr(lookup.fields))
        if key not in self._copies:
            table = LookupTable(lookup)
            copy = LiveCopy(self._grid, lookup.map, table, max_entries=lookup.max_entries)
            self._copies[key] = SharedCopy(table, copy)
        return self._copies[key]

    async def start(self, shared: SharedCopy) -> None:
        """Return when the copy is loaded and followed; the first job loads it, the others wait.

        It raises what `LiveCopy.start` raises; close it all the same.
        """
        async with shared.changing:
            shared.users += 1
            if shared.starting is None:
                shared.starting = asyncio.create_task(shared.copy.start())
        await asyncio.shield(shared.starting)

    async def close(self, shared: SharedCopy) -> None:
        """A job that has started the copy no longer needs it; the last one ends it."""
        async with shared.changing:
            shared.users -= 1
            if not shared.users and shared.starting is not None:
                self._copies = {key: each for key, each in self._copies.items() if each is not shared}
                starting, shared.starting = shared.starting, None
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await shared.copy.close()


class JobLookups:
    """The lookups of one job: copies that it shares, and what is fetched for each batch.

    `copies`: those of mode `copy`, by name; `tables`: all, by name; `fetchers`: of those of mode `fetch`, by name.
    """

    def __init__(self, grid: Grid, job: Job, shared: Lookups) -> None:
        self._shared = shared
        self._started: list[SharedCopy] = []
        self.copies = {name: shared.of(lookup) for name, lookup in job.lookups.items() if lookup.mode == "copy"}
        self.tables = {
            name: self.copies[name].table if name in self.copies else LookupTable(lookup)
            for name, lookup in job.lookups.items()
        }
        self.fetchers = {n: Fetcher(grid, lookup.map) for n, lookup in job.lookups.items() if lookup.mode == "fetch"}

    async def start(self) -> None:
        """Return when all copies are loaded and followed; after an error, a second call goes on.

        Raises MapNotFoundError if a map does not exist; LookupTooLargeError if one has too many entries.
        """
        for copy in list(self.copies.values())[len(self._started) :]:
            self._started.append(copy)
            try:
                await self._shared.start(copy)
            except (GridscoreError, HazelcastError):
                await self._shared.close(self._started.pop())  # those before it stay loaded
                raise

    async def close(self) -> None:
        """End those that no other job needs."""
        while self._started:
            await self._shared.close(self._started.pop())
