"""Watching a cluster for people: looks again and again, and what to say where it does not answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.errors import GridscoreError, JobError
from gridscore.grid.management import silent_members, unanswered
from gridscore.operations.flow import FlowObserver, History
from gridscore.texts import clock_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.flow import Flow

ANSWER_SECONDS = 5.0  # a look that takes longer is given up, and tried again
_WINDOW_SECONDS = 6.0  # how far back findings look


class Watcher:
    """Looks at a cluster; a look that fails leaves the figures of the last one.

    `job`: the only job to look at, with its sources and sinks; default: all. `flow`: the last look that succeeded; None
    before the first; `seen_at`: the time of day of it; `history`: the last looks.
    """

    def __init__(self, grid: Grid, job: str | None = None) -> None:
        self._grid, self._observer = grid, FlowObserver(grid, job)
        self.flow: Flow | None = None
        self.seen_at = ""
        self.history = History(_WINDOW_SECONDS)
        self._looking: asyncio.Task[Flow] | None = None
        self._asked_at = self._answered_at = self._called_at = time.monotonic()
        self._failure = ""
        self._silent: list[str] = []

    async def first_look(self) -> None:
        """Look once; unlike later ones, it may fail.

        Raises JobError if there is no such job; GridscoreError if the cluster does not answer.
        """
        await self.look(ANSWER_SECONDS * 2)
        if self.flow is None and self._failure:
            raise GridscoreError(self._failure, "Are all its members well? `gridscore doctor` looks.")
        if self.flow is None:
            raise unanswered(self._silent, ANSWER_SECONDS * 2)

    async def look(self, seconds: float, ended: asyncio.Event | None = None) -> None:
        """Look, or wait for a look that is under way, so long at most, and not once it has ended.

        Raises JobError if there is no such job, at the first look.
        """
        now = time.monotonic()
        if now - self._called_at > 2 * ANSWER_SECONDS:
            self._answered_at = now  # it is not silent: nobody has asked
        self._called_at = now
        if self._looking is None:
            self._asked_at = now
            self._looking = asyncio.create_task(self._observer.look())
        looking = self._looking
        waiting: set[asyncio.Task[Any]] = {looking}
        if ended is not None:
            waiting.add(quitting := asyncio.create_task(ended.wait()))
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ended is not None:
            quitting.cancel()
        if looking.cancelled():
            return  # somebody else has given it up
        if not looking.done():
            if time.monotonic() - self._asked_at > ANSWER_SECONDS:
                await self.give_up()
                self._silent = await silent_members(self._grid)
            return
        self._looking = None
        try:
            self._take(looking.result())
        except JobError as error:
            if self.flow is None:
                raise
            self._failure = error.message
        except (HazelcastError, GridscoreError) as error:
            self._failure = f"The cluster does not answer as it should: {error}"

    async def give_up(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            looking, self._looking = self._looking, None
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @property
    def silence(self) -> str:
        """Since when the cluster does not answer; empty if it does."""
        silent = time.monotonic() - self._answered_at
        if self._failure:
            return f"{self._failure} The figures are of {self.seen_at}; trying again."
        if silent > ANSWER_SECONDS / 2:
            where = ", ".join(self._silent) or "the cluster"
            return f"No answer from {where} for {silent:.0f} s. The figures are of {self.seen_at}; trying again."
        return ""

    def _take(self, flow: Flow) -> None:
        self.flow, self._failure, self._silent = flow, "", []
        self._answered_at, self.seen_at = time.monotonic(), clock_text()
        self.history.add(flow)
