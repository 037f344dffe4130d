"""Between requests that push and a runner that pulls: what waits for the grid, within bounds.

A request offers its events piece by piece, and waits for room and for the confirmation of each. Every map has a lane of
its own with an equal share of the room, and every piece is confirmed by itself: a blocked map or partition holds up
only those who send to it. When a request gives up, what it offered and is not under way is withdrawn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.errors import BackPressureError, GridError, GridscoreError
from gridscore.sources.base import Batch
from gridscore.sources.http.connections import MAX_REQUESTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from gridscore.producer.room import Waiting

_SHARE = 8  # how many requests it takes to fill the share of a map
_HELD = 4 / 5  # part of the share of a map for events that wait for partitions without room
_AGAIN = "Send what is not confirmed again later, under the same keys; some of it may be there already."


@dataclass(slots=True, eq=False)
class Ticket:
    """The events of one request."""

    map_name: str
    confirmed: int = 0  # how many the grid has, with their backups, from the request's beginning on
    open: int = 0  # how many it does not have yet
    size: int = 0  # bytes of these
    error: GridscoreError | None = None  # why it never will have them
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # set when the figures change
    pieces: deque[_Piece] = field(default_factory=deque)  # what is not confirmed, in the order of the request


@dataclass(slots=True, eq=False)
class _Piece:
    ticket: Ticket
    batch: Batch
    size: int
    confirmed: bool = False


@dataclass(slots=True, eq=False)
class _Lane:
    """What waits for one map."""

    pieces: deque[_Piece] = field(default_factory=deque)  # what the runner has not taken
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    events: int = 0  # how many wait or are under way
    bytes: int = 0
    moved_at: float = 0.0  # when the grid last confirmed something, or something came into the empty lane
    waiting: Waiting | None = None  # why the runner puts nothing, if it has said so


class Intake:
    """What has been posted and is not confirmed.

    `maps`: maps that may be posted to; `max_events`: most events that wait or are under way; `max_bytes`: the same in
    bytes; `patience`: seconds without progress after which a request is told to retry.
    """

    def __init__(self, maps: Iterable[str], max_events: int, max_bytes: int, patience: float) -> None:
        self._lanes = {name: _Lane() for name in maps}
        self._max_events = max(1, max_events // len(self._lanes))
        self._max_bytes = max(1, max_bytes // len(self._lanes))
        self.patience = patience
        self._open: set[Ticket] = set()
        self.closed = asyncio.Event()
        self.acknowledged = 0

    @property
    def most_held(self) -> tuple[int, int, int]:
        """Events, bytes and pieces that may wait for partitions without room."""
        requests = MAX_REQUESTS // len(self._lanes)
        return int(self._max_events * _HELD), int(self._max_bytes * _HELD), int(requests * _HELD)

    @property
    def events(self) -> int:
        """How many wait or are under way."""
        return sum(lane.events for lane in self._lanes.values())

    @property
    def size(self) -> int:
        """The same in bytes."""
        return sum(lane.bytes for lane in self._lanes.values())

    # ------------------------------------------------------------------ requests

    async def offer(self, ticket: Ticket, entries: Sequence[tuple[str, bytes]]) -> None:
        """Take a piece of a request when there is room for it.

        Raises BackPressureError if there was no room in time; GridError if the grid does not answer, has refused what
        came before, or we close.
        """
        if not entries:
            return
        lane, count, size = self._lanes[ticket.map_name], len(entries), sum(len(text) for _, text in entries)
        try:
            async with asyncio.timeout(self.patience):
                while not self._fits(lane, ticket, count, size):
                    self._check(ticket)
                    lane.room.clear()
                    await lane.room.wait()
        except TimeoutError:
            raise self._no_progress(ticket) from None
        self._check(ticket)
        if not lane.events:
            lane.moved_at = _now()
        piece = _Piece(ticket, Batch(entries, map_name=ticket.map_name), size)
        piece.batch.position = piece
        lane.events += count
        lane.bytes += size
        lane.pieces.append(piece)
        lane.arrived.set()
        ticket.open += count
        ticket.size += size
        ticket.pieces.append(piece)
        self._open.add(ticket)

    async def confirmed(self, ticket: Ticket) -> None:
        """Wait until the grid has everything that the ticket's request has offered.

        Raises BackPressureError if nothing of it was confirmed in time; GridError if the grid has refused it or does
        not answer, or we close; some of it may be there.
        """
        while ticket.open:
            ticket.moved.clear()
            if ticket.error is not None:
                raise ticket.error
            try:
                async with asyncio.timeout(self.patience):
                    await ticket.moved.wait()
            except TimeoutError:
                raise self._no_progress(ticket) from None

    def drop(self, ticket: Ticket) -> None:
        """Forget a request, except for what is under way."""
        if not ticket.open:
            return
        self._open.discard(ticket)
        lane = self._lanes[ticket.map_name]
        mine = [piece for piece in lane.pieces if piece.ticket is ticket]
        lane.pieces = deque(piece for piece in lane.pieces if piece.ticket is not ticket)
        for piece in mine:
            self._release(piece)
        for piece in ticket.pieces:
            if piece.batch.withdraw is not None and not piece.confirmed:
                piece.batch.withdraw()

    def _fits(self, lane: _Lane, ticket: Ticket, count: int, size: int) -> bool:
        # A piece that is larger than the limit goes when there is nothing else.
        if ticket.open and ticket.open + count > max(count, self._max_events // _SHARE):
            return False
        if ticket.open and ticket.size + size > max(size, self._max_bytes // _SHARE):
            return False
        return not lane.events or (lane.events + count <= self._max_events and lane.bytes + size <= self._max_bytes)

    def _check(self, ticket: Ticket) -> None:
        if ticket.error is not None:
            raise ticket.error
        if self.closed.is_set():
            raise GridError("This source is being stopped.", "Send it again.")

    def _no_progress(self, ticket: Ticket) -> GridError:
        lane, name = self._lanes[ticket.map_name], ticket.map_name
        if lane.waiting is not None:
            return BackPressureError(f"There is no room in `{name}`: {lane.waiting}.", _AGAIN)
        silent = _now() - lane.moved_at
        if lane.events and silent >= 0.9 * self.patience:
            return GridError(
                f"The grid does not answer: it has confirmed nothing for `{name}` in {silent:.0f} s.", _AGAIN
            )
        return BackPressureError(
            f"More is being sent to `{name}` than the grid takes: this request had no turn in {self.patience:g} s.",
            _AGAIN,
        )

    # ------------------------------------------------------------------ the runner

    def streams(self) -> list[AsyncGenerator[Batch, None]]:
        """What has been offered, one stream for each map."""
        return [self._stream(lane) for lane in self._lanes.values()]

    async def _stream(self, lane: _Lane) -> AsyncGenerator[Batch, None]:
        """What has been offered for one map; waits for more. When the iteration ends, so does the intake."""
        try:
            while not self.closed.is_set():
                if not lane.pieces:
                    lane.arrived.clear()
                    await lane.arrived.wait()
                    continue
                yield lane.pieces.popleft().batch
        finally:
            self.end()

    def waits(self, map_name: str, waiting: Waiting | None) -> None:
        """Note why the runner puts nothing into a map; None if it goes on."""
        if map_name in self._lanes:
            self._lanes[map_name].waiting = waiting

    def acknowledge(self, batch: Batch) -> None:
        piece: _Piece = batch.position
        piece.confirmed = True
        self.acknowledged += len(batch.entries)
        self._lanes[piece.ticket.map_name].moved_at = _now()
        self._release(piece)
        ticket = piece.ticket
        while ticket.pieces and ticket.pieces[0].confirmed:  # an answer counts from the request's beginning on
            first = ticket.pieces.popleft()
            count = len(first.batch.entries)
            ticket.open -= count
            ticket.size -= first.size
            ticket.confirmed += count
            ticket.moved.set()
        if not ticket.open:
            self._open.discard(ticket)

    def refuse(self, batch: Batch, error: Exception) -> None:
        """Note that the grid did not confirm a batch: its sender is told so."""
        piece: _Piece = batch.position
        self._release(piece)
        failure = error if isinstance(error, GridscoreError) else GridError(f"The grid did not answer: {error}", _AGAIN)
        self._give_up(piece.ticket, failure)

    def _release(self, piece: _Piece) -> None:
        lane = self._lanes[piece.ticket.map_name]
        lane.events -= len(piece.batch.entries)
        lane.bytes -= piece.size
        lane.room.set()

    def end(self) -> None:
        """Take nothing more. Senders of what was not taken are told to send it again; the rest may be confirmed."""
        self.closed.set()
        for lane in self._lanes.values():
            for piece in lane.pieces:
                self._release(piece)
                self._give_up(piece.ticket, _stopped())
            lane.pieces.clear()
            lane.arrived.set()
            lane.room.set()

    def close(self) -> None:
        """End without confirming anything more."""
        self.end()
        for ticket in list(self._open):
            self._give_up(ticket, _stopped())

    def _give_up(self, ticket: Ticket, error: GridscoreError) -> None:
        ticket.error = ticket.error or error
        ticket.moved.set()
        self._open.discard(ticket)


def _stopped() -> GridError:
    return GridError("This source was stopped before the grid had everything.", "Send it again, under the same keys.")


def _now() -> float:
    return asyncio.get_running_loop().time()
