"""Results that an earlier owner has written and not committed: their events are not scored again.

After a crash, or a write of unknown fate, events are read a second time. Those that have their result are skipped, so
that listeners do not see it twice. A result counts if it is from the same sequence of the journal, or from a later one
of the same key; not if it is from before the journal began again.
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
    """Which event a result belongs to, and when it was made."""

    sequence: int = -2  # of the event; -1 if it was found in the map
    epoch: int = -1  # of the lease that it was written under
    scored_at: int = 0  # milliseconds since 1970


_decode = msgspec.json.Decoder(ResultOrigin).decode


async def origins_of(grid: Grid, map_name: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, ResultOrigin]:
    """Origins of the results that exist under serialized keys of one partition."""
    found = {}
    for key, value in (await values_of(grid, map_name, partition, keys)).items():
        try:
            found[key] = _decode(payload(value))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found[key] = ResultOrigin()  # something else is there
    return found


async def scored_in(grid: Grid, map_name: str, partition: int, page: Page, origin: int) -> set[int]:
    """Indexes in a page of the events that have their result. `origin`: first epoch of the present journal."""
    results = await origins_of(grid, map_name, partition, page.keys)
    scored = {key: result.sequence for key, result in results.items() if result.epoch >= origin}
    return {
        index
        for index, (key, sequence) in enumerate(zip(page.keys, page.sequences, strict=True))
        if scored.get(key, -1) >= sequence
    }


def without(page: Page, drop: Collection[int]) -> Page:
    """A page without the entries at some indexes; its bounds stay."""
    if not drop:
        return page
    kept = [index for index in range(len(page.keys)) if index not in drop]
    return page._replace(
        sequences=[page.sequences[index] for index in kept],
        keys=[page.keys[index] for index in kept],
        values=[page.values[index] for index in kept],
        foreign={new: page.foreign[old] for new, old in enumerate(kept) if old in page.foreign},
    )


async def restart_offset(grid: Grid, record: JobRecord, partition: int, oldest: int, newest: int) -> int:
    """The offset at which a restarted job begins with a partition whose journal has these bounds.

    Journals keep no times, but results do. So for a time, it is the first event whose result is from then or later, or
    missing. An event whose key was put again since tells no time, and is skipped.
    """
    if record.begin == "oldest":
        return oldest
    if record.begin == "latest":
        return newest + 1
    moment = dt.datetime.fromisoformat(record.begin).timestamp() * 1000
    journal, offset = Journal(grid, record.job.events), oldest
    while offset <= newest:
        page = await journal.read(partition, offset, _PAGE_EVENTS)
        if page is None:
            break
        results = await origins_of(grid, record.job.results, partition, page.keys)
        for key, sequence in zip(page.keys, page.sequences, strict=True):
            result = results.get(key)
            if result is None or (result.sequence == sequence and result.scored_at >= moment):
                return sequence
        offset = page.next
    return newest + 1
