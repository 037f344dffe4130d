"""The living workers of a cluster, as this process observes them: one whose record goes on changing lives.

Clocks are not compared. Who is taken for dead and is not loses nothing but his partitions, and those only after their
leases have run out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.grid.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.grid import Grid

_log = logging.getLogger(__name__)

WORKERS_MAP = "gridscore.workers"

SUSPECT_SECONDS = 2.2
"""A worker whose record has not changed for so long has missed two changes: its leases are watched."""

GONE_SECONDS = 4.0
"""A worker whose record has not changed for so long takes no part in the group, and is not counted as living.

Long enough to miss three changes, and shorter than a lease is by default: when its partitions can be taken, the others
have shared them out among themselves already.
"""


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
