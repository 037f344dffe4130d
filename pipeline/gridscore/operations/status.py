"""What jobs and workers are doing now: lag from offsets and journals, figures from their records.

An `Observer` looks repeatedly. It sees by records that change which workers live; only its first look compares clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridError
from gridscore.grid import transport
from gridscore.grid.journal import Journal
from gridscore.grid.records import Count, Figure, Records, Word, parsed
from gridscore.group.heartbeats import Heartbeats, is_recent
from gridscore.group.lease_records import read_records
from gridscore.group.members import WORKERS_MAP
from gridscore.group.rescan import all_requests, requests_of
from gridscore.job import Jobs, JobState
from gridscore.job.life import WANTED
from gridscore.models.certificates import certificates_of
from gridscore.models.drift import drift_of
from gridscore.models.experiment import EXPERIMENTS_MAP, Experiment, Standing, experiment_in, together
from gridscore.models.variants import COUNTS_MAP, Counts
from gridscore.scoring.drift import entry_of
from gridscore.scoring.stats import subscription_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.group.rescan import Request
    from gridscore.group.subscription import Subscription
    from gridscore.job import JobRecord
    from gridscore.models.certificates import Certificate
    from gridscore.models.drift import DriftRecord

ACKNOWLEDGED_MAP = "gridscore.acknowledged"

_COUNTERS = (
    "events",
    "rate",
    "skipped",
    "rescued",
    "explained",
    "unexplained",
    "late",
    "broken_states",
    "taken",
    "given",
)
_LOSSES = ("lost", "regressions", "unkept")


class QualityFigures(msgspec.Struct, frozen=True):
    """What was missing in the last events that one worker, or all, counted."""

    events: Count = 0  # how many were counted, a sample
    missing: dict[str, Count] = {}  # how many of them had no value, by feature
    unseen: dict[str, Count] = {}  # how many had a category that the model does not know, by feature
    misses: dict[str, Count] = {}  # how many had no entry, by lookup

    def shares(self) -> dict[str, dict[str, float]]:
        """Parts of the events, 0 to 1, the largest first: `lookup_misses`, `unseen_categories`, `missing_values`."""
        kinds = {"lookup_misses": self.misses, "unseen_categories": self.unseen, "missing_values": self.missing}
        return {
            kind: {
                name: min(1.0, round(count / max(self.events, 1), 4))
                for name, count in sorted(counts.items(), key=lambda each: -each[1])
            }
            for kind, counts in kinds.items()
        }

    @classmethod
    def together(cls, parts: Iterable[QualityFigures]) -> QualityFigures:
        """The sum of several workers' figures."""
        events, counts = 0, [Counter[str](), Counter[str](), Counter[str]()]
        for part in parts:
            events += part.events
            for each, found in zip(counts, (part.missing, part.unseen, part.misses), strict=True):
                each.update(found)
        return cls(events, *map(dict, counts))


class JobFigures(msgspec.Struct, frozen=True):
    """A worker's figures of one job, see `JobStats`; an older version of Gridscore may leave some out."""

    events: Count = 0
    rate: Figure = 0.0
    lost: Count = 0
    regressions: Count = 0
    version: Count = 0
    experiment: Word = ""
    model_error: Word = ""
    lookup_error: Word = ""
    function_error: Word = ""
    drift_error: Word = ""
    lookups: dict[str, dict[str, Figure | Word]] = {}
    quality: QualityFigures = QualityFigures()
    dead_letters: Count = 0
    partitions: Count = 0
    rebalances: Count = 0
    taken: Count = 0
    given: Count = 0
    skipped: Count = 0
    rescued: Count = 0
    explained: Count = 0
    unexplained: Count = 0
    late: Count = 0
    broken_states: Count = 0
    committed_at: Count = 0
    latency_ms: dict[str, Figure | None] = {}
    stage_us_per_event: dict[str, Figure] = {}

    def __post_init__(self) -> None:
        for figures in self.lookups.values():
            if any(isinstance(value, str) is not (name == "error") for name, value in figures.items()):
                raise ValueError("the figures of a lookup are not numbers")


class WorkerRecord(msgspec.Struct, frozen=True):
    """What a worker writes once a second."""

    id: Word
    seen_at: Count
    jobs: dict[str, JobFigures]
    host: Word = ""
    pid: Count = 0
    began_at: Count = 0
    orphaned: list[Word] = []  # jobs that it scored for in a replaced cluster, and that the new one does not have

    def commit_age(self, job: str) -> float | None:
        """Seconds from its last commit for a job to its last record, by its own clock; None without a commit."""
        at = self.jobs[job].committed_at
        return max(0.0, (self.seen_at - at) / 1000) if at else None


@dataclass(frozen=True, slots=True)
class Position:
    """How far one partition of a job has come."""

    owner: str  # worker that holds its lease; empty if nobody does
    stamp: tuple[int, int]  # changes whenever the lease record does
    offset: int  # the committed offset; -1 if nobody has begun
    held: int  # entries of the journal
    unread: int  # those that the offset does not cover
    # Part of the ring that unread events fill, 0 to 1; 0 if the size of the ring is not known: it has not gone round
    # yet, and the members do not tell their configuration.
    full: float
    room: int | None = None  # entries that fit before the first unread one is overwritten; None if that is not known


@dataclass(frozen=True, slots=True)
class Rescan:
    """A partition that waits for a rescan."""

    partition: int
    reason: str
    at: int


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and its figures."""

    record: JobRecord
    workers: int  # living workers that score for it
    lag: int | None  # events in the journal that no committed offset covers; None if the journal cannot be read
    partitions: int  # partitions that a living worker owns
    # Sums over the living workers since they began: events, rate, skipped, rescued, explained and unexplained (given
    # reasons, or not for lack of time), late (for their windows), broken_states (of windows), taken, given; of the
    # partitions since the job was submitted: lost, regressions, unkept (rejected without a dead letter); the rebalances
    # of the worker that saw most; the dead_letters in the grid.
    totals: dict[str, float]
    versions: list[int]  # model versions in use
    model_errors: list[str]  # why a worker does not use the version that is meant
    lookups: dict[str, dict[str, Any]]  # entries, age, loads and errors of each lookup's oldest copy
    figures: Mapping[str, JobFigures]  # of each living worker, by its identity
    positions: tuple[Position, ...] = ()  # partition by partition; empty if the journal cannot be read
    # Of a job whose windows have other keys than its events, likewise of the group that adds these; or empty.
    stage: tuple[Position, ...] = ()
    requests_lost: int = 0  # requests that were overwritten before that group read them, since the job was submitted
    rescans: tuple[Rescan, ...] = ()
    acknowledged: Mapping[str, int] = field(default_factory=dict)  # losses that were acknowledged
    commit_age: float | None = None  # seconds since the last commit of any worker; None if there was none
    idle_workers: int = 0  # living workers that do not score for it
    # The last parity certificate of this revision and a version in use; None if there is none.
    certificate: Certificate | None = None
    experiment: Standing | None = None  # how its experiment stands; None if it has none
    journal_error: str = ""  # why the journal cannot be read; empty if it can
    # What is known of it; None if the job does not ask for it, or nothing was counted yet.
    drift: DriftRecord | None = None

    @property
    def living(self) -> Collection[str]:
        """Workers that score for it."""
        return self.figures

    @property
    def state(self) -> JobState:
        """Where the job is in its life now.

        WAITING if it is to be scored for and no living worker does; STARTING if none of them has a model.
        """
        if self.record.state not in WANTED:
            return self.record.state
        if not self.workers:
            return JobState.WAITING
        return self.record.state if self.versions else JobState.STARTING

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """p50, p99 and max of the slowest worker; None where nothing was scored lately."""
        known = [each.latency_ms for each in self.figures.values()]
        return {
            name: max((value for each in known if (value := each.get(name)) is not None), default=None)
            for name in ("p50", "p99", "max")
        }

    @property
    def lookup_errors(self) -> list[str]:
        """Why workers cannot copy a lookup map, or load it again."""
        return sorted({each.lookup_error for each in self.figures.values() if each.lookup_error})

    @property
    def function_errors(self) -> list[str]:
        """Why workers cannot call Python functions of its features."""
        return sorted({each.function_error for each in self.figures.values() if each.function_error})

    @property
    def drift_errors(self) -> list[str]:
        """Why workers cannot tell drift."""
        return sorted({each.drift_error for each in self.figures.values() if each.drift_error})

    @property
    def farthest(self) -> tuple[str, float] | None:
        """The feature that had moved farthest in the last window of a version that scores, and its PSI."""
        versions = {} if self.drift is None else self.drift.versions
        names = [f"{self.record.job.model.name} v{version}" for version in self.versions]
        found = [versions[name].worst for name in names if name in versions]
        return max(filter(None, found), key=lambda each: each[1], default=None)

    @property
    def quality(self) -> QualityFigures:
        """What was missing in the last events that the living workers counted."""
        return QualityFigures.together(each.quality for each in self.figures.values())

    def lag_of(self, worker: str) -> int:
        """Unread events of the partitions that a worker owns."""
        return sum(position.unread for position in self.positions if position.owner == worker)

    def to_json(self) -> dict[str, Any]:
        record = self.record
        return {
            "name": record.name,
            "state": self.state.value,
            "revision": record.revision,
            "error": record.error,
            "submitted_at": record.submitted_at,
            "updated_at": record.updated_at,
            "events_map": record.job.events,
            "results_map": record.job.results,
            "workers": self.workers,
            "partitions": self.partitions,
            "lag": self.lag,
            "journal_error": self.journal_error,
            **self.totals,
            "latency_ms": self.latency_ms,
            "commit_age": self.commit_age,
            "rescans": len(self.rescans),
            "requests_lost": self.requests_lost,
            "model": record.job.model.name,
            "model_versions": self.versions,
            "model_errors": self.model_errors,
            "lookup_errors": self.lookup_errors,
            "function_errors": self.function_errors,
            "lookups": self.lookups,
            "quality": {"events": self.quality.events, **self.quality.shares()},
            "experiment": None if self.experiment is None else self.experiment.to_json(),
            "drift": None
            if self.record.job.drift is None
            else {
                "farthest": self.farthest and {"feature": self.farthest[0], "psi": self.farthest[1]},
                "alerts": [] if self.drift is None else [entry_of(record.name, each) for each in self.drift.active],
            },
            "parity": None if self.certificate is None else self.certificate.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Overview:
    """What one look has shown."""

    at: float  # when, in seconds of the monotonic clock
    jobs: list[JobStatus]  # every job that was asked for, by name
    workers: list[WorkerRecord]


class Observer:
    """Looks at a cluster's jobs and workers repeatedly. `job`: the only job to look at; default: all."""

    def __init__(self, grid: Grid, job: str | None = None) -> None:
        self._grid, self._job = grid, job
        self._heartbeats = Heartbeats()

    async def look(self) -> Overview:
        """Look once. Raises JobError if there is no such job."""
        jobs = Jobs(self._grid)
        records = await jobs.all() if self._job is None else [await jobs.get(self._job)]
        workers = self._heartbeats.living(await _workers(self._grid))
        shared = await _Shared.read(self._grid)
        statuses = [await _status(self._grid, record, workers, shared) for record in records]
        return Overview(time.monotonic(), statuses, workers)


async def living_workers(grid: Grid) -> list[WorkerRecord]:
    """Records of the workers that were heard of lately."""
    return [worker for worker in await _workers(grid) if is_recent(worker)]


async def _workers(grid: Grid) -> list[WorkerRecord]:
    found = await Records(grid, WORKERS_MAP).read(parsed(WorkerRecord))
    return [worker for _, worker in sorted(found.items())]


async def acknowledge(grid: Grid, status: JobStatus, names: Sequence[str] = _LOSSES) -> dict[str, int]:
    """Acknowledge a job's losses up to now, of all kinds or of some; returns their numbers."""
    numbers = {name: int(status.totals[name]) for name in names}
    value = {**status.acknowledged, **numbers, "submitted_at": status.record.submitted_at}
    await Records(grid, ACKNOWLEDGED_MAP).put(status.record.name, value)
    return numbers


async def lag(grid: Grid, record: JobRecord) -> tuple[int | None, int]:
    """Unread events of a job (None if its journal cannot be read), and how many partitions have an owner."""
    known, _ = await positions(grid, subscription_of(record), await read_records(grid, record.name))
    if known is None:
        return None, 0
    return sum(position.unread for position in known), sum(1 for position in known if position.owner)


async def job_status(grid: Grid, record: JobRecord, workers: list[WorkerRecord] | None = None) -> JobStatus:
    """Everything about one job; pass the living workers if you have them."""
    workers = await living_workers(grid) if workers is None else workers
    return await _status(grid, record, workers, await _Shared.read(grid))


class Acknowledgement(msgspec.Struct, frozen=True):
    """The record of acknowledged losses: their numbers, and when the job was submitted."""

    submitted_at: Word
    lost: Count = 0
    regressions: Count = 0
    unkept: Count = 0


@dataclass(frozen=True, slots=True)
class _Shared:
    """Records that are read once for all jobs."""

    rescans: Mapping[str, Request]
    acknowledged: Mapping[str, Acknowledgement]
    certificates: Sequence[Certificate]
    experiments: Mapping[str, Experiment]
    counts: Sequence[Counts]

    @classmethod
    async def read(cls, grid: Grid) -> _Shared:
        acknowledged = await Records(grid, ACKNOWLEDGED_MAP).read(parsed(Acknowledgement))
        experiments = await Records(grid, EXPERIMENTS_MAP).read(experiment_in)
        counts = (await Records(grid, COUNTS_MAP).read(Counts.of_record)).values() if experiments else ()
        return cls(await all_requests(grid), acknowledged, await certificates_of(grid), experiments, tuple(counts))

    def experiment_of(self, job: JobRecord) -> Standing | None:
        found = self.experiments.get(job.name)
        if found is None or found.submitted_at != job.submitted_at:
            return None
        return Standing(found, together(found, self.counts))

    def certificate_of(self, job: JobRecord, versions: Sequence[int]) -> Certificate | None:
        def fits(each: Certificate) -> bool:
            of_job = (each.job, each.revision, each.model) == (job.name, job.revision, job.job.model.name)
            return of_job and each.version in versions

        return next((each for each in reversed(self.certificates) if fits(each)), None)

    def rescans_of(self, job: str) -> tuple[Rescan, ...]:
        found = sorted(requests_of(job, self.rescans).items())
        return tuple(Rescan(partition, request.reason, request.at) for partition, request in found)

    def acknowledged_of(self, job: JobRecord) -> dict[str, int]:
        known = self.acknowledged.get(job.name)
        # A job that was submitted again counts from zero; earlier acknowledgements do not apply.
        if known is None or known.submitted_at != job.submitted_at:
            return {}
        return {name: getattr(known, name) for name in _LOSSES}


async def positions(
    grid: Grid, subscription: Subscription, leases: Mapping[int, LeaseRecord], asked: Sequence[int] | None = None
) -> tuple[tuple[Position, ...] | None, str]:
    """The position of each partition of a group, given its leases; or None, and why its journal cannot be read.

    `asked`: only of these partitions, in this order.
    """
    journal = Journal(grid, subscription.map)
    asked = range(grid.partition_count) if asked is None else asked
    try:
        bounds = await asyncio.gather(*map(journal.bounds, asked))
    except GridError as error:
        return None, error.message
    known = tuple(
        _position(subscription, leases.get(partition), oldest, newest, journal.ring)
        for partition, (oldest, newest) in zip(asked, bounds, strict=True)
    )
    return known, ""


def _position(
    subscription: Subscription, lease: LeaseRecord | None, oldest: int, newest: int, ring: int | None
) -> Position:
    held = newest + 1 - oldest
    if lease is not None and lease.has_begun(subscription.begin, subscription.restarts):
        unread = max(0, newest + 1 - max(lease.offset, oldest))
    else:
        unread = 0 if subscription.beginning == "latest" else held
    if oldest > 0 and held:
        ring = held  # it has gone round, so it shows its size
    return Position(
        owner=lease.owner if lease is not None else "",
        stamp=(lease.epoch, lease.renewals) if lease is not None else (0, 0),
        offset=lease.offset if lease is not None else -1,
        held=held,
        unread=unread,
        full=min(1.0, unread / ring) if ring else 0.0,
        room=max(0, ring - unread) if ring else None,
    )


async def _status(grid: Grid, record: JobRecord, workers: list[WorkerRecord], shared: _Shared) -> JobStatus:
    name = record.name
    mine = {worker.id: worker.jobs[name] for worker in workers if name in worker.jobs}
    leases = await read_records(grid, name)
    known, journal_error = await positions(grid, subscription_of(record), leases)
    stage, requests_lost = await _stage(grid, record) if record.job.routes_windows else ((), 0)
    totals: dict[str, float] = {key: sum(getattr(each, key) for each in mine.values()) for key in _COUNTERS}
    totals["rebalances"] = max((each.rebalances for each in mine.values()), default=0)
    # From the leases, which outlive the workers that counted.
    totals |= {key: sum(getattr(lease, key) for lease in leases.values()) for key in _LOSSES}
    totals["dead_letters"] = await transport.map_size(grid.client, map_of(name))
    lookups: dict[str, dict[str, Any]] = {}
    for each in mine.values():
        for lookup, copy in each.lookups.items():
            if lookup not in lookups or copy.get("age", 0) > lookups[lookup].get("age", 0):
                lookups[lookup] = copy
    versions = sorted({each.version for each in mine.values() if each.version})
    ages = [age for worker in workers if name in worker.jobs and (age := worker.commit_age(name)) is not None]
    return JobStatus(
        record=record,
        workers=len(mine),
        lag=None if known is None else sum(position.unread for position in known),
        partitions=sum(1 for position in known or () if position.owner in mine),
        totals=totals,
        versions=versions,
        model_errors=sorted({each.model_error for each in mine.values() if each.model_error}),
        lookups=lookups,
        figures=mine,
        positions=known or (),
        stage=stage,
        requests_lost=requests_lost,
        rescans=shared.rescans_of(name),
        acknowledged=shared.acknowledged_of(record),
        commit_age=min(ages, default=None),
        idle_workers=len(workers) - len(mine),
        certificate=shared.certificate_of(record, versions),
        experiment=shared.experiment_of(record),
        journal_error=journal_error,
        drift=None if record.job.drift is None else await drift_of(grid, name),
    )


async def _stage(grid: Grid, record: JobRecord) -> tuple[tuple[Position, ...], int]:
    from gridscore.scoring import window_messages

    subscription = window_messages.subscription_of(record.name)
    leases = await read_records(grid, subscription.group)
    known, _ = await positions(grid, subscription, leases)
    return known or (), sum(lease.lost for lease in leases.values())


def replay_figures(before: JobStatus, place: str) -> dict[str, int]:
    """How many events a restart reads, scores again and leaves out, by what the journal holds now.

    For a time they are upper limits: the journal knows no times.
    """
    unread = before.lag or 0
    if place == "latest":
        return {"to_read": 0, "scored_again": 0, "left_out": unread}
    if place == "committed":
        return {"to_read": unread, "scored_again": 0, "left_out": 0}
    held = sum(position.held for position in before.positions)
    return {"to_read": held, "scored_again": held - unread, "left_out": 0}


async def restarted(grid: Grid, name: str, place: str) -> dict[str, Any]:
    """Restart a job from another place; what it is now, how much it reads, and how many workers there are for it."""
    jobs = Jobs(grid)
    before = await job_status(grid, await jobs.get(name))
    record = await jobs.restart(name, place)
    figures = replay_figures(before, place)
    return {**record.in_brief, "from": place, **figures, "workers": before.workers or before.idle_workers}
