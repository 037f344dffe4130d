"""What a job has left in the cluster, and its removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gridscore.dead_letters.letters import map_of
from gridscore.errors import JobError
from gridscore.grid import transport
from gridscore.grid.records import Records
from gridscore.group import rescan
from gridscore.group.leases import start_over
from gridscore.job.life import ENDED, JOBS_MAP, Jobs
from gridscore.models import Registry, experiment
from gridscore.models.certificates import certificates_of, forget
from gridscore.models.drift import DRIFT_MAP
from gridscore.operations.flow import FlowObserver
from gridscore.operations.status import ACKNOWLEDGED_MAP
from gridscore.scoring.audit import AUDITS_MAP
from gridscore.scoring.window_messages import answer_map, group_of, request_map
from gridscore.scoring.window_states import map_of as windows_map_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.operations.flow import Flow

RESULTS, EVENTS, MODEL, DEAD_LETTERS, WINDOWS = "results", "events", "model", "dead letters", "windows"
_JOB = "job"


class Remnant(NamedTuple):
    """Something to be removed."""

    # The job itself, or its results (and states of windows, which go with them), events, dead letters or model.
    what: str
    name: str  # of the job, the map or the model
    entries: int  # how many; of a model, its versions; of a job, the partitions with an offset


async def remnants(grid: Grid, name: str, what: Collection[str] = ()) -> list[Remnant]:
    """What would be removed, in order; the job itself comes last.

    `what`: what to remove besides the job: `RESULTS`, `EVENTS`, `MODEL`, `DEAD_LETTERS`. Raises JobError if there is no
    such job, it has not ended, or others use what would be removed.
    """
    flow = await FlowObserver(grid, name).look()
    (status,) = flow.overview.jobs
    record = status.record
    if record.state not in ENDED:
        raise JobError(f"The job `{name}` is {record.state}.", f"End it first: `gridscore cancel {name}`.")
    if status.workers:
        raise JobError(f"A worker still finishes its writes for the job `{name}`.", "Try again in a second.")
    maps = {RESULTS: record.job.results, EVENTS: record.job.events, DEAD_LETTERS: map_of(name)}
    await _refuse_used(grid, record, flow, {kind: maps[kind] for kind in maps if kind in what}, model=MODEL in what)
    found = [
        Remnant(kind, map_name, await transport.map_size(grid.client, map_name))
        for kind, map_name in maps.items()
        if kind in what and await grid.has_map(map_name)
    ]
    if record.job.used_windows and RESULTS in what:
        found += [
            Remnant(WINDOWS, map_name, await transport.map_size(grid.client, map_name))
            for map_name in (windows_map_of(name), request_map(name), answer_map(name), record.job.late or "")
            if map_name and await grid.has_map(map_name)
        ]
    if MODEL in what:
        registry, model = Registry(grid), record.job.model.name
        versions = {each.name: len(each.versions) for each in await registry.list()}
        if model in versions:
            found.append(Remnant(MODEL, model, versions[model]))
    return [*found, Remnant(_JOB, name, sum(1 for position in status.positions if position.offset >= 0))]


async def wipe(grid: Grid, found: Collection[Remnant]) -> None:
    """Remove what `remnants` has found. If it is interrupted, the same call again removes the rest.

    Raises JobError if the job was submitted again meanwhile; ConflictError if its offsets could not be reset.
    """
    for what, name, _ in found:
        if what == MODEL:
            await Registry(grid).delete_all(name)
        elif what == _JOB:
            await _forget(grid, name)
        else:
            # Clearing would not do: the journal would keep it all, and a job that begins at `oldest` would score it.
            await grid.destroy(name)


async def _forget(grid: Grid, name: str) -> None:
    """Remove the job's record, and what the control maps know of it.

    Its lease records stay, without offsets: their epochs tell old results from new ones.
    """
    records = Records(grid, JOBS_MAP)
    record = await records.get(name)
    if record is None:
        return
    found = await Jobs(grid).get(name)
    if found.state not in ENDED:
        raise JobError(f"The job `{name}` was submitted again meanwhile.", "It stays.")
    for group in (name, *([group_of(name)] if found.job.routes_windows else [])):
        await start_over(grid, group)
    await rescan.forget(grid, name)
    for map_name in (AUDITS_MAP, ACKNOWLEDGED_MAP, DRIFT_MAP):
        await Records(grid, map_name).delete(name)
    await experiment.forget(grid, name, found.job.results)
    await forget(grid, [each for each in await certificates_of(grid) if each.job == name])
    if not await records.remove(record):
        raise JobError(f"The job `{name}` was submitted again meanwhile.", "It stays.")


async def _refuse_used(grid: Grid, record: JobRecord, flow: Flow, maps: dict[str, str], *, model: bool) -> None:
    """Refuse to remove what other jobs, or running sources and sinks, still use."""
    used = [(f"The source `{each.name}` runs", EVENTS) for each in flow.sources if each.processes]
    used += [(f"The sink `{each.record.name}` runs", RESULTS) for each in flow.sinks if each.processes]
    users = [f"{who}: it uses `{maps[what]}`" for who, what in used if what in maps]
    for other in await Jobs(grid).all():
        job = other.job
        if other.name == record.name or other.state in ENDED:
            continue
        theirs = {job.events, job.results, *(lookup.map for lookup in job.lookups.values())}
        users += [f"The job `{other.name}` uses `{name}`" for name in maps.values() if name in theirs]
        if model and job.model.name == record.job.model.name:
            users.append(f"The job `{other.name}` scores with the model `{job.model.name}`")
    if users:
        raise JobError(f"{'; '.join(users)}.", "Stop it first, or leave this out.")
