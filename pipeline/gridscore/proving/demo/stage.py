"""Sets the stage in the cluster: the demo's own maps, its lookup entries, its model, its job, a worker that scores."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.errors import JobError
from gridscore.grid.copies import Fetcher
from gridscore.grid.management import ask_members
from gridscore.grid.writer import MapWriter
from gridscore.job import Jobs, JobState
from gridscore.job.life import ENDED
from gridscore.operations.status import job_status, living_workers
from gridscore.proving.demo.dataset import lookup_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from gridscore.grid import Grid
    from gridscore.job import Job

START_SECONDS = 60.0  # how long a job may take until it scores

# Hazelcast's own, for members that do not tell their configuration.
_DEFAULT_JOURNAL = 10_000
_LEAVE_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_ENTRIES_AT_ONCE = 5_000


class _Score(msgspec.Struct, gc=False):
    score: float
    version: int


async def clear_stage(grid: Grid, job: Job) -> None:
    """Take away what an earlier run has left: its job, its events and its results.

    Raises JobError if the maps hold what is not the demo's.
    """
    jobs = Jobs(grid)
    earlier = await jobs.find(job.name)
    ours = earlier is not None and (earlier.job.description, earlier.job.events) == (job.description, job.events)
    if not ours:
        for name in (job.events, job.results):
            if size := await (await grid.map(name)).size():
                raise JobError(
                    f"The cluster's map `{name}` has {size:,} entries that are not the demo's.",
                    "Run the demo on another cluster (without --members it starts its own), or remove the map.",
                )
        if earlier is not None and earlier.state not in ENDED:
            raise JobError(f"The cluster has a job `{job.name}` that is not the demo's.", "Use another cluster.")
    if earlier is not None and earlier.state not in ENDED:
        await jobs.cancel(job.name)
        await _until_no_worker_has(grid, job.name)
    for name in (job.events, job.results):
        # Not `clear`: that would leave the journal, with every event of the earlier run and its removal. A map that was
        # only written to is not in the cluster's list of objects before somebody asks for it, so it is not searched.
        await grid.destroy(name)
        await grid.client.get_map(name)


async def _until_no_worker_has(grid: Grid, job: str) -> None:
    deadline = time.monotonic() + _LEAVE_SECONDS
    while any(job in worker.jobs for worker in await living_workers(grid)):
        if time.monotonic() > deadline:
            raise JobError(f"A worker does not leave the cancelled job `{job}`.", "Stop the worker, and try again.")
        await asyncio.sleep(_LOOK_SECONDS)


async def put_lookups(grid: Grid, job: Job, frames: Mapping[str, pd.DataFrame]) -> int:
    """Put the entries of all lookups; returns how many."""
    count = 0
    for name, lookup in job.lookups.items():
        writer = MapWriter(grid, lookup.map)
        entries = list(lookup_entries(frames[name]))
        for start in range(0, len(entries), _ENTRIES_AT_ONCE):
            count += await writer.put(entries[start : start + _ENTRIES_AT_ONCE])
    return count


async def ring_per_partition(grid: Grid, map_name: str) -> int:
    """Events that the journal of a map keeps of one partition, as far as the members tell."""
    capacities = [
        report.config.map(map_name).journal_capacity or _DEFAULT_JOURNAL
        for report in await ask_members(grid)
        if report.config is not None
    ]
    return max(1, min(capacities, default=_DEFAULT_JOURNAL) // grid.partition_count)


async def until_scoring(grid: Grid, job: str, alive: Callable[[], None]) -> None:
    """Return when workers hold every partition of a job.

    Raises JobError if the job FAILED, or nobody scores for it after a minute.
    """
    jobs, deadline = Jobs(grid), time.monotonic() + START_SECONDS
    while True:
        record = await jobs.get(job)
        if record.state == JobState.FAILED:
            raise JobError(f"The job `{job}` is FAILED: {record.error}")
        if record.state == JobState.RUNNING:
            status = await job_status(grid, record)
            if status.partitions == grid.partition_count:
                return
        if time.monotonic() > deadline:
            raise JobError(f"No worker scores for the job `{job}` after {START_SECONDS:.0f} seconds: {record.state}.")
        alive()
        await asyncio.sleep(_LOOK_SECONDS)


async def written_results(grid: Grid, map_name: str, keys: Sequence[str]) -> tuple[dict[str, tuple[float, int]], int]:
    """Score and model version by key as they stand in the result map, and the map's size."""
    decode = msgspec.json.Decoder(_Score).decode
    written: dict[str, tuple[float, int]] = {}
    fetcher = Fetcher(grid, map_name)
    for start in range(0, len(keys), _ENTRIES_AT_ONCE * 10):
        for key, text in await fetcher.fetch(keys[start : start + _ENTRIES_AT_ONCE * 10]):
            result = decode(text)
            written[key] = (result.score, result.version)
    size: Any = await (await grid.map(map_name)).size()
    return written, int(size)
