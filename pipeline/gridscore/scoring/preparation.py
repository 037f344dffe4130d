"""What the maps of a job need on a running cluster: large enough journals, backups, protection from a split.

Hazelcast creates a map, as it is configured then, when it is first named: only maps that do not exist can be prepared.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from gridscore.errors import JournalMissingError
from gridscore.grid import transport
from gridscore.grid.capacity import Source, journal_bytes, journal_capacity
from gridscore.grid.doctor import MIN_PER_PARTITION, Finding, Level
from gridscore.grid.heap import size_text
from gridscore.grid.management import first_config
from gridscore.grid.map_configs import NewMapConfig, add_map_config
from gridscore.grid.records import Count, Records, Word, parsed
from gridscore.group.heartbeats import is_recent
from gridscore.group.members import WORKERS_MAP
from gridscore.scoring import late_events
from gridscore.scoring.window_messages import ANSWER_RING, REQUEST_RING, answer_map, asks_too_much, request_map
from gridscore.scoring.window_states import keep_seconds, map_of
from gridscore.texts import duration_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.grid.capacity import Capacity
    from gridscore.grid.management import MapConfig, MemberConfig
    from gridscore.job import Job

_log = logging.getLogger(__name__)

_CAPACITY = 1_000_000  # entries of a journal, as in our hazelcast.yaml
# Patterns of control maps, each with a map that is looked at instead of all.
_CONTROL = {"gridscore.*": "gridscore.jobs", "dead-letters.*": "dead-letters.job"}


class _Worker(msgspec.Struct, frozen=True):
    """What a worker writes once a second; more in `gridscore.operations.status`."""

    id: Word
    seen_at: Count


@dataclass(frozen=True)
class Addition:
    """A configuration that a job's maps lack."""

    config: NewMapConfig
    why: str  # what the map has without it
    # Heap that a full journal takes over all members, with events of 90 bytes: from, to. Zeros: no journal.
    bytes: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        """One line for people."""
        config = self.config
        parts = [f"backup-count {config.backups}"]
        if config.journal_capacity is not None:
            least, most = map(size_text, self.bytes)
            parts.insert(0, f"a journal of {config.journal_capacity:,} entries ({least} to {most} once it is full)")
        if config.protection is not None:
            parts.append(f"split-brain protection `{config.protection}`")
        if config.seconds:
            parts.append(f"entries go after {duration_text(config.seconds)} without a write")
        return f"{config.pattern}: {', '.join(parts)}; now: {self.why}"


async def additions(grid: Grid, job: Job) -> list[Addition]:
    """What the maps of a job lack and can get. This only reads, and creates no map.

    Nothing, if the members do not tell their configuration (`management-center.trusted-interfaces`).

    Raises JournalMissingError if the event map exists already, without a journal.
    """
    config = await first_config(grid)
    if config is None:
        grid.journalled[job.events] = None  # asking again would not help
        return []
    names = await transport.map_names(grid.client)
    members = max(1, sum(not member.lite_member for member in grid.members))
    found = [
        _control(config, pattern, members)
        for pattern, example in _CONTROL.items()
        if config.map(example).pattern == "default" and not any(name.startswith(pattern[:-1]) for name in names)
    ]
    wanted = _CAPACITY if job.peak_rate is None else needed_capacity(job, job.peak_rate, grid.partition_count)
    capacity = max(wanted, MIN_PER_PARTITION * grid.partition_count)
    least = 1 if job.peak_rate is None else capacity  # without a rate, any journal will do
    for name in (job.events, job.results):
        has = config.map(name)
        if has.journal_capacity is not None:
            grid.journalled[name] = has.journal_capacity
        if name in names:
            if has.journal_capacity is None and name == job.events:
                raise _too_late(name)
        elif has.pattern != name and (why := _lacks(has, least)):
            costs = journal_bytes(capacity, 1 + min(1, members - 1))
            found.append(Addition(NewMapConfig(name, capacity), why, costs))
    for name, capacity in _between_stages(grid, job).items():
        has = config.map(name)
        if has.journal_capacity is not None:
            grid.journalled[name] = has.journal_capacity
        if name in names:
            if has.journal_capacity is None:
                raise JournalMissingError(*_too_late_for_windows(job, name))
        elif has.pattern != name and (why := _lacks(has, capacity)):
            protection, costs = _protection(config, members), journal_bytes(capacity, 1 + min(1, members - 1))
            found.append(Addition(NewMapConfig(name, capacity, protection=protection), why, costs))
    expiring = {}
    if job.used_windows:
        expiring[map_of(job.name)] = keep_seconds(job)
        if job.late is not None:
            expiring[job.late] = late_events.keep_seconds(job)
    for name, seconds in expiring.items():
        if config.map(name).pattern != name and name not in names:
            wanted_one = NewMapConfig(name, protection=_protection(config, members), seconds=seconds)
            found.append(Addition(wanted_one, f"entries stay for good (`{config.map(name).pattern}`)"))
    return found


async def prepare(grid: Grid, job: Job) -> list[Addition]:
    """Add what the maps of a job lack to all members, and return it. A second call adds nothing.

    Raises JournalMissingError if the event map exists already, without a journal; GridError if the members refuse it.
    """
    found = await additions(grid, job)
    for addition in found:
        await add_map_config(grid, addition.config)
        if addition.config.journal_capacity is not None:
            grid.journalled[addition.config.pattern] = addition.config.journal_capacity
        _log.info("Added to the cluster: %s", addition, extra={"action": "prepared", "map": addition.config.pattern})
    return found


def _control(config: MemberConfig, pattern: str, members: int) -> Addition:
    return Addition(NewMapConfig(pattern, protection=_protection(config, members)), "as `default`")


def _protection(config: MemberConfig, members: int) -> str | None:
    """A rule that the members know, by which only a majority of them is written to."""
    majority = members // 2 + 1
    protections = (
        name
        for name, rule in sorted(config.protections.items())
        if rule.enabled and majority <= rule.minimum_members <= members and rule.protect_on == "READ_WRITE"
    )
    return next(protections, None)


def _lacks(has: MapConfig, capacity: int) -> str:
    """Why a map with this configuration is not fit for events or results; empty if it is."""
    if has.followers:
        return ""  # its entries are stored or replicated elsewhere, which our configuration would end
    if has.journal_capacity is None:
        return f"no journal (`{has.pattern}`)"
    if has.journal_capacity < capacity:
        return f"a journal of {has.journal_capacity:,} (`{has.pattern}`)"
    if has.backups == 0:
        return f"no synchronous backup (`{has.pattern}`)"
    if has.expiry:
        return f"entries expire (`{has.pattern}`)"
    return ""


def _too_late(name: str) -> JournalMissingError:
    return JournalMissingError(
        f"The map `{name}` exists already, without an event journal, and a map that exists cannot be given one.",
        "Let the job and its producers use another name, or destroy the map if its entries are not needed; then run "
        "`gridscore prepare` again. Put old events into the new map once more.",
    )


def _between_stages(grid: Grid, job: Job) -> dict[str, int]:
    """The maps between the two stages of windows with other keys than the events', and entries of their journals."""
    if not job.routes_windows:
        return {}
    count = grid.partition_count
    return {request_map(job.name): REQUEST_RING * count, answer_map(job.name): ANSWER_RING * count}


def _too_late_for_windows(job: Job, name: str) -> tuple[str, str]:
    return (
        f"The map `{name}`, which windows of the job `{job.name}` need, exists already, without an event journal.",
        f"Cancel the job, destroy the map (`gridscore wipe {job.name} --results` does), and submit it again.",
    )


async def examine_windows(grid: Grid, job: Job) -> list[Finding]:
    """Whether the maps between the two stages of a job's windows have, or will get, their journals."""
    config = await first_config(grid)
    wanted = _between_stages(grid, job)
    if config is None or not wanted:
        return []
    names, findings = await transport.map_names(grid.client), []
    for name in wanted:
        capacity = config.map(name).journal_capacity
        if capacity is not None:
            findings.append(Finding(Level.OK, f"map {name}", f"its journal holds {capacity:,} entries"))
        elif name in names:
            findings.append(Finding(Level.FAIL, f"map {name}", *_too_late_for_windows(job, name)))
        else:
            advice = "`gridscore prepare JOB_FILE` adds it; `submit` and `worker` do, too."
            findings.append(Finding(Level.WARN, f"map {name}", "no event journal, which windows need", advice))
    return findings


async def examine_capacity(grid: Grid, job: Job) -> Finding | None:
    """How long the journal lasts at the job's peak rate; None without a peak rate, or without a journal."""
    if job.peak_rate is None:
        return None
    capacity = await journal_capacity(grid, job.events)
    return None if capacity is None else judge(job, job.peak_rate, capacity)


async def warnings(grid: Grid, job: Job) -> list[str]:
    """Warnings for the user who submits a job."""
    finding, told = await examine_capacity(grid, job), []
    if finding is not None and finding.level is not Level.OK:
        told.append(f"{finding.what}: {finding.detail}. {finding.advice}")
    if job.routes_windows:
        workers = (await Records(grid, WORKERS_MAP).read(parsed(_Worker))).values()
        if text := asks_too_much(job, sum(map(is_recent, workers))):
            told.append(f"{text} Run fewer, larger workers.")
    return told


def judge(job: Job, peak_rate: float, capacity: Capacity) -> Finding:
    """Compare a capacity with a peak rate, in events per second, and the job's headroom."""
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
    """Entries that the journal of a job's events must hold over all partitions: rounded up to two digits."""
    entries = peak_rate * _entries(job) * job.headroom_seconds
    least = math.ceil(entries / partitions) * partitions
    step: int = 10 ** max(0, len(str(least)) - 2)
    return math.ceil(least / step) * step


def _entries(job: Job) -> int:
    # An event that is removed later makes two entries.
    return 1 if job.retain_seconds is None else 2


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
