"""The workers of a benchmark: processes as the command starts them, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

import psutil

from gridscore.errors import GridscoreError
from gridscore.grid.records import Records
from gridscore.group.lease_records import read_records
from gridscore.group.members import WORKERS_MAP
from gridscore.leash import LeashedProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.group.lease_records import LeaseRecord

_WAIT_SECONDS = 120.0
_LOOK_SECONDS = 0.1
_JOINED_LOOK_SECONDS = 0.02


def where(cluster_name: str, members: Sequence[str]) -> list[str]:
    """The options of a command of ours that lead to a cluster."""
    return ["--cluster-name", cluster_name, *(part for address in members for part in ("--members", address))]


class Crew:
    """Worker processes of one job. Close it, whatever happens.

    Args:
        grid: The connection.
        job: Name of the job that they score for.
        folder: For their logs.
    """

    def __init__(self, grid: Grid, job: str, folder: Path) -> None:
        self._grid = grid
        self._job = job
        self._folder = folder
        self._records = Records(grid, WORKERS_MAP)
        self._started = 0
        self.workers: list[LeashedProcess] = []

    @property
    def pids(self) -> list[int]:
        """Their process ids, the oldest first."""
        return [worker.pid for worker in self.workers]

    def start(self, lease: float | None = None) -> LeashedProcess:
        """Start one more; it is not there yet when this returns.

        Args:
            lease: Lease time in seconds; the command's own if None.
        """
        settings = self._grid.settings
        arguments = ["worker", "--jobs", self._job, *where(settings.cluster_name, settings.members)]
        if lease is not None:
            arguments += ["--lease", str(lease)]
        self._started += 1
        worker = LeashedProcess("gridscore.cli", arguments, self._folder / f"worker-{self._started}.log")
        self.workers.append(worker)
        return worker

    async def stop_last(self) -> None:
        """Stop the youngest in order, and wait until it is gone."""
        await asyncio.to_thread(self.workers.pop().stop)

    def close(self) -> None:
        """Stop all of them."""
        while self.workers:
            self.workers.pop().stop()

    def check(self) -> None:
        """Raise if one of them has ended.

        Raises:
            GridscoreError: With its last lines.
        """
        for worker in self.workers:
            if worker.exit_code is not None:
                raise GridscoreError(f"A worker ended. Its last lines:\n{worker.last_lines()}")

    async def joined(self, worker: LeashedProcess) -> str:
        """Return the identity of a worker as soon as it takes part in the group."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            for name, record in (await self._records.all()).items():
                if record.value.get("pid") == worker.pid and self._job in record.value.get("groups", ()):
                    return name
            self.check()
            await asyncio.sleep(_JOINED_LOOK_SECONDS)
        raise GridscoreError(f"A worker does not score after {_WAIT_SECONDS:.0f} s.")

    async def stay_balanced(self, seconds: float) -> None:
        """Look for so long, as often as one does who waits for a balance: looking costs the same then as now."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.balanced()
            await asyncio.sleep(_LOOK_SECONDS)

    async def balanced(self) -> dict[int, LeaseRecord]:
        """Wait until these workers hold all partitions in equal parts; returns the lease records."""
        names = {await self.joined(worker) for worker in self.workers}
        deadline = time.monotonic() + _WAIT_SECONDS
        floor, more = divmod(self._grid.partition_count, len(names))
        while time.monotonic() < deadline:
            records = await read_records(self._grid, self._job)
            held = Counter(record.owner for record in records.values() if record.offset >= 0)
            if set(held) == names and all(floor <= count <= floor + bool(more) for count in held.values()):
                return records
            self.check()
            await asyncio.sleep(_LOOK_SECONDS)
        raise GridscoreError(f"The partitions are not in equal parts after {_WAIT_SECONDS:.0f} s.")

    def suspended(self) -> contextlib.AbstractAsyncContextManager[Callable[[], None]]:
        """Suspend all of them, see `suspended`."""
        return suspended(self.pids, self._folder)


@contextlib.asynccontextmanager
async def suspended(pids: Sequence[int], folder: Path) -> AsyncIterator[Callable[[], None]]:
    """Suspend processes, as SIGSTOP does, until what is given is called, or the block or this process ends.

    Args:
        pids: Their process ids.
        folder: For a log.

    Raises:
        GridscoreError: They could not be.
    """
    processes = [psutil.Process(pid) for pid in pids]

    def resume() -> None:
        for process in processes:
            process.resume()

    with LeashedProcess("benchmarks.pause", list(map(str, pids)), folder / "pause.log") as pause:
        deadline = time.monotonic() + _WAIT_SECONDS
        while any(process.status() != psutil.STATUS_STOPPED for process in processes):
            if pause.exit_code is not None or time.monotonic() > deadline:
                raise GridscoreError(f"The workers could not be suspended:\n{pause.last_lines()}")
            await asyncio.sleep(_LOOK_SECONDS)
        yield resume
