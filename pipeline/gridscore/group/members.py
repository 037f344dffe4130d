"""The living workers of a cluster, as this process observes them: those whose heartbeats keep changing, and itself.

A heartbeat is a few bytes in `gridscore.heartbeats`, which every process reads all the time. It has the version of what
its process *holds*: its groups, and its partitions of each, in `gridscore.holdings`, which others read when the version
changes. A third map, which no process reads, is for people.

Others are judged as of the last look: while nobody can look, because a member does not answer, nobody falls silent.
Clocks are not compared. A worker that is taken for dead by mistake loses only its partitions, and those only after
their leases have run out.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import time
import uuid
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError, OperationTimeoutError

from gridscore.errors import BadRecordError, GridscoreError
from gridscore.grid.records import Count, Record, Records, record_text
from gridscore.grid.watches import wait_for
from gridscore.group.leases import LEASE_SECONDS
from gridscore.group.sessions import Sessions
from gridscore.health_file import touch_health_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

WORKERS_MAP = "gridscore.workers"
HEARTBEATS_MAP = "gridscore.heartbeats"
HOLDINGS_MAP = "gridscore.holdings"

FORMAT = 1
"""Format of what the processes of a group write for each other; increased by a release that older ones would misread.

Where two formats meet in a group, the newer processes give back what they hold, and wait until the older have ended.
"""

SUSPECT_SECONDS = 1.6  # a worker whose heartbeat has not changed for this long is suspected: its leases are watched
GONE_SECONDS = 4.0
"""A worker whose heartbeat has not changed for this long is not counted as living, and has no share in the group.

It may miss three beats. Shorter than a lease is by default, so that the others have divided its partitions among
themselves when they can be taken.
"""

PUBLISH_SECONDS = 1.0
LOOK_SECONDS = 0.5
_LOOK_PAUSE_SECONDS = 0.1
_TURN_SECONDS = 0.6
_RETRY_SECONDS = 0.5
_MOST_BITS = 1 << 20  # more partitions than any cluster has
FORGET_SECONDS = 60.0  # after this time, others remove the records of a killed process


def new_identity() -> str:
    """A unique name for a process in its groups: host, process, and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def packed(partitions: Iterable[int]) -> str:
    """Partitions as a record holds them: compressed bits."""
    bits = bits_of(partitions)
    return base64.b64encode(zlib.compress(bits.to_bytes(-(-bits.bit_length() // 8), "little"))).decode()


def unpacked(text: str) -> int:
    """Partitions of a record, a bit for each. Raises ValueError if it is not valid."""
    try:
        found = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _MOST_BITS // 8)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    return int.from_bytes(found, "little")


def bits_of(partitions: Iterable[int]) -> int:
    bits = 0
    for partition in partitions:
        bits |= 1 << partition
    return bits


class Holdings(msgspec.Struct, frozen=True):
    """What a process holds."""

    version: Count  # counts the changes
    groups: dict[str, str]  # partitions of each group that it takes part in, see `packed`


class Heartbeat(msgspec.Struct, frozen=True):
    """Shows that a process lives."""

    beat: Count
    holds: Count  # version of its `Holdings`
    format: Count = 0  # see `FORMAT`


@dataclass(slots=True)
class _Sight:
    raw: str
    since: float
    holds: int
    format: int
    version: int = -1
    held: dict[str, int] = field(default_factory=dict)


class Members:
    """Who lives, and holds what.

    `worker`: identity of this worker, which counts as living; `map_name`: of the records for people.
    """

    format = FORMAT

    def __init__(self, grid: Grid, worker: str, map_name: str = WORKERS_MAP, *, seconds: float = LEASE_SECONDS) -> None:
        self._grid, self.map_name = grid, map_name
        self._heartbeats = Records(grid, HEARTBEATS_MAP)
        self._holdings = Records(grid, HOLDINGS_MAP)
        self._sights: dict[str, _Sight] = {}
        self._turn_at = float("-inf")
        self._reported: dict[str, tuple[int, bool, bool, dict[str, int]]] = {}
        self._looked = float("-inf")
        self._stops: list[Callable[[], Any]] = []
        self.worker = worker
        self.sessions = Sessions(grid, worker, seconds)
        self.changed: Callable[[], None] = lambda: None

    async def look(self) -> None:
        """Read the heartbeats, and the holdings that have changed."""
        try:
            async with asyncio.timeout(GONE_SECONDS):
                await self._look()
        except TimeoutError:
            raise OperationTimeoutError("a member does not answer") from None

    async def _look(self) -> None:
        heartbeats = await self._heartbeats.read(lambda record: (msgspec.convert(record.value, Heartbeat), record.raw))
        now = self._grid.clock()
        # After a while without a look, nothing is known of workers that could not write either.
        blind = now - self._looked > SUSPECT_SECONDS
        self._looked = now
        sights = {}
        for name, (heartbeat, raw) in heartbeats.items():
            sight = sights[name] = self._sights.get(name) or _Sight(raw, now, heartbeat.holds, heartbeat.format)
            if sight.raw != raw or blind:
                sight.raw, sight.since, sight.holds = raw, now, heartbeat.holds
        self._sights = sights
        stale = [name for name, sight in sights.items() if sight.holds > sight.version and name != self.worker]
        await asyncio.gather(*map(self._look_at_holdings, stale))

    async def _look_at_holdings(self, name: str) -> None:
        try:
            record = await self._holdings.get(name)
            found = msgspec.convert(record.value, Holdings) if record is not None else None
            held = {group: unpacked(text) for group, text in found.groups.items()} if found is not None else {}
        except (BadRecordError, ValueError) as error:
            _log.debug("what %s holds is not known: %s", name, error)
            return
        sight = self._sights.get(name)
        if sight is not None and found is not None:
            sight.version, sight.held = found.version, held

    def group(self, job: str) -> set[str]:
        """Living workers of our format in a job's group, always with this worker."""
        return {name for name, number in self._formats(job).items() if number == self.format} | {self.worker}

    def rank(self, job: str) -> int:
        """Which of the group this worker is, by name: for what one of them does, and the next one if that is gone."""
        return sorted(self.group(job)).index(self.worker)

    def older(self, job: str) -> list[str]:
        """Living workers of an older format in a job's group: it is theirs as long as there are any."""
        return sorted(name for name, number in self._formats(job).items() if number < self.format)

    def _formats(self, job: str) -> dict[str, int]:
        return {
            name: sight.format
            for name, sight in self._sights.items()
            if job in sight.held and self._silence(sight) < GONE_SECONDS
        }

    def held(self, job: str) -> dict[str, int]:
        """Partitions of a job that each other worker holds, as bits."""
        return {n: sight.held[job] for n, sight in self._sights.items() if job in sight.held and n != self.worker}

    def is_fresh(self, worker: str) -> bool:
        """Whether a worker was heard of just now, so that its leases need no watching."""
        sight = self._sights.get(worker)
        return sight is not None and self._silence(sight) < SUSPECT_SECONDS

    def _silence(self, sight: _Sight) -> float:
        return self._looked - sight.since

    def vouches(self, worker: str) -> bool:
        """Whether a worker was heard of just now, and we know its present partitions."""
        return self.is_fresh(worker) and (sight := self._sights[worker]).version >= sight.holds

    def is_silent(self, worker: str) -> bool:
        """Whether a worker has not been heard of for a while, though it has not left."""
        return worker in self._sights and not self.is_fresh(worker)

    def changes(self) -> set[str]:
        """Groups in which somebody has joined, left, fallen silent, or taken or given something since the last call."""
        before, self._reported = self._reported, {}
        for name, sight in self._sights.items():
            silent = self._silence(sight)
            self._reported[name] = sight.version, silent < SUSPECT_SECONDS, silent < GONE_SECONDS, sight.held
        changed = {
            name for name in before.keys() | self._reported.keys() if before.get(name) != self._reported.get(name)
        }
        return {
            group for name in changed for each in (before, self._reported) if name in each for group in each[name][3]
        }

    def turn(self, pause: float) -> float:
        """Seconds until the next routine check may be made: all groups share a few a second."""
        now = self._grid.clock()
        self._turn_at = max(now + pause, self._turn_at + _TURN_SECONDS)
        return self._turn_at - now

    async def say(self, beat: int, version: int, groups: Mapping[str, Iterable[int]] | None) -> None:
        """Write that this process lives, and what it holds, if that has changed."""
        if groups is not None:
            held = {name: packed(partitions) for name, partitions in groups.items()}
            await self._holdings.put(self.worker, msgspec.to_builtins(Holdings(version, held)))
        await self._heartbeats.put(self.worker, msgspec.to_builtins(Heartbeat(beat, version, self.format)))

    async def leave(self) -> None:
        """Remove our records, so that the others make room for what we are about to give back."""
        await self._heartbeats.delete(self.worker)
        await self._forget(self.worker)
        await self.close()

    async def _forget(self, name: str) -> None:
        await self._holdings.delete(name)
        await (await self._grid.map(self.map_name)).delete(name)

    async def forget(self, seconds: float) -> None:
        """Remove the records that have not changed for this long while we watched."""
        for name, sight in list(self._sights.items()):
            if name != self.worker and self._silence(sight) > seconds:
                await self._heartbeats.remove(Record(name, {}, sight.raw))
                await self._forget(name)
        self.sessions.forget()
        if self.worker == min(self._sights, default=""):
            await self.sessions.sweep()  # one of all is enough

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call back when a worker has joined or left, or holds something else; `look` then tells which."""
        if not self._stops:
            self._stops.append(await self._heartbeats.watch(changed, updates=False))
        if len(self._stops) == 1:
            self._stops.append(await self._holdings.watch(changed))

    async def close(self) -> None:
        while self._stops:
            await self._stops.pop()()


class Part(Protocol):
    """This process's part in a group; see `Group`."""

    @property
    def held(self) -> Collection[int]:
        """Partitions."""

    def wake(self) -> None:
        """The members of the group have changed."""


class Membership:
    """A process's membership in its groups: writes once a second that it lives, and sees who else does.

    `value`: returns what else to write: the names of its `groups`, and whatever is for people; `groups`: returns the
    groups to wake when their members have changed, by name.
    """

    def __init__(
        self,
        grid: Grid,
        members: Members,
        value: Callable[[], dict[str, Any]],
        groups: Callable[[], Mapping[str, Part]],
    ) -> None:
        self._grid, self._members, self._value = grid, members, value
        self._groups = groups
        self._now = asyncio.Event()
        self._others = asyncio.Event()
        self._began = time.time()
        self._swept_at = 0
        self._beat = self._version = 0
        self._held: dict[str, frozenset[int]] | None = None
        self._said_at = float("-inf")
        members.changed = self.soon

    def soon(self) -> None:
        """Write at once that we live, and what we hold."""
        self._now.set()

    async def watch(self) -> None:
        """Look at once whenever a member has joined or left, or holds something else."""
        await registered(self._grid, lambda: self._members.watch(self._others.set))

    async def run(self) -> None:
        """Write that we live, and see who else does, until cancelled, whatever else takes time."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._publish, self._now, PUBLISH_SECONDS))
            tasks.create_task(self._repeat(self._look, self._others, LOOK_SECONDS))

    async def _repeat(self, work: Callable[[], Awaitable[None]], now: asyncio.Event, seconds: float) -> None:
        while True:
            now.clear()
            try:
                await work()
            except (HazelcastError, GridscoreError) as error:
                _log.warning("The other processes could not be seen: %s", error, extra={"action": "retry"})
            if await wait_for(now, seconds):
                await asyncio.sleep(_LOOK_PAUSE_SECONDS)  # changes come in bursts

    async def _look(self) -> None:
        try:
            await self._members.look()
        finally:
            changed = self._members.changes()
            for name, group in self._groups().items():
                if name in changed:
                    group.wake()

    async def _publish(self) -> None:
        value = self._value()
        groups = self._groups()
        held = {name: frozenset(groups[name].held) for name in value["groups"] if name in groups}
        changed = held != self._held
        self._version += changed
        self._beat += 1
        await self._members.say(self._beat, self._version, held if changed else None)
        touch_health_file()
        self._held = held
        now = self._grid.clock()
        if changed or now - self._said_at >= PUBLISH_SECONDS * 0.9:
            self._said_at = now
            await self._say_to_people(value)

    async def _say_to_people(self, value: dict[str, Any]) -> None:
        now = int(time.time() * 1000)
        value = {
            "id": self._members.worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began_at": int(self._began * 1000),
            "seen_at": now,
            **value,
        }
        proxy = await self._grid.map(self._members.map_name)
        await proxy.set(self._members.worker, HazelcastJsonValue(record_text(value)))
        if now - self._swept_at > FORGET_SECONDS * 1000:
            self._swept_at = now
            await self._members.forget(FORGET_SECONDS)


async def registered(grid: Grid, register: Callable[[], Awaitable[_T]]) -> _T:
    """Register a listener, even if the connection breaks meanwhile."""
    while True:
        try:
            return await register()
        except HazelcastError as error:
            if not grid.is_running:
                raise
            _log.warning("Watching the cluster failed, trying again: %s", error, extra={"action": "retry"})
            await asyncio.sleep(_RETRY_SECONDS)


def quota(worker: str, held: Mapping[str, int], partitions: int) -> int:
    """How many partitions a worker should hold. Each decides for itself, by this rule and what it sees.

    Of `P` partitions, each of `n` workers holds `P / n`, rounded down or, for those that hold more already, up. So a
    new worker gets its share, one that leaves frees its share, and nothing else moves.

    `held`: how many each living worker of the group holds, this one included.
    """
    floor, more = divmod(partitions, len(held))
    above = sorted(name for name, count in held.items() if count > floor)
    ahead = above.index(worker) if worker in above else len(above)
    return floor + (ahead < more)
