"""Watching: what follows the cluster, with a listener and tasks of its own, until it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.group.members import registered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Pause before what cannot be loaded is tried again, and between looks at the cluster while something is wrong."""


@asynccontextmanager
async def watching(
    grid: Grid, watch: Callable[[], Awaitable[Any]], tasks: Callable[[], list[asyncio.Task[None]]]
) -> AsyncIterator[None]:
    """Listen meanwhile; then end the tasks that there are, and remove the listener.

    Args:
        grid: Where to listen.
        watch: Registers the listener, and returns what removes it.
        tasks: Those that are to end.
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
