"""Gridscore as its users run it: `gridscore worker` processes, a model in the registry, a job that is submitted."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from benchmarks.crew import where
from benchmarks.systems.in_grid import InGrid
from gridscore.errors import GridscoreError
from gridscore.grid import transport
from gridscore.grid.records import Records
from gridscore.group.lease_records import read_records
from gridscore.group.leases import start_over
from gridscore.group.members import WORKERS_MAP
from gridscore.job import Jobs, parse_job
from gridscore.leash import LeashedProcess
from gridscore.models import Registry

if TYPE_CHECKING:
    from benchmarks.systems.base import Bed

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.05


class Gridscore(InGrid):
    """Workers stay from run to run; the job is submitted for each run, and cancelled.

    Args:
        bed: What it is measured on.
        workers: Processes.
        jobs: So many of the same job, each with a result map of its own.
        lease: Lease time of the workers in seconds; longer than anybody suspends them.
    """

    name = "gridscore"
    title = "Gridscore, one worker process"
    tuning = (
        "As installed: one worker process, settings untouched. Leases, committed offsets, loss accounting and dead"
        " letters are on."
    )

    def __init__(self, bed: Bed, *, workers: int = 1, jobs: int = 1, lease: float = 5.0) -> None:
        super().__init__(bed)
        self._count = workers
        self._lease = lease
        results = self.results_map
        self._names = {
            self.name if i == 0 else f"{self.name}-{i}": results if i == 0 else f"{results}-{i}" for i in range(jobs)
        }
        self._jobs = Jobs(bed.grid)
        self._workers: list[LeashedProcess] = []
        self._submitted = False

    async def prepare(self) -> None:
        """Push the model, and start the workers."""
        import xgboost as xgb

        booster = xgb.Booster(model_file=str(self.bed.files / "model.ubj"))
        await Registry(self.bed.grid).push(booster, self.bed.work.job.model.name, alias="champion")
        # Workers of another system are in the same cluster: each takes its own jobs only.
        jobs = ",".join(self._names)
        arguments = ["worker", "--jobs", jobs, "--lease", str(self._lease)]
        arguments += where(self.bed.cluster_name, self.bed.addresses)
        for number in range(self._count):
            log = self.bed.folder / f"gridscore-worker-{number}.log"
            self._workers.append(LeashedProcess("gridscore.cli", arguments, log))
        pids = set(self.pids())
        await self._until(lambda records: pids <= {record["pid"] for record in records}, "The workers do not start")

    async def start(self, *, backlog: bool) -> None:
        """Submit the job; for live events, wait until all of its partitions are read."""
        self._submitted = True
        begin = "oldest" if backlog else "latest"
        for name, results in self._names.items():
            text = self.bed.work.job_text.replace("job: bench\n", f"job: {name}\n", 1)
            text = text.replace(f"results: {self.results_map}\n", f"results: {results}\n", 1)
            await self._jobs.submit(parse_job(f"{text}start: {begin}\n", "the benchmark's job"))
        if not backlog:
            await self._held()

    async def results(self) -> int:
        """Entries of the maps of results."""
        client = self.bed.grid.client
        return sum(await asyncio.gather(*(transport.map_size(client, name) for name in self._names.values())))

    async def stages(self) -> dict[str, float]:
        """As the workers publish them once a second, of the whole run."""
        expected = await self.results()

        def done(records: list[dict[str, Any]]) -> bool:
            return sum(int(figures["events"]) for figures in self._figures(records)) >= expected

        figures = self._figures(await self._until(done, "The workers do not say what they have done"))
        events = sum(each["events"] for each in figures)
        totals: Counter[str] = Counter()
        for each in figures:
            for stage, micros in each["stage_us_per_event"].items():
                totals[stage] += micros * each["events"]
        return {stage: total / events for stage, total in totals.items()}

    async def stop(self) -> None:
        """Cancel the job, wait until nobody scores for it, and forget its offsets and results."""
        if self._submitted:
            for name in self._names:
                await self._jobs.cancel(name)
            await self._until(
                lambda records: not any(set(self._names) & record["jobs"].keys() for record in records),
                "The workers do not let the job go",
            )
            for name in self._names:
                await start_over(self.bed.grid, name)
            for results in list(self._names.values())[1:]:
                await self.bed.grid.destroy(results)
            self._submitted = False
        await self.clear()

    async def close(self) -> None:
        """Stop the workers."""
        while self._workers:
            await asyncio.to_thread(self._workers.pop().stop)

    def pids(self) -> list[int]:
        """The workers."""
        return [worker.pid for worker in self._workers]

    async def check(self) -> None:
        """Raise if a worker has ended or an event could not be put.

        Raises:
            GridscoreError: With the last lines of the worker.
        """
        await super().check()
        for worker in self._workers:
            if worker.exit_code is not None:
                raise GridscoreError(f"A worker ended. Its last lines:\n{worker.last_lines()}")

    async def _held(self) -> None:
        """Wait until the workers hold and read all partitions of each job, in equal parts."""
        floor, more = divmod(self.bed.grid.partition_count, self._count)
        deadline = time.monotonic() + _WAIT_SECONDS
        for name in self._names:
            while True:
                await self.check()
                records = await read_records(self.bed.grid, name)
                held = Counter(record.owner for record in records.values() if record.owner and record.offset >= 0)
                if len(held) == self._count and all(floor <= count <= floor + bool(more) for count in held.values()):
                    break
                if time.monotonic() > deadline:
                    raise GridscoreError(f"The workers do not hold all partitions after {_WAIT_SECONDS:.0f} s.")
                await asyncio.sleep(_LOOK_SECONDS)

    def _figures(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [figures for record in records for name, figures in record["jobs"].items() if name in self._names]

    async def _until(self, there: Any, otherwise: str) -> list[dict[str, Any]]:
        """Wait until the records of the workers are as wanted, and return them."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            await self.check()
            records = [record.value for record in (await Records(self.bed.grid, WORKERS_MAP).all()).values()]
            if there(records):
                return records
            if time.monotonic() > deadline:
                raise GridscoreError(f"{otherwise}, after {_WAIT_SECONDS:.0f} s.")
            await asyncio.sleep(_LOOK_SECONDS)


class GridscoreCores(Gridscore):
    """A worker process for each core, as `gridscore worker --processes auto` starts them."""

    name = "gridscore-cores"
    title = "Gridscore, a worker process for each core"
    tuning = (
        "As `gridscore` otherwise. Here to be seen: on cores that the members need as well, a second process takes what"
        " they lack. The floors are about one."
    )

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed, workers=os.cpu_count() or 1)
