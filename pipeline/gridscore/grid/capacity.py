"""How many events the journal of a map holds: as configured, or what can be seen of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from gridscore.errors import JournalMissingError
from gridscore.grid.journal import Journal
from gridscore.grid.management import first_config

if TYPE_CHECKING:
    from gridscore.grid.connection import Grid

DEFAULT_CAPACITY = 10_000  # what Hazelcast gives a journal whose capacity is not configured, shared by all partitions
_ENTRY_BYTES = (50, 250)  # what an entry of 90 bytes costs in a full ring, while the map still has it, and after


def journal_bytes(capacity: int, replicas: int) -> tuple[int, int]:
    """Bytes of heap that a full journal takes over all members, for events of 90 bytes: from, to.

    Hazelcast shows them nowhere. The map and the journal share the bytes of an event that both have.
    """
    least, most = _ENTRY_BYTES
    return least * capacity * replicas, most * capacity * replicas


class Source(StrEnum):
    """How a capacity is known."""

    CONFIGURED = "configured"
    SEEN = "seen"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Capacity of the journal of one map."""

    partition: int  # entries that the ring of each partition holds; older ones are overwritten
    partitions: int
    # The members' configuration; a full ring; or an assumption, the larger of Hazelcast's default and what a ring holds
    # now, which may be less than the truth and is never more.
    source: Source

    @property
    def total(self) -> int:
        """Entries that all partitions hold together."""
        return self.partition * self.partitions


async def journal_entries(grid: Grid, map_name: str) -> int:
    """How many entries the journal of a map got so far, those included that were overwritten."""
    journal = Journal(grid, map_name)
    bounds = await asyncio.gather(*(journal.bounds(partition) for partition in range(grid.partition_count)))
    return sum(newest + 1 for _, newest in bounds)


async def journal_capacity(grid: Grid, map_name: str, *, most: int | None = None) -> Capacity | None:
    """Capacity of the journal of a map; None if the map has none.

    If only Management Center may see the configuration (`management-center.trusted-interfaces`), the bounds of the
    journals are read instead: a ring that has dropped its oldest entries is full, and so shows its size.

    `most`: how many partitions to look at, spread over all; what is found may then be less.
    """
    count = grid.partition_count
    config = await first_config(grid)
    if config is not None:
        capacity = config.map(map_name).journal_capacity
        return None if capacity is None else Capacity(max(1, capacity // count), count, Source.CONFIGURED)
    journal = Journal(grid, map_name)
    try:
        asked = range(0, count, -(-count // most) if most else 1)
        bounds = await asyncio.gather(*(journal.bounds(partition) for partition in asked))
    except JournalMissingError:
        return None
    full = [newest - oldest + 1 for oldest, newest in bounds if oldest > 0]
    if full:
        return Capacity(max(1, *full), count, Source.SEEN)
    held = max(newest - oldest + 1 for oldest, newest in bounds)
    return Capacity(max(1, DEFAULT_CAPACITY // count, held), count, Source.ASSUMED)
