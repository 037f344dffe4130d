"""Control records: small JSON objects in a map of the grid, changed only by compare-and-set.

Hazelcast's `replaceIfSame` compares serialized bytes, so a record keeps the exact text that was read. Keys keep their
order, which matters (to the features of a job, for one).

Any client can put anything into a map. Records are therefore read as bytes; an entry that is not a record, or that its
reader cannot parse, is a :class:`BadRecord`: it is noted and left out, and the others are read all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import IndeterminateOperationStateError, OperationTimeoutError, TargetDisconnectedError

from gridscore.errors import BadRecord, BadRecordError, ConflictError, GridError, GridscoreError
from gridscore.grid import transport, wire
from gridscore.grid.cutting import JSON, STRING
from gridscore.grid.entries import remove_same, value_of
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gridscore.grid.connection import Grid

_T = TypeVar("_T")

# A count or a time in a record: sums of them stay within what JSON and other clients can read.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]

Figure = Annotated[float, msgspec.Meta(ge=0, le=1e15)]  # a rate or a duration
Word = Annotated[str, msgspec.Meta(max_length=10_000)]  # a name or a message
_ATTEMPTS = 50
_HEADER = 12  # hash, type and length that precede a text

# Bytes above which a record is not parsed: that of a model with 10,000 versions has a quarter of it.
MAX_RECORD = 8 << 20

# Errors after which a write may or may not have happened.
INDETERMINATE = (IndeterminateOperationStateError, TargetDisconnectedError, OperationTimeoutError)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def record_text(value: dict[str, Any]) -> str:
    return _encode(value).decode()


@dataclass(frozen=True, slots=True)
class Record:
    """A record; `raw` is its exact text."""

    key: str
    value: dict[str, Any]
    raw: str


def partition_in(key: str, partition_count: int) -> int:
    """The number of a partition that a record's key ends in, as in `payments/17`.

    Raises ValueError if it ends otherwise.
    """
    _, _, text = key.rpartition("/")
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text) < partition_count):
        raise ValueError("its key does not end in the number of a partition")
    return int(text)


class Records:
    """The records of one control map."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self.map_name = grid, map_name

    async def get(self, key: str) -> Record | None:
        """The record of that key, or None. Raises BadRecordError if something else is there."""
        found = await self._value(key)
        return None if found is None else as_record(self.map_name, self._key(key), found)

    async def all(self, bad: list[BadRecord] | None = None) -> dict[str, Record]:
        """Every record, by key. Bad ones are noted and added to `bad`."""
        records, found = await self._read(lambda record: record)
        self._grid.bad_records.note(found)
        if bad is not None:
            bad += found
        return records

    async def read(self, parse: Callable[[Record], _T], keys: Collection[str] | None = None) -> dict[str, _T]:
        """What `parse` makes of every record, by key. Bad ones, and those that it fails on, are noted.

        `keys`: of those that are wanted; None for all.
        """
        found, bad = await self._read(parse, keys)
        self._grid.bad_records.replace(self.map_name, bad, keys=keys)
        return found

    async def keys(self, prefix: str) -> set[str]:
        """The keys that begin so, of whatever is there."""
        found = set()
        for data in await transport.map_keys(self._grid.client, self.map_name):
            with contextlib.suppress(ValueError):  # it is not a string
                found.add(key_text(data))
        return {key for key in found if key.startswith(prefix)}

    async def create(self, key: str, value: dict[str, Any]) -> Record:
        """Write a record that does not exist yet. Raises ConflictError if it exists."""
        await self._map()  # known by name from now on
        text = record_text(value)
        data = self._key(key)
        message = wire.encode_put_if_absent(self.map_name, data, text.encode())
        try:
            created = await self._invoke(data, message, wire.decode_put_if_absent)
        except INDETERMINATE:
            created = await self._was_written(key, text)
        if not created:
            raise ConflictError(f"{self.map_name}: the record `{key}` exists already.")
        return Record(key, value, text)

    async def put(self, key: str, value: dict[str, Any]) -> None:
        """Write a record, whatever was there. After a `HazelcastError` it may have been written all the same."""
        await (await self._map()).set(key, HazelcastJsonValue(record_text(value)))

    async def replace(self, record: Record, value: dict[str, Any]) -> Record:
        """Write a new value if the record is still what it was.

        Raises ConflictError if another client changed or removed it.
        """
        text = record_text(value)
        if text == record.raw:
            # A compare-and-set to the same bytes could not tell success from failure.
            return record
        try:
            done = await (await self._map()).replace_if_same(
                record.key, HazelcastJsonValue(record.raw), HazelcastJsonValue(text)
            )
        except INDETERMINATE:
            # Look whether it happened. A value that two clients may write alike must name its writer.
            done = await self._value(record.key) == wire.json_data(text.encode())
        if not done:
            raise ConflictError(f"{self.map_name}: the record `{record.key}` was changed by somebody else.")
        return Record(record.key, value, text)

    async def update(self, key: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> Record:
        """Read, change and write until nobody came between.

        `change`: makes the new value of the current one (None if there is none); called again after each conflict;
        raises to give up. Raises BadRecordError if something else is there; ConflictError if others kept changing it.
        """
        for _ in range(_ATTEMPTS):
            record = await self.get(key)
            try:
                if record is None:
                    return await self.create(key, change(None))
                return await self.replace(record, change(dict(record.value)))
            except ConflictError:
                continue
        raise ConflictError(f"{self.map_name}: the record `{key}` is changed by others all the time.")

    async def delete(self, key: str) -> None:
        """Remove the record if it exists."""
        await (await self._map()).delete(key)

    async def remove(self, record: Record) -> bool:
        """Remove a record if it has not changed; whether it had not."""
        return bool(await (await self._map()).remove_if_same(record.key, HazelcastJsonValue(record.raw)))

    async def remove_bad(self, bad: BadRecord) -> bool:
        return await remove_same(self._grid, self.map_name, bad.key_data, bad.value_data)

    async def repair(self, bad: BadRecord, value: dict[str, Any]) -> bool:
        """Replace a bad record by a good one if it has not changed; whether it had not."""
        prefix = wire.replace_if_same_prefix(self.map_name, bad.key_data)
        text = wire.json_data(record_text(value).encode())
        message = wire.encode_replace_if_same(prefix, bad.value_data, text)
        return bool(await self._invoke(bad.key_data, message, wire.decode_replace_if_same))

    async def watch(self, callback: Callable[[], None], *, updates: bool = True) -> Callable[[], Any]:
        """Call back after any change, by an entry listener; returns a coroutine function that ends it.

        Listeners miss changes while the connection is down, so it calls back after a reconnect, too. Read the records
        from time to time all the same.

        `updates`: also when a record has changed, not only when one has been added or removed.
        """
        return await self._grid.watches.add(await self._map(), callback, updates=updates)

    async def _read(
        self, parse: Callable[[Record], _T], keys: Collection[str] | None = None
    ) -> tuple[dict[str, _T], list[BadRecord]]:
        if keys is None:
            entries = await transport.map_entries(self._grid.client, self.map_name)
        else:
            datas = list(map(self._key, keys))
            values = await asyncio.gather(*(value_of(self._grid, self.map_name, data) for data in datas))
            entries = [(data, value) for data, value in zip(datas, values, strict=True) if value is not None]
        good, bad = {}, []
        for key, value in entries:
            try:
                record = as_record(self.map_name, key, value)
                good[record.key] = parse(record)
            except BadRecordError as error:
                bad.append(error.record)
            except Exception as error:  # noqa: BLE001 -- one bad record must not hide the others
                bad.append(BadRecord(self.map_name, record.key, reason_of(error), key, value))
        return good, bad

    async def _value(self, key: str) -> bytes | None:
        """The serialized value under a key, or None."""
        return await value_of(self._grid, self.map_name, self._key(key))

    async def _was_written(self, key: str, text: str) -> bool:
        current = await self._value(key)
        if current is None:
            raise GridError(f"{self.map_name}: writing the record `{key}` failed.", "Try again.")
        return current[4:] == wire.json_data(text.encode())[4:]

    async def _invoke(self, key: bytes, message: Any, decode: Callable[[Any], Any]) -> Any:
        partition = partition_of(key, self._grid.partition_count)
        return await transport.invoke(self._grid.client, message, partition, decode)

    def _key(self, key: str) -> bytes:
        return transport.key_data(self._grid.client, key)

    async def _map(self) -> Any:
        return await self._grid.map(self.map_name)


def as_record(map_name: str, key: bytes, value: bytes) -> Record:
    """The record of a serialized entry. Raises BadRecordError if it is not valid."""
    name = ""
    try:
        name = key_text(key)
        if (kind := wire.type_of(value)) != JSON:
            raise ValueError(f"it is not a JSON value, but of Hazelcast's type {kind}")  # noqa: TRY301
        if len(value) > MAX_RECORD:
            raise ValueError(f"it has {len(value):,} bytes, more than {MAX_RECORD:,}")  # noqa: TRY301
        text = value[_HEADER:]
        return Record(name, _decode(text), text.decode())
    except (ValueError, RecursionError) as error:  # msgspec's errors are among them
        shown = name or key[8:].hex()[:80]
        raise BadRecordError(BadRecord(map_name, shown, reason_of(error), key, value)) from None


def key_text(key: bytes) -> str:
    """The string that a serialized key is. Raises ValueError if it is something else."""
    if (kind := wire.type_of(key)) != STRING:
        raise ValueError(f"its key is not a string, but of Hazelcast's type {kind}")
    return key[_HEADER:].decode()


def parsed(kind: type[_T]) -> Callable[[Record], _T]:
    """A parser of records into structs, for `Records.read`."""
    return lambda record: msgspec.convert(record.value, kind)


def reason_of(error: Exception) -> str:
    """What an error says, in one line."""
    text = error.message if isinstance(error, GridscoreError) else str(error)
    text = " ".join(text.split())[:500]
    for_people = isinstance(error, (ValueError, GridscoreError)) and text
    return text if for_people else f"{type(error).__name__}: {text}"
