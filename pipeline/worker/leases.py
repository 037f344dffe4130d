"""Leases: which worker scores which partition, and how far it has come.

One record per job and partition, in the control map `gridscore.leases`, holds owner, epoch, deadline and offset, and is
changed only by compare-and-set:

1. *Claim*: a record without an owner, or one that has not changed for a whole lease time *as this process saw it*, is
   taken with the next epoch. Clocks of different machines are never compared; the deadline in the record is for people.
2. *Renew and commit*: owner and epoch stay, offset and deadline move. The offset never goes back.
3. *Release*: the owner is taken out, so that the next one need not wait.

A lease stands, for its owner, until a lease time (less a margin) after it *began* its last successful change. A failed
compare-and-set means that somebody else has taken it: the partition is dropped at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from hazelcast.errors import HazelcastError, OperationTimeoutError

from pipeline.grid import transport, wire
from pipeline.grid.copies import Fetcher
from pipeline.grid.records import INDETERMINATE
from pipeline.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

LEASES_MAP = "gridscore.leases"
LEASE_SECONDS = 10.0
_MARGIN = 0.2
"""Part of the lease time that the owner does not use, for writes that are under way and clocks that run unevenly."""


class LeaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What the grid knows of one partition of a job.

    Attributes:
        owner: Worker that holds the lease; empty if nobody does.
        epoch: Counts the owners; never goes back.
        offset: Next sequence to read; -1 if nobody has begun.
        deadline: When the lease ends unless renewed, in milliseconds since 1970; for people.
        renewals: Counts the changes, so that no two texts of a record are the same.
    """

    owner: str
    epoch: int
    offset: int
    deadline: int
    renewals: int


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(LeaseRecord).decode


@dataclass(slots=True)
class Lease:
    """A partition that this worker holds: the record, its exact text, and until when it may be relied on."""

    partition: int
    record: LeaseRecord
    text: bytes
    renewed_at: float
    busy: bool = False

    @property
    def offset(self) -> int:
        """The committed offset."""
        return self.record.offset


class Leases:
    """The leases of one job, as one worker holds them.

    Args:
        grid: The connection.
        job: Name of the job.
        worker: Identity of this worker.
        seconds: Lease time: how long the partitions of a killed worker wait for a new owner.
    """

    def __init__(self, grid: Grid, job: str, worker: str, *, seconds: float = LEASE_SECONDS) -> None:
        self._grid = grid
        self.job = job
        self.worker = worker
        self.seconds = seconds
        self.held: dict[int, Lease] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._seen: dict[int, tuple[bytes, float]] = {}  # others' records: text, and since when it is the same
        self._keys = [transport.key_data(grid.client, lease_key(job, p)) for p in range(grid.partition_count)]
        self._key_partitions = [partition_of(key, grid.partition_count) for key in self._keys]

    def stands(self, partition: int, now: float) -> bool:
        """Whether this worker may write for the partition at `now` (of the monotonic clock)."""
        lease = self.held.get(partition)
        return lease is not None and now < lease.renewed_at + self.seconds * (1 - _MARGIN)

    async def claim(self) -> list[Lease]:
        """Take every partition that is free, or whose owner has not been heard of for a lease time.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        return await self._to_the_end(self._claim_all())

    async def _claim_all(self) -> list[Lease]:
        wanted = [p for p in range(self._grid.partition_count) if p not in self.held]
        texts = await self._read(wanted)
        now = time.monotonic()
        free: list[tuple[int, LeaseRecord | None, bytes | None]] = []
        for partition in wanted:
            text = texts.get(partition)
            if text is None:
                free.append((partition, None, None))
                continue
            try:
                record = _decode(text)
            except msgspec.DecodeError as error:
                _log.error("%s/%d: the lease record cannot be read: %s", self.job, partition, error)
                continue
            seen, since = self._seen.setdefault(partition, (text, now))
            if seen != text:
                self._seen[partition] = (text, now)
                since = now
            if record.owner in ("", self.worker) or now - since >= self.seconds:
                free.append((partition, record, text))
        claims = await asyncio.gather(*(self._claim(*candidate) for candidate in free))
        taken = [lease for lease in claims if lease is not None]
        for lease in taken:
            self._seen.pop(lease.partition, None)
            self.held[lease.partition] = lease
        return taken

    async def _claim(self, partition: int, record: LeaseRecord | None, text: bytes | None) -> Lease | None:
        epoch, offset, renewals = (record.epoch, record.offset, record.renewals) if record else (0, -1, 0)
        fresh = LeaseRecord(self.worker, epoch + 1, offset, self._deadline(), renewals + 1)
        return await self._write(partition, text, fresh)

    async def commit(self, offsets: dict[int, int]) -> list[int]:
        """Write offsets and renew; returns partitions that are lost because somebody else has taken them.

        Also renews, unchanged, every held lease that has used up a third of its time. A partition whose write has an
        unknown fate stays held: it is read back by the next call, and stops standing by itself if that takes too long.

        Args:
            offsets: Next sequence to read by partition; none may be smaller than what is committed.
        """
        return await self._to_the_end(self._commit_all(offsets))

    async def _commit_all(self, offsets: dict[int, int]) -> list[int]:
        now = time.monotonic()
        due = [
            (lease, offsets.get(p, lease.offset))
            for p, lease in self.held.items()
            if not lease.busy
            and (offsets.get(p, lease.offset) != lease.offset or now - lease.renewed_at > self.seconds / 3)
        ]
        outcomes = await asyncio.gather(*(self._commit(lease, offset) for lease, offset in due))
        lost = [lease.partition for (lease, _), kept in zip(due, outcomes, strict=True) if not kept]
        for partition in lost:
            self.drop(partition)
        return lost

    async def _commit(self, lease: Lease, offset: int, *, owner: str | None = None) -> bool:
        record = lease.record
        if offset < record.offset:
            # It must never happen. If it does, the grid is right, and whoever claims the partition goes on from there.
            _log.error(
                "%s/%d: the offset would go back from %d to %d: dropping the partition",
                self.job,
                lease.partition,
                record.offset,
                offset,
                extra={"action": "offset_back"},
            )
            return False
        owner = self.worker if owner is None else owner
        fresh = LeaseRecord(owner, record.epoch, offset, self._deadline(), record.renewals + 1)
        lease.busy = True
        try:
            written = await self._write(lease.partition, lease.text, fresh)
        except HazelcastError as error:
            _log.warning("%s/%d: the commit failed: %s", self.job, lease.partition, error, extra={"action": "commit"})
            return True  # not known to be lost; `stands` ends it in time
        finally:
            lease.busy = False
        if written is None:
            return False
        lease.record, lease.text, lease.renewed_at = written.record, written.text, written.renewed_at
        return True

    def drop(self, partition: int) -> None:
        """Forget a partition at once, without a word to the grid."""
        self.held.pop(partition, None)

    async def release(self, offsets: dict[int, int]) -> None:
        """Commit and give back every partition."""
        # A compare-and-set under way changes the text that the next one must compare with: let it end first.
        await asyncio.gather(*self._under_way, return_exceptions=True)
        leases = list(self.held.values())
        self.held.clear()
        await asyncio.gather(
            *(self._commit(lease, offsets.get(lease.partition, lease.offset), owner="") for lease in leases)
        )

    async def reset(self, partition: int, offset: int) -> bool:
        """Set the offset back after the journal itself went back; False if the lease is lost."""
        lease = self.held.get(partition)
        if lease is None:
            return False
        record = lease.record
        fresh = LeaseRecord(self.worker, record.epoch, offset, self._deadline(), record.renewals + 1)
        written = await self._write(partition, lease.text, fresh)
        if written is None:
            self.drop(partition)
            return False
        lease.record, lease.text, lease.renewed_at = written.record, written.text, written.renewed_at
        return True

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it even if whoever asked for it is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _write(self, partition: int, expected: bytes | None, record: LeaseRecord) -> Lease | None:
        """Compare-and-set one record; None if it was not what was expected."""
        text = _encode(record)
        client, key = self._grid.client, self._keys[partition]
        began = time.monotonic()
        try:
            if expected is None:
                message = wire.encode_put_if_absent(LEASES_MAP, key, text)
                decode: Callable[[Any], bool] = wire.decode_put_if_absent
            else:
                message = wire.encode_replace_if_same(LEASES_MAP, key, expected, text)
                decode = wire.decode_replace_if_same
            # A member that hangs must not keep us from renewing what other members hold.
            seconds = self.seconds / 3
            async with asyncio.timeout(seconds):
                done = await transport.invoke(
                    client, message, self._key_partitions[partition], decode, retry_seconds=seconds
                )
        except (*INDETERMINATE, TimeoutError):
            # Whether it happened is not known, so look: no two texts of a record are the same.
            try:
                async with asyncio.timeout(self.seconds / 3):
                    done = (await self._read([partition])).get(partition) == text
            except TimeoutError:
                raise OperationTimeoutError("a member does not answer") from None
        return Lease(partition, record, text, began) if done else None

    async def _read(self, partitions: Iterable[int]) -> dict[int, bytes]:
        return await read_texts(self._grid, self.job, partitions)

    def _deadline(self) -> int:
        return int((time.time() + self.seconds) * 1000)


def lease_key(job: str, partition: int) -> str:
    """Key of the record of a job's partition."""
    return f"{job}/{partition}"


async def read_texts(grid: Grid, job: str, partitions: Iterable[int]) -> dict[int, bytes]:
    """Exact texts of the records that exist, by partition of the job."""
    keys = {lease_key(job, p): p for p in partitions}
    return {keys[key]: text for key, text in await Fetcher(grid, LEASES_MAP).fetch(keys)}


async def read_records(grid: Grid, job: str) -> dict[int, LeaseRecord]:
    """Every record of a job, by partition."""
    texts = await read_texts(grid, job, range(grid.partition_count))
    return {partition: _decode(text) for partition, text in texts.items()}


async def delete_records(grid: Grid, job: str) -> None:
    """Forget how far a job has come."""
    proxy = await grid.map(LEASES_MAP)
    await asyncio.gather(*(proxy.delete(lease_key(job, p)) for p in range(grid.partition_count)))
