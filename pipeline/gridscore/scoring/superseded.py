"""Dead letters that are superseded: the event, or a newer one under its key, has a result by now.

A restart from the oldest scores events again, without knowing of their dead letters. So the worker that holds the first
partition of a job looks for results under their keys once a minute:

- If it is the result of the same event, the dead letter is removed.
- If it is that of a newer event, somebody may still want to know why the older one failed: its dead letter is marked in
  lists, and removed after a day.
"""

from __future__ import annotations

import asyncio
import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import map_of, walk_entries
from gridscore.errors import GridError
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import remove_same, values_of
from gridscore.scoring.prior_results import origins_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.scoring.prior_results import ResultOrigin

_log = logging.getLogger(__name__)

ROUND_SECONDS = 60.0
KEEP_SECONDS = 86_400.0  # how long the dead letter of an event is kept when a newer one of its key has a result


class By(StrEnum):
    """Which event has a result."""

    ITSELF = "scored by now"
    NEWER = "a newer event of its key is scored"


async def superseded(grid: Grid, job: Job, letters: Iterable[DeadLetter]) -> dict[str, By]:
    """The superseded ones among a job's dead letters, by ID."""
    by_partition: dict[int, list[tuple[bytes, DeadLetter]]] = {}
    for dead in letters:
        key = dead.key_bytes
        if key and 0 <= dead.partition < grid.partition_count:
            by_partition.setdefault(dead.partition, []).append((key, dead))
    found: dict[str, By] = {}
    for partition, some in by_partition.items():
        results = await origins_of(grid, job.results, partition, [key for key, _ in some])
        later = [(key, dead, results[key]) for key, dead in some if key in results and _is_later(results[key], dead)]
        # An event that was put back, or that a rescan found in the map, has another sequence than when it failed.
        events = await values_of(grid, job.events, partition, [key for key, *_ in later])
        for key, dead, result in later:
            same = result.sequence == dead.sequence or payload(events.get(key, b"")) == dead.raw_bytes
            found[dead.id] = By.ITSELF if same else By.NEWER
    return found


def _is_later(result: ResultOrigin, dead: DeadLetter) -> bool:
    """Whether a result was made after an event was rejected, and not from an older one."""
    return result.scored_at >= dead.at_ms > 0 and (result.sequence == -1 or result.sequence >= dead.sequence)


class Superseded:
    """Removes the superseded dead letters of a job, in the worker that holds its first partition.

    `held`: partitions that this worker may write for now.
    """

    def __init__(self, grid: Grid, job: Job, held: Callable[[], Collection[int]]) -> None:
        self._grid, self._job, self._held = grid, job, held

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            if 0 not in self._held():
                continue
            try:
                if await transport.map_size(self._grid.client, map_of(self._job.name)):
                    await self.round()
            except (HazelcastError, GridError) as error:
                _log.warning("%s: looking through the dead letters failed, trying again: %s", self._job.name, error)

    async def round(self) -> int:
        """Look once; returns how many dead letters were removed."""
        removed, now, name = 0, time.time() * 1000, map_of(self._job.name)
        async for _, entries in walk_entries(self._grid, self._job.name):
            letters = {dead.id: (key, value, dead) for key, value, dead in entries if dead is not None}
            for letter_id, by in (await superseded(self._grid, self._job, (d for *_, d in letters.values()))).items():
                key, value, dead = letters[letter_id]
                if by is By.ITSELF or now - dead.at_ms > KEEP_SECONDS * 1000:
                    removed += await remove_same(self._grid, name, key, value)
        if removed:
            text = "%s: %d dead letters removed: their events, or newer ones of their keys, are scored"
            _log.info(text, self._job.name, removed, extra={"action": "superseded", "removed": removed})
        return removed
