"""Tables of pandas as entries of maps, and results as a table."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from gridscore.errors import UsageError
from gridscore.features.tables import event_keys, lookup_entries, rows_as_json
from gridscore.job.types import FieldType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gridscore.job import Job

_SOURCE = "the table"


def entries_of(
    frame: pd.DataFrame, map_name: str, key: str | Sequence[str] | None, jobs: Iterable[Job]
) -> Iterator[tuple[str | int, bytes]]:
    """Key and JSON of each row, with the types that the job which reads the map has for them.

    Columns that no job knows keep their own types; a missing cell becomes null.

    Args:
        key: Columns of the key, joined by `|`. By default the index of an event map's rows, and for a lookup map the
            columns that the job names.
        jobs: Those that may read the map.

    Raises:
        TableError: A column or a part of a key is missing, whole numbers have lost digits, or times have no time zone.
        UsageError: The key is not given, and the index only counts the rows; or a lookup's key has other parts.
    """
    frame = frame.rename(columns=str)
    columns = [key] if isinstance(key, str) else key
    reading: Job | None = None
    for job in jobs:
        if job.events == map_name:
            reading = job
            break
        for name, lookup in job.lookups.items():
            if lookup.map == map_name:
                if columns is not None and len(columns) != len(lookup.key_columns):
                    parts = ", ".join(f"`{part}`" for part in lookup.key_columns)
                    raise UsageError(
                        f"`{map_name}` is a lookup map of the job `{job.name}`, whose key has other parts: {parts}.",
                        "Leave out `key`, or name a column for each part.",
                    )
                return lookup_entries(frame, job, name, _SOURCE, columns=columns)
    if columns is not None:
        if reading is None and len(columns) == 1 and _is_whole(frame, columns[0]):
            warnings.warn(
                f"No job reads `{map_name}` yet, so `{columns[0]}` makes keys that are strings: lookups and windows of "
                "whole numbers will not find them. Name the job that will: put_events(…, job=…).",
                stacklevel=2,
            )
        keys = event_keys(frame, columns, _SOURCE, reading)
    elif isinstance(frame.index, pd.RangeIndex) and frame.index.name is None:
        raise UsageError("The rows have no key: their index only counts them.", 'Name the columns of it: `key="id"`.')
    else:
        index = frame.index.to_frame(index=False)
        # Whatever its name, it is the key that windows ask for.
        entity = reading.event_key if reading is not None and len(index.columns) == 1 else None
        index.columns = [entity or f"level {level}" for level in range(len(index.columns))]
        keys = event_keys(index, list(index.columns), "the index of the table", reading)
    return zip(keys, _texts(frame, reading), strict=True)


def _is_whole(frame: pd.DataFrame, column: str) -> bool:
    return list(frame.columns).count(column) == 1 and pd.api.types.is_integer_dtype(frame[column].dtype)


def _texts(frame: pd.DataFrame, job: Job | None) -> Iterator[bytes]:
    fields: dict[str, FieldType] = {}
    left = dict.fromkeys(frame.columns)
    for name, kind in job.schema_.items() if job is not None else ():
        for column in (kind.key(name), name):
            if column in left:
                fields[name] = kind
                del left[column]
                break
    fields |= {column: _type_of(frame[column]) for column in left}
    texts = rows_as_json(frame, fields, _SOURCE)
    paths = {kind.key(name): kind.path(name) for name, kind in fields.items() if len(kind.path(name)) > 1}
    return (_nested(text, paths) for text in texts) if paths else texts


def _type_of(column: pd.Series) -> FieldType:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return FieldType(type="timestamp")
    if pd.api.types.is_float_dtype(column.dtype) and column.isna().any():
        # pandas makes floats of whole numbers as soon as one is missing.
        there = column.dropna()
        if len(there) and ((there % 1 == 0) & (there.abs() < 2**53)).all():
            return FieldType(type="int")
    return FieldType(type="float")  # any value as it is


def _nested(text: bytes, paths: Mapping[str, tuple[str, ...]]) -> bytes:
    row = msgspec.json.decode(text)
    for key, (*around, name) in paths.items():
        value, inside = row.pop(key), row
        for each in around:
            inside = inside.setdefault(each, {})
        inside[name] = value
    return msgspec.json.encode(row)


def frame_of(keys: Sequence[Any], results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each result, under its key; a column for each of their fields."""
    names = dict.fromkeys(name for result in results for name in result)
    columns = {name: _cells([result.get(name) for result in results]) for name in names}
    return pd.DataFrame(columns, index=pd.Index(keys, name="key", dtype=object))


def _cells(values: list[Any]) -> Any:
    """The values of a column, such that whole numbers keep their digits: pandas makes floats of them beside others."""
    kinds = set(map(type, values))
    if kinds == {int, type(None)} and all(value is None or -(1 << 63) <= value < 1 << 63 for value in values):
        return pd.array(values, dtype="Int64")
    if int in kinds and kinds != {int} and any(type(value) is int and abs(value) > 1 << 53 for value in values):
        return pd.array(values, dtype=object)
    return values
