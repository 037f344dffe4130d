"""What a job is doing now, as seen from outside: lag from offsets and journals, rates from the workers' records."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import GridError
from pipeline.grid import transport
from pipeline.grid.journal import Journal
from pipeline.grid.records import Records
from pipeline.worker.dead_letters import map_of
from pipeline.worker.leases import read_records

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.job import JobRecord

WORKERS_MAP = "gridscore.workers"
GONE_SECONDS = 5.0
"""A worker whose record has not changed for this long is not counted as living."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and its figures.

    Attributes:
        record: The job.
        workers: Living workers that score for it.
        lag: Events in the journal that no committed offset covers; None if the journal cannot be read.
        partitions: Partitions that have an owner.
        totals: Sums over the living workers since they began: events, rate, lost, regressions; and dead_letters, those
            in the grid.
        versions: Model versions in use.
        model_errors: Why a worker does not use the version that is meant.
        lookups: Entries, age and loads of each lookup's copy, the oldest of all workers.
    """

    record: JobRecord
    workers: int
    lag: int | None
    partitions: int
    totals: dict[str, float]
    versions: list[int]
    model_errors: list[str]
    lookups: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        record = self.record
        return {
            "name": record.name,
            "state": record.state.value,
            "revision": record.revision,
            "error": record.error,
            "submitted_at": record.submitted_at,
            "updated_at": record.updated_at,
            "events_map": record.job.events,
            "results_map": record.job.results,
            "workers": self.workers,
            "partitions": self.partitions,
            "lag": self.lag,
            **self.totals,
            "model": record.job.model.name,
            "model_versions": self.versions,
            "model_errors": self.model_errors,
            "lookups": self.lookups,
        }


class _JobFigures(msgspec.Struct):
    """What a worker counts for one job; see `JobStats.to_json`."""

    events: int
    rate: float
    lost: int
    regressions: int
    version: int
    model_error: str
    lookups: dict[str, dict[str, float]]


class WorkerRecord(msgspec.Struct):
    """What a worker says of itself, once a second."""

    id: str
    seen_at: int
    jobs: dict[str, _JobFigures]


async def living_workers(grid: Grid) -> list[WorkerRecord]:
    """Records of the workers that were heard of lately. What is no such record is left out."""
    # Their clocks and ours may differ by seconds, so "lately" is generous where a record is from the future.
    now = time.time() * 1000
    found = []
    for record in (await Records(grid, WORKERS_MAP).all()).values():
        with contextlib.suppress(msgspec.ValidationError):
            worker = msgspec.convert(record.value, WorkerRecord)
            if now - worker.seen_at < GONE_SECONDS * 1000:
                found.append(worker)
    return found


async def forget_gone_workers(grid: Grid, seconds: float) -> None:
    """Remove the records of workers that have not been heard of for so long."""
    records = Records(grid, WORKERS_MAP)
    now = time.time() * 1000
    for key, record in (await records.all()).items():
        seen_at = record.value.get("seen_at")
        if isinstance(seen_at, int) and now - seen_at > seconds * 1000:
            await records.delete(key)


async def lag(grid: Grid, record: JobRecord) -> tuple[int | None, int]:
    """Unread events of a job (None if its journal cannot be read), and how many partitions have an owner."""
    leases = await read_records(grid, record.name)
    journal = Journal(grid, record.job.events)
    try:
        bounds = await asyncio.gather(*(journal.bounds(p) for p in range(grid.partition_count)))
    except GridError:
        return None, 0
    total = 0
    for partition, (oldest, newest) in enumerate(bounds):
        lease = leases.get(partition)
        begun = lease is not None and lease.offset >= 0
        if begun:
            total += max(0, newest + 1 - max(lease.offset if lease else 0, oldest))
        elif record.job.start == "oldest":
            total += newest + 1 - oldest
    return total, sum(1 for lease in leases.values() if lease.owner)


async def job_status(grid: Grid, record: JobRecord, workers: list[WorkerRecord] | None = None) -> JobStatus:
    """Everything about one job; pass the living workers if they are at hand."""
    workers = await living_workers(grid) if workers is None else workers
    mine = [worker.jobs[record.name] for worker in workers if record.name in worker.jobs]
    behind, owned = await lag(grid, record)
    totals = {name: sum(getattr(job, name) for job in mine) for name in ("events", "rate", "lost", "regressions")}
    totals["dead_letters"] = await transport.map_size(grid.client, map_of(record.name))
    lookups: dict[str, dict[str, float]] = {}
    for job in mine:
        for name, copy in job.lookups.items():
            if name not in lookups or copy.get("age", 0) > lookups[name].get("age", 0):
                lookups[name] = copy
    return JobStatus(
        record=record,
        workers=len(mine),
        lag=behind,
        partitions=owned,
        totals=totals,
        versions=sorted({job.version for job in mine if job.version}),
        model_errors=sorted({job.model_error for job in mine if job.model_error}),
        lookups=lookups,
    )
