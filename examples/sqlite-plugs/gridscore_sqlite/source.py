"""The source: rows of a table as events, from where it has come to.

The id of the last row that the cluster has is kept in the cluster, moved by compare-and-set. So a source that is killed
goes on there, on any machine that sees the file, and two that follow the same table are told of each other.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridscore.errors import GridscoreError
from gridscore.sources.base import Batch, Poison, SourceInterruptedError
from gridscore.sources.position import Positions
from gridscore_sqlite.settings import passes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid
    from gridscore_sqlite.settings import SqliteSourceSettings

_ROWS = 1_000
_LOOK_SECONDS = 0.5


class SqliteSource:
    """Reads a table. See `gridscore.sources.base.Source`."""

    def __init__(self, grid: Grid, name: str, settings: SqliteSourceSettings) -> None:
        self._settings = settings
        self._positions = Positions(grid, name)
        self._item = f"{settings.path} {settings.table}"
        self._last: Any = -(1 << 63)  # before all numbers, and these before all texts
        self._database: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file to be read only, and find out where to go on."""
        await asyncio.to_thread(self._open)
        position = await self._positions.get(self._item)
        if position is not None:
            self._last = position["id"]

    async def batches(self) -> AsyncIterator[Batch]:
        """All rows behind the last one; then more, or the end."""
        while True:
            rows = await asyncio.to_thread(self._read)
            if rows:
                yield self._batch(rows)
            elif self._settings.follow:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                return

    async def acknowledge(self, batch: Batch) -> None:
        """The cluster has them: only now may the position move."""
        await self._positions.move(self._item, {"id": batch.position})

    async def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()

    def _open(self) -> None:
        file = Path(self._settings.path)
        if not file.is_file():
            raise GridscoreError(f"There is no database {file}.", "Look at `path`.")
        # Threads use it, one after the other.
        self._database = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        self._database.row_factory = sqlite3.Row

    def _read(self) -> list[sqlite3.Row]:
        statement = f'SELECT * FROM "{self._settings.table}" WHERE id > ? ORDER BY id LIMIT ?'  # noqa: S608 -- of a pattern
        try:
            return self._database.execute(statement, (self._last, _ROWS)).fetchall()  # type: ignore[union-attr]
        except sqlite3.DatabaseError as error:
            if passes(error):
                raise SourceInterruptedError(f"`{self._item}` cannot be read now: {error}.") from None
            raise GridscoreError(f"`{self._item}` cannot be read: {error}.", "Look at `path` and `table`.") from None

    def _batch(self, rows: list[sqlite3.Row]) -> Batch:
        entries: list[tuple[Any, bytes | None]] = []
        poison = []
        for row in rows:
            self._last = row["id"]
            try:
                # The key follows from the row, so a row that is read again is the same event.
                entries.append((str(self._last), json.dumps(dict(row), allow_nan=False).encode()))
            except (TypeError, ValueError) as error:  # one bad row harms no other: it becomes a dead letter
                where = f"{self._settings.table}/{self._last}"
                poison.append(Poison(where, str(self._last), repr(tuple(row)).encode()[:10_000], str(error)))
        return Batch(entries, poison, position=self._last)
