"""A source over a list, with sentinels that make it end, pause, fail or die at a place: to test what runs sources.

    script = Script([("a", b"1"), ("b", b"2"), Script.ABORT, ("c", b"3")])
    runner = SourceRunner(grid, "test", script.source, kind="script", to="events.test")

What it has acknowledged is in the script, as it would be in a broker: a new source goes on from there, in another
attempt or in another runner, which is what a process started anew would be.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gridscore.errors import GridscoreError
from gridscore.sources.base import Batch, Poison, SourceInterruptedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    Item: TypeAlias = "tuple[Any, bytes | None] | Poison | Sentinel"


class AbortedError(Exception):
    """The process died here: what was not acknowledged is not acknowledged any more."""


class UnhealableError(GridscoreError):
    """Something that trying again does not heal."""


class Sentinel(Enum):
    """What happens at a place of a script."""

    EOF = "eof"  # the source is at its end; the next one goes on behind it
    ABORT = "abort"  # the process dies, once; the next one goes on where it was acknowledged
    PAUSE = "pause"  # there is nothing more until `Script.go_on`
    INTERRUPT = "interrupt"  # the other side is away, once
    FAIL = "fail"  # the source cannot go on, and trying again does not heal it


class Script:
    """What a source reads, and how far that is acknowledged.

    Args:
        items: Entries, poison, and sentinels.
        size: Items of a batch at most.
        acknowledging: Called, and waited for, before a batch is taken for acknowledged; may raise.

    Attributes:
        acknowledged: Items that are acknowledged, sentinels included.
        positions: The position of every batch that was acknowledged, in the order of the calls.
        opened: Sources that were opened.
        closed: Sources that were closed.
        paused: Set as long as a source waits at a `PAUSE`.
    """

    EOF: Final = Sentinel.EOF
    ABORT: Final = Sentinel.ABORT
    PAUSE: Final = Sentinel.PAUSE
    INTERRUPT: Final = Sentinel.INTERRUPT
    FAIL: Final = Sentinel.FAIL

    def __init__(
        self, items: Iterable[Item], *, size: int = 1, acknowledging: Callable[[Batch], Awaitable[None]] | None = None
    ) -> None:
        self.items = list(items)
        self.size, self.acknowledging = size, acknowledging
        self.acknowledged = 0
        self.positions: list[int] = []
        self.opened = self.closed = 0
        self.paused = asyncio.Event()
        self._gone_on = asyncio.Event()
        self._spent: set[int] = set()

    def source(self) -> ScriptedSource:
        """A source that goes on from what is acknowledged."""
        return ScriptedSource(self)

    def go_on(self) -> None:
        """End the pause; those that follow end at once, too."""
        self._gone_on.set()

    @property
    def in_order(self) -> bool:
        """Whether batches were acknowledged in order, each once an attempt: none twice, none after a later one."""
        return all(before < after for before, after in pairwise(self.positions))

    def spend(self, place: int) -> bool:
        """Whether the sentinel at a place works: it does once."""
        if place in self._spent:
            return False
        self._spent.add(place)
        return True

    async def pause(self) -> None:
        """Wait for `go_on`."""
        self.paused.set()
        try:
            await self._gone_on.wait()
        finally:
            self.paused.clear()


class ScriptedSource:
    """Reads a script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def open(self) -> None:
        """Nothing to connect to."""
        self._script.opened += 1

    async def batches(self) -> AsyncIterator[Batch]:
        """The items in batches; a sentinel ends the batch before it."""
        script, place = self._script, self._script.acknowledged
        entries: list[tuple[Any, bytes | None]] = []
        poison: list[Poison] = []
        while place < len(script.items):
            item = script.items[place]
            if not isinstance(item, Sentinel):
                place += 1
                if isinstance(item, Poison):
                    poison.append(item)
                else:
                    entries.append(item)
                if len(entries) + len(poison) < script.size and place < len(script.items):
                    continue
            if entries or poison:
                yield Batch(entries, poison, position=place)
                entries, poison = [], []
            if isinstance(item, Sentinel):
                if await self._obey(item, place):
                    return
                place += 1

    async def _obey(self, sentinel: Sentinel, place: int) -> bool:
        """Do what a sentinel says; whether the source is at its end."""
        script = self._script
        if sentinel is Sentinel.FAIL:
            raise UnhealableError("The script says that this cannot be healed.", "Write another one.")
        if sentinel is Sentinel.PAUSE:
            await script.pause()
        elif script.spend(place):
            if sentinel is Sentinel.ABORT:
                raise AbortedError
            if sentinel is Sentinel.INTERRUPT:
                raise SourceInterruptedError("The script says that the other side is away.")
            return True
        return False

    async def acknowledge(self, batch: Batch) -> None:
        """Move the script's position."""
        if self._script.acknowledging is not None:
            await self._script.acknowledging(batch)
        self._script.positions.append(batch.position)
        self._script.acknowledged = batch.position

    async def close(self) -> None:
        """Nothing to let go."""
        self._script.closed += 1
