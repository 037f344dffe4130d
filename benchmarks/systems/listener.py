"""What Hazelcast's tutorials suggest: a Python client listens on a map, scores each event, and puts each result."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.systems.in_grid import InGrid
from gridscore.errors import GridscoreError
from gridscore.grid.writer import MapWriter
from gridscore.leash import LeashedProcess

if TYPE_CHECKING:
    from benchmarks.systems.base import Bed

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.02


class EntryListener(InGrid):
    """A loop over entry events; see `listener_loop`.

    It cannot work off what is in a map already, and other systems have their backlog in the map of the work: its events
    go to a map of its own, without a journal.
    """

    name = "entry-listener"
    title = "Entry listener, a put per event"
    tuning = (
        "The listener scores in the client's own thread, with one XGBoost thread. Results are put without waiting "
        "for them, by `set`, which does not send the value before it back. Its map of events has no journal. It "
        "cannot take batches: each event is a prediction and a put."
    )
    share = 0.01
    takes_backlog = False

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self.events_map = "listener.bench"
        self._writer = MapWriter(bed.grid, self.events_map)
        self._loop: LeashedProcess | None = None

    async def prepare(self) -> None:
        """Nothing: a run is a process, and the maps come with the first entry."""

    async def start(self, *, backlog: bool) -> None:
        """Start the process, and wait until its listener is registered.

        Raises:
            GridscoreError: It does not come up, or is asked for a backlog.
        """
        if backlog:
            raise GridscoreError("A listener hears nothing of what is in a map already.")
        bed = self.bed
        arguments = [bed.cluster_name, self.events_map, self.results_map, str(bed.files), *bed.addresses]
        self._loop = LeashedProcess("benchmarks.systems.listener_loop", arguments, bed.folder / f"{self.name}.log")
        deadline = time.monotonic() + _WAIT_SECONDS
        while "ready" not in self._loop.log_file.read_text(encoding="utf-8").split():
            await self.check()
            if time.monotonic() > deadline:
                raise GridscoreError(
                    f"The listener is not there after {_WAIT_SECONDS:.0f} s:\n{self._loop.last_lines()}"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """End the process, and take both maps away."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            await asyncio.to_thread(loop.stop)
        await self.clear()
        await (await self.bed.grid.client.get_map(self.events_map)).destroy()

    async def close(self) -> None:
        """As `stop`."""
        if self._loop is not None:
            await self.stop()

    def pids(self) -> list[int]:
        """The loop."""
        return [self._loop.pid] if self._loop is not None else []

    async def check(self) -> None:
        """Raise if the process has ended, or an event could not be put.

        Raises:
            GridscoreError: With the last lines, or the error.
        """
        await super().check()
        if self._loop is not None and self._loop.exit_code is not None:
            raise GridscoreError(f"The listener ended. Its last lines:\n{self._loop.last_lines()}")
