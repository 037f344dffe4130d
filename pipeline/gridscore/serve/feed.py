"""The feed of a result map: one reader of its journals for all who listen, and some results for those who are behind.

A listener's place is the next sequence of each partition, so it can go on at any server: from what is kept here or, if
that begins later, by a reader of its own until it has caught up. Those who are level share their places and what they
are sent. One that takes too little is cut off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections import deque
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.errors import GridError, GridscoreError, UsageError
from gridscore.grid import transport
from gridscore.results.follower import Follower

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence

    from gridscore.grid import Grid
    from gridscore.group.reader import Arrival

KEPT_BYTES = 16 << 20  # bytes of results that are kept for slow listeners
PIECE_BYTES = 128 << 10  # bytes of results that a listener is given at once, unless a single one has more
CATCHING_UP = 8  # listeners that may have readers of their own at once; others wait for their turn
CATCH_UP_SECONDS = 60.0  # how long one may take to catch up, before another has its turn
BODIES = 16  # of the newest piece that are kept for others who need the same
# After this time without a result a comment is sent, so that nobody on the way takes the connection for dead.
PULSE_SECONDS = 15.0
MAX_REST_SECONDS = 0.5  # after a piece was handed out to many
_WOKEN_AT_ONCE = 100  # listeners; others are served in between
_OVERHEAD = 200  # of a result, beside its texts


class _Decided(msgspec.Struct):
    decision: str | None = None


_decode = msgspec.json.Decoder(_Decided).decode


class Item(NamedTuple):
    """A result."""

    partition: int
    sequence: int
    decision: str | None
    text: bytes  # JSON text of it, its key included, in one line


@dataclass(slots=True, eq=False)
class Mark:
    """Where those are who have taken a piece; it is there as long as they are, the piece is not."""

    number: int = 0  # of the piece
    end: tuple[int, ...] | None = None  # the next sequence of each partition, if somebody has asked
    place: str = ""  # the same as a text, likewise


@dataclass(slots=True, eq=False)
class Piece:
    """Some results in a row, and what those who take them share."""

    items: list[Item]
    size: int = 0
    mark: Mark = field(default_factory=Mark)
    # As they are sent, by kind, decisions and place; None once it is not the newest, for they may be large.
    bodies: dict[Hashable, bytes] | None = field(default_factory=dict)

    def move(self, positions: list[int]) -> None:
        """Move positions behind it."""
        for item in self.items:
            positions[item.partition] = item.sequence + 1

    def body(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """A body, which is made once for all who need the same."""
        body = None if self.bodies is None else self.bodies.get(key)
        if body is None:
            body = make()
            if self.bodies is not None and len(self.bodies) < BODIES:
                self.bodies[key] = body
        return body


@dataclass(slots=True, eq=False)
class Listener:
    """Who listens, and where it is: behind a piece of the feed or, until it is level, at positions of its own."""

    feed: Feed
    mark: Mark  # of the piece that it took last
    ended: asyncio.Future[None]  # done when it is to listen no longer
    positions: list[int] | None = None  # the next sequence of each partition
    beginnings: int = -1  # how often journals of the feed had begun again when it went over to it; -1 before
    lost: int = 0  # results that were overwritten before they were read for it
    waiter: asyncio.Future[None] | None = None  # done when there may be something to do

    @property
    def place(self) -> str:
        """Where it is, as a text from which to go on."""
        if self.positions is not None:
            return _packed(self.positions)
        if not self.mark.place:
            self.mark.place = _packed(self.feed.end_of(self.mark))
        return self.mark.place

    def end(self) -> None:
        """Let it listen no longer."""
        if not self.ended.done():
            self.ended.set_result(None)
        self.wake()

    def wake(self) -> None:
        """Let it look what there is to do."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def take(self, piece: Piece) -> Piece:
        """Note that it has a piece; returns what it has not seen of it."""
        self.mark, positions = piece.mark, self.positions
        if positions is None:
            return piece
        unseen = Piece([item for item in piece.items if item.sequence >= positions[item.partition]])
        unseen.move(positions)
        if self.feed.is_level(piece, positions):  # what comes is new, and all who have this piece are at one place
            self.positions = None
        return unseen


class CutOffError(GridscoreError):
    """A listener has taken too little for too long."""


class Feed:
    """Results of one map for many listeners. `listeners`: those there are."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self._map_name = grid, map_name
        self._follower = Follower(grid, map_name)
        self._pieces: deque[Piece] = deque()  # never empty once it is open
        self._size = 0
        self._start: list[int] = []  # where the first begins
        self._end: list[int] = []
        self._waiting: dict[Listener, None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: GridscoreError | None = None
        self._turn = asyncio.Semaphore(CATCHING_UP)
        self.listeners = 0

    async def open(self) -> Feed:
        """Begin to read what is written from now on. Raises JournalMissingError if the map has no journal."""
        await self._follower.open("latest")
        self._start, self._end = list(self._follower.positions), list(self._follower.positions)
        self._pieces.append(Piece([]))
        self._tasks = [asyncio.create_task(work()) for work in (self._read, self._pulse)]
        return self

    def close(self) -> None:
        """Stop reading; who listens gets an error."""
        self._fail(GridError(f"`{self._map_name}` is no longer read."))
        self._follower.close()
        for task in self._tasks:
            task.cancel()

    @property
    def alive(self) -> bool:
        return self._failure is None

    def listener(self, place: str | None) -> Listener:
        """One that begins with what is written from now on, or goes on at its place.

        Raises UsageError if it is not a place of this map.
        """
        ended = asyncio.get_running_loop().create_future()
        if place is None:
            return Listener(self, self._pieces[-1].mark, ended)
        return Listener(self, self._pieces[-1].mark, ended, _positions(place, len(self._end)))

    async def results(self, listener: Listener) -> AsyncGenerator[Piece]:
        """What comes, for ever; one without items when nothing has come for `PULSE_SECONDS`, or the listener is to end.

        Raises CutOffError if it has taken too little; it may go on at its place; GridError if the map is no longer
        read.
        """
        if listener.positions is not None and listener.beginnings < 0:
            async with self._turn, aclosing(self._caught_up(listener, listener.positions)) as before:
                async for piece in before:
                    yield piece
            listener.mark = Mark(self._pieces[0].mark.number - 1)
            listener.beginnings = self._follower.regressions
        while True:
            behind = self._pieces[-1].mark.number - listener.mark.number
            if behind > len(self._pieces):
                raise CutOffError("Results were not taken as fast as they came.")
            if listener.positions is not None and listener.beginnings != self._follower.regressions:
                raise CutOffError("A journal has begun again meanwhile: go on from here.")
            if not behind:
                if self._failure is not None:
                    raise self._failure
                await self._woken(listener)
                if listener.mark is self._pieces[-1].mark and self._failure is None:
                    yield Piece([])
                continue
            taken = listener.take(self._pieces[-behind])
            if taken.items:
                yield taken

    async def _woken(self, listener: Listener) -> None:
        self._waiting[listener] = None
        listener.waiter = asyncio.get_running_loop().create_future()
        try:
            await listener.waiter
        finally:
            listener.waiter = None
            self._waiting.pop(listener, None)

    def end_of(self, mark: Mark) -> Sequence[int]:
        """The next sequence of each partition at a mark."""
        if mark is self._pieces[-1].mark:
            return self._end
        if mark.end is None:  # counted from the last of which it is known, as a slow listener asks again and again
            last = index = mark.number - self._pieces[0].mark.number
            while index >= 0 and self._pieces[index].mark.end is None:
                index -= 1
            positions = list(self._start if index < 0 else self._pieces[index].mark.end or ())
            for number in range(index + 1, last + 1):
                self._pieces[number].move(positions)
            self._note_end(self._pieces[last], positions)
        return mark.end or ()

    def _note_end(self, piece: Piece, positions: Sequence[int]) -> None:
        piece.mark.end = tuple(positions)
        piece.size += 8 * len(positions)
        self._size += 8 * len(positions)

    async def _caught_up(self, listener: Listener, positions: list[int]) -> AsyncGenerator[Piece]:
        """What came before the results that are kept, by a reader of its own."""
        if self._is_kept(positions):
            return
        follower, now = Follower(self._grid, self._map_name), asyncio.get_running_loop().time
        until = now() + CATCH_UP_SECONDS
        try:
            await follower.open(positions)
            positions[:] = follower.positions  # those of journals that have begun again
            # The journals have told now, so a position may be behind our end: what comes before it is passed over.
            while any(s > p for s, p in zip(self._start, positions, strict=True)):
                if now() > until:
                    raise CutOffError("It took too long to catch up: go on from here.")
                items = [item for arrival in await follower.take() for item in _items(self._grid, follower, arrival)]
                listener.lost = follower.lost
                for piece in _pieces(items):
                    piece.move(positions)
                    yield piece
                positions[:] = follower.positions
        finally:
            follower.close()

    def _is_kept(self, positions: Sequence[int]) -> bool:
        """Whether all that comes after these positions is kept; behind our end, only the journal itself can tell."""
        return all(s <= p <= e for s, p, e in zip(self._start, positions, self._end, strict=True))

    def is_level(self, piece: Piece, positions: Sequence[int]) -> bool:
        """Whether what comes after a piece is new to who is at these positions."""
        return piece is self._pieces[-1] and all(p <= e for p, e in zip(positions, self._end, strict=True))

    async def _read(self) -> None:
        try:
            while True:
                items = []
                for arrival in await self._follower.take():
                    items += _items(self._grid, self._follower, arrival)
                end = list(self._follower.positions)
                for piece in _pieces(items):
                    self._keep(piece)
                    await self._hand_out()
                self._end = end
        except GridscoreError as error:
            self._fail(error)

    def _keep(self, piece: Piece) -> None:
        last = self._pieces[-1]
        last.bodies, piece.mark.number = None, last.mark.number + 1
        if last.mark.place:
            self._note_end(last, self._end)
        piece.move(self._end)
        self._pieces.append(piece)
        self._size += piece.size
        while self._size > KEPT_BYTES and len(self._pieces) > 1:
            gone = self._pieces.popleft()
            self._size -= gone.size
            gone.move(self._start)
            gone.mark.end = tuple(self._start)  # for those who are still there

    async def _hand_out(self) -> None:
        """Wake who waits, some at a time, and rest as long as that took: what comes meanwhile is one piece."""
        now = asyncio.get_running_loop().time
        began, waiting = now(), list(self._waiting)
        for first in range(0, len(waiting), _WOKEN_AT_ONCE):
            for listener in waiting[first : first + _WOKEN_AT_ONCE]:
                listener.wake()
            await asyncio.sleep(0)
        if len(waiting) > _WOKEN_AT_ONCE:
            await asyncio.sleep(min(now() - began, MAX_REST_SECONDS))

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            await self._hand_out()

    def _fail(self, error: GridscoreError) -> None:
        self._failure = self._failure or error
        for listener in self._waiting:
            listener.wake()


def _pieces(items: Sequence[Item]) -> Iterator[Piece]:
    """Items in pieces that are not too large."""
    piece = Piece([])
    for item in items:
        piece.items.append(item)
        piece.size += len(item.text) + _OVERHEAD
        if piece.size >= PIECE_BYTES:
            yield piece
            piece = Piece([])
    if piece.items:
        yield piece


def _items(grid: Grid, follower: Follower, arrival: Arrival) -> list[Item]:
    """The results of a page, which is thereby taken."""
    page, items = arrival.page, []
    for index, text in enumerate(page.values):
        if index in page.foreign:
            continue
        try:
            decision = _decode(text).decision
            key = msgspec.json.encode(transport.to_object(grid.client, page.keys[index]))
        except Exception:  # noqa: BLE001, S112 -- of keys the client raises anything, and no entry may end us
            continue
        # Outside of its strings, JSON may have line ends; here they would end the event.
        line = b" ".join(text.strip().splitlines()).removeprefix(b"{").lstrip()
        items.append(
            Item(
                arrival.partition,
                page.sequences[index],
                decision,
                b'{"key":%b%b%b' % (key, b"" if line == b"}" else b",", line),
            )
        )
    follower.move(arrival, page.next)
    return items


def _packed(positions: Sequence[int]) -> str:
    return base64.urlsafe_b64encode(zlib.compress(msgspec.msgpack.encode(positions), 1)).decode().rstrip("=")


def _positions(place: str, count: int) -> list[int]:
    with suppress(ValueError, zlib.error, msgspec.DecodeError, binascii.Error):
        packed = base64.urlsafe_b64decode(place + "=" * (-len(place) % 4))
        made = zlib.decompressobj().decompress(packed, 16 * (count + 1))
        positions: Any = msgspec.msgpack.decode(made, type=list[int])
        if len(positions) == count and all(0 <= each < 1 << 62 for each in positions):
            return list(positions)
    raise UsageError("The Last-Event-ID is not one of this stream, or of another cluster.")
