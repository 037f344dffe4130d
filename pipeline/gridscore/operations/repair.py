"""What to do about bad records: each is repaired if that is safe, and otherwise removed.

`CONTROL_MAPS` says for each map what belongs there, and what it means to remove a record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.dead_letters.letters import POSITIONS_MAP, SINKS_MAP, SOURCES_MAP
from gridscore.errors import BadRecord
from gridscore.grid import transport
from gridscore.grid.entries import values_of
from gridscore.grid.records import Records, key_text, parsed, partition_in, reason_of
from gridscore.grid.writer import partition_of
from gridscore.group import lease_records, rescan
from gridscore.group.lease_records import LEASES_MAP, NOBODY, LeaseRecord, lease_key
from gridscore.group.members import HEARTBEATS_MAP, HOLDINGS_MAP, WORKERS_MAP, Heartbeat, Holdings
from gridscore.group.rescan import RESCANS_MAP
from gridscore.group.sessions import SESSIONS_MAP
from gridscore.job import JobRecord
from gridscore.job.life import JOBS_MAP
from gridscore.models.certificates import PARITY_MAP, Certificate
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.drift import DRIFT_MAP, DriftRecord
from gridscore.models.experiment import COUNTS_MAP, EXPERIMENTS_MAP, Counts, experiment_in
from gridscore.models.record import ModelRecord
from gridscore.models.registry import MODELS_MAP, VERSIONS_MAP
from gridscore.models.version import ModelVersion
from gridscore.operations.actions import ACTIONS_MAP, Actions
from gridscore.operations.autoscale import AUTOSCALE_MAP, Decisions
from gridscore.operations.backup import BACKUPS_MAP, BackupRecord
from gridscore.operations.sink_status import SinkProcess
from gridscore.operations.status import ACKNOWLEDGED_MAP, Acknowledgement, WorkerRecord
from gridscore.scoring.audit import AUDITS_MAP, Noted
from gridscore.sinks.records import ERAS_MAP, PROCESSES_MAP, Era, SinkRecord
from gridscore.sources.position import position_of
from gridscore.sources.status import SourceRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid
    from gridscore.grid.records import Record


@dataclass(frozen=True, slots=True)
class ControlMap:
    """What belongs in a control map.

    Attributes:
        parse: Parses a record, given the number of partitions, or raises.
        means: What it means to remove a record.
        harms: Whether something does not work while a bad one is there.
    """

    name: str
    parse: Callable[[Record, int], object]
    means: str
    harms: bool = True


@dataclass(frozen=True, slots=True)
class Repair:
    """What is to be done about a bad record.

    Attributes:
        means: What it means, for people.
        harms: Whether something does not work until then.
        value: What replaces it; None if it is removed.
    """

    bad: BadRecord
    means: str
    harms: bool
    value: dict[str, Any] | None = None

    @property
    def what(self) -> str:
        """What is done."""
        return "removes it" if self.value is None else "repairs it"


def _kind(kind: type) -> Callable[[Record, int], object]:
    parse: Callable[[Record], object] = parsed(kind)
    return lambda record, _count: parse(record)


def _model(record: Record, _count: int) -> object:
    if "revision" not in record.value:
        raise ValueError("it is not the record of a model")
    return ModelRecord.read(record.value, record.key)


def _version(record: Record, _count: int) -> object:
    name, slash, upload = record.key.rpartition("/")
    if not (name and slash and upload):
        raise ValueError("its key is not a model and an upload")
    return ModelVersion.from_json(record.value, name, 1)


def _parse(each: ControlMap, count: int, record: Record) -> object:
    return each.parse(record, count)


_BACK = "it comes back within a second if its process lives."

CONTROL_MAPS = (
    ControlMap(
        JOBS_MAP,
        lambda record, _count: JobRecord.parse(record),
        "nobody scores for that job; its results and offsets stay, and submitted again, it goes on where it stopped.",
    ),
    ControlMap(LEASES_MAP, lease_records.parse, "nobody reads it: no group has such a partition."),
    ControlMap(
        RESCANS_MAP, rescan.request_of, "that rescan is not done; `gridscore audit JOB` finds what is missing.", False
    ),
    ControlMap(AUDITS_MAP, _kind(Noted), "the next audit of that job comes after a full pause.", False),
    ControlMap(DRIFT_MAP, _kind(DriftRecord), "the next window of drift begins anew, and so do its alerts.", False),
    ControlMap(ACKNOWLEDGED_MAP, _kind(Acknowledgement), "losses that were acknowledged are shown again.", False),
    ControlMap(AUTOSCALE_MAP, _kind(Decisions), "`autoscale --explain` starts over.", False),
    ControlMap(ACTIONS_MAP, _kind(Actions), "what was done before is not known any more.", False),
    ControlMap(SESSIONS_MAP, lease_records.parse, "leases that depend on it run out, and are taken again.", False),
    ControlMap(HEARTBEATS_MAP, _kind(Heartbeat), _BACK, False),
    ControlMap(HOLDINGS_MAP, _kind(Holdings), "it comes back when its process takes or gives a partition.", False),
    ControlMap(WORKERS_MAP, _kind(WorkerRecord), _BACK, False),
    ControlMap(
        MODELS_MAP,
        _model,
        "the model is gone from the registry: push it again; workers that have loaded it go on.",
    ),
    ControlMap(PARITY_MAP, _kind(Certificate), "`gridscore parity` compares once more.", False),
    ControlMap(
        EXPERIMENTS_MAP,
        lambda record, _count: experiment_in(record),
        "that experiment is over: the champion scores all events of the job.",
        False,
    ),
    ControlMap(
        COUNTS_MAP,
        lambda record, _count: Counts.of_record(record),
        "what a worker has counted of an experiment is missing from its report.",
        False,
    ),
    ControlMap(VERSIONS_MAP, _version, "that version cannot be loaded any more: push the model again."),
    ControlMap(
        POSITIONS_MAP,
        lambda record, _count: position_of(record),
        "the source starts that file or table again: what it read before may come again, or be skipped.",
    ),
    ControlMap(SOURCES_MAP, _kind(SourceRecord), _BACK, False),
    ControlMap(
        SINKS_MAP,
        lambda record, _count: SinkRecord.from_record(record),
        "the sink is not listed before it is started again; it goes on where it stopped.",
    ),
    ControlMap(PROCESSES_MAP, _kind(SinkProcess), _BACK, False),
    ControlMap(BACKUPS_MAP, _kind(BackupRecord), "it comes back with the next restore point.", False),
    ControlMap(ERAS_MAP, _kind(Era), "results count as newer than all in the sinks' tables: those are written again."),
)


async def find_repairs(grid: Grid) -> list[Repair]:
    """Every bad record of all control maps, with what is to be done about it."""
    count = grid.partition_count
    for each in CONTROL_MAPS:
        await Records(grid, each.name).read(partial(_parse, each, count))
    maps = {each.name: each for each in CONTROL_MAPS}
    repairs = []
    for bad in grid.bad_records.all():
        value, means = None, maps[bad.map_name].means
        if bad.map_name == LEASES_MAP and (salvaged := _lease(bad, count)) is not None:
            value, means = msgspec.to_builtins(salvaged), _lease_means(salvaged)
        repairs.append(Repair(bad, means, maps[bad.map_name].harms, value))
    return repairs + await _chunks(grid)


async def repair(grid: Grid, each: Repair) -> bool:
    """Do it; False if the record has changed since it was looked at."""
    records = Records(grid, each.bad.map_name)
    if each.value is None:
        return await records.remove_bad(each.bad)
    return await records.repair(each.bad, each.value)


async def _chunks(grid: Grid) -> list[Repair]:
    """Entries among the parts of models with the wrong kind of key. Parts are checked when they are loaded."""
    found = []
    for key in await transport.map_keys(grid.client, CHUNKS_MAP):
        try:
            parts = key_text(key).split("/")
            if len(parts) != 3 or not parts[2].isdecimal():
                raise ValueError("its key is not a model, an upload and a number")  # noqa: TRY301
        except ValueError as error:
            partition = partition_of(key, grid.partition_count)
            value = (await values_of(grid, CHUNKS_MAP, partition, [key])).get(key)
            if value is not None:
                bad = BadRecord(CHUNKS_MAP, key[8:].decode(errors="replace")[:80], reason_of(error), key, value)
                found.append(Repair(bad, "it is not a part of any model.", harms=False))
    return found


def _lease(bad: BadRecord, count: int) -> LeaseRecord | None:
    """What can be kept of a bad lease; None if no group would ever read it.

    Unknown parts are chosen so that nothing is skipped: at worst events are scored again, which does no harm.
    """
    try:
        partition = partition_in(bad.key, count)
    except ValueError:
        return None
    key = lease_key(bad.key.rpartition("/")[0], partition, count)
    if bad.key_data[4:] != key[4:] or partition_of(bad.key_data, count) != partition:
        return None
    try:
        there = msgspec.json.decode(bad.value_data[12:])
    except (ValueError, RecursionError):
        there = None
    kept = {}
    for field in msgspec.structs.fields(LeaseRecord):
        if isinstance(there, dict) and field.name in there:
            try:
                kept[field.name] = msgspec.convert(there[field.name], field.type)
            except msgspec.ValidationError:
                continue
    for name, most in lease_records.limits().items():
        if kept.get(name, 0) > most:
            del kept[name]
    # Later than any that was counted from 1; the epochs of sinks are times as well.
    epoch = kept["epoch"] + 1 if "epoch" in kept else int(time.time())
    # The owner stays: it may still be writing, so others must wait for its lease to run out.
    kept |= {"heir": "", "epoch": epoch, "renewals": kept.get("renewals", 0) + 1}
    if "offset" not in kept or "origin" not in kept:
        kept["origin"] = epoch
    return msgspec.structs.replace(NOBODY, **kept)


def _lease_means(lease: LeaseRecord) -> str:
    if lease.offset >= 0:
        return f"the partition goes on at its committed offset, {lease.offset:,}."
    return "its offset is lost: the partition begins where the job's or the sink's `start` says, or its last restart."
