"""The records of leases as they lie in the grid: their form, where they lie, and how they are read."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Annotated

import msgspec
from hazelcast.errors import OperationTimeoutError
from msgspec import Meta

from gridscore.errors import BadRecord
from gridscore.grid import transport, wire
from gridscore.grid.records import JSON, Count, Record, Word, partition_in, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gridscore.grid import Grid
    from gridscore.group.subscription import Subscription
    from gridscore.job import JobRecord

LEASES_MAP = "gridscore.leases"

_Sequence = Annotated[int, Meta(ge=0, lt=2**62)]
_Epoch = Annotated[int, Meta(ge=0, lt=2**52)]
"""Below what other counts may be, so that one more can still be written and read."""


class LeaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What the grid knows of one partition of a job; or of a session, which has an owner and renewals, and no more.

    Attributes:
        owner: Worker that holds the lease; empty if nobody does, and all that was written is committed.
        epoch: Counts the owners and resets, from 1 or, for sinks, from the second at which a partition was first held;
            never goes back. Every result names the epoch that it was written in.
        offset: Next sequence to read; -1 if nobody has begun.
        deadline: Of a session: when it ends unless renewed, in milliseconds since 1970; for people.
        renewals: Counts the changes, so that no two texts of a record are the same.
        lease: Lease time of the owner, in milliseconds.
        origin: Epoch since which sequences are those of the journal as it is: older results say nothing about it.
        lost: Events that were overwritten before they were read, since the job was submitted.
        unkept: Events that were rejected and have no dead letter, for lack of room, since the job was submitted.
        regressions: Times that the journal began again, since the job was submitted.
        run: Number of the job's restart that the offset follows.
        doubt: Sequence before which results may stand that the offset does not cover.
        heir: Worker that is about to take a lease that has run out; empty if none is.
        session: Of the owner, on which the lease hangs.
    """

    owner: Word
    epoch: _Epoch
    offset: Annotated[int, Meta(ge=-1, lt=2**62)]
    deadline: Count = 0
    renewals: Count = 0
    lease: Annotated[int, Meta(ge=0, le=86_400_000)] = 0
    origin: Count = 0
    lost: _Sequence = 0
    regressions: Count = 0
    run: Count = 0
    doubt: _Sequence = 0
    heir: Word = ""
    unkept: _Sequence = 0
    session: Word = ""

    def has_begun(self, job: JobRecord | Subscription) -> bool:
        """Whether the offset says something: after a restart a worker sets it anew, and until then it does not."""
        return self.offset >= 0 and (not job.begin or self.run >= job.restarts)


encode = msgspec.json.Encoder(order="deterministic").encode
decode = msgspec.json.Decoder(LeaseRecord).decode
NOBODY = LeaseRecord("", 0, -1)


def parse(record: Record, partition_count: int) -> LeaseRecord:
    """The typed form of a record that was read as those of other control maps are.

    Raises:
        ValueError: It is not valid.
    """
    partition_in(record.key, partition_count)
    return decode(record.raw)


def bad_lease(job: str, partition: int, key: bytes, text: bytes, error: Exception) -> BadRecord:
    """A record that could not be decoded."""
    reason = reason_of(error) if text else "it is not a JSON value"
    return BadRecord(LEASES_MAP, f"{job}/{partition}", reason, key, text)


def lease_key(job: str, partition: int, partition_count: int) -> bytes:
    """Serialized key of the record of a job's partition: a string that lies in that partition, by its explicit hash."""
    text = f"{job}/{partition}".encode()
    return struct.pack(">iii", partition + partition_count, -11, len(text)) + text


async def read_texts(
    grid: Grid, keys: Mapping[int, bytes], seconds: float, map_name: str = LEASES_MAP
) -> dict[int, bytes | None]:
    """Exact texts of records by partition; without those that did not come in time.

    None where there is none; empty where there is something that is not JSON.
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
        is_json = value is not None and int.from_bytes(value[4:8], "big", signed=True) == JSON
        texts[futures[future]] = None if value is None else value[12:] if is_json else b""
    if not texts:
        raise failure
    return texts


async def read_records(
    grid: Grid, job: str, partitions: Iterable[int] | None = None, *, seconds: float = 10.0
) -> dict[int, LeaseRecord]:
    """Records of a job, by partition; of all partitions, or of some. What is not a record is left out, and noted.

    Raises:
        HazelcastError: The cluster did not answer.
    """
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
