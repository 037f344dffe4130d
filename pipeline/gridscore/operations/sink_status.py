"""What sinks are doing now: lag from offsets and journals, figures from their processes' records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.dead_letters.letters import SINKS_MAP, map_of
from gridscore.errors import JobError
from gridscore.grid import transport
from gridscore.grid.records import Count, Figure, Records, Word, parsed
from gridscore.group import rescan
from gridscore.group.heartbeats import Heartbeats
from gridscore.group.lease_records import read_records
from gridscore.group.leases import start_over
from gridscore.operations.status import positions
from gridscore.sinks.records import PROCESSES_MAP, all_sinks, find_sink, group_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gridscore.grid import Grid
    from gridscore.operations.status import Position
    from gridscore.sinks.records import SinkRecord


class SinkProcess(msgspec.Struct, frozen=True):
    """What a process of a sink writes once a second; see `SinkStats`."""

    id: Word
    seen_at: Count  # when it was written, in milliseconds of its clock
    sink: Word
    host: Word = ""
    pid: Count = 0
    began_at: Count = 0
    # `starting`, `delivering`, `waiting` (for its destination, or the cluster) or `paused` (no room for dead letters).
    state: Word = ""
    error: Word = ""
    waits_for: Word = ""  # what it waits for
    delivered: Count = 0
    rate: Figure = 0.0
    filtered: Count = 0
    dead_letters: Count = 0
    interruptions: Count = 0
    rescued: Count = 0
    partitions: Count = 0


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A sink and its figures."""

    record: SinkRecord
    lag: int | None  # results in the journal that no committed offset covers; None if the journal cannot be read
    lost: int  # results that were overwritten before they were read, in all
    dead_letters: int  # those in the grid
    rescans: int  # partitions that wait for a rescan
    positions: Sequence[Position]  # partition by partition; empty if the journal cannot be read
    processes: Sequence[SinkProcess]  # those that live
    journal_error: str = ""  # why the journal cannot be read; empty if it can

    @property
    def living(self) -> Collection[str]:
        """Identities of its processes."""
        return {process.id for process in self.processes}

    @property
    def vanished(self) -> list[str]:
        """Processes that hold partitions still, if none lives: they did not stop in order."""
        return [] if self.processes else sorted({position.owner for position in self.positions} - {""})

    @property
    def state(self) -> str:
        """`waiting` if any process waits.

        If none lives: `failed` if an error has stopped the last one, or it did not stop in order; else `stopped`.
        """
        states = {process.state for process in self.processes}
        none = "failed" if self.record.error or self.vanished else "stopped"
        return next((state for state in ("paused", "waiting", "delivering", "starting") if state in states), none)

    @property
    def error(self) -> str:
        """Why a process waits, or the last one failed."""
        return next((process.error for process in self.processes if process.error), self.record.error)

    @property
    def delivered(self) -> int:
        """Results that the living processes have delivered since they began."""
        return sum(process.delivered for process in self.processes)

    @property
    def partitions(self) -> int:
        """Partitions that a living process owns."""
        living = self.living
        return sum(1 for position in self.positions if position.owner in living)

    @property
    def rate(self) -> float:
        """Results per second, of all processes."""
        return round(sum(process.rate for process in self.processes), 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.record.name,
            "kind": self.record.kind,
            "map": self.record.map,
            "state": self.state,
            "error": self.error,
            "failed_at": self.record.failed_at,
            "lag": self.lag,
            "journal_error": self.journal_error,
            "rate": self.rate,
            "delivered": self.delivered,
            "lost": self.lost,
            "dead_letters": self.dead_letters,
            "rescans": self.rescans,
            "partitions": self.partitions,
            "offsets": [position.offset for position in self.positions],
            "processes": [msgspec.to_builtins(process) for process in self.processes],
        }


async def sink_statuses(grid: Grid, heartbeats: Heartbeats | None = None) -> list[SinkStatus]:
    """Every known sink, by name; pass `heartbeats` to look repeatedly."""
    processes, requests = await _living(grid, heartbeats), await rescan.all_requests(grid)
    found = []
    for record in await all_sinks(grid):
        leases = await read_records(grid, group_of(record.name))
        known, journal_error = await positions(grid, record.subscription, leases)
        found.append(
            SinkStatus(
                record=record,
                lag=None if known is None else sum(position.unread for position in known),
                lost=sum(lease.lost for lease in leases.values()),
                dead_letters=await transport.map_size(grid.client, map_of(record.name)),
                rescans=len(rescan.requests_of(group_of(record.name), requests)),
                positions=known or (),
                processes=[process for process in processes if process.sink == record.name],
                journal_error=journal_error,
            )
        )
    return found


async def forget(grid: Grid, name: str) -> None:
    """Forget a sink: a new one of that name starts over. Its dead letters stay.

    Raises JobError if there is no such sink, or it is running; ConflictError if its processes keep changing its leases.
    """
    if await find_sink(grid, name) is None:
        raise JobError(f"There is no sink `{name}`.", "`gridscore sink list` lists them.")
    living = [process for process in await _living(grid) if process.sink == name]
    if living:
        raise JobError(f"The sink `{name}` is running: {living[0].host}, process {living[0].pid}.", "Stop it first.")
    await start_over(grid, group_of(name))
    await rescan.forget(grid, group_of(name))
    await Records(grid, SINKS_MAP).delete(name)


async def _living(grid: Grid, heartbeats: Heartbeats | None = None) -> list[SinkProcess]:
    found = await Records(grid, PROCESSES_MAP).read(parsed(SinkProcess))
    return (heartbeats or Heartbeats()).living([process for _, process in sorted(found.items())])
