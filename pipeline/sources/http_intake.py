"""Between requests that push and a runner that asks: what waits for the grid, never more than a bound.

A request offers its events piece by piece, and waits for room and for the confirmation of each. The runner takes pieces
of several requests as one batch. What is taken cannot be had back; what is not taken when its request gives up is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import BackPressureError, GridError, GridscoreError
from pipeline.sources.base import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_BATCH_EVENTS = 4_000


@dataclass(slots=True, eq=False)
class Ticket:
    """The events of one request.

    Attributes:
        map_name: Where they go.
        confirmed: How many the grid has, with their backups; those of the request's beginning.
        open: How many it does not have yet.
        error: Why it never will.
        moved: Set when the figures change.
    """

    map_name: str
    confirmed: int = 0
    open: int = 0
    error: GridscoreError | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Piece:
    ticket: Ticket
    entries: Sequence[tuple[str, bytes]]
    size: int


class Intake:
    """What has been posted and is not confirmed.

    Args:
        max_events: Events that may wait or be under way.
        max_bytes: The same in bytes.
        patience: Seconds without any progress after which a request is sent away.
    """

    def __init__(self, max_events: int, max_bytes: int, patience: float) -> None:
        self._max_events, self._max_bytes, self.patience = max_events, max_bytes, patience
        self._pieces: deque[_Piece] = deque()
        self._open: set[Ticket] = set()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = asyncio.Event()
        self.events = self.bytes = 0
        self.acknowledged = 0

    # ------------------------------------------------------------------ requests

    async def offer(self, ticket: Ticket, entries: Sequence[tuple[str, bytes]]) -> None:
        """Take a piece of a request, when there is room for it.

        Raises:
            BackPressureError: There was no room for as long as a request waits.
            GridError: We close, or the grid has refused what came before.
        """
        if not entries:
            return
        size = sum(len(text) for _, text in entries)
        try:
            async with asyncio.timeout(self.patience):
                while not self._fits(len(entries), size):
                    self._check(ticket)
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise self._no_room(ticket) from None
        self._check(ticket)
        self.events += len(entries)
        self.bytes += size
        ticket.open += len(entries)
        self._open.add(ticket)
        self._pieces.append(_Piece(ticket, entries, size))
        self._arrived.set()

    async def confirmed(self, ticket: Ticket) -> None:
        """Wait until the grid has everything that the ticket's request has offered.

        Raises:
            BackPressureError: Nothing of it was confirmed for as long as a request waits.
            GridError: The grid has refused it, or we close; some of it may be there.
        """
        while ticket.open:
            ticket.moved.clear()
            if ticket.error is not None:
                raise ticket.error
            try:
                async with asyncio.timeout(self.patience):
                    await ticket.moved.wait()
            except TimeoutError:
                raise self._no_room(ticket) from None

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for this request any more: what is not taken yet is forgotten."""
        if not ticket.open:
            return
        self._open.discard(ticket)
        kept = [piece for piece in self._pieces if piece.ticket is not ticket]
        for piece in self._pieces:
            if piece.ticket is ticket:
                self._release(len(piece.entries), piece.size)
        self._pieces = deque(kept)

    def _fits(self, count: int, size: int) -> bool:
        # A piece that is larger than everything may be goes when there is nothing else.
        return not self.events or (self.events + count <= self._max_events and self.bytes + size <= self._max_bytes)

    def _check(self, ticket: Ticket) -> None:
        if ticket.error is not None:
            raise ticket.error
        if self.closed.is_set():
            raise GridError("This source is being stopped.", "Send it again.")

    def _no_room(self, ticket: Ticket) -> BackPressureError:
        return BackPressureError(
            f"The grid has taken nothing more for `{ticket.map_name}` in {self.patience:g} s: jobs do not keep up.",
            "Send what is not confirmed again, later and under the same keys; some of it may be there already.",
        )

    # ------------------------------------------------------------------ the runner

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """What has been offered, for one map at a time; waits for more. When nobody iterates any more, we end."""
        try:
            while not self.closed.is_set():
                if not self._pieces:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                yield self._next()
        finally:
            self.end()

    def _next(self) -> Batch:
        map_name = self._pieces[0].ticket.map_name
        entries: list[tuple[str, bytes | None]] = []
        taken: list[_Piece] = []
        while self._pieces and self._pieces[0].ticket.map_name == map_name:
            if entries and len(entries) + len(self._pieces[0].entries) > _BATCH_EVENTS:
                break
            piece = self._pieces.popleft()
            entries += piece.entries
            taken.append(piece)
        return Batch(entries, position=taken, map_name=map_name)

    def acknowledge(self, batch: Batch) -> None:
        """The grid has everything of a batch."""
        for piece in batch.position:
            count = len(piece.entries)
            self.acknowledged += count
            self._release(count, piece.size)
            piece.ticket.open -= count
            piece.ticket.confirmed += count
            piece.ticket.moved.set()
            if not piece.ticket.open:
                self._open.discard(piece.ticket)

    def _release(self, count: int, size: int) -> None:
        self.events -= count
        self.bytes -= size
        self._room.set()

    def end(self) -> None:
        """Take nothing more. Who waits for what nobody has taken is told to ask again; the rest may be confirmed."""
        self.closed.set()
        for piece in self._pieces:
            self._release(len(piece.entries), piece.size)
            self._give_up(piece.ticket)
        self._pieces.clear()
        self._arrived.set()
        self._room.set()

    def close(self) -> None:
        """Nothing will be confirmed any more."""
        self.end()
        for ticket in list(self._open):
            self._give_up(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        ticket.error = GridError(
            "This source was stopped before the grid had everything.", "Send it again, under the same keys."
        )
        ticket.moved.set()
        self._open.discard(ticket)
