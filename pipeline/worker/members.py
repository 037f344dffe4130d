"""The living workers of a cluster, as this process observes them: one whose record goes on changing lives. So it does.

Clocks are not compared. Who is taken for dead and is not loses nothing but his partitions, and those only after their
leases have run out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from pipeline.errors import GridscoreError
from pipeline.grid.records import Record, Records, record_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.grid import Grid
    from pipeline.worker.group import Group

_log = logging.getLogger(__name__)

WORKERS_MAP = "gridscore.workers"

SUSPECT_SECONDS = 2.2
"""A worker whose record has not changed for so long has missed two changes: its leases are watched."""

GONE_SECONDS = 4.0
"""A worker whose record has not changed for so long takes no part in the group, and is not counted as living.

Long enough to miss three changes, and shorter than a lease is by default: when its partitions can be taken, the others
have shared them out among themselves already.
"""

PUBLISH_SECONDS = 1.0
FORGET_SECONDS = 60.0
"""Records of processes that were killed are removed by others after this time."""


def new_identity() -> str:
    """A name for a process in its groups, that no other has: host, process, and something by chance."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


@dataclass(slots=True)
class _Sight:
    raw: str
    since: float
    jobs: frozenset[str]


class Members:
    """Who lives.

    Args:
        grid: The connection.
        worker: Identity of this worker; it lives, whatever its record says.
        map_name: Where the records are: those of processes that share groups with this one.
    """

    def __init__(self, grid: Grid, worker: str, map_name: str = WORKERS_MAP) -> None:
        self._grid = grid
        self.map_name = map_name
        self._records = Records(grid, map_name)
        self._sights: dict[str, _Sight] = {}
        self._looked = float("-inf")
        self._stop: Callable[[], Any] | None = None
        self.worker = worker

    async def look(self) -> None:
        """Read the records.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        records = await self._records.all()
        now = self._grid.clock()
        # A look that could not be made for a while proves nothing about those who could not write meanwhile.
        blind = now - self._looked > SUSPECT_SECONDS
        self._looked = now
        sights = {}
        for key, record in records.items():
            before = self._sights.get(key)
            if before is not None and before.raw == record.raw:
                before.since = now if blind else before.since
                sights[key] = before
            else:
                jobs = record.value.get("groups")
                named = frozenset(str(job) for job in jobs) if isinstance(jobs, list) else frozenset[str]()
                sights[key] = _Sight(record.raw, now, named)
        self._sights = sights

    def group(self, job: str) -> set[str]:
        """Living workers that take part in a job's group; this worker is always one of them."""
        now = self._grid.clock()
        living = {
            name for name, sight in self._sights.items() if job in sight.jobs and now - sight.since < GONE_SECONDS
        }
        return living | {self.worker}

    def is_fresh(self, worker: str) -> bool:
        """Whether a worker was heard of just now: its leases need no watching."""
        sight = self._sights.get(worker)
        return sight is not None and self._grid.clock() - sight.since < SUSPECT_SECONDS

    async def forget(self, seconds: float) -> None:
        """Remove the records that have not changed for so long as we watched.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        now = self._grid.clock()
        for name, sight in list(self._sights.items()):
            if name != self.worker and now - sight.since > seconds:
                await self._records.remove(Record(name, {}, sight.raw))

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call back when a worker has come or gone; `look` then tells who."""
        self._stop = await self._records.watch(changed, updates=False)

    async def close(self) -> None:
        """Stop watching."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            await stop()


class Membership:
    """One process's part in its groups: says once a second that it lives, and sees who else does.

    Args:
        grid: The connection.
        members: Who lives; this process among them.
        value: Gives what else to say: `groups`, those that it takes part in, and whatever is for people.
        groups: Those to wake when their members have changed, by name.
    """

    def __init__(
        self,
        grid: Grid,
        members: Members,
        value: Callable[[], dict[str, Any]],
        groups: Callable[[], Mapping[str, Group]],
    ) -> None:
        self._grid = grid
        self._members = members
        self._value = value
        self._groups = groups
        self._now = asyncio.Event()
        self._began = time.time()
        self._swept_at = 0

    def soon(self) -> None:
        """Say and look at once."""
        self._now.set()

    async def watch(self) -> None:
        """Look at once whenever a member has come or gone.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        await self._members.watch(self.soon)

    async def run(self) -> None:
        """Say that we live, and see who else does, until cancelled; whatever else takes time, this does not wait."""
        known: dict[str, set[str]] = {}
        while True:
            self._now.clear()
            try:
                await self._publish()
                await self._members.look()
            except (HazelcastError, GridscoreError) as error:
                _log.warning("The other processes could not be seen: %s", error, extra={"action": "retry"})
            for name, group in self._groups().items():
                who = self._members.group(name)
                if known.get(name) != who:
                    known[name] = who
                    group.wake()
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._now.wait()
            except TimeoutError:
                pass

    async def leave(self) -> None:
        """Take our record away, so that the others make room for what we are about to give back.

        Raises:
            HazelcastError: The cluster did not answer.
        """
        await (await self._grid.map(self._members.map_name)).delete(self._members.worker)
        await self._members.close()

    async def _publish(self) -> None:
        now = int(time.time() * 1000)
        value = {
            "id": self._members.worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began_at": int(self._began * 1000),
            "seen_at": now,
            **self._value(),
        }
        proxy = await self._grid.map(self._members.map_name)
        await proxy.set(self._members.worker, HazelcastJsonValue(record_text(value)))
        if now - self._swept_at > FORGET_SECONDS * 1000:
            self._swept_at = now
            await self._members.forget(FORGET_SECONDS)
