"""Restore points in a table of PostgreSQL: each is one transaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.errors import LockNotAvailable, UndefinedTable, UniqueViolation

from gridscore.errors import UsageError
from gridscore.operations.backup_stores import BackupError
from gridscore.postgres import PostgresError, arguments, failure, place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_ROW_BYTES = 8 << 20
_CREATE = """\
CREATE TABLE gridscore_backup (kind text, name text, part int, data bytea NOT NULL, PRIMARY KEY (kind, name, part))"""
_LOCK = "SELECT pg_advisory_lock(hashtext('gridscore_backup'), hashtext(coalesce(current_schema(), '')))"
_LOCK_SECONDS = 10  # a server may need a moment to notice that the writer of before is gone
# A server must notice soon that a writer's host is gone, or nobody else can be the writer.
_SETTINGS = {
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "600s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
}
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_AGAIN = "Call it again when the database answers; a backup that runs goes on by itself."


class Database:
    """A table; see `gridscore.operations.backup_stores.Store`. A piece is one or more rows.

    Raises UsageError if it is not an address of a database.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._where = place_of(database)
        self.place = self.address = f"postgresql://{self._where}"
        self._connection: psycopg.Connection[Any] | None = None
        self._writes = False
        self._has_begun = False

    def begin(self) -> None:
        """Make the table if it is not there."""
        self._writes = True
        if not self._rows("SELECT to_regclass('gridscore_backup') IS NOT NULL")[0][0]:
            self._rows(_CREATE)

    def is_ours(self) -> bool:
        """Always: who connects again takes the lock, or fails."""
        return True

    def names(self, kind: str) -> list[str]:
        """Of the pieces of a kind."""
        return [name for (name,) in self._rows("SELECT name FROM gridscore_backup WHERE kind = %s AND part = 0", kind)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a piece is there."""
        return bool(self._rows("SELECT 1 FROM gridscore_backup WHERE kind = %s AND name = %s AND part = 0", kind, name))

    def read(self, kind: str, name: str, most: int) -> bytes:
        """What a piece has."""
        found = bytearray()
        for part in range(most // _ROW_BYTES + 2):
            rows = self._rows(
                "SELECT data FROM gridscore_backup WHERE kind = %s AND name = %s AND part = %s", kind, name, part
            )
            if not rows or len(found) > most:
                break
            found += rows[0][0]
        return bytes(found) if len(found) <= most else b""

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Insert a piece."""
        self._begin()
        for part, at in enumerate(range(0, len(data), _ROW_BYTES)):
            row = (kind, name, part, data[at : at + _ROW_BYTES])
            try:
                self._rows("INSERT INTO gridscore_backup VALUES (%s, %s, %s, %b)", *row)
            except UniqueViolation:
                raise BackupError(
                    f"Another process has written to {self.place} meanwhile.", "End one of the two."
                ) from None

    def remove(self, kind: str, names: Iterable[str]) -> None:
        """Delete pieces."""
        if some := list(names):
            self._begin()
            self._rows("DELETE FROM gridscore_backup WHERE kind = %s AND name = ANY(%s)", kind, some)

    def commit(self) -> None:
        """End the transaction well."""
        if self._has_begun:
            self._rows("COMMIT")
            self._has_begun = False

    def undo(self) -> None:
        """End the transaction without effect."""
        if self._has_begun:
            self.close()

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection, self._has_begun = self._connection, None, False
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()

    def _begin(self) -> None:
        if not self._has_begun:
            self._rows("BEGIN")
            self._has_begun = True

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            cursor = self._connected().execute(statement.encode(), values or None, binary=True)
            return cursor.fetchall() if cursor.description else []
        except UniqueViolation:
            raise
        except UndefinedTable:
            raise UsageError(
                f"`{self.address}` has no backup: there is no table `gridscore_backup`.",
                "Name what --to of `gridscore backup` named.",
            ) from None
        except (psycopg.Error, UnicodeError) as error:
            failed = failure(error, self._where, BackupError)
            raise (failed if isinstance(failed, PostgresError) else BackupError(failed.message, _AGAIN)) from None

    def _connected(self) -> psycopg.Connection[Any]:
        found = self._connection
        if found is not None and not found.closed:
            return found
        if self._has_begun:
            raise BackupError(f"The connection to {self.place} was lost in the middle of a restore point.", _AGAIN)
        how = arguments(self._database, "gridscore backup", **_KEEPALIVES)
        found = psycopg.Connection.connect(self._database, autocommit=True, prepare_threshold=None, **how)
        self._connection = found
        if self._writes:
            for setting in {**_SETTINGS, "lock_timeout": f"{_LOCK_SECONDS}s"}.items():
                found.execute("SELECT set_config(%s, %s, false)", setting)
            try:
                found.execute(_LOCK.encode())
            except LockNotAvailable:
                self.close()
                raise UsageError(
                    f"Another process writes to {self.place}.", "Name another database or schema, or end it."
                ) from None
        return found
