"""Writing lease records: many compare-and-sets at once, each answered for itself, none of unknown fate left so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hazelcast.errors import HazelcastError, OperationTimeoutError

from gridscore.grid import transport, wire
from gridscore.grid.records import INDETERMINATE
from gridscore.group.lease_records import LEASES_MAP, LeaseRecord, encode, lease_key, read_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

ANSWER = 0.25
"""Part of the lease time that a member may take to answer; a compare-and-set of unknown fate takes it twice."""

_UNSAID = float("-inf")


class Change(NamedTuple):
    """A record to be written if the one there is the expected text; if there is none, if that is None."""

    partition: int
    expected: bytes | None
    record: LeaseRecord


class Written(NamedTuple):
    """A record as it was written, its exact bytes, and when that began.

    Minus infinity if no member said so and it was only read back: it may be on one member alone, and go with it.
    """

    record: LeaseRecord
    text: bytes
    began: float

    @property
    def is_acknowledged(self) -> bool:
        """Whether a member said that it is written, and its backups have it."""
        return self.began > _UNSAID


Outcome: TypeAlias = "Written | HazelcastError | None"
"""Of a change: what was written, an error if nobody knows, or None if the record was not what was expected."""


class LeaseWriter:
    """Reads and writes the lease records of one group, or the record of one session.

    Args:
        grid: The connection.
        name: Of the group.
        seconds: Lease time.
        map_name: Where the records are.
    """

    def __init__(self, grid: Grid, name: str, seconds: float, map_name: str = LEASES_MAP) -> None:
        self._grid = grid
        self._name = name
        self._map_name = map_name
        self._seconds = seconds * ANSWER
        self._keys: dict[int, bytes] = {}
        self._prefixes: dict[int, Any] = {}

    def key(self, partition: int) -> bytes:
        """Serialized key of a partition's record."""
        key = self._keys.get(partition)
        if key is None:
            key = self._keys[partition] = lease_key(self._name, partition, self._grid.partition_count)
        return key

    def _prefix(self, partition: int) -> Any:
        prefix = self._prefixes.get(partition)
        if prefix is None:
            prefix = self._prefixes[partition] = wire.replace_if_same_prefix(self._map_name, self.key(partition))
        return prefix

    async def read(self, partitions: Iterable[int]) -> dict[int, bytes | None]:
        """Exact texts of records by partition; see `read_texts`.

        Raises:
            HazelcastError: No record at all could be read.
        """
        keys = {partition: self.key(partition) for partition in partitions}
        return await read_texts(self._grid, keys, self._seconds, self._map_name)

    async def remove(self, partition: int, text: bytes) -> None:
        """Remove a record if it is the expected text.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        message = wire.encode_remove_if_same(self._map_name, self.key(partition), wire.json_data(text))
        client, seconds = self._grid.client, self._seconds
        await transport.invoke(client, message, partition, wire.decode_remove_if_same, retry_seconds=seconds)

    async def write(self, partition: int, expected: bytes | None, record: LeaseRecord) -> Written | None:
        """Compare-and-set one record; None if it was not what was expected.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        outcomes: list[Outcome] = []
        await self.write_all([Change(partition, expected, record)], lambda _, outcome: outcomes.append(outcome))
        (outcome,) = outcomes
        if isinstance(outcome, HazelcastError):
            raise outcome
        return outcome

    async def write_all(self, changes: Sequence[Change], written: Callable[[int, Outcome], None]) -> None:
        """Compare-and-set records of different partitions, all at once: many are committed, once a second.

        Args:
            changes: What to write.
            written: Called once for each, with its position, as soon as its outcome is known.
        """
        client, began, seconds = self._grid.client, self._grid.clock(), self._seconds
        unknown: list[int] = []
        futures: list[asyncio.Future[Any]] = []
        records: list[Written] = []

        def answered(position: int, future: asyncio.Future[Any]) -> None:
            # A member that hangs must not keep us from renewing what other members hold: each as it is answered.
            error = TimeoutError() if future.cancelled() else future.exception()
            if error is None:
                written(position, records[position] if future.result() else None)
            elif isinstance(error, (*INDETERMINATE, TimeoutError)):
                unknown.append(position)
            elif isinstance(error, HazelcastError):
                written(position, error)
            else:
                _log.error("a compare-and-set failed", exc_info=error)
                written(position, HazelcastError(str(error)))

        for position, change in enumerate(changes):
            text = encode(change.record)
            records.append(Written(change.record, text, began))
            if change.expected is None:
                message = wire.encode_put_if_absent(self._map_name, self.key(change.partition), text)
                decode: Callable[[Any], bool] = wire.decode_put_if_absent
            else:
                before, after = wire.json_data(change.expected), wire.json_data(text)
                message = wire.encode_replace_if_same(self._prefix(change.partition), before, after)
                decode = wire.decode_replace_if_same
            # To the owner's own connection, as results go: who cannot write them must not keep the lease either.
            future = transport.invoke(
                client, message, change.partition, decode, retry_seconds=seconds, until=began + seconds
            )
            future.add_done_callback(partial(answered, position))
            futures.append(future)
        if futures:
            _, late = await asyncio.wait(futures, timeout=seconds)
            for future in late:
                future.cancel()
            await asyncio.sleep(0)  # until the last are answered
        if unknown:
            # Whether it happened is not known, so look: no two texts of a record are the same.
            found: dict[int, bytes | None] = {}
            with contextlib.suppress(HazelcastError):
                found = await self.read([changes[position].partition for position in unknown])
            for position in unknown:
                partition, record = changes[position].partition, records[position]
                if partition not in found:
                    written(position, OperationTimeoutError("a member does not answer"))
                else:
                    written(position, record._replace(began=_UNSAID) if found[partition] == record.text else None)
