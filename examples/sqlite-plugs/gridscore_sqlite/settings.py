"""What people set: each field is an option of the command, and a line of the job file. And which errors pass."""

from __future__ import annotations

import sqlite3
from typing import Annotated, Literal

from pydantic import Field

from gridscore.job.plugs.base import SinkSettings, SourceSettings

# It becomes a part of statements, where SQLite takes no parameter.
Table = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$", description="Its table.")]


class SqliteSourceSettings(SourceSettings):
    """Rows of a table that has a column `id`, which grows."""

    kind: Literal["sqlite"] = "sqlite"
    path: str = Field(description="The database file.")
    table: Table
    follow: bool = Field(default=False, description="Wait for more at the end of the table.")

    @property
    def has_end(self) -> bool:
        """Whether it ends by itself."""
        return not self.follow


class SqliteSinkSettings(SinkSettings):
    """A table with a row a key; it is made if it is not there."""

    kind: Literal["sqlite"] = "sqlite"
    path: str = Field(description="The database file.")
    table: Table


def passes(error: sqlite3.Error) -> bool:
    """Whether trying again may heal an error: another process writes, or a drive is away."""
    code = getattr(error, "sqlite_errorcode", 0)  # errors of the module itself have none
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR)
