"""Whether the journal of a job's events holds as much as the job says that it must."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gridscore.grid.capacity import Source, journal_capacity
from gridscore.grid.doctor import Finding, Level

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.grid.capacity import Capacity
    from gridscore.job import Job


async def examine_capacity(grid: Grid, job: Job) -> Finding | None:
    """How long the journal lasts at the job's peak rate; None if the job states none, or the map has no journal.

    Raises:
        GridError: The cluster did not answer.
    """
    if job.peak_rate is None:
        return None
    capacity = await journal_capacity(grid, job.events)
    return None if capacity is None else judge(job, job.peak_rate, capacity)


async def warnings(grid: Grid, job: Job) -> list[str]:
    """Warnings for the user who submits a job.

    Raises:
        GridError: The cluster did not answer.
    """
    finding = await examine_capacity(grid, job)
    if finding is None or finding.level is Level.OK:
        return []
    return [f"{finding.what}: {finding.detail}. {finding.advice}"]


def judge(job: Job, peak_rate: float, capacity: Capacity) -> Finding:
    """Compare a capacity with a peak rate, in events per second, and the headroom that the job wants."""
    entries = _entries(job)
    lasts = capacity.total / (peak_rate * entries)
    holds = "holds" if capacity.source is Source.CONFIGURED else "seems to hold"
    detail = (
        f"its journal {holds} {capacity.total:,} entries, {capacity.partition:,} in each of {capacity.partitions} "
        f"partitions: {_seconds(lasts)} at the peak of {peak_rate:,.0f} events/s of the job {job.name}"
    )
    if entries == 2:
        detail += ", removals included"
    what = f"event map {job.events}"
    if lasts >= job.headroom_seconds:
        return Finding(Level.OK, what, detail)
    needed = needed_capacity(job, peak_rate, capacity.partitions)
    return Finding(
        Level.WARN,
        what,
        f"{detail}, less than its headroom of {_seconds(job.headroom_seconds)}",
        f"Set `event-journal: {{capacity: {needed}}}` for it in the members' hazelcast.yaml and restart them; or state "
        "another `peak_rate` or `headroom` in the job file.",
    )


def needed_capacity(job: Job, peak_rate: float, partitions: int) -> int:
    """Entries that the journal of a job's events must hold over all partitions, at so many events a second.

    Two figures, and enough for each partition after rounding down.
    """
    entries = peak_rate * _entries(job) * job.headroom_seconds
    least = math.ceil(entries / partitions) * partitions
    step: int = 10 ** max(0, len(str(least)) - 2)
    return math.ceil(least / step) * step


def _entries(job: Job) -> int:
    # An event that is removed later is two entries: at a steady rate as many go as come.
    return 1 if job.retain_seconds is None else 2


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
