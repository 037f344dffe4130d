"""The feed of a result map: one reader of its journals for all who listen, and some results for those who are behind.

A listener knows the next sequence of each partition, so it can go on at any server: from what is kept here or, if that
begins later, by a reader of its own until it has caught up. One that takes too little is cut off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections import deque
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gridscore.errors import GridError, GridscoreError, UsageError
from gridscore.grid import transport
from gridscore.results.follower import Follower

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from gridscore.grid import Grid
    from gridscore.group.reader import Arrival

KEPT_BYTES = 16 << 20  # bytes of results that are kept for slow listeners
PIECE_BYTES = 128 << 10  # bytes of results that a listener is given at once, unless a single one has more
CATCHING_UP = 8  # listeners that may have readers of their own at once; others wait for their turn
CATCH_UP_SECONDS = 60.0  # how long one may take to catch up, before another has its turn
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
class Listener:
    """Who listens, and where it is."""

    positions: list[int]  # the next sequence of each partition
    piece: int = 0  # number of the next piece of the feed
    skip_to: int = 0  # number of the piece from which on nothing of it was seen before
    lost: int = 0  # results that were overwritten before they were read for it

    @property
    def place(self) -> str:
        """Where it is, as a text from which to go on."""
        packed = zlib.compress(msgspec.msgpack.encode(self.positions), 1)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def take(self, items: Sequence[Item], *, skip: bool) -> list[Item]:
        """Note that it has these results; returns those that it has not seen."""
        positions = self.positions
        taken = [item for item in items if item.sequence >= positions[item.partition]] if skip else list(items)
        for item in taken:
            positions[item.partition] = item.sequence + 1
        return taken


class CutOffError(GridscoreError):
    """A listener has taken too little for too long."""


class Feed:
    """Results of one map for many listeners. `listeners`: those there are."""

    def __init__(self, grid: Grid, map_name: str) -> None:
        self._grid, self._map_name = grid, map_name
        self._follower = Follower(grid, map_name)
        self._pieces: deque[tuple[list[Item], int]] = deque()  # each with its bytes
        self._first = 0  # number of the first of them
        self._size = 0
        self._start: list[int] = []  # where the first begins
        self._end: list[int] = []
        self._more = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._failure: GridscoreError | None = None
        self._turn = asyncio.Semaphore(CATCHING_UP)
        self.listeners = 0

    async def open(self) -> Feed:
        """Begin to read what is written from now on. Raises JournalMissingError if the map has no journal."""
        await self._follower.open("latest")
        self._start, self._end = list(self._follower.positions), list(self._follower.positions)
        self._reading = asyncio.create_task(self._read())
        return self

    def close(self) -> None:
        """Stop reading; who listens gets an error."""
        self._fail(GridError(f"`{self._map_name}` is no longer read."))
        self._follower.close()
        if self._reading is not None:
            self._reading.cancel()

    @property
    def alive(self) -> bool:
        return self._failure is None

    def listener(self, place: str | None) -> Listener:
        """One that begins with what is written from now on, or goes on at its place.

        Raises UsageError if it is not a place of this map.
        """
        if place is None:
            now = self._first + len(self._pieces)
            return Listener(list(self._end), now, now)
        return Listener(_positions(place, len(self._end)), -1)

    async def results(self, listener: Listener) -> AsyncGenerator[list[Item]]:
        """What comes, for ever.

        Raises CutOffError if it has taken too little; it may go on at its place; GridError if the map is no longer
        read.
        """
        if listener.piece < 0:
            async with self._turn, aclosing(self._caught_up(listener)) as before:
                async for items in before:
                    yield items
            listener.piece, listener.skip_to = self._first, self._first + len(self._pieces)
        while True:
            if listener.piece < self._first:
                raise CutOffError("Results were not taken as fast as they came.")
            if listener.piece == self._first + len(self._pieces):
                if self._failure is not None:
                    raise self._failure
                self._more.clear()
                await self._more.wait()
                continue
            items, _ = self._pieces[listener.piece - self._first]
            taken = listener.take(items, skip=listener.piece < listener.skip_to)
            listener.piece += 1
            if taken:
                yield taken

    async def _caught_up(self, listener: Listener) -> AsyncGenerator[list[Item]]:
        """What came before the results that are kept, by a reader of its own."""
        if self._is_kept(listener.positions):
            return
        follower, now = Follower(self._grid, self._map_name), asyncio.get_running_loop().time
        until = now() + CATCH_UP_SECONDS
        try:
            await follower.open(listener.positions)
            listener.positions[:] = follower.positions  # those of journals that have begun again
            while not self._is_kept(listener.positions):
                if now() > until:
                    raise CutOffError("It took too long to catch up: go on from here.")
                items = [item for arrival in await follower.take() for item in _items(self._grid, follower, arrival)]
                listener.lost = follower.lost
                for piece, _ in _pieces(items):
                    yield listener.take(piece, skip=False)
                listener.positions[:] = follower.positions
        finally:
            follower.close()

    def _is_kept(self, positions: Sequence[int]) -> bool:
        """Whether all that comes after these positions is kept; behind our end, only the journal itself can tell."""
        return all(s <= p <= e for s, p, e in zip(self._start, positions, self._end, strict=True))

    async def _read(self) -> None:
        try:
            while True:
                items = []
                for arrival in await self._follower.take():
                    items += _items(self._grid, self._follower, arrival)
                self._end[:] = self._follower.positions
                for piece in _pieces(items):
                    self._pieces.append(piece)
                    self._size += piece[1]
                while self._size > KEPT_BYTES and len(self._pieces) > 1:
                    gone, less = self._pieces.popleft()
                    self._first += 1
                    self._size -= less
                    for item in gone:
                        self._start[item.partition] = item.sequence + 1
                self._more.set()
        except GridscoreError as error:
            self._fail(error)

    def _fail(self, error: GridscoreError) -> None:
        self._failure = self._failure or error
        self._more.set()


def _pieces(items: Sequence[Item]) -> Iterator[tuple[list[Item], int]]:
    """Items in pieces that are not too large, each with its bytes."""
    piece: list[Item] = []
    size = 0
    for item in items:
        piece.append(item)
        size += len(item.text) + _OVERHEAD
        if size >= PIECE_BYTES:
            yield piece, size
            piece, size = [], 0
    if piece:
        yield piece, size


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


def _positions(place: str, count: int) -> list[int]:
    with suppress(ValueError, zlib.error, msgspec.DecodeError, binascii.Error):
        packed = base64.urlsafe_b64decode(place + "=" * (-len(place) % 4))
        made = zlib.decompressobj().decompress(packed, 16 * (count + 1))
        positions: Any = msgspec.msgpack.decode(made, type=list[int])
        if len(positions) == count and all(0 <= each < 1 << 62 for each in positions):
            return list(positions)
    raise UsageError("The Last-Event-ID is not one of this stream, or of another cluster.")
