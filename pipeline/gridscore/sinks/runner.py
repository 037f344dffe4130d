"""One process of a sink: takes results from the journals of its partitions, and has them delivered.

The group decides which partitions it has, as in scoring. The way of a delivery, in order:

1. *Collect* what has arrived, up to as much as the sink wants at once (`collector`).
2. *Check* the lease of each partition; drop those whose lease has ended, undelivered.
3. *Deliver*. A destination that is away is tried again, with growing pauses, for as long as the leases hold; they are
   renewed meanwhile. Between two attempts nothing is under way, so a partition can be given back. A destination that is
   too slow to take all of it within the leases gets it in smaller parts.
4. *Set aside* what is refused, in the sink's dead letters. At their limit, nothing more is delivered until some are
   replayed or removed.
5. Only then may the offsets be *committed*; the group does this once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from typing import TYPE_CHECKING, Any, TypeVar

from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import Rejected, letter
from gridscore.dead_letters.writer import COUNT_SECONDS, LetterWriter, Limits
from gridscore.errors import ClusterReplacedError, GridscoreError, first_of
from gridscore.grid import transport
from gridscore.group.fence import Fence
from gridscore.group.group import Group
from gridscore.group.leases import LEASE_SECONDS
from gridscore.group.members import Members, Membership, new_identity
from gridscore.group.offsets import Write
from gridscore.group.rescan import Rescanner
from gridscore.job.plugs.base import CLUSTER
from gridscore.job.plugs.environment import Hidden, from_environment
from gridscore.job.plugs.patience import Patience
from gridscore.log_records import about
from gridscore.sinks.base import KINDS, Delivery, SinkInterruptedError
from gridscore.sinks.changes import PartitionChanges
from gridscore.sinks.collector import Collector, cut
from gridscore.sinks.records import (
    DELIVERING,
    PAUSED,
    PROCESSES_MAP,
    WAITING,
    SinkStats,
    find_sink,
    group_of,
    note_failure,
    register,
    subscription_of,
)
from gridscore.sinks.rescan import DeliverAgain
from gridscore.texts import count_text, moment_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.job.plugs.base import SinkSettings
    from gridscore.sinks.base import Refused, Sink
    from gridscore.sinks.collector import Part

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 15.0
LOOK_SECONDS = 10.0  # pause between two looks at a destination to which nothing is sent, and at the sink's own record
SILENT_SECONDS = 5.0  # a destination that takes longer for a delivery is told, once a minute at most
STOP_SECONDS = 3.0
CLOSE_SECONDS = 3.0


class SinkRunner:
    """Delivers the results of one map until cancelled, together with other processes of the same name."""

    def __init__(
        self,
        grid: Grid,  # the connection; it stays open afterwards
        name: str,
        kind: str,
        settings: SinkSettings,
        make: Callable[[], Sink],  # makes the sink; called anew for every attempt to open it
        *,
        hidden: Hidden | None = None,  # what errors must not show
        lease_seconds: float = LEASE_SECONDS,  # how long partitions of a killed process wait for a new owner
    ) -> None:
        self._grid = grid
        self._hidden = hidden or Hidden()
        self.name, self.kind = name, kind
        self.map = settings.results  # the result map
        self._settings, self._make = settings, make
        self._fence = Fence.of(lease_seconds)
        self.id = new_identity()
        self.stats = SinkStats()
        members = Members(grid, self.id, PROCESSES_MAP, seconds=lease_seconds)
        self._members = members
        subscription = subscription_of(name, settings)
        self._changes = PartitionChanges(self._taken, self._dropped)
        self.group = Group(grid, subscription, self._changes, members, self.stats, seconds=lease_seconds)
        self._membership = Membership(grid, members, self._says, lambda: {subscription.group: self.group})
        self._again = DeliverAgain(grid, settings.results, self.group, self.stats)
        self._rescanner = Rescanner(grid, lambda: self.group.held, subscription.group, self.stats, self._again.rescan)
        self._collector = Collector(grid, settings.only)
        limits = Limits(settings.max_dead_letters, settings.max_dead_letter_bytes)
        self._letters = LetterWriter(grid, name, limits, share=lambda: len(self.group.held) / grid.partition_count)
        self._pace = _Pace(lease_seconds)
        self._patience = Patience(grid, SinkInterruptedError)
        self._pauses = self._new_pauses()  # of deliveries
        self._sink: Sink | None = None
        self._calling = asyncio.Lock()
        self._tried = grid.clock()  # when the destination was last called
        self._silent = False  # a delivery has taken so long that it was said
        self._silent_said = -math.inf
        self._joined = False
        self._deliveries: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Deliver until cancelled; then finish the delivery under way, commit, and give the leases back.

        Raises GridscoreError if the sink cannot go on: no journal, another sink of that name, lost results and
        `on_loss: halt`, or what its destination says.
        """
        about("sink", self.name)
        # What the system holds for an unreachable member must not be delivered after the lease.
        transport.hold_at_most(self._grid.client, self._fence.hold)
        await register(self._grid, self.name, self.kind, self._settings)
        try:
            await self._grid.while_same(self._take_part())
        except Exception as error:
            if isinstance(error, ClusterReplacedError):  # the new one does not know this sink yet
                with contextlib.suppress(HazelcastError, GridscoreError):
                    await register(self._grid, self.name, self.kind, self._settings)
            await self._note(self._hidden.hide(str(error) or type(error).__name__))
            raise

    async def _take_part(self) -> None:
        await self.group.bounds(0)  # fails at once if the map has no journal
        try:
            await self._membership.watch()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._membership.run())
                await self._open()
                tasks.create_task(self._note(""))
                self._joined = True
                self._membership.soon()
                # Not in the task group: a delivery under way is finished after the others were cancelled.
                self._deliveries = asyncio.create_task(self._deliver_for_ever(), name=f"deliveries of {self.name}")
                for work in (
                    self.group.run,
                    self._changes.run,
                    self._rescanner.run,
                    self._stay_known,
                    self._until_deliveries_end,
                ):
                    tasks.create_task(work())
        except ExceptionGroup as failures:
            error = first_of(failures)
            if isinstance(error, GridscoreError):
                self._hidden.within(error)
            raise error from None
        finally:
            await asyncio.shield(self._stop())

    async def _stay_known(self) -> None:
        """Make the sink known again if its record is gone: the cluster has lost it, but we go on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(HazelcastError, GridscoreError):
                if await find_sink(self._grid, self.name) is None:
                    await register(self._grid, self.name, self.kind, self._settings)

    async def _note(self, error: str) -> None:
        """Write down what stopped us for good, or remove that; do not wait for a cluster that is gone."""
        if not self._grid.is_running:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await note_failure(self._grid, self.name, error)
        except (HazelcastError, GridscoreError, TimeoutError) as problem:
            _log.debug("%s: its last error could not be noted: %s", self.name, problem)

    async def _open(self) -> None:
        pauses = self._new_pauses()
        while True:
            sink = self._make()
            if hasattr(sink, "identity"):
                sink.identity = self.id
            try:
                await sink.open()
            except (GridscoreError, HazelcastError) as error:
                await sink.close()
                if not self._patience.may_heal(error):
                    raise
                await pauses.wait(error)
            except BaseException:
                await sink.close()
                raise
            else:
                self._sink = sink
                self.stats.state = DELIVERING
                self._patience.opened()
                pauses.over()
                return

    async def _until_deliveries_end(self) -> None:
        if self._deliveries is not None:
            await asyncio.shield(self._deliveries)

    async def _stop(self) -> None:
        self._joined = False
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self._grid.is_running:
                    await self._members.leave()
        except (HazelcastError, TimeoutError) as error:
            _log.warning("%s: its record could not be removed: %s", self.name, error or "the cluster does not answer")
        # Waits for the delivery under way while there is time.
        await self.group.leave()
        await self._members.sessions.close()
        if self._deliveries is not None:
            self._deliveries.cancel()
            await asyncio.wait({self._deliveries})
        self._letters.close()
        if self._sink is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._changes.tell_dropped()
                    await self._sink.close()
            except (GridscoreError, HazelcastError, TimeoutError) as error:
                _log.warning("%s: it could not be closed: %s", self.name, error or "no answer")

    def _waits_for(self, error: Exception) -> str:
        return CLUSTER if self._grid.may_recover_from(error) else "its destination"

    def _new_pauses(self) -> _Pauses:
        return _Pauses(self.name, self.stats, self._hidden, self._waits_for)

    # ------------------------------------------------------------------ the way of a delivery

    async def _deliver_for_ever(self) -> None:
        sink = self._opened
        with contextlib.suppress(HazelcastError):
            await self._letters.look()  # there may be too many already
        while True:
            if self._letters.full:
                await self._until_there_is_room()
            await self._collect(sink.max_results, getattr(sink, "linger", 0.0))
            await self._deliver(self._collector.take(sink.max_results))
            if self._to_next_look() == 0:  # everything may have been filtered out
                await self._look()
            # Let the event loop read on and renew the leases, even if the destination is quick.
            await asyncio.sleep(0)

    async def _until_there_is_room(self) -> None:
        """Wait until dead letters are replayed or removed: there is no room for the next."""
        stats, letters = self.stats, self._letters
        text = f"Paused: {letters.full}."
        _log.error(
            "%s: %s Fix the cause; it continues once dead letters are replayed or purged: "
            "gridscore dead-letters list %s",
            self.name,
            text,
            self.name,
            extra={"action": "paused"},
        )
        while letters.full:
            stats.state, stats.error = PAUSED, text
            await asyncio.sleep(COUNT_SECONDS)
            try:
                await letters.look()
            except HazelcastError as error:
                _log.debug("%s: the dead letters could not be counted: %s", self.name, error)
        stats.state, stats.error = DELIVERING, ""
        _log.warning("%s: there is room for dead letters, delivering again", self.name, extra={"action": "healed"})

    async def _collect(self, most: int, linger: float) -> None:
        """Return when there is something to deliver: `most` results, or what has come within `linger` seconds."""
        collector, group = self._collector, self.group
        if collector.is_empty:
            await self._idle()
        elif room := collector.room(most):
            collector.add(group.take(room))
        try:
            async with asyncio.timeout(linger):
                while room := collector.room(most):
                    await group.wait()
                    collector.add(group.take(room))
                    if not linger:
                        return
        except TimeoutError:
            return

    async def _idle(self) -> None:
        """Wait for results, and meanwhile look whether the destination is there."""
        while True:
            try:
                async with asyncio.timeout(self._to_next_look()):
                    await self.group.wait()
                    return
            except TimeoutError:
                await self._look()

    def _to_next_look(self) -> float | None:
        """Seconds until the next look at the destination; None if it has no `look`."""
        if not hasattr(self._opened, "look"):
            return None
        return max(0.0, self._tried + LOOK_SECONDS - self._grid.clock())

    async def _look(self) -> None:
        """See if the destination is there, and say so."""
        try:
            async with self._calling:
                await self._opened.look()  # type: ignore[attr-defined]
        except (GridscoreError, HazelcastError) as error:
            if not self._patience.may_heal(error):
                raise
            self._pauses.say(error)  # do not wait: results may be filtered out meanwhile
        else:
            self._pauses.over()
        self._tried = self._grid.clock()

    async def _deliver(self, parts: dict[int, Part]) -> None:
        """Deliver what is still ours, with as many attempts as it takes."""
        group, pauses, clock = self.group, self._pauses, self._grid.clock
        while parts := {part.cursor.partition: part for part in group.ours(parts.values())}:
            now, later = self._pace.next(parts)
            writes = [
                Write(partition, part.next, len(part.results), part.lost, part.at) for partition, part in now.items()
            ]
            for write in writes:
                group.sent(write)
            done, sent, began, until = False, False, clock(), self._until(now)
            try:
                sent = await self._bring(now)
                done = True
            except (GridscoreError, HazelcastError) as error:
                if not self._patience.may_heal(error):
                    raise
                failure = error
            finally:
                for write in writes:
                    if not group.answered(write):
                        continue  # the partition was dropped meanwhile
                    if done:
                        self.stats.events += group.acknowledge(write)
                    else:
                        # Nothing is under way until the next attempt, so the partition can be given back.
                        group.withdraw(write)
            if not done:
                self._pace.failed(now, left=until - clock())
                self._tried = clock()
                await pauses.wait(failure)
                continue
            if sent:
                self._tried = clock()
                self._patience.succeeded()
                pauses.over()
            self._pace.done(now, seconds=clock() - began, most=self._opened.max_results)
            for part in now.values():
                self.stats.filtered += part.filtered
                if part.rescued:
                    self._again.delivered(part.cursor, part.rescued)
            parts = later
        if self._to_next_look() is None:
            # The results that waited may have gone to another process; then nothing else would end the waiting state.
            pauses.over()

    @staticmethod
    def _until(parts: Mapping[int, Part]) -> float:
        """When the first of the leases ends, unless it is renewed."""
        return min(part.cursor.until for part in parts.values())

    async def _bring(self, parts: Mapping[int, Part]) -> bool:
        """Deliver once, and set aside what is not a result, or is refused; whether anything was sent."""
        results = [result for part in parts.values() for result in part.results]
        rejected = [each for part in parts.values() for each in part.rejected]
        if results:
            async with self._calling:
                offsets = {partition: part.next for partition, part in parts.items()}
                delivery = Delivery(results, offsets, self._until(parts))
                late = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._say_silent, len(results))
                try:
                    refused = await self._opened.deliver(delivery)
                finally:
                    late.cancel()
                    silent, self._silent = self._silent, False
            if silent:
                _log.warning("%s: its destination answers again", self.name, extra={"action": "healed"})
            self.stats.deliveries += 1
            rejected += [self._letter_of(each, parts) for each in refused]
        if rejected:
            await self._set_aside(rejected, self._until(parts))
        return bool(results)

    def _say_silent(self, count: int) -> None:
        """A delivery is under way that nothing else would show before it times out."""
        if (now := self._grid.clock()) < self._silent_said + 60.0:
            return
        self._silent, self._silent_said = True, now
        _log.warning(
            "%s: its destination has not answered for %.0f s, with %s under way",
            self.name,
            SILENT_SECONDS,
            count_text(count, "result"),
            extra={"action": "silent"},
        )

    def _letter_of(self, refused: Refused, parts: Mapping[int, Part]) -> Rejected:
        """A refused result, with the serialized key that its dead letter keeps."""
        result, part = refused.result, parts[refused.result.partition]
        key, error = part.keys[part.results.index(result)], self._hidden.hide(refused.error)
        return Rejected(result.partition, result.sequence, key, result.text, "deliver", error)

    async def _set_aside(self, rejected: Sequence[Rejected], until: float) -> None:
        now = moment_text()
        letters = [letter(self._grid, self.name, self.map, each, now) for each in rejected]
        # Beyond the limit if need be: they were refused already. Later results wait instead.
        new, _ = await self._letters.put(letters, until=until, within=False)
        self.stats.dead += new
        where = f"partition {rejected[0].partition}, sequence {rejected[0].sequence}"
        self._letters.say(new, where, rejected[0].error)

    # ------------------------------------------------------------------ what the sink is told

    @property
    def _opened(self) -> Sink:
        assert self._sink is not None  # noqa: S101 -- nothing is read before it is opened
        return self._sink

    async def _taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        return await self._insist(lambda: self._opened.taken(partitions))

    async def _dropped(self, partitions: Collection[int]) -> None:
        await self._insist(lambda: self._opened.dropped(partitions))

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Call until the destination is there and the cluster answers."""
        pauses = self._new_pauses()
        while True:
            try:
                async with self._calling:
                    answer = await call()
            except (GridscoreError, HazelcastError) as error:
                if not self._patience.may_heal(error):
                    raise
                await pauses.wait(error)
            else:
                pauses.over()
                return answer

    def _says(self) -> dict[str, Any]:
        """What the record of this process says."""
        groups = [group_of(self.name)] if self._joined else []
        return {"groups": groups, "sink": self.name, "kind": self.kind, **self.stats.to_json()}


class _Pace:
    """How much goes into one delivery, so that a slow destination can take it within the leases."""

    def __init__(self, lease_seconds: float) -> None:
        self._quick = lease_seconds / 5
        self._most: int | None = None  # results; None: no limit

    def next(self, parts: dict[int, Part]) -> tuple[dict[int, Part], dict[int, Part]]:
        """What to deliver now, and what later."""
        return (parts, {}) if self._most is None else cut(parts, self._most)

    def failed(self, parts: Mapping[int, Part], *, left: float) -> None:
        """A delivery has failed, so many seconds before the end of its first lease."""
        if left < self._quick / 2:
            self._most = max(1, _count(parts) // 4)

    def done(self, parts: Mapping[int, Part], *, seconds: float, most: int) -> None:
        """A delivery took so many seconds; the sink takes so many results at most."""
        if self._most is not None and seconds < self._quick and _count(parts) >= self._most:
            self._most = self._most * 2 if self._most * 2 < most else None


def _count(parts: Mapping[int, Part]) -> int:
    return sum(len(part.results) for part in parts.values())


class _Pauses:
    """Growing pauses between attempts, and what is said of them. `waits_for`: says what an error has us wait for."""

    def __init__(self, name: str, stats: SinkStats, hidden: Hidden, waits_for: Callable[[Exception], str]) -> None:
        self._hidden, self._name, self._stats = hidden, name, stats
        self._waits_for = waits_for
        self._seconds = 0.0
        self._said = ""

    async def wait(self, error: Exception) -> None:
        """Say why, and wait before the next attempt."""
        self.say(error)
        longest = min(LONGEST_PAUSE_SECONDS, self._seconds * 2) or FIRST_PAUSE_SECONDS
        self._seconds = longest
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 -- processes should come one by one

    def say(self, error: Exception) -> None:
        """An attempt has failed."""
        text, stats = self._hidden.hide(str(error) or type(error).__name__), self._stats
        stats.state, stats.error, stats.waits_for = WAITING, text, self._waits_for(error)
        stats.interruptions += 1
        if text != self._said:
            self._said = text
            _log.warning("%s: waiting for %s: %s", self._name, stats.waits_for, text, extra={"action": "interrupted"})

    def over(self) -> None:
        """An attempt has succeeded."""
        if self._said:
            self._said, self._seconds = "", 0.0
            self._stats.state, self._stats.error = DELIVERING, ""
            _log.warning("%s: delivering again", self._name, extra={"action": "healed"})


def runner_of(
    grid: Grid, settings: SinkSettings, name: str | None = None, *, lease_seconds: float = LEASE_SECONDS
) -> SinkRunner:
    """The runner of a sink with these settings; `name` is for a sink whose settings have none.

    Raises SettingsError if an environment variable that the settings name is not set; UsageError if there is no such
    kind, or its libraries are not installed.
    """
    kind = KINDS.of(settings).name
    called = KINDS.name_of(settings, name)
    filled, hidden = from_environment(settings)

    def make() -> Sink:
        return KINDS.make(grid, called, filled)

    return SinkRunner(grid, called, kind, filled, make, hidden=hidden, lease_seconds=lease_seconds)
