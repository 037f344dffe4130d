"""The states of windows: what the entities of a worker's partitions remember, in the map `windows.JOB`.

Whoever holds the lease of the partition in which an entity's state lies is the only one who writes it. Where the window
has the key of the events, that is the partition of these, and the job's own group (other keys: `window_stage`):

1. What a batch needs is fetched, unless it is known from batches before.
2. The batch is scored, which gives new states; they are known from then on.
3. When its results are acknowledged, its states are written; when these are, its offset may be committed.

What is known is known to one cursor: a partition that is read anew, for whatever reason, has its states fetched anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import struct
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.features.times import END
from gridscore.features.window_kernel import HALF_LIVES, Kind, head_of
from gridscore.features.window_parts import Parts, names_of
from gridscore.features.windows import Inputs, Windows, is_compiled, layouts_of, texts_of
from gridscore.grid.copies import payload
from gridscore.grid.cutting import INTEGER, LONG, STRING
from gridscore.grid.entries import values_of, walk
from gridscore.grid.journal import Journal
from gridscore.grid.wire import integer_forms, type_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features import EventColumns
    from gridscore.grid import Grid
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.group.reader import Cursor
    from gridscore.job import Job, JobRecord

_log = logging.getLogger(__name__)

KEPT_BYTES = 128 << 20  # states that are known, above which those go that the grid has as well
# States of a batch, by what those before took. As much again is made of them, and a third more to write.
BATCH_BYTES = 16 << 20
MOST_BYTES = 128 << 20  # states of a batch that are read, if they are larger than those before
# Answers of windows (events times calls) after which others have their turn: 2 to 40 ms of CPU.
CALLS_AT_ONCE = 24_576 if is_compiled else 512

TAKEN_BYTES = 512 << 20  # states of a snapshot, at most
_TAKEN_AT_ONCE = 4_096
_GRACE_SECONDS = 7 * 86_400  # how long a job may stand still before states of entities go that it will need again
_AHEAD_SECONDS = 86_400  # how far the time of an event may be ahead of the worker's clock, besides the lateness
_LAST_SECONDS = 90 * 86_400  # how long windows over the last events are kept, which have no end
_LOG_SECONDS = 1.0
_NAMED = 5

_UNKNOWN = struct.pack("<q", -1)


class Entry(msgspec.Struct, omit_defaults=True):
    """What the map has of an entity."""

    windows: str  # the tag of its window; see `Parts`
    epoch: int  # under which it was written
    state: bytes  # the kernel's bytes
    at: int = 0  # when it was written, in seconds since 1970; 0 by an older version of Gridscore
    parts: bytes = b""  # the names of the state's parts; none of a ledger


encode_entry = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def map_of(job: str) -> str:
    return f"windows.{job}"


def look_back_seconds(job: Job) -> float:
    """For how long an event is in some window, its lateness included."""
    windows = Windows(job)
    longest = max(
        each.seconds * HALF_LIVES if each.kind == Kind.DECAY else each.seconds or _LAST_SECONDS
        for layout in windows.layouts
        for each in layout.series
    )
    return longest + job.lateness_seconds


def ahead_seconds(job: Job) -> float:
    """How far the time of an event may be ahead of the clock of who takes it."""
    return job.lateness_seconds + _AHEAD_SECONDS


def keep_seconds(job: Job) -> int:
    """How long the map keeps the state of an entity that has no more events."""
    return int(look_back_seconds(job)) + _GRACE_SECONDS


def was_written_before(value: bytes, at: float) -> bool:
    """Whether a serialized value of the map is a state that was written before a time, in seconds since 1970."""
    try:
        return 0 < _decode(payload(value)).at < at
    except (ValueError, RecursionError):
        return False


def for_another_grid(key: bytes, text: bytes) -> bytes | None:
    """A state for a grid whose journals begin anew; None for what says which events of these a state has.

    Raises ValueError if it is not a state.
    """
    if any(key[:4]):  # a ledger: the only keys whose partition was chosen
        return None
    entry = _decode(text)
    return encode_entry(msgspec.structs.replace(entry, state=_without_sequence(entry.state)))


def parts_of(record: JobRecord, windows: Windows) -> Parts:
    """What the states of this run of a job are made of: those of before a restart begin anew."""
    return Parts(record.job, windows.layouts, (record.submitted_at, record.restarts), record.begun)


def read_entry(value: bytes, parts: Parts, windows: Windows, number: int) -> Entry | None:
    """What a serialized value of the map says, with the parts that the job has.

    None if that is not a state of that window, by its number.
    """
    try:
        entry = _decode(payload(value))
        if entry.windows != parts.tags[number]:
            return None
        if entry.parts != parts.series[number]:
            entry.state = parts.fitted(number, entry.state, entry.parts)
        windows.look(number, entry.state)
    except (ValueError, RecursionError):
        return None
    return entry


def keys_of(job: Job, entity: str, serialize: Callable[[Any], bytes]) -> list[bytes]:
    """The serialized keys that events of an entity can have."""
    if job.schema_[str(job.event_key)].type == "string":
        return [serialize(entity)]
    try:
        return integer_forms(int(entity))
    except ValueError:
        return []


class WindowStates:
    """The windows of one job in one worker."""

    def __init__(
        self,
        grid: Grid,
        record: JobRecord,
        # Epoch since which the sequences of a partition are those of its journal as it is.
        origin: Callable[[int], int],
        is_settled: Callable[[int], bool],  # whether the grid has all that was written of a partition
        bounds: Callable[[int], Awaitable[tuple[int, int]]],  # the oldest and newest sequence of a partition's journal
    ) -> None:
        job = record.job
        self._grid, self._job, self._origin = grid, job, origin
        self._is_settled, self._bounds = is_settled, bounds
        self.windows = Windows(job)
        self.broken = 0  # states so far that no events can have made, and that began anew
        self.map_name = map_of(job.name)
        self.parts = parts_of(record, self.windows)
        # Of windows with other keys than the events', those of states begin with the name.
        names = {layout.name.encode(): number for number, layout in enumerate(self.windows.layouts)}
        self._numbers = names if job.routes_windows else None
        self._known: dict[int, tuple[Cursor, dict[bytes, bytes]]] = {}
        self._bytes = 0
        self._most_bytes = sum(layout.most_bytes for layout in self.windows.layouts)
        self._mean_bytes = float(self._most_bytes)  # of a state, before one was seen
        self._said_at = -math.inf

    @property
    def batch_events(self) -> int:
        """How many events to take at once, so that a batch has states of about `BATCH_BYTES`."""
        return max(1, int(BATCH_BYTES / self._mean_bytes))

    @property
    def known(self) -> int:
        """How many states are known."""
        return sum(len(states) for _, states in self._known.values())

    @property
    def page_events(self) -> int:
        """How many events to read at once, so that their states are within `MOST_BYTES` however large they are."""
        return max(1, MOST_BYTES // self._most_bytes)

    def refused(self, events: EventColumns, keys: Sequence[bytes], scored: Sequence[bool]) -> dict[int, str]:
        """The events that windows cannot hold, each with the reason.

        Args:
            keys: Theirs in the event map.
            scored: Whether they have a result. Such a one may be ahead of the clock: another worker's let it pass.
        """
        bad, now = {} if self._job.routes_windows else self.misplaced(events, keys), time.time()
        end = now + ahead_seconds(self._job)
        if ahead := self.windows.untimely(events, min(END, end)):
            clock = dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="seconds")
            why = f", ahead of this worker's clock ({clock}) by more than a day and the job's `lateness`"
            bad |= {row: text + why for row, text in ahead.items() if not scored[row]}
            bad |= {row: f"{text}, which no window can hold" for row, text in self.windows.untimely(events).items()}
        return bad

    def misplaced(self, events: EventColumns, keys: Sequence[bytes]) -> dict[int, str]:
        """The events that do not lie under the key that their field says, each with the reason."""
        field = str(self._job.event_key)
        pairs = zip(keys, events.objects(field), strict=True)
        return {
            row: f"its key in the event map is {_what(key, value)} its `{field}`, which the job says with `event_key`"
            for row, (key, value) in enumerate(pairs)
            if not _is_key(key, value)
        }

    async def fetch(self, wanted: Iterable[tuple[Cursor, Sequence[bytes]]]) -> dict[bytes, bytes]:
        """The states of entities, by serialized key; empty for those that have none.

        Raises HazelcastError if the cluster did not answer; or they are much larger than those before, and a smaller
        batch has to be taken.
        """
        found: dict[bytes, bytes] = {}
        missing: dict[Cursor, set[bytes]] = {}
        for cursor, keys in wanted:
            known = self._of(cursor)
            for key in keys:
                if key in known:
                    found[key] = known[key]
                else:
                    missing.setdefault(cursor, set()).add(key)
        size = 0
        for some in _parts(missing, self.page_events):
            for got in await asyncio.gather(*(self._read(cursor, keys) for cursor, keys in some)):
                found |= got
                size += sum(map(len, got.values()))
            if size > MOST_BYTES and len(missing) > 1:  # of a partition alone, no less can be taken
                self._learn(found)
                raise HazelcastError(f"states of windows of over {MOST_BYTES >> 20} MiB; fewer are read from now on")
        return found

    def _learn(self, states: Mapping[bytes, bytes]) -> None:
        """Larger states count at once, smaller ones gradually."""
        seen = sum(map(len, states.values())) / len(states)
        self._mean_bytes = max(seen, (self._mean_bytes + seen) / 2, 1.0)

    async def _read(self, cursor: Cursor, keys: list[bytes]) -> dict[bytes, bytes]:
        values = await values_of(self._grid, self.map_name, cursor.partition, keys)
        origin = self._origin(cursor.partition)
        states, fitted = dict.fromkeys(keys, b""), set[bytes]()
        for key, value in values.items():
            states[key], is_fitted = self._opened(key, value, origin)
            if is_fitted:
                fitted.add(key)
        # Where events are read again, states may be ahead of them, but not of the journal.
        if ahead := {key for key, state in states.items() if state and head_of(state).sequence >= cursor.offset}:
            try:
                _, newest = await self._bounds(cursor.partition)
            except GridError as error:
                raise HazelcastError(str(error)) from error
            for key in ahead:
                if head_of(states[key]).sequence > newest:
                    self._broken("its sequence is not one of the journal", "its sequence is taken as unknown")
                    states[key] = _without_sequence(states[key])
        # The grid has these with other parts. Whatever an event changes in them, they are written with those that there
        # are now: a part of before would lack the event, should another update bring it back.
        self._keep(cursor, {key: state for key, state in states.items() if key not in fitted})
        return states

    def _opened(self, key: bytes, value: bytes, origin: int) -> tuple[bytes, bool]:
        """The state under a key, and whether the grid has it with other parts."""
        try:
            entry, (tag, parts) = _decode(payload(value)), self._kind(key)
            if entry.windows != tag:
                return b"", False  # of other windows, or of before a restart
            is_fitted = entry.parts != parts
            state = self.parts.fitted(self._number(key), entry.state, entry.parts) if is_fitted else entry.state
            head = head_of(state)
        except (ValueError, RecursionError):
            return self._broken("it is not one"), False
        # Another worker's clock may be ahead of ours, by less than a day.
        if max(head.newest, head.until) > time.time() + ahead_seconds(self._job) + _AHEAD_SECONDS:
            return self._broken("its newest event is days ahead of the clock"), False
        # What the journal was, before it began again, says nothing of its sequences.
        return state if entry.epoch >= origin else _without_sequence(state), is_fitted

    def _number(self, key: bytes) -> int:
        """The number of the window that a state, or a ledger, is of; -1 if it is none of the job's."""
        return 0 if self._numbers is None else self._numbers.get(key[12:].lstrip(b":").partition(b":")[0], -1)

    def _kind(self, key: bytes) -> tuple[str, bytes]:
        """The tag of the window that a state is of, and the names of its parts."""
        if (number := self._number(key)) < 0:
            return "", b""
        is_ledger = self._numbers is not None and any(key[:4])
        return self.parts.tags[number], b"" if is_ledger else self.parts.series[number]

    def _broken(self, why: str, then: str = "it begins anew") -> bytes:
        self.broken += 1
        if (now := self._grid.clock()) - self._said_at > _LOG_SECONDS:
            self._said_at, name = now, self._job.name
            _log.warning(
                "%s: a state in `%s` cannot be used, %s: %s (%d so far)", name, self.map_name, then, why, self.broken
            )
        return b""

    @property
    def late(self) -> int:
        """Events so far that were too late to count."""
        return self.windows.late

    async def apply(
        self, events: EventColumns, keys: list[bytes], states: dict[bytes, bytes], sequences: list[int]
    ) -> tuple[EventColumns, dict[bytes, bytes]]:
        """The events with what they see, and the states afterwards; see `Windows.apply`.

        Many are added in parts, between which others have their turn: a lease must be renewed.
        """
        (inputs,) = self.windows.inputs(events)  # there is one window whose key is the events'
        times = self.windows.times(events)
        found, after = await self.add(0, inputs._replace(keys=keys), times, states, sequences)
        return self.windows.seen(events, [found]), after

    async def add(
        self,
        number: int,
        inputs: Inputs,
        times: NDArray[np.float64],
        states: Mapping[bytes, bytes],
        sequences: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float64], dict[bytes, bytes]]:
        """What events see in one window, and the states afterwards; see `Windows.add`. In parts, as `apply`."""
        step = max(1, CALLS_AT_ONCE // len(self.windows.layouts[number].calls))
        known, after, parts = dict(states), dict[bytes, bytes](), []
        for begin in range(0, len(times), step):
            if begin:
                await asyncio.sleep(0)
            rows = slice(begin, begin + step)
            part = Inputs(inputs.keys[rows], np.ascontiguousarray(inputs.columns[:, rows]))
            numbers = None if sequences is None else sequences[rows]
            try:
                found, new = self.windows.add(number, part, times[rows], known, numbers)
            except ValueError:
                known |= {key: self._checked(number, known[key]) for key in set(part.keys) if key in known}
                found, new = self.windows.add(number, part, times[rows], known, numbers)
            parts.append(found)
            known |= new
            after |= new
        self._learn(after)
        return np.concatenate(parts, axis=1), after

    def _checked(self, number: int, state: bytes) -> bytes:
        try:
            self.windows.look(number, state) if state else None
        except ValueError as error:
            return self._broken(str(error))
        return state

    def changed(self, cursor: Cursor, after: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """What is to be written of states that a batch of this cursor has made; they are known from now on."""
        known = self._of(cursor)
        new = {key: state for key, state in after.items() if known.get(key) != state}
        self._keep(cursor, new)
        at = int(time.time())
        texts = {}
        for key, state in new.items():
            tag, parts = self._kind(key)
            texts[key] = encode_entry(Entry(tag, cursor.epoch, state, at, parts))
        return texts

    def forget(self) -> bool:
        """Let go of what the grid has as well, if there is too much of it; False if the rest is still too much."""
        for partition in list(self._known) if self._bytes > KEPT_BYTES else ():
            if self._bytes > KEPT_BYTES and self._is_settled(partition):
                self._bytes -= sum(map(_size, self._known.pop(partition)[1].items()))
        return self._bytes <= KEPT_BYTES or not self._known

    def _of(self, cursor: Cursor) -> dict[bytes, bytes]:
        there = self._known.get(cursor.partition)
        if there is None or there[0] is not cursor:
            if there is not None:
                self._bytes -= sum(map(_size, there[1].items()))
            there = self._known[cursor.partition] = (cursor, {})
        return there[1]

    def _keep(self, cursor: Cursor, states: dict[bytes, bytes]) -> None:
        known = self._of(cursor)
        for key, state in states.items():
            if key in known:
                self._bytes -= _size((key, known[key]))
            self._bytes += _size((key, state))
            known[key] = state


def _without_sequence(state: bytes) -> bytes:
    return _UNKNOWN + state[len(_UNKNOWN) :]


def _parts(wanted: Mapping[Cursor, Iterable[bytes]], most: int) -> Iterator[list[tuple[Cursor, list[bytes]]]]:
    """The same, cut so that each part has so many keys at most."""
    some: list[tuple[Cursor, list[bytes]]] = []
    room = most
    for cursor, keys in wanted.items():
        left = list(keys)
        while left:
            some.append((cursor, left[:room]))
            left, room = left[room:], room - len(some[-1][1])
            if not room:
                yield some
                some, room = [], most
    if some:
        yield some


class Snapshot(WindowStates):
    """The states as the grid has them when they are taken; what is made of them since stays in this process.

    Read the leases first, then take the states, then look where the journals end: what an offset covers is in the
    states, and no event behind the ends is.
    """

    def __init__(self, grid: Grid, record: JobRecord, leases: Mapping[int, LeaseRecord]) -> None:
        origins = {partition: lease.origin for partition, lease in leases.items()}
        journal = Journal(grid, record.job.events)
        super().__init__(grid, record, lambda p: origins.get(p, 0), lambda _partition: False, journal.bounds)
        self._record, self._leases = record, leases
        self._taken: dict[bytes, bytes] = {}

    def begins(self, partition: int, first: int, end: int) -> int:
        """The first event of a partition that may not be in its states, given the bounds of its journal."""
        lease, record = self._leases.get(partition), self._record
        if lease is not None and lease.has_begun(record.begin, record.restarts):
            return min(lease.offset, end + 1)
        return first if record.beginning == "oldest" else end + 1

    async def take(self, partition: int, key: bytes | None = None) -> None:
        """Take those of a partition, or of one key in it.

        Raises GridError if they are more than this process should hold.
        """
        origin = self._origin(partition)
        if key is not None:
            found = await values_of(self._grid, self.map_name, partition, [key])
            self._taken |= {each: self._opened(each, value, origin)[0] for each, value in found.items()}
            return
        async for entries in walk(self._grid, self.map_name, partition, _TAKEN_AT_ONCE):
            for each, value in entries:
                state, _ = self._opened(each, value, origin)
                self._taken[each] = state
                self._bytes += _size((each, state))
            if self._bytes > TAKEN_BYTES:
                raise GridError(
                    f"The states in `{self.map_name}` take more than {TAKEN_BYTES >> 20} MiB, which is the limit here.",
                    "Look at one entity: --key KEY.",
                )

    async def _read(self, cursor: Cursor, keys: list[bytes]) -> dict[bytes, bytes]:
        states = {key: self._taken.get(key, b"") for key in keys}
        self._keep(cursor, states)
        return states


class HistoryStates:
    """The windows of a history, whatever their keys, kept in this process: instead of `WindowStates`, in any scorer."""

    broken = 0

    def __init__(self, job: Job) -> None:
        self.windows = Windows(job)
        self._states: list[dict[Any, bytes]] = [{} for _ in self.windows.layouts]
        self._after: list[dict[Any, bytes]] = []

    @property
    def late(self) -> int:
        """As `WindowStates.late`."""
        return self.windows.late

    def refused(self, events: EventColumns, _keys: Sequence[bytes], _scored: Sequence[bool]) -> dict[int, str]:
        """The events that windows cannot hold, each with the reason; none for its key: fields tell the entity."""
        return {row: f"{text}, which no window can hold" for row, text in self.windows.untimely(events).items()}

    async def fetch(self, _wanted: Iterable[tuple[Cursor, Sequence[bytes]]]) -> dict[bytes, bytes]:
        """None: they are here."""
        return {}

    async def apply(
        self, events: EventColumns, keys: list[bytes], _states: dict[bytes, bytes], sequences: list[int]
    ) -> tuple[EventColumns, dict[bytes, bytes]]:
        """The events with what they see; every one that does not only look counts, once `changed` is called."""
        numbers = [min(number, -1) for number in sequences]
        found, self._after = self.windows.apply(events, self.windows.inputs(events), self._states, numbers)
        return found, dict.fromkeys(keys, b"")

    def changed(self, _cursor: Cursor, _after: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Keep what the last call of `apply` has made; nothing is to be written."""
        for states, changed in zip(self._states, self._after, strict=True):
            states.update(changed)
        return {}


def _size(entry: tuple[bytes, bytes]) -> int:
    return len(entry[0]) + len(entry[1]) + 200


def begun_by_update(old: JobRecord, new: Job) -> dict[str, int]:
    """What a job's record says after an update: by frame, the revision of each window that an update has brought."""
    before, after = (Parts(job, layouts_of(job), ()).frames for job in (old.job, new))
    begun = {frame: old.begun.get(frame, 0) if frame in before else old.revision + 1 for frame in after}
    return {frame: revision for frame, revision in begun.items() if revision}


def emptied_by_update(old: Job, new: Job) -> str:
    """What an update does to windows, if some begin anew; empty if it keeps them, or there are none."""
    if not new.used_windows:
        return ""
    texts, windows, empty = texts_of(new), Windows(new), list[str]()
    before, after = Parts(old, layouts_of(old), ()), Parts(new, windows.layouts, ())
    kept = {tag: names_of(parts) for tag, parts in zip(before.tags, before.series, strict=True)}
    for layout, tag, parts in zip(windows.layouts, after.tags, after.series, strict=True):
        names = names_of(parts)
        calls = zip(layout.calls, layout.outputs, strict=True)
        empty += [texts[output] for call, output in calls if names[int(call.series)] not in kept.get(tag, ())]
    if not empty:
        return ""
    which = f"The windows of `{new.name}` begin anew, empty: the update changes what they hold, their key, order or "
    which += "lateness"
    if len(empty) < windows.calls:
        named = ", ".join(f"`{text}`" for text in empty[:_NAMED]) + ", …" * (len(empty) > _NAMED)
        which = f"Of the windows of `{new.name}`, these begin anew, empty: {named}"
    return f"{which}. Until they have filled again, features are not those of training. {how_to_fill(new.name)}"


def how_to_fill(job: str, *, is_suspended: bool = False) -> str:
    """The way to windows that do not begin empty, for people."""
    first = "" if is_suspended else f"`gridscore suspend {job}`, "
    return f"Fill them: {first}`gridscore state load {job} HISTORY`, `gridscore resume {job}`."


def _what(key: bytes, value: Any) -> str:
    """How a key differs from the value that it should be."""
    is_text = type_of(key) == STRING
    return "not" if is_text is isinstance(value, str) else f"{'a string' if is_text else 'not a string'}, unlike"


def _is_key(key: bytes, value: Any) -> bool:
    kind = type_of(key)
    if isinstance(value, str):
        return kind == STRING and key[12:] == value.encode("utf-8", "surrogatepass")
    return kind in (INTEGER, LONG) and int.from_bytes(key[8:], "big", signed=True) == value
