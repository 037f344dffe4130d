"""`python -m benchmarks.scale`: what a group of many workers and jobs costs on real members.

Starts members and worker processes of its own and ends them. Measured, in this order:

1. Workers start, all at once: time until each holds its share of each job, as their records of holdings say.
2. Rest: no event comes. Requests by kind and bytes received, as the workers count them; CPU of workers and members.
3. One job alone: the others are suspended. What a worker uses less, by the number of them, is what an idle job costs.
4. One worker is killed: time until the others hold all partitions of all jobs, in equal parts.
5. One more starts: time until it has its share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
import yaml

from benchmarks.crew import where
from benchmarks.meter import Meter, resident_bytes
from gridscore.cli.output import console, errors, print_json, print_table, run
from gridscore.errors import GridscoreError
from gridscore.grid import GridSettings, Records, connect
from gridscore.grid.member import Cluster
from gridscore.grid.template import load_template
from gridscore.group.members import HOLDINGS_MAP, unpacked
from gridscore.job import Jobs, parse_job
from gridscore.leash import LeashedProcess
from gridscore.models import Registry
from gridscore.proving.bench import card
from gridscore.proving.bench.throughput import fill_lookups

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid

_WAIT_SECONDS = 300.0
_LOOK_SECONDS = 0.1
_SETTLE_SECONDS = 15.0


class _Scale:
    """The workers, and what they say."""

    def __init__(self, grid: Grid, members: list[int], jobs: list[str], folder: Path) -> None:
        self._grid = grid
        self._members = members
        self._jobs = jobs
        self._folder = folder
        self._holdings = Records(grid, HOLDINGS_MAP)
        self.workers: list[LeashedProcess] = []

    def start(self) -> None:
        settings = self._grid.settings
        place = self._folder / f"worker-{time.monotonic_ns()}"
        arguments = [str(place.with_suffix(".json")), "worker", *where(settings.cluster_name, settings.members)]
        self.workers.append(LeashedProcess("benchmarks.counted_worker", arguments, place.with_suffix(".log")))

    async def even(self, jobs: list[str]) -> float:
        """Seconds until the living workers hold all partitions of these jobs, and no others, in equal parts."""
        began, count = time.perf_counter(), self._grid.partition_count
        least, more = divmod(count, len(self.workers))
        sizes = Counter({least + 1: more, least: len(self.workers) - more}) if more else {least: len(self.workers)}
        while True:
            records = await self._holdings.all()
            mine = [
                {job: unpacked(text) for job, text in record.value["groups"].items()}
                for worker in self.workers
                for name, record in records.items()
                if f"-{worker.pid}-" in name
            ]
            held = {job: [groups.get(job, 0) for groups in mine] for job in jobs}
            if (
                len(mine) == len(self.workers)
                and not any(set(groups) - set(jobs) for groups in mine)
                and all(
                    Counter(bits.bit_count() for bits in each) == sizes and sum(each) == (1 << count) - 1
                    for each in held.values()
                )
            ):
                return time.perf_counter() - began
            for worker in self.workers:
                if worker.exit_code is not None:
                    raise GridscoreError(f"A worker ended. Its last lines:\n{worker.last_lines()}")
            if time.perf_counter() - began > _WAIT_SECONDS:
                raise GridscoreError(f"The partitions are not in equal parts after {_WAIT_SECONDS:.0f} s.")
            await asyncio.sleep(_LOOK_SECONDS)

    async def rest(self, seconds: float) -> dict[str, Any]:
        """What is used and asked for while nothing happens; we ask for nothing either."""
        await asyncio.sleep(_SETTLE_SECONDS)
        before = await self._counts()
        meter = Meter([worker.pid for worker in self.workers], self._members)
        await asyncio.sleep(seconds)
        usage, after = meter.read(), await self._counts()
        kinds = Counter[str]()
        for old, new in zip(before, after, strict=True):
            kinds.update({kind: count - old["requests"].get(kind, 0) for kind, count in new["requests"].items()})
        received = sum(new["received"] - old["received"] for old, new in zip(before, after, strict=True))
        each = [cpu / usage.seconds * 100 for cpu in usage.each]
        return {
            "requests_per_s": {kind: round(n / usage.seconds, 2) for kind, n in kinds.most_common() if n},
            "all_requests_per_s": round(kinds.total() / usage.seconds, 1),
            "bytes_per_s_of_a_member": round(received / usage.seconds / len(self._members)),
            "worker_percent_of_a_core": {
                "median": round(statistics.median(each), 2),
                "min": round(min(each), 2),
                "max": round(max(each), 2),
            },
            "member_percent_of_a_core": round(usage.services / usage.seconds / len(self._members) * 100, 1),
            "cores_used_by_others": round(usage.others_cores, 2),
        }

    async def _counts(self) -> list[Any]:
        files = [worker.log_file.with_suffix(".json") for worker in self.workers]
        for worker, file in zip(self.workers, files, strict=True):
            file.unlink(missing_ok=True)
            os.kill(worker.pid, signal.SIGUSR1)
        async with asyncio.timeout(_WAIT_SECONDS):
            while not all(file.exists() for file in files):  # noqa: ASYNC110 -- another process writes them
                await asyncio.sleep(_LOOK_SECONDS)
        return [msgspec.json.decode(file.read_bytes()) for file in files]

    def stop(self) -> None:
        """Stop all workers."""
        while self.workers:
            self.workers.pop().stop()

    def kill(self) -> None:
        """Kill the first worker, as a power failure would."""
        os.kill(self.workers[0].pid, signal.SIGKILL)
        self.workers.pop(0).stop()


async def _measure(
    grid: Grid, members: list[int], folder: Path, workers: int, jobs: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    say("submitting jobs")
    specs = [
        parse_job(
            card.job_text(f"scale-{number}", f"results.scale-{number}").replace(
                "events.bench", f"events.scale-{number}"
            ),
            "the benchmark's job",
        )
        for number in range(jobs)
    ]
    await fill_lookups(grid)
    await Registry(grid).push(card.booster(specs[0]), specs[0].model.name, alias="champion")
    there, names = Jobs(grid), [spec.name for spec in specs]
    for spec in specs:
        await there.submit(spec)
    scale = _Scale(grid, members, names, folder)
    with contextlib.ExitStack() as ending:
        ending.callback(scale.stop)
        say(f"starting {workers} workers")
        for _ in range(workers):
            scale.start()
        report: dict[str, Any] = {"started_s": round(await scale.even(names), 1)}
        say("at rest")
        report["rest"] = await scale.rest(seconds)
        report["resident_mb"] = resident_bytes(worker.pid for worker in scale.workers) >> 20
        if jobs > 1:
            say("one job alone")
            for name in names[1:]:
                await there.suspend(name)
            await scale.even(names[:1])
            alone = report["rest_with_one_job"] = await scale.rest(seconds)
            cpu = [each["worker_percent_of_a_core"]["median"] for each in (report["rest"], alone)]
            report["idle_job_percent_of_a_core"] = round((cpu[0] - cpu[1]) / (jobs - 1), 3)
            for name in names[1:]:
                await there.resume(name)
            await scale.even(names)
            await asyncio.sleep(_SETTLE_SECONDS)
        say("a worker is killed")
        scale.kill()
        report["taken_over_s"] = round(await scale.even(names), 1)
        await asyncio.sleep(_SETTLE_SECONDS)
        say("a worker is added")
        scale.start()
        report["new_worker_s"] = round(await scale.even(names), 1)
    return report


def main(
    *,
    workers: Annotated[int, typer.Option(min=2, max=64)] = 8,
    jobs: Annotated[int, typer.Option(min=1, max=100)] = 16,
    partitions: Annotated[int, typer.Option(min=2, max=9_973)] = 1_999,
    members: Annotated[int, typer.Option(min=1, max=8)] = 3,
    seconds: Annotated[float, typer.Option(min=5, max=600, help="How long workers at rest are watched.")] = 60,
    heap: Annotated[str, typer.Option(help="Of each member.")] = "1g",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure what a group of many workers and jobs costs, and how fast it rearranges.

    Example: python -m benchmarks.scale --workers 8 --jobs 16 --partitions 1999
    """

    async def measure(cluster: Cluster, folder: Path) -> dict[str, Any]:
        settings = GridSettings(members=cluster.addresses, cluster_name=cluster.cluster_name)
        async with await connect(settings) as grid:
            with errors.status("starting") as status:
                return await _measure(grid, cluster.pids, folder, workers, jobs, seconds, status.update)

    with tempfile.TemporaryDirectory(prefix="gridscore-scale-") as folder:
        config, template = Path(folder) / "hazelcast.yaml", load_template()
        template["properties"] = {**template.get("properties", {}), "hazelcast.partition.count": partitions}
        config.write_text(yaml.safe_dump({"hazelcast": template}))
        with Cluster.start(members, port=0, heap=heap, config=config) as cluster:
            report = run(measure(cluster, Path(folder)))
    sizes = {"workers": workers, "jobs": jobs, "partitions": partitions, "members": members, "cores": os.cpu_count()}
    if as_json:
        print_json({**sizes, **report})
        return
    console.print(", ".join(f"{name}: {value}" for name, value in sizes.items()), highlight=False)
    print_table(("REQUESTS AT REST", "A SECOND"), list(report["rest"].pop("requests_per_s").items()), empty="")
    report.get("rest_with_one_job", {}).pop("requests_per_s", None)
    console.print(json.dumps(report, indent=1), highlight=False)


if __name__ == "__main__":
    typer.run(main)
