"""Where a partition begins when its job is restarted: at its journal's oldest or newest event, or at a time.

Journals keep no times. The results do: an event is taken to be of the time at which it was scored.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from gridscore.grid.journal import Journal
from gridscore.group.standing import results_of

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import JobRecord

_PAGE_EVENTS = 256


async def restart_position(grid: Grid, record: JobRecord, partition: int, oldest: int, newest: int) -> int:
    """Sequence to begin at.

    For a time, the first event in the journal whose result is from then or later, or that has none. An event whose key
    has been put again since tells no time, and is passed over until one does.

    Args:
        grid: The connection.
        record: The job; its `begin` says where.
        partition: Which.
        oldest: Sequence in its journal.
        newest: Sequence in its journal.

    Raises:
        HazelcastError: The cluster did not answer.
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
