"""A load: puts the rows of a file or a query into a map, with a position in the grid from which it can be resumed.

When a load ends without an error, the map has every row under its key. A resumed load begins after the last position,
which is never beyond what the grid has confirmed; so a row may be put twice, under the same key, but none is left out.
That requires the same rows in the same order: the first row must not have changed, and a query needs an ORDER BY on
something that only grows.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gridscore.errors import TableError, UsageError
from gridscore.producer.producer import Producer
from gridscore.sources.position import Positions
from gridscore.sources.tables import BadRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from gridscore.grid import Grid
    from gridscore.producer.room import Waiting
    from gridscore.sources.tables import Row, TableFile

SOURCE = "load"  # name under which positions are kept
_CHUNK = 2_000
_POSITION_SECONDS = 1.0


@dataclass(slots=True)
class Loaded:
    """What a load has done."""

    rows: int = 0  # put, and confirmed by the grid
    passed: int = 0  # rows that an earlier run had put
    skipped: int = 0  # rows that could not be read, with `skip_bad`
    done: int = 0  # how much was read, of `size`; a size of 0 is unknown
    size: int = 0


class Load:
    """One load into one map."""

    def __init__(
        self,
        grid: Grid,
        to: str,
        *,
        max_wait: float | None = None,  # seconds that events may wait for room; default: for ever
        limit: int | None = None,  # how many rows to put, without those of earlier runs; default: all
        skip_bad: bool = False,  # leave out rows that cannot be read, and count them
        on_progress: Callable[[Loaded], None] | None = None,  # called from time to time
        on_wait: Callable[[Waiting | None], None] | None = None,  # as in :class:`gridscore.producer.producer.Producer`
    ) -> None:
        self._to = to
        self._positions = Positions(grid, SOURCE)
        self._producer = Producer(grid, to, max_wait=max_wait, on_wait=on_wait)
        self._limit = limit
        self._skip_bad = skip_bad
        self._on_progress = on_progress or (lambda _: None)
        self.loaded = Loaded()

    async def file(self, table: TableFile, *, resume: bool) -> Loaded:
        """Load a file.

        Raises TableError if it, or a row, cannot be read; the rows before are in the map; UsageError if it is to be
        resumed, but is not the file that was loaded; GridscoreError if the grid did not take it.
        """
        item = f"{self._to}/{table.path.resolve()}"
        before = await self._positions.get(item)

        async def chunks() -> AsyncIterator[Sequence[Row | BadRow]]:
            chunk: list[Row | BadRow] = []
            for row in table.rows():
                chunk.append(row)
                if len(chunk) >= _CHUNK:
                    self.loaded.done, self.loaded.size = table.done, table.size
                    yield chunk
                    chunk = []
            self.loaded.done, self.loaded.size = table.done, table.size
            yield chunk

        return await self._run(item, chunks(), f"`{table.path}`", before if resume else None)

    async def query(self, text: str, chunks: AsyncIterator[Sequence[Row | BadRow]], *, resume: bool) -> Loaded:
        """Load the rows of a query.

        Raises UsageError if it is to be resumed, but its rows have no order; TableError if a row has no key; the rows
        before are in the map; GridscoreError if the database or the grid did not answer.
        """
        if resume and not re.search(r"\border\s+by\b", text, re.IGNORECASE):
            raise UsageError(
                "A query without ORDER BY cannot be resumed: its rows may come in another order.",
                "Order it by something that only grows, such as its id.",
            )
        item = f"{self._to}/query-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        before = await self._positions.get(item)
        return await self._run(item, chunks, "The query", before if resume else None)

    async def _run(
        self, item: str, chunks: AsyncIterator[Sequence[Row | BadRow]], what: str, before: dict[str, Any] | None
    ) -> Loaded:
        """Put rows; positions are numbers of rows."""
        loaded, producer = self.loaded, self._producer
        begin = 0 if before is None else int(before.get("row", 0))
        at, kept, kept_at, first = begin, begin, time.monotonic(), ""
        left = self._limit
        bad: BadRow | None = None
        try:
            async for chunk in chunks:
                entries = []
                if not first and chunk:
                    first = _hash(chunk[0])
                    if before is not None and begin >= chunk[0].number and before.get("first") != first:
                        raise UsageError(
                            f"{what} is not what was loaded before: its first row has changed.",
                            "Load it from its beginning, without --resume.",
                        )
                for row in chunk:
                    if row.number <= begin:
                        loaded.passed += 1
                        continue
                    if left == 0:
                        break
                    if isinstance(row, BadRow):
                        if not self._skip_bad:
                            bad = row
                            break
                        loaded.skipped += 1
                    else:
                        entries.append((row.key, row.text))
                        left = None if left is None else left - 1
                    at = row.number
                await producer.send(entries)
                loaded.rows = producer.acknowledged
                self._on_progress(loaded)
                if bad is not None or left == 0:
                    break
                if at > kept and time.monotonic() - kept_at >= _POSITION_SECONDS:
                    await producer.flush()
                    await self._positions.move(item, {"row": at, "first": first})
                    kept, kept_at = at, time.monotonic()
        finally:
            # Also after an error of the other side: the rows that were read need not be put again.
            await producer.flush()
            if at > kept or before is None:
                await self._positions.move(item, {"row": at, "first": first})
            loaded.rows = producer.acknowledged
            self._on_progress(loaded)
        if bad is not None:
            raise TableError(
                f"{what}: row {bad.number} cannot be read: {bad.error}.",
                f"{loaded.rows:,} rows before it are in `{self._to}`. Correct it and go on with --resume, or leave "
                "such rows out with --skip-bad.",
            )
        return loaded


def _hash(row: Row | BadRow) -> str:
    return hashlib.sha256(repr(tuple(row)).encode()).hexdigest()[:16]
