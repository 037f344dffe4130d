"""The PostgreSQL sink: the newest result of each key as a row of a table.

A delivery is one statement in one transaction, sent as one JSON array that the server takes apart. Compared with COPY
into a temporary table and with `unnest` of arrays, this is as fast for the server as the faster of them, takes least of
our CPU, needs no temporary table, and leaves the conversion of types to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from gridscore.errors import ConflictError, UsageError
from gridscore.grid.records import Records, parsed
from gridscore.group.lease_records import read_records
from gridscore.postgres import connect, failure, place_of
from gridscore.sinks.base import Delivered, Refused, SinkInterruptedError
from gridscore.sinks.postgres.table import ResultTable
from gridscore.sinks.records import ERAS_MAP, Era, group_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivery
    from gridscore.sinks.postgres.settings import PostgresSinkSettings

_LAST_SECONDS = 0.25  # no statement is begun when less than this is left of the leases
_LOOK_SECONDS = 3.0
_BIGINT = 1 << 63
# Classes: cardinality, data exception, integrity constraint, check option, program limit (a key that is too long for an
# index, for one), and errors that a trigger raises.
_BAD_ROW = ("21", "22", "23", "44", "54", "P0")

_encode = msgspec.json.Encoder().encode


class _BadRowError(Exception):
    """The server refuses a statement for at least one of its rows."""


class PostgresSink:
    """Writes results to a table; see :class:`gridscore.sinks.base.Sink`.

    A delivery is committed synchronously. A repeated one changes nothing, and a result never replaces a newer one of
    its key, whoever delivers it (see `ResultTable.upsert`).
    """

    def __init__(self, grid: Grid, name: str, settings: PostgresSinkSettings) -> None:
        self.max_results = settings.batch
        self._grid, self._name, self._settings = grid, name, settings
        self._records = Records(grid, ERAS_MAP)
        self._place = place_of(settings.database)
        self._table = ResultTable(settings, self._place)
        self._upsert = self._table.upsert().encode()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._era = 0
        self._in_doubt = False  # whether the last delivery failed because of the table's columns, or the like

    async def open(self) -> None:
        """Connect; make the table, or check it."""
        await self._let_go()
        self._era = await self._find_era()
        try:
            connection = await self._connected()
            if not await self._table.exists(connection) and await self._has_begun():
                raise self._missing()
            await self._table.prepare(connection)
        except psycopg.Error as error:
            raise failure(error, self._place, SinkInterruptedError) from None

    async def look(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                exists = await self._table.exists(await self._connected())
        except psycopg.Error as error:
            await self._let_go()
            raise failure(error, self._place, SinkInterruptedError) from None
        except TimeoutError:
            await self._let_go()
            raise SinkInterruptedError(
                f"PostgreSQL at {self._place} does not answer in {_LOOK_SECONDS:.0f} s.", "It is tried again."
            ) from None
        if not exists:
            raise self._missing()

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:  # noqa: ARG002
        """The table knows no offsets; the grid's are right."""
        self._era = await self._find_era()
        return {}

    async def dropped(self, partitions: Collection[int]) -> None:
        """Do nothing: nothing is kept by partition."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Write the newest result of each key; returns those that cannot be rows."""
        rows: dict[Any, Delivered] = {}
        refused: list[Refused] = []
        for result in delivery.results:
            try:
                key = self._row_key(result.key)
            except ValueError as error:
                refused.append(Refused(result, str(error)))
                continue
            current = rows.get(key)
            if current is None or (result.epoch, result.sequence) >= (current.epoch, current.sequence):
                rows[key] = result
        # Sorted, so that two processes never wait for each other's rows.
        entries = sorted(rows.items())
        if entries:
            try:
                await self._write(entries, delivery.until, refused)
            except psycopg.Error as error:
                await self._let_go()
                if isinstance(error, psycopg.ProgrammingError):
                    await self.look()  # or an empty one would be made, without earlier results
                    await self.open()  # says what has become of the table, if that is the cause
                    if not self._in_doubt:
                        self._in_doubt = True
                        raise SinkInterruptedError(
                            f"The table `{self._settings.table}` at {self._place} has changed.", "It is tried again."
                        ) from None
                raise failure(error, self._place, SinkInterruptedError) from None
            except BaseException:
                await self._let_go()  # what is under way must not block the next attempt
                raise
            self._in_doubt = False
        return refused

    async def close(self) -> None:
        await self._let_go()

    async def _has_begun(self) -> bool:
        """Whether results were delivered before, so that the table must exist."""
        leases = await read_records(self._grid, group_of(self._name))
        return any(lease.offset >= 0 for lease in leases.values())

    def _missing(self) -> SinkInterruptedError:
        return SinkInterruptedError(
            f"The table `{self._settings.table}` at {self._place} is gone, and with it what was delivered before.",
            "Restore it, and the sink continues. To start over with an empty one: stop the sink, "
            f"`gridscore sink forget {self._name}`, and start it.",
        )

    # ------------------------------------------------------------------ rows

    def _row_key(self, key: str | float) -> Any:
        if self._settings.key_type == "bigint":
            if not isinstance(key, int) or not -_BIGINT <= key < _BIGINT:
                raise ValueError(f"The key {key!r} is not a whole number of 64 bits, as the column `key` has them.")
            return key
        return key if isinstance(key, str) else repr(key)

    def _row(self, key: Any, result: Delivered) -> dict[str, Any]:
        value = result.value
        if self._settings.columns == "json":
            row: dict[str, Any] = {"key": key, "result": msgspec.Raw(result.text)}
        else:
            row = {name: value.get(name) for name in self._settings.fields}
            row["key"] = key
        row["scored_at"] = _scored_at(result)
        row["sink_era"], row["sink_epoch"], row["sink_sequence"] = self._era, result.epoch, result.sequence
        return row

    async def _write(self, entries: list[tuple[Any, Delivered]], until: float, refused: list[Refused]) -> None:
        """Write these rows; find those that the server refuses by halving."""
        waiting = [entries]
        while waiting:
            part = waiting.pop()
            try:
                text = _encode([self._row(key, result) for key, result in part]).decode()
                await self._send(text, until)
            except (_BadRowError, ValueError, OverflowError, RecursionError) as error:
                if len(part) == 1:
                    refused.append(Refused(part[0][1], f"PostgreSQL at {self._place} does not take it: {error}"))
                    continue
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]

    # ------------------------------------------------------------------ the connection

    async def _send(self, rows: str, until: float) -> None:
        left = until - time.monotonic()
        if left < _LAST_SECONDS:
            raise SinkInterruptedError(
                f"PostgreSQL at {self._place} was too slow for the leases of the sink.", "It is delivered again."
            )
        try:
            async with asyncio.timeout(left):
                connection = await self._connected()
                async with connection.transaction():
                    # The second ends what a process that is paused, or whose host is gone, would lock for good.
                    milliseconds = str(max(1, int((until - time.monotonic()) * 1_000)))
                    await connection.execute(
                        "SELECT set_config('statement_timeout', %s, true), "
                        "set_config('idle_in_transaction_session_timeout', %s, true)",
                        [milliseconds, milliseconds],
                    )
                    await connection.execute(self._upsert, [rows])
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith(_BAD_ROW):
                raise _BadRowError(" ".join((error.diag.message_primary or str(error)).split())) from None
            raise
        except TimeoutError:
            raise SinkInterruptedError(
                f"PostgreSQL at {self._place} did not answer before the leases of the sink end.",
                "It is delivered again. Is the server overloaded, or the table locked? Smaller batches may help.",
            ) from None

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(
                self._settings.database, SinkInterruptedError, application=f"gridscore sink {self._name}"
            )
            # The rows must be on disk before the offset is committed.
            await self._connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        return self._connection

    async def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    async def _find_era(self) -> int:
        """The beginning of this cluster's content, in milliseconds since 1970: its epochs count from there."""
        record = await self._records.get("cluster")
        if record is None:
            with contextlib.suppress(ConflictError):
                record = await self._records.create("cluster", {"since": time.time_ns() // 1_000_000})
            record = record or await self._records.get("cluster")
        if record is None:
            raise SinkInterruptedError(f"The record `cluster` in `{ERAS_MAP}` is gone again.")
        try:
            return parsed(Era)(record).since
        except msgspec.ValidationError as error:
            raise UsageError(
                f"The control record `cluster` in `{ERAS_MAP}` cannot be used: {error}",
                "`gridscore repair --dry-run` shows what can be done about it.",
            ) from None


def _scored_at(result: Delivered) -> int | None:
    found = result.value.get("scored_at")
    return int(found) if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e15 else None
