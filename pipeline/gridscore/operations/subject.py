"""The subject of a trial: a job, versions of its model and its lookups, from files or from a cluster."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gridscore.errors import MapNotFoundError, UsageError
from gridscore.features import filled_tables
from gridscore.features.function_process import FunctionProcess
from gridscore.features.functions import allowed
from gridscore.job import Jobs, load_job
from gridscore.models import LoadedModel, Registry, check_fit, completed, loaded_from
from gridscore.scoring.rehearsal import Given, lookups_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from gridscore.grid import Grid
    from gridscore.job import Job, JobRecord


class Side(NamedTuple):
    """A version of the model, and what it is called."""

    name: str
    model: LoadedModel


class Subject(NamedTuple):
    """The subject of a trial."""

    job: Job  # with its features, which a job file may leave to the model
    record: JobRecord | None  # what the cluster knows of the job; None if it is of a file
    sides: list[Side]  # the versions that were asked for
    given: Given
    grid: Grid | None  # None if no cluster was needed

    async def live(self) -> tuple[JobRecord, Grid]:
        """The record of a submitted job that gets events, and its cluster.

        Raises UsageError if the job is not submitted; MapNotFoundError if there is no event map.
        """
        if self.record is None or self.grid is None:
            raise UsageError("Only a submitted job has events and results.", "Name one; `preview` takes files, too.")
        if not await self.grid.has_map(self.job.events):
            raise MapNotFoundError(
                f"The event map `{self.job.events}` is not there yet.", "Put an event into it first."
            )
        return self.record, self.grid


def is_file(text: str | None) -> bool:
    """Whether a text means a file, and not a name in the cluster."""
    if text is None:
        return False
    path = Path(text)
    return path.suffix in (".yaml", ".yml", ".ubj", ".json") or path.name != text


@asynccontextmanager
async def subject_of(
    connect: Callable[[], AbstractAsyncContextManager[Grid]],  # called if something is in the cluster
    job: str,  # the path of a job file, or the name of a submitted job
    # Each a file, the number of a version, or an alias; None for what the job scores with.
    models: Sequence[str | None],
    lookups: Path | None,  # a directory with their tables; without it, the maps of the cluster are taken as they are
) -> AsyncIterator[Subject]:
    """Find what the arguments of a command name.

    Raises JobFileError if the job file is not valid; JobError if there is no such job; ModelError if there is no such
    version, it cannot be used, or would not score the job's features; TableError if a table cannot be read.
    """
    async with AsyncExitStack() as stack:
        own = load_job(job) if is_file(job) else None
        grid = None
        if own is None or not all(map(is_file, models)) or (own.lookups and lookups is None):
            grid = await stack.enter_async_context(connect())
        record = None if own is not None or grid is None else await Jobs(grid).get(job)
        found = own if own is not None else record.job  # type: ignore[union-attr]
        sides = [await _side(found, record, text, grid) for text in models]
        found = completed(found, sides[0].model.version)
        for side in sides:
            check_fit(found, side.model.version, allow_changed=True)
        if found.lookups and lookups is None and grid is not None:
            given = await stack.enter_async_context(lookups_of(grid, found))
        else:
            given = Given(filled_tables(found, lookups), {})
        if found.has_functions:  # events that hang one, or end its process, are among those of a live job
            functions = FunctionProcess(found, given.tables, allowed())
            stack.push_async_callback(functions.close)
            given = given._replace(functions=functions)
        yield Subject(found, record, sides, given, grid)


async def _side(job: Job, record: JobRecord | None, text: str | None, grid: Grid | None) -> Side:
    ref = job.model
    if grid is None or (text is not None and is_file(text)):
        _, model = await asyncio.to_thread(loaded_from, text, ref.name)
        return Side(str(text), model)
    registry = Registry(grid)
    version = await registry.chosen(ref, text, None if record is None else record.release)
    return Side(str(version), await registry.load(version))
