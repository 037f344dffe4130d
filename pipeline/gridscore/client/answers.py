"""Answers: events that are put by a client that waits for their results.

A result belongs to an event if it was made of *that* entry of the journal, not of an older one under the same key. So
the event's sequence in its journal is looked up while it is being scored; results of its key are kept until then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, NoResultError
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.producer.room import RingReaders
from gridscore.results.outcomes import Outcomes
from gridscore.results.sequences import sequences_of
from gridscore.results.stream import Result
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.producer.producer import Producer
    from gridscore.results.outcomes import Waiter

_LAST_LOOK_SECONDS = 1.0  # how long to look for the reason why a result is late


class Answers:
    """Puts events into one map, and gives their results from another."""

    def __init__(self, grid: Grid, producer: Producer, results: str) -> None:
        self._grid, self._producer = grid, producer
        self._writer = MapWriter(grid, producer.map_name)
        self._outcomes = Outcomes(grid, results)

    @property
    def alive(self) -> bool:
        """Whether results are still being read."""
        return self._outcomes.alive

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return self._outcomes.is_idle

    async def open(self) -> Answers:
        """Begin to read results. Raises JournalMissingError if one of the maps has no journal."""
        await Journal(self._grid, self._producer.map_name).bounds(0)
        await self._outcomes.open()
        return self

    def close(self) -> None:
        """Stop reading; those who wait get an error."""
        self._outcomes.close()

    async def score(self, key: Any, text: bytes, seconds: float) -> Result:
        """Put an event, and wait for its result.

        Raises EventRejectedError if it cannot be scored, and is a dead letter; NoResultError if it did not come in
        time, or cannot come any more; GridError if the cluster did not confirm the event, or the connection was closed.
        """
        data = self._writer.serialize_key(key)
        waiter: Waiter | None = None
        put = False
        try:
            try:
                async with asyncio.timeout(seconds):
                    waiter = await self._outcomes.wait(data, None, exact=True)
                    await self._producer.put([(key, text)])
                    put = True
                    waiter.expect(await self._sequence(key, data, text))
                    return Result(key, (await waiter.answer).value)
            except TimeoutError:
                pass
            if not put:
                raise NoResultError(
                    f"The event `{key}` was not confirmed by `{self._producer.map_name}` within {seconds:g} s; it may "
                    "still be put.",
                    "Decide without a score. `gridscore status` says whether a job lags behind.",
                )
            assert waiter is not None  # noqa: S101 -- it was put
            raise await self._late(key, text, waiter, seconds)
        except HazelcastError as error:
            raise GridError(f"The event `{key}` may not have been put: {error}") from error
        finally:
            if waiter is not None:
                self._outcomes.leave(waiter)

    async def _late(self, key: Any, text: bytes, waiter: Waiter, seconds: float) -> NoResultError:
        """Why there is no result of an event that was put."""
        events, results = self._producer.map_name, self._outcomes.results
        late = f"The result of `{key}` did not come to `{results}` within {seconds:g} s."
        try:
            async with asyncio.timeout(_LAST_LOOK_SECONDS):
                if waiter.first is not None:
                    # The listener may have missed it while a member went or came.
                    rejected = await self._outcomes.rejection(waiter.key, text, waiter.first, events)
                    if rejected is not None:
                        return rejected
                unread = (await RingReaders(self._grid, events, results).unread([waiter.partition], 0))[
                    waiter.partition
                ]
        except (TimeoutError, HazelcastError, GridError) as error:
            what = f"The reason is unknown: the cluster does not answer ({error or 'no answer'})."
            return NoResultError(f"{late} {what}", f"The event is in `{events}`.", put=True)
        if not unread.job:
            what = f"The event is in `{events}`, but no job scores that map into `{results}`."
            hint = "Submit the job, or name another result map."
        elif unread.count:
            left = count_text(unread.count, "event")
            where = f"The event is in `{events}`"
            what = f"{where}; the job {unread.job} ({unread.state}) has {left} of its partition to go."
            if unread.state == "SUSPENDED":
                hint = f"`gridscore resume {unread.job}` lets it go on."
            elif not unread.owned:
                hint = "No worker scores for it: start `gridscore worker`."
            else:
                hint = f"`gridscore status {unread.job}` says whether it keeps up."
        else:
            what = f"The job {unread.job} is past the event, and there is neither its result nor a dead letter."
            hint = f"`gridscore audit {unread.job}` finds events without a result."
        return NoResultError(f"{late} {what}", f"Decide without it. {hint}", put=True)

    async def _sequence(self, key: Any, data: bytes, text: bytes) -> int:
        """Sequence of the newest entry that is this event; it has been put."""
        [sequence] = await sequences_of(self._grid, self._producer.map_name, [(data, text)])
        if sequence is None:
            raise NoResultError(
                f"The event `{key}` was put into `{self._producer.map_name}`, and overwritten in its journal at once.",
                "Give the journal more capacity.",
                put=True,
            )
        return sequence
