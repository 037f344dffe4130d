"""What stands already: events whose results somebody has written before us, and has not committed.

After a crash, or a write whose fate is unknown, events are read a second time. Those that have their result are passed
over, so that listeners do not see it twice. A result stands if it is from the same sequence of the journal, or from a
later one of the same key; a result from before the journal began again says nothing.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import msgspec

from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of
from gridscore.grid.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.job import JobRecord

_PAGE_EVENTS = 256


class ResultOrigin(msgspec.Struct):
    """Which event a result is of, and when it was made.

    Attributes:
        sequence: Of the event; -1 if it was found in the map.
        epoch: Of the lease that it was written under.
        scored_at: Milliseconds since 1970.
    """

    sequence: int = -2
    epoch: int = -1
    scored_at: int = 0


_decode = msgspec.json.Decoder(ResultOrigin).decode


async def results_of(grid: Grid, map_name: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, ResultOrigin]:
    """Origins of the results that exist under serialized keys of one partition."""
    found = {}
    for key, value in (await values_of(grid, map_name, partition, keys)).items():
        try:
            found[key] = _decode(payload(value))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found[key] = ResultOrigin()  # something stands there, and it is not one of our results
    return found


async def without_standing(grid: Grid, map_name: str, partition: int, page: Page, origin: int) -> Page:
    """A page without the events whose results stand.

    Args:
        map_name: The result map.
        partition: Of the page.
        origin: Epoch since which sequences are those of the journal as it is.
    """
    results = await results_of(grid, map_name, partition, page.keys)
    standing = {key: result.sequence for key, result in results.items() if result.epoch >= origin}
    drop = {
        position
        for position, (key, sequence) in enumerate(zip(page.keys, page.sequences, strict=True))
        if standing.get(key, -1) >= sequence
    }
    return without(page, drop)


def without(page: Page, drop: Collection[int]) -> Page:
    """A page without the entries at some positions; its bounds stay."""
    if not drop:
        return page
    kept = [position for position in range(len(page.keys)) if position not in drop]
    return page._replace(
        sequences=[page.sequences[position] for position in kept],
        keys=[page.keys[position] for position in kept],
        values=[page.values[position] for position in kept],
        foreign={new: page.foreign[old] for new, old in enumerate(kept) if old in page.foreign},
    )


async def restart_position(grid: Grid, record: JobRecord, partition: int, oldest: int, newest: int) -> int:
    """Sequence at which a restarted job begins.

    Journals keep no times. The results do: an event is taken to be of the time at which it was scored. So for a
    time, the first event in the journal whose result is from then or later, or that has none. An event whose key has
    been put again since tells no time, and is passed over until one does.

    Args:
        record: The job; its `begin` says where.
        oldest: Sequence in its journal.
        newest: Sequence in its journal.
    """
    if record.begin == "oldest":
        return oldest
    if record.begin == "latest":
        return newest + 1
    moment = dt.datetime.fromisoformat(record.begin).timestamp() * 1000
    journal, position = Journal(grid, record.job.events), oldest
    while position <= newest:
        page = await journal.read(partition, position, _PAGE_EVENTS)
        if page is None:
            break
        results = await results_of(grid, record.job.results, partition, page.keys)
        for key, sequence in zip(page.keys, page.sequences, strict=True):
            result = results.get(key)
            if result is None or (result.sequence == sequence and result.scored_at >= moment):
                return sequence
        position = page.next
    return newest + 1
