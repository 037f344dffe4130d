"""What all systems have in common that score from a map of the grid to a map of the grid."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.systems.base import System
from gridscore.errors import GridscoreError
from gridscore.grid import transport, wire
from gridscore.grid.copies import payload
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.results.stream import listen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from benchmarks.systems.base import Bed


class _Result(msgspec.Struct):
    score: float


_decode = msgspec.json.Decoder(_Result).decode


class InGrid(System):
    """Takes events from the map `work.job.events` and writes results to `work.job.results`, under the same keys.

    Attributes:
        events_map: Name of the map of events.
        results_map: Name of the map of results.
    """

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        job = bed.work.job
        self.events_map: str = job.events
        self.results_map: str = job.results
        self._writer = MapWriter(bed.grid, self.events_map)
        self._listener: str | None = None
        self._failed_put: BaseException | None = None

    async def results(self) -> int:
        """Entries of the map of results."""
        return await transport.map_size(self.bed.grid.client, self.results_map)

    async def scores(self, numbers: Collection[int]) -> dict[int, float]:
        """From the map of results."""
        grid = self.bed.grid
        by_partition: dict[int, list[bytes]] = {}
        for number in numbers:
            key = transport.key_data(grid.client, f"e{number}")
            by_partition.setdefault(partition_of(key, grid.partition_count), []).append(key)
        asked = [
            transport.invoke(grid.client, wire.encode_get_all(self.results_map, keys), partition, wire.decode_get_all)
            for partition, keys in by_partition.items()
        ]
        return {
            int(transport.to_object(grid.client, key)[1:]): _decode(payload(value)).score
            for entries in await asyncio.gather(*asked)
            for key, value in entries
        }

    async def watch(self, seen: Callable[[int], None]) -> None:
        """Listen on the map of results, over the connection of the bed."""

        def arrived(event: Any) -> None:
            seen(int(event.key[1:]))

        self._listener = await listen(self.bed.grid, self.results_map, arrived)

    def send(self, number: int, text: bytes) -> None:
        """One put; `check` raises if it has failed."""
        key = transport.key_data(self.bed.grid.client, f"e{number}")
        partition = partition_of(key, self.bed.grid.partition_count)
        self._writer.put_partition(partition, [key], [text], once=False).add_done_callback(self._put_done)

    def _put_done(self, put: asyncio.Future[None]) -> None:
        if not put.cancelled() and (error := put.exception()) is not None:
            self._failed_put = error

    async def check(self) -> None:
        """Raise if an event could not be put.

        Raises:
            GridscoreError: With the error of a put.
        """
        if self._failed_put is not None:
            raise GridscoreError(f"An event could not be put: {self._failed_put}")

    async def clear(self) -> None:
        """Take the listener and the results of a run away. What writes results must have ended."""
        # A proxy destroys its map once: after that the client no longer knows it, and says so by returning False.
        results = await self.bed.grid.client.get_map(self.results_map)
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await results.remove_entry_listener(listener)
        self._failed_put = None
        await results.destroy()
