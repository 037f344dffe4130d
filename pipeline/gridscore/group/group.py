"""One worker's part in the group of a job or a sink: which partitions it holds, from joining to leaving.

There is no leader. Each worker sees who lives (`members`) and who holds what (`leases`), and knows by the same rule how
many partitions it should hold (`quota`). It takes free ones up to that, and gives back the rest.

A partition is *taken* in this order:

1. Its lease is claimed, with the next epoch.
2. The committed offset is compared with its journal. A journal that ends before the offset has begun again: the offset
   is reset, which is counted. A restart of the job that the partition has not seen sets the offset, too.
3. If the previous owner did not release it, results may exist up to the journal's present end: it is in doubt.
4. It is read from the offset on. What is in doubt is looked over first: a job skips events that have results.

It is *committed* once a second, and earlier where uncommitted events fill half of its ring: producers wait for it. What
is acknowledged becomes the offset by compare-and-set. A failed compare-and-set means that somebody else has it: it is
dropped, unwritten results and all.

It is *given back* within one budget of time, in this order:

1. It is no longer read; what was read and not written is forgotten.
2. The writes under way are waited for.
3. Offset and owner are written in one compare-and-set: the next owner goes on without doubt and without waiting.

What the budget does not allow is left: the lease then runs out, as after a crash. Partitions that do not move notice
none of this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, GridscoreError
from gridscore.grid.connection import DESTROYED_SECONDS
from gridscore.grid.watches import wait_for
from gridscore.group.lease_records import LEASES_MAP, NOBODY
from gridscore.group.leases import Leases, Progress
from gridscore.group.members import bits_of, quota, registered
from gridscore.group.offsets import Offsets
from gridscore.group.reader import JournalReader
from gridscore.group.rescan import Losses
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, KeysView, Mapping

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.group.leases import Lease
    from gridscore.group.members import Members
    from gridscore.group.offsets import Write
    from gridscore.group.reader import Arrival, Cursor
    from gridscore.group.subscription import GroupStats, Subscriber, Subscription

_log = logging.getLogger(__name__)

COMMIT_SECONDS = 1.0
# Parts in which partitions are committed, one after the other: all at once would hold events up every second.
_COMMIT_PARTS = 10

EARLY_SECONDS = 0.05  # pause between two early commits
_EARLY = 2  # a partition is committed early when half of its ring is uncommitted: producers stop at three quarters
GIVE_BACK_SECONDS = 4.0
_RELEASE_SECONDS = 1.5  # part of the budget that is kept for the compare-and-set
_TURN_SECONDS = 1.0
_HUNGRY_TURN_SECONDS = 0.2
_HUNGRY_SECONDS = 15.0
_PASS_SECONDS = 1.0
_CHECK_ROUND_SECONDS = 60.0
_MAX_CHECK_SECONDS = 5.0  # held partitions are checked in turn, in rounds of a minute if a process holds few
_RESTART_SECONDS = 60.0
_RETRY_SECONDS = 0.5


class _HasCursor(Protocol):
    """What was read of a partition, and by which cursor."""

    @property
    def cursor(self) -> Cursor: ...


_Read = TypeVar("_Read", bound=_HasCursor)


class Group:
    """Takes, commits and gives back partitions of one map."""

    def __init__(
        self,
        grid: Grid,
        subscription: Subscription,
        subscriber: Subscriber,
        members: Members,
        stats: GroupStats,
        *,
        seconds: float,
    ) -> None:
        self._grid, self.subscription, self._subscriber = grid, subscription, subscriber
        self._name = subscription.group
        self._members, self._stats = members, stats
        self._leases = Leases(
            grid,
            subscription.group,
            members.worker,
            seconds=seconds,
            epochs_by_time=subscription.epochs_by_time,
            sessions=members.sessions,
        )
        self._offsets = Offsets()
        self._reader = JournalReader(grid, subscription.map, self._regressed, self._look_into)
        # What users of the group are offered of these as it is:
        self.until, self.sent, self.answered = self._leases.until, self._offsets.sent, self._offsets.answered
        self.settled, self.bounds, self.wait = self._offsets.settled, self._reader.bounds, self._reader.wait
        self.cursor, self.note_keys, self.insert = self._reader.cursor, self._reader.note_keys, self._reader.insert
        self._losses = Losses(grid, subscription, stats, self._leases, self._offsets, self._reader.fail)
        self._beginning: dict[int, object] = {}  # partitions that will be read, each with the last to ask for it
        self._giving: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._doubt = asyncio.Event()  # all journals may have begun again
        self._destroyed: dict[int, Cursor | None] = {}  # what read each partition when the map was destroyed
        self._early: set[int] = set()
        self._filling = asyncio.Event()
        self.early_events: float = float("inf")
        self._all = (1 << grid.partition_count) - 1
        self._who: set[str] = set()
        self._older: list[str] = []
        self._passed: dict[int, float] = {}
        self._who_since = float("-inf")
        self._leaving = False
        self.first_taken = asyncio.Event()

    @property
    def held(self) -> KeysView[int]:
        """Partitions that this worker holds."""
        return self._leases.held.keys()

    @property
    def writable(self) -> Collection[int]:
        """Partitions that this worker may write for now."""
        now = self._grid.clock()
        return [partition for partition, lease in self._leases.held.items() if now < lease.until]

    @property
    def commits(self) -> int:
        """How many offsets were written."""
        return self._leases.commits

    def record(self, partition: int) -> LeaseRecord:
        """What the lease of a partition says; `NOBODY` if this worker does not hold it."""
        lease = self._leases.held.get(partition)
        return NOBODY if lease is None else lease.record

    def acknowledged_to(self, partition: int) -> int | None:
        """Offset of a partition up to which all is acknowledged; None if it is not read here."""
        progress = self._offsets.acknowledged(partition)
        return None if progress is None else progress.offset

    def set_ring(self, capacity: int) -> None:
        """Commit early what fills the rings, which hold this many entries each."""
        self.early_events = max(1, capacity // _EARLY)

    # ------------------------------------------------------------------ the way of a batch

    def read_at_most(self, events: int) -> None:
        self._reader.page_events = min(self._reader.page_events, events)

    def take(self, most: int) -> list[Arrival]:
        """What has arrived of held partitions; see `JournalReader.take`."""
        held = self._leases.held
        return [arrival for arrival in self._reader.take(most) if arrival.partition in held]

    def ours(self, read: Iterable[_Read]) -> list[_Read]:
        """What may be written of what was read; partitions whose lease has ended are dropped.

        Meanwhile a partition may have been put back, dropped or begun again.
        """
        now = self._grid.clock()
        current = [each for each in read if each.cursor.is_current]
        ended = [each.cursor.partition for each in current if now >= each.cursor.until]
        self._lose(ended)
        return [each for each in current if each.cursor.is_current] if ended else current

    def acknowledge(self, write: Write) -> int:
        """A write has succeeded: move the offset as far as possible; returns how many results are safe now."""
        events = self._offsets.acknowledge(write)
        lease = self._leases.held.get(write.partition)
        if lease is not None and write.next - lease.record.offset >= self.early_events:
            self._early.add(write.partition)
            self._filling.set()
        return events

    async def count_rescan(self, partition: int) -> bool:
        """Write that one more rescan is done, once all that was written for it stands; False if that cannot be."""
        return await self._offsets.stand(partition) and await self._leases.count_rescan(partition)

    def withdraw(self, write: Write) -> None:
        """A write has failed, and will be tried again by the same process; nothing of its partition is under way."""
        self._offsets.rewind(write.partition)

    async def drain(self, most: int, has_room: Callable[[], bool] | None = None) -> None:
        """Return when no more than so many results are unacknowledged, and there is room for what comes."""
        while self._offsets.unacknowledged > most or (has_room is not None and not has_room()):
            await self._offsets.change()

    # ------------------------------------------------------------------ life

    def wake(self) -> None:
        """Look now who lives and who holds what."""
        self._wake.set()

    async def run(self) -> None:
        """Take part until cancelled; call `leave` then."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._balance, self._check, self._commit, self._commit_early):
                group.create_task(_for_ever(loop))

    async def leave(self) -> None:
        """Give everything back."""
        self._leaving = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._grid.is_running:
            await self._leases.claimed()
            self._giving.update(self.held)
            await self._give_back()
        self._reader.close()

    # ------------------------------------------------------------------ taking

    async def _balance(self) -> None:
        while True:
            self._wake.clear()
            hungry = False
            try:
                hungry = await self._turn()
            except (HazelcastError, GridError) as error:
                _log.warning("%s: claiming partitions failed, trying again: %s", self._name, error)
            # A worker with too few partitions looks often, but not for ever: others may have good reasons.
            often = hungry and self._grid.clock() - self._who_since < _HUNGRY_SECONDS
            often = often or any(not self._members.is_fresh(owner) for owner in self._leases.others())
            await wait_for(self._wake, _HUNGRY_TURN_SECONDS if often else _TURN_SECONDS)

    async def _turn(self) -> bool:
        """Look, and take or give back partitions; whether some are still missing."""
        leases, count, now = self._leases, self._grid.partition_count, self._grid.clock()
        members = self._members
        who = members.group(self._name)
        if who != self._who:
            self._who, self._who_since = who, now
        others = members.held(self._name)
        if older := members.older(self._name):
            self._make_room(older)
            return False
        self._older = []
        mine = quota(
            members.worker,
            {name: others[name].bit_count() if name != members.worker else len(leases.held) for name in who},
            count,
        )
        room = mine - len(leases.held) - len(leases.claiming)
        # The leases of living workers need no look.
        known = bits_of(leases.held) | bits_of(leases.claiming)
        for name, held in others.items():
            if members.vouches(name):
                known |= held
        # Partitions that somebody is taking, or has just taken, are not looked at all the time.
        self._passed = {p: at for p, at in self._passed.items() if now - at < _PASS_SECONDS}
        unknown = (
            [p for p in range(count) if not known >> p & 1 and p not in self._passed] if known != self._all else []
        )
        # Each worker begins with different ones, so that several do not go for the same.
        present = sorted(name for name in who if name == members.worker or members.is_fresh(name))
        first = present.index(members.worker)
        unknown.sort(key=lambda partition: (partition - first) % len(present))
        looked = self._worth_a_look(unknown, max(room, -(-len(unknown) // len(who))), others)
        await leases.look(looked, members.is_silent)
        # Those that cannot be read leave their turn to others.
        self._passed |= {p: now for p in looked if not leases.has_seen(p)}
        self._passed |= {p: now for p, owner in leases.seen() if owner != members.worker and members.is_fresh(owner)}
        free, expired = ([p for p in unknown if p in there] for there in (set(leases.free()), set(leases.expired())))
        # The worker that has watched an orphaned partition takes it, even beyond its share: a newcomer with room for it
        # would have to watch it first. It gets its share later, in order.
        expired = expired[: max(room - len(free), -(-len(expired) // len(who)))]
        if claims := [*free[: max(0, room)], *expired]:
            self._spawn(self._take(claims))
            await asyncio.sleep(0)  # until they are under way
        elif (
            room < 0 and not self._giving and not leases.claiming and all(map(members.is_fresh, who - {members.worker}))
        ):
            # The latest go first: they are the least settled.
            self.give_back([p for p in leases.held if p not in self._beginning][room:])
        return len(leases.held) < mine

    def _worth_a_look(self, unknown: list[int], most: int, holdings: Mapping[str, int]) -> list[int]:
        """The partitions to look at: as many as it may take, and one for each session.

        A session, of an owner and a member, must be watched for a whole lease time before its partitions can be taken;
        that should not begin only when the first ones are taken.
        """
        looked, homes = unknown[:most], self._leases.sessions.homes
        if len(looked) < len(unknown) and homes:
            sought = bits_of(unknown)
            silent = [(name, held) for name, held in holdings.items() if held & sought]  # few of many workers

            def session_of(partition: int) -> tuple[int, str]:
                return homes[partition], next((name for name, held in silent if held >> partition & 1), "")

            watched = set(map(session_of, looked))
            for partition in unknown[most:]:
                if (session := session_of(partition)) not in watched:
                    watched.add(session)
                    looked.append(partition)
        return looked

    def _make_room(self, older: list[str]) -> None:
        """Leave everything to processes of an older release, which may misread what we write."""
        if older != self._older:
            _log.warning(
                "%s: workers of an older release score, which cannot share partitions with this one: %s. It takes "
                "partitions once they have ended.",
                self._name,
                ", ".join(older),
                extra={"action": "older_release"},
            )
            self._older = older
        if not self._giving and (ours := [p for p in self._leases.held if p not in self._beginning]):
            self.give_back(ours)

    async def _take(self, partitions: Collection[int]) -> None:
        taken = await self._leases.claim(partitions, self._taken)
        if taken:
            self._members.changed()
            self._stats.taken += len(taken)
            self._stats.rebalances += 1
            self.wake()

    def _taken(self, lease: Lease) -> None:
        if not self._leaving:
            # Both concern an earlier lease.
            self._giving.discard(lease.partition)
            self._offsets.forget(lease.partition)
            self._beginning[lease.partition] = lease
            self._spawn(self._begin(lease))

    async def _begin(self, lease: Lease) -> None:
        """Start to read a partition that was taken. If that fails, drop it, so that it is taken again."""
        partition, offset = lease.partition, None
        try:
            # If a member hangs, the partition must be dropped. A restart may search its whole journal.
            async with asyncio.timeout(_RESTART_SECONDS if self.subscription.begin else self._leases.seconds):
                offset = await self._find_offset(lease)
            if offset is not None:
                offset = await self._subscriber.take_over(lease, offset)
        except Exception as error:  # noqa: BLE001 -- it must not be held for ever and never be read
            offset, what = None, str(error) or type(error).__name__
            _log.warning("%s: partition %d could not be begun: %s", self._name, partition, what, extra=_place(lease))
        if self._beginning.get(partition) is lease:
            del self._beginning[partition]
            if offset is None or not lease.is_held:
                self.drop(partition)
            else:
                self._read(lease, offset)
                self.first_taken.set()

    async def _find_offset(self, lease: Lease) -> int | None:
        """The offset to begin at with a partition that was taken; None if it cannot be begun."""
        partition, record, wanted = lease.partition, lease.record, self.subscription
        oldest, newest = await self._reader.bounds(partition)
        if wanted.begin and not record.has_begun(wanted.begin, wanted.restarts):
            offset = await self._subscriber.offset_at(partition, oldest, newest)
            if not lease.is_held:
                return None
            return offset if await self._leases.reset(partition, offset, run=wanted.restarts) else None
        if not lease.is_held:
            return None
        if record.offset < 0:
            if wanted.start == "oldest" and oldest > 0:
                await self._losses.begin(partition)
            offset = oldest if wanted.start == "oldest" else newest + 1
            # Written before it is relied on: "latest" must not move.
            return offset if await self._leases.place(partition, offset) else None
        if record.offset > newest + 1:
            self._reader.note_begun_again(partition, oldest, record.offset)
            return oldest if await self._begin_again(partition, oldest) else None
        self._settle_doubt(lease, newest)
        return record.offset

    @staticmethod
    def _settle_doubt(lease: Lease, newest: int) -> None:
        """An owner that did not release it may have written results up to the journal's present end."""
        if lease.before and not lease.is_doubted:
            lease.doubt, lease.is_doubted = max(lease.doubt, newest + 1), True

    def _read(self, lease: Lease, offset: int) -> None:
        self._offsets.begin(lease.partition, Progress.of(lease.record)._replace(offset=offset))
        self._reader.start(lease.partition, offset, lease=lease, doubt=lease.doubt)

    # ------------------------------------------------------------------ committing

    async def _commit(self) -> None:
        """Commit each partition once a second, a tenth of them at a time. None waits for those of a slow member.

        All groups of a process do it at the same moments, so an idle process wakes up ten times a second in all.
        """
        # More often with a short lease, or there would be no time to retry a renewal.
        pause = min(COMMIT_SECONDS, self._leases.seconds / 5) / _COMMIT_PARTS
        clock, tick = asyncio.get_running_loop().time, 0
        async with asyncio.TaskGroup() as turns:
            while True:
                tick = max(tick, int(clock() / pause)) + 1
                await asyncio.sleep(tick * pause - clock())
                part = tick % _COMMIT_PARTS
                self._leases.sessions.renew()
                if part == 0 or self._offsets.moved or not self._leases.settled:
                    turns.create_task(self._commit_part(part))

    async def _commit_part(self, part: int) -> None:
        lost = await self._commit_these(p for p in self.held if p % _COMMIT_PARTS == part)
        self._stats.committed_at = int(time.time() * 1000)
        # `unread` is a safety net: whatever went wrong, a held partition is read, or dropped.
        unread = self.held - self._reader.partitions - self._beginning.keys() - self._giving
        self._lose({*lost, *self._leases.ended(self._grid.clock()), *unread})
        self._stats.partitions = len(self.held)

    async def _commit_early(self) -> None:
        """Commit partitions that fill their rings, all together: a key with most of the events has one partition."""
        while True:
            await self._filling.wait()
            self._filling.clear()
            mine, self._early = self._early & self.held, set()
            self._lose(await self._commit_these(mine))
            await asyncio.sleep(EARLY_SECONDS)

    async def _commit_these(self, partitions: Iterable[int]) -> list[int]:
        wanted, moved = set(partitions), self._offsets.moved
        progress = self._offsets.committable(wanted & moved)
        for partition in wanted & moved:
            if progress[partition] == Progress.of(self._leases.held[partition].record):
                moved.discard(partition)
        return await self._leases.commit(progress, wanted)

    # ------------------------------------------------------------------ giving back

    def give_back(self, partitions: Collection[int]) -> None:
        """Begin to give back partitions, while no others are being given back."""
        self._giving.update(partitions)
        self._spawn(self._give_back())

    async def _give_back(self) -> None:
        """Commit and release what is to be given back, within the budget."""
        for partition in self._giving:
            self._reader.stop(partition)
            self._beginning.pop(partition, None)
        try:
            await self._release()
        except asyncio.CancelledError:
            self._giving.clear()  # we leave, and give them back with all the others
            raise
        finally:
            for partition in self._giving:
                self.drop(partition)
            self._giving.clear()
            self._members.changed()

    async def _release(self) -> None:
        deadline = asyncio.get_running_loop().time() + GIVE_BACK_SECONDS
        try:
            async with asyncio.timeout_at(deadline - _RELEASE_SECONDS):
                await self._offsets.settle(self._giving)
        except TimeoutError:
            _log.warning("%s: some writes were not acknowledged before the partitions were given back", self._name)
        progress: dict[int, Progress | None] = {}
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*map(self._doubt_unbegun, self._giving))
                for partition in self._giving:
                    lease = self._leases.held.get(partition)
                    if lease is not None and not lease.unsettled and self._offsets.settled(partition):
                        # None while it is just being begun; its record may have an offset by then.
                        progress[partition] = self._offsets.acknowledged(partition)
                await self._leases.release(progress)
                self._stats.given += len(progress)
                self._stats.rebalances += bool(progress)
        except (HazelcastError, TimeoutError) as error:
            _log.warning(
                "%s: %d partitions could not be given back, their leases run out in %.0f s: %s",
                self._name,
                len(progress),
                self._leases.seconds,
                str(error) or "the cluster does not answer",
            )

    async def _doubt_unbegun(self, partition: int) -> None:
        """Find out what is in doubt of a partition that is given back before it was begun."""
        lease = self._leases.held.get(partition)
        if lease is not None and lease.before and not lease.is_doubted:
            try:
                self._settle_doubt(lease, (await self._reader.bounds(partition))[1])
            except GridError:
                lease.unsettled = True  # it is not known, so it must run out

    def drop(self, partition: int) -> None:
        """Stop to read, write and commit a partition, without telling the grid."""
        self._leases.drop(partition)
        self._reader.stop(partition)
        self._offsets.forget(partition)
        self._beginning.pop(partition, None)
        self._subscriber.dropped(partition)

    def _lose(self, partitions: Collection[int]) -> None:
        if partitions:
            _log.warning(
                "%s: the leases of %s have run out or have another owner; free ones are claimed again: %s",
                self._name,
                count_text(len(partitions), "partition"),
                _listed(partitions),
                extra={"action": "lease_lost"},
            )
            self._stats.rebalances += 1
        for partition in partitions:
            self.drop(partition)

    # ------------------------------------------------------------------ trouble

    def put_back(self, partition: int) -> None:
        """Read a partition again from what is acknowledged, because the fate of a write is not known."""
        lease = self._leases.held.get(partition)
        if lease is None or self._offsets.acknowledged(partition) is None:
            return
        offset, written = self._offsets.rewind(partition)
        lease.doubt = max(lease.doubt, written)
        lease.unsettled = True
        self._reader.stop(partition)
        if partition in self._giving:
            return
        token = self._beginning[partition] = object()

        async def read_again() -> None:
            settled = False
            try:
                settled = await self._settle(partition, token)
            finally:
                if self._beginning.get(partition) is token:
                    del self._beginning[partition]
                    if not lease.is_held:
                        self.drop(partition)
                    elif settled:
                        lease.unsettled = False
                        self._reader.start(partition, offset, lease=lease, doubt=lease.doubt)

        self._spawn(read_again())

    async def _settle(self, partition: int, token: object) -> bool:
        """Return when no earlier write can arrive any more; False if the partition is no longer to be read."""
        while self._beginning.get(partition) is token:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                return await self._leases.settle(partition)
            except HazelcastError as error:
                _log.debug("%s: partition %d does not settle yet: %s", self._name, partition, error)
        return False

    async def _look_into(self, cursor: Cursor, page: Page, gap: int) -> Page:
        """Look into a page behind a gap, or in doubt: act on the loss, skip what a previous owner has done."""
        partition = cursor.partition
        if gap:
            await self._losses.gap(partition, cursor.offset, page.first)
        if page.first < cursor.doubt:
            page = await self._subscriber.look_over(partition, page, self.record(partition).origin)
        return page

    def _regressed(self, partition: int, oldest: int) -> None:
        """The journal of a partition has begun again: begin again too, if the lease allows."""
        self._doubt.set()
        lease = self._leases.held.get(partition)
        if lease is not None:
            # What is under way belongs to the old journal, and must have arrived before anything of the new one.
            lease.unsettled = lease.unsettled or not self._offsets.settled(partition)
        token = self._beginning[partition] = object()

        async def restart() -> None:
            offset = None
            try:
                if lease is not None and (not lease.unsettled or await self._settle(partition, token)):
                    lease.unsettled = False
                    offset = await self._find_offset_again(lease, oldest)
            except (HazelcastError, GridError) as error:
                text = "%s: partition %d could not be begun again: %s"
                _log.warning(text, self._name, partition, error, extra={"partition": partition})
            finally:
                if self._beginning.get(partition) is token:
                    del self._beginning[partition]
                    if offset is not None and lease is not None:
                        self._read(lease, offset)
                    else:
                        self._lose([partition])

        self._spawn(restart())

    async def _find_offset_again(self, lease: Lease, oldest: int) -> int | None:
        """The offset to go on at in a journal that has changed; None if the partition is no longer ours."""
        partition = lease.partition
        last = await self._reader.last_standing(partition)
        if not lease.is_held:
            return None
        if last is None:
            self._offsets.forget(partition)
            return oldest if await self._begin_again(partition, oldest) else None
        # Reads do not wait for backups: when a member dies, we may have read what its backup lacks, and later writes
        # get the same sequences. Hence another epoch.
        try:
            async with asyncio.timeout(self._leases.seconds):
                await self._offsets.settle([partition])
        except TimeoutError:
            pass  # it is written once more
        if not lease.is_held:
            return None
        acknowledged = self.acknowledged_to(partition)
        self._offsets.forget(partition)
        offset = last + 1 if acknowledged is None else min(last + 1, acknowledged)
        _log.warning(
            "%s: the journal of partition %d has lost what came after %d: going on at %d",
            self._name,
            partition,
            last,
            offset,
            extra={"action": "journal_behind", **_place(lease)},
        )
        return offset if await self._leases.reset(partition, offset) else None

    async def _begin_again(self, partition: int, oldest: int) -> bool:
        await self._losses.regression(partition)
        if not await self._leases.reset(partition, oldest, regressed=True):
            return False
        self._losses.after_regression(partition)
        return True

    async def _check(self) -> None:
        """Compare the journals with our offsets, one partition after the other: a parked read would not notice.

        All at once after a member has joined or left, and after one journal has begun again: it may have happened to
        all, and new events soon hide it.
        """
        grid, stops, waiting = self._grid, [self._grid.on_member_change(self._doubt.set)], deque[int]()
        try:
            for name, call in ((self.subscription.map, self._map_destroyed), (LEASES_MAP, self._doubt_soon)):
                stops.append(await registered(grid, partial(grid.on_destroyed, name, call)))
            while True:
                pause = _CHECK_ROUND_SECONDS / max(len(self.held), 1)
                if not await wait_for(self._doubt, self._members.turn(min(pause, _MAX_CHECK_SECONDS))):
                    waiting = waiting or deque(self.held)
                    if waiting:
                        await self._check_one(waiting.popleft())
                    continue
                self._doubt.clear()
                destroyed, self._destroyed = self._destroyed, {}
                await asyncio.gather(*(self._check_one(each, destroyed.get(each)) for each in list(self.held)))
        finally:
            for stop in stops:
                stop()

    def _map_destroyed(self) -> None:
        cursors = {partition: self._reader.cursor(partition) for partition in self.held}

        def doubt() -> None:
            # Not before: a look meanwhile, for one partition that has begun again, would find the others' old journals.
            self._destroyed |= cursors
            self._doubt.set()

        asyncio.get_running_loop().call_later(DESTROYED_SECONDS, doubt)

    def _doubt_soon(self) -> None:
        asyncio.get_running_loop().call_later(DESTROYED_SECONDS, self._doubt.set)

    async def _check_one(self, partition: int, destroyed: Cursor | None = None) -> None:
        try:
            await self._reader.check(partition, destroyed)
            # The record is written only when its offset moves: somebody may have changed it meanwhile.
            if not await self._leases.check(partition):
                self._lose([partition])
        except (GridscoreError, HazelcastError) as error:
            _log.debug("%s: checking partition %d failed: %s", self._name, partition, error)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop; fail if something within it is cancelled though nobody has cancelled the loop."""
    try:
        await loop()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise RuntimeError("a part of the worker group ended unasked") from None
        raise


def _place(lease: Lease) -> dict[str, int]:
    """What programs that read the log want to know of a lease."""
    return {"partition": lease.partition, "epoch": lease.record.epoch}


def _listed(partitions: Collection[int]) -> str:
    """A few of the partitions, for the log."""
    some = ", ".join(map(str, sorted(partitions)[:10]))
    return some if len(partitions) <= 10 else f"{some}, …"
