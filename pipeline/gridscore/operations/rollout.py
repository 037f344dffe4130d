"""Which worker scores with which version of a job's model, and why one is behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.job import Jobs
from gridscore.models import Registry
from gridscore.operations.status import Observer

if TYPE_CHECKING:
    from gridscore.grid import Grid


class WorkerVersion(msgspec.Struct, frozen=True):
    """What one worker has."""

    worker: str
    host: str
    pid: int
    partitions: int
    version: int  # that it scores with; 0 if it has none yet
    state: str  # `live`, `behind` (it goes on with another version) or `loading` (it has none)
    why: str = ""  # it does not have the version that is meant; empty if that is not known, or it has it


class Rollout(msgspec.Struct, frozen=True):
    """A job's model, and its workers."""

    job: str
    model: str
    version: int  # that is meant to score
    workers: tuple[WorkerVersion, ...]  # living ones that take part in the job

    @property
    def complete(self) -> bool:
        """Whether there are workers, and all have the version."""
        return bool(self.workers) and all(worker.state == "live" for worker in self.workers)

    def to_json(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "complete": self.complete}


async def rollout(grid: Grid, name: str) -> Rollout:
    """Look which worker of a job has which version.

    Raises JobError if there is no such job; ModelError if its model has no such version or alias.
    """
    record = await Jobs(grid).get(name)
    ref = record.job.model
    meant = await Registry(grid).resolve(ref.name, alias=ref.alias, version=ref.version, release=record.release)
    found = []
    for worker in (await Observer(grid, name).look()).workers:
        if (figures := worker.jobs.get(name)) is None:
            continue
        state = "live" if figures.version == meant.version else "behind" if figures.version else "loading"
        why = "" if state == "live" else figures.model_error
        what = (figures.partitions, figures.version, state, why)
        found.append(WorkerVersion(worker.id, worker.host, worker.pid, *what))
    return Rollout(name, ref.name, meant.version, tuple(found))
