"""Positions that a source keeps in the grid: how far it has read each of its items, a file or a table for example.

A position is moved by compare-and-set. So if two processes follow the same item under the same name, one of them gets
an error; otherwise each would skip what the other has read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.dead_letters.letters import POSITIONS_MAP
from gridscore.errors import BadRecord, BadRecordError, ConflictError, GridError
from gridscore.grid.records import Count, Record, Records

if TYPE_CHECKING:
    from gridscore.grid import Grid

_log = logging.getLogger(__name__)


class PositionTakenError(GridError):
    """Another process has moved a position of this source: both follow the same item."""


class Positions:
    """The positions of one source, as one process moves them. New for each attempt, as the source is."""

    def __init__(self, grid: Grid, source: str) -> None:
        self._records = Records(grid, POSITIONS_MAP)
        self._known: dict[str, Record | None] = {}
        self.source = source
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    async def load(self) -> dict[str, dict[str, Any]]:
        """Every position of the source, by item; the source moves them from here on.

        Raises GridError if one of them cannot be used.
        """
        prefix = self._key("")
        bad: list[BadRecord] = []
        records = await self._records.all(bad)
        # Without its position, an item would be read from its beginning, or not at all.
        for each in bad:
            if each.key.startswith(prefix):
                raise BadRecordError(each)
        found = {key.removeprefix(prefix): record for key, record in records.items() if key.startswith(prefix)}
        self._known = dict(found)
        return {item: position_of(record) for item, record in found.items()}

    async def get(self, item: str) -> dict[str, Any] | None:
        """The position of an item, which the source moves from here on; None if it has none yet."""
        record = self._known[item] = await self._records.get(self._key(item))
        return None if record is None else position_of(record)

    async def move(self, item: str, position: dict[str, Any]) -> None:
        """Move the position of an item on from where `load` or `get` saw it, or where it was last moved to.

        An item that neither has seen must not have a position yet. If the cluster has lost a position, it is written
        again, and the source goes on, like one whose position is kept elsewhere.

        `position`: JSON values. Raises PositionTakenError if another process has moved it.
        """
        # With its writer, so that nobody takes another's equal position for its own.
        value = {"writer": self.writer, "position": position}
        before = self._known.get(item)
        try:
            if before is not None:
                try:
                    self._known[item] = await self._records.replace(before, value)
                except ConflictError:
                    if await self._records.get(before.key) is not None:
                        raise
                    _log.warning(
                        "%s: the cluster has lost the position in %s: it is written again",
                        self.source,
                        item,
                        extra={"action": "position_lost"},
                    )
                    before = None
            if before is None:
                self._known[item] = await self._records.create(self._key(item), value)
        except ConflictError:
            raise await self._taken(item) from None

    async def forget(self, item: str) -> None:
        """Remove the position of an item that is gone. Raises PositionTakenError if another process has moved it."""
        before = self._known.pop(item, None)
        if before is not None and not await self._records.remove(before) and await self._records.get(before.key):
            raise await self._taken(item)

    async def _taken(self, item: str) -> PositionTakenError:
        current = await self._records.get(self._key(item))
        who = f", by {current.value.get('writer')}" if current is not None else ""
        return PositionTakenError(
            f"The position of the source `{self.source}` in `{item}` was moved by another process{who}.",
            "Only one process may follow it: stop the other one, or give this source another name.",
        )

    def _key(self, item: str) -> str:
        return f"{self.source}/{item}"  # the name of a source has no slash


class Beginning:
    """Whether a source has begun to read something whose position the other side keeps, and may lose.

    Then it goes on from what is there. To begin at the end again, as for the first time, would skip what came since.
    """

    def __init__(self, grid: Grid, source: str, item: str) -> None:
        self._positions = Positions(grid, source)
        self._item = item
        self._known = False
        # Where to go back to, by part, since the grid was restored and until `note` is called; see `known`.
        self.restored: dict[str, int] = {}

    async def known(self) -> bool:
        """Whether any process of the source has begun."""
        position = await self._positions.get(self._item)
        self._known = position is not None
        try:
            self.restored = msgspec.convert((position or {}).get("restored", {}), dict[str, Count])
        except msgspec.ValidationError as error:
            raise GridError(f"The position of `{self._item}` in `{POSITIONS_MAP}` cannot be used: {error}") from None
        return self._known

    async def note(self) -> None:
        """It has begun, and gone back; call `known` before."""
        if not self._known or self.restored:
            with contextlib.suppress(PositionTakenError):  # by another process of it, just now
                await self._positions.move(self._item, {"begun": True})
            self._known, self.restored = True, {}


async def forget_all(grid: Grid, source: str) -> int:
    """Remove every position of a source, so that it starts over; returns how many there were."""
    positions, records, bad = Positions(grid, source), Records(grid, POSITIONS_MAP), list[BadRecord]()
    await records.all(bad)
    for each in bad:
        if each.key.startswith(f"{source}/"):
            await records.remove_bad(each)
    items = await positions.load()
    for item in items:
        await positions.forget(item)
    return len(items)


def position_of(record: Record) -> dict[str, Any]:
    """The position in a record. Raises GridError if it is not a position."""
    position = record.value.get("position")
    if not isinstance(position, dict):
        raise GridError(
            f"The control record `{record.key}` in `{POSITIONS_MAP}` is not a position.",
            "`gridscore repair --dry-run` shows what can be done about it.",
        )
    return position
