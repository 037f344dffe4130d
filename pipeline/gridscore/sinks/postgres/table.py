"""The table of a PostgreSQL sink: how it is made, checked and written, and how one that does not fit is corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from gridscore.job.plugs.postgres import quoted
from gridscore.postgres import ONE_BY_ONE, PostgresError

if TYPE_CHECKING:
    from gridscore.sinks.postgres.settings import PostgresSinkSettings

# Types between which PostgreSQL converts on assignment.
_ALIKE = (
    {"text", "character varying", "character"},
    {"double precision", "real", "numeric"},
    {"smallint", "integer", "bigint"},
    {"json", "jsonb"},
)

_FIND = """
SELECT c.oid, c.relkind::text, c.relpersistence::text,
       has_table_privilege(c.oid, 'INSERT'), has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'SELECT')
FROM pg_class c WHERE c.oid = to_regclass(%s)
"""
_COLUMNS = """
SELECT attname, format_type(atttypid, NULL), attnotnull AND NOT atthasdef AND attidentity = '' AND attgenerated = ''
FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""
_UNIQUE = """
SELECT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
      AND i.indpred IS NULL AND i.indexprs IS NULL AND a.attname = 'key')
"""


class ResultTable:
    """The table that a sink keeps. `place`: of the database, for messages."""

    def __init__(self, settings: PostgresSinkSettings, place: str) -> None:
        self._settings, self._place = settings, place
        self._name = quoted(settings.table)

    async def prepare(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Make the table if it is missing, and check it.

        Raises PostgresError if it does not fit; the message says which statement would correct it; psycopg.Error if the
        server did not answer as it should.
        """
        found = await self._find(connection)
        if found is None:
            if not self._settings.create:
                raise PostgresError(
                    f"PostgreSQL at {self._place} has no table `{self._settings.table}`.",
                    f"Make it, or leave out `create: false` (--no-create): {self.statement()}",
                )
            await self._make(connection)
            found = await self._find(connection)
        if found is None:
            raise PostgresError(
                f"The table `{self._settings.table}` at {self._place} cannot be seen by this user.",
                "Grant it USAGE on the schema of the table.",
            )
        await self._check(connection, found)

    async def exists(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        return await self._find(connection) is not None

    def statement(self) -> str:
        """The statement that makes the table."""
        columns = ", ".join(f"{quoted(name)} {self._definition(name)}" for name in self._settings.all_columns)
        return f"CREATE TABLE IF NOT EXISTS {self._name} ({columns});"

    def upsert(self) -> str:
        """The statement that writes rows: its one parameter is the text of a JSON array with an object for each row.

        There, `scored_at` is in milliseconds since 1970; the rest is as PostgreSQL reads it from JSON.

        A row replaces the present one unless that is newer. Rows of an earlier era (of another cluster, or of this one
        before it lost everything) are older, then those of an earlier owner, and of one owner those with a lower
        sequence. A new owner reads again what its predecessor delivered but did not commit: a row that is older than
        the present one by sequence *and* by time of scoring changes nothing, or the table would go back for a moment.
        By sequence alone, it could be that of a journal that has begun again.
        """
        columns = self._settings.all_columns
        names = ", ".join(map(quoted, columns))
        given = {**columns, "scored_at": "bigint"}
        records = ", ".join(f"{quoted(name)} {kind}" for name, kind in given.items())
        values = ", ".join(
            "to_timestamp(r.scored_at / 1000.0)" if name == "scored_at" else f"r.{quoted(name)}" for name in columns
        )
        changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in columns if name != "key")
        return (
            # The settings have checked all names and types.
            f"INSERT INTO {self._name} AS t ({names}) SELECT {values} FROM json_to_recordset(%s::json) AS r({records}) "  # noqa: S608
            f"ON CONFLICT (key) DO UPDATE SET {changes} WHERE CASE "
            "WHEN t.sink_era IS NULL OR t.sink_epoch IS NULL OR t.sink_sequence IS NULL THEN true "
            "WHEN (excluded.sink_era, excluded.sink_epoch) < (t.sink_era, t.sink_epoch) THEN false "
            "WHEN excluded.sink_era > t.sink_era OR excluded.sink_sequence >= t.sink_sequence THEN true "
            "WHEN excluded.sink_epoch > t.sink_epoch THEN coalesce(excluded.scored_at >= t.scored_at, true) "
            "ELSE false END"
        )

    async def _find(self, connection: psycopg.AsyncConnection[Any]) -> tuple[Any, ...] | None:
        cursor = await connection.execute(_FIND, [self._name])
        found: tuple[Any, ...] | None = await cursor.fetchone()
        return found

    async def _make(self, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            await connection.execute(f"{ONE_BY_ONE} {self.statement()}".encode())
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
            return  # somebody without our lock was quicker
        except psycopg.errors.DuplicateObject as error:
            raise PostgresError(
                f"The table `{self._settings.table}` cannot be made at {self._place}: {error.diag.message_primary}.",
                "Choose another name for the table.",
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise PostgresError(
                f"The table `{self._settings.table}` is not there, and PostgreSQL at {self._place} does not let this "
                f"user make it: {error.diag.message_primary}",
                f"Grant it CREATE on the schema, or make the table: {self.statement()}",
            ) from None
        except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedObject, psycopg.errors.SyntaxError) as error:
            raise PostgresError(
                f"The table `{self._settings.table}` cannot be made at {self._place}: {error.diag.message_primary}.",
                "Look at the schema's name and at the types of the columns.",
            ) from None

    async def _check(self, connection: psycopg.AsyncConnection[Any], found: tuple[Any, ...]) -> None:
        oid, kind, persistence, *rights = found
        table, name = self._settings.table, self._name
        if kind not in "rp":
            raise PostgresError(f"`{table}` at {self._place} is not a table, but a view or the like.", "Name a table.")
        if persistence == "u":
            raise PostgresError(
                f"The table `{table}` at {self._place} is unlogged: a crash of the server would empty it.",
                f"ALTER TABLE {name} SET LOGGED;",
            )
        lacking = [right for right, has in zip(("INSERT", "UPDATE", "SELECT"), rights, strict=True) if not has]
        if lacking:
            raise PostgresError(
                f"This user may not {' or '.join(lacking)} on the table `{table}` at {self._place}.",
                f"GRANT {', '.join(lacking)} ON {name} TO CURRENT_USER; (as its owner, with the user's name)",
            )
        cursor = await connection.execute(_COLUMNS, [oid])
        columns = {column: (has, demanded) for column, has, demanded in await cursor.fetchall()}
        wanted = await self._wanted(connection)
        problems, corrections = [], []
        for column, type_ in wanted.items():
            quoted_column = quoted(column)
            if column not in columns:
                problems.append(f"it has no column `{column}`")
                corrections.append(f"ADD COLUMN {quoted_column} {self._settings.all_columns[column]}")
            elif not _alike(columns[column][0], type_):
                declared = self._settings.all_columns[column]
                problems.append(f"its column `{column}` is of the type {columns[column][0]}, not {type_}")
                corrections.append(
                    f"ALTER COLUMN {quoted_column} TYPE {declared} USING {quoted_column}::text::{declared}"
                )
        for column, (_, demanded) in columns.items():
            if demanded and column not in wanted:
                problems.append(f"its column `{column}` must have a value, which results do not give it")
                corrections.append(f"ALTER COLUMN {quoted(column)} DROP NOT NULL")
        if "key" in columns:
            cursor = await connection.execute(_UNIQUE, [oid])
            if (await cursor.fetchone()) != (True,):
                problems.append("its column `key` is not unique")
                corrections.append("ADD UNIQUE (key)")
        if problems:
            raise PostgresError(
                f"The table `{table}` at {self._place} is not what this sink writes: {'; '.join(problems)}.",
                f"Correct it with: ALTER TABLE {name} {', '.join(corrections)};",
            )

    async def _wanted(self, connection: psycopg.AsyncConnection[Any]) -> dict[str, str]:
        """The types of the columns, by the server's names."""
        wanted = {}
        for column, type_ in self._settings.all_columns.items():
            try:
                cursor = await connection.execute("SELECT format_type(to_regtype(%s), NULL)", [type_])
                found = await cursor.fetchone()
            except psycopg.errors.SyntaxError:
                found = None
            if found is None or found[0] is None:
                raise PostgresError(
                    f"PostgreSQL at {self._place} has no type `{type_}`, which the column `{column}` should have.",
                    "Types are bigint, text, double precision, numeric(12,2), boolean, timestamptz, jsonb and more.",
                )
            wanted[column] = found[0]
        return wanted

    def _definition(self, column: str) -> str:
        return self._settings.all_columns[column] + (" PRIMARY KEY" if column == "key" else "")


def _alike(one: str, other: str) -> bool:
    return one == other or any(one in group and other in group for group in _ALIKE)
