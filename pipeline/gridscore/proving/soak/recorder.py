"""The recorder of a soak: the result map's journal as it grows, and whose each partition was when.

A round reads every lease record, then asks where each partition's result journal ends, then reads up to there. If a
lease had epoch 7 and the journal, asked afterwards, ended at 120, then whatever stands behind 120 was written later: a
result of epoch 6 there was written by an owner whose time was over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.grid.copies import payload
from gridscore.grid.entries import walk
from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.proving.soak.evidence import EVENTS, JOURNAL, JOURNAL_END, MARKS, RESULTS, LineFile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page

_log = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
_PAGE = 512
_AT_ONCE = 64  # partitions that are read at the same time
_END_ATTEMPTS = 20
_RETRY_SECONDS = 1.0


class Recorder:
    """Writes down the result map's journal of one job, and its leases.

    `grid`: the connection; `job`: name of the job; its events are in `events.JOB`, its results in `results.JOB`;
    `folder`: where the files go.
    """

    def __init__(self, grid: Grid, job: str, folder: Path) -> None:
        self._grid, self._job = grid, job
        self._map_name = f"results.{job}"
        self._folder = folder
        self._reader = Journal(grid, self._map_name)
        self._journal = LineFile(folder / JOURNAL)
        self._marks = LineFile(folder / MARKS)
        self._positions = [0] * grid.partition_count
        self._seen: dict[int, tuple[int, str, int]] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Record until cancelled. Members may come and go meanwhile."""
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(20):
                    await self._round()
            except (HazelcastError, GridError, TimeoutError) as error:
                _log.warning("A round was not finished: %s", error or "the cluster does not answer")
            self._journal.flush()
            self._marks.flush()
            await asyncio.sleep(max(0.1, began + ROUND_SECONDS - time.monotonic()))

    async def finish(self) -> None:
        """A last round, then the whole journal and both maps as they are now."""
        await self._again(self._round)
        self._journal.close()
        self._marks.close()
        await self._again(self._journal_as_it_is)
        await self._again(partial(self._entries_as_they_are, self._map_name, RESULTS))
        await self._again(partial(self._entries_as_they_are, f"events.{self._job}", EVENTS))

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        for attempt in range(_END_ATTEMPTS):
            try:
                await work()
            except (HazelcastError, GridError):
                if attempt == _END_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _round(self) -> None:
        leases = await read_records(self._grid, self._job)
        bounds = await asyncio.gather(*(self._reader.bounds(p) for p in range(self._grid.partition_count)))
        now = b"%d" % (time.time_ns() // 1_000_000)
        for partition, record in leases.items():
            seen = (record.epoch, record.owner, bounds[partition][1])
            if self._seen.get(partition) != seen:
                self._seen[partition] = seen
                self._marks.add(now, *(str(each).encode() for each in (partition, *seen)))
        await _all(self._read(p, newest) for p, (_, newest) in enumerate(bounds))

    async def _read(self, partition: int, newest: int) -> None:
        before = self._positions[partition]
        if newest + 1 < before:
            # The member that was read is dead, and its backup had less. At the end, all that is there is read again.
            _log.warning("Partition %d: its journal ends at %d, before %d", partition, newest, before)
            self._positions[partition] = newest + 1
        async with self._limit:
            while self._positions[partition] <= newest:
                page = await self._reader.read(partition, self._positions[partition], _PAGE)
                if page is None:
                    return
                self._write(self._journal, partition, page)
                self._positions[partition] = page.next

    @staticmethod
    def _write(file: LineFile, partition: int, page: Page) -> None:
        where = b"%d" % partition
        for sequence, key, value in zip(page.sequences, page.keys, page.values, strict=True):
            file.add(where, b"%d" % sequence, key[12:], value)

    async def _journal_as_it_is(self) -> None:
        path = self._folder / JOURNAL_END
        path.unlink(missing_ok=True)
        file = LineFile(path)

        async def read(partition: int) -> None:
            async with self._limit:
                position, newest = await self._reader.bounds(partition)
                while position <= newest:
                    page = await self._reader.read(partition, position, _PAGE)
                    if page is None:
                        return
                    self._write(file, partition, page)
                    position = page.next

        try:
            await _all(read(p) for p in range(self._grid.partition_count))
        finally:
            file.close()

    async def _entries_as_they_are(self, map_name: str, name: str) -> None:
        path = self._folder / name
        path.unlink(missing_ok=True)
        file = LineFile(path)

        async def read(partition: int) -> None:
            async with self._limit:
                async for entries in walk(self._grid, map_name, partition, _PAGE):
                    for key, value in entries:
                        file.add(key[12:], payload(value))

        try:
            await _all(read(p) for p in range(self._grid.partition_count))
        finally:
            file.close()


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of it before the first failure is raised: nothing may still be reading when it is tried again."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
