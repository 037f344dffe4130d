"""Whose a name is: jobs, sources and sinks keep dead letters under their names, so no two of them may share one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gridscore.dead_letters.letters import SOURCE_STAGE, map_of, walk_letters
from gridscore.grid.records import Records
from gridscore.job import Jobs

if TYPE_CHECKING:
    from gridscore.grid import Grid

SINKS_MAP = "gridscore.sinks"
SOURCES_MAP = "gridscore.sources"
POSITIONS_MAP = "gridscore.positions"

Owner = Literal["job", "sink", "source"]


async def owner_of(grid: Grid, name: str) -> Owner | None:
    """What has a name, as far as the grid knows: a source is known while it runs, and by what it has left.

    Raises:
        HazelcastError: The cluster did not answer.
    """
    if await Jobs(grid).find(name) is not None:
        return "job"
    if await Records(grid, SINKS_MAP).get(name) is not None:
        return "sink"
    if any(record.value.get("name") == name for record in (await Records(grid, SOURCES_MAP).all()).values()):
        return "source"
    if any(key.startswith(f"{name}/") for key in await Records(grid, POSITIONS_MAP).all()):
        return "source"
    if await grid.has_map(map_of(name)):
        async for _, dead in walk_letters(grid, name):
            return "source" if dead.stage == SOURCE_STAGE else None
    return None
