"""Which states of a job's windows can have changed since a look: those of the entities whose events came since.

A worker writes a state before it commits the offset of the event. So a state that is read after an offset has all
events before it, and the next look needs those whose events, or requests, the journal has from there on. Where that
does not tell (entries were overwritten, a journal has begun again, events are searched for in the map), all states of
the partition are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.group.rescan import all_requests, requests_of
from gridscore.scoring import window_messages
from gridscore.scoring.stats import subscription_of

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import JobRecord

_PAGE = 512


class Tail(NamedTuple):
    """How far the states of a partition were written, at least."""

    offset: int  # the next sequence
    # What was lost, how often the journal has begun again and in which epoch, and how many rescans are done.
    losses: tuple[int, int, int, int]
    is_plain: bool  # whether states change by events of the journal alone


class WindowChanges:
    """The changes of the states of one job."""

    def __init__(self, grid: Grid, record: JobRecord) -> None:
        job = record.job
        self._grid = grid
        self._routes = job.routes_windows
        self._sub = window_messages.subscription_of(job.name) if self._routes else subscription_of(record)
        self._journal = Journal(grid, self._sub.map)
        # What must be the same for changes to be told: else states may have been loaded, emptied or brought back.
        self.run = (record.submitted_at, record.updated_at, record.revision)

    async def tails(self) -> dict[int, Tail]:
        """Of all partitions that somebody reads; to be asked for before the states are read."""
        leases = await read_records(self._grid, self._sub.group)
        # A search is asked for before the offset passes a loss: who sees this sees the request, or all its states.
        requests = requests_of(self._sub.group, await all_requests(self._grid))
        return {
            partition: Tail(
                lease.offset, (lease.lost, lease.regressions, lease.origin, lease.rescans), partition not in requests
            )
            for partition, lease in leases.items()
            if lease.has_begun(self._sub.begin, self._sub.restarts)
        }

    async def keys(self, partition: int, before: Tail | None, now: Tail | None) -> list[bytes] | None:
        """The keys of states that can have changed; None if all can."""
        if before is None or now is None or not (before.is_plain and now.is_plain) or before.losses != now.losses:
            return None
        oldest, newest = await self._journal.bounds(partition)
        at, found = before.offset, dict[bytes, None]()
        if newest + 1 < at:
            return None
        while at <= newest:
            page = await self._journal.read(partition, at, _PAGE) if at >= oldest else None
            if page is None or page.first != at:
                return None
            if self._routes:
                try:
                    found |= dict.fromkeys(key for text in page.texts for key in window_messages.keys_of(text))
                except ValueError:
                    return None
            else:
                found |= dict.fromkeys(page.keys)
            at = page.next
        return list(found)
