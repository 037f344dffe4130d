"""Outcomes: what becomes of events, for all callers in this process that wait for one result map.

One reader of the result map's journals, and one listener on the dead letters of each job that writes there, serve all
of them. An outcome is a result or a rejection, and belongs to an event by its sequence in the journal of events.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import decode, letter_id, map_of, value_of
from gridscore.errors import EventRejectedError, GridError, GridscoreError, JournalMissingError, NoResultError
from gridscore.grid import transport
from gridscore.grid.copies import Fetcher
from gridscore.grid.writer import partition_of
from gridscore.job import Jobs
from gridscore.job.life import ENDED
from gridscore.results.follower import Follower
from gridscore.results.sequences import READ_BYTES, sequences_of
from gridscore.results.stream import listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid
    from gridscore.group.reader import Arrival
    from gridscore.job import JobRecord

_log = logging.getLogger(__name__)

_JOBS_SECONDS = 5.0  # how long to trust the list of jobs
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Outcome(NamedTuple):
    """A result."""

    text: bytes  # its JSON text
    value: dict[str, Any]  # the same, decoded


@dataclass(slots=True, eq=False)
class Waiter:
    """A caller that waits for what becomes of the event under a key."""

    key: bytes  # serialized
    partition: int
    exact: bool  # whether it waits for one event; else a later one will do
    first: int | None  # sequence of the event, or of the first that will do; None until it is known
    answer: asyncio.Future[Outcome]  # the outcome; a rejection is an `EventRejectedError`
    # Outcomes under the key from before `first` was known, by their sequence.
    seen: dict[int, Outcome | EventRejectedError] = field(default_factory=dict)

    def expect(self, sequence: int) -> None:
        """Note the sequence, now that it is known."""
        self.first = sequence
        for each in sorted(self.seen):
            self.offer(each, self.seen[each])

    def wants(self, sequence: int) -> bool:
        """Whether the outcome of an event may be the answer."""
        return self.first is None or sequence == self.first or (sequence > self.first and not self.exact)

    def offer(self, sequence: int, outcome: Outcome | EventRejectedError) -> None:
        """Take the outcome of an event under the key."""
        if self.answer.done() or (self.exact and sequence < 0):  # -1: of a rescan, the event is unknown
            return
        if self.first is None:
            self.seen[sequence] = outcome
        elif self.wants(sequence):
            if isinstance(outcome, Outcome):
                self.answer.set_result(outcome)
            else:
                self.answer.set_exception(outcome)
        elif sequence > self.first and isinstance(outcome, Outcome):
            self.answer.set_exception(
                NoResultError("A later event under its key was scored, and this one was not.", put=True)
            )


class Outcomes:
    """What becomes of the events of one result map.

    `without_journal`: whether an entry listener will do where the map has no journal; it may miss some.
    """

    def __init__(self, grid: Grid, results: str, *, without_journal: bool = False) -> None:
        self._grid, self.results = grid, results
        self._without_journal = without_journal
        self._follower = Follower(grid, results)
        self._waiting: dict[bytes, list[Waiter]] = {}
        self._dispatching: asyncio.Task[None] | None = None
        self._ends: list[tuple[str, str]] = []  # listeners: map and registration
        self._jobs: dict[str, JobRecord] = {}
        self._jobs_at = float("-inf")
        self._listening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def alive(self) -> bool:
        """Whether results are still being read."""
        return not self.closed and (self._dispatching is None or not self._dispatching.done())

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return not self._waiting

    async def open(self) -> Outcomes:
        """Begin to read. Raises JournalMissingError if the result map has no journal."""
        try:
            await self._follower.open("latest")
            self._dispatching = asyncio.create_task(self._dispatch())
        except JournalMissingError:
            if not self._without_journal:
                raise
            self._ends.append((self.results, await listen(self._grid, self.results, self._entry)))
        await self._listen_to_letters()
        return self

    def close(self) -> None:
        """Stop reading; those who wait get an error."""
        if self.closed:
            return
        self.closed = True
        self._fail(GridError(f"`{self.results}` is no longer read."))
        self._follower.close()
        for task in self._tasks:
            task.cancel()
        if self._grid.is_running and self._ends:
            self._ending = asyncio.create_task(self._stop_listening())

    async def _stop_listening(self) -> None:
        for map_name, registration in self._ends:
            with suppress(HazelcastError):
                await (await self._grid.map(map_name)).remove_entry_listener(registration)

    # ------------------------------------------------------------------ those who wait

    async def wait(self, key: bytes, first: int | None, *, exact: bool) -> Waiter:
        """Begin to wait for the outcome of an event; `leave` ends it.

        `key`: serialized, of the event; `first`: its sequence, or the first that will do; None if it is not known yet;
        `exact`: whether no later event will do.
        """
        await self._listen_to_letters()
        partition = partition_of(key, self._grid.partition_count)
        waiter = Waiter(key, partition, exact, first, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(key, []).append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        if not waiter.answer.cancel() and not waiter.answer.cancelled():
            waiter.answer.exception()  # seen, even if another error came first
        waiters = self._waiting[waiter.key]
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[waiter.key]

    # ------------------------------------------------------------------ looking up

    async def jobs(self) -> list[JobRecord]:
        """The jobs that write here and have not ended, at most some seconds old."""
        now = self._grid.clock()
        if now - self._jobs_at >= _JOBS_SECONDS:
            records = await Jobs(self._grid).all()
            self._jobs = {each.name: each for each in records if each.job.results == self.results}
            self._jobs_at = now
        return [record for record in self._jobs.values() if record.state not in ENDED]

    async def rejection(self, key: bytes, text: bytes, sequence: int, events: str) -> EventRejectedError | None:
        """The dead letter of an event, if it is one."""
        letter = letter_id(partition_of(key, self._grid.partition_count), key, text)
        for record in await self.jobs():
            if record.job.events == events:
                found = await self._letter(record.name, letter)
                # With a smaller sequence it is of the same bytes put earlier; the outcome of these is not known yet.
                if found is not None and found.sequence >= sequence:
                    return _rejected(found, letter)
        return None

    async def newest_rejection(self, key: str, after: int) -> EventRejectedError | None:
        """The dead letter of the event that is under a key, if there is one and its sequence is greater."""
        data = transport.key_data(self._grid.client, key)
        for events in {record.job.events for record in await self.jobs()}:
            for _, text in await Fetcher(self._grid, events).fetch([key]):
                entry, limit = (data, bytes(text)), READ_BYTES + 4 * len(text)
                [sequence] = await sequences_of(self._grid, events, [entry], limit)
                if sequence is not None and sequence > after:
                    found = await self.rejection(data, text, sequence, events)
                    if found is not None:
                        return found
        return None

    async def _letter(self, job: str, letter: str) -> DeadLetter | None:
        value = await value_of(self._grid, job, letter)
        return None if value is None else decode(value)

    # ------------------------------------------------------------------ results

    async def _dispatch(self) -> None:
        """Hand results to their waiters."""
        try:
            while True:
                for arrival in await self._follower.take():
                    if self._waiting:
                        self._take(arrival)
                    self._follower.move(arrival, arrival.page.next)
        except GridscoreError as error:
            self._fail(error)
        finally:
            self._follower.close()

    def _fail(self, error: GridscoreError) -> None:
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.answer.done():
                    waiter.answer.set_exception(NoResultError(error.message, error.hint))

    def _take(self, arrival: Arrival) -> None:
        waiting, page = self._waiting, arrival.page
        for index, key in enumerate(page.keys):
            if key in waiting:
                self._offer(key, page.values[index])

    def _entry(self, event: Any) -> None:
        with suppress(HazelcastError, AttributeError):
            key = transport.key_data(self._grid.client, event.key)
            if key in self._waiting:
                self._offer(key, event.value.to_string().encode())

    def _offer(self, key: bytes, text: bytes) -> None:
        try:
            value = _decode(text)
            sequence = value.get("sequence", -1)
            outcome = Outcome(bytes(text), value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            _log.warning("`%s` holds something that is not a result", self.results)
            return
        if type(sequence) is int:
            for waiter in self._waiting[key]:
                waiter.offer(sequence, outcome)

    # ------------------------------------------------------------------ dead letters

    async def _listen_to_letters(self) -> None:
        try:
            async with self._listening:
                known = {map_name for map_name, _ in self._ends}
                for record in await self.jobs():
                    name = map_of(record.name)
                    if name not in known:
                        arrived = self._letter_arrived(record.name)
                        proxy = await self._grid.map(name)
                        # Without values: keys name the partition, and a flood of letters may be large.
                        listener = await proxy.add_entry_listener(
                            include_value=False, added_func=arrived, updated_func=arrived
                        )
                        self._ends.append((name, listener))
        except HazelcastError as error:
            raise GridError(
                f"The dead letters of the jobs that write to `{self.results}` cannot be seen: {error}"
            ) from error

    def _letter_arrived(self, job: str) -> Callable[[Any], None]:
        def arrived(event: Any) -> None:
            if not self._waiting:
                return
            try:
                letter = str(event.key)
            except HazelcastError:
                return  # its type cannot be read
            partition, _, rest = letter.partition("-")
            if not rest:
                return  # of a source, or not ours
            if any(str(each.partition) == partition for waiters in self._waiting.values() for each in waiters):
                task = asyncio.create_task(self._look_into(job, letter))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        return arrived

    async def _look_into(self, job: str, letter: str) -> None:
        try:
            found = await self._letter(job, letter)
        except HazelcastError as error:
            _log.debug("The dead letter %s of %s could not be read: %s", letter, job, error)
            return  # a waiter looks again when its time is over
        if found is not None:
            for waiter in self._waiting.get(found.key_bytes, ()):
                waiter.offer(found.sequence, _rejected(found, letter))


def _rejected(letter: DeadLetter, name: str) -> EventRejectedError:
    return EventRejectedError(letter.key, letter.job, letter.stage, letter.error, name)
