"""Rows of a PostgreSQL query as keys and JSON texts, which the server itself makes."""

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
    """One row.

    Attributes:
        key: None if a column of it is null.
        text: The row as JSON.
        mark: The column that is polled, as text; None if there is none, or it is null.
    """

    key: str | int | None
    text: str
    mark: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT whose columns are known.

    Attributes:
        text: The SELECT.
        types: Its columns, with their types as PostgreSQL calls them.
        key: Columns of the key.
        separator: What joins them.
        mark: The column that is polled, if there is one.
    """

    text: str
    types: dict[str, str]
    key: tuple[str, ...]
    separator: str
    mark: str | None = None

    @property
    def has_whole_keys(self) -> bool:
        """Whether keys are whole numbers."""
        return len(self.key) == 1 and self.types[self.key[0]] in _WHOLE

    @property
    def mark_is_time(self) -> bool:
        """Whether the column that is polled has times."""
        return self.mark is not None and self.types[self.mark] in _TIMES

    def select(self, rest: str = "") -> str:
        """The statement whose rows `row_of` takes; `rest` is what comes after FROM, where the query is called `q`."""
        columns = ", ".join(f"{_as_json(name, kind)} AS {quoted(name)}" for name, kind in self.types.items())
        keys = ", ".join(self._key_part(name) for name in self.key)
        mark = f"q.{quoted(self.mark)}::text" if self.mark else "NULL::text"
        # Names of columns are quoted, and the query is what the user wants to be run.
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
        """The row of a record."""
        text, mark, *parts = record
        if None in parts:
            return Row(None, text, mark)
        return Row(parts[0] if len(parts) == 1 else self.separator.join(parts), text, mark)


def _as_json(name: str, kind: str) -> str:
    """An expression whose JSON is as a reader wants it: JSON has no infinity, and bytes are in base64 there."""
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
    """Find out what the columns of a query are.

    Args:
        key: Columns of the key.
        separator: What joins them.
        mark: The column that is polled.
        what: What to call it in messages.

    Raises:
        PostgresError: It is not a query that can be run, or lacks a column.
        psycopg.Error: The server did not answer as it should.
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
        raise PostgresError(f"{what} has two columns of one name.", "Name them apart by `AS`.")
    for column in (*key, *((mark,) if mark else ())):
        if column not in types:
            listed = ", ".join(f"`{name}`" for name in list(types)[:30])
            raise PostgresError(f"{what} has no column `{column}`.", f"Its columns are {listed}.")
    return Query(text, types, key, separator, mark)


async def settle(connection: psycopg.AsyncConnection[Any]) -> None:
    """Set what reading needs: times in UTC, and floats to the last digit."""
    await connection.execute(
        "SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false), "
        "set_config('extra_float_digits', '1', false)"
    )


@asynccontextmanager
async def reading(
    connection: psycopg.AsyncConnection[Any], statement: str, *, batch: int
) -> AsyncIterator[AsyncIterator[list[Any]]]:
    """What a statement gives, as of one moment, so many records in one go.

    Whoever takes them may wait for days between two of them, so there is no transaction meanwhile, which would hold up
    VACUUM in all of the database: at its end the server puts what the statement gives into temporary files of its own.
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
        await asyncio.shield(close())  # whoever is cancelled here, too, leaves no cursor open
