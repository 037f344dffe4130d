"""Sessions: a process renews one for each member, however many of its leases lie there.

A lease names the session of its owner, and holds as long as that is renewed. A session is a record in the control map
`gridscore.sessions`, in a partition of its member: a member that does not answer prevents the writing of results and
the renewal of leases alike, and leases of other members go on. Only its owner renews it, by compare-and-set. Somebody
who has watched it unchanged for the whole lease time *closes* it, by compare-and-set too: so either the owner was
quicker, or it finds out at its next renewal. No session is opened twice, and the owner does not renew one that it let
grow older than the lease.

A member may die with what it alone has. So a renewal counts for the owner, and a close for the heir, only when it was
acknowledged, not when it was merely read back.

When leases are dropped without telling the grid, their session is *retired*: it is renewed only until its other leases
have moved to another one. It then runs out, and the dropped partitions can be taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.grid import Records
from gridscore.group.fence import Fence
from gridscore.group.lease_records import NOBODY, LeaseRecord, LeaseWriter, Written, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

SESSIONS_MAP = "gridscore.sessions"

_TICK_SECONDS = 0.5
# Pause between two looks at another process's session, and in the last second before it runs out.
_LOOK_SECONDS, _LAST_LOOK_SECONDS = 1.0, 0.2

_SWEEP_SECONDS = 60.0

_TOGETHER, _TURNS = 4, 4  # a process looks at, or takes, sixteen leases of a member at once: four at a time, four times


@dataclass(slots=True, eq=False)
class Session:
    """A session of this process."""

    name: str  # as leases have it
    partition: int  # of its record
    writer: LeaseWriter
    record: LeaseRecord
    text: bytes
    renewed_at: float  # when the last acknowledged renewal began; minus infinity if it is over
    send_seconds: float  # for how long after that its owner may send
    leases: int = 0  # how many depend on it
    retired: bool = False  # whether it takes no more leases
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def until(self) -> float:
        """Until when, of the grid's clock, its owner may send."""
        return self.renewed_at + self.send_seconds


@dataclass(slots=True, eq=False)
class _Sight:
    """Another process's session, as it was last seen."""

    partition: int
    writer: LeaseWriter
    record: LeaseRecord = NOBODY
    text: bytes | None = None
    since: float = float("inf")  # when it was first seen like this
    looked: float = float("-inf")  # when it was last read
    asked: float = float("-inf")  # when it was last asked for
    lease: float = 0.0
    closed: bytes | None = None  # its text if we closed it, and that was acknowledged
    closing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """The sessions of this process, and those of others whose leases it may take.

    `homes`: by partition, the one that has the record of its session: of the same member; `changes`: counts what may
    leave a lease on the wrong session: partitions that moved, sessions that were retired.
    """

    def __init__(self, grid: Grid, worker: str, seconds: float) -> None:
        self._grid, self.worker, self.seconds = grid, worker, seconds
        self.fence = Fence.of(seconds)
        self._own: dict[str, Session] = {}
        self._current: dict[int, Session] = {}  # by partition
        self.homes: list[int] = []
        self.changes = 0
        self._turns: dict[tuple[int, str], asyncio.Semaphore] = {}
        self._opening: dict[int, asyncio.Task[Session]] = {}
        self._sights: dict[str, _Sight] = {}
        self._swept: dict[str, tuple[str, float]] = {}
        self._renewed = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ one's own

    def _find_homes(self) -> None:
        """Choose a partition of each member for the sessions of all its partitions."""
        owner_of, first = self._grid.client.partition_service.get_partition_owner, dict[object, int]()
        for home in set(self.homes):
            first.setdefault(owner_of(home), home)  # unchanged where possible
        count = self._grid.partition_count
        homes = [p if (owner := owner_of(p)) is None else first.setdefault(owner, p) for p in range(count)]
        if homes != self.homes:
            self.homes = homes
            self.changes += 1

    def together(self, partitions: Iterable[int]) -> list[list[int]]:
        """The partitions of each member, in parts that are looked at, or taken, in one turn."""
        if not self.homes:
            self._find_homes()
        by_member: dict[int, list[int]] = {}
        for partition in partitions:
            by_member.setdefault(self.homes[partition], []).append(partition)
        return [each[at : at + _TOGETHER] for each in by_member.values() for at in range(0, len(each), _TOGETHER)]

    def turn(self, partitions: Sequence[int], what: str) -> asyncio.Semaphore:
        """A semaphore for looking at, or taking, leases that are not held, `together`.

        More at a time would only wait at the member until their answers are too late, and be asked for again.
        """
        return self._turns.setdefault((self.homes[partitions[0]], what), asyncio.Semaphore(_TURNS))

    async def open(self, partition: int) -> Session:
        """The session for a lease of that partition, just renewed or opened."""
        if (session := self.ready(partition)) is not None:
            return session
        return await asyncio.shield(self._opening[self.homes[partition]])

    def ready(self, partition: int) -> Session | None:
        """The session for a lease of that partition; None while it is being renewed or opened, which this begins.

        Its member may be slow, and nobody need wait for it.
        """
        if not self.homes:
            self._find_homes()
        home = self.homes[partition]
        session = self._current.get(home)
        if session is not None and not self._is_due(session):
            return session
        if home not in self._opening:
            opening = self._opening[home] = asyncio.get_running_loop().create_task(self._renew_or_open(home))
            opening.add_done_callback(partial(self._opened, home))
        return None

    def _opened(self, home: int, opening: asyncio.Task[Session]) -> None:
        del self._opening[home]
        if not opening.cancelled() and (error := opening.exception()) is not None:
            _log.debug("a session could not be opened: %s", error)  # leases that need it end in time

    async def _renew_or_open(self, home: int) -> Session:
        if (session := self._current.get(home)) is not None:
            await self._renew(session)
            if self._grid.clock() < session.until and not session.retired:
                return session
            self.retire(session)
        return await self._open(home)

    async def _open(self, home: int) -> Session:
        nonce = uuid.uuid4().hex[:16]
        writer = LeaseWriter(self._grid, nonce, self.seconds, SESSIONS_MAP)
        written = await writer.write(home, None, self._next(NOBODY))
        if written is None or not written.is_acknowledged:
            raise HazelcastError("a session could not be opened")
        session = Session(f"{nonce}/{home}", home, writer, *written, self.fence.send)
        self._own[session.name] = self._current[home] = session
        return session

    def retire(self, session: Session) -> None:
        """Let a session take no more leases."""
        session.retired = True
        self.changes += 1
        if self._current.get(session.partition) is session:
            del self._current[session.partition]
        if not session.leases:
            self._own.pop(session.name, None)

    def detach(self, session: Session, *, released: bool) -> None:
        """A lease has left a session; unless the grid knows that, the session must run out."""
        session.leases -= 1
        if session.retired or not released:
            self.retire(session)

    def let_run_out(self, name: str) -> None:
        """Retire a session of this process that a lease names though nobody holds it."""
        if (session := self._own.get(name)) is not None and not session.retired:
            self.retire(session)

    def renew(self) -> None:
        """Begin to renew sessions that have used up a third of their time; none waits for those of a slow member."""
        now = self._grid.clock()
        if now - self._renewed < 0.9 * min(_TICK_SECONDS, self.seconds / 10):  # or a caller's next tick would be late
            return
        self._renewed = now
        self._find_homes()
        homes = set(self.homes)
        for session in list(self._own.values()):
            if not session.leases and session.partition not in homes:
                self.retire(session)  # its member has left, and its leases have moved to others
            elif self._is_due(session) and not session.changing.locked():
                task = asyncio.get_running_loop().create_task(self._renew(session))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def all_stand(self, now: float) -> bool:
        """Whether this process may write at `now`, of the grid's clock, for all leases of all its sessions."""
        return all(now < session.until for session in self._own.values())

    def _is_due(self, session: Session) -> bool:
        return self._grid.clock() - session.renewed_at > self.seconds / 3

    async def _renew(self, session: Session) -> None:
        async with session.changing:
            if not self._is_due(session):
                return
            if self._grid.clock() - session.renewed_at >= self.seconds:
                # Somebody may have closed it, and that may be lost: we would then renew it under the heir.
                self._end_own(session)
                return
            outcome: list[Written | None] = []
            try:
                outcome = [await session.writer.write(session.partition, session.text, self._next(session.record))]
            except HazelcastError as error:
                _log.debug("a session could not be renewed: %s", error)  # if this lasts, its leases end
            if outcome and outcome[0] is not None:
                session.record, session.text, began = outcome[0]
                session.renewed_at = max(session.renewed_at, began)
            elif outcome:
                await self._look_again(session)

    async def _look_again(self, session: Session) -> None:
        """The record was not what we wrote last: a renewal of unknown fate came late, or somebody has closed it."""
        try:
            text = (await session.writer.read([session.partition]))[session.partition]
            record = NOBODY if text is None else decode(text)
        except (HazelcastError, ValueError, RecursionError) as error:
            _log.debug("a session could not be looked at: %s", error)
            return
        if text is not None and record.owner:
            session.record, session.text = record, text  # its next renewal begins from there
        else:
            self._end_own(session)

    def _end_own(self, session: Session) -> None:
        session.renewed_at = float("-inf")
        self.retire(session)

    def _next(self, record: LeaseRecord) -> LeaseRecord:
        deadline, lease = int((time.time() + self.seconds) * 1000), int(self.seconds * 1000)
        return replace(record, owner=self.worker, deadline=deadline, renewals=record.renewals + 1, lease=lease)

    async def close(self) -> None:
        """Remove the records; leases that still depend on them run out. If this fails, others sweep them."""
        for task in self._tasks:
            task.cancel()
        own, self._own, self._current = list(self._own.values()), {}, {}
        if own and self._grid.is_running:
            removals = [asyncio.ensure_future(each.writer.remove(each.partition, each.text)) for each in own]
            _, late = await asyncio.wait(removals, timeout=self.seconds / 5)
            for removal in late:
                removal.cancel()
            await asyncio.gather(*removals, return_exceptions=True)

    # ------------------------------------------------------------------ others'

    async def look(self, leases: Iterable[LeaseRecord]) -> None:
        """Read the sessions of others' leases, each as often as is needed to see it run out."""
        now = self._grid.clock()
        due = []
        for lease in leases:
            if lease.session in self._own:
                continue
            sight = self._sights.get(lease.session)
            if sight is None:
                sight = self._sights[lease.session] = self._sight_of(lease.session)
            # The longest that its owner has named; its record may be gone.
            sight.lease = max(sight.lease, sight.record.lease / 1000, lease.lease / 1000 or self.seconds)
            is_last = now - sight.since >= sight.lease - _LOOK_SECONDS
            if now - sight.asked >= min(_LAST_LOOK_SECONDS if is_last else _LOOK_SECONDS, self.seconds / 10) * 0.99:
                sight.asked = now
                due.append(sight)
        await asyncio.gather(*map(self._look, due))

    def _sight_of(self, name: str) -> _Sight:
        nonce, _, home = name.rpartition("/")
        is_name = home.isascii() and home.isdecimal() and len(home) < 8 and int(home) < self._grid.partition_count
        partition = int(home) if is_name else 0  # an invalid name is that of no session, and runs out like one
        return _Sight(partition, LeaseWriter(self._grid, nonce if is_name else name, self.seconds, SESSIONS_MAP))

    async def _look(self, sight: _Sight) -> None:
        try:
            text = (await sight.writer.read([sight.partition]))[sight.partition]
            record = NOBODY if text is None else decode(text)
        except (HazelcastError, ValueError, RecursionError) as error:
            _log.debug("a session could not be looked at: %s", error)  # `repair` lists a bad record
            return
        now = self._grid.clock()
        # While nobody looked, or could look, the owner may have been unable to renew it.
        if text != sight.text or now - sight.looked > self.seconds / 2:
            sight.since = now
        sight.record, sight.text, sight.looked = record, text, now

    def is_over(self, name: str) -> bool:
        """Whether another process's session is closed, or has run out while it was watched."""
        sight = self._sights.get(name)
        if sight is None or name in self._own:
            return False
        closed = sight.text is not None and not sight.record.owner
        unbroken = self._grid.clock() - sight.looked < sight.lease / 2
        return closed or (unbroken and sight.looked - sight.since >= sight.lease)

    async def end(self, name: str) -> bool:
        """Close a session that has run out; False if its owner was quicker."""
        sight = self._sights[name]
        async with sight.closing:
            if sight.text is not None and sight.text == sight.closed:
                return True
            if not self.is_over(name):
                return False
            closed = sight.record
            if sight.text is None or closed.owner:
                closed = replace(closed, owner="", renewals=closed.renewals + 1, lease=int(sight.lease * 1000))
            # A session that somebody else has closed is written unchanged, so that many heirs do not fail each other.
            written = await sight.writer.write(sight.partition, sight.text, closed)
            if written is None:
                sight.since = self._grid.clock()
                return False
            sight.record, sight.text, _ = written
            sight.closed = sight.text if written.is_acknowledged else None
            return written.is_acknowledged

    def forget(self) -> None:
        """Forget the sessions of others that were not looked at for a minute."""
        now = self._grid.clock()
        self._sights = {n: each for n, each in self._sights.items() if now - each.asked < _SWEEP_SECONDS}

    async def sweep(self) -> None:
        """Remove sessions that nobody has renewed for a minute; leases that name them run out all the same."""
        found, now = await Records(self._grid, SESSIONS_MAP).all(), self._grid.clock()
        before, self._swept = self._swept, {}
        for name, record in found.items():
            raw, since = before.get(name, ("", now))
            self._swept[name] = record.raw, since if raw == record.raw else now
            lease = record.value.get("lease")
            if now - self._swept[name][1] > _SWEEP_SECONDS + 2 * (lease if isinstance(lease, int) else 0) / 1000:
                sight = self._sight_of(name)
                await sight.writer.remove(sight.partition, record.raw.encode())
