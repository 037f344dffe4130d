"""The scoring loop of one job in one worker: take, score, write. The group decides which partitions it scores.

The way of a batch, in strict order:

1. *Take* what has arrived while the last batch was scored (`reader`).
2. *Score* it with the model that is active now (`scorer`); a new model becomes active only between two batches.
3. *Check* the lease of each partition; drop those whose lease has ended, unwritten (`leases`).
4. *Write* one put-all a partition, without waiting for the answers of the last batch. A partition has one under way,
   and the next collects behind it, for members may change the order of two. It is sent only while the lease holds
   (`grid.outbox`).
5. When a partition's write is acknowledged, and so are the dead letters of *this* partition's events in the batch, its
   offset may be *committed* (`offsets`); the group does this once a second, or earlier where a ring fills. Dead letters
   hold up nothing else: they lie in other partitions, whose members may be slow. A write that failed puts its partition
   back to what is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hazelcast.errors import HazelcastClientNotActiveError, HazelcastError

from gridscore.dead_letters.letters import letter
from gridscore.dead_letters.writer import LetterWriter, Limits
from gridscore.errors import FunctionError, GridError, LookupTooLargeError, MapNotFoundError, first_of
from gridscore.features.function_process import FunctionProcess
from gridscore.grid.capacity import journal_capacity
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.group.group import Group
from gridscore.group.leases import LEASE_SECONDS
from gridscore.group.offsets import Write
from gridscore.group.rescan import Rescanner
from gridscore.group.subscription import MOST_SHOWN, Subscriber
from gridscore.scoring.audit import audit_on_schedule
from gridscore.scoring.drift import watch_drift
from gridscore.scoring.late_events import LateEvents
from gridscore.scoring.live_experiment import LiveExperiment
from gridscore.scoring.live_model import LiveModel
from gridscore.scoring.lookups import JobLookups, Lookups
from gridscore.scoring.missing import MissingResults
from gridscore.scoring.preparation import prepare
from gridscore.scoring.prior_results import restart_offset, scored_in, without
from gridscore.scoring.reasons import Reasons
from gridscore.scoring.retention import Retention
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.shadow import Shadow
from gridscore.scoring.stats import JobStats, Latencies, subscription_of
from gridscore.scoring.superseded import Superseded
from gridscore.scoring.window_messages import SLOTS
from gridscore.scoring.window_requests import BATCH_EVENTS as ASKED_EVENTS
from gridscore.scoring.window_requests import WindowRequests, portions
from gridscore.scoring.window_stage import WindowStage
from gridscore.scoring.window_states import WindowStates
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gridscore.dead_letters.letters import Rejected
    from gridscore.dead_letters.writer import Place
    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.members import Members
    from gridscore.job import JobRecord
    from gridscore.scoring.batches import PartitionBatch
    from gridscore.scoring.live_model import LoadedModels
    from gridscore.scoring.scorer import ScoredBatch
    from gridscore.scoring.trial import Trial

_log = logging.getLogger(__name__)

BATCH_EVENTS = 4_096  # events after which a batch takes no further page
UNACKNOWLEDGED_EVENTS = 32_768  # events written and not acknowledged, above which the loop waits
CLOSE_SECONDS = 3.0
# Rings that a worker looks at to learn how much one holds; an estimate that is too small only commits early.
_RINGS = 32

_STATS_SECONDS = 0.5
_RETRY_SECONDS = 0.5
_LOOKUP_SECONDS = 2.0


class _Waiting(NamedTuple):
    """Results of a partition that are being written, or wait for earlier ones; and the dead letters of that batch."""

    part: PartitionBatch
    write: Write
    # What writes its dead letters; each says how many of which partition have no room.
    letters: Sequence[asyncio.Task[Counter[int]]]


class JobRunner:
    """Scores for one job until cancelled."""

    def __init__(
        self,
        grid: Grid,
        record: JobRecord,
        members: Members,  # who else scores
        *,
        # Called once, when everything is loaded: this worker then joins the group.
        joined: Callable[[], Any] = lambda: None,
        started: Callable[[], Any] = lambda: None,  # called once, when the first partitions are held
        lease_seconds: float = LEASE_SECONDS,  # how long partitions of a killed worker wait for a new owner
        lookups: Lookups | None = None,  # copies of lookup maps that the jobs of the process share; default: its own
        models: LoadedModels | None = None,  # loaded models that they share; default: its own
        times: bool = False,  # whether to count how long events took, in `stats.latencies`
        # Modules whose functions the job's features may call, with all below them.
        allow_python: Collection[str] = (),
    ) -> None:
        job = record.job
        self._grid, self._job, self._members = grid, job, members
        self._joined, self._started = joined, started
        self.stats = JobStats(latencies=Latencies() if times else None)
        self.has_joined = False
        self.is_scoring = False
        subscriber = _Scoring(grid, record, self.stats)
        self.group = Group(grid, subscription_of(record), subscriber, members, self.stats, seconds=lease_seconds)
        self._lookups = JobLookups(grid, job, lookups or Lookups(grid))
        self._copies, self._tables = self._lookups.copies, self._lookups.tables
        self._windows: WindowStates | None = None
        self._stage: WindowStage | None = None
        self._requests: WindowRequests | None = None
        if job.routes_windows:
            self._stage = WindowStage(grid, record, members, self.stats, seconds=lease_seconds)
            self._requests = WindowRequests(grid, job, self.group, self._stage.states)
        elif job.used_windows:
            group = self.group
            self._windows = WindowStates(grid, record, lambda p: group.record(p).origin, group.settled, group.bounds)
            group.read_at_most(self._windows.page_events)
        self._states = MapWriter(grid, self._windows.map_name) if self._windows is not None else None
        self._late = LateEvents(grid, job, self._spawn) if job.late is not None and job.used_windows else None
        wants_reasons = job.result.reasons is not None
        self._reasons = Reasons(grid, job, self.group, self.stats) if wants_reasons else None
        self._functions = FunctionProcess(job, self._tables, allow_python) if job.has_functions else None
        self._scorer = Scorer(
            job,
            record.revision,
            self._tables,
            self._lookups.fetchers,
            self.stats,
            self._windows,
            self._requests,
            self._reasons,
            self._functions,
        )
        self._model = LiveModel(grid, record, self._tables, self.stats, models, self._functions)
        self._experiment = LiveExperiment(grid, record, self._tables, self._model, self.stats, members)
        self._shadow = Shadow(grid, record, self.group, self.stats)
        self._results = MapWriter(grid, job.results)
        limits = Limits(job.max_dead_letters, job.max_dead_letter_bytes)
        self._letters = LetterWriter(grid, job.name, limits, share=lambda: len(self.group.held) / grid.partition_count)
        self._missing = MissingResults(grid, record, self.group, self.stats)
        self._rescanner = Rescanner(grid, lambda: self.group.held, job.name, self.stats, self._missing.rescan)
        self._superseded = Superseded(grid, job, lambda: self.group.writable)
        self._retention = Retention(
            grid, job, lambda: self.group.writable, self.group.acknowledged_to, self.group.until
        )
        self._lanes: dict[int, deque[_Waiting]] = {}
        self._failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def groups(self) -> dict[str, Group]:
        """The groups that it takes part in, by name."""
        own = {self._job.name: self.group}
        return own if self._stage is None else own | {self._stage.name: self._stage.group}

    @property
    def windows(self) -> WindowStates | None:
        """The states of its windows; None if it has none."""
        return self._windows if self._stage is None else self._stage.states

    @property
    def trial(self) -> Trial | None:
        """What it does for the job's experiment; None if there is none."""
        return self._experiment.trial

    async def run(self) -> None:
        """Score until cancelled; then finish the writes under way, commit, and give the leases back.

        Raises GridscoreError if the job cannot go on: no journal, a lookup map that is missing or too large, no model,
        or lost events and `on_loss: halt`.
        """
        try:
            await self._prepare()
            async with asyncio.TaskGroup() as tasks:
                for work in (self._score, self.group.run, self._model.follow, self._experiment.follow, self._watch):
                    tasks.create_task(work())
                tasks.create_task(self._learn_ring())
                tasks.create_task(self._missing.follow())
                tasks.create_task(self._rescanner.run())
                tasks.create_task(self._retention.run())
                tasks.create_task(self._superseded.run())
                tasks.create_task(
                    watch_drift(self._grid, self._job, self._model.watched, self._members.worker, self.stats)
                )
                tasks.create_task(audit_on_schedule(self._grid, self._job, self._members.worker))
                for part in (self._stage, self._requests, self._reasons):
                    if part is not None:
                        tasks.create_task(part.run())
                await self.group.first_taken.wait()
                self.is_scoring = True
                self._started()
        except ExceptionGroup as failures:
            raise first_of(failures) from None
        finally:
            await asyncio.shield(self._stop())

    async def _prepare(self) -> None:
        await prepare(self._grid, self._job)  # a cluster that was stopped has forgotten it
        await self.group.bounds(0)  # fails at once if the map has no journal
        await self._results.prepare()
        await self._missing.look()
        for part in (self._states, self._late, self._stage, self._requests):
            if part is not None:
                await part.prepare()
        await self._start_copies()
        await self._model.start()
        await self._experiment.start()
        self.has_joined = True
        self._joined()

    async def _start_copies(self) -> None:
        """Copy the lookup maps; if one cannot be copied while others score, say so and try again.

        The others go on with the copies that they have: a worker that comes later does not fail the job.
        """
        while True:
            try:
                await self._lookups.start()
            except (MapNotFoundError, LookupTooLargeError) as error:
                await self._members.look()
                if self._members.group(self._job.name) == {self._members.worker}:
                    raise
                if str(error) != self.stats.lookup_error:
                    _log.error(
                        "%s: a lookup cannot be loaded, so no partition is taken; it will be tried again: %s",
                        self._job.name,
                        error,
                        extra={"action": "lookup_missing"},
                    )
                self.stats.lookup_error = str(error)
                await asyncio.sleep(_LOOKUP_SECONDS)
            else:
                self.stats.lookup_error = ""
                return

    async def _learn_ring(self) -> None:
        """Learn how much a ring holds, so that the group commits before it is full."""
        ring = Journal(self._grid, self._job.events).ring  # by the members' configuration, if they tell it
        try:
            if ring is None and (seen := await journal_capacity(self._grid, self._job.events, most=_RINGS)) is not None:
                ring = seen.partition
        except (HazelcastError, GridError) as error:
            _log.debug("%s: the capacity of the journal is not known: %s", self._job.name, error)
        if self._requests is not None:
            ring = min(ring or SLOTS, SLOTS)
        if ring is not None:
            self.group.set_ring(ring)

    async def _stop(self) -> None:
        self.has_joined = False
        await asyncio.gather(self.group.leave(), *([self._stage.leave()] if self._stage is not None else []))
        self._letters.close()
        if self._functions is not None:
            await self._functions.close()
        for task in self._tasks:
            task.cancel()
        try:
            # The cluster may be gone.
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._experiment.close()
                await self._model.close()
                await self._lookups.close()
        except (HazelcastError, TimeoutError) as error:
            _log.warning("%s: not everything could be closed: %s", self._job.name, error or "no answer")

    # ------------------------------------------------------------------ the way of a batch

    async def _score(self) -> None:
        group = self.group
        while True:
            await group.wait()
            states = self.windows
            most = BATCH_EVENTS if self._requests is None else ASKED_EVENTS
            most = most if states is None else min(most, states.batch_events)
            unacknowledged = UNACKNOWLEDGED_EVENTS * min(most, BATCH_EVENTS) // BATCH_EVENTS
            await group.drain(unacknowledged, self._windows.forget if self._windows is not None else None)
            await self._letters.room()
            if not (arrivals := group.take(most)):
                continue
            for portion in [arrivals] if self._requests is None else portions(arrivals):
                try:
                    batch = await self._scorer.score(portion, self._model.active)
                except (HazelcastError, FunctionError) as error:
                    _log.warning("%s: what a batch needs cannot be had, trying again: %s", self._job.name, error)
                    for arrival in portion:
                        if arrival.cursor.is_current:
                            group.put_back(arrival.partition)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                began = time.thread_time_ns()
                self._write(batch)
                self.stats.stage_ns["write"] += time.thread_time_ns() - began
                # Let the event loop send this batch and receive the next.
                await asyncio.sleep(0)
                if batch.answered is not None:
                    self._shadow.score(batch.answered)

    def _write(self, batch: ScoredBatch) -> None:
        parts = self.group.ours(batch.partitions)
        burials = self._burials(batch.rejected, parts) if batch.rejected else {}
        for part in parts:
            write = Write(part.partition, part.next, len(part.keys), part.lost, part.at)
            self.group.sent(write)
            lane = self._lanes.setdefault(part.partition, deque())
            lane.append(_Waiting(part, write, burials.get(part.partition, ())))
            if len(lane) == 1:
                self._send(part.partition)
        self.stats.batches += 1

    def _send(self, partition: int) -> None:
        """Write what has collected for a partition, in one message."""
        lane = self._lanes[partition]
        first = lane[0]
        waiting = [first]
        while len(lane) > len(waiting) and (after := lane[len(waiting)]).part.cursor is first.part.cursor:
            waiting.append(after)
        keys, texts = first.part.keys, first.part.texts
        if len(waiting) > 1:
            keys = [key for each in waiting for key in each.part.keys]
            texts = [text for each in waiting for text in each.part.texts]
        states = {key: state for each in waiting for key, state in each.part.states.items()}
        late = [each.part for each in waiting if each.part.late]
        put: asyncio.Future[None]
        if (states or late) and first.write.counts:
            put = self._spawn(self._put_in_order(first, late, keys, texts, states))
        elif keys and first.write.counts:
            put = self._results.put_partition(partition, keys, texts, until=first.part.cursor.until)
        else:
            put = asyncio.get_running_loop().create_future()
            put.set_result(None)
        put.add_done_callback(partial(self._answered, partition, len(waiting)))

    async def _put_in_order(
        self,
        first: _Waiting,
        late: list[PartitionBatch],
        keys: list[bytes],
        texts: list[bytes],
        states: dict[bytes, bytes],
    ) -> None:
        """Write late events, then results, and when they stand, the states of windows that their events are in."""
        partition, cursor = first.part.partition, first.part.cursor
        if self._late is not None:
            for part in late:
                await self._late.put(part)
        if keys and first.write.counts:
            await self._results.put_partition(partition, keys, texts, until=cursor.until)
        if self._states is not None and states and first.write.counts:
            await self._states.put_partition(partition, list(states), list(states.values()), until=cursor.until)

    def _answered(self, partition: int, count: int, done: asyncio.Future[None]) -> None:
        """A message was answered: so are the writes in it, and the next may be sent."""
        lane = self._lanes[partition]
        error = HazelcastClientNotActiveError() if done.cancelled() else done.exception()
        for _ in range(count):
            self._finish(lane.popleft(), error)
        if lane:
            self._send(partition)
        else:
            del self._lanes[partition]

    def _burials(
        self, rejected: list[Rejected], parts: list[PartitionBatch]
    ) -> dict[int, list[asyncio.Task[Counter[int]]]]:
        """By partition, what writes the dead letters of its events: a task for each partition that they go to."""
        cursors, now = {part.partition: part.cursor for part in parts}, moment_text()
        name, events = self._job.name, self._job.events
        letters = (letter(self._grid, name, events, each, now) for each in rejected if each.partition in cursors)
        burials: dict[int, list[asyncio.Task[Counter[int]]]] = {}
        for place in self._letters.places(letters):
            whose = {each.dead.partition for each in place.letters}
            task = self._spawn(self._bury(place, min(cursors[partition].until for partition in whose)))
            for partition in whose:
                burials.setdefault(partition, []).append(task)
        return burials

    async def _bury(self, place: Place, until: float) -> Counter[int]:
        """Write dead letters that go to one partition, while the leases of their events hold.

        Returns how many of which partition have no room. Raises HazelcastError: at least one was not confirmed.
        """
        new, left = await self._letters.put_in(place, until=until)
        self.stats.dead += new
        first = place.letters[0].dead
        where = f"partition {first.partition}, sequence {first.sequence}"
        self._letters.say(new, where, first.error, unkept=len(left))
        self._missing.were_rejected(each.dead for each in place.letters)
        return Counter(dead.partition for dead in left)

    def _finish(self, each: _Waiting, error: BaseException | None) -> None:
        """A write was answered: move the offset that may be committed, or put the partition back."""
        if not self.group.answered(each.write):
            return  # the partition was dropped or put back in the meantime
        if error is not None:
            self._acknowledge(each.write, error)
        else:
            self._set_aside(each)

    def _set_aside(self, each: _Waiting, _done: object = None) -> None:
        """A write is acknowledged; so is what it waits for when its dead letters are, or could not be written."""
        write, error = each.write, None
        for task in each.letters:
            if not task.done():
                task.add_done_callback(partial(self._set_aside, each))
                return
            failure = HazelcastClientNotActiveError() if task.cancelled() else task.exception()
            error = error or failure
        if write.counts:
            if error is None:
                write.unkept = sum(task.result()[write.partition] for task in each.letters)
            self._acknowledge(write, error)

    def _acknowledge(self, write: Write, error: BaseException | None) -> None:
        if error is not None:
            if not isinstance(error, HazelcastClientNotActiveError):
                self._failures.append(error)
            self.group.put_back(write.partition)
            return
        self.stats.events += self.group.acknowledge(write)
        self.stats.wrote(write.arrived_at, self._grid.clock(), write.events)

    # ------------------------------------------------------------------ beside it

    async def _watch(self) -> None:
        """Keep the figures of the lookups' copies current, and log failed writes in one line."""
        while True:
            if failures := self._failures:
                self._failures = []
                _log.warning(
                    "%s: %d writes were not acknowledged, their partitions are read again: %s",
                    self._job.name,
                    len(failures),
                    failures[-1],
                    extra={"action": "write_failed"},
                )
            if self._functions is not None:
                self.stats.function_error = self._functions.trouble
            self.stats.quality = self._model.active.plan.quality.to_json()
            self.stats.lookup_error = next(filter(None, (each.copy.trouble for each in self._copies.values())), "")
            self.stats.copies = {
                name: {
                    "entries": len(self._tables[name]),
                    "age": round(shared.copy.age, 1),
                    "loads": shared.copy.loads,
                    "bad": self._tables[name].bad,
                    "error": self._tables[name].last_error[:MOST_SHOWN] if self._tables[name].bad else "",
                    "missed": self._model.active.plan.missed[name],
                }
                for name, shared in self._copies.items()
            }
            await asyncio.sleep(_STATS_SECONDS)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Scoring(Subscriber):
    """A job's `Subscriber`: skips events that already have their result."""

    def __init__(self, grid: Grid, record: JobRecord, stats: JobStats) -> None:
        self._grid, self._record = grid, record
        self._has_windows = bool(record.job.used_windows) and not record.job.routes_windows
        self._stats = stats

    async def offset_at(self, partition: int, oldest: int, newest: int) -> int:
        return await restart_offset(self._grid, self._record, partition, oldest, newest)

    async def look_over(self, partition: int, page: Page, origin: int) -> Page:
        job = self._record.job
        scored = await scored_in(self._grid, job.results, partition, page, origin)
        self._stats.skipped += len(scored)
        # Windows may not have them yet.
        return page._replace(scored=scored) if self._has_windows else without(page, scored)
