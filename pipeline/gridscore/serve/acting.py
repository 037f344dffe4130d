"""Acting: whatever changes something by HTTP is noted before it is done, and ends in time.

What is done with one job or model is done one after the other; no more than a few things are done at once.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from hazelcast.errors import HazelcastError
from pydantic import BaseModel

from gridscore.errors import GridError
from gridscore.operations.actions import ActionLog
from gridscore.sources.http.answer import later

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid
    from gridscore.serve.verbs import Asked, Work

SECONDS = 60.0  # how long an action may take; gates may have to score a sample
WAIT_SECONDS = 10.0  # how long one waits for another to end
AT_ONCE = 8  # actions of different jobs and models


class UncertainError(GridError):
    """An action may be done, or a part of it: to ask for it again might do it twice."""


class Acting:
    """Does what is asked for."""

    def __init__(self, grid: Grid) -> None:
        self._log = ActionLog(grid)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by job or model
        self._places = asyncio.Semaphore(AT_ONCE)

    async def do(self, asked: Asked, work: Work, target: str | None, given: dict[str, Any]) -> Any:
        """The answer of a verb; `target`: what its address names, which it is given first.

        Raises HTTPException if others are under way; GridError if it could not be noted, and is not done, or may be
        done in part.
        """
        what, why = _detail(given)
        named = () if target is None else (target,)
        async with self._doing(asked.visit.by, work.__name__.replace("_", "-"), target or "", what, why):
            return await work(asked, *named, **given)

    @asynccontextmanager
    async def _doing(self, by: str, verb: str, target: str, detail: str, why: str) -> AsyncIterator[None]:
        """Note that something is done, and how it has ended."""
        async with self._turn(target), self._log.noted(by, verb, target, detail, why):
            try:
                async with asyncio.timeout(SECONDS):
                    yield
            except HazelcastError as error:
                text = f"The cluster does not answer: {error}"
                raise UncertainError(text, "See whether it was done.") from error
            except TimeoutError:
                text = "It took too long, and may be done in part."
                raise UncertainError(text, "See what has come of it.") from None

    @asynccontextmanager
    async def _turn(self, target: str) -> AsyncIterator[None]:
        """Wait until nothing else is done with this."""
        turn = self._turns.setdefault(target, asyncio.Lock())
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await held.enter_async_context(turn)
                    await held.enter_async_context(self._places)
            except TimeoutError:
                raise later(503, "Other actions are under way. Try again.") from None
            yield


def _detail(given: dict[str, Any]) -> tuple[str, str]:
    """What the log says of an action, and why it was done; job files, models and events are not for it."""
    said: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, BaseModel):
            said |= value.model_dump(mode="json", exclude={"job"}, exclude_defaults=True)
        elif value and not isinstance(value, bytes):
            said[name] = value
    why = said.pop("why", "")
    return ", ".join(f"{name} {value}" for name, value in said.items()), why
