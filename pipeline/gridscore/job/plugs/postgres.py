"""Names that the settings of the PostgreSQL source and sink have in common."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_NAME = r"[A-Za-z_][A-Za-z0-9_$]{0,62}"


def _column(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError(f"`{value}` is not the name of a column: use letters, digits and `_`, no digit first")
    return value


def _table(value: str) -> str:
    if not re.fullmatch(rf"({_NAME}\.)?{_NAME}", value):
        raise ValueError(
            f"`{value}` is not the name of a table: write `table` or `schema.table`, of letters, digits and `_`"
        )
    return value


def _column_type(value: str) -> str:
    if not re.fullmatch(
        r"[A-Za-z_][A-Za-z0-9_ ]{0,60}(\(\d{1,4}(, ?\d{1,3})?\))?( with(out)? time zone)?(\[\])?", value
    ):
        raise ValueError(f"`{value}` is not a column type: write it as `text`, `numeric(12,2)` or `timestamptz`")
    return value


Address = Annotated[str, Field(min_length=1, max_length=2_000)]  # where a database is, as libpq takes it
Column = Annotated[str, AfterValidator(_column)]
Table = Annotated[str, AfterValidator(_table)]
ColumnType = Annotated[str, AfterValidator(_column_type)]


def quoted(name: str) -> str:
    """A name as SQL takes it, the parts of a table's name each for itself; capital letters count."""
    return ".".join(f'"{part}"' for part in name.split("."))
