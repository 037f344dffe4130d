"""Tasks of the server that end with others: work, when its client has left; what follows the cluster, when told to."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from hazelcast.errors import HazelcastError
from starlette.requests import ClientDisconnect

from gridscore.errors import GridscoreError
from gridscore.grid.watches import READ_ANYWAY_SECONDS
from gridscore.group.members import registered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Pause before what cannot be loaded is tried again, and between looks at the cluster while something is wrong.
RETRY_SECONDS = 2.0


async def follow(
    grid: Grid,
    watch: Callable[[Callable[[], None]], Awaitable[Any]],
    changed: asyncio.Event,
    look: Callable[[], Awaitable[bool]],
    tasks: Callable[[], list[asyncio.Task[None]]],
) -> None:
    """Look at the cluster, and again after each change, until cancelled; then end the tasks that there are.

    `watch`: registers what is to be called after a change, and returns what removes it; `changed`: set after a change;
    `look`: whether all is as it is meant to be: if not, it looks again soon; `tasks`: those that are to end.
    """
    remove = await registered(grid, lambda: watch(changed.set))
    try:
        while True:
            changed.clear()
            pause = RETRY_SECONDS
            try:
                pause = READ_ANYWAY_SECONDS if await look() else RETRY_SECONDS
            except (HazelcastError, GridscoreError) as error:
                if not grid.is_running:
                    raise
                _log.warning("Looking at the cluster failed, trying again: %s", error, extra={"action": "retry"})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await changed.wait()
    finally:
        await asyncio.shield(_end(tasks(), remove))


async def _end(tasks: list[asyncio.Task[None]], remove: Callable[[], Awaitable[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        async with asyncio.timeout(RETRY_SECONDS):
            await remove()
    except (HazelcastError, TimeoutError):
        _log.debug("a listener could not be removed", exc_info=True)


async def unless_left(receive: Receive, work: asyncio.Future[_T]) -> _T:
    """The result of some work, which is cancelled when the client leaves. The request's body must have been read.

    Raises ClientDisconnect if the client has left.
    """
    left = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
