"""States of windows from a history, so that a job does not begin blind.

A history has the events before a moment, and the journal those from then on: of events in both, a state that was loaded
lets those of the journal only look. States are made by the kernel that makes them live, of as many entities at once as
there is room for; for the others the history is read again. Each is compared and set, so that nothing takes the place
of what a worker has written meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import JobError, TableError
from gridscore.features.events import EventDecoder
from gridscore.features.offline import good_rows
from gridscore.features.tables import kinds_of, read_chunks, rows_as_json
from gridscore.features.window_kernel import head_of, loaded
from gridscore.features.windows import Windows, why_late
from gridscore.grid import wire
from gridscore.grid.entries import put_absent, replace_same, values_of
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import NOBODY, read_records
from gridscore.job import Jobs, JobState
from gridscore.job.life import ENDED
from gridscore.operations.status import Observer
from gridscore.scoring.window_messages import entity_key, group_of
from gridscore.scoring.window_states import (
    Entry,
    ahead_seconds,
    encode_entry,
    keep_seconds,
    keys_of,
    map_of,
    parts_of,
    read_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gridscore.features import EventColumns
    from gridscore.grid import Grid
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.job import Job, JobRecord

MOST_BYTES = 1 << 30  # states that are made at once
_CHUNK = 8_192
_AT_ONCE = 256  # states that are written at once
_SHARES = 1 << 16  # parts that all entities can be divided into
_ENTRY_BYTES = 250
# How long workers of a job that was suspended have to finish, and the pause between two looks.
_FINISH_SECONDS, _LOOK_SECONDS = 15.0, 0.2


@dataclass(slots=True)
class Loaded:
    """What was loaded."""

    until: float = math.inf  # the moment before which events count by the history, in seconds since 1970
    newest: float = -math.inf  # time of its newest event
    rows: int = 0  # of the history
    skipped: int = 0  # bad ones among them
    after: int = 0  # those from that moment on, which count by the journal
    states: int = 0  # that were made; two of an entity whose key is a number, as an Integer and a Long have
    written: int = 0  # of these, those that the grid did not have already
    kept: int = 0  # states that have later events, or are of an even later history, and stay as they are
    old: int = 0  # entities of which no window sees an event any more
    readings: int = 0  # how often the history was read


async def load_states(
    grid: Grid,
    record: JobRecord,
    history: Path,  # CSV, Parquet or JSON lines, in the order of time; it must have every event before `until`
    *,
    # Only the events before that moment count by the history, in seconds since 1970. Default: all of it.
    until: float | None = None,
    skip_bad: bool = False,  # leave out rows that are not events, and count them
    dry_run: bool = False,  # write nothing
    # Called with the rows read and all rows, in each reading anew.
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Loaded:
    """Make the states of a job's windows from a history, and put them into the grid. A second time changes nothing.

    Raises JobError if the job has no windows, or scores; or it has begun meanwhile; TableError if the history cannot be
    read, has a bad row, is out of order, or ahead of the clock.
    """
    if not record.job.used_windows:
        raise JobError(f"The job `{record.name}` has no windows.")
    leases = await _leases(grid, record)
    await _require_still(grid, record, leases)
    found, load = Loaded(until=math.inf if until is None else until), _Load(record.job, history, skip_bad=skip_bad)
    writer = _Writer(grid, record, load.windows)
    low = 0
    while low < _SHARES:
        found.readings += 1
        high = await load.read(low, found, on_progress)
        if found.newest == -math.inf:
            raise TableError(f"`{history}` has no event that counts.", "Is `--until` before all of them?")
        if until is None and found.readings == 1:
            found.until = math.nextafter(found.newest, math.inf)
        if found.until > time.time() + ahead_seconds(record.job):
            raise TableError(
                f"`{history}` would count up to a time more than a day ahead of this computer's clock.",
                "Say up to when it counts: --until TIME.",
            )
        await writer.write(load.states, found, dry_run=dry_run)
        low = high
    # Who begins claims leases before it reads states, and may not be able to note it in the job's record.
    epochs, before = ([lease.epoch for lease in each] for each in (await _leases(grid, record), leases))
    if epochs != before or await Jobs(grid).get(record.name) != record:
        raise JobError(
            f"The job `{record.name}` has begun, or was changed, while its states were loaded: entities with events "
            "since then may have no history.",
            f"Load again, with a later history: {_way(record.name)}",
        )
    return found


def check_history(job: Job, history: Path, until: float | None = None) -> None:
    """Look at the first rows of a history, before a job is suspended for it.

    Raises TableError if it cannot be read, or they are bad or out of order.
    """
    _Load(job, history, skip_bad=False).check(until)


async def _leases(grid: Grid, record: JobRecord) -> list[LeaseRecord]:
    """Those of the partitions of a job, then those of its windows' own group."""
    groups = [record.name, group_of(record.name)] if record.job.routes_windows else [record.name]
    found = [await read_records(grid, group, range(grid.partition_count)) for group in groups]
    return [each.get(partition, NOBODY) for each in found for partition in range(grid.partition_count)]


async def _require_still(grid: Grid, record: JobRecord, leases: Sequence[LeaseRecord]) -> None:
    """Refuse a job for which workers write states; wait until those that were killed or paused cannot, any more.

    Raises JobError if it is one.
    """
    name = record.name
    has_begun = any(lease.has_begun(record.begin, record.restarts) for lease in leases[: grid.partition_count])
    if record.state != JobState.SUSPENDED and (record.state != JobState.WAITING or has_begun):
        why = "has begun" if record.state == JobState.WAITING else f"is {record.state}"
        again = f"Submit it again with --suspended, load, `gridscore resume {name}`."
        raise JobError(
            f"The job `{name}` {why}: windows are loaded before it begins, or while it is suspended.",
            again if record.state in ENDED else _way(name),
        )
    if owned := [lease.lease for lease in leases if lease.owner]:
        await asyncio.sleep(max(owned) / 1_000)
    observer, deadline = Observer(grid, name), grid.clock() + _FINISH_SECONDS
    while record.state == JobState.SUSPENDED and (await observer.look()).jobs[0].workers:
        if grid.clock() > deadline:
            raise JobError(f"A worker is still finishing its writes for the job `{name}`.", "Try again in a second.")
        await asyncio.sleep(_LOOK_SECONDS)


def _way(name: str) -> str:
    return f"`gridscore suspend {name}`, load, `gridscore resume {name}`."


class _Load:
    """A history, read as often as its entities need."""

    def __init__(self, job: Job, history: Path, *, skip_bad: bool) -> None:
        self._job = job
        self._history, self._skip_bad = history, skip_bad
        self._decoder = EventDecoder(job)
        self.windows = Windows(job)
        self.states: list[dict[Any, bytes]] = [{} for _ in self.windows.layouts]

    def check(self, until: float | None) -> None:
        """See `check_history`."""
        schema = self._job.schema_
        with read_chunks(self._history, kinds_of(schema), _CHUNK) as (_, chunks):
            for frame in itertools.islice(chunks, 1):
                rows = list(rows_as_json(frame, schema, str(self._history)))
                self._add(self._events(rows, Loaded(until=math.inf if until is None else until)), 0, _SHARES)

    async def read(self, low: int, found: Loaded, on_progress: Callable[[int, int], None]) -> int:
        """Make the states of the entities from a share on; returns the first share for which there was no room."""
        self.states = [{} for _ in self.windows.layouts]
        high, size = _SHARES, 0
        found.rows = found.skipped = found.after = 0
        schema = self._job.schema_
        with read_chunks(self._history, kinds_of(schema), _CHUNK) as (total, chunks):
            for frame in chunks:
                events = self._events(list(rows_as_json(frame, schema, str(self._history))), found)
                size += self._add(events, low, high)
                while size > MOST_BYTES:
                    if high == low + 1:
                        raise TableError(f"The states of `{self._history}` do not fit into memory.")
                    high = (low + high) // 2
                    self.states = [
                        {key: state for key, state in states.items() if _share(key) < high} for states in self.states
                    ]
                    size = sum(_ENTRY_BYTES + len(state) for states in self.states for state in states.values())
                on_progress(found.rows, max(total, found.rows))
                await asyncio.sleep(0)
        if not found.rows:
            raise TableError(f"`{self._history}` has no rows.", "Give a history with at least one event.")
        return high

    def _events(self, texts: list[bytes], found: Loaded) -> EventColumns:
        """The events of some rows that count by the history."""
        events, bad = good_rows(
            self._decoder, self.windows, texts, str(self._history), found.rows, skip_bad=self._skip_bad
        )
        times = self.windows.times(events)
        before = np.flatnonzero(times < found.until).tolist()
        found.rows += len(texts)
        found.skipped += len(bad)
        found.after += len(times) - len(before)
        found.newest = max(found.newest, times[before].max(initial=-math.inf))
        return events if len(before) == len(times) else events.take(before)

    def _add(self, events: EventColumns, low: int, high: int) -> int:
        """Add events to the windows of the entities of these shares; returns by how much their states have grown."""
        grown, times = 0, self.windows.times(events)
        for number, inputs in enumerate(self.windows.inputs(events) if events else ()):
            keys, states = inputs.keys, self.states[number]
            if (low, high) != (0, _SHARES):
                keys = [key if key is not None and low <= _share(key) < high else None for key in keys]
            _, after = self.windows.add(number, inputs._replace(keys=keys), times, states)
            grown += sum(len(state) - len(states.get(key, b"")) for key, state in after.items())
            grown += _ENTRY_BYTES * len(after.keys() - states.keys())
            states |= after
        if self.windows.late:
            raise TableError(f"{self._history}: a row {why_late(self._job)}", f"Sort it by `{self._job.order_by}`.")
        return grown


class _Writer:
    """Writes the states of entities, but of those that have what no history can have."""

    def __init__(self, grid: Grid, record: JobRecord, windows: Windows) -> None:
        self._grid = grid
        self._job = record.job
        self._windows = windows
        self._parts = parts_of(record, windows)
        self._map = MapWriter(grid, map_of(record.name))

    async def write(self, made: list[dict[Any, bytes]], found: Loaded, *, dry_run: bool) -> None:
        """Write what the grid does not have; the states are taken out of where they were made."""
        if not dry_run:
            await self._map.prepare()
        by_partition: dict[int, list[tuple[int, bytes, bytes]]] = defaultdict(list)
        for number, key, state in self._entries(made, found):
            by_partition[partition_of(key, self._grid.partition_count)].append((number, key, state))
        for partition, entries in by_partition.items():
            for begin in range(0, len(entries), _AT_ONCE):
                some = entries[begin : begin + _AT_ONCE]
                there = await values_of(self._grid, self._map.map_name, partition, [key for _, key, _ in some])
                wanted = [each for each in some if self._is_new(*each, there.get(each[1]), found)]
                if not dry_run:
                    puts = [self._put(*each, there.get(each[1])) for each in wanted]
                    done = await asyncio.gather(*puts)
                    found.kept += done.count(False)
                    found.written += done.count(True)

    def _entries(self, made: list[dict[Any, bytes]], found: Loaded) -> Iterator[tuple[int, bytes, bytes]]:
        """The number of the window, the key and the state of each entity."""
        oldest = found.until - keep_seconds(self._job)
        for number, states in enumerate(made):
            name = self._windows.layouts[number].name
            while states:  # those that are not written yet are all that there is
                entity, state = states.popitem()
                if not state:
                    continue
                if head_of(state).newest < oldest:
                    found.old += 1
                    continue
                routed, text = self._job.routes_windows, str(entity)
                keys = [entity_key(name, entity)] if routed else keys_of(self._job, text, self._map.serialize_key)
                found.states += len(keys)
                yield from ((number, key, loaded(state, found.until)) for key in keys)

    def _is_new(self, number: int, _key: bytes, state: bytes, value: bytes | None, found: Loaded) -> bool:
        """Whether a state is to be written where the grid has a value."""
        entry = None if value is None else read_entry(value, self._parts, self._windows, number)
        if entry is None:
            return True
        head = head_of(entry.state)
        is_later = head.newest >= found.until or head.until > found.until
        found.kept += is_later
        return not is_later and entry.state != state

    async def _put(self, number: int, key: bytes, state: bytes, value: bytes | None) -> bool:
        """Write a state if the grid still has that value; whether it had."""
        entry = Entry(self._parts.tags[number], 0, state, int(time.time()), self._parts.series[number])
        name, text = self._map.map_name, encode_entry(entry)
        if value is None:
            return await put_absent(self._grid, name, key, text)
        return await replace_same(self._grid, name, key, value, wire.json_data(text))


def _share(entity: Any) -> int:
    return zlib.crc32(str(entity).encode("utf-8", "surrogatepass")) % _SHARES
