"""Control records: small JSON objects in a map of the grid, changed only by compare-and-set.

`replaceIfSame` of Hazelcast compares serialized bytes. A record therefore keeps the very text that it was read as. Keys
keep their order, which matters in what records hold (the features of a job, for one).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import (
    IndeterminateOperationStateError,
    OperationTimeoutError,
    TargetDisconnectedError,
)

from pipeline.errors import ConflictError, GridError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid.connection import Grid

_log = logging.getLogger(__name__)

_ATTEMPTS = 50

INDETERMINATE = (IndeterminateOperationStateError, TargetDisconnectedError, OperationTimeoutError)
"""Errors after which a write may or may not have happened."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def record_text(value: dict[str, Any]) -> str:
    """The text of a record's value."""
    return _encode(value).decode()


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read or written: `raw` is its exact text."""

    key: str
    value: dict[str, Any]
    raw: str


class Records:
    """The records of one control map."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid = grid
        self.map_name = map_name

    async def get(self, key: str) -> Record | None:
        """The record of that key, or None."""
        found = await (await self._map()).get(key)
        return None if found is None else _record(key, found)

    async def all(self) -> dict[str, Record]:
        """Every record, by key. What somebody else put there, and is none, is left out with a word in the log."""
        found = {}
        for key, value in await (await self._map()).entry_set():
            try:
                found[str(key)] = _record(key, value)
            except GridError as error:
                _log.warning("%s: %s", self.map_name, error, extra={"action": "foreign_record"})
        return found

    async def create(self, key: str, value: dict[str, Any]) -> Record:
        """Write a record that does not exist yet.

        Raises:
            ConflictError: It exists.
        """
        text = record_text(value)
        try:
            existing = await (await self._map()).put_if_absent(key, HazelcastJsonValue(text))
        except INDETERMINATE:
            existing = await self._read_back(key, text)
        if existing is not None:
            raise ConflictError(f"{self.map_name}: the record `{key}` exists already.")
        return Record(key, value, text)

    async def replace(self, record: Record, value: dict[str, Any]) -> Record:
        """Write a new value if the record is still what it was.

        Raises:
            ConflictError: Somebody else changed or removed it.
        """
        text = record_text(value)
        if text == record.raw:
            # Nothing would change, and a compare-and-set to the same bytes could not tell success from failure.
            return record
        try:
            done = await (await self._map()).replace_if_same(
                record.key, HazelcastJsonValue(record.raw), HazelcastJsonValue(text)
            )
        except INDETERMINATE:
            # Whether it happened is not known, so look. A value that two may write alike needs its writer in it.
            current = await (await self._map()).get(record.key)
            done = current is not None and current.to_string() == text
        if not done:
            raise ConflictError(f"{self.map_name}: the record `{record.key}` was changed by somebody else.")
        return Record(record.key, value, text)

    async def update(self, key: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> Record:
        """Read, change and write until nobody came between.

        Args:
            key: Of the record.
            change: Gets the current value (None if there is none) and returns the new one; may be called repeatedly,
                may raise to give up.

        Raises:
            ConflictError: Others kept changing it.
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
        """Remove a record if it is still what it was; whether it was."""
        return bool(await (await self._map()).remove_if_same(record.key, HazelcastJsonValue(record.raw)))

    async def watch(self, callback: Callable[[], None], *, updates: bool = True) -> Callable[[], Any]:
        """Call back after any change, by an entry listener; returns a coroutine function that ends it.

        Listeners may miss changes while the connection is down: look at the records from time to time, too.

        Args:
            callback: What to call.
            updates: Also when a record has changed, not only when one has come or gone.
        """
        proxy = await self._map()

        def changed(_event: object) -> None:
            callback()

        registration = await proxy.add_entry_listener(
            include_value=False,
            added_func=changed,
            updated_func=changed if updates else None,
            removed_func=changed,
        )

        async def stop() -> None:
            if self._grid.is_running:
                await proxy.remove_entry_listener(registration)

        return stop

    async def _read_back(self, key: str, text: str) -> HazelcastJsonValue | None:
        current = await (await self._map()).get(key)
        if current is None:
            raise GridError(f"{self.map_name}: writing the record `{key}` failed.", "Try again.")
        return None if current.to_string() == text else current

    async def _map(self) -> Any:
        return await self._grid.map(self.map_name)


def _record(key: Any, found: Any) -> Record:
    try:
        text = found.to_string()
        value = _decode(text)
    except (AttributeError, msgspec.DecodeError) as error:
        raise GridError(
            f"The control record `{key}` is not a JSON object: {error}", "It was not written by Gridscore: remove it."
        ) from None
    if not isinstance(key, str):
        raise GridError(f"The control record `{key}` has a key that is no text.", "It was not written by Gridscore.")
    return Record(key, value, text)
