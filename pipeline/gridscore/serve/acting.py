"""Acting: whatever changes something by HTTP is noted before it is done, one after the other, and ends in time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.operations.actions import ActionLog
from gridscore.sources.http.answer import later

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid

SECONDS = 60.0  # how long an action may take; gates may have to score a sample
WAIT_SECONDS = 10.0  # how long one waits for another to end


class UncertainError(GridError):
    """An action may be done, or a part of it: to ask for it again might do it twice."""


class Acting:
    """Does one thing after the other."""

    def __init__(self, grid: Grid) -> None:
        self._log = ActionLog(grid)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def doing(self, by: str, verb: str, target: str, detail: str = "", why: str = "") -> AsyncIterator[None]:
        """Note that something is done, and how it has ended.

        Raises HTTPException if others are under way; GridError if it could not be noted, and is not done, or may be
        done in part.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise later(503, "Another action is under way. Try again.") from None
        try:
            async with self._log.noted(by, verb, target, detail, why):
                try:
                    async with asyncio.timeout(SECONDS):
                        yield
                except HazelcastError as error:
                    text = f"The cluster does not answer: {error}"
                    raise UncertainError(text, "See whether it was done.") from error
                except TimeoutError:
                    text = "It took too long, and may be done in part."
                    raise UncertainError(text, "See what has come of it.") from None
        finally:
            self._turn.release()
