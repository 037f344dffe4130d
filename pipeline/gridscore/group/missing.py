"""Events without a result: found in the event map itself, a partition at a time, whatever the journal still has.

Dead letters are not missing results: an event that is one, with the same bytes, is left out.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from gridscore.dead_letters.letters import MAX_RAW, walk_letters
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk
from gridscore.group.standing import results_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from gridscore.grid import Grid
    from gridscore.job import Job

_PAGE = 512


class Event(NamedTuple):
    """An entry of the event map: serialized key and value."""

    key: bytes
    value: bytes


class Rejection(NamedTuple):
    """What tells a dead letter's event: its key, and a checksum of its bytes as far as they are kept."""

    key: bytes
    checksum: int


async def rejections(grid: Grid, job: Job) -> set[Rejection]:
    """The events that are dead letters of a job.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    return {Rejection(dead.key_bytes, zlib.crc32(dead.raw_bytes)) async for _, dead in walk_letters(grid, job.name)}


async def without_result(
    grid: Grid, job: Job, partition: int, rejected: Collection[Rejection]
) -> AsyncIterator[list[Event]]:
    """Events of a partition that have no result now, a page of the event map at a time; pages may be empty.

    They may only wait for their turn in the journal.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    async for entries in walk(grid, job.events, partition, _PAGE):
        results = await results_of(grid, job.results, partition, [key for key, _ in entries])
        yield _kept([Event(*entry) for entry in entries if entry[0] not in results], rejected)


async def still_without_result(
    grid: Grid, job: Job, partition: int, events: list[Event], rejected: Collection[Rejection]
) -> list[Event]:
    """Those of some events that have no result now and are in the event map, with the values they have now.

    The values are read last of all: what is put under the same key later comes behind them in the journal, too.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    keys = [event.key for event in events]
    results = await results_of(grid, job.results, partition, keys)
    now = await values_of(grid, job.events, partition, [key for key in keys if key not in results])
    return _kept([Event(*entry) for entry in now.items()], rejected)


def _kept(events: list[Event], rejected: Collection[Rejection]) -> list[Event]:
    return [event for event in events if not rejected or rejection_of(event) not in rejected]


def rejection_of(event: Event) -> Rejection:
    """What would tell an event among the dead letters."""
    return rejection_of_raw(event.key, payload(event.value) or event.value)


def rejection_of_raw(key: bytes, raw: bytes) -> Rejection:
    """The same, of an event's serialized key and its bytes."""
    return Rejection(key, zlib.crc32(raw[:MAX_RAW]))
