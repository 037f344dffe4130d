"""Results by key, for clients that posted an event and wait for its outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.grid import transport
from gridscore.grid.copies import Fetcher
from gridscore.results.outcomes import Outcomes
from gridscore.results.sequences import READ_BYTES, sequences_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.grid import Grid

SEARCH_SECONDS = 2.0  # how long to search a journal for events


class _Made(msgspec.Struct):
    sequence: int = -1


_decode = msgspec.json.Decoder(_Made).decode


class ResultFinder:
    """Finds results, and waits for them; all that wait for results of one map share a reader."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._outcomes: dict[str, asyncio.Task[Outcomes]] = {}
        self._unread: dict[str, Outcomes] = {}  # for requests that do not wait

    async def find(self, map_name: str, key: str, wait: float, after: int | None = None) -> bytes | None:
        """The JSON text of a result; waits for it if it is not there yet.

        `wait`: most seconds to wait; 0 looks once; `after`: only accept a result of an event with a greater sequence.
        Returns: None if there was no result in time. Raises EventRejectedError if the event under the key cannot be
        scored.
        """
        found = await self._now(map_name, key, after)
        if found is not None:
            return found
        least = -1 if after is None else after
        if wait <= 0:
            unread = self._unread.setdefault(map_name, Outcomes(self._grid, map_name))
            return await self._look(unread, map_name, key, after, least)
        outcomes = await self._reader(map_name)
        waiter = await outcomes.wait(
            transport.key_data(self._grid.client, key), least + (after is not None), exact=False
        )
        try:
            async with asyncio.timeout(wait):
                # It may have come between the first look and the reader.
                return await self._look(outcomes, map_name, key, after, least) or (await waiter.answer).text
        except TimeoutError:
            # A listener may have missed it while a member came or went.
            return await self._look(outcomes, map_name, key, after, least)
        finally:
            outcomes.leave(waiter)

    async def sequences_before(self, map_name: str, entries: Iterable[tuple[str, bytes]]) -> list[int | None]:
        """For each event that has been put: the sequence before its own, after which its result comes.

        None if it was not found: it was overwritten, or is further back than is read for a request.
        """
        serialized = [(transport.key_data(self._grid.client, key), text) for key, text in entries]
        limit = READ_BYTES + 4 * sum(len(text) for _, text in serialized)
        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                found = await sequences_of(self._grid, map_name, serialized, limit)
        except (TimeoutError, HazelcastError, GridError):
            return []
        return [None if each is None else each - 1 for each in found]

    def close(self) -> None:
        """Stop reading; those who wait get an error."""
        for opening in self._outcomes.values():
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            else:
                opening.cancel()
        self._outcomes.clear()

    async def _reader(self, map_name: str) -> Outcomes:
        opening = self._outcomes.get(map_name)
        if opening is None or (
            opening.done() and (opening.cancelled() or opening.exception() is not None or not opening.result().alive)
        ):
            opening = asyncio.create_task(Outcomes(self._grid, map_name, without_journal=True).open())
            self._outcomes[map_name] = opening
        return await asyncio.shield(opening)

    async def _look(self, outcomes: Outcomes, map_name: str, key: str, after: int | None, least: int) -> bytes | None:
        found = await self._now(map_name, key, after)
        if found is None:
            rejected = await outcomes.newest_rejection(key, least)
            if rejected is not None:
                raise rejected
        return found

    async def _now(self, map_name: str, key: str, after: int | None) -> bytes | None:
        for _, text in await Fetcher(self._grid, map_name).fetch([key]):
            if after is None or _sequence(text) > after:
                return text
        return None


def _sequence(text: bytes) -> int:
    try:
        return _decode(text).sequence
    except (msgspec.DecodeError, RecursionError):
        return -1
