"""Tasks of the server that end with others: work, when its client has left; what follows the cluster, when told to."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from hazelcast.errors import HazelcastError
from starlette.requests import ClientDisconnect

from gridscore.group.members import registered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Receive

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

RETRY_SECONDS = 2.0
"""Pause before what cannot be loaded is tried again, and between looks at the cluster while something is wrong."""


@asynccontextmanager
async def watching(
    grid: Grid, watch: Callable[[], Awaitable[Any]], tasks: Callable[[], list[asyncio.Task[None]]]
) -> AsyncIterator[None]:
    """Listen meanwhile; then end the tasks that there are, and remove the listener.

    Args:
        watch: Registers the listener, and returns what removes it.
    """
    remove = await registered(grid, watch)

    async def stop() -> None:
        running = tasks()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await remove()
        except (HazelcastError, TimeoutError):
            _log.debug("a listener could not be removed", exc_info=True)

    try:
        yield
    finally:
        await asyncio.shield(stop())


async def unless_left(request: Request, work: asyncio.Future[_T]) -> _T:
    """The result of some work, which is cancelled when the client leaves. The request's body must have been read.

    Raises:
        ClientDisconnect: The client has left.
    """
    left = asyncio.ensure_future(_left(request.receive))
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
    while (await receive())["type"] != "http.disconnect":
        pass
