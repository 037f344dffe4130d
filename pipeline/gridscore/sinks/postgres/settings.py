"""Settings of the PostgreSQL sink: which table, and what its columns are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.postgres import Address, Column, ColumnType, Table  # noqa: TC001 -- pydantic reads them

# Columns that say which of two results of a key is newer.
OWN_COLUMNS = {"sink_era": "bigint", "sink_epoch": "bigint", "sink_sequence": "bigint"}

# Columns of typed results, besides the key and those in `column`.
RESULT_COLUMNS = {
    "score": "double precision",
    "decision": "text",
    "model": "text",
    "version": "bigint",
    "scored_at": "timestamp with time zone",
}


class PostgresSinkSettings(SinkSettings):
    """Results as rows of a table: the newest of each key."""

    kind: Literal["postgres"] = "postgres"
    database: Address = Field(
        description="The database: `postgresql://USER:${PASSWORD}@HOST:5432/NAME?sslmode=verify-full`."
    )
    table: Table = Field(description="The table, `table` or `schema.table`; it is made if it is missing.")
    columns: Literal["json", "typed"] = Field(
        default="json",
        description="`json` keeps the result whole in one column; `typed` has a column for the score, the decision, "
        "the model, its version and the time, and those of `column`.",
    )
    column: dict[Column, ColumnType] = Field(
        default_factory=dict,
        max_length=200,
        description="For typed columns, a field of the result and the type of its column: `amount=numeric(12,2)`.",
    )
    key_type: Literal["text", "bigint"] = Field(default="text", description="Type of the column `key`.")
    create: bool = Field(default=True, description="Make the table if it is missing.")
    batch: int = Field(default=5_000, ge=1, le=100_000, description="The most results of a statement.")

    @model_validator(mode="after")
    def _columns_go_together(self) -> PostgresSinkSettings:
        if self.column and self.columns == "json":
            raise ValueError("`column` is for `columns: typed`")
        if taken := ({"key", "scored_at"} | OWN_COLUMNS.keys()) & self.column.keys():
            raise ValueError(f"the column `{min(taken)}` has a type of its own already")
        return self

    @property
    def destination(self) -> str:
        """The table."""
        return f"the table {self.table}"

    @property
    def fields(self) -> dict[str, str]:
        """Columns of the table that hold the result, with their types."""
        if self.columns == "json":
            return {"result": "jsonb", "scored_at": RESULT_COLUMNS["scored_at"]}
        return {**RESULT_COLUMNS, **self.column}

    @property
    def all_columns(self) -> dict[str, str]:
        """All columns of the table that are written, with their types; the key is the first."""
        return {"key": self.key_type, **self.fields, **OWN_COLUMNS}
