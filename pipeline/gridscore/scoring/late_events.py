"""Late events: those that were too late to count in windows, in a map of their own, if the job names one.

They are written before results: *late event, result, state, offset*. So what has a result, or is in a state, is there;
and an event that is read again without either finds its windows as the first time, and is as late as it was then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import letter_id, text_of_key
from gridscore.dead_letters.writer import Weights
from gridscore.grid import transport
from gridscore.grid.wire import string_data
from gridscore.grid.writer import MapWriter
from gridscore.scoring.batches import Late

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from gridscore.features import EventColumns
    from gridscore.features.windows import Windows
    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.scoring.batches import PartitionBatch, Rows

_log = logging.getLogger(__name__)

_KEEP_SECONDS = 7 * 86_400
_LOOK_SECONDS, _SAY_SECONDS = 2.0, 10.0

_encode = msgspec.json.Encoder().encode


def keep_seconds(job: Job) -> int:
    """How long the map keeps a late event: as long as results, or a week."""
    return _KEEP_SECONDS if job.retain_seconds is None else max(1, round(job.retain_seconds))


def note_late(windows: Windows, events: EventColumns, rows: Rows) -> None:
    """Note which of some events were late, for their partitions to write."""
    late = {layout.name: windows.late_in(number, events) for number, layout in enumerate(windows.layouts)}
    found = np.flatnonzero(~np.isnan(list(late.values())).all(axis=0)).tolist()
    ends = np.cumsum([count for _, count in rows.spans])
    for row, span in zip(found, np.searchsorted(ends, found, side="right").tolist(), strict=True):
        by = {name: float(seconds[row]) for name, seconds in late.items() if not math.isnan(seconds[row])}
        rows.spans[span][0].late.append(Late(rows.sequences[row], rows.keys[row], rows.values[row], by))


class LateEvents:
    """Writes the late events of a job in one worker, as far as there is room: as much as for its dead letters.

    A worker asks for the size of the map now and then, and adds what it has written since: several at once may come to
    more than that for a moment. No result waits for the answer, which needs every member.
    """

    def __init__(self, grid: Grid, job: Job, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._grid = grid
        self._job = job
        self._spawn = spawn
        self._map = MapWriter(grid, str(job.late))
        self._looking: asyncio.Task[None] | None = None
        self._there = self._under_way = 0
        self._weights = Weights()
        self._looked_at = self._said_at = -math.inf
        self._left = 0

    async def prepare(self) -> None:
        """See `MapWriter.prepare`; and look how many there are."""
        await self._map.prepare()
        self._looking = self._spawn(self._look())
        await asyncio.wait([self._looking], timeout=_LOOK_SECONDS)

    async def put(self, part: PartitionBatch) -> None:
        """Write those of a partition into the same partition of the map, while its lease holds.

        Raises HazelcastError: they were not confirmed.
        """
        is_old = self._grid.clock() - self._looked_at >= _LOOK_SECONDS
        if is_old and (self._looking is None or self._looking.done()):
            self._looking = self._spawn(self._look())
        texts = self._fitting(part)
        count = len(texts)
        self._say(len(part.late) - count)
        if not count:
            return
        hashed, kept = part.partition + self._grid.partition_count, part.late[:count]
        keys = [string_data(letter_id(part.partition, each.key, each.raw).encode(), hashed) for each in kept]
        self._there += count
        self._under_way += count
        self._weights.add(texts)
        try:
            await self._map.put_partition(part.partition, keys, texts, until=part.cursor.until)
        finally:
            self._under_way -= count

    async def _look(self) -> None:
        """Look how many there are."""
        try:
            there = await transport.map_size(self._grid.client, self._map.map_name) + self._under_way
        except HazelcastError as error:
            _log.debug("%s: nobody says how many late events there are: %s", self._job.name, error)
            return
        self._there, self._looked_at = there, self._grid.clock()

    def _fitting(self, part: PartitionBatch) -> list[bytes]:
        """The texts of those, from the first, for which there is room."""
        size, texts = self._weights.of(self._there), list[bytes]()
        for each in part.late[: max(0, self._job.max_dead_letters - self._there)]:
            text = self._text(part, each)
            size += len(text)
            if size > self._job.max_dead_letter_bytes:
                break
            texts.append(text)
        return texts

    def _text(self, part: PartitionBatch, late: Late) -> bytes:
        about = {
            "late": late.by,
            "key": text_of_key(self._grid, late.key),
            "partition": part.partition,
            "sequence": late.sequence,
            "noted_at": int(time.time() * 1_000),
        }
        return b'%b,"event":%b}' % (_encode(about)[:-1], late.raw)  # it was decoded, so it is JSON

    def _say(self, left: int) -> None:
        self._left += left
        if self._left and (now := self._grid.clock()) - self._said_at > _SAY_SECONDS:
            text = "%s: `%s` has no room (max_dead_letters, max_dead_letter_bytes): %d late events are only counted"
            _log.warning(text, self._job.name, self._map.map_name, self._left, extra={"action": "late_unkept"})
            self._said_at, self._left = now, 0
