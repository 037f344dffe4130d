"""The PostgreSQL source: rows as entries, loaded once, or kept current by notifications or by polling a column.

A notification says which key changed; the row is then read, so that the entry is what the table has, in whatever order
notifications come. What was missed while nobody listened is made up by a full load: every start begins with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
from psycopg import sql

from gridscore.errors import UsageError
from gridscore.job.plugs.postgres import quoted
from gridscore.job.types import seconds_of
from gridscore.postgres import ONE_BY_ONE, PostgresError, connect, failure, place_of
from gridscore.sources.base import Batch, Poison, SourceInterruptedError
from gridscore.sources.position import Positions
from gridscore.sources.postgres.rows import Query, Row, describe, reading, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.sources.postgres.settings import PostgresSourceSettings

_log = logging.getLogger(__name__)

_LISTEN_SECONDS = 30.0  # without a notification for so long, the connection is tried
_NO_MARKS = ("infinity", "-infinity", "NaN", "Infinity", "-Infinity")
_AT_ONCE = 1_000

_decode = msgspec.json.Decoder().decode


class PostgresSource:
    """Reads a table or a query; see :class:`gridscore.sources.base.Source`.

    Entries have the row's key, so reading again does no harm. An entry is guaranteed to become what its row is, but not
    every state in between is seen. Entries of rows deleted while we listen are removed; of rows deleted while we did
    not, only if `mirror` is set.
    """

    def __init__(self, grid: Grid, name: str, settings: PostgresSourceSettings) -> None:
        self._grid = grid
        self._settings = settings
        self._application = f"gridscore source {name}"
        self._place = place_of(settings.database)
        self._what = f"The table `{settings.table}`" if settings.table else "The query"
        self._item = settings.table or "query"
        self._positions = Positions(grid, name)
        self._connections: list[psycopg.AsyncConnection[Any]] = []
        self._reader: psycopg.AsyncConnection[Any] | None = None
        self._listener: psycopg.AsyncConnection[Any] | None = None
        self._query: Query | None = None
        self._mark: str | None = None
        self._reads = ""
        self._window: dict[str | int, tuple[int, str | None]] = {}

    async def open(self) -> None:
        """Connect, find out the columns, and begin to listen."""
        settings = self._settings
        try:
            reader = self._reader = await self._connect()
            await settle(reader)
            text = settings.query or f"SELECT * FROM {quoted(settings.table or '')}"  # noqa: S608
            self._query = await describe(
                reader,
                text,
                settings.key,
                separator=settings.separator,
                mark=settings.poll_column,
                what=f"{self._what} at {self._place}",
            )
            if settings.notify is not None:
                await self._prepare_trigger(reader, settings.notify)
                # Before the first row is read, so as to miss no change.
                self._listener = await self._connect()
                await self._listener.execute(f"LISTEN {quoted(settings.notify)}".encode())
            if settings.poll_column is not None:
                self._begin_at(await self._positions.get(self._item), self._query)
        except psycopg.Error as error:
            raise self._failure(error) from None

    async def batches(self) -> AsyncIterator[Batch]:
        """All rows, then changes as they come, if they are followed."""
        settings = self._settings
        try:
            # An interrupted read must close its cursor before the connection closes.
            async with contextlib.aclosing(self._load()) as loaded:
                async for batch in loaded:
                    yield batch
            if settings.notify is not None:
                async with contextlib.aclosing(self._notified()) as notified:
                    async for batch in notified:
                        yield batch
            while settings.poll_column is not None:
                await asyncio.sleep(seconds_of(settings.every))
                async with contextlib.aclosing(self._polled()) as polled:
                    async for batch in polled:
                        yield batch
        except psycopg.Error as error:
            raise self._failure(error) from None

    async def acknowledge(self, batch: Batch) -> None:
        """Keep how far the polled column was read."""
        if batch.position is not None:
            await self._positions.move(self._item, {"reads": self._reads, "mark": batch.position})

    async def close(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    def _begin_at(self, position: Mapping[str, Any] | None, query: Query) -> None:
        """Go on from a position if it is of the same query and map; else read every row again."""
        settings = self._settings
        shape = [query.text, list(query.types.items()), query.key, query.separator, query.mark]
        parts = msgspec.json.encode([*shape, settings.to, settings.max_event])
        self._reads = blake2b(parts, digest_size=12).hexdigest()
        if position is None or settings.mirror:  # a mirror has to see all rows
            return
        if position.get("reads") == self._reads:
            self._mark = position.get("mark")
            return
        _log.warning(
            "%s at %s: the query or the map has changed since the position was kept: all rows are read again",
            self._what,
            self._place,
            extra={"action": "position_outdated"},
        )

    # ------------------------------------------------------------------ full loads

    async def _load(self) -> AsyncGenerator[Batch, None]:
        """Every row, from the position on if there is one."""
        settings, seen = self._settings, set[str | int]()
        async with contextlib.aclosing(self._polled() if settings.poll_column is not None else self._rows()) as rows:
            async for batch in rows:
                if settings.mirror:
                    seen.update(key for key, _ in batch.entries)
                    # A refused row is there all the same.
                    seen.update(each.key for each in batch.poison if each.key is not None)
                yield batch
        if settings.mirror:
            there = await (await self._grid.map(settings.to)).key_set()
            gone = [key for key in there if key not in seen and isinstance(key, str | int)]
            if gone:
                _log.info("%s: %d entries have no row any more", settings.to, len(gone), extra={"action": "mirror"})
            for begin in range(0, len(gone), settings.batch):
                yield Batch([(key, None) for key in gone[begin : begin + settings.batch]])

    async def _rows(self) -> AsyncGenerator[Batch, None]:
        query = self._known
        async with reading(self._open_reader, query.select(), batch=self._settings.batch) as parts:
            async for records in parts:
                yield self._batch(map(query.row_of, records))

    def _batch(self, rows: Iterable[Row], position: str | None = None) -> Batch:
        entries: list[tuple[str | int, bytes | None]] = []
        poison = []
        for row in rows:
            text = row.text.encode()
            if row.key is None:
                poison.append(Poison(f"{self._item}: a row without a key", None, text[:4096], "Its key is null."))
            elif len(text) > self._settings.max_event:
                error = f"The row has {len(text):,} bytes of JSON, more than max_event."
                poison.append(Poison(f"{self._item}: {row.key}", row.key, text[:4096], error))
            else:
                entries.append((row.key, text))
        return Batch(entries, poison, position)

    # ------------------------------------------------------------------ polling

    async def _polled(self) -> AsyncGenerator[Batch, None]:
        """Rows with a mark from the newest seen on, less the overlap for late commits."""
        query, before = self._known, self._window
        column = f"q.{quoted(query.mark or '')}"
        if self._mark is None:
            statement = query.select(f"ORDER BY {column} NULLS FIRST")
            since = None
        else:
            since = await self._since(self._mark)
            literal = sql.Literal(since).as_string()
            statement = query.select(f"WHERE {column} >= {literal}::{query.types[query.mark or '']} ORDER BY {column}")
        # Unchanged rows of the overlap need not be put again.
        window: dict[str | int, tuple[int, str | None]] = {}
        async with reading(self._open_reader, statement, batch=self._settings.batch) as parts:
            async for records in parts:
                rows = []
                for row in map(query.row_of, records):
                    if row.mark is not None and row.mark not in _NO_MARKS:
                        self._mark = row.mark
                    if row.key is None or since is None or before.get(row.key) != (hash(row.text), row.mark):
                        rows.append(row)
                    if row.key is not None and since is not None:
                        window[row.key] = (hash(row.text), row.mark)
                if rows:
                    yield self._batch(rows, self._mark)
        self._window = window

    async def _since(self, mark: str) -> str:
        """The mark from which on to read."""
        settings = self._settings
        if self._known.mark_is_time:
            kind = self._known.types[self._known.mark or ""]
            cursor = await self._open_reader.execute(
                f"SELECT (%s::{kind} - make_interval(secs => %s))::text".encode(), [mark, seconds_of(settings.overlap)]
            )
        else:
            cursor = await self._open_reader.execute("SELECT (%s::numeric - %s)::text", [mark, settings.overlap_count])
        found = await cursor.fetchone()
        return str(found[0]) if found else mark

    # ------------------------------------------------------------------ notifications

    async def _notified(self) -> AsyncGenerator[Batch, None]:
        listener = self._listener
        if listener is None:
            return
        while True:
            payloads = [each.payload async for each in listener.notifies(timeout=_LISTEN_SECONDS, stop_after=1)]
            payloads += [each.payload async for each in listener.notifies(timeout=0)]  # what came with it
            if not payloads:
                await listener.execute("SELECT 1")  # a dead connection says nothing by itself
            if any(not payload.strip() for payload in payloads):
                async with contextlib.aclosing(self._load()) as loaded:
                    async for batch in loaded:
                        yield batch
            wanted = list(dict.fromkeys(payload for payload in payloads if payload.strip()))
            for begin in range(0, len(wanted), _AT_ONCE):
                yield await self._changed(wanted[begin : begin + _AT_ONCE])

    async def _changed(self, payloads: Sequence[str]) -> Batch:
        """The current rows of changed keys; removals of those without one."""
        keys, poison = [], []
        for payload in payloads:
            try:
                keys.append((payload, self._key_values(payload)))
            except ValueError as error:
                poison.append(self._bad_payload(payload, str(error)))
        try:
            batches = [await self._current([values for _, values in keys])]
        except psycopg.DataError:  # one of them has the wrong type, but which?
            batches = []
            for payload, values in keys:
                try:
                    batches.append(await self._current([values]))
                except psycopg.DataError as error:
                    poison.append(self._bad_payload(payload, " ".join(str(error).split())))
        entries = [entry for batch in batches for entry in batch.entries]
        return Batch(entries, [*poison, *(each for batch in batches for each in batch.poison)])

    def _bad_payload(self, payload: str, error: str) -> Poison:
        return Poison(f"{self._settings.notify}: {payload[:100]}", None, payload.encode(), error)

    def _key_values(self, payload: str) -> dict[str, Any]:
        """The key's columns of a notification: an object with them (such as a whole row), or the plain key."""
        columns = self._settings.key
        try:
            value = _decode(payload)
        except (msgspec.DecodeError, RecursionError):
            value = payload
        if isinstance(value, dict):
            if lacking := [column for column in columns if value.get(column) is None]:
                raise ValueError(f"The notification has no `{lacking[0]}`, which is part of the key.")
            return {column: value[column] for column in columns}
        if len(columns) > 1:
            raise ValueError("The notification is not a JSON object with the columns of the key.")
        return {columns[0]: payload if isinstance(value, float | list) or value is None else value}

    async def _current(self, keys: Sequence[dict[str, Any]]) -> Batch:
        """The rows of these keys, and removals of those that have none."""
        if not keys:
            return Batch([])
        query = self._known
        types = ", ".join(f"{quoted(name)} {query.types[name]}" for name in query.key)
        same = " AND ".join(f"q.{quoted(name)} = k.{quoted(name)}" for name in query.key)
        given = sql.Literal(msgspec.json.encode(keys).decode()).as_string()
        source = f"json_to_recordset({given}::json) AS k({types})"
        cursor = await self._open_reader.execute(query.select(f"JOIN {source} ON {same}").encode())
        batch = self._batch(map(query.row_of, await cursor.fetchall()))
        there = {key for key, _ in batch.entries} | {each.key for each in batch.poison}
        # All keys, spelled as in entries.
        wanted = Query(f"SELECT * FROM {source}", {n: query.types[n] for n in query.key}, query.key, query.separator)  # noqa: S608
        cursor = await self._open_reader.execute(wanted.select().encode())
        asked = {row.key: None for row in map(wanted.row_of, await cursor.fetchall()) if row.key is not None}
        return Batch([*batch.entries, *((key, None) for key in asked if key not in there)], batch.poison)

    async def _prepare_trigger(self, connection: psycopg.AsyncConnection[Any], channel: str) -> None:
        table = self._settings.table
        if table is None:
            return
        made = trigger_statements(table, channel, self._settings.key)
        if self._settings.install:
            try:
                await connection.execute(f"{ONE_BY_ONE}\n{made}".encode())
            except psycopg.errors.InsufficientPrivilege as error:
                raise PostgresError(
                    f"This user may not create the trigger on `{table}` at {self._place}: "
                    f"{error.diag.message_primary}.",
                    f"Let the table's owner run:\n{made}",
                ) from None
            return
        cursor = await connection.execute(
            "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal)",
            [quoted(table)],
        )
        if await cursor.fetchone() == (False,):
            _log.warning(
                "The table `%s` has no trigger, so nothing may announce its changes. Use --install, or run:\n%s",
                table,
                made,
                extra={"action": "no_trigger"},
            )

    # ------------------------------------------------------------------ connections

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await connect(self._settings.database, SourceInterruptedError, application=self._application)
        self._connections.append(connection)
        return connection

    @property
    def types(self) -> dict[str, str]:
        """The columns of an open source, with PostgreSQL's names of their types."""
        return self._known.types

    @property
    def _open_reader(self) -> psycopg.AsyncConnection[Any]:
        if self._reader is None:
            raise UsageError("The source is not open.")
        return self._reader

    @property
    def _known(self) -> Query:
        if self._query is None:
            raise UsageError("The source is not open.")
        return self._query

    def _failure(self, error: psycopg.Error) -> Exception:
        return failure(error, self._place, SourceInterruptedError)


def trigger_statements(table: str, channel: str, key: Sequence[str]) -> str:
    """SQL that creates or replaces a function and triggers that announce which key changed (PostgreSQL 14 or later).

    A notification is a JSON object of the key's columns. It is empty, which means "read everything", when the table was
    truncated, or when a key is too long for one: the transaction that changes the table must not fail because of it.

    `table`: `table` or `schema.table`.
    """
    schema, _, name = table.rpartition(".")
    function = quoted(".".join(filter(None, (schema, f"gridscore_{channel}_{name}"[:63]))))
    trigger, truncated = (quoted(f"gridscore_{channel}{end}"[:63]) for end in ("", "_truncate"))

    def tell(row: str) -> str:
        fields = ", ".join(f"'{column}', {row}.{quoted(column)}" for column in key)
        return (
            f"PERFORM pg_notify('{channel}', CASE WHEN octet_length(t) < 7000 THEN t ELSE '' END) "
            f"FROM (SELECT json_build_object({fields})::text AS t) AS told;"
        )

    return f"""\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM pg_notify('{channel}', '');
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    {tell("OLD")}
  END IF;
  IF TG_OP <> 'DELETE' THEN
    {tell("NEW")}
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {quoted(table)}
  FOR EACH ROW EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {truncated} AFTER TRUNCATE ON {quoted(table)}
  FOR EACH STATEMENT EXECUTE FUNCTION {function}();
"""
