"""One soak from end to end: a cluster, workers behind proxies, a producer, a listener, faults, and the judgement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gridscore.client import Client
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridscoreError, MemberError, UsageError
from gridscore.grid import connect, transport
from gridscore.grid.launch import MemberExtras
from gridscore.grid.member import Cluster
from gridscore.grid.records import Records
from gridscore.grid.settings import GridSettings
from gridscore.job.life import JOBS_MAP
from gridscore.leash import LeashedProcess
from gridscore.models.registry import MODELS_MAP
from gridscore.operations.status import lag
from gridscore.proving.bench.temporary import remove_leases
from gridscore.proving.soak import listener
from gridscore.proving.soak.checker import check, expected_scores, unplanned_splits
from gridscore.proving.soak.evidence import LEDGER, Evidence, lines
from gridscore.proving.soak.faults import Faults, WorkerSlot
from gridscore.proving.soak.plan import HEARTBEAT_INTERVAL_SECONDS, HEARTBEAT_SECONDS, Counts, Plan
from gridscore.proving.soak.producer import Progress, read_progress
from gridscore.proving.soak.proxy import Backbone, Network
from gridscore.proving.soak.report import Report
from gridscore.proving.soak.workload import booster, customers, soak_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gridscore.grid import Grid
    from gridscore.job import Job, JobRecord

START_SECONDS = 60.0  # how long listener and workers may take to be ready
SETTLE_SECONDS = 60.0  # how long the last events may wait for their results while nothing moves; then they are lost
_END_SECONDS = 240.0
_LOOK_SECONDS = 0.2
# Members listen below the ports that systems give to whoever connects: one that is down must find its own free.
_PORTS = (10_000, 30_000)

_PORT_ATTEMPTS = 10

_MEMBER_PROPERTIES = {
    # Faults of members wait for what they say of their partitions.
    "hazelcast.metrics.collection.frequency": "1",
    # A member that is silent for longer than this is taken for dead, so that a run has time for it.
    "hazelcast.max.no.heartbeat.seconds": f"{HEARTBEAT_SECONDS:.0f}",
    "hazelcast.heartbeat.interval.seconds": f"{HEARTBEAT_INTERVAL_SECONDS:.0f}",
    # Backups that missed something are made good after thirty seconds, unless told otherwise.
    "hazelcast.partition.backup.sync.interval": "5",
    # Those that were split look for each other after five minutes, and then every two, unless told otherwise.
    "hazelcast.merge.first.run.delay.seconds": "5",
    "hazelcast.merge.next.run.delay.seconds": "5",
}


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """What to do."""

    seed: int  # of events, lookups, model and faults
    events: int = 500_000  # how many at least; it goes on until all faults are done
    rate: float = 1_500.0  # events per second
    workers: int = 4  # how many
    lease: float = 5.0  # their lease time, in seconds
    counts: Counts = field(default_factory=Counts)  # how many faults of each kind
    members: int = 3  # how many to start, if `settings` names no cluster
    heap: str = "1536m"  # Java heap of each of these
    settings: GridSettings | None = None  # the cluster to use; its members are not killed
    folder: Path | None = None  # where logs and records go and stay; None for a folder that is removed if all is well
    limit: float = 1_800.0  # seconds from the beginning of the load after which it ends, faults undone


@dataclass(slots=True)
class Status:
    """What is going on, for those who watch."""

    phase: str = "starting"  # in words
    acknowledged: int = 0  # events so far
    events: int = 0  # how many there will be at least
    faults: int = 0  # done so far
    planned: int = 0  # faults in the plan
    now: list[str] = field(default_factory=list)  # faults under way


async def run_soak(options: SoakOptions, watch: Callable[[Status, str | None], None]) -> Report:
    """Run a soak and judge it. Nothing of it stays: neither processes, nor maps, jobs or models in a cluster of others.

    `options`: what to do; `watch`: called with the status a few times a second, and with a line when there is one to
    print. Raises GridscoreError if it could not be carried out; that says nothing about the cluster.
    """
    if sys.platform == "win32":
        raise UsageError("A soak needs POSIX signals to pause and end workers.", "Run it on Linux or macOS.")
    return await _Trial(options, watch).run()


class _Trial:
    def __init__(self, options: SoakOptions, watch: Callable[[Status, str | None], None]) -> None:
        self._options, self._watch = options, watch
        self._status = Status(events=options.events)
        self._name = f"soak-{secrets.token_hex(4)}"
        self._job = soak_job(self._name)
        self._lookups = {"customer": customers(options.seed)}
        self._model = booster(options.seed, self._job.feature_names)
        self._began = time.monotonic()

    async def run(self) -> Report:
        options = self._options
        folder = options.folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="gridscore-soak-"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(f"The folder `{folder}` is not empty.", "Name a new one.")
        kept = options.folder is not None
        try:
            async with AsyncExitStack() as stack:
                showing = asyncio.create_task(self._show(folder))
                stack.callback(showing.cancel)
                report = await self._in(stack, folder)
            kept = kept or not report.verdict.is_good
        except GridscoreError:
            kept = True
            self._say(f"logs and records: {folder}")
            raise
        finally:
            if not kept:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        if not kept:
            report.folder = None
        return report

    async def _in(self, stack: AsyncExitStack, folder: Path) -> Report:
        options = self._options
        cluster: Cluster | None = None
        backbone: Backbone | None = None
        settings = options.settings
        if settings is None:
            self._phase(f"starting {options.members} members")
            cluster, backbone = await self._start_cluster(stack)
            stack.push_async_callback(asyncio.to_thread, _stop_cluster, cluster, folder)
            settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        elif options.counts.of_members:
            raise UsageError(
                "Members of a cluster that is not ours are neither killed, nor stopped, nor cut off.",
                "Take --member-kills 0 --member-pauses 0 --member-cuts 0 --both-kills 0.",
            )
        grid = await stack.enter_async_context(await connect(settings, name="gridscore-soak"))
        addresses = [f"{member.address.host}:{member.address.port}" for member in grid.members]
        plan = Plan.make(
            options.seed,
            options.counts,
            seconds=options.events / options.rate,
            lease=options.lease,
            workers=options.workers,
            members=len(addresses),
        )
        self._status.planned = len(plan.faults)
        for line in (f"seed {options.seed}, plan:", *plan.lines()):
            self._say(line)
        record = await stack.enter_async_context(self._set_stage(grid, own=cluster is not None))
        slots = [await self._slot(stack, index, addresses, settings, folder) for index in range(options.workers)]
        faults = Faults(slots, cluster, backbone, grid, self._name, folder, self._say)
        for slot in slots:
            slot.start()
        await stack.enter_async_context(faults)
        self._phase("waiting for the workers")
        await self._until_scoring(grid, slots)
        seeing = stack.enter_context(self._listener(settings, folder))
        await self._until_ready(seeing, folder / listener.READY, "listener")

        self._phase("under load")
        load_began = time.monotonic()
        putting = stack.enter_context(self._producer(settings, folder))
        ended_early = not await self._under_load(putting, faults, plan)
        load_seconds = time.monotonic() - load_began
        self._phase("waiting for the last results")
        progress = await self._end_producer(putting, folder)
        settled_in = await self._settle(grid, record, folder)
        self._phase("recording what is in the cluster")
        await _end(seeing, "listener")
        await faults.end()

        self._phase("computing what should be there")
        evidence = await asyncio.to_thread(Evidence.load, folder, set(progress.doubt))
        expected = await asyncio.to_thread(expected_scores, self._model, self._lookups["customer"], evidence.ledger)
        verdict = await asyncio.to_thread(check, evidence, expected, options.lease)
        verdict.crashes = list(faults.crashes)
        if cluster is not None and backbone is not None:
            verdict.splits = unplanned_splits(cluster.log_files, backbone.ports, evidence.incidents)
        if ended_early:
            verdict.crashes.append(
                f"Not all faults were done, or not all events put, after {options.limit:.0f} seconds."
            )
        return Report(
            job=self._name,
            seed=options.seed,
            plan=plan,
            verdict=verdict,
            incidents=evidence.incidents,
            producer=progress,
            load_seconds=load_seconds,
            settled_in=settled_in,
            seconds=time.monotonic() - self._began,
            folder=folder,
        )

    # ------------------------------------------------------------------ the stage

    async def _start_cluster(self, stack: AsyncExitStack) -> tuple[Cluster, Backbone]:
        options = self._options
        draw = secrets.SystemRandom()
        for attempt in range(_PORT_ATTEMPTS):
            first = draw.randrange(*_PORTS)
            ports = range(first, first + options.members)
            outbound = [range(start, start + 100) for start in range(first + 100, first + 100 * len(ports) + 1, 100)]
            async with AsyncExitStack() as attempted:
                backbone = await attempted.enter_async_context(Backbone(ports, outbound))
                extras = MemberExtras(properties=_MEMBER_PROPERTIES, announced=backbone.ports, outbound=outbound)
                start = partial(Cluster.start, options.members, port=first, heap=options.heap, extras=extras)
                try:
                    cluster = await asyncio.to_thread(start)
                except MemberError as error:
                    if "in use" not in str(error) or attempt == _PORT_ATTEMPTS - 1:
                        raise
                else:
                    stack.push_async_exit(attempted.pop_all())
                    return cluster, backbone
        raise AssertionError

    @asynccontextmanager
    async def _set_stage(self, grid: Grid, *, own: bool) -> AsyncIterator[JobRecord]:
        """Lookup, model and job, until the end; in a cluster of others, everything is taken away again."""
        self._phase("putting lookup, model and job")
        client, job = Client(grid), self._job
        try:
            for name, entries in self._lookups.items():
                await client.put_events(job.lookups[name].map, entries)
            await client.push_model(self._model, job.model.name)
            yield await client.submit(job)
        finally:
            if not own:
                self._phase("taking away what was put into the cluster")
                await asyncio.shield(clear(grid, job))

    async def _slot(
        self, stack: AsyncExitStack, index: int, addresses: list[str], settings: GridSettings, folder: Path
    ) -> WorkerSlot:
        network = await stack.enter_async_context(Network(addresses))
        arguments = ["worker", "--jobs", self._name, "--lease", str(self._options.lease)]
        for member in settings.members:
            arguments += ["--members", member]
        arguments += ["--cluster-name", settings.cluster_name]
        return WorkerSlot(index, network, arguments, folder)

    def _child(self, name: str, settings: GridSettings, folder: Path, *arguments: str) -> LeashedProcess:
        where = [part for member in settings.members for part in ("--member", member)]
        where += ["--cluster-name", settings.cluster_name, "--folder", str(folder)]
        return LeashedProcess(f"gridscore.proving.soak.{name}", [*where, *arguments], folder / f"{name}.log")

    def _listener(self, settings: GridSettings, folder: Path) -> LeashedProcess:
        return self._child("listener", settings, folder, "--job", self._name)

    def _producer(self, settings: GridSettings, folder: Path) -> LeashedProcess:
        options = self._options
        what = ("--map", self._job.events, "--seed", str(options.seed), "--rate", str(options.rate))
        return self._child("producer", settings, folder, *what)

    async def _until_scoring(self, grid: Grid, slots: list[WorkerSlot]) -> None:
        deadline = time.monotonic() + START_SECONDS
        record = await Client(grid).jobs.get(self._name)
        while (await lag(grid, record))[1] < grid.partition_count:
            for slot in slots:
                if slot.exit_code is not None:
                    raise GridscoreError(f"A worker ended at once. Its last lines:\n{slot.last_lines()}")
            if time.monotonic() > deadline:
                raise GridscoreError(
                    f"The workers did not begin to score in {START_SECONDS:.0f} seconds. The last lines of one:\n"
                    + slots[0].last_lines()
                )
            await asyncio.sleep(_LOOK_SECONDS)

    @staticmethod
    async def _until_ready(child: LeashedProcess, sign: Path, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not sign.exists():  # noqa: ASYNC240 -- a look at a local file
            _refuse_death(child, name)
            if time.monotonic() > deadline:
                raise GridscoreError(f"The {name} is not ready. Its last lines:\n{child.last_lines()}")
            await asyncio.sleep(_LOOK_SECONDS)

    # ------------------------------------------------------------------ the load

    async def _under_load(self, putting: LeashedProcess, faults: Faults, plan: Plan) -> bool:
        """Put events and do the faults; False if the time ran out before all was done."""
        doing = asyncio.create_task(faults.run(plan))
        deadline = time.monotonic() + self._options.limit
        try:
            while not doing.done() or self._status.acknowledged < self._options.events:
                _refuse_death(putting, "producer")
                if doing.done():
                    doing.result()
                if time.monotonic() > deadline:
                    return False
                self._status.faults = faults.done
                self._status.now = list(faults.now.values())
                await asyncio.sleep(_LOOK_SECONDS)
            doing.result()
            return True
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            self._status.faults, self._status.now = faults.done, []

    async def _end_producer(self, putting: LeashedProcess, folder: Path) -> Progress:
        await _end(putting, "producer")
        progress = read_progress(folder)
        if not progress.finished:
            raise GridscoreError(f"The producer did not finish. Its last lines:\n{putting.last_lines()}")
        return progress

    async def _settle(self, grid: Grid, record: JobRecord, folder: Path) -> float:
        """Wait until there is a result for every key and every event has been read; seconds that it took."""
        began = changed = time.monotonic()
        keys = len(await asyncio.to_thread(lambda: {key for _, _, key, _ in lines(folder / LEDGER)}))
        before: tuple[int, int | None] = (-1, None)
        while time.monotonic() - changed < SETTLE_SECONDS:
            size = await transport.map_size(grid.client, record.job.results)
            behind, _ = await lag(grid, record)
            if size >= keys and behind == 0:
                return round(time.monotonic() - began, 1)
            if (size, behind) != before:
                before, changed = (size, behind), time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)
        self._say(f"no end: {before[0]:,} results of {keys:,}, {before[1]} events unread")
        return round(time.monotonic() - began, 1)

    # ------------------------------------------------------------------ the watcher

    def _phase(self, phase: str) -> None:
        self._status.phase = phase
        self._watch(self._status, None)

    def _say(self, line: str) -> None:
        self._watch(self._status, line)

    async def _show(self, folder: Path) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._status.acknowledged = read_progress(folder).acknowledged
            self._watch(self._status, None)


def _stop_cluster(cluster: Cluster, folder: Path) -> None:
    """Stop the members; their logs, which go with them, are kept with the workers'."""
    for log in cluster.log_files:
        with contextlib.suppress(OSError):
            shutil.copy(log, folder)
    cluster.stop()


async def clear(grid: Grid, job: Job) -> None:
    """Take away all that a soak has put into a cluster. Its workers have ended."""
    client = Client(grid)
    with contextlib.suppress(GridscoreError):
        await client.cancel(job.name)
    await remove_leases(grid, job.name)
    for name in (job.events, job.results, map_of(job.name), *(lookup.map for lookup in job.lookups.values())):
        await grid.destroy(name)
    with contextlib.suppress(GridscoreError):
        await client.models.delete(job.model.name, 1)
    await Records(grid, MODELS_MAP).delete(job.model.name)
    await Records(grid, JOBS_MAP).delete(job.name)


def _refuse_death(child: LeashedProcess, name: str) -> None:
    if child.exit_code is not None:
        raise GridscoreError(f"The {name} ended with code {child.exit_code}. Its last lines:\n{child.last_lines()}")


async def _end(child: LeashedProcess, name: str) -> None:
    """Ask a child to end, and wait until it has."""
    _refuse_death(child, name)
    os.kill(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while child.exit_code is None:
        if time.monotonic() > deadline:
            raise GridscoreError(f"The {name} does not end. Its last lines:\n{child.last_lines()}")
        await asyncio.sleep(_LOOK_SECONDS)
    if child.exit_code != 0:
        _refuse_death(child, name)
