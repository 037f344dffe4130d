"""The loop that one would write by hand for this one work, with none of our contracts; see `by_hand_loop`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.systems import by_hand_loop
from benchmarks.systems.in_grid import InGrid
from gridscore.errors import GridscoreError
from gridscore.leash import LeashedProcess

if TYPE_CHECKING:
    from benchmarks.systems.base import Bed

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.02


class ByHand(InGrid):
    """A process for each run."""

    name = "by-hand"
    title = "a loop written by hand"
    tuning = (
        "Journal to map with Gridscore's own transport, one process. Features written for this work, in one pass over a"
        " batch. No leases, offsets, dead letters, loss accounting or fencing: after a crash it begins anew."
    )

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self._process: LeashedProcess | None = None

    async def prepare(self) -> None:
        """There is nothing to prepare."""

    async def start(self, *, backlog: bool) -> None:
        """Start the process; for live events, wait until it reads."""
        begin = "oldest" if backlog else "latest"
        arguments = [self.bed.cluster_name, self.events_map, self.results_map, begin, str(self.bed.files)]
        log = self.bed.folder / "by-hand.log"
        self._process = LeashedProcess(by_hand_loop.__name__, [*arguments, *self.bed.addresses], log)
        deadline = time.monotonic() + _WAIT_SECONDS
        while not backlog and by_hand_loop.READY not in log.read_text():
            await self.check()
            if time.monotonic() > deadline:
                raise GridscoreError(f"The loop does not read after {_WAIT_SECONDS:.0f} s.")
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """End the process, and forget the results."""
        await self.close()
        await self.clear()

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            await asyncio.to_thread(process.stop)

    def pids(self) -> list[int]:
        """The process."""
        return [self._process.pid] if self._process is not None else []

    async def check(self) -> None:
        """Raise if the process has ended or an event could not be put.

        Raises:
            GridscoreError: With its last lines.
        """
        await super().check()
        if self._process is not None and self._process.exit_code is not None:
            raise GridscoreError(f"The loop ended. Its last lines:\n{self._process.last_lines()}")
