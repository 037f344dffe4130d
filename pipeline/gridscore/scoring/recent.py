"""The latest events of a job, read from the journal without any lease or write, as rows that versions can score."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import GridscoreError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable
from gridscore.grid.copies import Fetcher, LiveCopy
from gridscore.grid.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features import EventColumns
    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.models import ModelVersion

_AT_ONCE = 16

MAX_BYTES = 128 << 20  # bytes of events above which no more are read


class RecentEvents:
    """Events with what their lookups hold now. Get them from `latest`."""

    def __init__(self, job: Job, tables: Mapping[str, LookupTable], events: EventColumns) -> None:
        self._job, self._tables, self._events = job, tables, events

    def __len__(self) -> int:
        return len(self._events)

    def inputs(self, version: ModelVersion) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The matrix that a version scores, and its margins."""
        return FeaturePlan(self._job, self._tables, version.learnt).inputs(self._events)


async def latest(grid: Grid, job: Job, count: int, version: ModelVersion) -> RecentEvents:
    """The latest events of a job that it can score, about as many of each partition.

    `version`: of the model that scores them now. Raises GridscoreError if there are none, or the job has windows, of
    which the journal does not tell the state.
    """
    if job.used_windows:
        raise GridscoreError(f"the job `{job.name}` has windows, and single events do not tell their state")
    limit, each = asyncio.Semaphore(_AT_ONCE), -(-count // grid.partition_count)
    journal, taken = Journal(grid, job.events), 0

    async def newest_of(partition: int) -> list[bytes]:
        nonlocal taken
        async with limit:
            page = await journal.newest(partition, each) if taken <= MAX_BYTES else None
        if page is None:
            return []
        taken += page.size
        return page.texts

    found = await asyncio.gather(*map(newest_of, range(grid.partition_count)))
    events, _ = EventDecoder(job).decode_good([text for texts in found for text in texts][:count])
    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    plan = FeaturePlan(job, tables, version.learnt)
    if events:
        await look_up(grid, job, plan, tables, events)
        events = await asyncio.to_thread(_computable, plan, events)
    if not events:
        raise GridscoreError(f"the journal of `{job.events}` has no events that the job `{job.name}` can score")
    return RecentEvents(job, tables, events)


def _computable(plan: FeaturePlan, events: EventColumns) -> EventColumns:
    """The events that have features, and a margin if the job has one."""
    try:
        margins = plan.inputs(events)[1]
    except Exception:  # noqa: BLE001 -- whatever it is, the worker would set those events aside that cause it
        events = events.without([row for row in range(len(events)) if not _computes(plan, events.take((row,)))])
        margins = plan.inputs(events)[1]
    return events if margins is None else events.without(np.flatnonzero(np.isnan(margins)).tolist())


def _computes(plan: FeaturePlan, event: EventColumns) -> bool:
    try:
        plan.inputs(event)
    except Exception:  # noqa: BLE001 -- as above
        return False
    return True


async def look_up(
    grid: Grid, job: Job, plan: FeaturePlan, tables: Mapping[str, LookupTable], events: EventColumns | Sequence[Any]
) -> None:
    """Fill the tables of a job's lookups with what its maps hold now."""
    keys: dict[str, list[Any]] = {}
    for name, lookup in job.lookups.items():
        if lookup.mode == "copy":
            copy = LiveCopy(grid, lookup.map, tables[name], max_entries=lookup.max_entries)
            await copy.start()
            await copy.close()
            continue
        keys = keys or plan.keys(events)
        for key, text in await Fetcher(grid, lookup.map).fetch({key for key in keys[name] if key is not None}):
            tables[name].put(key, text)
