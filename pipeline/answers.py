"""Answers: events that are put by somebody who waits for their results. One follower for all who wait on a result map.

A result belongs to an event if it was made of *that* entry of the journal, not of an older one under the same key. So
the place is looked up that the event got in its journal, while it is being scored; results of its key that come in the
meantime are kept.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.errors import HazelcastError

from pipeline.errors import GridError, GridscoreError, NoResultError
from pipeline.follower import Follower
from pipeline.grid.journal import Journal
from pipeline.grid.writer import MapWriter, partition_of
from pipeline.results import Result

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.producer import Producer
    from pipeline.worker.reader import Arrival

_log = logging.getLogger(__name__)

_LOOK_BACK = (16, 1_024)
"""How many of the newest entries of a partition are looked through for an event that was just put."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for the result of an event.

    Attributes:
        answer: The result's value.
        sequence: Of the event in its journal; None as long as it is not known.
        seen: Results of its key that came before it was known, by the sequence of their event.
    """

    answer: asyncio.Future[dict[str, Any]]
    sequence: int | None = None
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)

    def offer(self, sequence: int, value: dict[str, Any]) -> None:
        if self.answer.done():
            return
        if self.sequence is None:
            self.seen[sequence] = value
        elif sequence == self.sequence:
            self.answer.set_result(value)
        elif sequence > self.sequence:
            self.answer.set_exception(
                NoResultError("A later event under its key was scored, and it was not.", put=True)
            )

    def expect(self, sequence: int) -> None:
        self.sequence = sequence
        for each in sorted(self.seen):
            self.offer(each, self.seen[each])


class Answers:
    """Puts events into one map, and gives their results from another.

    Args:
        grid: The connection.
        producer: Of events.
        results: The result map.
    """

    def __init__(self, grid: Grid, producer: Producer, results: str) -> None:
        self._grid = grid
        self._producer = producer
        self._writer = MapWriter(grid, producer.map_name)
        self._events = Journal(grid, producer.map_name)
        self._results = results
        self._follower = Follower(grid, results)
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._dispatching: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether results are still being read."""
        return self._dispatching is not None and not self._dispatching.done()

    async def open(self) -> Answers:
        """Begin to read results.

        Raises:
            JournalMissingError: One of the maps has no journal.
            GridError: The cluster did not answer.
        """
        await self._events.bounds(0)
        await self._follower.open("latest")
        self._dispatching = asyncio.get_running_loop().create_task(self._dispatch())
        return self

    def close(self) -> None:
        """Stop reading; those who wait get an error."""
        self._follower.close()

    async def score(self, key: Any, text: bytes, seconds: float) -> Result:
        """Put an event, and wait for its result.

        Raises:
            NoResultError: It did not come within so many seconds, or cannot come any more.
            GridError: The cluster did not confirm the event, or the connection was closed.
        """
        data = self._writer.serialize_key(key)
        waiter = _Waiter(asyncio.get_running_loop().create_future())
        self._waiting.setdefault(data, []).append(waiter)
        put = False
        try:
            async with asyncio.timeout(seconds):
                await self._producer.put([(key, text)])
                put = True
                waiter.expect(await self._sequence(key, data, text))
                return Result(key, await waiter.answer)
        except TimeoutError:
            raise self._late(key, seconds, put=put) from None
        except HazelcastError as error:
            raise GridError(f"The event `{key}` may not have been put: {error}") from error
        finally:
            if not waiter.answer.cancel() and not waiter.answer.cancelled():
                waiter.answer.exception()  # seen, even if another error came first
            waiters = self._waiting[data]
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[data]

    def _late(self, key: Any, seconds: float, *, put: bool) -> NoResultError:
        name = self._producer.map_name
        if not put:
            return NoResultError(
                f"The event `{key}` was not confirmed by `{name}` within {seconds:g} s; it may still be put.",
                "Decide without a score. If a job has not kept up, `gridscore status` says which.",
            )
        return NoResultError(
            f"The result of `{key}` did not come to `{self._results}` within {seconds:g} s. The event stands in "
            f"`{name}`, and will be scored by whoever comes to it.",
            "Decide without it. `gridscore status` says whether the job is well; an event that cannot be scored is "
            "among `gridscore dead-letters`.",
            put=True,
        )

    async def _sequence(self, key: Any, data: bytes, text: bytes) -> int:
        """Sequence of the newest entry that is this event; it has been put."""
        partition = partition_of(data, self._grid.partition_count)
        try:
            oldest, newest = await self._events.bounds(partition)
            for count in _LOOK_BACK:
                found, position = None, max(oldest, newest + 1 - count)
                while position <= newest:
                    page = await self._events.read(partition, position, count)
                    if page is None:
                        break
                    for sequence, its_key, its_text in zip(page.sequences, page.keys, page.values, strict=True):
                        if its_key == data and its_text == text:
                            found = sequence
                    position = page.next
                if found is not None:
                    return found
        except HazelcastError as error:
            raise GridError(f"The journal of `{self._producer.map_name}` could not be read: {error}") from error
        raise NoResultError(
            f"The event `{key}` was put into `{self._producer.map_name}`, and overwritten in its journal at once.",
            "Give the journal more capacity.",
            put=True,
        )

    async def _dispatch(self) -> None:
        """Give results to those who wait for them."""
        try:
            while True:
                for arrival in await self._follower.take():
                    if self._waiting:
                        self._offer(arrival)
                    self._follower.move(arrival, arrival.page.next)
        except GridscoreError as error:
            for waiters in self._waiting.values():
                for waiter in waiters:
                    if not waiter.answer.done():
                        waiter.answer.set_exception(NoResultError(error.message, error.hint))
        finally:
            self._follower.close()

    def _offer(self, arrival: Arrival) -> None:
        waiting, page = self._waiting, arrival.page
        for index, key in enumerate(page.keys):
            if key not in waiting:
                continue
            try:
                value = _decode(page.values[index])
                sequence = value["sequence"]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
                _log.warning("`%s` holds something that is no result", self._results)
                continue
            if type(sequence) is int and sequence >= 0:  # -1: found by a rescan, and of which event is not known
                for waiter in waiting[key]:
                    waiter.offer(sequence, value)
