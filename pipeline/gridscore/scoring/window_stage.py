"""Windows whose keys are not the events' own, where their entities lie: the second of their two stages.

A worker group of its own reads the journal of requests (`window_requests`). Who holds the lease of a partition is the
one writer of the states of its entities:

1. A request is added to its windows: events that the partition has already are not, by its ledger.
2. Answers are written into the partitions of the events.
3. When these are acknowledged, the states and the ledger are written, in one message.
4. When these are, the offset may be committed.

So what the ledger has was answered, and after a crash the same requests in the same order give the same answers. An
overdue event that the ledger has is answered again only if its answer does not stand; it sees its windows as they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.features.windows import Inputs
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of
from gridscore.grid.writer import MapWriter
from gridscore.group.group import Group
from gridscore.group.offsets import Write
from gridscore.group.subscription import GroupStats, Subscriber
from gridscore.scoring.window_messages import (
    REQUEST_RING,
    Answer,
    Asked,
    Ledger,
    answer_key,
    answer_map,
    answer_of,
    encode,
    group_of,
    key_in,
    parts_of,
    read_request,
    request_map,
    subscription_of,
    tag_of,
)
from gridscore.scoring.window_states import WindowStates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gridscore.grid import Grid
    from gridscore.group.members import Members
    from gridscore.group.reader import Arrival, Cursor
    from gridscore.job import JobRecord
    from gridscore.scoring.stats import JobStats

_log = logging.getLogger(__name__)

_REQUESTS = 512  # requests after which a batch takes no further page
_UNACKNOWLEDGED_EVENTS = 32_768
_MOST_FOUND = 65_536
_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class _Part:
    """What a batch has for one partition of entities."""

    partition: int
    cursor: Cursor
    at: float  # when the first of its pages arrived
    next: int = 0  # the offset to go on from
    lost: int = 0
    events: int = 0
    requests: list[tuple[int, Asked]] = field(default_factory=list)  # what was asked, each with its sequence
    answers: set[int] = field(default_factory=set)  # the partitions of events that get answers
    states: dict[bytes, bytes] = field(default_factory=dict)  # to be written, by serialized key


class _Rows(NamedTuple):
    """Some events of a request."""

    part: _Part
    asked: Asked
    rows: NDArray[Any]


# Keys and texts of answers for one partition of events, by the partition of entities that gives them.
_Message = dict[int, tuple[list[bytes], list[bytes]]]


class WindowStage:
    """Adds events to the windows of one job, and answers, in one worker.

    `stats`: of the job, for the time that it takes, and late events; `seconds`: how long partitions of a killed worker
    wait for a new owner.
    """

    def __init__(self, grid: Grid, record: JobRecord, members: Members, stats: JobStats, *, seconds: float) -> None:
        name = record.job.name
        self._grid = grid
        self.name = group_of(name)
        self._stats = stats
        self._requests = request_map(name)
        # Every request is read; what was done before is left to the ledger.
        self.group = Group(grid, subscription_of(name), Subscriber(), members, GroupStats(), seconds=seconds)
        self.group.set_ring(REQUEST_RING)
        self.states = WindowStates(grid, record, lambda _partition: 0, self.group.settled, self.group.bounds)
        self.group.read_at_most(self.states.page_events)
        self._mean_events = 1.0  # of a request, about
        self._tag = tag_of(self.states.parts, self.states.windows)
        self._states = MapWriter(grid, self.states.map_name)
        self._answers = MapWriter(grid, answer_map(name))
        self._found: dict[int, tuple[Cursor, set[tuple[int, int]]]] = {}
        self._writing: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Make the maps known to the cluster, and fail if requests have no journal.

        Raises JournalMissingError if they have none.
        """
        await self._grid.map(self._requests)
        await self.group.bounds(0)
        await self._states.prepare()
        await self._answers.prepare()

    async def run(self) -> None:
        """Answer until cancelled; call `leave` then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.group.run())
            tasks.create_task(self._answer())

    async def leave(self) -> None:
        """Finish the writes under way, and give everything back."""
        await self.group.leave()
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------------ the way of a batch

    async def _answer(self) -> None:
        while True:
            await self.group.wait()
            await self.group.drain(_UNACKNOWLEDGED_EVENTS, self.states.forget)
            most = max(1, min(_REQUESTS, int(self.states.batch_events / self._mean_events)))
            if not (arrivals := self.group.take(most)):
                continue
            try:
                parts, messages = await self._add(arrivals)
            except HazelcastError as error:
                _log.warning("%s: what a batch needs could not be read, trying again: %s", self.name, error)
                for arrival in arrivals:
                    if arrival.cursor.is_current:
                        self.group.put_back(arrival.partition)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._write(parts, messages)
            await asyncio.sleep(0)

    async def _add(self, arrivals: Sequence[Arrival]) -> tuple[list[_Part], dict[int, _Message]]:
        """Add the events of requests to their windows; returns what is to be written.

        Raises HazelcastError if a read failed; nothing is changed.
        """
        parts: dict[int, _Part] = {}
        for partition, page, cursor, lost, at in arrivals:
            part = parts.setdefault(partition, _Part(partition, cursor, at))
            part.next = page.next
            part.lost += lost
            for sequence, text in zip(page.sequences, page.values, strict=True):
                if asked := self._read(partition, text):
                    part.requests.append((sequence, asked))
        requests = [asked for part in parts.values() for _, asked in part.requests]
        if requests:
            seen = sum(len(asked.keys) for asked in requests) / len(requests)
            self._mean_events = max(seen, (self._mean_events + seen) / 2, 1.0)
        # Before the look: answers that are just being written need none, and come.
        settled = {partition for partition in parts if self.group.settled(partition)}
        stands = await self._standing(parts.values())
        wanted = [(part.cursor, self._keys_of(part)) for part in parts.values()]
        states = await self.states.fetch(wanted)
        # From here on nothing is read: what is known afterwards is what this batch has made.
        clock = time.thread_time_ns
        began = clock()
        messages: dict[int, _Message] = {}
        for window in range(len(self.states.windows.layouts)):
            new: list[_Rows] = []
            overdue: list[_Rows] = []
            for part in parts.values():
                self._sort(part, window, states, stands, new, overdue if part.partition in settled else None)
            after = await self._ask(window, new, states, messages)
            states |= after
            await self._ask(window, overdue, states, messages, again=True)
            for part, asked, rows in new:
                part.states |= {key: after[key] for key in map(asked.keys.__getitem__, rows.tolist())}
        for part in parts.values():
            part.states = self.states.changed(part.cursor, part.states)
        self._stats.late, self._stats.broken_states = self.states.windows.late, self.states.broken
        self._stats.stage_ns["windows"] += clock() - began
        return list(parts.values()), messages

    def _read(self, partition: int, text: bytes) -> Asked | None:
        try:
            return read_request(text, self.states.parts, partition, self._grid.partition_count)
        except (ValueError, RecursionError) as error:
            _log.warning("%s: a request in partition %d is passed over, it is not one: %s", self.name, partition, error)
            return None

    def _keys_of(self, part: _Part) -> list[bytes]:
        """The keys of the states that a part needs."""
        windows = {asked.window for _, asked in part.requests}
        ledgers = [key for window in windows for key in self._ledger_keys(part, window).values()]
        return [*ledgers, *(key for _, asked in part.requests for key in asked.keys)]

    def _ledger_keys(self, part: _Part, window: int) -> dict[int, bytes]:
        """The keys of the parts of a ledger that the events of a part are in, by number."""
        numbers = {
            number for _, asked in part.requests if asked.window == window for number in parts_of(asked.partitions)
        }
        count, name = self._grid.partition_count, self.states.windows.layouts[window].name
        return {number: key_in(part.partition, count, f":{name}:{number}:") for number in numbers}

    async def _standing(self, parts: Iterable[_Part]) -> dict[tuple[int, bytes], tuple[int, int, int]]:
        """Origin, number and mark of the answers where doubtful events may have theirs, by partition and key."""
        count = self._grid.partition_count
        wanted: dict[int, set[bytes]] = {}
        for part in parts:
            for _, asked in part.requests:
                doubtful = range(len(asked.keys)) if asked.again else np.flatnonzero(asked.numbers < 0).tolist()
                for row in doubtful:
                    partition = int(asked.partitions[row])
                    key = answer_key(partition, count, asked.window, int(asked.numbers[row]))
                    wanted.setdefault(partition, set()).add(key)
        if not wanted:
            return {}
        found = await asyncio.gather(*(values_of(self._grid, self._answers.map_name, p, k) for p, k in wanted.items()))
        stands = {}
        for partition, entries in zip(wanted, found, strict=True):
            for key, value in entries.items():
                try:
                    answer = answer_of(payload(value))
                except (ValueError, RecursionError):
                    continue  # it is written anew
                if answer.windows == self._tag:
                    stands[partition, key] = answer.origin, answer.number, answer.mark
        return stands

    def _sort(
        self,
        part: _Part,
        window: int,
        states: dict[bytes, bytes],
        stands: dict[tuple[int, bytes], tuple[int, int, int]],
        new: list[_Rows],
        overdue: list[_Rows] | None,
    ) -> None:
        """Which events of a part are to be added to a window, and which only answered."""
        requests = [(sequence, asked) for sequence, asked in part.requests if asked.window == window]
        if not requests:
            return
        count, ledger_keys = self._grid.partition_count, self._ledger_keys(part, window)
        known = {number: states[key] for number, key in ledger_keys.items()}
        ledger = Ledger(known, count)
        before = Ledger(known, count) if any(asked.again for _, asked in requests) else ledger
        found: set[tuple[int, int, int]] = set()
        for sequence, asked in requests:
            part.events += len(asked.keys)
            lacks = ledger.lacks(sequence, asked)
            is_added = before.lacks(sequence, asked) if asked.again else lacks
            if lacks.any():
                ledger.note(sequence, asked, np.flatnonzero(lacks))
            if asked.again or (asked.numbers < 0).any():
                for row in np.flatnonzero(~lacks).tolist():
                    partition, origin, number, mark = (int(each[row]) for each in asked[2:6])
                    there = stands.get((partition, answer_key(partition, count, window, number)))
                    if there == (origin, number, mark) or (number >= 0 and there and there[:2] > (origin, number)):
                        continue
                    event = partition, number, mark
                    if number < 0 and self._is_new(part.cursor, window, number):
                        lacks[row] = True
                        found.add(event)
                    elif asked.again and overdue is not None and not is_added[row] and event not in found:
                        if there and there[:2] == (origin, number):  # that of an event which a member took with it
                            lacks[row] = True
                            found.add(event)
                        else:
                            overdue.append(_Rows(part, asked, np.array([row])))
            rows = np.flatnonzero(lacks)
            if len(rows):
                new.append(_Rows(part, asked, rows))
        part.states |= {ledger_keys[number]: state for number, state in ledger.changed().items()}

    def _is_new(self, cursor: Cursor, window: int, number: int) -> bool:
        """Whether an event that was found in the map is seen for the first time by this cursor."""
        there = self._found.get(cursor.partition)
        if there is None or there[0] is not cursor:
            there = self._found[cursor.partition] = (cursor, set())
        is_new = (window, number) not in there[1]
        if len(there[1]) >= _MOST_FOUND:
            there[1].clear()
        there[1].add((window, number))
        return is_new

    async def _ask(
        self,
        window: int,
        chosen: list[_Rows],
        states: dict[bytes, bytes],
        messages: dict[int, _Message],
        *,
        again: bool = False,
    ) -> dict[bytes, bytes]:
        """Let events ask a window, and add them; returns the states afterwards.

        Those that ask `again` have been added before, and whether they were late is no longer known.
        """
        if not chosen:
            return {}
        keys = [asked.keys[row] for _, asked, rows in chosen for row in rows.tolist()]
        times = np.concatenate([asked.times[rows] for _, asked, rows in chosen])
        columns = np.concatenate([asked.columns[:, rows] for _, asked, rows in chosen], axis=1)
        out, after = await self.states.add(window, Inputs(keys, np.ascontiguousarray(columns)), times, states)
        if again and self.states.windows.tells_late:
            out[-1] = np.nan
        values, size, begin = out.T.tobytes(), len(out) * 8, 0
        tag, count = self._tag, self._grid.partition_count
        for part, asked, rows in chosen:
            partitions = asked.partitions[rows].tolist()
            for partition in set(partitions):
                messages.setdefault(partition, {}).setdefault(part.partition, ([], []))
                part.answers.add(partition)
            events = zip(partitions, *(each[rows].tolist() for each in asked[3:6]), strict=True)
            for partition, origin, number, mark in events:
                where, texts = messages[partition][part.partition]
                where.append(answer_key(partition, count, window, number))
                texts.append(encode(Answer(tag, window, origin, number, mark, values[begin : begin + size])))
                begin += size
        return after

    # ------------------------------------------------------------------ writing

    def _write(self, parts: list[_Part], messages: dict[int, _Message]) -> None:
        # One that was given back meanwhile holds up no other, and answers nothing.
        held = {part.partition: part for part in self.group.ours(parts)}
        puts: dict[int, asyncio.Future[None]] = {}
        for partition, message in messages.items():
            if givers := message.keys() & held.keys():
                keys = [key for giver in givers for key in message[giver][0]]
                texts = [text for giver in givers for text in message[giver][1]]
                until = min(held[giver].cursor.until for giver in givers)
                puts[partition] = self._answers.put_partition(partition, keys, texts, until=until)
                puts[partition].add_done_callback(_heard)
        answered = asyncio.ensure_future(asyncio.wait(puts.values())) if puts else None
        for part in held.values():
            write = Write(part.partition, part.next, part.events, part.lost, part.at)
            self.group.sent(write)
            task = asyncio.get_running_loop().create_task(
                self._settle(write, part, [puts[p] for p in part.answers], answered, self._writing.get(part.partition))
            )
            self._writing[part.partition] = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(
        self,
        write: Write,
        part: _Part,
        answers: list[asyncio.Future[None]],
        answered: asyncio.Future[Any] | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        """Write the states of a part when the answers of its batch, and the states before it, are written.

        `answers`: its own; `answered`: when all of the batch are written, or not.
        """
        group = self.group
        error: BaseException | None = None
        try:
            if others := [each for each in (answered, before) if each is not None]:
                await asyncio.wait(others)
            for put in answers:
                put.result()
            if part.states and write.counts:
                keys, texts = list(part.states), list(part.states.values())
                await self._states.put_partition(part.partition, keys, texts, until=part.cursor.until)
        except BaseException as failure:
            error = failure
            if not isinstance(failure, HazelcastError):
                raise
        finally:
            if group.answered(write):
                if error is None:
                    group.acknowledge(write)
                else:
                    _log.debug(
                        "%s: a write of partition %d failed, it is read again: %s", self.name, part.partition, error
                    )
                    group.put_back(write.partition)


def _heard(done: asyncio.Future[None]) -> None:
    """Those who gave the answers may be lost meanwhile; then nobody else asks what became of the write."""
    done.cancelled() or done.exception()
