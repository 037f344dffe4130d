"""Tables: histories and lookup tables in CSV or Parquet, turned into the very JSON that a producer puts into the grid.

What a value is, is decided by the job file and not by what pandas guessed: a column that the schema calls a string is
read as one. A value that does not fit is left as it is, for the decoder to say so in its row.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from pipeline.errors import TableError
from pipeline.features.operations import number_text
from pipeline.features.times import to_text
from pipeline.job.check import compile_keys
from pipeline.job.types import Type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.job import FieldType, Job

_NUMBER = re.compile(r"\s*[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf(inity)?)\s*", re.ASCII | re.IGNORECASE)
_SUFFIXES = (".csv", ".parquet")


def read_table(path: Path | str, *, types: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Read a CSV or Parquet file, by its suffix; CSV as `pandas.read_csv` does.

    Args:
        path: The file.
        types: For CSV, pandas types of columns that must not be guessed; those that the file lacks do not matter.

    Raises:
        TableError: There is no such file, or it cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir() or not path.exists():
        what = f"`{path}` is a folder, not a table." if path.is_dir() else f"There is no file `{path}`."
        raise TableError(what, "Give the path of a CSV or Parquet file.")
    try:
        if name.endswith(".parquet"):
            frame = pd.read_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            frame = pd.read_csv(path, dtype=types or None, low_memory=False)
        else:
            raise TableError(f"`{path}` is neither CSV nor Parquet.", "Name it .csv, .csv.gz or .parquet.")
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise TableError(
            f"`{path}` cannot be read: {reason}.",
            "Is it what its name says? Save it again, as CSV in UTF-8 with a line of column names, or as Parquet.",
        ) from None
    return frame


def read_history(path: Path | str, job: Job) -> pd.DataFrame:
    """Read a history of events: each field of the schema is a column.

    Raises:
        TableError: It cannot be read, or has no rows.
    """
    frame = read_table(path, types=_text_columns(job.schema_))
    if frame.empty:
        raise TableError(f"`{path}` has no rows.", "Give a history with at least one event.")
    return _with_numbers(frame, _number_columns(job.schema_)) if _is_csv(path) else frame


def read_lookup(path: Path | str, job: Job, name: str) -> pd.DataFrame:
    """Read the table of a lookup: its fields and its key are columns.

    Raises:
        TableError: It cannot be read.
    """
    lookup = job.lookups[name]
    types = _text_columns(lookup.fields)
    nodes = compile_keys(lookup, job.schema_)
    keys = dict(zip(lookup.key_columns, nodes, strict=True))
    types |= {column: str for column, node in keys.items() if node.type != Type.NUMBER}
    frame = read_table(path, types=types)
    if not _is_csv(path):
        return frame
    numbers = _number_columns(lookup.fields) | {column for column, node in keys.items() if node.type == Type.NUMBER}
    return _with_numbers(frame, numbers - types.keys())


def find_lookup(directory: Path, name: str) -> Path:
    """The file of a lookup in a directory.

    Raises:
        TableError: There is none.
    """
    for suffix in _SUFFIXES:
        path = directory / f"{name}{suffix}"
        if path.is_file():
            return path
    raise TableError(
        f"There is no table for the lookup `{name}`: neither `{directory / name}.csv` nor `{name}.parquet` beside it.",
        "Give the directory that holds one file for each lookup of the job, called like it.",
    )


def rows_as_json(frame: pd.DataFrame, fields: Mapping[str, FieldType], source: str = "the table") -> Iterator[bytes]:
    """Each row as a JSON object of these fields.

    Args:
        frame: A column for each field.
        fields: By name.
        source: What to call the table in messages.

    Raises:
        TableError: A column is missing, or has times without a time zone.
    """
    names = [kind.json_name or name for name, kind in fields.items()]
    columns = [
        _values(frame[_column(frame, name, kind, source)], kind, f"{source}: the column `{name}`")
        for name, kind in fields.items()
    ]
    encode = msgspec.json.Encoder().encode
    return (encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True))


def lookup_entries(
    frame: pd.DataFrame, job: Job, name: str, source: str = "the table"
) -> Iterator[tuple[str | int, bytes]]:
    """Key and JSON of each row of a lookup's table; rows without a key are left out.

    Args:
        frame: A column for each field and each part of the key.
        job: Which says what a key is.
        name: Of the lookup.
        source: What to call the table in messages.

    Raises:
        TableError: A column is missing, or has times without a time zone.
    """
    lookup = job.lookups[name]
    nodes = compile_keys(lookup, job.schema_)
    single = len(nodes) == 1
    parts: list[list[Any]] = []
    for column, node in zip(lookup.key_columns, nodes, strict=True):
        if column not in frame.columns:
            hint = "Name the columns of the key with `columns` in the lookup." if not lookup.columns else ""
            raise TableError(f"{source} has no column `{column}`, which is the key of the lookup `{name}`.", hint)
        where = f"{source}: the column `{column}`"
        if single and node.type == Type.NUMBER:
            parts.append([_whole(value) for value in _python(frame[column])])
        else:
            parts.append(_texts(frame[column], where, times=node.type == Type.TIMESTAMP))
    rows = rows_as_json(frame, lookup.fields, source)
    if single:
        return ((key, row) for key, row in zip(parts[0], rows, strict=True) if key is not None)
    join = lookup.separator.join
    return ((join(key), row) for key, row in zip(zip(*parts, strict=True), rows, strict=True) if None not in key)


def _text_columns(fields: Mapping[str, FieldType]) -> dict[str, Any]:
    text = [
        (name, kind)
        for name, kind in fields.items()
        if kind.type == "string" or (kind.type == "timestamp" and kind.unit == "iso")
    ]
    return {column: str for name, kind in text for column in {name, kind.json_name or name}}


def _number_columns(fields: Mapping[str, FieldType]) -> set[str]:
    numbers = {column for name, kind in fields.items() if kind.type != "bool" for column in (name, kind.json_name)}
    return numbers - {"", *_text_columns(fields)}


def _is_csv(path: Path | str) -> bool:
    return not str(path).lower().endswith(".parquet")


def _with_numbers(frame: pd.DataFrame, columns: set[str]) -> pd.DataFrame:
    """Numbers of a CSV file cell by cell, where one that is none made pandas take its whole column for text."""
    for column in columns & set(frame.columns):
        series = frame[column]
        if not pd.api.types.is_numeric_dtype(series.dtype):
            cells = [_number(cell) for cell in _python(series)]
            frame[column] = pd.Series(cells, index=series.index, dtype=object)
    return frame


def _number(cell: Any) -> Any:
    if not isinstance(cell, str) or not _NUMBER.fullmatch(cell):
        return cell
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _column(frame: pd.DataFrame, name: str, kind: FieldType, source: str) -> str:
    for column in (kind.json_name, name):
        if column and column in frame.columns:
            return column
    import difflib

    close = difflib.get_close_matches(kind.json_name or name, [str(column) for column in frame.columns], n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Its columns: {', '.join(map(str, frame.columns[:30]))}."
    raise TableError(f"{source} has no column `{kind.json_name or name}`.", hint)


def _values(series: pd.Series, kind: FieldType, where: str) -> list[Any]:
    """The values of a column as a producer would have them; None where there is none."""
    if kind.type == "string":
        return _texts(series, where, times=False)
    if kind.type == "timestamp":
        if isinstance(series.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(series.dtype):
            seconds = _seconds(series, where)
            if kind.unit == "iso":
                return list(to_text()(seconds))
            scale = 1000.0 if kind.unit == "ms" else 1.0
            return [None if math.isnan(value) else value for value in (seconds * scale).tolist()]
        return _python(series)
    if kind.type == "float" and pd.api.types.is_float_dtype(series.dtype):
        # msgspec writes NaN as null.
        return list(series.astype(np.float64).tolist()) if isinstance(series.dtype, np.dtype) else _python(series)
    values = _python(series)
    if kind.type == "int":
        return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    if kind.type == "bool":
        known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        return [known.get(str(value).lower(), value) for value in values]
    return values


def _python(series: pd.Series) -> list[Any]:
    """Plain Python values; None for what is missing."""
    return list(series.astype(object).where(series.notna(), None).tolist())


def _texts(series: pd.Series, where: str, *, times: bool) -> list[str | None]:
    if isinstance(series.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(series.dtype):
        return to_text()(_seconds(series, where))
    values = _python(series)
    if times:
        return [_time_text(value) for value in values]
    return [number_text(float(v)) if isinstance(v, float) else str(v) if isinstance(v, int) else v for v in values]


def _time_text(value: Any) -> str | None:
    """A time in the spelling that keys have."""
    try:
        parsed = dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None if value is None else str(value)
    return str(value) if parsed.tzinfo is None else to_text()(np.array([parsed.timestamp()]))[0]


def _whole(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _seconds(series: pd.Series, where: str) -> Any:
    if not isinstance(series.dtype, pd.DatetimeTZDtype):
        raise TableError(
            f"{where} has times without a time zone.",
            'Say which it is before saving it: `column.dt.tz_localize("UTC")`.',
        )
    microseconds = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("M8[us]")
    return np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 1e6)


def take_columns(frame: pd.DataFrame, names: Sequence[str], source: str) -> pd.DataFrame:
    """Columns of a table as they are.

    Raises:
        TableError: One is missing.
    """
    for name in names:
        if name not in frame.columns:
            raise TableError(
                f"{source} has no column `{name}` to keep.", f"Its columns: {', '.join(map(str, frame.columns[:30]))}."
            )
    return frame[list(names)]
