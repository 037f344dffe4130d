"""Settings of the PostgreSQL source: which rows, their keys, and how to see changes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gridscore.job.plugs.base import SourceSettings
from gridscore.job.plugs.postgres import Address, Column, Table  # noqa: TC001 -- pydantic reads them
from gridscore.job.types import Duration  # noqa: TC001 -- pydantic reads it


class PostgresSourceSettings(SourceSettings):
    """Rows of a table or a query as entries of a map, loaded once or kept current."""

    kind: Literal["postgres"] = "postgres"
    database: Address = Field(
        description="The database: `postgresql://USER:${PASSWORD}@HOST:5432/NAME?sslmode=verify-full`."
    )
    table: Table | None = Field(default=None, description="The table, `table` or `schema.table`.")
    query: str | None = Field(
        default=None, min_length=1, max_length=100_000, description="A SELECT instead of a table."
    )
    key: tuple[Column, ...] = Field(
        min_length=1,
        max_length=8,
        description="Column that is the key: whole numbers as numbers, all else as text. Several are joined.",
    )
    separator: str = Field(default="|", max_length=8, description="What joins the columns of a composite key.")
    mirror: bool = Field(default=False, description="After a full load, remove entries whose rows are gone.")
    notify: Column | None = Field(
        default=None, description="Channel on which the database announces changes: LISTEN and NOTIFY."
    )
    install: bool = Field(
        default=False, description="Create the trigger that announces changes of the table on the channel `notify`."
    )
    poll_column: Column | None = Field(
        default=None, description="Column that grows with every change, such as `updated_at`, to read what is new."
    )
    every: Duration = Field(default="5s", description="Pause between two looks at `poll_column`.")
    overlap: Duration = Field(
        default="60s",
        description="How far a look reaches back in a `poll_column` with times, for transactions that commit late.",
    )
    overlap_count: int = Field(
        default=1_000, ge=0, le=10_000_000, description="The same in a `poll_column` with numbers."
    )
    batch: int = Field(default=2_000, ge=1, le=50_000, description="Rows to read in one go.")
    max_event: int = Field(default=1 << 20, ge=64, le=1 << 24, description="The most bytes of a row's JSON.")

    @property
    def has_end(self) -> bool:
        return self.notify is None and self.poll_column is None

    @model_validator(mode="after")
    def _go_together(self) -> PostgresSourceSettings:
        if (self.table is None) == (self.query is None):
            raise ValueError("give either `table` or `query`")
        if self.notify is not None and self.poll_column is not None:
            raise ValueError("give either `notify` or `poll_column`, not both")
        if self.install and (self.notify is None or self.table is None):
            raise ValueError("`install` needs `notify` and `table`")
        return self
