"""Rescans of a sink: when a partition's journal has lost results, all that the map has of it are delivered once more.

They are delivered under the sequence of the journal's end at the time: lost results are older, and later ones have
their own, later turn in the journal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

from gridscore.grid.entries import walk
from gridscore.grid.journal import Journal
from gridscore.group.offsets import NotNowError
from gridscore.group.rescan import Event, page_of

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.group.group import Group
    from gridscore.group.reader import Cursor
    from gridscore.sinks.records import SinkStats

_PAGE = 512
_AHEAD_PAGES = 4
_WAIT_SECONDS = 0.1


class DeliverAgain:
    """Appends what the map has of a partition to what has arrived of it."""

    def __init__(self, grid: Grid, map_name: str, group: Group, stats: SinkStats) -> None:
        self._grid, self._map_name, self._group = grid, map_name, group
        self._stats = stats
        self._journal = Journal(grid, map_name)
        self._delivered: Counter[Cursor] = Counter()

    def delivered(self, cursor: Cursor, pages: int) -> None:
        """So many pages of a rescan were delivered."""
        self._delivered[cursor] += pages

    async def rescan(self, partition: int) -> None:
        """Return when everything that the map has of a partition was delivered.

        Raises NotNowError if it is no longer ours.
        """
        group = self._group
        cursor = group.cursor(partition)
        if cursor is None:
            raise NotNowError
        put, before = 0, self._delivered[cursor]
        # A result that is written meanwhile has its own turn; what was found under its key must not follow it.
        with group.note_keys(partition) as arrived:
            _, newest = await self._journal.bounds(partition)
            async with aclosing(walk(self._grid, self._map_name, partition, _PAGE)) as pages:
                async for entries in pages:
                    found = [Event(*entry) for entry in entries if entry[0] not in arrived]
                    if not found:
                        continue
                    if not cursor.is_current or not group.insert(partition, page_of(found, newest)):
                        raise NotNowError
                    put += 1
                    self._stats.rescued += len(found)
                    await self._wait(cursor, before + put - _AHEAD_PAGES)
        await self._wait(cursor, before + put)
        del self._delivered[cursor]

    async def _wait(self, cursor: Cursor, pages: int) -> None:
        """Return when this many pages were delivered."""
        while self._delivered[cursor] < pages:
            if not cursor.is_current:
                del self._delivered[cursor]
                raise NotNowError
            await asyncio.sleep(_WAIT_SECONDS)
