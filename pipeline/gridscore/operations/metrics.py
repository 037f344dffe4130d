"""Metrics of a process that scores, reads or delivers, as Prometheus reads them.

Counters are those that the process keeps anyway. When asked, it also looks at the journals of the partitions that it
holds, and leaves out what the cluster does not answer in time.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from contextlib import asynccontextmanager
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from starlette.responses import Response

from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridError, GridscoreError, UsageError
from gridscore.grid import transport
from gridscore.job import JobState
from gridscore.job.life import OVER, WANTED
from gridscore.job.plugs.http import PostSettings
from gridscore.models.drift import MEASURES, drift_of
from gridscore.operations.backup import backups_of
from gridscore.operations.health import TREND_SECONDS, fullest, seconds_left
from gridscore.operations.status import positions
from gridscore.scoring.stats import LATENCY_SECONDS
from gridscore.scoring.window_states import map_of as window_map
from gridscore.sinks.records import DELIVERING, PAUSED, STARTING, WAITING
from gridscore.sources.http.answer import json_response
from gridscore.sources.http.server import HttpServer
from gridscore.sources.status import FAILED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from prometheus_client.core import Metric
    from starlette.types import Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.group.group import Group
    from gridscore.group.subscription import GroupStats
    from gridscore.models.drift import DriftRecord
    from gridscore.operations.backup import BackupRecord
    from gridscore.operations.status import Position
    from gridscore.scoring import JobRunner, Worker
    from gridscore.scoring.stats import JobStats
    from gridscore.scoring.trial import Trial
    from gridscore.sinks.runner import SinkRunner
    from gridscore.sources.runner import SourceRunner

TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATH = "/metrics"

_CONNECTIONS = 32  # from one address: a client that forgets to close its connections must not lock out the next
LOOK_SECONDS = 2.0  # how long to wait for what the cluster has to answer
BELIEVED_SECONDS = 1.0  # who asks again within this time gets the same answer: it costs the cluster nothing
_KEPT_SECONDS = 30.0  # how far back looks say whether a journal fills; further, where nobody has asked meanwhile
_SOURCE_STATES = ("starting", "running", "waiting", "paused", "interrupted", FAILED)
_SINK_STATES = (STARTING, DELIVERING, WAITING, PAUSED)

# Counters of `GroupStats`: name, of the events or results that are counted, and what it means.
_OF_GROUPS = {
    "events": ("{}", "Acknowledged."),
    "lost": ("lost_{}", "Overwritten before this process read them."),
    "rescued": ("rescued_{}", "Found by a rescan, and acknowledged."),
    "dead": ("dead_letters", "Sent to the dead letters."),
    "regressions": ("journal_regressions", "Journals that this process saw begin again."),
    "rebalances": ("rebalances", "Times that partitions came or went."),
    "taken": ("taken_partitions", "Partitions that were taken."),
    "given": ("given_partitions", "Partitions that were given back."),
}

_OF_JOBS = {
    "batches": ("batches", "Micro-batches: events by them is the mean size of one."),
    "skipped": ("skipped_events", "That had their result when they were read a second time."),
    "late": ("late_events", "Too late to count in windows."),
    "broken_states": ("broken_window_states", "That could not be used, and began anew."),
}
_OF_SOURCES = {
    "events": ("events", "Put into the grid, and confirmed."),
    "poison": ("rejected_events", "Read, but not events."),
    "lost": ("lost_events", "Removed at the other side before they were read, as far as it can be told."),
    "interruptions": ("interruptions", "Times that it had to try again."),
    "waited": ("waited_seconds", "Time that it has waited for room in the grid."),
}
_OF_SINKS = {
    "filtered": ("filtered_results", "Not to be delivered, by the sink's settings."),
    "deliveries": ("deliveries", "Deliveries of one or more results."),
    "interruptions": ("interruptions", "Times that it had to try again."),
}


class Families:
    """Metrics of one moment, each with the samples that were added."""

    def __init__(self) -> None:
        self._found: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}

    def collect(self) -> Iterable[Metric]:
        """As prometheus-client asks."""
        return self._found.values()

    def count(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a sample of a counter, whose name ends in `_total` when it is read."""
        found = self._found.get(name) or self._found.setdefault(name, CounterMetricFamily(name, text, labels=[*labels]))
        found.add_metric([*labels.values()], value)  # type: ignore[arg-type, call-arg]

    def show(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a sample of a gauge."""
        found = self._found.get(name) or self._found.setdefault(name, GaugeMetricFamily(name, text, labels=[*labels]))
        found.add_metric([*labels.values()], value)  # type: ignore[arg-type, call-arg]

    def spread(self, name: str, text: str, counts: Sequence[int], total: float, **labels: str) -> None:
        """Add a histogram of seconds, by `LATENCY_SECONDS`."""
        found = HistogramMetricFamily(name, text, labels=[*labels])
        found = self._found.setdefault(name, found)  # type: ignore[assignment]
        bounds = (*map(str, LATENCY_SECONDS), "+Inf")
        found.add_metric([*labels.values()], [*zip(bounds, accumulate(counts), strict=True)], total)


class _Journals:
    """The latest looks at the journals of the partitions that a group holds here."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._looks: deque[tuple[float, Mapping[int, Position]]] = deque()

    async def look(self, grid: Grid) -> None:
        leases = {partition: self.group.record(partition) for partition in self.group.held}
        known, problem = await positions(grid, self.group.subscription, leases, list(leases))
        if known is None:
            raise GridError(problem)
        looks, now = self._looks, grid.clock()
        looks.append((now, dict(zip(leases, known, strict=True))))
        while len(looks) > 2 and now - looks[0][0] > _KEPT_SECONDS and now - looks[1][0] >= TREND_SECONDS:
            looks.popleft()

    def show(self, families: Families, prefix: str, what: str, **labels: str) -> None:
        """Add what the looks have shown, if the last one is of now."""
        rows = self._looks[-1][1].values()
        lag = sum(each.unread for each in rows)
        families.show(f"{prefix}_lag_{what}", "Unread, in the partitions of this process.", lag, **labels)
        if any(each.room is not None for each in rows):
            text = "Part of its journal that is unread, of the fullest partition of this process."
            families.show(f"{prefix}_journal_full_ratio", text, fullest([*rows]), **labels)
        if self._looks[-1][0] - self._looks[0][0] >= TREND_SECONDS:
            text = "Until unread entries are overwritten, of the worst partition here; +Inf if that is not in sight."
            left = min(seconds_left([*self._looks]).values(), default=math.inf)
            families.show(f"{prefix}_journal_left_seconds", text, left, **labels)


class Metrics:
    """The metrics of one process, of the worker, sources and sinks that run in it."""

    def __init__(
        self,
        grid: Grid,
        *,
        worker: Worker | None = None,
        sources: Sequence[SourceRunner] = (),
        sinks: Sequence[SinkRunner] = (),
    ) -> None:
        self._grid = grid
        self._worker, self._sources, self._sinks = worker, sources, sinks
        self._journals: dict[str, _Journals] = {}
        self._families = Families()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._asking = asyncio.Lock()
        self._text, self._at = b"", -math.inf

    async def text(self) -> bytes:
        """All of them now, or a moment ago."""
        async with self._asking:
            if self._grid.clock() - self._at >= BELIEVED_SECONDS:
                self._families = await self._collected()
                self._text, self._at = generate_latest(self._registry), self._grid.clock()
            return self._text

    def collect(self) -> Iterable[Metric]:
        """As prometheus-client asks."""
        return self._families.collect()

    async def _collected(self) -> Families:
        jobs = {} if self._worker is None else self._worker.runners
        groups = {name: runner.group for name, runner in jobs.items()}
        groups |= {sink.group.subscription.group: sink.group for sink in self._sinks}
        known = {(name, each.group): each for name, each in self._journals.items()}
        self._journals = {name: known.get((name, group)) or _Journals(group) for name, group in groups.items()}
        records = {} if self._worker is None else self._worker.records
        drifting = [name for name in jobs if name in records and records[name].job.drift is not None]
        maps = [map_of(name) for name in jobs]
        maps += [runner.windows.map_name for runner in jobs.values() if runner.windows is not None]
        looked, sizes, drifts, backups = await self._ask(maps, drifting)
        families, grid = Families(), self._grid
        families.show("gridscore_build_info", "Always 1.", 1, version=version("gridscore"))
        text = "Whether the cluster has answered all that it was asked for these metrics."
        families.show("gridscore_cluster_answers", text, float(looked))
        for name, runner in jobs.items():
            _job(families, name, runner, sizes)
            text = "Partitions that the workers of a job have to hold together."
            families.show("gridscore_worker_all_partitions", text, grid.partition_count, job=name)
            if (trial := runner.trial) is not None:
                _trial(families, trial, job=name)
        for name, drift in drifts.items():
            _drift(families, drift, f"{records[name].job.model.name} v{jobs[name].stats.version}", job=name)
        for name, record in sorted(records.items()):
            if (state := record.state) not in OVER:
                text = "Whether a job is to be scored for: it is neither suspended nor FAILED."
                families.show("gridscore_worker_job_wanted", text, float(state in WANTED), job=name)
                failed = float(state == JobState.FAILED)
                families.show("gridscore_worker_job_failed", "Whether a job is FAILED.", failed, job=name)
        for backup in backups:
            text = "Since the cluster was read for the newest restore point of a backup that runs, or ran, by itself."
            families.show("gridscore_backup_age_seconds", text, backup.age, to=backup.to)
            text = "Whether that is more than twice what it may be, or the last look failed."
            families.show("gridscore_backup_late", text, float(backup.is_late), to=backup.to)
        for source in self._sources:
            stats, labels = source.stats, {"source": source.name, "kind": source.stats.kind}
            for field, (what, text) in _OF_SOURCES.items():
                families.count(f"gridscore_source_{what}", text, getattr(stats, field), **labels)
            _state(families, "gridscore_source_state", stats.state, _SOURCE_STATES, **labels)
            text = "Whether it ends by itself, once it has read what there is."
            families.show("gridscore_source_has_end", text, float(source.has_end), **labels)
        for sink in self._sinks:
            labels = {"sink": sink.name, "kind": sink.kind}
            _group(families, "gridscore_sink", "results", sink.stats, sink.group, **labels)
            for field, (what, text) in _OF_SINKS.items():
                families.count(f"gridscore_sink_{what}", text, getattr(sink.stats, field), **labels)
            _state(families, "gridscore_sink_state", sink.stats.state, _SINK_STATES, **labels)
        if looked:
            for name in jobs:
                self._journals[name].show(families, "gridscore_worker", "events", job=name)
            for sink in self._sinks:
                group = sink.group.subscription.group
                self._journals[group].show(families, "gridscore_sink", "results", sink=sink.name, kind=sink.kind)
        return families

    async def _ask(
        self, maps: Sequence[str], drifting: Sequence[str]
    ) -> tuple[bool, dict[str, int], dict[str, DriftRecord | None], list[BackupRecord]]:
        """Look at journals, how large maps are, the drift of jobs, and backups; whether all was answered in time."""
        client = self._grid.client
        try:
            async with asyncio.timeout(LOOK_SECONDS), asyncio.TaskGroup() as tasks:
                for each in self._journals.values():
                    tasks.create_task(each.look(self._grid))
                asked = {name: tasks.create_task(transport.map_size(client, name)) for name in maps}
                drifts = {name: tasks.create_task(drift_of(self._grid, name)) for name in drifting}
                backups = tasks.create_task(backups_of(self._grid)) if self._worker is not None else None
        except (TimeoutError, ExceptionGroup) as error:
            if isinstance(error, ExceptionGroup) and error.split((HazelcastError, GridscoreError))[1] is not None:
                raise
            return False, {}, {}, []
        sizes = {name: size.result() for name, size in asked.items()}
        # Of several to one place, the latest: a label of its own may have one sample only.
        running = {each.to: each for each in reversed(backups.result()) if each.every} if backups else {}
        return True, sizes, {name: drift.result() for name, drift in drifts.items()}, [*running.values()]


@asynccontextmanager
async def exposed(grid: Grid, host: str, port: int, **what: Any) -> AsyncIterator[str]:
    """Serve metrics while this is entered; gives the address.

    `port`: 0 for any that is free; `what`: as for `Metrics`. Raises UsageError if the address cannot be listened on.
    """
    metrics = Metrics(grid, **what)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = json_response(404, {"error": f"There is only {PATH} here."})
        if scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            response = Response(await metrics.text(), media_type=TYPE)
        await response(scope, receive, send)

    # Anyone who can connect may ask: the host was chosen, and nothing here is secret.
    server = HttpServer(grid, PostSettings(host=host, port=port, public=True, max_per_address=_CONNECTIONS))
    try:
        server.open(answer)
    except UsageError as error:
        hint = "Is something else listening there? --metrics takes another port, or HOST:PORT."
        raise UsageError(error.message, hint) from None
    try:
        yield f"{server.address}{PATH}"
    finally:
        await server.close()


def _job(families: Families, name: str, runner: JobRunner, sizes: Mapping[str, int]) -> None:
    stats, of, prefix = runner.stats, {"job": name}, "gridscore_worker"
    _group(families, prefix, "events", stats, runner.group, **of)
    families.show(f"{prefix}_ready", "Whether this process scores for a job.", float(runner.is_scoring), **of)
    for field, (what, text) in _OF_JOBS.items():
        families.count(f"{prefix}_{what}", text, getattr(stats, field), **of)
    for stage, ns in stats.stage_ns.items():
        text = "CPU time of a worker's loop, by stage."
        families.count(f"{prefix}_stage_cpu_seconds", text, ns / 1e9, **of, stage=stage)
    if stats.latencies is not None:
        text = "From an event's arrival at the worker to the acknowledgement of its result."
        families.spread(f"{prefix}_latency_seconds", text, stats.latencies.counts, stats.latencies.total, **of)
    _model(families, prefix, stats, **of)
    for map_name, what, text in (
        (map_of(name), "standing_dead_letters", "Dead letters of a job in the grid, of all workers."),
        (window_map(name), "window_entities", "Entities of a job's windows in the grid, of all workers."),
    ):
        if map_name in sizes:
            families.show(f"{prefix}_{what}", text, sizes[map_name], **of)
    if runner.windows is not None:
        text = "States of windows that this process has in memory."
        families.show(f"{prefix}_window_states", text, runner.windows.known, **of)


def _model(families: Families, prefix: str, stats: JobStats, **of: str) -> None:
    """The model in use, and the lookups."""
    families.show(f"{prefix}_model_version", "Version of the model in use; 0 if none.", stats.version, **of)
    for field in ("model", "lookup", "function"):
        text = f"Whether a {field} is meant to be in use and cannot be {'called' if field == 'function' else 'loaded'}."
        families.show(f"{prefix}_{field}_refused", text, float(bool(getattr(stats, f"{field}_error"))), **of)
    for lookup, copy in stats.copies.items():
        text = "Since a lookup's copy was known to be right."
        families.show(f"{prefix}_lookup_age_seconds", text, copy["age"], **of, lookup=lookup)
        families.show(f"{prefix}_lookup_entries", "Of a lookup's copy.", copy["entries"], **of, lookup=lookup)
        text = "Entries of a lookup that cannot be read."
        families.show(f"{prefix}_lookup_bad_entries", text, copy["bad"], **of, lookup=lookup)
        text = "Events without an entry, since the model went live."
        families.count(f"{prefix}_lookup_missed_events", text, copy["missed"], **of, lookup=lookup)


def _trial(families: Families, trial: Trial, **of: str) -> None:
    """What this worker has counted of the variants of an experiment."""
    experiment, counts = trial.experiment, trial.counts
    for variant, each in [("champion", None), *experiment.named]:
        counted = counts.of(variant)
        labels = {**of, "variant": variant, "version": str(each.version) if each is not None else ""}
        text = "Events that this worker scored for an experiment."
        families.count("gridscore_worker_experiment_events", text, counted.events, **labels)
        text = "Events of a variant that it gave no score."
        families.count("gridscore_worker_experiment_errors", text, counted.errors, **labels)
        text = "CPU time of its predictions."
        families.count("gridscore_worker_experiment_cpu_seconds", text, counted.ns / 1e9, **labels)
        if each is not None:
            text = "Whether a challenger is still tried: if not, the champion scores its entities."
            families.show("gridscore_worker_experiment_running", text, float(each.state == "running"), **labels)


def _drift(families: Families, record: DriftRecord | None, version: str, **of: str) -> None:
    """What the workers of a job have found together."""
    alerts = Counter(alert.measure for alert in record.active) if record is not None else Counter[str]()
    for measure in MEASURES:
        text = "Features of a job, its score among them, that have moved too far from the training."
        families.show("gridscore_worker_drift_alerts", text, alerts[measure], **of, measure=measure)
    watched = None if record is None else record.versions.get(version)
    if watched is not None and watched.worst is not None:
        text = "PSI of the feature that had moved farthest in the last window of the version in use."
        families.show("gridscore_worker_drift_psi", text, watched.worst[1], **of)


def _group(families: Families, prefix: str, what: str, stats: GroupStats, group: Group, **of: str) -> None:
    for field, (name, text) in _OF_GROUPS.items():
        families.count(f"{prefix}_{name.format(what)}", text, getattr(stats, field), **of)
    families.count(f"{prefix}_commits", "Offsets that were committed, each of a partition.", group.commits, **of)
    families.show(f"{prefix}_partitions", "Partitions that this process holds.", len(group.held), **of)
    text = "Partitions of this process that are still to be searched for what was lost."
    families.show(f"{prefix}_rescans", text, stats.rescans, **of)
    if stats.committed_at:
        text = "When offsets were last committed."
        families.show(f"{prefix}_last_commit_timestamp_seconds", text, stats.committed_at / 1000, **of)


def _state(families: Families, name: str, state: str, states: Sequence[str], **of: str) -> None:
    for each in states:
        families.show(name, "1 for the state that it is in.", float(each == state), **of, state=each)
