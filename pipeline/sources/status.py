"""What running sources say of themselves: a record in the grid once a second, as workers have."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from pipeline.errors import GridscoreError
from pipeline.grid.records import Records, record_text
from pipeline.sources.position import POSITIONS_MAP
from pipeline.worker.dead_letters import map_of
from pipeline.worker.members import GONE_SECONDS

if TYPE_CHECKING:
    from pipeline.grid import Grid
    from pipeline.grid.records import Record

_log = logging.getLogger(__name__)

SOURCES_MAP = "gridscore.sources"
PUBLISH_SECONDS = 1.0
FORGET_SECONDS = 60.0
"""Records of sources that were killed are removed by others when they have not changed for so long."""

CLOSE_SECONDS = 3.0
_RATE_SECONDS = 5.0


class SourceRecord(msgspec.Struct, frozen=True):
    """What one process of a source says of itself; what its version does not say is as if it were nothing.

    Attributes:
        id: Of the process and the source.
        seen_at: Milliseconds of its clock, when it was written.
        name: Of the source; several processes may share one.
        kind: Of the source.
        map: The event map.
        state: `starting`, `running`, `waiting` (for room) or `interrupted`.
        events: Entries put or removed, confirmed, since it began.
        rate: Events per second, of the last few seconds.
        poison: What was no event, since it began.
        waiting: What it waits for, if it waits for room.
        waited: Seconds that it has waited for room.
        interruptions: How often it had to begin again.
        error: The last one; it may be healed.
        error_at: When that was, milliseconds of its clock; 0 if never.
    """

    id: str
    seen_at: int
    name: str = ""
    kind: str = ""
    map: str = ""
    host: str = ""
    pid: int = 0
    began_at: int = 0
    state: str = ""
    events: int = 0
    rate: float = 0.0
    poison: int = 0
    waiting: str = ""
    waited: float = 0.0
    interruptions: int = 0
    error: str = ""
    error_at: int = 0


@dataclass(slots=True)
class SourceStats:
    """Counters of one source in one process; see `SourceRecord`."""

    name: str
    kind: str
    map: str
    state: str = "starting"
    events: int = 0
    poison: int = 0
    waiting: str = ""
    waited: float = 0.0
    interruptions: int = 0
    error: str = ""
    error_at: int = 0
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def failed(self, error: str) -> None:
        """Note the last error."""
        self.error, self.error_at = error, int(time.time() * 1000)

    def rate(self) -> float:
        """Events per second since some seconds ago, or since the first call; call it about once a second."""
        now, marks = time.monotonic(), self._marks
        marks.append((now, self.events))
        while len(marks) > 2 and now - marks[1][0] >= _RATE_SECONDS:
            marks.popleft()
        seconds = now - marks[0][0]
        return (self.events - marks[0][1]) / seconds if seconds > 0 else 0.0


class Publisher:
    """Publishes the figures of one source until closed.

    Args:
        grid: The connection.
        stats: The figures.
    """

    def __init__(self, grid: Grid, stats: SourceStats) -> None:
        self._grid = grid
        self._stats = stats
        self._began_at = int(time.time() * 1000)
        self._records = Records(grid, SOURCES_MAP)
        self._others: dict[str, Record] = {}
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    async def run(self) -> None:
        """Publish once a second until cancelled, whatever the cluster does."""
        swept_at = time.monotonic()
        while True:
            try:
                await self._publish()
                if time.monotonic() - swept_at >= FORGET_SECONDS:
                    swept_at = time.monotonic()
                    await self._sweep()
            except (HazelcastError, GridscoreError) as error:
                _log.debug("%s: the figures could not be published: %s", self._stats.name, error)
            await asyncio.sleep(PUBLISH_SECONDS)

    async def close(self) -> None:
        """Remove the record; a cluster that is gone must not keep us."""
        if not self._grid.is_running:
            return
        with contextlib.suppress(HazelcastError, GridscoreError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._records.delete(self.id)

    async def _publish(self) -> None:
        stats = self._stats
        record = SourceRecord(
            id=self.id,
            seen_at=int(time.time() * 1000),
            name=stats.name,
            kind=stats.kind,
            map=stats.map,
            host=socket.gethostname(),
            pid=os.getpid(),
            began_at=self._began_at,
            state=stats.state,
            events=stats.events,
            rate=round(stats.rate(), 1),
            poison=stats.poison,
            waiting=stats.waiting,
            waited=round(stats.waited, 1),
            interruptions=stats.interruptions,
            error=stats.error[:1000],
            error_at=stats.error_at,
        )
        proxy = await self._grid.map(SOURCES_MAP)
        await proxy.set(self.id, HazelcastJsonValue(record_text(msgspec.structs.asdict(record))))

    async def _sweep(self) -> None:
        """Remove the records that have not changed since the last time; clocks are not compared."""
        records = await self._records.all()
        for key, record in records.items():
            before = self._others.get(key)
            if key != self.id and before is not None and before.raw == record.raw:
                await self._records.remove(record)
        self._others = records


async def running_sources(grid: Grid) -> list[SourceRecord]:
    """Records of the sources that were heard of lately, by name. What is no such record is left out.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    found = []
    for record in (await Records(grid, SOURCES_MAP).all()).values():
        with contextlib.suppress(msgspec.ValidationError):
            found.append(msgspec.convert(record.value, SourceRecord))
    # A clock that is ahead of ours is as good as ours.
    living = [each for each in found if time.time() * 1000 - each.seen_at < GONE_SECONDS * 1000]
    return sorted(living, key=lambda each: (each.name, each.id))


async def is_known(grid: Grid, name: str) -> bool:
    """Whether the grid has heard of a source of that name: it runs, or keeps positions or dead letters.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    if any(record.value.get("name") == name for record in (await Records(grid, SOURCES_MAP).all()).values()):
        return True
    if any(key.startswith(f"{name}/") for key in await Records(grid, POSITIONS_MAP).all()):
        return True
    return await grid.has_map(map_of(name))
