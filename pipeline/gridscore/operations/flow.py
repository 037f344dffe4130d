"""Sources, jobs, workers and sinks of a cluster, seen from outside; and what is wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.errors import GridError
from gridscore.grid import transport
from gridscore.grid.capacity import journal_capacity, journal_entries
from gridscore.grid.heap import HEAP_ADVICE, SLOW, STOP, look_at_heaps
from gridscore.grid.management import first_config
from gridscore.group.heartbeats import Heartbeats
from gridscore.job.life import JOBS_MAP, OVER
from gridscore.operations.backup import backups_of
from gridscore.operations.health import LATE_SECONDS, Finding, Level, Look, examine, is_well, problem, problems_first
from gridscore.operations.plug_health import examine_sink, examine_source
from gridscore.operations.sink_status import sink_statuses
from gridscore.operations.status import Observer
from gridscore.operations.status_lines import job_lines, sink_lines, source_lines
from gridscore.sources.status import source_statuses
from gridscore.texts import count_text, with_moments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gridscore.errors import BadRecord
    from gridscore.grid import Grid
    from gridscore.grid.heap import MemberHeap
    from gridscore.operations.backup import BackupRecord
    from gridscore.operations.sink_status import SinkStatus
    from gridscore.operations.status import JobStatus, Overview
    from gridscore.sources.status import SourceStatus

_MOST_MAPS = 16  # maps that nobody reads whose journals are looked at
_HEAP_SECONDS = 2.0  # how long to wait for members to tell how full their heaps are


GONE = "GONE"  # shown as the state of a job that was lost together with its cluster
INVALID = "INVALID"  # shown as the state of a job whose record cannot be used
REPAIR = "`gridscore repair --dry-run` shows what can be done about it."


@dataclass(frozen=True, slots=True)
class Flow:
    """What one look has shown."""

    overview: Overview  # jobs and workers
    sources: Sequence[SourceStatus] = ()  # those that run or have failed, by name
    sinks: Sequence[SinkStatus] = ()  # those that are known, by name
    bad_records: Sequence[BadRecord] = ()
    heaps: Sequence[MemberHeap] = ()  # of the members
    # Where there is no job at all: maps with a journal that nobody reads, and how many entries it got so far.
    unread: Mapping[str, int] = field(default_factory=dict)
    backups: Sequence[BackupRecord] = ()  # those that were ever made of it, the latest first

    @property
    def at(self) -> float:
        """When, in seconds of the monotonic clock."""
        return self.overview.at

    @property
    def invalid(self) -> list[BadRecord]:
        """Records of jobs that cannot be used."""
        return [bad for bad in self.bad_records if bad.map_name == JOBS_MAP]

    @property
    def gone(self) -> list[str]:
        """Names of jobs that workers have lost together with a cluster."""
        known = {each.record.name for each in self.overview.jobs} | {bad.key for bad in self.invalid}
        return sorted({name for worker in self.overview.workers for name in worker.orphaned} - known)

    @property
    def has_jobs(self) -> bool:
        """Whether there is a job, in whatever state."""
        return bool(self.overview.jobs or self.gone or self.invalid)


class FlowObserver:
    """Looks at a cluster repeatedly.

    `job`: the only job to look at, with the sources of its events and the sinks of its results; default: all.
    """

    def __init__(self, grid: Grid, job: str | None = None) -> None:
        self._grid, self._job = grid, job
        self._observer = Observer(grid, job)
        self._sources, self._sinks = Heartbeats(), Heartbeats()
        self._journals: dict[str, bool] = {}

    async def look(self) -> Flow:
        """Look once. Raises JobError if there is no such job."""
        overview = await self._observer.look()
        sources, sinks, heaps, backups = await asyncio.gather(
            source_statuses(self._grid, self._sources),
            sink_statuses(self._grid, self._sinks),
            look_at_heaps(self._grid, _HEAP_SECONDS),
            backups_of(self._grid),
        )
        if self._job is not None:
            job = overview.jobs[0].record.job
            sources = [each for each in sources if job.events in each.maps]
            sinks = [each for each in sinks if each.record.map == job.results]
        else:
            sources = await self._with_unread(sources, overview, sinks)
        bad = self._grid.bad_records.all()
        if self._job is not None:
            bad = [each for each in bad if each.key == self._job or each.key.startswith(f"{self._job}/")]
        flow = Flow(overview, sources, sinks, bad, heaps, backups=backups)
        return flow if flow.has_jobs else replace(flow, unread=await self._unread(sinks))

    async def _unread(self, sinks: Sequence[SinkStatus]) -> dict[str, int]:
        """How many entries the journals that nobody reads got so far.

        Producers know nothing of jobs, and go on after a cluster was replaced by an empty one.
        """
        names = await transport.map_names(self._grid.client) - {each.record.map for each in sinks}
        config = await first_config(self._grid)
        journalled = [
            name
            for name in sorted(names)
            if not name.startswith(("gridscore.", "__"))
            and (config is None or config.map(name).journal_capacity is not None)
        ]
        found: dict[str, int] = {}
        for name in journalled[:_MOST_MAPS]:
            with contextlib.suppress(GridError):  # it has none after all, or was destroyed meanwhile
                found[name] = await journal_entries(self._grid, name)
        return found

    async def _with_unread(
        self, sources: Sequence[SourceStatus], overview: Overview, sinks: Sequence[SinkStatus]
    ) -> list[SourceStatus]:
        """The sources, told which of their maps have a journal that nobody reads.

        Where a total loss took the jobs along, and workers that knew them were started anew, nothing else shows it.
        """
        read = {each.record.job.events for each in overview.jobs if each.record.state not in OVER}
        read |= {each.record.map for each in sinks}
        asked = sorted(set[str]().union(*(each.maps for each in sources if each.processes)) - read)
        unread = {name for name in asked if await self._has_journal(name)}
        return [replace(each, unread=frozenset(each.maps & unread)) for each in sources]

    async def _has_journal(self, map_name: str) -> bool:
        """Whether a map has a journal, as far as that can be told."""
        if map_name not in self._journals:
            try:
                self._journals[map_name] = await journal_capacity(self._grid, map_name, most=1) is not None
            except GridError:
                return False
        return self._journals[map_name]


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings by name, problems first."""

    sources: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    jobs: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    sinks: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    records: Mapping[str, Sequence[Finding]] = field(default_factory=dict)  # of each bad record, by map and key
    maps: Mapping[str, Sequence[Finding]] = field(default_factory=dict)  # of those that nobody reads
    members: Sequence[Finding] = ()  # of the members' heaps

    @property
    def all_well(self) -> bool:
        """Whether there is no problem anywhere."""
        return all(is_well(findings) for _, findings in self)

    def __iter__(self) -> Iterator[tuple[str, Sequence[Finding]]]:
        """Names and their findings, in the order in which events pass."""
        if self.members:
            yield "members", self.members
        for kind in (self.maps, self.sources, self.jobs, self.sinks, self.records):
            yield from kind.items()


class History:
    """The looks of the last seconds, and what they say together."""

    def __init__(self, seconds: float = float("inf")) -> None:
        self._seconds = seconds
        self._flows: deque[Flow] = deque()

    def add(self, flow: Flow) -> None:
        """Add the latest look."""
        self._flows.append(flow)
        while flow.at - self._flows[0].at > self._seconds:
            self._flows.popleft()

    def replace(self, flow: Flow) -> None:
        """Replace the latest look."""
        self._flows.pop()
        self.add(flow)

    def findings(self, *, late_seconds: float = LATE_SECONDS) -> Findings:
        """Findings about everything in the latest look; `late_seconds` as in `examine`."""
        if not self._flows:
            return Findings()
        sources: dict[str, list[SourceStatus]] = {each.name: [] for each in self._flows[-1].sources}
        jobs: dict[str, list[Look[JobStatus]]] = {each.record.name: [] for each in self._flows[-1].overview.jobs}
        sinks: dict[str, list[Look[SinkStatus]]] = {each.record.name: [] for each in self._flows[-1].sinks}
        for flow in self._flows:
            for source in flow.sources:
                sources.get(source.name, []).append(source)
            for job in flow.overview.jobs:
                jobs.get(job.record.name, []).append(Look(flow.at, job))
            for sink in flow.sinks:
                sinks.get(sink.record.name, []).append(Look(flow.at, sink))
        return Findings(
            {name: examine_source(looks) for name, looks in sources.items()},
            {name: examine(looks, late_seconds=late_seconds) for name, looks in jobs.items()}
            | {name: [orphaned(name)] for name in self._flows[-1].gone},
            {name: examine_sink(looks, late_seconds=late_seconds) for name, looks in sinks.items()},
            {_place(bad): [_bad_record(bad)] for bad in self._flows[-1].bad_records},
            {name: [each] for name in self._flows[-1].unread if (each := _unread(name, self._flows))},
            _examine_heaps([flow.heaps for flow in self._flows]),
        )


def orphaned(name: str) -> Finding:
    """The finding about a job that is gone."""
    return problem(
        "cluster_replaced",
        "Workers scored for it until the cluster was replaced by this one, which does not have it.",
        f"Push its model and submit it again; or restart the workers if `{name}` is no longer wanted.",
    )


def _bad_record(bad: BadRecord) -> Finding:
    what = "is not a job that can be scored" if bad.map_name == JOBS_MAP else "cannot be used"
    return problem("bad_record", f"It {what}: {bad.reason}.", REPAIR)


def _unread(name: str, flows: Sequence[Flow]) -> Finding | None:
    """The finding about a map whose events nobody reads, if any come."""
    known = [(flow.at, flow.unread[name]) for flow in flows if name in flow.unread]
    (began, first), (ended, last) = known[0], known[-1]
    if last <= first or len(known) < len(flows):  # somebody has destroyed it meanwhile, or has submitted a job before
        return None
    return problem(
        "no_job",
        f"{count_text(last - first, 'event')} came in {ended - began:.0f} s, and there is no job to read them.",
        "Submit the job. If there was one, it was wiped, or the cluster was replaced by an empty one: then its model, "
        "lookups and offsets are gone, too.",
    )


def _examine_heaps(looks: Sequence[Sequence[MemberHeap]]) -> list[Finding]:
    """Findings about the heaps. Use includes garbage, so the lowest of the looks counts.

    A healthy member may be at 99 % before it collects, and stay there while nobody needs room: that is a problem only
    if a collection between two looks has left it as full. An exhausted heap is collected all the time.
    """
    found = []
    for now in looks[-1]:
        seen = [each for look in looks for each in look if each.address == now.address and each.most]
        lowest = min(seen, key=lambda each: each.share, default=now)
        if lowest.share >= SLOW:
            collected = seen[0].collections != seen[-1].collections
            level, what = Level.NOTE, "after garbage collection: producers and sources are slowed down"
            if not collected:
                what = "garbage included: nothing was collected meanwhile. Until it is, producers are slowed down"
                if lowest.share >= STOP:
                    what = f"{what}, and if it is as full then, they put nothing"
            elif lowest.share >= STOP:
                level, what = Level.PROBLEM, "after garbage collection: producers and sources stop before it runs out"
            text = str(lowest)
            found.append(Finding(level, "heap", f"{text[:1].upper()}{text[1:]}, {what}.", HEAP_ADVICE))
    return problems_first(found)


def to_json(flow: Flow, findings: Findings) -> dict[str, Any]:
    """Sources, jobs, sinks, members, and maps that nobody reads, with their findings, for scripts."""
    return {
        "members": {
            "heaps": [{"share": round(each.share, 3), **asdict(each)} for each in flow.heaps],
            **_judged(findings.members),
        },
        "maps": [{"name": name, **_judged(found)} for name, found in findings.maps.items()],
        "sources": [_with(each, source_lines(each), findings.sources[each.name]) for each in flow.sources],
        "jobs": [_with(each, job_lines(each), findings.jobs[each.record.name]) for each in flow.overview.jobs]
        + [{"name": name, "state": GONE, **_judged(findings.jobs[name])} for name in flow.gone]
        + [{"name": bad.key, "state": INVALID, **_judged(findings.records[_place(bad)])} for bad in flow.invalid],
        "sinks": [_with(each, sink_lines(each), findings.sinks[each.record.name]) for each in flow.sinks],
        "bad_records": [{**bad.to_json(), **_judged(findings.records[_place(bad)])} for bad in flow.bad_records],
        "backups": [{**msgspec.to_builtins(each), "late": each.is_late, "text": each.text} for each in flow.backups],
        "workers": [worker.id for worker in flow.overview.workers],
    }


def jobs_json(flow: Flow) -> list[Any]:
    """The jobs alone, without findings, for scripts."""
    gone = [{"name": name, "state": GONE, "error": orphaned(name).text} for name in flow.gone]
    invalid = [{"name": each.key, "state": INVALID, "error": str(each)} for each in flow.invalid]
    return list(with_moments([*(each.to_json() for each in flow.overview.jobs), *gone, *invalid]))


def _place(bad: BadRecord) -> str:
    return f"{bad.map_name} {bad.key}"


def _with(
    status: SourceStatus | JobStatus | SinkStatus, lines: Iterable[str], findings: Sequence[Finding]
) -> dict[str, Any]:
    return {**status.to_json(), "lines": list(lines), **_judged(findings)}


def _judged(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "healthy": is_well(findings),
        "findings": [{"level": f.level, "code": f.code, "text": f.text, "advice": f.advice} for f in findings],
    }
