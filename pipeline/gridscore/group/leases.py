"""Leases: which worker scores which partition, and how far it has come.

One record per job and partition, in the control map `gridscore.leases`, holds owner, epoch and offset. It is changed
only by compare-and-set on its exact bytes:

1. *Claim*: a record without an owner is taken with the next epoch. So is one whose owner's session has not changed for
   the whole lease time *while this process watched it*, but in three steps: the session is closed, which shuts its
   owner out; the record is marked; and after a while taken. Clocks of different machines are never compared; deadlines
   in records are for people.
2. *Commit*: owner and epoch stay, the offset moves, never back. An offset that has not moved is not written: its owner
   renews its sessions instead (`sessions`).
3. *Release*: the owner is removed, so that the next one need neither wait nor doubt what was written.
4. *Reset*: the offset is changed, with the next epoch, because the journal or a user demands it.

Records are never deleted while their job exists, so epochs only grow.

The owner may write until some time after it *began* the last successful renewal of its session; `fence` says how long,
and why nothing that it sent arrives after its successor's writes. A failed compare-and-set means that somebody else has
taken the lease: the partition is dropped at once.

The record of a partition lies in that partition: a member that does not answer prevents the writing of results and the
taking of leases alike. Watching must be unbroken: a record that nobody could change, because its member did not answer,
has not expired. A lease is marked before it is taken because a member does not refuse a write while the partition moves
to another member: it holds the write, and retries it every half second without a word. Once the mark has been written,
all earlier writes follow within `SETTLE_SECONDS`, or never.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import BadRecordError, ConflictError
from gridscore.group.fence import SETTLE_SECONDS
from gridscore.group.lease_records import (
    ANSWER,
    LEASES_MAP,
    NOBODY,
    Change,
    LeaseRecord,
    LeaseWriter,
    Written,
    bad_lease,
    decode,
    read_records,
)
from gridscore.group.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.group.lease_records import Outcome
    from gridscore.group.sessions import Session

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

LEASE_SECONDS = 5.0

_ATTEMPTS = 10
_LOG_SECONDS = 1.0
_NEVER = float("inf")
_STILL_SECONDS = 2.0
_HEIR_SECONDS = SETTLE_SECONDS + 2.0


class Progress(NamedTuple):
    """How far a partition has come."""

    offset: int  # next sequence to read
    lost: int  # events before it that were overwritten before they were read, in all
    unkept: int = 0  # events before it that were rejected and have no dead letter, in all

    @classmethod
    def of(cls, record: LeaseRecord) -> Progress:
        """What is committed."""
        return cls(record.offset, record.lost, record.unkept)


@dataclass(slots=True, eq=False)
class Lease:
    """A partition that this worker holds."""

    partition: int
    record: LeaseRecord  # as it was last written
    text: bytes  # its exact bytes
    session: Session  # that it depends on
    ends: float = _NEVER  # when it ends because it could not be moved to another session
    before: str = ""  # worker that held it and did not release it; empty if it was released: then `doubt` is known
    doubt: int = 0  # sequence before which events may have results that the offset does not cover
    is_doubted: bool = False  # whether `doubt` covers what the worker before may have written
    unsettled: bool = False  # whether a write of unknown fate may still arrive
    strays: bool = False  # whether the grid may name another session than `session`
    # False once it is lost, dropped or given back; its partition may be held by another lease then.
    is_held: bool = True
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def until(self) -> float:
        """Until when, of the grid's clock, its partition may be written; minus infinity if it may not."""
        return min(self.session.until, self.ends) if self.is_held else float("-inf")

    def adopt(self, written: Written) -> None:
        self.record, self.text, _ = written


class _Sight(NamedTuple):
    """Somebody else's record as it was last seen, when that was, and since when it is the same."""

    record: LeaseRecord
    text: bytes | None
    looked: float
    since: float


class _Due(NamedTuple):
    """A lease to be committed."""

    lease: Lease
    progress: Progress
    seen: LeaseRecord | None  # only if this is still its record; None: in any case
    strays: bool = False  # whether it is to move to another session


class Leases:
    """The leases of one job, as one worker holds them."""

    def __init__(
        self,
        grid: Grid,
        job: str,
        worker: str,
        *,
        # Lease time: how long the partitions of a killed worker wait for a new owner; see `Fence.of`.
        seconds: float = LEASE_SECONDS,
        epochs_by_time: bool = False,  # whether epochs begin with the time, in seconds since 1970, not with 1
        sessions: Sessions | None = None,  # of the process; default: new ones
    ) -> None:
        self._grid, self.job, self.worker = grid, job, worker
        self.seconds = seconds
        self.sessions = sessions or Sessions(grid, worker, seconds)
        self.held: dict[int, Lease] = {}
        self.claiming: set[int] = set()
        self._settled: set[int] = set()  # held, and on the right session, as of these changes of sessions:
        self._settled_at = -1
        self._under_way: set[asyncio.Task[Any]] = set()
        self._sights: dict[int, _Sight] = {}
        self._dropped: dict[int, str] = {}  # partitions that were held, with their sessions
        self._failures: list[HazelcastError] = []  # since they were last logged
        self._tried: Counter[str] = Counter()
        self.commits = 0  # offsets that were written
        self._logged_at = float("-inf")
        self._epochs_by_time = epochs_by_time
        self._records = LeaseWriter(grid, job, seconds)

    def until(self, partition: int) -> float:
        """Until when, of the grid's clock, this worker may write for a partition; minus infinity if it may not."""
        lease = self.held.get(partition)
        return lease.until if lease is not None else float("-inf")

    @property
    def settled(self) -> bool:
        """Whether all leases hang where they should."""
        return self._settled_at == self.sessions.changes and len(self._settled) == len(self.held)

    def ended(self, now: float) -> list[int]:
        """Held partitions for which this worker may no longer write at `now`, of the grid's clock."""
        if self.settled and self.sessions.all_stand(now):
            return []
        return [partition for partition, lease in self.held.items() if now >= lease.until]

    # ------------------------------------------------------------------ others' leases

    async def look(self, partitions: Iterable[int], is_silent: Callable[[str], bool] = lambda _owner: False) -> None:
        """Read records that are not held, and forget others that were seen.

        Records whose member does not answer in time stay as last seen; so do, for a while, those whose owner is silent:
        it does not change them either.

        `is_silent`: whether a worker has not been heard of. Raises HazelcastError if no record at all could be read.
        """
        now, before, self._sights = self._grid.clock(), self._sights, {}
        wanted, until = [], now + self.seconds * ANSWER
        for partition in partitions:
            if partition in self.held or partition in self.claiming:
                continue
            sight = before.get(partition)
            if sight is not None:
                self._sights[partition] = sight
            if sight is None or now - sight.looked > self._still(sight) or not is_silent(sight.record.owner):
                wanted.append(partition)
        reads: dict[int, tuple[bytes | None, float, float]] = {}
        failures: list[HazelcastError] = []
        together = self.sessions.together(wanted)
        await asyncio.gather(*(self._read(partitions, until, reads, failures) for partitions in together))
        if failures and not reads:
            raise failures[0]
        for partition, (text, asked, answered) in reads.items():
            if partition in self.held or partition in self.claiming:
                continue  # it was taken, or is being taken, since it was asked for
            try:
                record = NOBODY if text is None else decode(text)
            except (ValueError, RecursionError) as error:
                # Nobody takes the partition before its record is repaired; the others are not affected.
                key = self._records.key(partition)
                self._grid.bad_records.note([bad_lease(self.job, partition, key, text or b"", error)])
                self._sights.pop(partition, None)
                continue
            sight = before.get(partition)
            since = sight.since if sight is not None and sight.text == text else answered
            if sight is not None and not record.session and asked - sight.looked > _STILL_SECONDS + self.seconds / 2:
                since = answered  # while nobody looked, or could look, its owner may have been unable to renew it
            self._sights[partition] = _Sight(record, text, asked, since)
            if self._dropped.get(partition) != record.session:
                # If it names a session of ours, though nobody holds it, that session must run out.
                self.sessions.let_run_out(record.session)
        on = {(each.record.session, each.record.lease): each.record for each in self._sights.values()}
        await self.sessions.look(record for record in on.values() if record.session)

    def _still(self, sight: _Sight) -> float:
        """How long a silent owner's record is assumed to be unchanged; if it is not, claiming it fails."""
        return 2 * self.seconds if sight.record.session else _STILL_SECONDS  # with a session, that shows when it ends

    async def _read(
        self,
        partitions: Sequence[int],
        until: float,
        reads: dict[int, tuple[bytes | None, float, float]],
        failures: list[HazelcastError],
    ) -> None:
        """Read records of one member when it is their turn, and note when they were asked for and answered."""
        async with self.sessions.turn(partitions, "look"):
            if (asked := self._grid.clock()) < until:
                try:
                    texts = await self._records.read(partitions)
                except HazelcastError as error:
                    failures.append(error)
                else:
                    answered = self._grid.clock()
                    reads.update({partition: (text, asked, answered) for partition, text in texts.items()})

    async def _take(self, changes: Sequence[Change], written: Callable[[int, Outcome], None]) -> bool:
        """Write records of one member that are not held, when it is their turn; False if that comes too late."""
        until = self._grid.clock() + self.seconds * ANSWER
        async with self.sessions.turn([each.partition for each in changes], "take"):
            if self._grid.clock() >= until:
                return False
            await self._records.write_all(changes, written)
            return True

    def seen(self) -> list[tuple[int, str]]:
        """Partitions that the last look found taken, with their owners, or the workers that are about to take them."""
        return [(p, sight.record.heir or sight.record.owner) for p, sight in self._sights.items() if sight.record.owner]

    def has_seen(self, partition: int) -> bool:
        """Whether the last look could read a partition; or it is held, or being taken."""
        return partition in self._sights or partition in self.held or partition in self.claiming

    def others(self) -> set[str]:
        """The other owners of partitions that were seen."""
        return {sight.record.owner for sight in self._sights.values()} - {"", self.worker}

    def free(self) -> list[int]:
        """Partitions seen that nobody holds."""
        return [partition for partition, sight in self._sights.items() if not sight.record.owner]

    def expired(self) -> list[int]:
        """Partitions seen whose owner's session has run out while it was watched; or that were dropped here."""
        return [
            partition
            for partition, sight in self._sights.items()
            if sight.record.owner
            and (self._is_ours(partition, sight) or self._is_over(sight))
            and not self._has_heir(sight)
        ]

    def _is_over(self, sight: _Sight) -> bool:
        if sight.record.session:
            return self.sessions.is_over(sight.record.session)
        # An owner without sessions renews the record itself.
        return sight.looked - sight.since >= (sight.record.lease / 1000 or self.seconds)

    def _has_heir(self, sight: _Sight) -> bool:
        """Whether somebody else is about to take it: another mark would only restart the wait."""
        return sight.record.heir not in ("", self.worker) and self._grid.clock() - sight.since < _HEIR_SECONDS

    def _is_ours(self, partition: int, sight: _Sight) -> bool:
        """Whether this very object held it, and dropped it without telling the grid."""
        return sight.record.owner == self.worker and self._dropped.get(partition) == sight.record.session

    async def claim(self, partitions: Iterable[int], taken: Callable[[Lease], None] = lambda _: None) -> list[Lease]:
        """Take partitions that are free or expired; returns those that nobody else was quicker to take.

        Expired ones take `SETTLE_SECONDS`.

        `taken`: called with each lease as soon as it is held: a slow member delays only its own.
        """
        # They will no longer be as they were seen.
        wanted = {p: self._sights.pop(p) for p in partitions if p in self._sights}
        self.claiming.update(wanted)
        return await self._to_the_end(self._claim_all(wanted, taken))

    async def claimed(self) -> None:
        """Return when the claims under way have ended, so that what they took can be released."""
        while self.claiming and self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _claim_all(self, sights: Mapping[int, _Sight], taken: Callable[[Lease], None]) -> list[Lease]:
        leases: list[Lease] = []

        def took(lease: Lease) -> None:
            leases.append(lease)
            taken(lease)

        owned = [p for p, sight in sights.items() if sight.record.owner]
        free = [p for p, sight in sights.items() if not sight.record.owner]
        together = [*self.sessions.together(free), *self.sessions.together(owned)]
        try:
            await asyncio.gather(*(self._claim({p: sights[p] for p in each}, took) for each in together))
        finally:
            self.claiming.difference_update(sights)
        self._log_failures("claims", len(sights))
        return leases

    async def _claim(self, sights: Mapping[int, _Sight], taken: Callable[[Lease], None]) -> None:
        """Take partitions of one member: all free, or all expired."""
        try:
            records = {partition: (sight.record, sight.text) for partition, sight in sights.items()}
            if any(record.owner for record, _ in records.values()):
                records = await self._announce(sights)
                await asyncio.sleep(SETTLE_SECONDS if records else 0.0)
            sessions = {partition: await self.sessions.open(partition) for partition in records}
        except HazelcastError as error:
            self._failures.append(error)
            return
        changes = []
        for partition, (record, text) in records.items():
            session = sessions[partition]
            before = int(time.time()) if self._epochs_by_time and text is None else record.epoch
            fresh = replace(self._next(record), owner=self.worker, epoch=before + 1, session=session.name)
            session.leases += 1
            changes.append(Change(partition, text, fresh))

        def written(index: int, outcome: Outcome) -> None:
            partition = changes[index].partition
            session, record = sessions[partition], records[partition][0]
            if outcome is None or isinstance(outcome, HazelcastError):
                if outcome is not None:
                    self._failures.append(outcome)
                self.sessions.detach(session, released=outcome is None)  # else it may have been written
                return
            self._dropped.pop(partition, None)
            self._settled.discard(partition)
            lease = self.held[partition] = Lease(
                partition, outcome.record, outcome.text, session, before=record.owner, doubt=record.doubt
            )
            taken(lease)

        if changes and not await self._take(changes, written):
            for session in sessions.values():
                self.sessions.detach(session, released=True)

    async def _announce(self, sights: Mapping[int, _Sight]) -> dict[int, tuple[LeaseRecord, bytes | None]]:
        """Mark expired leases that this worker is about to take; returns the records of those that it may take."""
        ours = {partition for partition, sight in sights.items() if self._is_ours(partition, sight)}
        sessions = {sight.record.session for partition, sight in sights.items() if partition not in ours} - {""}
        over = {""}
        for name in sessions:
            try:
                over |= {name} if await self.sessions.end(name) else set()
            except HazelcastError as error:
                self._failures.append(error)
        records: dict[int, tuple[LeaseRecord, bytes | None]] = {}
        changes = []
        for partition, (record, text, *_) in sights.items():
            if partition not in ours and record.session not in over:
                continue
            if record.heir == self.worker:
                records[partition] = record, text
            else:
                heir = replace(record, heir=self.worker, renewals=record.renewals + 1)
                changes.append(Change(partition, text, heir))

        def written(index: int, outcome: Outcome) -> None:
            if isinstance(outcome, HazelcastError):
                self._failures.append(outcome)
            elif outcome is not None:
                records[changes[index].partition] = outcome.record, outcome.text

        if changes:
            await self._take(changes, written)
        return records

    # ------------------------------------------------------------------ one's own

    async def commit(self, progress: Mapping[int, Progress], partitions: Collection[int] | None = None) -> list[int]:
        """Write offsets; returns partitions that are lost because somebody else has taken them.

        It also renews sessions that are due, and moves leases to other sessions where theirs is retired or their
        partition has moved to another member. A partition whose write has an unknown fate stays held until a later call
        finds that it is lost.

        `progress`: by partition; no offset may be smaller than the committed one; `partitions`: only these; default:
        all that are held.
        """
        self.sessions.renew()
        now, homes, held, settled = self._grid.clock(), self.sessions.homes, self.held, self._settled
        if self._settled_at != self.sessions.changes:
            self._settled_at = self.sessions.changes
            settled.clear()
        due = []
        # This is done every second, and nearly always all leases are on the right session: skip those.
        wanted = held.keys() if partitions is None else set(partitions)
        for partition in (progress.keys() & wanted) | (wanted - settled):
            lease = held.get(partition)
            if lease is None:
                continue
            record, session, reached = lease.record, lease.session, progress.get(partition)
            moved = reached is not None and reached != (record.offset, record.lost, record.unkept)
            at_home = homes[partition] == session.partition
            # If it has moved to a member that cannot be reached, its old session does not show that.
            lease.ends = _NEVER if at_home else min(lease.ends, now + session.send_seconds)
            strays = session.retired or not at_home or lease.strays
            if not strays:
                settled.add(partition)
            if (moved or strays) and not lease.changing.locked() and (moved or self.sessions.ready(partition)):
                due.append(_Due(lease, reached or Progress.of(record), record, strays))
        return await self._to_the_end(self._commit_all(due)) if due else []

    async def _commit_all(self, due: Sequence[_Due]) -> list[int]:
        # A lease that is being changed has its turn next time: its member may be slow, and the others must not wait.
        idle = [each for each in due if not each.lease.changing.locked()]
        lost = await self._commit_these(idle, self.worker)
        self._log_failures("commits", len(idle))
        return lost

    async def _commit_these(self, due: Iterable[_Due], owner: str) -> list[int]:
        """Write offsets and owner; returns partitions that are lost."""
        lost, leases, changes, sessions = [], [], [], []
        # In order, so that a commit and a release never wait for each other.
        for lease, progress, seen, strays in sorted(due, key=lambda each: each.lease.partition):
            await lease.changing.acquire()
            record = lease.record
            if seen is not None and record is not seen:
                # It was changed meanwhile, as by a reset: it has its turn next time.
                lease.changing.release()
                continue
            if progress.offset < record.offset:
                # This must never happen. If it does, the grid is right, and the next owner goes on from there.
                _log.error(
                    "%s/%d: the offset would go back from %d to %d: dropping the partition",
                    self.job,
                    lease.partition,
                    record.offset,
                    progress.offset,
                    extra={"action": "offset_back"},
                )
                lost.append(lease)
                lease.changing.release()
                continue
            doubt = lease.doubt if progress.offset < lease.doubt else 0
            # If another session is not ready yet, the lease stays on its own one until the next time.
            session = (self.sessions.ready(lease.partition) if owner and strays else None) or lease.session
            fresh = replace(
                self._next(record),
                owner=owner,
                doubt=doubt,
                session=session.name if owner else "",
                **progress._asdict(),
            )
            session.leases += 1
            sessions.append(session)
            leases.append(lease)
            changes.append(Change(lease.partition, lease.text, fresh))

        def written(index: int, outcome: Outcome) -> None:
            lease, session, before = leases[index], sessions[index], leases[index].session
            if isinstance(outcome, HazelcastError):
                self._failures.append(outcome)  # perhaps not lost
                lease.strays = lease.strays or session is not before
                self._settled.discard(lease.partition)
            elif outcome is None:
                lost.append(lease)
            else:
                lease.adopt(outcome)
                lease.strays = False
                self.commits += 1
                if session is not before and lease.is_held:
                    # It is on the new session; the old one is detached below.
                    lease.session, session = session, before
                    lease.ends = _NEVER
                    self._settled.discard(lease.partition)
            # If it was dropped meanwhile, that has detached the old session; the new one must run out.
            self.sessions.detach(session, released=session is before or lease.session is not before)
            lease.changing.release()

        await self._records.write_all(changes, written)
        for lease, stands in zip(lost, await asyncio.gather(*map(self._restore, lost)), strict=True):
            if not stands:
                self._lose(lease)
        return [lease.partition for lease in lost if lease.partition not in self.held]

    async def _restore(self, lease: Lease) -> bool:
        """Write a held lease's record again if it was removed, as when the map was destroyed; whether it stands now.

        Whoever found no record would begin anew, at the oldest or latest event, with the first epoch.
        """
        async with lease.changing:
            try:
                there = await self._records.read([lease.partition])
                if not lease.is_held or there.get(lease.partition, b"") is not None:
                    return False
                written = await self._records.write(lease.partition, None, self._next(lease.record))
            except HazelcastError as error:
                _log.debug("a lease could not be looked at: %s", error)  # it is lost
                return False
            if written is not None:
                lease.adopt(written)
            return written is not None

    async def check(self, partition: int) -> bool:
        """Whether the record of a held partition is the one that was written last, or gone and written again.

        If not, the lease is lost.
        """
        lease = self.held.get(partition)
        if lease is None or lease.changing.locked():
            return True
        text = lease.text
        there = await self._records.read([partition])
        if there.get(partition) != text and lease.text == text and not lease.changing.locked():
            if await self._restore(lease):
                return True
            self._lose(lease)
            return False
        return True

    async def settle(self, partition: int) -> bool:
        """Return when no earlier write can arrive any more; False if the lease is lost. Retry it if it fails."""
        return await self._to_the_end(self._settle(partition))

    async def _settle(self, partition: int) -> bool:
        lease = self.held.get(partition)
        if lease is None or not await self._change(lease, self._next):
            return False
        await asyncio.sleep(SETTLE_SECONDS)
        return lease.is_held

    async def place(self, partition: int, offset: int) -> bool:
        """Write the first offset of a partition; False if the lease is lost."""
        lease = self.held.get(partition)
        return lease is not None and await self._to_the_end(
            self._change(lease, lambda now: replace(self._next(now), offset=offset))
        )

    async def count_rescan(self, partition: int) -> bool:
        """Write that one more rescan is done; False if the lease is lost."""
        lease = self.held.get(partition)
        return lease is not None and await self._to_the_end(
            self._change(lease, lambda now: replace(self._next(now), rescans=now.rescans + 1))
        )

    def drop(self, partition: int) -> None:
        """Forget a partition at once, without telling the grid: its session must run out."""
        if (lease := self.held.get(partition)) is not None:
            self._forget(lease)
            self._dropped[partition] = lease.record.session
            self.sessions.detach(lease.session, released=False)

    def _forget(self, lease: Lease) -> None:
        del self.held[lease.partition]
        self._settled.discard(lease.partition)
        lease.is_held = False

    def _lose(self, lease: Lease) -> None:
        """Forget a lease that somebody else has taken; a newer one of the same partition stays."""
        if lease.is_held:
            self.drop(lease.partition)

    async def release(self, progress: Mapping[int, Progress | None]) -> None:
        """Commit partitions and give them back. All that was written for them must have been acknowledged.

        `progress`: of the partitions to give back; None where nothing was read, so the committed offset stays.
        """
        given = [(lease, lease.record.origin) for lease in map(self.held.get, progress) if lease is not None]
        # A compare-and-set under way changes the text that the next one must compare with: let it end first.
        # If the caller runs out of time, `wait` does not cancel it.
        if self._under_way:
            await asyncio.wait(set(self._under_way))
        due = []
        for lease, origin in given:
            partition, record = lease.partition, lease.record
            if lease.is_held:  # if it was taken again meanwhile, it is in use
                self._forget(lease)
                # If it was reset meanwhile, what was done before does not count.
                reached = progress[partition] if record.origin == origin else None
                due.append(_Due(lease, reached or Progress.of(record), None))
        await self._to_the_end(self._release_all(due))

    async def _release_all(self, due: list[_Due]) -> None:
        await self._commit_these(due, "")
        for each in due:
            self.sessions.detach(each.lease.session, released=not each.lease.record.owner)
        self._log_failures("releases", len(due))

    async def reset(self, partition: int, offset: int, *, run: int | None = None, regressed: bool = False) -> bool:
        """Change the offset of a held partition, with the next epoch; False if the lease is lost.

        `offset`: may be smaller than the committed one; `run`: number of the restart that demands it; `regressed`:
        whether the journal has begun again, which is counted.
        """
        return await self._to_the_end(self._reset(partition, offset, run, regressed=regressed))

    async def _reset(self, partition: int, offset: int, run: int | None, *, regressed: bool) -> bool:
        def change(record: LeaseRecord) -> LeaseRecord:
            return replace(
                self._next(record),
                epoch=record.epoch + 1,
                origin=record.epoch + 1,
                offset=offset,
                doubt=0,
                regressions=record.regressions + regressed,
                run=record.run if run is None else run,
            )

        lease = self.held.get(partition)
        if lease is None or not await self._change(lease, change):
            return False
        lease.doubt = 0
        return True

    async def start_over(self, partitions: Iterable[int]) -> list[int]:
        """Let partitions begin again; returns those whose record could not be read or written, or has changed.

        Raises HazelcastError if no record at all could be read.
        """
        partitions = list(partitions)
        for partition in partitions:
            self._sights.pop(partition, None)
        await self.look(partitions)
        left = [p for p in partitions if p not in self._sights]
        changes = []
        for partition in partitions:
            sight = self._sights.get(partition)
            if sight is None or sight.text is None:
                continue
            record, epoch = sight.record, sight.record.epoch + 1
            fresh = replace(
                NOBODY,
                owner=record.owner,
                epoch=epoch,
                origin=epoch,
                renewals=record.renewals + 1,
                lease=record.lease,
                session=record.session,
            )
            changes.append(Change(partition, sight.text, fresh))

        def written(index: int, outcome: Outcome) -> None:
            if not isinstance(outcome, Written):
                left.append(changes[index].partition)

        await self._records.write_all(changes, written)
        return left

    # ------------------------------------------------------------------ records

    def _next(self, record: LeaseRecord) -> LeaseRecord:
        """The record, changed by this worker."""
        # Taking further changes as arguments would cost more than the second `replace` that it saves.
        return replace(record, renewals=record.renewals + 1, lease=int(self.seconds * 1000), heir="")

    async def _change(self, lease: Lease, change: Callable[[LeaseRecord], LeaseRecord]) -> bool:
        """Change the record of a held lease; if somebody else has changed it, drop the partition, and return False."""
        async with lease.changing:
            written = await self._records.write(lease.partition, lease.text, change(lease.record))
            if written is None:
                self._lose(lease)
                return False
            lease.adopt(written)
            return True

    def _log_failures(self, what: str, count: int) -> None:
        """Log many failures in one line."""
        self._tried[what] += count
        now = self._grid.clock()
        if not self._failures:
            self._tried.clear()
        elif now - self._logged_at >= _LOG_SECONDS:
            tried = ", ".join(f"{count} {what}" for what, count in self._tried.items())
            failed, last = len(self._failures), self._failures[-1]
            _log.warning("%s: %d of %s failed: %s", self.job, failed, tried, last, extra={"action": "lease_failed"})
            self._failures, self._logged_at = [], now
            self._tried.clear()

    async def _to_the_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Finish it even if the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)


async def start_over(grid: Grid, job: str) -> None:
    """Forget how far a job has come. Workers that still hold a partition notice at their next commit, and drop it.

    Epochs go on, so that an earlier result is never taken for a later one.

    Raises BadRecordError: what is there is not a lease record; ConflictError if records could not be read, or workers
    kept changing them.
    """
    leases, changed = Leases(grid, job, ""), list(range(grid.partition_count))
    await read_records(grid, job)
    for bad in grid.bad_records.all():
        if bad.map_name == LEASES_MAP and bad.key.startswith(f"{job}/"):
            raise BadRecordError(bad)
    for _ in range(_ATTEMPTS):
        changed = await leases.start_over(changed)
        if not changed:
            return
    raise ConflictError(
        f"{len(changed)} lease records of the job `{job}` could not be reset: members do not answer, or workers "
        "are still committing.",
        "Cancel the job if it is running, and try again.",
    )
