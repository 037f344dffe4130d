"""Writing dead letters: within their limits, each once, and none that the grid has already.

The limits of number and size are for all processes of a job, source or sink together. A process does not ask the grid
for each letter: from time to time it asks for the size of the map, and takes its share of the room that is left. Bytes
are estimated from that size and the mean size of the letters that the process has written.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gridscore.dead_letters.letters import decode, encode, map_of
from gridscore.grid import transport
from gridscore.grid.entries import values_of
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job.types import DEAD_LETTER_BYTES, DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from gridscore.dead_letters.letters import DeadLetter
    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

_USUAL_BYTES, _PART = 1_024, 10
MOST_UNDER_WAY = 64 << 20  # bytes of events that wait: a member that does not answer must not fill the memory
COUNT_SECONDS = 2.0  # how long a look at the number of dead letters is valid
SAY_SECONDS = 10.0  # pause between two lines in the log about dead letters


class Limits(NamedTuple):
    """How many dead letters there may be, and how many bytes of them."""

    entries: int
    size: int


DEFAULT_LIMITS = Limits(DEAD_LETTERS, DEAD_LETTER_BYTES)


class Put(NamedTuple):
    """What became of some dead letters."""

    new: int  # how many were written; the grid already had the others, except `left`
    left: list[DeadLetter]  # those without room


class Weights:
    """How many bytes a map has, by those of its entries that this process has written."""

    def __init__(self) -> None:
        self._entries, self._bytes = 0.0, 0.0

    def add(self, texts: Collection[bytes]) -> None:
        """Count entries that are written."""
        self._entries += len(texts)
        self._bytes += sum(map(len, texts))

    def of(self, there: int) -> float:
        """About how many bytes so many entries have, all that the map has by now."""
        if self._entries > there:  # some of ours are gone
            self._bytes *= there / self._entries
            self._entries = there
        # If ours are a good part of all, those of others are like ours: one large entry says nothing of thousands.
        is_part = self._entries > 0 and self._entries * _PART >= there
        mean = self._bytes / self._entries if is_part else _USUAL_BYTES
        return self._bytes + (there - self._entries) * mean


@dataclass(slots=True, eq=False)
class Placed:
    """A dead letter, and its serialized key."""

    dead: DeadLetter
    key: bytes
    json: bytes = b""

    @property
    def text(self) -> bytes:
        """What is written, made when it is wanted: where there is no room, it never is."""
        self.json = self.json or encode(self.dead)
        return self.json


class Place(NamedTuple):
    """Dead letters that go to one partition, and so in one message."""

    partition: int
    letters: list[Placed]


class LetterWriter:
    """Writes the dead letters of one job, source or sink in one process.

    `limits`: of all its processes together; `share`: part of the free room that this process may take at once, 0 to 1.
    `full`: why there was no room at the last look, for people; empty if there was.
    """

    def __init__(self, grid: Grid, name: str, limits: Limits, *, share: Callable[[], float] = lambda: 1.0) -> None:
        self._grid, self._name, self._limits = grid, name, limits
        self._share = share
        self._writer = MapWriter(grid, map_of(name))
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._entries, self._size = 0, 0.0  # room that this process may take
        self._weights = Weights()
        self._under_way, self._less_under_way = 0, asyncio.Event()
        self._unsaid = self._unkept_unsaid = 0
        self._said_at = float("-inf")
        self._saying: asyncio.TimerHandle | None = None
        self._example = self._unkept_example = ""
        self.full = ""

    def serialize_key(self, key: object) -> bytes:
        """A key as the grid stores it."""
        return self._writer.serialize_key(key)

    async def room(self) -> None:
        """Return when no more than `MOST_UNDER_WAY` is under way."""
        while self._under_way > MOST_UNDER_WAY:
            self._less_under_way.clear()
            try:
                async with asyncio.timeout(SAY_SECONDS):
                    await self._less_under_way.wait()
            except TimeoutError:
                text = "%s waits: %d MiB of dead letters are not confirmed. `gridscore doctor` says which member hangs"
                _log.warning(text, self._name, self._under_way >> 20, extra={"action": "dead_letters_wait"})

    def places(self, letters: Iterable[DeadLetter]) -> list[Place]:
        """Letters by the partition that they go to; of several with one ID, the last. For `put_in`, at once."""
        found = {each.key: each for each in (Placed(dead, self.serialize_key(dead.id)) for dead in letters)}
        by_partition: dict[int, list[Placed]] = {}
        for key, each in found.items():
            by_partition.setdefault(partition_of(key, self._grid.partition_count), []).append(each)
        return [Place(partition, some) for partition, some in by_partition.items()]

    async def put(self, letters: Iterable[DeadLetter], *, until: float | None = None, within: bool = True) -> Put:
        """Write those that the grid does not have, as far as there is room.

        Args:
            letters: In the order in which they were met.
            until: See `MapWriter.put`.
            within: Whether to keep within the limits. Without, all are written, and `full` says if they were too many.

        Raises:
            HazelcastError: At least one was not confirmed.
        """
        puts = [self.put_in(each, until=until, within=within) for each in self.places(letters)]
        done = [_done(each) for each in await asyncio.gather(*puts, return_exceptions=True)]
        return Put(sum(each.new for each in done), [dead for each in done for dead in each.left])

    async def put_in(self, place: Place, *, until: float | None = None, within: bool = True) -> Put:
        """Write those of one place, as `put` does."""
        partition, letters = place
        size = sum(len(each.dead.raw) for each in letters)
        self._under_way += size
        try:
            await self._writer.prepare()
            left, again = await self._unknown(partition, letters)
            new = await self._write(partition, again, until)
            while left:
                count = await self._take(left)
                kept, left = (left[:count], left[count:]) if within else (left, [])
                if not kept:
                    break
                new += await self._write(partition, kept, until)
                self._weights.add([each.text for each in kept])
                if count < len(kept):
                    await self.look()
            return Put(new, [each.dead for each in left])
        finally:
            self._under_way -= size
            self._less_under_way.set()

    async def _write(self, partition: int, letters: Sequence[Placed], until: float | None) -> int:
        if letters:
            keys, texts = [each.key for each in letters], [each.text for each in letters]
            await self._writer.put_partition(partition, keys, texts, once=until is not None, until=until)
        return len(letters)

    def say(self, count: int, where: str, error: str, *, unkept: int = 0) -> None:
        """Log what was rejected, with one of the reasons, every few seconds at most.

        `count`: how many went to the dead letters; `where`: where one of them came from; `error`: what was wrong with
        it; `unkept`: how many did not, for lack of room.
        """
        self._unsaid += count
        self._unkept_unsaid += unkept
        if count:
            self._example = f"{where}: {error}"
        if unkept:
            self._unkept_example = f"{self.full}; {where}: {error}"
        if self._saying is None:  # otherwise it will be said then
            wait = self._said_at + SAY_SECONDS - self._grid.clock()
            if wait <= 0:
                self._say()
            else:
                self._saying = asyncio.get_running_loop().call_later(wait, self._say)

    def close(self) -> None:
        """Log what has not been logged."""
        if self._saying is not None:
            self._saying.cancel()
            self._say()

    def _say(self) -> None:
        text, extra = "%s: %d went to the dead letters; %s", {"action": "dead_letter"}
        if self._unsaid:
            _log.warning(text, self._name, self._unsaid, self._example, extra=extra)
        if self._unkept_unsaid:
            text = "%s: %d more could not be scored, and have no dead letter: %s"
            extra = {"action": "dead_letter_unkept"}
            _log.error(text, self._name, self._unkept_unsaid, self._unkept_example, extra=extra)
        self._said_at, self._unsaid, self._unkept_unsaid, self._saying = self._grid.clock(), 0, 0, None

    async def count(self) -> int:
        """How many there are in the grid."""
        return await transport.map_size(self._grid.client, map_of(self._name))

    async def look(self) -> None:
        """Look whether there is room for another."""
        async with self._looking:
            await self._look()

    async def _unknown(self, partition: int, letters: Sequence[Placed]) -> tuple[list[Placed], list[Placed]]:
        """The letters that the grid lacks, and those that it has in another form."""
        found = await values_of(self._grid, self._writer.map_name, partition, [each.key for each in letters])
        again = [each for each in letters if each.key in found and not _is_known(decode(found[each.key]), each.dead)]
        return [each for each in letters if each.key not in found] if found else list(letters), again

    async def _take(self, letters: Sequence[Placed]) -> int:
        """Take room for letters; returns for how many, from the first, there was some."""
        async with self._looking:
            old = self._grid.clock() - self._looked_at >= COUNT_SECONDS
            if old or (not self.full and self._fitting(letters)[0] < len(letters)):
                await self._look(letters)
            count, size = self._fitting(letters)
            self._entries -= count
            self._size -= size
            return count

    def _fitting(self, letters: Sequence[Placed]) -> tuple[int, int]:
        count = size = 0
        for each in letters[: self._entries]:
            if size + len(each.text) > self._size:
                break
            size += len(each.text)
            count += 1
        return count, size

    async def _look(self, letters: Sequence[Placed] = ()) -> None:
        """Look how much room there is for letters like these."""
        there = await self.count()
        largest = max((len(each.text) for each in letters), default=1)
        entries = self._limits.entries - there
        size = self._limits.size - self._weights.of(there)
        share = min(1.0, max(0.0, self._share()))
        self._entries = max(0, math.ceil(entries * share))
        self._size = max(size * share, min(size, largest), 0.0)
        self._looked_at = self._grid.clock()
        self.full = self._why(there) if entries <= 0 or size < largest else ""

    def _why(self, there: int) -> str:
        if there >= self._limits.entries:
            return f"there are {there:,} dead letters, and the limit is {self._limits.entries:,} (max_dead_letters)"
        return f"its {there:,} dead letters fill about {self._limits.size:,} bytes (max_dead_letter_bytes)"


def _done(outcome: Put | BaseException) -> Put:
    """What was done; all were waited for, so that none is under way when the caller tries again."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _is_known(there: DeadLetter | None, dead: DeadLetter) -> bool:
    """Whether a dead letter need not be written again.

    It must be while its event is being replayed, which removes it unless it has changed.
    """
    if there is None or there.claim or (there.raw, there.error) != (dead.raw, dead.error):
        return False
    return bool(dead.origin) or there.sequence >= dead.sequence
