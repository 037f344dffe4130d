"""The sink: the newest result of each key as a row.

A delivery may come again, from this process or another. Of two results of a key, the one with the larger (epoch,
sequence) is newer, so the table keeps both numbers, and an older result changes nothing.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING

from gridscore.errors import GridscoreError
from gridscore.sinks.base import SinkInterruptedError
from gridscore_sqlite.settings import passes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivery, Refused
    from gridscore_sqlite.settings import SqliteSinkSettings


class SqliteSink:
    """Writes to a table. See `gridscore.sinks.base.Sink`."""

    max_results = 1_000
    identity = ""

    def __init__(self, grid: Grid, name: str, settings: SqliteSinkSettings) -> None:
        del grid, name  # this one needs neither
        self._path, self._table = settings.path, settings.table

    async def open(self) -> None:
        """Make the table."""
        made = f'CREATE TABLE IF NOT EXISTS "{self._table}" (key PRIMARY KEY, result TEXT, epoch INT, sequence INT)'
        await asyncio.to_thread(self._do, made, [()], time.monotonic() + 5)

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """The grid knows how far each partition is."""
        del partitions
        return {}

    async def dropped(self, partitions: Collection[int]) -> None:
        """Nothing is kept of them."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Write all of them in one transaction, before the leases end."""
        statement = (
            f'INSERT INTO "{self._table}" AS t VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET '  # noqa: S608 -- of a pattern
            "result = excluded.result, epoch = excluded.epoch, sequence = excluded.sequence "
            "WHERE (excluded.epoch, excluded.sequence) > (t.epoch, t.sequence)"
        )
        rows = [(each.key, each.text.decode(), each.epoch, each.sequence) for each in delivery.results]
        await asyncio.to_thread(self._do, statement, rows, delivery.until)
        return ()

    async def close(self) -> None:
        """Nothing is kept open."""

    def _do(self, statement: str, rows: Sequence[tuple[object, ...]], until: float) -> None:
        left = until - time.monotonic()
        try:
            database = sqlite3.connect(self._path, timeout=max(left / 2, 0))
            try:
                with database:  # commits, or rolls back
                    database.executemany(statement, rows)
                    if time.monotonic() >= until:  # another process may have these partitions by now
                        raise SinkInterruptedError(f"`{self._path}` takes too long.")
            finally:
                database.close()
        except sqlite3.DatabaseError as error:
            if passes(error):
                raise SinkInterruptedError(f"`{self._path}` cannot be written now: {error}.") from None
            raise GridscoreError(f"`{self._path}` cannot be written: {error}.", "Look at `path` and `table`.") from None
