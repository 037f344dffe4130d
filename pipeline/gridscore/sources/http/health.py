"""Whether the grid answers, for health checks: a connection may look alive for a minute when it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.grid import transport

if TYPE_CHECKING:
    from gridscore.grid import Grid

ANSWER_SECONDS = 2.0  # how long to wait for an answer of the grid
_BELIEVED_SECONDS = 1.0


class GridHealth:
    """Asks the grid on demand, at most once a second.

    `map_name`: its size is asked for, which every partition has to answer.
    """

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self._map_name = grid, map_name
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._error = ""

    async def problem(self) -> str:
        """What is wrong with the grid; empty if it answers. Known within `ANSWER_SECONDS`."""
        if not self._grid.is_connected:
            return "the connection to the grid is lost"
        now = asyncio.get_running_loop().time
        if (self._asking is None or self._asking.done()) and now() - self._asked_at >= _BELIEVED_SECONDS:
            self._asked_at = now()
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None and not self._asking.done():
            await asyncio.wait({self._asking}, timeout=max(0.0, self._asked_at + ANSWER_SECONDS - now()))
            if not self._asking.done():
                return f"the grid has not answered for {now() - self._asked_at:.0f} s"
        return self._error

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        try:
            await transport.map_size(self._grid.client, self._map_name)
            self._error = ""
        except HazelcastError as error:
            self._error = f"the grid does not answer: {error or type(error).__name__}"
