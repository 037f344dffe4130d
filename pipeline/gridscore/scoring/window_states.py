"""The states of windows: what the entities of a worker's partitions remember, in the map `windows.JOB`.

The windows of a job that is scored have the key of its events. So the state of an entity lies in the partition of its
events, and whoever holds that partition's lease is the only one who writes it:

1. What a batch needs is fetched, unless it is known from batches before.
2. The batch is scored, which gives new states; they are known from then on.
3. When its results are acknowledged, its states are written; when these are, its offset may be committed.

What is known is known to one cursor: a partition that is read anew, for whatever reason, has its states fetched anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.features.windows import Windows
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from gridscore.features import EventColumns
    from gridscore.features.windows import Inputs
    from gridscore.grid import Grid
    from gridscore.group.reader import Cursor
    from gridscore.job import Job, JobRecord

_log = logging.getLogger(__name__)

KEPT_BYTES = 128 << 20
"""States that are known, above which those go that the grid has as well."""

_GRACE_SECONDS = 7 * 86_400
"""How long a job may stand still before states of entities go that it will need again."""
_LAST_SECONDS = 90 * 86_400
"""How long windows over the last events are kept, which have no end."""

_FORMAT = 1
"""Of states: another one begins anew."""

_STRING, _INT, _LONG = -11, -7, -8
_UNKNOWN = struct.pack("<q", -1)


class Entry(msgspec.Struct, omit_defaults=True):
    """What the map has of an entity: of which windows, under which epoch it was written, and the kernel's bytes."""

    windows: str
    epoch: int
    state: bytes


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def map_of(job: str) -> str:
    """Name of the map of the states of a job's windows."""
    return f"windows.{job}"


def keep_seconds(job: Job) -> int:
    """How long the map keeps the state of an entity that has no more events."""
    windows = Windows(job)
    longest = max(each.seconds or _LAST_SECONDS for layout in windows.layouts for each in layout.series)
    return int(longest + job.lateness_seconds) + _GRACE_SECONDS


def read_entry(value: bytes, record: JobRecord, windows: Windows) -> Entry | None:
    """What a serialized value of the map says; None if that is not a state of these windows."""
    try:
        entry = _decode(payload(value))
        windows.look(0, entry.state)
    except (ValueError, RecursionError):
        return None
    return entry if entry.windows == _tag_of(record, windows) else None


def keys_of(job: Job, entity: str, serialize: Callable[[Any], bytes]) -> list[bytes]:
    """The serialized keys that events of an entity can have."""
    if job.schema_[str(job.event_key)].type == "string":
        return [serialize(entity)]
    try:
        number = int(entity)
        return [
            struct.pack(">iiq", 0, _LONG, number),
            *([struct.pack(">iii", 0, _INT, number)] * (abs(number) < 2**31)),
        ]
    except (ValueError, struct.error):
        return []


class WindowStates:
    """The windows of one job in one worker.

    Args:
        grid: The connection.
        record: The job.
        origin: Epoch since which the sequences of a partition are those of its journal as it is.
        is_settled: Whether the grid has all that was written of a partition.
    """

    def __init__(
        self, grid: Grid, record: JobRecord, origin: Callable[[int], int], is_settled: Callable[[int], bool]
    ) -> None:
        job = record.job
        self._grid = grid
        self._job = job
        self._origin = origin
        self._is_settled = is_settled
        self.windows = Windows(job)
        self.map_name = map_of(job.name)
        self._tag = _tag_of(record, self.windows)
        self._known: dict[int, tuple[Cursor, dict[bytes, bytes]]] = {}
        self._bytes = 0

    def misplaced(self, events: EventColumns, keys: Sequence[bytes]) -> dict[int, str]:
        """The events that do not lie under the key that their field says, each with the reason."""
        field = str(self._job.event_key)
        pairs = zip(keys, events.objects(field), strict=True)
        return {
            row: f"its key in the event map is not its `{field}`, which the job says with `event_key`"
            for row, (key, value) in enumerate(pairs)
            if not _is_key(key, value)
        }

    async def fetch(self, wanted: Iterable[tuple[Cursor, Sequence[bytes]]]) -> dict[bytes, bytes]:
        """The states of entities, by serialized key; empty for those that have none.

        Raises:
            HazelcastError: The cluster did not answer.
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
        for got in await asyncio.gather(*(self._read(cursor, keys) for cursor, keys in missing.items())):
            found |= got
        return found

    async def _read(self, cursor: Cursor, keys: set[bytes]) -> dict[bytes, bytes]:
        values = await values_of(self._grid, self.map_name, cursor.partition, keys)
        origin = self._origin(cursor.partition)
        states = {key: self._opened(values[key], origin) if key in values else b"" for key in keys}
        self._keep(cursor, states)
        return states

    def _opened(self, value: bytes, origin: int) -> bytes:
        try:
            entry = _decode(payload(value))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._broken("it is not one")
        if entry.windows != self._tag:
            return b""  # of other windows, or of before a restart
        # What the journal was, before it began again, says nothing of its sequences.
        return entry.state if entry.epoch >= origin else _UNKNOWN + entry.state[len(_UNKNOWN) :]

    def _broken(self, why: str) -> bytes:
        _log.warning("%s: a state in `%s` cannot be read, and begins anew: %s", self._job.name, self.map_name, why)
        return b""

    def apply(
        self, events: EventColumns, inputs: Inputs, keys: list[bytes], states: dict[bytes, bytes], sequences: list[int]
    ) -> tuple[EventColumns, dict[bytes, bytes]]:
        """The events with what they see, and the states afterwards; see `Windows.apply`."""
        inputs = inputs._replace(keys=keys)
        try:
            found, (after,) = self.windows.apply(events, [inputs], [states], sequences)
        except ValueError:
            states = {key: self._checked(state) for key, state in states.items()}
            found, (after,) = self.windows.apply(events, [inputs], [states], sequences)
        return found, after

    def _checked(self, state: bytes) -> bytes:
        try:
            self.windows.look(0, state) if state else None
        except ValueError as error:
            return self._broken(str(error))
        return state

    def changed(self, cursor: Cursor, after: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """What is to be written of states that a batch of this cursor has made; they are known from now on."""
        known = self._of(cursor)
        new = {key: state for key, state in after.items() if known.get(key) != state}
        self._keep(cursor, new)
        return {key: _encode(Entry(self._tag, cursor.epoch, state)) for key, state in new.items()}

    def forget(self, busy: Collection[int]) -> None:
        """Let go of what the grid has as well, if there is too much of it; not of the partitions named."""
        if self._bytes <= KEPT_BYTES:
            return
        for partition in [p for p in self._known if p not in busy and self._is_settled(p)]:
            self._bytes -= sum(map(_size, self._known.pop(partition)[1].items()))

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


def _size(entry: tuple[bytes, bytes]) -> int:
    return len(entry[0]) + len(entry[1]) + 200


def _tag_of(record: JobRecord, windows: Windows) -> str:
    """Tells the windows of this run of the job from those of another job file, or of before a restart."""
    job = record.job
    (layout,) = windows.layouts
    fields = sorted((name, str(kind), kind.unit) for name, kind in job.schema_.items())
    what = (
        _FORMAT,
        layout.series,
        layout.columns,
        job.windows[layout.name],
        job.order_by,
        job.lateness_seconds,
        fields,
    )
    text = repr((*what, record.submitted_at, record.restarts))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _is_key(key: bytes, value: Any) -> bool:
    kind = int.from_bytes(key[4:8], "big", signed=True)
    if isinstance(value, str):
        return kind == _STRING and key[12:] == value.encode("utf-8", "surrogatepass")
    return kind in (_INT, _LONG) and int.from_bytes(key[8:], "big", signed=True) == value
