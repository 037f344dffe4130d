"""The sinks of a cluster: what each reads and where it delivers, as its first process wrote."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from gridscore.dead_letters.letters import SINKS_MAP, owner_of
from gridscore.errors import ConflictError, UsageError
from gridscore.grid.records import Count, Records, Word
from gridscore.group.subscription import MOST_SHOWN, GroupStats, Subscription
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.grid.records import Record
    from gridscore.job.plugs.base import SinkSettings

PROCESSES_MAP = "gridscore.sink-processes"

# Control map with the time since when the cluster has its content: it is gone when a cluster has lost everything.
ERAS_MAP = "gridscore.eras"

_ATTEMPTS = 5


def group_of(name: str) -> str:
    """Name of a sink's group, which no job can have."""
    return f"sink:{name}"


def subscription_of(name: str, settings: SinkSettings) -> Subscription:
    """What the group of a sink reads."""
    return Subscription(
        group_of(name),
        settings.results,
        settings.start,
        settings.on_loss,
        again="The same command, given again,",
        # A destination outlives the grid: results from after a total loss must not look older there.
        epochs_by_time=True,
    )


class Era(msgspec.Struct, frozen=True):
    """The record of a cluster's beginning, in milliseconds since 1970."""

    since: Count


class SinkRecord(msgspec.Struct, frozen=True):
    """What the grid knows of a sink."""

    name: str
    kind: Word
    map: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]  # the result map
    start: Word = ""  # where it began: `oldest` or `latest`
    created_at: Word = ""  # when its first process was started, RFC 3339
    error: Word = ""  # why a process has stopped for good, if none has been opened since
    failed_at: Word = ""  # when that was, RFC 3339; empty without an error
    to: Word = ""  # where it delivers

    @classmethod
    def from_record(cls, record: Record) -> SinkRecord:
        """The sink in a control record. Raises ValueError if it is not valid."""
        return msgspec.convert({**record.value, "name": record.key}, cls)

    @property
    def subscription(self) -> Subscription:
        """What its group reads, as far as its lag needs it."""
        return Subscription(group_of(self.name), self.map, "latest" if self.start == "latest" else "oldest", "continue")


async def register(grid: Grid, name: str, kind: str, settings: SinkSettings) -> None:
    """Make a sink known, before its first process reads anything.

    Raises UsageError if its name is that of a job or a source, or of a sink that does something else.
    """
    owner = await owner_of(grid, name)
    if owner not in (None, "sink"):
        raise UsageError(
            f"`{name}` is a {owner}: a sink of that name would share its dead letters.",
            "Give the sink another name with --name.",
        )

    to = settings.destination
    hint = f"Give this one another name with --name; or forget that one: `gridscore sink forget {name}`."

    def change(current: dict[str, Any] | None) -> dict[str, Any]:
        if current is None:
            return {
                "kind": kind,
                "map": settings.results,
                "start": settings.start,
                "created_at": moment_text(),
                "to": to,
            }
        if (current.get("kind"), current.get("map")) != (kind, settings.results):
            raise UsageError(
                f"There is a sink `{name}` already: it delivers `{current.get('map')}` to {current.get('kind')}, and "
                "its offsets would mean nothing here.",
                hint,
            )
        if current.get("to", to) != to:
            raise UsageError(
                f"There is a sink `{name}` already: it delivers to {current['to']}, and its offsets would mean nothing "
                f"for {to}.",
                hint,
            )
        return {**current, "to": to}

    await Records(grid, SINKS_MAP).update(name, change)


async def note_failure(grid: Grid, name: str, error: str) -> None:
    """Write down why a process of a sink has stopped for good; an empty error removes that."""
    records = Records(grid, SINKS_MAP)
    for _ in range(_ATTEMPTS):
        record = await records.get(name)
        if record is None or not (error or record.value.get("error")):
            return  # forgotten meanwhile, or nothing to remove
        value = {key: each for key, each in record.value.items() if key not in ("error", "failed_at")}
        if error:
            value |= {"error": error[:1000], "failed_at": moment_text()}
        with contextlib.suppress(ConflictError):
            await records.replace(record, value)
            return


async def all_sinks(grid: Grid) -> list[SinkRecord]:
    """The sinks that were started and not forgotten, by name."""
    return [sink for _, sink in sorted((await Records(grid, SINKS_MAP).read(SinkRecord.from_record)).items())]


async def find_sink(grid: Grid, name: str) -> SinkRecord | None:
    record = await Records(grid, SINKS_MAP).get(name)
    return None if record is None else SinkRecord.from_record(record)


# States of a process: it opens its destination, delivers, waits until its destination can be reached again, or pauses
# because there is no room for dead letters.
STARTING, DELIVERING, WAITING, PAUSED = "starting", "delivering", "waiting", "paused"
_COUNTERS = ("deliveries", "filtered", "interruptions", "lost", "regressions", "rescued", "rebalances")


@dataclass(slots=True)
class SinkStats(GroupStats):
    """Counters of one process of a sink, since it began."""

    state: str = STARTING
    error: str = ""  # why it waits or pauses; empty if it does not
    waits_for: str = ""  # what it waits for, or waited for last
    deliveries: int = 0
    filtered: int = 0  # results that were filtered out
    interruptions: int = 0  # how often its destination could not be reached

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("state", *_COUNTERS, "partitions", "committed_at")},
            "error": self.error[:MOST_SHOWN],
            "waits_for": self.waits_for,
            "delivered": self.events,
            "rate": round(self.rate(), 1),
            "dead_letters": self.dead,
        }
