"""What to do about bad records: each is repaired if that is safe, and otherwise removed.

`control_maps` says for each map what belongs there, and what it means to remove a record.
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
from gridscore.grid.entries import value_of
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
from gridscore.models.experiment import EXPERIMENTS_MAP, experiment_in
from gridscore.models.record import ModelRecord
from gridscore.models.registry import MODELS_MAP, VERSIONS_MAP
from gridscore.models.variants import COUNTS_MAP, Counts
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
    """What belongs in a control map."""

    name: str
    parse: Callable[[Record], object]  # parses a record, or raises
    means: str  # what it means to remove a record
    harms: bool = True  # whether something does not work while a bad one is there


@dataclass(frozen=True, slots=True)
class Repair:
    """What is to be done about a bad record."""

    bad: BadRecord
    means: str  # what it means, for people
    harms: bool  # whether something does not work until then
    value: dict[str, Any] | None = None  # what replaces it; None if it is removed

    @property
    def what(self) -> str:
        return "removes it" if self.value is None else "repairs it"


def _model(record: Record) -> object:
    if "revision" not in record.value:
        raise ValueError("it is not the record of a model")
    return ModelRecord.read(record.value, record.key)


def _version(record: Record) -> object:
    name, slash, upload = record.key.rpartition("/")
    if not (name and slash and upload):
        raise ValueError("its key is not a model and an upload")
    return ModelVersion.from_json(record.value, name, 1)


_BACK = "it comes back within a second if its process lives."


def control_maps(partitions: int) -> tuple[ControlMap, ...]:
    """All control maps of a cluster with so many partitions."""
    lease = partial(lease_records.parse, partition_count=partitions)
    request = partial(rescan.request_of, partition_count=partitions)
    no_job = "nobody scores for that job; its results and offsets stay: submitted again, it goes on where it stopped."
    no_model = "the model is gone from the registry: push it again; workers that have loaded it go on."
    no_experiment = "that experiment is over: the champion scores all events of the job."
    not_counted = "what a worker has counted of an experiment is missing from its report."
    again = "the source starts that file or table again: what it read before may come again, or be skipped."
    unlisted = "the sink is not listed before it is started again; it goes on where it stopped."
    no_rescan = "that rescan is not done; `gridscore audit JOB` finds what is missing."
    no_drift = "the next window of drift begins anew, and so do its alerts."
    newer = "results count as newer than all in the sinks' tables: those are written again."
    return (
        ControlMap(JOBS_MAP, JobRecord.parse, no_job),
        ControlMap(LEASES_MAP, lease, "nobody reads it: no group has such a partition."),
        ControlMap(RESCANS_MAP, request, no_rescan, harms=False),
        ControlMap(AUDITS_MAP, parsed(Noted), "the next audit of that job comes after a full pause.", harms=False),
        ControlMap(DRIFT_MAP, parsed(DriftRecord), no_drift, harms=False),
        ControlMap(ACKNOWLEDGED_MAP, parsed(Acknowledgement), "acknowledged losses are shown again.", harms=False),
        ControlMap(AUTOSCALE_MAP, parsed(Decisions), "`autoscale --explain` starts over.", harms=False),
        ControlMap(ACTIONS_MAP, parsed(Actions), "what was done before is not known any more.", harms=False),
        ControlMap(SESSIONS_MAP, lease, "leases that depend on it run out, and are taken again.", harms=False),
        ControlMap(HEARTBEATS_MAP, parsed(Heartbeat), _BACK, harms=False),
        ControlMap(HOLDINGS_MAP, parsed(Holdings), "it comes back when its process's partitions change.", harms=False),
        ControlMap(WORKERS_MAP, parsed(WorkerRecord), _BACK, harms=False),
        ControlMap(MODELS_MAP, _model, no_model),
        ControlMap(PARITY_MAP, parsed(Certificate), "`gridscore parity` compares once more.", harms=False),
        ControlMap(EXPERIMENTS_MAP, experiment_in, no_experiment, harms=False),
        ControlMap(COUNTS_MAP, Counts.of_record, not_counted, harms=False),
        ControlMap(VERSIONS_MAP, _version, "that version cannot be loaded any more: push the model again."),
        ControlMap(POSITIONS_MAP, position_of, again),
        ControlMap(SOURCES_MAP, parsed(SourceRecord), _BACK, harms=False),
        ControlMap(SINKS_MAP, SinkRecord.from_record, unlisted),
        ControlMap(PROCESSES_MAP, parsed(SinkProcess), _BACK, harms=False),
        ControlMap(BACKUPS_MAP, parsed(BackupRecord), "it comes back with the next restore point.", harms=False),
        ControlMap(ERAS_MAP, parsed(Era), newer),
    )


async def find_repairs(grid: Grid) -> list[Repair]:
    """Every bad record of all control maps, with what is to be done about it."""
    count = grid.partition_count
    maps = {each.name: each for each in control_maps(count)}
    for each in maps.values():
        await Records(grid, each.name).read(each.parse)
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
            if (value := await value_of(grid, CHUNKS_MAP, key)) is not None:
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
