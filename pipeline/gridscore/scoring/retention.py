"""Retention: removes events and results that are scored and old, so that maps do not grow for ever.

It removes them explicitly, without a TTL: replicas expire entries each on their own, and their journals differ for good
afterwards. The result's `scored_at` tells what is old. An event is removed only if its newest version is scored; each
of these steps is needed because something may be put under the same key meanwhile:

1. Read the results of a partition, and note key and exact bytes of the old ones.
2. Read the exact bytes of the events under these keys.
3. Ask the journal for its newest sequence. What was read in 2 is not newer.
4. Wait until the partition's owner has scored past that, with acknowledged results.
5. Read the results again. Where the bytes are still those of 1, nothing was scored under this key since: the old result
   is that of the event read in 2. An event that is a dead letter stays.
6. Remove the event if it still has the bytes of 2; then the result, if it still has the bytes of 1.

An event without a result stays, whatever its age, and so does a dead letter, until somebody has dealt with it. Where
several jobs read the same events, an event goes when the longest `retain` is over and all of them have its result.

States of windows go when they were not written for `retain` and as long as an event is in some window. They need two
steps only: that the partition's owner has scored past all that was there when they were read; and that they are the
same still.

Each removal is an entry in the journal of its map. At most a part of a ring is removed at a time (between two steps 4),
in a part of the worker's time, unless that is too little to keep up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridError
from gridscore.grid import transport, wire
from gridscore.grid.capacity import journal_capacity
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk
from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.group.offsets import NotNowError
from gridscore.group.rescan import Event
from gridscore.job import Jobs
from gridscore.job.life import ENDED
from gridscore.scoring.missing import rejection_of, rejections
from gridscore.scoring.prior_results import ResultOrigin
from gridscore.scoring.window_states import look_back_seconds, was_written_before
from gridscore.scoring.window_states import map_of as states_map_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.scoring.missing import Rejection

_log = logging.getLogger(__name__)

MAX_ROUND_SECONDS = 900.0  # longest pause between two rounds through the maps; a quarter of `retain` if that is less
SHARE = 0.2
MAX_SHARE = 0.8  # part of the time that removing may take; up to the second while it does not keep up
_PAGE = 512
_STATES_PAGE = 32
_STATES_ROUNDS = 8  # rounds through the states of windows in the time for which they are kept: each reads all of them
_AT_ONCE = 64
_CHUNK = 256
_PART_OF_RING = 8
_PATIENCE_SECONDS = 10.0
_WAIT_SECONDS = 0.05
_LETTERS_SECONDS = 60.0

_origin = msgspec.json.Decoder(ResultOrigin).decode


class Retention:
    """Removes what is scored and old from the partitions that a worker holds.

    `held`: partitions that this worker may write for now; `acknowledged`: see `Group.acknowledged_to`; `until`: see
    `Leases.until`. `removed`: events removed since it began.
    """

    def __init__(
        self,
        grid: Grid,
        job: Job,
        held: Callable[[], Collection[int]],
        acknowledged: Callable[[int], int | None],
        until: Callable[[int], float],
    ) -> None:
        self._grid, self._job, self._held = grid, job, held
        self._acknowledged, self._until = acknowledged, until
        self._journal = Journal(grid, job.events)
        self._letters: set[Rejection] = set()
        self._letters_size = 0
        self._letters_at = float("-inf")
        self._chunk = 1
        self._share = SHARE
        # Of windows with other keys, somebody else may hold the states of the partition: they go by the map's own rule.
        is_beside = bool(job.used_windows) and not job.routes_windows
        self._states_seconds = look_back_seconds(job) + (job.retain_seconds or 0.0) if is_beside else 0.0
        self._states_at = float("-inf")
        self.removed = 0

    async def run(self) -> None:
        """Remove until cancelled; returns at once if the job retains all."""
        seconds = self._job.retain_seconds
        if seconds is None:
            return
        pause, took = min(MAX_ROUND_SECONDS, seconds / 4), 0.0
        while True:
            await asyncio.sleep(max(0.0, pause - took))
            began = self._grid.clock()
            try:
                await self.round()
                took = self._grid.clock() - began
                self._keep_up(took > pause)
                await self.states_round()
            except (HazelcastError, GridError) as error:
                _log.warning("%s: removing old events failed, trying again: %s", self._job.name, error)
            took = self._grid.clock() - began

    def _keep_up(self, behind: bool) -> None:
        """Take more of the time if a round takes longer than the pause between two, otherwise less again."""
        if behind and self._share >= MAX_SHARE:
            _log.warning("%s: more events come than this worker can remove: start more workers", self._job.name)
        self._share = min(MAX_SHARE, self._share * 2) if behind else max(SHARE, self._share / 2)

    async def round(self) -> int:
        """Go once through all held partitions; returns how many events were removed."""
        others = [
            record.job
            for record in await Jobs(self._grid).all()
            if record.job.events == self._job.events and record.name != self._job.name and record.state not in ENDED
        ]
        keeps = [job.retain_seconds for job in (self._job, *others)]
        longest = max((seconds for seconds in keeps if seconds is not None), default=0.0)
        if None in keeps:
            name = next(job.name for job in (self._job, *others) if job.retain_seconds is None)
            _log.info("%s: events are kept, because the job %s retains all", self._job.name, name)
            return 0
        capacity = await journal_capacity(self._grid, self._job.events)
        self._chunk = max(1, min(_CHUNK, capacity.partition // _PART_OF_RING)) if capacity else _CHUNK
        before = self.removed
        for partition in sorted(self._held()):
            try:
                await self._partition(partition, int((time.time() - longest) * 1000), others)
            except NotNowError:
                continue
        if self.removed > before:
            _log.info("%s: %d old events removed", self._job.name, self.removed - before, extra={"action": "retention"})
        return self.removed - before

    async def states_round(self) -> int:
        """Go through the states of windows, if it is time to; returns how many were removed."""
        now, every = self._grid.clock(), self._states_seconds / _STATES_ROUNDS
        if not every or now < self._states_at + every:
            return 0
        self._states_at, removed = now, 0
        for partition in sorted(self._held()):
            try:
                removed += await self._remove_states(partition, time.time() - self._states_seconds)
            except NotNowError:
                continue
        if removed:
            _log.info("%s: %d old states removed", self._job.name, removed, extra={"action": "retention"})
        return removed

    async def _remove_states(self, partition: int, before: float) -> int:
        name, removed, began = states_map_of(self._job.name), 0, time.perf_counter()
        async for entries in walk(self._grid, name, partition, _STATES_PAGE):
            old = {key: value for key, value in entries if was_written_before(value, before)}
            spent = time.perf_counter() - began
            if old:
                _, newest = await self._journal.bounds(partition)
                await self._scored_past(partition, newest, [])
                began = time.perf_counter()
                removed += sum(await self._remove_same(name, partition, list(old), old))
                spent += time.perf_counter() - began
            await self._pause(spent)
            if partition not in self._held():
                raise NotNowError
            began = time.perf_counter()
        return removed

    async def _partition(self, partition: int, cutoff: int, others: list[Job]) -> None:
        """Step 1, and the other steps for each part of what it finds."""
        old: list[tuple[bytes, bytes]] = []
        began = time.perf_counter()
        async for entries in walk(self._grid, self._job.results, partition, _PAGE):
            old += [(key, value) for key, value in entries if _is_old(value, cutoff)]
            spent = time.perf_counter() - began
            while len(old) >= self._chunk:
                spent += await self._remove(partition, dict(old[: self._chunk]), others)
                del old[: self._chunk]
            await self._pause(spent)
            if partition not in self._held():
                return
            began = time.perf_counter()
        if old:
            await self._pause(await self._remove(partition, dict(old), others))

    async def _pause(self, spent: float) -> None:
        """Leave time to the rest of the worker, so that we have spent only our share."""
        await asyncio.sleep(spent * (1 - self._share) / self._share)

    async def _remove(self, partition: int, old: dict[bytes, bytes], others: list[Job]) -> float:
        """Steps 2 to 6; returns the seconds that were not spent waiting."""
        began = time.perf_counter()
        events = await values_of(self._grid, self._job.events, partition, old)
        for job in others:
            scored = await values_of(self._grid, job.results, partition, events)
            for key in [key for key in events if key not in scored]:
                del events[key], old[key]
        if not old:
            return time.perf_counter() - began
        _, newest = await self._journal.bounds(partition)
        waited = time.perf_counter()
        await self._scored_past(partition, newest, others)
        waited = time.perf_counter() - waited
        now = await values_of(self._grid, self._job.results, partition, old)
        letters = await self._rejected()
        same = [
            key
            for key, value in old.items()
            if now.get(key) == value
            and not (letters and key in events and rejection_of(Event(key, events[key])) in letters)
        ]
        for start in range(0, len(same), _AT_ONCE):
            if partition not in self._held():
                raise NotNowError
            some = same[start : start + _AT_ONCE]
            there = [key for key in some if key in events]
            gone = dict(zip(there, await self._remove_same(self._job.events, partition, there, events), strict=True))
            # A result without an event was left by an interrupted removal.
            rest = [key for key in some if gone.get(key, True)]
            await self._remove_same(self._job.results, partition, rest, old)
            self.removed += sum(gone.values())
        return time.perf_counter() - began - waited

    async def _scored_past(self, partition: int, newest: int, others: list[Job]) -> None:
        deadline = self._grid.clock() + _PATIENCE_SECONDS
        while True:
            offset = self._acknowledged(partition)
            if offset is None or partition not in self._held():
                raise NotNowError
            if offset > newest and await self._others_past(partition, newest, others):
                return
            if self._grid.clock() > deadline:
                raise NotNowError
            await asyncio.sleep(_WAIT_SECONDS)

    async def _others_past(self, partition: int, newest: int, others: list[Job]) -> bool:
        for job in others:
            lease = (await read_records(self._grid, job.name, [partition])).get(partition)
            if lease is None or lease.offset <= newest:
                return False
        return True

    async def _rejected(self) -> set[Rejection]:
        """The job's dead letters, read again when their number has changed, or a minute later."""
        size, now = await transport.map_size(self._grid.client, map_of(self._job.name)), self._grid.clock()
        if size != self._letters_size or (size and now - self._letters_at > _LETTERS_SECONDS):
            self._letters = await rejections(self._grid, self._job) if size else set()
            self._letters_size, self._letters_at = size, now
        return self._letters

    async def _remove_same(
        self, name: str, partition: int, keys: list[bytes], values: dict[bytes, bytes]
    ) -> list[bool]:
        """Remove the entries that have not changed; returns which had not."""
        outcomes = await asyncio.gather(
            *(
                transport.invoke(
                    self._grid.client,
                    wire.encode_remove_if_same(name, key, values[key]),
                    partition,
                    wire.decode_remove_if_same,
                    retry_seconds=0,
                    until=self._until(partition),
                )
                for key in keys
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, HazelcastError):
                raise outcome
        # An unknown fate is left to the next round.
        return [outcome is True for outcome in outcomes]


def _is_old(value: bytes, cutoff: int) -> bool:
    try:
        return 0 < _origin(payload(value)).scored_at < cutoff
    except msgspec.DecodeError:
        return False  # whatever it is, it is not one of our results
