"""Results by key, for those who posted an event and wait for what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from pipeline.grid.copies import Fetcher

if TYPE_CHECKING:
    from pipeline.grid import Grid


async def find_result(grid: Grid, map_name: str, key: str, wait: float) -> bytes | None:
    """The JSON text of a result; waits for it if it is not there yet.

    Args:
        grid: The connection.
        map_name: The result map.
        key: Of the event and the result.
        wait: Seconds to wait at most; 0 looks once.

    Returns:
        None if there was no result in time.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    found = await _now(grid, map_name, key)
    if found is not None or wait <= 0:
        return found
    arrived = asyncio.Event()

    def written(_event: Any) -> None:
        arrived.set()

    proxy = await grid.map(map_name)
    registration = await proxy.add_entry_listener(
        include_value=False, key=key, added_func=written, updated_func=written
    )
    try:
        # It may have come between the first look and the listener.
        found = await _now(grid, map_name, key)
        if found is None:
            try:
                async with asyncio.timeout(wait):
                    await arrived.wait()
            except TimeoutError:
                pass  # a listener may have missed it while a member was changed: a last look tells
            found = await _now(grid, map_name, key)
    finally:
        # A listener that is left behind costs a little; the result is there all the same.
        with contextlib.suppress(HazelcastError):
            await asyncio.shield(asyncio.ensure_future(proxy.remove_entry_listener(registration)))
    return found


async def _now(grid: Grid, map_name: str, key: str) -> bytes | None:
    for _, text in await Fetcher(grid, map_name).fetch([key]):
        return text
    return None
