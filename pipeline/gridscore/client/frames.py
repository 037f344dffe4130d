"""Tables of pandas as entries of maps, and results as a table."""

from __future__ import annotations

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
        jobs: Those of the cluster.

    Raises:
        TableError: A column or a part of a key is missing, whole numbers have lost digits, or times have no time zone.
        UsageError: The key is not given, and the index only counts the rows.
    """
    frame = frame.rename(columns=str)
    reading: Job | None = None
    for job in jobs:
        if job.events == map_name:
            reading = job
            break
        for name, lookup in job.lookups.items():
            if lookup.map == map_name and key is None:
                return lookup_entries(frame, job, name, _SOURCE)
    if key is not None:
        keys = event_keys(frame, [key] if isinstance(key, str) else key, _SOURCE, reading)
    elif isinstance(frame.index, pd.RangeIndex):
        raise UsageError("The rows have no key: their index only counts them.", 'Name the columns of it: `key="id"`.')
    else:
        index = frame.index.to_frame(index=False)
        index.columns = [f"level {level}" for level in range(len(index.columns))]
        keys = event_keys(index, list(index.columns), "the index of the table")
    return zip(keys, _texts(frame, reading), strict=True)


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


def frame_of(results: Mapping[Any, Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each result, under its key; a column for each of their fields."""
    return pd.DataFrame(list(results.values()), index=pd.Index(list(results), name="key", dtype=object))
