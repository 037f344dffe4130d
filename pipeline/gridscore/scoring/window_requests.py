"""Asking for windows whose keys are not the events' own: the first of their two stages, as a part of a job's scoring.

The states of such windows lie in the partitions of their entities, whose holders (`window_stage`) add events, and
answer. A batch is asked for all at once, and waits for its answers. So of a partition nothing is asked before all that
came earlier is answered, and an entity's partition can tell by a number whether it has an event already:

1. If the partition is newly held, answers that stand are taken: its former owner may have asked. It is asked all the
   same: a member may have gone with what was answered, and not added. The batch ends only when that is passed.
2. Requests are put, a message for each partition of entities, under the lease of the events' partition.
3. Answers come by the journal of their map. Where one is overdue, it is looked for in the map; and asked for again once
   its partition of entities has committed what had been put there, with all of the batch that are of the same
   ledger. Until then the request waits there, and more of them would overwrite those that a killed worker has
   answered, and not added.

Whatever is lost on the way, on either side, is asked for again until it is there.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from hazelcast.errors import HazelcastError, OperationTimeoutError

from gridscore.errors import GridError, JournalMissingError
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import read_records
from gridscore.group.reader import JournalReader
from gridscore.scoring.window_messages import (
    SLOTS,
    Asked,
    answer_key,
    answer_map,
    answer_of,
    entity_key,
    group_of,
    key_in,
    mark_of,
    number_of,
    request_map,
    request_text,
    tag_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features import EventColumns
    from gridscore.features.windows import Inputs
    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.group import Group
    from gridscore.group.reader import Arrival, Cursor
    from gridscore.job import Job
    from gridscore.scoring.window_messages import Answer
    from gridscore.scoring.window_states import WindowStates

_log = logging.getLogger(__name__)

# Events after which a batch takes no further page: more than otherwise, for it makes a message for each partition.
BATCH_EVENTS = 16_384

AT_ONCE = SLOTS // 2  # events of a partition that are asked for at once: as many may be answered, and not committed yet
_GLANCE_SECONDS = 0.5
_OVERDUE_SECONDS, _LONGEST_SECONDS = 1.0, 8.0
_ROOM_SECONDS = 0.02
_LOOKS = 64
_ANSWERS = 16_384
_HOMES = 65_536


# What an answer is known by: partition, window, origin, number and mark of the event.
_Place = tuple[int, int, int, int, int]


@dataclass(slots=True)
class _Batch:
    """Events that ask."""

    inputs: list[Inputs]
    times: NDArray[np.float64]
    found: list[NDArray[np.float64]]  # by window, a row a call, a column an event
    cursors: dict[int, Cursor] = field(default_factory=dict)  # who has read them, by partition
    newest: dict[int, int] = field(default_factory=dict)  # their highest numbers, by partition
    asked: dict[_Place, int] = field(default_factory=dict)  # those that ask
    rows: dict[_Place, int] = field(default_factory=dict)  # those of them that wait for an answer
    # Those that wait for the answer of another, each with that one.
    same: list[tuple[int, int, int]] = field(default_factory=list)
    # Requests: whether they arrived, and what they ask for.
    puts: list[tuple[asyncio.Future[None], list[_Place]]] = field(default_factory=list)
    # Where the requests of partitions of entities ended when they were first seen to be overdue.
    ends: dict[int, int] = field(default_factory=dict)


def portions(arrivals: Sequence[Arrival]) -> Iterable[list[Arrival]]:
    """The arrivals in order, cut so that the sequences of a partition in a portion are at most `AT_ONCE` apart."""
    portion: list[Arrival] = []
    begun: dict[int, int] = {}
    for arrival in arrivals:
        if arrival.page.next - begun.get(arrival.partition, arrival.page.next) > AT_ONCE:
            yield portion
            portion, begun = [], {}
        portion.append(arrival)
        begun.setdefault(arrival.partition, arrival.page.first)
    yield portion


class WindowRequests:
    """Asks the windows of one job for what its events find there.

    `group`: its group, which holds the partitions of its events.
    """

    def __init__(self, grid: Grid, job: Job, group: Group, states: WindowStates) -> None:
        self._grid = grid
        self._name = job.name
        self._group, self._states = group, states
        self.windows = states.windows
        self._tag = tag_of(states.parts, states.windows)
        self._requests = MapWriter(grid, request_map(job.name))
        self._put_there = Journal(grid, request_map(job.name))
        self._answers = answer_map(job.name)
        self._reader = JournalReader(grid, self._answers, self._begun_again, self._looked_into)
        self._looked: dict[int, Cursor] = {}  # nobody before it has asked for more than is answered
        self._batch: _Batch | None = None
        self._homes: list[dict[str | int, tuple[bytes, int]]] = [{} for _ in self.windows.layouts]
        self._woken = asyncio.Event()
        self._gap = False

    async def prepare(self) -> None:
        """Make the maps known to the cluster, and fail if answers have no journal."""
        await self._requests.prepare()
        await self._grid.map(self._answers)
        await self._reader.bounds(0)

    async def run(self) -> None:
        """Read answers until cancelled. Raises GridscoreError if their map has no journal."""
        try:
            while True:
                await self._reader.wait()
                for arrival in self._reader.take(_ANSWERS):
                    self._take(arrival.partition, arrival.page.values)
        finally:
            self._reader.close()

    def refused(self, events: EventColumns) -> dict[int, str]:
        """The events that windows cannot hold, each with the reason."""
        return self._states.refused(events, (), [False] * len(events))

    async def ask(
        self,
        events: EventColumns,
        spans: Iterable[tuple[Cursor, int]],
        sequences: Sequence[int],
        keys: Sequence[bytes],
        values: Sequence[bytes],
    ) -> EventColumns:
        """The events with what each found in its windows; nothing, where its partition is lost meanwhile.

        `spans`: who has read them: cursors, each with the number of its events. Raises HazelcastError if a member did
        not answer; nothing is lost.
        """
        windows = self.windows
        found = [np.full((windows.width(number), len(events)), math.nan) for number in range(len(windows.layouts))]
        batch = self._batch = _Batch(windows.inputs(events), windows.times(events), found)
        begin = 0
        for cursor, count in spans:
            rows = range(begin, begin := begin + count)
            if not self._is_current(cursor):
                continue
            partition, origin = cursor.partition, self._group.record(cursor.partition).origin
            batch.cursors[partition] = cursor
            told = [
                (number_of(sequences[row], keys[row], values[row]), mark_of(keys[row], values[row])) for row in rows
            ]
            batch.newest[partition] = max(batch.newest.get(partition, -1), *(number for number, _ in told), -1)
            for window, one in enumerate(batch.inputs):
                for row, (number, mark) in zip(rows, told, strict=True):
                    if one.keys[row] is not None:
                        first = batch.asked.setdefault((partition, window, origin, number, mark), row)
                        if first != row:
                            batch.same.append((window, row, first))
        batch.rows = dict(batch.asked)
        try:
            await self._follow(batch)
            stands = batch.asked.keys() - batch.rows.keys()
            self._send(batch, batch.asked)
            await self._wait(batch)
            await self._keep(batch)
            await self._rest(batch, stands)
        finally:
            self._batch = None
        for window, row, first in batch.same:
            found[window][:, row] = found[window][:, first]
        return windows.seen(events, found)

    # ------------------------------------------------------------------ before the first request

    async def _follow(self, batch: _Batch) -> None:
        """Read the answers of all partitions from now on; take those that stand; and wait until there is room."""
        for partition in self._reader.partitions - self._group.held:
            self._reader.stop(partition)
        await asyncio.gather(*(self._begin(p) for p in batch.cursors.keys() - self._reader.partitions))
        new = {p for p, cursor in batch.cursors.items() if self._looked.get(p) is not cursor}
        if new:
            stood = await self._look(batch, new)
            self._looked |= {p: batch.cursors[p] for p in new - stood}
        for cursor in batch.cursors.values():
            # Offsets are committed at any moment, and few batches wait for one.
            while self._is_current(cursor) and not self._has_room(cursor.partition, batch.newest[cursor.partition]):  # noqa: ASYNC110
                await asyncio.sleep(_ROOM_SECONDS)

    def _has_room(self, partition: int, number: int) -> bool:
        """Whether answers up to that event take the place of none that is needed if this worker dies."""
        committed = self._group.record(partition).offset
        if number < committed + SLOTS:
            return True
        # All before this batch is committed; what lies between was overwritten before it was read.
        return self._group.settled(partition) and self._group.acknowledged_to(partition) == committed

    async def _begin(self, partition: int) -> None:
        try:
            _, newest = await self._reader.bounds(partition)
        except JournalMissingError:
            raise
        except GridError as error:
            raise OperationTimeoutError(str(error)) from error
        self._reader.start(partition, newest + 1)

    def _is_current(self, cursor: Cursor) -> bool:
        return cursor.is_current and cursor.partition in self._group.held

    # ------------------------------------------------------------------ requests

    def _send(self, batch: _Batch, rows: Mapping[_Place, int], *, again: bool = False) -> None:
        """Put requests for those of these rows whose partition is still ours; `again` if their answers are overdue."""
        by_partition: dict[tuple[int, int], tuple[list[_Place], list[int], list[bytes]]] = {}
        ours = {partition for partition, cursor in batch.cursors.items() if self._is_current(cursor)}
        for place, row in rows.items():
            if place[0] not in ours:
                continue
            window = place[1]
            key, partition = self._home(batch, place, row)
            there = by_partition.get((window, partition))
            if there is None:
                there = by_partition[window, partition] = [], [], []
            places, indices, keys = there
            places.append(place)
            indices.append(row)
            keys.append(key)
        for (window, partition), (places, indices, keys) in by_partition.items():
            partitions, _, origins, numbers, marks = zip(*places, strict=True)
            asked = Asked(
                window,
                again,
                np.array(partitions, np.int32),
                np.array(origins, np.uint32),
                np.array(numbers, np.int64),
                np.array(marks, np.uint32),
                batch.times[indices],
                batch.inputs[window].columns[:, indices],
                keys,
            )
            until = min(batch.cursors[each].until for each in set(partitions))
            where, text = key_in(partition, self._grid.partition_count, ""), request_text(self._states.parts, asked)
            put = self._requests.put_partition(partition, [where], [text], until=until)
            put.add_done_callback(self._heard)
            batch.puts.append((put, places))

    def _home(self, batch: _Batch, place: _Place, row: int) -> tuple[bytes, int]:
        """The key of the state of a row's entity, and its partition."""
        window = place[1]
        homes, entity = self._homes[window], batch.inputs[window].keys[row]
        home = homes.get(entity)
        if home is None:
            if len(homes) >= _HOMES:
                homes.clear()
            key = entity_key(self.windows.layouts[window].name, entity)
            home = homes[entity] = key, partition_of(key, self._grid.partition_count)
        return home

    async def _keep(self, batch: _Batch) -> None:
        """Put requests again that were answered, and may have no backup: a member would take them with it, unadded."""
        while puts := batch.puts:
            await asyncio.wait([put for put, _ in puts])
            batch.puts = []
            failed = [places for put, places in puts if put.cancelled() or put.exception() is not None]
            if failed:
                await asyncio.sleep(_GLANCE_SECONDS)
                self._send(batch, {place: batch.asked[place] for places in failed for place in places})

    def _heard(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.debug("%s: a request of windows was not acknowledged: %s", self._name, error)

    # ------------------------------------------------------------------ answers

    async def _wait(self, batch: _Batch) -> None:
        """Return when all is answered whose partition is still ours."""
        clock, patience = self._grid.clock, _OVERDUE_SECONDS
        overdue_at = clock() + patience
        while batch.rows:
            self._woken.clear()
            try:
                async with asyncio.timeout(_GLANCE_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                gone = {partition for partition, cursor in batch.cursors.items() if not self._is_current(cursor)}
                batch.rows = {place: row for place, row in batch.rows.items() if place[0] not in gone}
            is_overdue = clock() >= overdue_at
            if batch.rows and (is_overdue or self._gap):
                self._gap = False
                await self._look_again(batch)
            if is_overdue:
                self._send(batch, await self._overdue(batch), again=True)
                patience = min(2 * patience, _LONGEST_SECONDS)
                overdue_at = clock() + patience

    async def _overdue(self, batch: _Batch) -> dict[_Place, int]:
        """The rows whose partition of entities has passed their requests, and did not answer all of them.

        With what is not answered goes what is, of the same ledger: it may be lost, and is refused after a later one.
        """
        homes = {place: self._home(batch, place, row)[1] for place, row in batch.asked.items()}
        passed = await self._passed(batch, {homes[place] for place in batch.rows})
        late = {(*place[:2], homes[place]) for place in batch.rows if homes[place] in passed}
        return {
            place: row
            for place, row in batch.asked.items()
            if (*place[:2], homes[place]) in late and (place in batch.rows or place[3] >= 0)
        }

    async def _rest(self, batch: _Batch, stands: set[_Place]) -> None:
        """Return when what stood answered is passed where it is still ours: many such batches would fill the ring."""
        batch.ends = {}
        while stands := {place for place in stands if self._is_current(batch.cursors[place[0]])}:
            homes = {place: self._home(batch, place, batch.asked[place])[1] for place in stands}
            passed = await self._passed(batch, set(homes.values()))
            if stands := {place for place in stands if homes[place] not in passed}:
                await asyncio.sleep(_GLANCE_SECONDS)

    async def _passed(self, batch: _Batch, partitions: Collection[int]) -> set[int]:
        """Those partitions of entities that have committed all requests which were there at the first look."""
        batch.ends = {partition: end for partition, end in batch.ends.items() if partition in partitions}
        waiting, passed = sorted(partitions), set[int]()
        for begin in range(0, len(waiting), _LOOKS):
            some = waiting[begin : begin + _LOOKS]
            for partition, seen in zip(some, await asyncio.gather(*map(self._seen, some)), strict=True):
                if seen is None:
                    continue
                offset, newest = seen
                # A member may have taken the newest ones with it.
                end = batch.ends[partition] = min(newest, batch.ends.get(partition, newest))
                if offset > end:
                    passed.add(partition)
                    del batch.ends[partition]
        return passed

    async def _seen(self, partition: int) -> tuple[int, int] | None:
        """The offset of a partition of entities, and its newest request; None if that cannot be read now."""
        try:
            async with asyncio.timeout(_GLANCE_SECONDS):
                _, newest = await self._put_there.bounds(partition)
                leases = await read_records(self._grid, group_of(self._name), [partition])
        except (HazelcastError, GridError, TimeoutError) as error:
            _log.debug("%s: requests of partition %d could not be seen: %s", self._name, partition, error)
            return None
        return leases[partition].offset if partition in leases else 0, newest

    async def _look_again(self, batch: _Batch) -> None:
        """Take the answers that stand, and see whether their journals have begun again."""
        waiting = {partition for partition, *_ in batch.rows}
        try:
            await self._look(batch, waiting)
            await asyncio.gather(*map(self._reader.check, waiting))
        except (HazelcastError, GridError) as error:
            _log.debug("%s: answers of windows could not be read, trying again: %s", self._name, error)

    async def _look(self, batch: _Batch, partitions: Collection[int]) -> set[int]:
        """Take the answers that stand in the map; returns the partitions that have any."""
        count = self._grid.partition_count
        keys: dict[int, list[bytes]] = {partition: [] for partition in partitions}
        for partition, window, _, number, _ in batch.rows:
            if partition in keys:
                keys[partition].append(answer_key(partition, count, window, number))
        there = await asyncio.gather(*(values_of(self._grid, self._answers, p, wanted) for p, wanted in keys.items()))
        return {p for p, entries in zip(keys, there, strict=True) if self._take(p, map(payload, entries.values()))}

    def _take(self, partition: int, texts: Iterable[bytes]) -> int:
        """Note answers that somebody waits for; returns how many."""
        taken, batch = 0, self._batch
        if batch is None:
            return 0
        found: list[tuple[list[int], list[bytes]]] = [([], []) for _ in batch.found]
        for text in texts:
            answer = self._read(partition, text)
            if answer is None:
                continue
            place = partition, answer.window, answer.origin, answer.number, answer.mark
            row = batch.rows.pop(place, None)
            if row is not None:
                taken += 1
                places, values = found[answer.window]
                places.append(row)
                values.append(answer.values)
        for columns, (places, values) in zip(batch.found, found, strict=True):
            if places:
                columns[:, places] = np.frombuffer(b"".join(values)).reshape(len(places), -1).T
        if taken and not batch.rows:
            self._woken.set()
        return taken

    def _read(self, partition: int, text: bytes) -> Answer | None:
        try:
            answer = answer_of(text)
        except (ValueError, RecursionError) as error:
            _log.warning("%s: an answer in partition %d cannot be read: %s", self._answers, partition, error)
            return None
        if answer.windows != self._tag or not 0 <= answer.window < len(self.windows.layouts):
            return None
        return answer if len(answer.values) == 8 * self.windows.width(answer.window) else None

    def _begun_again(self, partition: int, oldest: int) -> None:
        self._reader.start(partition, oldest)

    async def _looked_into(self, _cursor: Cursor, page: Page, _gap: int) -> Page:
        self._gap = True
        self._woken.set()
        return page
