"""Rows of a PostgreSQL query as keys and JSON texts, made by the server itself."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from gridscore.job.plugs.postgres import quoted
from gridscore.postgres import PostgresError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_WHOLE = {"smallint", "integer", "bigint"}
_MAY_BE_NO_NUMBER = {"real", "double precision", "numeric"}
_TIMES = {"date", "timestamp without time zone", "timestamp with time zone"}


class Row(NamedTuple):
    """One row."""

    key: str | int | None  # None if one of its columns is null
    text: str  # the row as JSON
    mark: str | None  # the polled column, as text; None if there is none, or it is null


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT whose columns are known."""

    text: str  # the SELECT
    types: dict[str, str]  # its columns, with PostgreSQL's names of their types
    key: tuple[str, ...]  # columns of the key
    separator: str  # what joins them
    mark: str | None = None  # the polled column, if there is one

    @property
    def has_whole_keys(self) -> bool:
        return len(self.key) == 1 and self.types[self.key[0]] in _WHOLE

    @property
    def mark_is_time(self) -> bool:
        """Whether the polled column has times."""
        return self.mark is not None and self.types[self.mark] in _TIMES

    def select(self, rest: str = "") -> str:
        """The statement whose rows `row_of` takes; `rest` follows after `FROM (…) AS q`."""
        columns = ", ".join(f"{_as_json(name, kind)} AS {quoted(name)}" for name, kind in self.types.items())
        keys = ", ".join(self._key_part(name) for name in self.key)
        mark = f"q.{quoted(self.mark)}::text" if self.mark else "NULL::text"
        # Column names are quoted, and the query is the user's own.
        return (
            f"SELECT (SELECT row_to_json(r)::text FROM (SELECT {columns}) AS r), {mark}, {keys} "  # noqa: S608
            f"FROM ({self.text}) AS q {rest}"
        )

    def _key_part(self, name: str) -> str:
        column = f"q.{quoted(name)}"
        if self.has_whole_keys:
            return column
        if self.types[name] == "timestamp with time zone":  # as features spell times in keys
            return f"replace(to_json({column}) #>> '{{}}', '+00:00', 'Z')"
        return f"{column}::text"

    def row_of(self, record: Sequence[Any]) -> Row:
        text, mark, *parts = record
        if None in parts:
            return Row(None, text, mark)
        return Row(parts[0] if len(parts) == 1 else self.separator.join(parts), text, mark)


def _as_json(name: str, kind: str) -> str:
    """An expression for a column that JSON can hold: without infinity, and with bytes in base64."""
    column = f"q.{quoted(name)}"
    if kind in _MAY_BE_NO_NUMBER:
        return f"CASE WHEN {column}::text NOT IN ('NaN', 'Infinity', '-Infinity') THEN {column} END"
    if kind in _TIMES:
        return f"CASE WHEN isfinite({column}) THEN {column} END"
    if kind == "bytea":
        return f"translate(encode({column}, 'base64'), E'\\n', '')"
    return column


async def describe(
    connection: psycopg.AsyncConnection[Any],
    text: str,
    key: tuple[str, ...],
    *,
    separator: str,
    mark: str | None = None,
    what: str = "The query",
) -> Query:
    """Find out the columns of a query.

    `what`: its name in messages. Raises PostgresError if it cannot be run, or lacks a column; psycopg.Error if the
    server did not answer as it should.
    """
    text = text.strip().removesuffix(";")
    try:
        cursor = await connection.execute(f"SELECT q.* FROM ({text}) AS q LIMIT 0".encode())  # noqa: S608
    except psycopg.errors.InsufficientPrivilege as error:
        raise PostgresError(
            f"{what} may not be read by this user: {error.diag.message_primary}.", "Grant it SELECT."
        ) from None
    except psycopg.ProgrammingError as error:
        said = error.diag.message_primary or str(error)
        raise PostgresError(
            f"{what} cannot be read: {said}.", error.diag.message_hint or "Try it in psql first."
        ) from None
    oids = [(column.name, column.type_code) for column in cursor.description or ()]
    cursor = await connection.execute(
        "SELECT oid, format_type(CASE typtype WHEN 'd' THEN typbasetype ELSE oid END, NULL) "
        "FROM pg_type WHERE oid = ANY(%s)",
        [[oid for _, oid in oids]],
    )
    names = dict(await cursor.fetchall())
    types = {name: names.get(oid, "text") for name, oid in oids}
    if len(types) < len(oids):
        raise PostgresError(f"{what} has two columns of one name.", "Rename one with `AS`.")
    for column in (*key, *((mark,) if mark else ())):
        if column not in types:
            listed = ", ".join(f"`{name}`" for name in list(types)[:30])
            raise PostgresError(f"{what} has no column `{column}`.", f"Its columns are {listed}.")
    return Query(text, types, key, separator, mark)


async def settle(connection: psycopg.AsyncConnection[Any]) -> None:
    """Prepare for reading: times in UTC, and floats to the last digit."""
    await connection.execute(
        "SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false), "
        "set_config('extra_float_digits', '1', false)"
    )


@asynccontextmanager
async def reading(
    connection: psycopg.AsyncConnection[Any], statement: str, *, batch: int
) -> AsyncIterator[AsyncIterator[list[Any]]]:
    """The records of a statement, as of one moment, in batches.

    A caller may wait for days between two of them. An open transaction would hold up VACUUM in the whole database, so
    the server puts the records into temporary files when the transaction ends.
    """
    cursor = connection.cursor(name="gridscore", withhold=True)

    async def parts() -> AsyncIterator[list[Any]]:
        while records := await cursor.fetchmany(batch):
            yield records

    async def close() -> None:
        with contextlib.suppress(psycopg.Error):
            await cursor.close()

    try:
        async with connection.transaction():
            await connection.execute("SET TRANSACTION READ ONLY")
            await cursor.execute(statement.encode())
        yield parts()
    finally:
        await asyncio.shield(close())  # leave no cursor open, even if cancelled
