"""Writing lease records: many compare-and-sets at once, each answered for itself, none of unknown fate left so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hazelcast.errors import HazelcastError, OperationTimeoutError

from pipeline.grid import transport, wire
from pipeline.grid.records import INDETERMINATE
from pipeline.worker.lease_records import LEASES_MAP, LeaseRecord, encode, lease_key, read_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

_ANSWER = 0.25
"""Part of the lease time that a member may take to answer; a compare-and-set of unknown fate takes it twice."""


class Change(NamedTuple):
    """A record to be written if the one there is the expected text; if there is none, if that is None."""

    partition: int
    expected: bytes | None
    record: LeaseRecord


class Written(NamedTuple):
    """A record as it was written, its exact bytes, and when that began."""

    record: LeaseRecord
    text: bytes
    began: float


Outcome: TypeAlias = "Written | HazelcastError | None"
"""Of a change: what was written, an error if nobody knows, or None if the record was not what was expected."""


class LeaseWriter:
    """Reads and writes the lease records of one group.

    Args:
        grid: The connection.
        job: Name of the group.
        seconds: Lease time.

    Attributes:
        keys: Serialized keys of the records, by partition.
    """

    def __init__(self, grid: Grid, job: str, seconds: float) -> None:
        self._grid = grid
        self._seconds = seconds * _ANSWER
        self.keys = [lease_key(job, p, grid.partition_count) for p in range(grid.partition_count)]
        self._prefixes = [wire.replace_if_same_prefix(LEASES_MAP, key) for key in self.keys]

    async def read(self, partitions: Iterable[int]) -> dict[int, bytes | None]:
        """Exact texts of records by partition; see `read_texts`.

        Raises:
            HazelcastError: No record at all could be read.
        """
        return await read_texts(self._grid, self.keys, partitions, self._seconds)

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
                message = wire.encode_put_if_absent(LEASES_MAP, self.keys[change.partition], text)
                decode: Callable[[Any], bool] = wire.decode_put_if_absent
            else:
                before, after = wire.json_data(change.expected), wire.json_data(text)
                message = wire.encode_replace_if_same(self._prefixes[change.partition], before, after)
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
                    written(position, record if found[partition] == record.text else None)
