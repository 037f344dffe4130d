"""The records of leases in the grid: their form, their keys, how they are read and written.

Many are compared and set at once; each has its own outcome, and an unknown fate is looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import msgspec
from hazelcast.errors import HazelcastError, OperationTimeoutError
from msgspec import Meta

from gridscore.errors import BadRecord
from gridscore.grid import transport, wire
from gridscore.grid.cutting import JSON
from gridscore.grid.records import INDETERMINATE, Count, Record, Word, partition_in, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

LEASES_MAP = "gridscore.leases"

# Part of the lease time that a member may take to answer; a compare-and-set of unknown fate takes twice that.
ANSWER = 0.25

_UNSAID = float("-inf")

_Sequence = Annotated[int, Meta(ge=0, lt=2**62)]
_Epoch = Annotated[int, Meta(ge=0, lt=2**52)]
_SPARE = 2**32  # added to the time: clocks may be wrong


class LeaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What the grid knows of one partition of a job; or of a session, which has only an owner and renewals."""

    owner: Word  # worker that holds the lease; empty if nobody does, and all that was written is committed
    # Counts owners and resets, from 1 or, for sinks, from the second at which a partition was first held; never goes
    # back. Every result names the epoch that it was written in.
    epoch: _Epoch
    offset: Annotated[int, Meta(ge=-1, lt=2**62)]  # next sequence to read; -1 if nobody has begun
    deadline: Count = 0  # of a session: when it ends unless renewed, in milliseconds since 1970; for people
    renewals: Count = 0  # counts the changes, so that no two texts of a record are the same
    lease: Annotated[int, Meta(ge=0, le=86_400_000)] = 0  # lease time of the owner, in milliseconds
    origin: Count = 0  # first epoch of the present journal: the sequences of older results mean nothing in it
    lost: _Sequence = 0  # events that were overwritten before they were read, since the job was submitted
    regressions: Count = 0  # how often the journal has begun again since the job was submitted
    run: Count = 0  # number of the job's restart that the offset follows
    doubt: _Sequence = 0  # sequence before which events may have results that the offset does not cover
    heir: Word = ""  # worker that is about to take an expired lease; empty if none is
    # Events that were rejected and have no dead letter, for lack of room, since the job was submitted.
    unkept: _Sequence = 0
    session: Word = ""  # the owner's session that the lease depends on
    rescans: Count = 0  # rescans that are done: what they write, no offset tells

    def has_begun(self, begin: str, restarts: int) -> bool:
        """Whether the offset counts: after a restart of the group, only once a worker has set it."""
        return self.offset >= 0 and (not begin or self.run >= restarts)


encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(LeaseRecord).decode
NOBODY = LeaseRecord("", 0, -1)


def limits() -> dict[str, int]:
    """The most that can be counted by now.

    It grows faster than what is counted: whatever is taken over, the next numbers can be read by the next owner.
    """
    seconds = int(time.time()) + _SPARE
    return {"epoch": seconds, **dict.fromkeys(("renewals", "lost", "unkept", "regressions", "rescans"), seconds << 20)}


def decode(text: bytes | str) -> LeaseRecord:
    """The record that a text is. Raises ValueError if it is not valid; RecursionError if it is nested too deep."""
    record = _decode(text)
    for name, most in limits().items():
        if getattr(record, name) > most:
            raise ValueError(f"its `{name}` is more than can have been counted")
    return record


def parse(record: Record, partition_count: int) -> LeaseRecord:
    """The lease record in a control record. Raises ValueError if it is not valid."""
    partition_in(record.key, partition_count)
    return decode(record.raw)


def bad_lease(job: str, partition: int, key: bytes, text: bytes, error: Exception) -> BadRecord:
    """The bad record of a lease that could not be decoded."""
    reason = reason_of(error) if text else "it is not a JSON value"
    return BadRecord(LEASES_MAP, f"{job}/{partition}", reason, key, text)


def lease_key(job: str, partition: int, partition_count: int) -> bytes:
    """Serialized key of the record of a job's partition: a string whose explicit hash puts it into that partition."""
    return wire.string_data(f"{job}/{partition}".encode(), partition + partition_count)


async def read_texts(
    grid: Grid, keys: Mapping[int, bytes], seconds: float, map_name: str = LEASES_MAP
) -> dict[int, bytes | None]:
    """Exact texts of the records that were read in time, by partition.

    None where there is no record; empty where there is something that is not JSON.
    """
    futures = {
        transport.invoke(
            grid.client, wire.encode_get_all(map_name, [key]), p, wire.decode_get_all, retry_seconds=seconds
        ): p
        for p, key in keys.items()
    }
    if not futures:
        return {}
    done, late = await asyncio.wait(futures, timeout=seconds)
    for future in late:
        future.cancel()
    texts: dict[int, bytes | None] = {}
    failure: BaseException = OperationTimeoutError("no member answers")
    for future in done:
        error = future.exception()
        if error is not None:
            failure = error
            continue
        entries = future.result()
        value = entries[0][1] if entries else None
        is_json = value is not None and wire.type_of(value) == JSON
        texts[futures[future]] = None if value is None else value[12:] if is_json else b""
    if not texts:
        raise failure
    return texts


async def read_records(
    grid: Grid, job: str, partitions: Iterable[int] | None = None, *, seconds: float = 10.0
) -> dict[int, LeaseRecord]:
    """Records of a job, by partition: of all partitions, or of some. Bad ones are left out, and noted."""
    wanted = range(grid.partition_count) if partitions is None else partitions
    keys = {p: lease_key(job, p, grid.partition_count) for p in wanted}
    texts = await read_texts(grid, keys, seconds)
    if len(texts) < len(keys):
        raise OperationTimeoutError("a member does not answer")
    found, bad = {}, []
    for partition, text in texts.items():
        if text is not None:
            try:
                found[partition] = decode(text)
            except (ValueError, RecursionError) as error:
                bad.append(bad_lease(job, partition, keys[partition], text, error))
    if partitions is None:
        grid.bad_records.replace(LEASES_MAP, bad, prefix=f"{job}/")
    else:
        grid.bad_records.note(bad)
    return found


class Change(NamedTuple):
    """A record to be written if the present text is the expected one; None: if there is no record."""

    partition: int
    expected: bytes | None
    record: LeaseRecord


class Written(NamedTuple):
    """A record that was written, its exact bytes, and when the write began.

    Minus infinity if it was only read back, not acknowledged: one member alone may have it, and die with it.
    """

    record: LeaseRecord
    text: bytes
    began: float

    @property
    def is_acknowledged(self) -> bool:
        """Whether a member said that it and its backups have the record."""
        return self.began > _UNSAID


# What became of a change: what was written; an error if that is not known; None if the record was another.
Outcome: TypeAlias = "Written | HazelcastError | None"


class LeaseWriter:
    """Reads and writes the lease records of one group, or the record of one session.

    `map_name`: where the records are.
    """

    def __init__(self, grid: Grid, name: str, seconds: float, map_name: str = LEASES_MAP) -> None:
        self._grid, self._name, self._map_name = grid, name, map_name
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

        Raises HazelcastError if no record at all could be read.
        """
        keys = {partition: self.key(partition) for partition in partitions}
        return await read_texts(self._grid, keys, self._seconds, self._map_name)

    async def remove(self, partition: int, text: bytes) -> None:
        """Remove a record if it is the expected text."""
        message = wire.encode_remove_if_same(self._map_name, self.key(partition), wire.json_data(text))
        client, seconds = self._grid.client, self._seconds
        await transport.invoke(client, message, partition, wire.decode_remove_if_same, retry_seconds=seconds)

    async def write(self, partition: int, expected: bytes | None, record: LeaseRecord) -> Written | None:
        """Compare-and-set one record; None if it was not the expected one."""
        outcomes: list[Outcome] = []
        await self.write_all([Change(partition, expected, record)], lambda _, outcome: outcomes.append(outcome))
        (outcome,) = outcomes
        if isinstance(outcome, HazelcastError):
            raise outcome
        return outcome

    async def write_all(self, changes: Sequence[Change], written: Callable[[int, Outcome], None]) -> None:
        """Compare-and-set records of different partitions, all at once.

        `written`: called once for each, with its index, as soon as its outcome is known.
        """
        client, began, seconds = self._grid.client, self._grid.clock(), self._seconds
        unknown: list[int] = []
        futures: list[asyncio.Future[Any]] = []
        records: list[Written] = []

        def answered(index: int, future: asyncio.Future[Any]) -> None:
            # Each as it is answered: a member that hangs must not delay what other members have answered.
            error = TimeoutError() if future.cancelled() else future.exception()
            if error is None:
                written(index, records[index] if future.result() else None)
            elif isinstance(error, (*INDETERMINATE, TimeoutError)):
                unknown.append(index)
            elif isinstance(error, HazelcastError):
                written(index, error)
            else:
                _log.error("a compare-and-set failed", exc_info=error)
                written(index, HazelcastError(str(error)))

        for index, change in enumerate(changes):
            text = encode(change.record)
            records.append(Written(change.record, text, began))
            if change.expected is None:
                message = wire.encode_put_if_absent(self._map_name, self.key(change.partition), text)
                answer: Callable[[Any], bool] = wire.decode_put_if_absent
            else:
                before, after = wire.json_data(change.expected), wire.json_data(text)
                message = wire.encode_replace_if_same(self._prefix(change.partition), before, after)
                answer = wire.decode_replace_if_same
            # Through the owner's own connection, as results go: a worker that cannot write must lose the lease.
            future = transport.invoke(
                client, message, change.partition, answer, retry_seconds=seconds, until=began + seconds
            )
            future.add_done_callback(partial(answered, index))
            futures.append(future)
        if futures:
            _, late = await asyncio.wait(futures, timeout=seconds)
            for future in late:
                future.cancel()
            await asyncio.sleep(0)  # for the callbacks of the last ones
        if unknown:
            # Look whether it happened: no two texts of a record are the same.
            found: dict[int, bytes | None] = {}
            with contextlib.suppress(HazelcastError):
                found = await self.read([changes[index].partition for index in unknown])
            for index in unknown:
                partition, record = changes[index].partition, records[index]
                if partition not in found:
                    written(index, OperationTimeoutError("a member does not answer"))
                else:
                    written(index, record._replace(began=_UNSAID) if found[partition] == record.text else None)
