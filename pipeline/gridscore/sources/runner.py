"""The runner: drives a source as `gridscore.sources.base` says, and tries again as long as that may help.

An attempt has two tasks, in one direction:

1. *Read*: ask the source for a batch, hand its poison to the dead letters and its entries to the producer of its map,
   and go on to the next. Nothing is asked for while the producer has no room.
2. *Acknowledge*, strictly in order, when a batch and its poison are confirmed.

A source that others push to is read by a task for each map instead, and each batch is acknowledged or refused by
itself.

Poison is kept, so it must not become too much: a source pauses at its limit of dead letters, or when nearly everything
that it has read lately is poison, as with a wrong format. It goes on when some of them are purged or replayed, or in a
new process.

Producers outlive an attempt. What an attempt has left in their queues is dropped, and what is under way stays ahead of
what follows: however often a source tries again, writes of one key keep their order.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hazelcast.errors import HazelcastError, HazelcastSerializationError

from gridscore.dead_letters.letters import letter_of_source, owner_of
from gridscore.dead_letters.writer import COUNT_SECONDS, DEFAULT_LIMITS, LetterWriter, Limits
from gridscore.errors import BackPressureError, GridscoreError, UsageError
from gridscore.job.plugs.base import CLUSTER
from gridscore.job.plugs.environment import Hidden, from_environment
from gridscore.job.plugs.patience import Patience
from gridscore.job.types import seconds_of
from gridscore.log_records import about
from gridscore.producer.producer import Producer
from gridscore.producer.queue import WithdrawnError
from gridscore.sources.base import KINDS, Poison, PushedSource, SourceInterruptedError
from gridscore.sources.stamp import Stamp
from gridscore.sources.status import FAILED, Publisher, SourceStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid
    from gridscore.job.plugs.base import SourceSettings
    from gridscore.producer.queue import Receipt
    from gridscore.producer.room import Waiting
    from gridscore.sources.base import Batch, Source

_log = logging.getLogger(__name__)

UNDER_WAY = 1_000  # batches that may be under way; events are limited by the producer
BURIALS = 2  # batches whose dead letters may be under way
SETTLE_SECONDS = 5.0  # how long to wait for what is under way when a source stops or is interrupted
CLOSE_SECONDS = 5.0
# After this time a dead letter is not sent any more: the source tries again, and writes it again.
SETTLED_SECONDS = 30.0

RECENT = 1_000  # records over which the share of rejected ones is measured
# What serializing a key raises, for half a surrogate pair or a number of more than 64 bits.
_NO_KEY = (UnicodeEncodeError, HazelcastSerializationError)

# Seconds before the first new attempt, and at most. Each pause is twice the one before, less up to a half.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class _UnderWay(NamedTuple):
    """A batch on its way into the grid."""

    batch: Batch
    taken: Receipt
    poison: Sequence[Poison]
    letters: asyncio.Task[int] | None


class SourceRunner:
    """Runs one source until it is at its end, is told to stop, or cannot go on."""

    def __init__(
        self,
        grid: Grid,
        name: str,
        make: Callable[[], Source],  # makes the source, for each attempt
        *,
        kind: str,
        to: str,
        also: Sequence[str] = (),  # further maps that it may put into
        max_wait: float | None = None,  # seconds that events may wait for room; default: for ever
        limits: Limits = DEFAULT_LIMITS,  # of its dead letters
        max_rejected: int = 90,  # how many percent of the latest records may be poison
        stamp: Stamp | None = None,  # stamps events
        hidden: Hidden | None = None,  # what errors must not show
        has_end: bool = False,  # whether it ends by itself
    ) -> None:
        self._grid = grid
        self._make = make
        self._max_wait = max_wait
        self._hidden = hidden or Hidden()
        self._to = to
        self._producers: dict[str, Producer] = {}
        self._waiting: dict[str, Waiting] = {}
        self._letters = LetterWriter(grid, name, limits)
        self._max_rejected = max_rejected
        self._stamp = stamp
        self._recent: deque[tuple[int, int]] = deque()  # events and poison of each batch
        self._paused = ""
        self._going = asyncio.Event()
        self._going.set()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._said = ""
        self._patience = Patience(grid, SourceInterruptedError)
        self._acknowledged = 0  # batches of this attempt
        self._settling: set[asyncio.Task[None]] = set()  # pushed batches that are under way
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._burials = asyncio.Semaphore(BURIALS)
        self._source: Source | None = None
        self.name, self.has_end = name, has_end
        self.stats = SourceStats(name, kind, to, also=also)

    @property
    def progress(self) -> tuple[int, int] | None:
        """How much of the source is done, and how much there is; None if that is not known."""
        return getattr(self._source, "progress", None)

    def stop(self) -> None:
        """Read no more; `run` returns when what is under way is confirmed and acknowledged, or after some seconds."""
        self._stopping.set()

    async def run(self) -> None:
        """Run; if it is cancelled, release everything at once.

        Raises GridscoreError if it cannot go on, and a retry would not help.
        """
        about("source", self.name)
        publisher = Publisher(self._grid, self.stats)
        publishing = self._spawn(publisher.run())
        try:
            await self._grid.while_same(self._attempts())
        except GridscoreError as error:
            self._fail(error)
            raise self._hidden.within(error) from None
        except Exception as error:
            self._fail(error)
            raise
        finally:
            for task in list(self._tasks):
                task.cancel()
            self._letters.close()
            await asyncio.gather(publishing, return_exceptions=True)
            await asyncio.shield(publisher.close())

    def _fail(self, error: Exception) -> None:
        self.stats.failed(self._hidden.hide(str(error) or type(error).__name__))
        self.stats.state = FAILED

    # ------------------------------------------------------------------ attempts

    async def _attempts(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._acknowledged = 0
            try:
                await self._check_name()
                await self._attempt()
            except (GridscoreError, HazelcastError) as error:
                if not self._patience.may_heal(error):
                    raise
                failures = 1 if self._acknowledged else failures + 1
                await self._pause(error, failures)
            else:
                return

    async def _check_name(self) -> None:
        owner = await owner_of(self._grid, self.name)
        if owner in ("job", "sink"):
            raise UsageError(
                f"`{self.name}` is a {owner}: a source of that name would share its dead letters.",
                "Give the source another name with --name.",
            )

    async def _pause(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt: exponentially longer, and with jitter."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
        seconds = random.uniform(longest / 2, longest)  # noqa: S311 -- no secret
        self._interrupted(error, "interrupted, trying again")
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _interrupted(self, error: Exception, what: str) -> None:
        text = self._hidden.hide(str(error) or type(error).__name__)
        stats = self.stats
        stats.interruptions += 1
        stats.failed(text)
        stats.state = "interrupted"
        stats.waits_for = CLUSTER if self._grid.may_recover_from(error) else ""
        if text != self._said:
            self._said = text
            _log.warning("%s: %s: %s", self.name, what, text, extra={"action": "source_interrupted"})

    def _going_on(self) -> None:
        self.stats.state = "running"
        self._show_waiting()
        if self._said:
            self._said = ""
            _log.info("%s: going on", self.name, extra={"action": "source_going_on"})

    # ------------------------------------------------------------------ one attempt

    async def _attempt(self) -> None:
        source = self._source = self._make()
        self.stats.positions = getattr(source, "positions", dict)
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._burials = asyncio.Semaphore(BURIALS)
        lane: asyncio.Queue[_UnderWay | None] = asyncio.Queue()
        under_way: set[Receipt] = set()
        stopping = self._spawn(self._stopping.wait())
        tasks: list[asyncio.Task[None]] = []
        try:
            if not await self._unless_stopped(source.open(), stopping):
                return
            self._patience.opened()
            self._pause_for("")
            self._going_on()
            if isinstance(source, PushedSource):
                reading = self._spawn(self._read_pushed(source, under_way))
            else:
                reading = self._spawn(self._read(source, lane, under_way))
            acknowledging = self._spawn(self._acknowledge(source, lane, under_way))
            tasks += [reading, acknowledging]
            await asyncio.wait({reading, acknowledging, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(reading, acknowledging, stopping, lane)
        finally:
            tasks += self._settling
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            for taken in under_way:
                taken.drop()
            await self._close(source)

    async def _finish(
        self,
        reading: asyncio.Task[None],
        acknowledging: asyncio.Task[None],
        stopping: asyncio.Task[Any],
        lane: asyncio.Queue[_UnderWay | None],
    ) -> None:
        """One of the three is done: acknowledge what can be, and raise the first error."""
        if acknowledging.done():
            acknowledging.result()
        at_the_end = reading.done() and not reading.cancelled() and reading.exception() is None
        reading.cancel()
        (failure,) = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(failure, Exception) and not isinstance(failure, GridscoreError | HazelcastError):
            raise failure  # unexpected, so nothing more is acknowledged
        lane.put_nowait(None)
        if at_the_end:
            await asyncio.wait({acknowledging, stopping}, return_when=asyncio.FIRST_COMPLETED)
        _, late = await asyncio.wait({acknowledging, *self._settling}, timeout=SETTLE_SECONDS)
        if isinstance(failure, Exception):
            raise failure
        if late - {acknowledging}:
            _log.warning(
                "%s: stopped before everything was confirmed; the senders are told to send it again",
                self.name,
                extra={"action": "source_unsettled"},
            )
        if acknowledging.done():
            acknowledging.result()
        elif not at_the_end or self._stopping.is_set():
            _log.warning(
                "%s: stopped before everything was confirmed; that is read again at the next start",
                self.name,
                extra={"action": "source_unsettled"},
            )

    async def _unless_stopped(self, opening: Coroutine[Any, Any, None], stopping: asyncio.Task[Any]) -> bool:
        """Whether the source was opened before we were told to stop."""
        task = self._spawn(opening)
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read(self, source: Source, lane: asyncio.Queue[_UnderWay | None], under_way: set[Receipt]) -> None:
        batches = source.batches()
        try:
            async for batch in batches:
                each = await self._begin(batch, under_way)
                lane.put_nowait(each)
                await self._room.acquire()
                if self._is_mostly_rejected(len(batch.entries) + len(batch.poison), len(each.poison)):
                    await self._until_dealt_with(each.letters)
                await self._going.wait()  # dead letters may wait for room
        finally:
            await _end(batches)

    async def _begin(self, batch: Batch, under_way: set[Receipt]) -> _UnderWay:
        to = batch.map_name or self._to
        entries = batch.entries if self._stamp is None else self._stamp.on(batch.entries)
        taken, keyless = await self._take(entries, to)
        under_way.add(taken)
        poison = [*batch.poison, *keyless]
        letters = await self._begin_burial(poison, to) if poison else None
        return _UnderWay(batch, taken, poison, letters)

    # ------------------------------------------------------------------ a source that others push to

    async def _read_pushed(self, source: PushedSource, under_way: set[Receipt]) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in source.streams():
                group.create_task(self._read_stream(source, stream, under_way))

    async def _read_stream(self, source: PushedSource, batches: AsyncIterator[Batch], under_way: set[Receipt]) -> None:
        try:
            async for batch in batches:
                try:
                    each = await self._begin(batch, under_way)
                except (GridscoreError, HazelcastError) as error:
                    self._refuse(source, batch, error)
                    continue
                batch.withdraw = partial(self._producer(batch.map_name or self._to).withdraw, each.taken)
                settling = self._spawn(self._settle(source, each, under_way))
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
        finally:
            await _end(batches)

    async def _settle(self, source: PushedSource, each: _UnderWay, under_way: set[Receipt]) -> None:
        """Acknowledge a batch as soon as it is confirmed, or refuse it."""
        try:
            await each.taken.confirmed()
            if each.letters is not None:
                await each.letters
            await source.acknowledge(each.batch)
        except (GridscoreError, HazelcastError) as error:
            self._refuse(source, each.batch, error)
        else:
            self._count(each)
            if self.stats.state == "interrupted":
                self._going_on()
        finally:
            under_way.discard(each.taken)

    def _refuse(self, source: PushedSource, batch: Batch, error: GridscoreError | HazelcastError) -> None:
        # Its sender sends it again. A new attempt would only make us unreachable meanwhile.
        if not isinstance(error, WithdrawnError | BackPressureError):  # the latter has been said by the producer
            self._interrupted(error, "refused, for its sender to send it again")
        source.refuse(batch, error)

    async def _take(self, entries: Sequence[tuple[Any, bytes | None]], to: str) -> tuple[Receipt, Sequence[Poison]]:
        """Hand entries to the producer of a map, except those whose keys the grid cannot store."""
        producer = self._producer(to)
        try:
            return await producer.take(entries), ()
        except _NO_KEY:
            # Rare, so looked for only now. Entries before the first of them are taken once more.
            good: list[tuple[Any, bytes | None]] = []
            keyless: list[Poison] = []
            for key, text in entries:
                try:
                    self._letters.serialize_key(key)
                except _NO_KEY as error:
                    why = f"The grid cannot store its key: {error}"
                    keyless.append(Poison(f"{self.name}, key {key!a}", key, text or b"", why))
                else:
                    good.append((key, text))
            if not keyless:
                raise
            return await producer.take(good), keyless

    async def _acknowledge(
        self, source: Source, lane: asyncio.Queue[_UnderWay | None], under_way: set[Receipt]
    ) -> None:
        while (each := await lane.get()) is not None:
            await each.taken.confirmed()
            if each.letters is not None:
                await each.letters
            await source.acknowledge(each.batch)
            under_way.discard(each.taken)
            self._room.release()
            self._count(each)

    def _count(self, each: _UnderWay) -> None:
        self._acknowledged += 1
        self._patience.succeeded()
        self.stats.events += each.taken.count
        self.stats.lose(each.batch.lost)
        self.stats.poison += len(each.poison)

    async def _begin_burial(self, poison: Sequence[Poison], to: str) -> asyncio.Task[int]:
        """Write dead letters, but few batches at once: a flood of poison must not fill the memory."""
        burials = self._burials
        await burials.acquire()
        task = self._spawn(self._bury(poison, to))
        task.add_done_callback(lambda _: burials.release())
        return task

    async def _bury(self, poison: Sequence[Poison], to: str) -> int:
        rest: Sequence[DeadLetter] = [
            letter_of_source(self._grid, self.name, to, n, origin=p.origin, key=p.key, raw=p.raw, error=p.error)
            for n, p in enumerate(poison)
        ]
        written = 0
        while True:
            new, rest = await self._letters.put(rest, until=self._grid.clock() + SETTLED_SECONDS)
            written += new
            self._letters.say(new, poison[0].origin, poison[0].error)
            if not rest:
                break
            self._pause_for(self._letters.full or "its dead letters are not confirmed")
            await asyncio.sleep(COUNT_SECONDS)
        self._pause_for("")
        return written

    def _is_mostly_rejected(self, count: int, poison: int) -> bool:
        """Count a batch; whether nearly everything that was read lately was rejected."""
        recent = self._recent
        recent.append((count - poison, poison))
        total, bad = sum(map(sum, recent)), sum(poison for _, poison in recent)
        while total - sum(recent[0]) >= RECENT:
            first = recent.popleft()
            total, bad = total - sum(first), bad - first[1]
        return total >= RECENT and bad * 100 > total * self._max_rejected

    async def _until_dealt_with(self, letters: asyncio.Task[int] | None) -> None:
        """Pause until there are fewer dead letters."""
        if letters is not None:
            await asyncio.wait({letters})
        bad, total = sum(poison for _, poison in self._recent), sum(map(sum, self._recent))
        self._recent.clear()
        most = 0
        while True:
            self._pause_for(f"{bad:,} of the last {total:,} that it read are not events (max_rejected)")
            try:
                count = await self._letters.count()
            except HazelcastError as error:
                _log.debug("%s: the dead letters could not be counted: %s", self.name, error)
            else:
                if count < most or not count:
                    break
                most = count
            await asyncio.sleep(COUNT_SECONDS)
        self._pause_for("")

    def _pause_for(self, reason: str) -> None:
        """Pause, and say why; or, without a reason, go on."""
        if bool(reason) != bool(self._paused):
            if reason:
                text = (
                    "%s: paused: %s. Fix the cause; it continues once dead letters are replayed or purged: "
                    "gridscore dead-letters list %s"
                )
                _log.error(text, self.name, reason, self.name, extra={"action": "source_paused"})
            else:
                _log.info(
                    "%s: there is room for dead letters, continuing", self.name, extra={"action": "source_going_on"}
                )
        self._paused = reason
        if reason:
            self._going.clear()
        else:
            self._going.set()
        self._show_waiting()

    async def _close(self, source: Source) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await source.close()
        except Exception as error:  # noqa: BLE001 -- what went wrong before matters more
            text = self._hidden.hide(str(error) or type(error).__name__)
            _log.warning("%s: closing failed: %s", self.name, text, extra={"action": "source_close_failed"})

    # ------------------------------------------------------------------ room in the grid

    def _producer(self, map_name: str) -> Producer:
        producer = self._producers.get(map_name)
        if producer is None:

            def on_wait(waiting: Waiting | None) -> None:
                self._waits(map_name, waiting)

            held = self._source.most_held if isinstance(self._source, PushedSource) else None
            producer = Producer(self._grid, map_name, max_wait=self._max_wait, on_wait=on_wait, most_held=held)
            self._producers[map_name] = producer
        return producer

    def _waits(self, map_name: str, waiting: Waiting | None) -> None:
        """A producer waits for room, which it logs, or no longer does."""
        if waiting is not None:
            self._waiting[map_name] = waiting
        else:
            self._waiting.pop(map_name, None)
            if not self._waiting:
                _log.info("%s: there is room again, going on", self.name, extra={"action": "source_going_on"})
        self.stats.waited = sum(each.waited for each in self._producers.values())
        self._show_waiting()
        if isinstance(self._source, PushedSource):
            self._source.waits(map_name, waiting)

    def _show_waiting(self) -> None:
        stats = self.stats
        stats.waiting = self._paused or str(next(iter(self._waiting.values()), ""))
        if stats.state in ("running", "waiting", "paused"):
            stats.state = "paused" if self._paused else "waiting" if stats.waiting else "running"

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _end(batches: AsyncIterator[Batch]) -> None:
    # A generator must be closed, or it holds on to things until it is collected.
    if isinstance(batches, AsyncGenerator):
        await batches.aclose()


def runner_of(
    grid: Grid, settings: SourceSettings, name: str | None = None, make: Callable[[Grid, str, Any], Source] = KINDS.make
) -> SourceRunner:
    """The runner of a source with these settings.

    `name`: for a source whose settings have none; `make`: makes the source, of the connection, its name and its
    settings with what the environment has. Raises SettingsError if an environment variable that the settings name is
    not set; UsageError if there is no such kind, or its libraries are not installed.
    """
    kind = KINDS.of(settings).name
    called = KINDS.name_of(settings, name)
    filled, hidden = from_environment(settings)

    return SourceRunner(
        grid,
        called,
        partial(make, grid, called, filled),
        kind=kind,
        to=filled.to,
        also=getattr(filled, "also", ()),
        max_wait=seconds_of(filled.max_wait) if filled.max_wait is not None else None,
        limits=Limits(filled.max_dead_letters, filled.max_dead_letter_bytes),
        max_rejected=filled.max_rejected,
        stamp=Stamp(filled.stamp) if filled.stamp is not None else None,
        hidden=hidden,
        has_end=filled.has_end,
    )
