"""What sources write about themselves in the grid once a second; and the last error of those that failed."""

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
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import SOURCES_MAP, map_of
from gridscore.errors import GridscoreError, JobError
from gridscore.grid import transport
from gridscore.grid.records import Count, Figure, Records, Word, parsed, record_text
from gridscore.group.heartbeats import Heartbeats
from gridscore.health_file import touch_health_file
from gridscore.job.plugs.base import MAX_FURTHER_MAPS
from gridscore.sources.position import forget_all

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.records import Record

_log = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
FORGET_SECONDS = 60.0  # others remove the records of a killed process when they have not changed for so long
FAILED = "failed"  # state of a source that has stopped for good: a retry would not help
LOST_SECONDS = 86_400.0  # how long losses are a problem
FAILED_SECONDS = 86_400.0  # how long a source that failed is shown, unless it runs again or is forgotten
_SILENT = "It has fallen silent: it was killed or stopped, or its machine is gone."

CLOSE_SECONDS = 3.0
_RATE_SECONDS = 5.0
_COUNTS = ("events", "poison", "interruptions", "error_at", "waits_for", "lost", "lost_at")
_FIGURES = ("state", "error", "rate", "events", "poison", "lost", "dead_letters", "waiting", "waited")


class SourceRecord(msgspec.Struct, frozen=True):
    """What a process of a source writes about itself; an older version of Gridscore may leave some out."""

    id: Word  # of the process and the source
    seen_at: Count  # when it was written, in milliseconds of its clock
    name: Word = ""  # of the source; several processes may share one
    kind: Word = ""
    map: Word = ""  # the event map
    host: Word = ""
    pid: Count = 0
    began_at: Count = 0
    # `starting`, `running`, `waiting` (for room), `paused` (by its dead letters) or `interrupted`; `failed` once it has
    # ended.
    state: Word = ""
    events: Count = 0  # entries put or removed, confirmed, since it began
    rate: Figure = 0.0  # events per second, of the last few seconds
    poison: Count = 0  # records that were not events, since it began
    waiting: Word = ""  # what it waits for, if it waits for room; or why it pauses
    waited: Figure = 0.0  # seconds that it has waited for room
    interruptions: Count = 0  # how often it had to try again
    error: Word = ""  # the last one, which may be over
    error_at: Count = 0  # when that was, in milliseconds of its clock; 0 if never
    # Further event maps that it may put into.
    also: Annotated[tuple[Word, ...], msgspec.Meta(max_length=MAX_FURTHER_MAPS)] = ()
    waits_for: Word = ""  # who has interrupted it: `the cluster`, or else the other side
    lost: Count = 0  # events that the other side removed before they were read, since it began, as far as it can tell
    lost_at: Count = 0  # when that was noticed last, as `error_at`
    # How far it has come in what keeps the position itself, as Kafka does, by item and part: for backups.
    positions: dict[Word, dict[Word, Count]] = {}


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
    also: Sequence[str] = ()
    waits_for: str = ""
    lost: int = 0
    lost_at: int = 0
    positions: Callable[[], dict[str, dict[str, int]]] = dict
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def failed(self, error: str) -> None:
        self.error, self.error_at = error, int(time.time() * 1000)

    def lose(self, count: int) -> None:
        """Count what was removed before it was read."""
        if count:
            self.lost, self.lost_at = self.lost + count, int(time.time() * 1000)

    def rate(self) -> float:
        """Events per second since some seconds ago, or since the first call; call it about once a second."""
        now, marks = time.monotonic(), self._marks
        marks.append((now, self.events))
        while len(marks) > 2 and now - marks[1][0] >= _RATE_SECONDS:
            marks.popleft()
        seconds = now - marks[0][0]
        return (self.events - marks[0][1]) / seconds if seconds > 0 else 0.0


class Publisher:
    """Publishes the figures of one source until closed."""

    def __init__(self, grid: Grid, stats: SourceStats) -> None:
        self._grid = grid
        self._stats = stats
        self._began_at = int(time.time() * 1000)
        self._records = Records(grid, SOURCES_MAP)
        self._others: dict[str, Record] = {}
        self._healed = False
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
        """Remove the record, and note a failure; do not wait for a cluster that is gone."""
        if not self._grid.is_running:
            return
        with contextlib.suppress(HazelcastError, GridscoreError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._stats.state == FAILED:
                    await self._leave(self._stats.name, self._record())
                for key, record in self._others.items() if self._healed else ():
                    if key != self.id and record.value.get("name") == self._stats.name:
                        # One that we have replaced: it has not written since. If it lives, it will in a second.
                        await self._records.remove(record)
                await self._records.delete(self.id)

    async def _publish(self) -> None:
        proxy = await self._grid.map(SOURCES_MAP)
        await proxy.set(self.id, _json(self._record()))
        touch_health_file()
        if not self._healed and self._stats.state in ("running", "waiting", "paused"):
            await self._records.delete(_failure_key(self._stats.name))
            self._others = await self._records.all()
            self._healed = True

    def _record(self) -> SourceRecord:
        stats, ended = self._stats, self._stats.state == FAILED
        return SourceRecord(
            **{name: getattr(stats, name) for name in ("name", "kind", "map", "state", *_COUNTS)},
            id=self.id,
            seen_at=int(time.time() * 1000),
            host=socket.gethostname(),
            pid=os.getpid(),
            began_at=self._began_at,
            rate=0.0 if ended else round(stats.rate(), 1),
            waiting="" if ended else stats.waiting[:1000],
            waited=round(stats.waited, 1),
            error=stats.error[:1000],
            also=tuple(stats.also),
            positions={} if ended else stats.positions(),
        )

    async def _sweep(self) -> None:
        """Remove the records that have not changed since the last time; clocks are not compared."""
        records = await self._records.all()
        dead = [r for key, r in records.items() if key != self.id and (b := self._others.get(key)) and b.raw == r.raw]
        living = {each.value.get("name") for each in records.values() if each not in dead}
        for record in dead:
            name, failed = record.value.get("name"), record.value.get("state") == FAILED
            # While other processes of its name run, a failure is not kept any longer.
            if failed and not (name == self._stats.name and self._healed):
                continue
            if not failed and name not in living:
                with contextlib.suppress(msgspec.ValidationError):
                    await self._leave(str(name), _silent(msgspec.convert(record.value, SourceRecord)))
            await self._records.remove(record)
        self._others = records

    async def _leave(self, name: str, record: SourceRecord) -> None:
        """Note that a source has failed, once for each name."""
        proxy = await self._grid.map(SOURCES_MAP)
        await proxy.set(_failure_key(name), _json(record), ttl=FAILED_SECONDS)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source and its figures."""

    name: str
    processes: Sequence[SourceRecord]  # those that live
    failure: SourceRecord | None  # the record of the last one that failed, if none has run since
    dead_letters: int  # those in the grid
    # Those of its maps that have a journal which no job or sink reads, as far as it was looked for.
    unread: Collection[str] = ()

    @property
    def kind(self) -> str:
        return self._any.kind

    @property
    def map(self) -> str:
        return self._any.map

    @property
    def maps(self) -> set[str]:
        """All event maps that its processes may put into."""
        return {name for each in (*self.processes, self._any) for name in (each.map, *each.also)}

    @property
    def state(self) -> str:
        """The worst state of its processes; `failed` if none lives."""
        states = {process.state for process in self.processes}
        return next(
            (state for state in ("interrupted", "paused", "waiting", "starting", "running") if state in states), FAILED
        )

    @property
    def rate(self) -> float:
        """Events per second, of all processes."""
        return round(sum(process.rate for process in self.processes), 1)

    @property
    def events(self) -> int:
        """Events of the living processes, since they began."""
        return sum(process.events for process in self.processes)

    @property
    def poison(self) -> int:
        """Records that were not events, of the living processes since they began."""
        return sum(process.poison for process in self.processes)

    @property
    def lost(self) -> int:
        """Events that were removed before the living processes read them."""
        return sum(process.lost for process in self.processes)

    @property
    def lost_lately(self) -> bool:
        """Whether there were losses within a day, by the clock of who has seen them."""
        return any(each.lost and each.seen_at - each.lost_at < LOST_SECONDS * 1000 for each in self.processes)

    @property
    def waiting(self) -> str:
        """Why a process pauses, or what it waits for, if one waits for room."""
        if self.state == "paused":
            return next(process.waiting for process in self.processes if process.state == "paused")
        return next((process.waiting for process in self.processes if process.waiting), "")

    @property
    def waited(self) -> float:
        """Seconds for which the living processes have waited for room."""
        return round(sum(process.waited for process in self.processes), 1)

    @property
    def error(self) -> str:
        """The last error of all its processes, which may be over."""
        latest = max([*self.processes, *([self.failure] if self.failure else [])], key=lambda each: each.error_at)
        return latest.error

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("name", "kind", "map", *_FIGURES)},
            "processes": [msgspec.to_builtins(process) for process in self.processes],
            "failure": None if self.failure is None else msgspec.to_builtins(self.failure),
        }

    @property
    def _any(self) -> SourceRecord:
        return next(iter(self.processes), None) or self.failure or SourceRecord("", 0)


async def source_records(grid: Grid, heartbeats: Heartbeats | None = None) -> list[SourceRecord]:
    """Records of living, failed and silent sources, by name; pass `heartbeats` to look repeatedly."""
    found = list((await Records(grid, SOURCES_MAP).read(parsed(SourceRecord))).values())
    running = [each for each in found if each.state != FAILED]
    living = (heartbeats or Heartbeats()).living(running)
    names, beating = {each.name for each in living}, {each.id for each in living}
    # A killed process is not reported while others of its name run.
    silent = [_silent(each) for each in running if each.id not in beating and each.name not in names]
    failed = [each for each in found if each.state == FAILED]
    return sorted([*living, *silent, *failed], key=lambda each: (each.name, each.id))


async def running_sources(grid: Grid) -> list[SourceRecord]:
    """Records of the living sources, by name."""
    return [each for each in await source_records(grid) if each.state != FAILED]


async def source_statuses(grid: Grid, heartbeats: Heartbeats | None = None) -> list[SourceStatus]:
    """Every source that runs or has failed, by name; pass `heartbeats` to look repeatedly."""
    by_name: dict[str, list[SourceRecord]] = {}
    for each in await source_records(grid, heartbeats):
        by_name.setdefault(each.name, []).append(each)
    return [
        SourceStatus(
            name,
            [each for each in records if each.state != FAILED],
            max((each for each in records if each.state == FAILED), key=lambda each: each.error_at, default=None),
            await transport.map_size(grid.client, map_of(name)),
        )
        for name, records in by_name.items()
    ]


async def forget(grid: Grid, name: str) -> tuple[int, bool]:
    """Forget the positions of a source, and its last error; returns how many there were, and whether there was one.

    Raises JobError if it is running: it would write its positions again; PositionTakenError if it was started
    meanwhile.
    """
    living = [each for each in await running_sources(grid) if each.name == name]
    if living:
        raise JobError(f"The source `{name}` is running: {living[0].host}, process {living[0].pid}.", "Stop it first.")
    count = await forget_all(grid, name)
    records, failed = Records(grid, SOURCES_MAP), False
    for record in (await records.all()).values():
        if record.value.get("name") == name:
            failed = await records.remove(record) or failed
    return count, failed


def _silent(record: SourceRecord) -> SourceRecord:
    """The record of a process that ended without a word, as that of a failed source."""
    replace, at = msgspec.structs.replace, record.seen_at
    return replace(record, state=FAILED, rate=0.0, waiting="", error=_SILENT, error_at=at)


def _json(record: SourceRecord) -> HazelcastJsonValue:
    return HazelcastJsonValue(record_text(msgspec.structs.asdict(record)))


def _failure_key(name: str) -> str:
    return f"failed/{name}"  # no process has such an identity
