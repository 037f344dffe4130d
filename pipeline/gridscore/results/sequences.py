"""Sequences of events that were just put, looked up in the journal of their map."""

from __future__ import annotations

import asyncio
from itertools import repeat
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.grid.journal import Journal
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gridscore.grid import Grid

LOOK_BACK = 1_024  # how many of the newest entries of a partition to search
# Most to read for callers from outside, besides four times the size of the events that they ask for.
READ_BYTES = 1 << 20

_FIRST_PAGE, _LARGEST_PAGE = 4, 16  # entries of a read, which has no limit in bytes: the next entry may always be large


async def sequences_of(
    grid: Grid, events: str, entries: Sequence[tuple[bytes, bytes]], max_bytes: int | None = None
) -> list[int | None]:
    """The sequence of the newest journal entry of each event that has been put.

    None if it was not found: it was overwritten, or `max_bytes` were read before. Each partition is read once for all
    its events, newest entries first, and only some reads of a connection are under way at once.

    `entries`: serialized key and text of each; `max_bytes`: how much to read for all; the last read may exceed it.
    Raises JournalMissingError if the map has no journal.
    """
    wanted: dict[int, dict[tuple[bytes, bytes], None]] = {}
    for entry in entries:
        wanted.setdefault(partition_of(entry[0], grid.partition_count), {})[entry] = None
    search = _Search(grid, events, max_bytes)
    looks = [search.look_through(partition, missing) for partition, missing in wanted.items()]
    for error in await asyncio.gather(*looks, return_exceptions=True):
        if isinstance(error, HazelcastError):
            raise GridError(f"The journal of `{events}` could not be read: {error}") from error
        if error is not None:
            raise error
    return [search.found.get(entry) for entry in entries]


class _Search:
    """A search for events in one journal."""

    def __init__(self, grid: Grid, events: str, max_bytes: int | None) -> None:
        self._journal, self._reading = Journal(grid, events), grid.searches
        self._left = float("inf") if max_bytes is None else max_bytes
        self._mean = 0.0  # bytes of an entry
        self.found: dict[tuple[bytes, bytes], int] = {}

    async def look_through(self, partition: int, missing: dict[tuple[bytes, bytes], None]) -> None:
        """Find events in one partition."""
        async with self._reading:
            oldest, newest = await self._journal.bounds(partition)
        oldest, end = max(oldest, newest + 1 - LOOK_BACK), newest + 1
        for size in _page_sizes():
            async with self._reading:
                if not missing or end <= oldest or self._left <= 0:
                    return
                count = max(1, min(size, end - oldest, int(min(size, self._left / max(1.0, self._mean)))))
                await self._read(partition, end - count, end, missing)
            end -= count

    async def _read(self, partition: int, start: int, end: int, missing: dict[tuple[bytes, bytes], None]) -> None:
        met: dict[tuple[bytes, bytes], int] = {}
        while start < end:
            page = await self._journal.read(partition, start, end - start)
            if page is None:
                break
            self._left -= page.size
            self._mean = page.size / max(1, page.next - max(page.first, start))
            for entry in zip(page.keys, page.values, page.sequences, strict=True):
                if entry[:2] in missing:
                    met[entry[:2]] = entry[2]
            start = page.next
        for each, sequence in met.items():
            del missing[each]
            self.found[each] = sequence


def _page_sizes() -> Iterator[int]:
    size = _FIRST_PAGE
    while size < _LARGEST_PAGE:
        yield size
        size *= 2
    yield from repeat(_LARGEST_PAGE)
