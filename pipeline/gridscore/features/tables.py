"""Tables: histories and lookup tables in CSV, Parquet or JSON lines, as the JSON that a producer puts into the grid.

What a value is, is decided by the job file and not by what pandas guessed: a column that the schema calls a string is
read as one. A value that does not fit is left as it is, for the decoder to say so in its row.
"""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import gzip
import json
import math
import numbers
import sys
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from gridscore.errors import TableError
from gridscore.features.cells import BOOLS, JSON_LINES, MISSING, READERS
from gridscore.features.events import reason_of
from gridscore.features.operations import number_text
from gridscore.features.times import to_text
from gridscore.job.check import compile_keys
from gridscore.job.nodes import INTEGERS
from gridscore.job.types import MAX_FEATURES, Type

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence

    from gridscore.features.cells import CellKind
    from gridscore.job import FieldType, Job
    from gridscore.job.nodes import Node

# Bits of the whole numbers that a float of so many bytes holds with all digits; one of eight has 53.
_EXACT_BITS = {2: 11, 4: 24}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SUFFIXES = (".csv", ".parquet", ".csv.gz", *JSON_LINES)
_TYPED = "gridscore.typed"  # of a table whose values are those of JSON: they stay as they were written, as events do
_MAX_LINE = 1 << 24  # bytes of a line of JSON
_OTHERS = 30  # fields of JSON lines that are read though nobody wants them


def read_table(
    path: Path | str, kinds: Mapping[str, CellKind] | None = None, *, keep: Collection[str] = ()
) -> pd.DataFrame:
    """Read a file in CSV, Parquet or JSON lines, by its suffix; what lies in nested objects has names with dots.

    Args:
        kinds: What columns hold, whether the file has them or not. Others are as pandas reads them; those of JSON lines
            may be left out, unless no kinds are given.
        keep: Columns that are wanted as well.

    Raises:
        TableError: There is no such file, or it cannot be read.
    """
    (frame,) = _frames(Path(path), kinds, keep, None)[1]
    return frame


@contextmanager
def read_chunks(
    path: Path | str, kinds: Mapping[str, CellKind] | None, rows: int, *, keep: Collection[str] = ()
) -> Iterator[tuple[int, Iterator[pd.DataFrame]]]:
    """In the context, the rows that a file has, and what `read_table` reads of it, so many rows at a time.

    Columns that `kinds` does not name may be of other types from one chunk to the next.

    Raises TableError if there is no such file, or it cannot be read; later, too.
    """
    count, frames = _frames(Path(path), kinds, keep, rows)
    with closing(frames):
        yield count, frames


def _frames(
    path: Path, kinds: Mapping[str, CellKind] | None, keep: Collection[str], rows: int | None
) -> tuple[int, Generator[pd.DataFrame, None, None]]:
    name = path.name.lower()
    if path.is_dir() or not path.exists():
        what = f"`{path}` is a folder, not a table." if path.is_dir() else f"There is no file `{path}`."
        raise TableError(what, "Give the path of a file in CSV, Parquet or JSON lines.")
    count: Callable[[Path], int]
    read: Callable[[Path, Mapping[str, CellKind], int | None], Iterator[pd.DataFrame]]
    if name.endswith(".parquet"):
        count, read = _parquet_rows, _parquet
    elif name.endswith(JSON_LINES):
        count, read = _json_rows, partial(_json_lines, None if kinds is None else {*kinds, *keep})
    elif name.endswith((".csv", ".csv.gz")):
        # pandas would guess, take `NA` for missing, and round decimal numbers in its own way.
        count, read = _check_cells, _csv
    else:
        raise TableError(
            f"`{path}` is not CSV, Parquet or JSON lines.", "Name it .csv, .csv.gz, .parquet, .jsonl or .jsonl.gz."
        )

    def frames() -> Generator[pd.DataFrame, None, None]:
        with _readable(path):
            yield from read(path, kinds or {}, rows)

    with _readable(path):
        return count(path), frames()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error) as error:  # pandas' and pyarrow's own errors are ValueErrors
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise TableError(
            f"`{path}` cannot be read: {reason}.",
            "Is it what its name says? Save it again, as CSV in UTF-8 with a line of column names, or as Parquet.",
        ) from None


def _csv(path: Path, kinds: Mapping[str, CellKind], rows: int | None) -> Iterator[pd.DataFrame]:
    names = pd.read_csv(path, nrows=0).columns
    typed = {name: kinds[name] for name in names if name in kinds}
    missing = {name: list(MISSING) for name in names.difference(list(typed))}
    texts: Any = dict.fromkeys(typed, str)
    read = pd.read_csv(path, dtype=texts, na_values=missing, keep_default_na=False, low_memory=False, chunksize=rows)
    with nullcontext([read]) if rows is None else read as frames:
        for frame in frames:
            for column, kind in typed.items():
                frame[column] = _column_of(frame[column].tolist(), kind, frame.index)
            yield frame


def read_history(path: Path | str, job: Job, keys: Sequence[str] = (), *, keep: Collection[str] = ()) -> pd.DataFrame:
    """Read a history of events: each field of the schema is a column.

    `keys`: columns of the events' keys: texts, if the schema does not name them; `keep`: columns that are wanted as
    well. Raises TableError if it cannot be read, or has no rows.
    """
    kinds: dict[str, CellKind] = dict.fromkeys(keys, "string")
    frame = read_table(path, kinds | kinds_of(job.schema_), keep=keep)
    if frame.empty:
        raise TableError(f"`{path}` has no rows.", "Give a history with at least one event.")
    return frame


def read_lookup(path: Path | str, job: Job, name: str) -> pd.DataFrame:
    """Read the table of a lookup: its fields and its key are columns. Raises TableError if it cannot be read."""
    lookup = job.lookups[name]
    kinds = kinds_of(lookup.fields)
    nodes = compile_keys(lookup, job.schema_)
    for column, node in zip(lookup.key_columns, nodes, strict=True):
        if node.type != Type.NUMBER:
            kinds[column] = "string"
        else:
            kinds.setdefault(column, "number")
    return read_table(path, kinds)


def find_lookup(directory: Path, name: str) -> Path:
    """The file of a lookup in a directory. Raises TableError if there is none."""
    for suffix in _SUFFIXES:
        path = directory / f"{name}{suffix}"
        if path.is_file():
            return path
    raise TableError(
        f"There is no table for the lookup `{name}`: neither `{directory / name}.csv` nor .parquet, .csv.gz or .jsonl.",
        "Give the directory that holds one file for each lookup of the job, called like it.",
    )


def rows_as_json(frame: pd.DataFrame, fields: Mapping[str, FieldType], source: str = "the table") -> Iterator[bytes]:
    """Each row as a JSON object of these fields.

    `frame`: a column for each field; `source`: what to call the table in messages. Raises TableError if a column is
    missing, or has times without a time zone.
    """
    names = [kind.key(name) for name, kind in fields.items()]
    is_typed = _TYPED in frame.attrs
    columns = []
    for name, kind in fields.items():
        if is_typed and kind.optional and not {name, kind.key(name)} & set(frame.columns):
            columns.append([None] * len(frame))  # a line leaves out what is missing, and so may all
            continue
        series = _series(frame, _column(frame, name, kind, source), source)
        columns.append(series.tolist() if is_typed else _values(series, kind, f"{source}: the column `{name}`"))
    # What JSON has no type for becomes a text, for the decoder to refuse.
    encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)

    def encode(row: Sequence[Any]) -> bytes:
        values = dict(zip(names, row, strict=True))
        try:
            return encoder.encode(values)
        except UnicodeEncodeError:  # half a surrogate pair: as an escape, for the decoder to refuse
            return json.dumps(values, default=str).encode()

    return map(encode, zip(*columns, strict=True))


def lookup_entries(
    frame: pd.DataFrame,  # a column for each field and each part of the key
    job: Job,  # which says what a key is
    name: str,
    source: str = "the table",  # what to call the table in messages
    *,
    skip_bad: bool = False,  # leave out rows whose key no event can ask for, instead of raising
    columns: Sequence[str] | None = None,  # those of the key, if they have other names than the job says
) -> Iterator[tuple[str | int, bytes]]:
    """Key and JSON of each row of a lookup's table; rows without a key are left out.

    Raises TableError if a column is missing, or has times without a time zone, or a row's key is not one.
    """
    lookup = job.lookups[name]
    nodes = compile_keys(lookup, job.schema_)
    single = len(nodes) == 1
    parts: list[list[Any]] = []
    for column, node in zip(columns or lookup.key_columns, nodes, strict=True):
        if column not in frame.columns:
            hint = "Name the columns of the key with `columns` in the lookup." if not lookup.columns else ""
            raise TableError(f"{source} has no column `{column}`, which is the key of the lookup `{name}`.", hint)
        where = f"{source}: the column `{column}`"
        series = _series(frame, column, source)
        if node.type != Type.NUMBER:
            values = _texts(series, where)
        else:
            if single or node.op in INTEGERS:
                _check_digits(series, where)
            values = _python(series)
        made = list(map(key_part(node, single=single), values))
        if not skip_bad:
            _check_keys(values, made, where)
        parts.append(made)
    rows = rows_as_json(frame, lookup.fields, source)
    if single:
        return ((key, row) for key, row in zip(parts[0], rows, strict=True) if key is not None)
    join = lookup.separator.join
    return ((join(key), row) for key, row in zip(zip(*parts, strict=True), rows, strict=True) if None not in key)


def key_part(node: Node, *, single: bool) -> Callable[[Any], Any]:
    """What makes a lookup's key, or a part of one, of a column's value, as the stream makes it of an event's.

    `node`: the compiled expression of the key; `single`: whether it is all of the key, which may be a whole number
    then.
    """
    if node.type != Type.NUMBER:
        make = _time_text if node.type == Type.TIMESTAMP else _text
        return lambda value: text if isinstance(text := make(value), str) else None
    if node.op in INTEGERS:
        return _whole if single else lambda value: None if (whole := _whole(value)) is None else str(whole)
    # The number is a float in the stream, which rounds from 2^53 on.
    if single:
        return lambda value: _whole(_float(value))
    return lambda value: None if (number := _float(value)) is None else number_text(number)


def event_keys(frame: pd.DataFrame, names: Sequence[str], source: str, job: Job | None = None) -> list[str] | list[int]:
    """The key of each row: its columns as texts, joined by `|`; or whole numbers, if windows of the job want these.

    Raises TableError if a column or a value is missing, or is not a whole number and should be.
    """
    columns = [_texts(frame[name], f"{source}: the column `{name}`") for name in take_columns(frame, names, source)]
    keys = []
    for number, parts in enumerate(zip(*columns, strict=True), 1):
        if None in parts:
            name = names[parts.index(None)]
            raise TableError(f"{source}, row {number}: it has no `{name}`, which belongs to the key.")
        keys.append("|".join(map(str, parts)))
    if job is not None and job.wants_whole_keys and tuple(names) == (job.event_key,):
        try:
            return list(map(int, keys))
        except ValueError as error:
            what = f"its `{names[0]}`, which makes the key, is not a whole number"
            raise TableError(f"{source}: {what}: {error}") from None
    return keys


def kinds_of(fields: Mapping[str, FieldType]) -> dict[str, CellKind]:
    """What the columns of fields hold, under both names that a column may have."""
    kinds: dict[str, CellKind] = {}
    for name, field in fields.items():
        if field.type == "timestamp":
            kind: CellKind = "string" if field.unit == "iso" else "number"
        else:
            kind = field.type
        kinds |= dict.fromkeys({name, field.key(name)}, kind)
    return kinds


def _column_of(cells: Sequence[Any], kind: CellKind, index: pd.Index) -> pd.Series:
    """A column of CSV; what is of another kind stays a text, for the decoder to say so."""
    read = READERS[kind]
    values: list[Any] = []
    for cell in cells:
        try:
            values.append(read(cell) if isinstance(cell, str) else None)
        except ValueError:
            values.append(cell)
            kind = "string"  # of a column of numbers, pandas would make its own of a text such as `1_0`
    dtypes = {"float": "float64", "int": "int64" if None not in values else "Int64", "bool": "boolean"}
    try:
        return pd.Series(values, index, dtype=dtypes.get(kind, "object"))
    except (ValueError, TypeError, OverflowError):
        return pd.Series(values, index, dtype=object)


def _parquet_rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _parquet(path: Path, kinds: Mapping[str, CellKind], rows: int | None) -> Iterator[pd.DataFrame]:
    """Read Parquet, without structs, and with all digits of whole numbers beside gaps: pandas makes floats of them."""
    import pyarrow as pa
    from pyarrow import parquet, types

    if rows is None:
        found: Iterable[pa.Table] = [parquet.read_table(path)]
    else:
        found = (pa.Table.from_batches([batch]) for batch in parquet.ParquetFile(path).iter_batches(rows))
    for table in found:
        while any(types.is_struct(column.type) for column in table.schema):
            table = table.flatten()  # noqa: PLW2901 -- level by level
        frame: pd.DataFrame = table.to_pandas()
        for name in kinds.keys() & set(table.column_names) & set(frame.columns):
            rounded = types.is_integer(table.schema.field(name).type) and pd.api.types.is_float_dtype(frame[name].dtype)
            if rounded or kinds[name] == "array":
                frame[name] = pd.Series(table.column(name).to_pylist(), index=frame.index, dtype=object)
        yield frame


def _json_rows(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
            if len(line) > _MAX_LINE:
                raise TableError(f"`{path}`, line {number}: it is longer than {_MAX_LINE:,} bytes.")
            if line.strip():
                yield number, line


def _json_lines(
    wanted: Collection[str] | None, path: Path, _kinds: Mapping[str, CellKind], rows: int | None
) -> Iterator[pd.DataFrame]:
    """The fields that are wanted, and some others to be named in messages; or all, but not any number of them."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    taken: list[dict[str, Any]] = []
    names: dict[str, None] = {}  # those that one chunk has are columns of all after it
    room = MAX_FEATURES if wanted is None else len(wanted) + _OTHERS

    def frame() -> pd.DataFrame:
        made = pd.DataFrame({name: pd.Series([row.get(name) for row in taken], dtype=object) for name in names})
        made.attrs[_TYPED] = True
        return made

    for number, line in _lines(path):
        try:
            row = dict(_leaves(decode(line), ""))
        except (ValueError, RecursionError) as error:
            raise TableError(f"`{path}`, line {number}: {reason_of(error)}.", "Each line is an object.") from None
        for name in row:
            if name in names or (wanted is not None and name in wanted) or len(names) < room:
                names[name] = None
            elif wanted is None:
                raise TableError(
                    f"`{path}`, line {number}: there are more than {room:,} fields by now.",
                    "Do objects have IDs or other values as names? Leave those out.",
                )
        # Names that are values, as in {"seen": {"4711": 1}}, would be more columns than memory has room for.
        taken.append({name: value for name, value in row.items() if name in names})
        if len(taken) == rows:
            yield frame()
            taken.clear()
    if taken or rows is None:
        yield frame()


def _leaves(values: Mapping[str, Any], around: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{around}{key}.")
        else:
            yield f"{around}{key}", value


def _column(frame: pd.DataFrame, name: str, kind: FieldType, source: str) -> str:
    for column in (kind.key(name), name):
        if column in frame.columns:
            return column
    import difflib

    close = difflib.get_close_matches(kind.key(name), [str(column) for column in frame.columns], n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Its columns: {', '.join(map(str, frame.columns[:30]))}."
    raise TableError(f"{source} has no column `{kind.key(name)}`.", hint)


def _series(frame: pd.DataFrame, column: str, source: str) -> pd.Series:
    if np.count_nonzero(frame.columns == column) > 1:
        raise TableError(f"{source} has two columns `{column}`.", "Give each column a name of its own.")
    return frame[column]


def _check_cells(path: Path) -> int:
    """Refuse what pandas would take for other columns than are meant, or for missing; the rows otherwise."""
    rows = 0
    unpacked = gzip.open if path.name.lower().endswith(".gz") else open
    with unpacked(path, "rt", encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(sys.maxsize)  # pandas has none
        reader = csv.reader(file)
        header = next(reader, [])
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise TableError(f"`{path}` has two columns `{twice[0]}`.", "Give each column a name of its own.")
        for separator, name in ((";", "`;`"), ("\t", "tabs")):
            if len(header) == 1 and separator in header[0]:
                raise TableError(
                    f"`{path}` is separated by {name}.", "Save it with commas, and decimal points in numbers."
                )
        width, line = len(header), reader.line_num
        for cells in reader:
            first, line = line + 1, reader.line_num
            if len(cells) != width and (len(cells) > 1 or "".join(cells).strip()):  # pandas skips blank lines
                raise TableError(
                    f"`{path}`, line {first}: it has {len(cells)} cell{'s' * (len(cells) > 1)}, and the header has "
                    f"{width}.",
                    "Is the file cut off, or a comma in a text without quotes? Correct it.",
                )
            rows += len(cells) > 1 or bool("".join(cells).strip())
    return rows


def _values(series: pd.Series, kind: FieldType, where: str) -> list[Any]:
    """The values of a column as a producer would have them; None where there is none."""
    if kind.type == "string":
        return _texts(series, where)
    if kind.type == "timestamp":
        if not _is_time(series):
            return _python(series)
        if kind.unit == "iso":
            return [None if value is None else _rfc3339(value) for value in _micros(series, where)]
        return [None if value is None else _in_unit(value, kind) for value in _micros(series, where)]
    if kind.type == "float" and pd.api.types.is_float_dtype(series.dtype):
        # msgspec writes NaN as null.
        return list(series.astype(np.float64).tolist()) if isinstance(series.dtype, np.dtype) else _python(series)
    values = _python(series)
    if kind.type == "array":
        return list(map(_array, values))
    if kind.type == "int":
        _check_digits(series, where)
        return list(map(_as_int, values))
    if kind.type == "bool":
        return [BOOLS.get(str(value).lower(), value) for value in values]
    return values


def _array(value: Any) -> Any:
    """The items of an array as Python's own; what is not an array as it is, for the decoder to refuse."""
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, list | tuple):
        return value
    return [{k: _plain(v) for k, v in item.items()} if isinstance(item, dict) else _plain(item) for item in items]


def field_values(fields: Mapping[str, FieldType]) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """What makes of one value of a typed table what a producer would have, as `rows_as_json` does of whole columns.

    By both names that a column may have, behind the field's name in JSON. ValueError is raised for what may be another
    value than was meant.
    """
    return {
        name: (kind.key(field), _field_value(kind))
        for field, kind in fields.items()
        for name in {field, kind.key(field)}
    }


def _field_value(kind: FieldType) -> Callable[[Any], Any]:

    def made(value: Any) -> Any:
        if isinstance(value, dt.datetime):
            if value.tzinfo is None:
                raise ValueError("it is a time without a time zone")
            if kind.type == "string":
                return _time_text(value)
            return value if kind.unit == "iso" else _in_unit((value - _EPOCH) // dt.timedelta(microseconds=1), kind)
        if kind.type in ("int", "string") and isinstance(value, float) and abs(value) >= 2.0**53:
            raise ValueError("it is a float beyond 2^53, and may have lost digits")
        if kind.type == "string":
            if isinstance(value, bytes):
                raise ValueError("it is bytes, and not a text")
            return _text(value)
        if kind.type == "int":
            return _as_int(value)
        return BOOLS.get(str(value).lower(), value) if kind.type == "bool" else value

    return made


def _as_int(value: Any) -> Any:
    """A float or decimal number that is whole; anything else as it is."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return whole if isinstance(value, decimal.Decimal) and isinstance(whole := _real(value), int) else value


def _in_unit(micros: int, kind: FieldType) -> float:
    unit = 1_000 if kind.unit == "ms" else 1_000_000
    return micros // unit if micros % unit == 0 else micros / unit


def _python(series: pd.Series) -> list[Any]:
    """Plain Python values; None for what is missing."""
    return list(map(_plain, series.astype(object).where(series.notna(), None).tolist()))


def _plain(value: Any) -> Any:
    """Python's own value for one of numpy; a time of pandas with its nanoseconds, as text."""
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) and not value.is_finite():
        return None  # as an infinite float is
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value


def _texts(series: pd.Series, where: str) -> list[Any]:
    """Texts, and what is not one and has no spelling of its own, for the decoder to refuse."""
    if _is_time(series):
        return to_text()(np.array([math.nan if v is None else v / 1e6 for v in _micros(series, where)], np.float64))
    _check_digits(series, where)
    values = _python(series)
    if any(isinstance(value, bytes) for value in values):
        raise TableError(f"{where} holds bytes, and not texts.", 'Decode it: `column.str.decode("utf-8")`.')
    return list(map(_text, values))


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, dt.datetime):
        return _time_text(value)
    # Of true and false, of lists and bytes, Python's spelling is not that of a producer.
    return value if value is None or isinstance(value, str | bool | list | dict | bytes) else str(value)


def _time_text(value: Any) -> Any:
    """A time in the spelling that keys have."""
    try:
        parsed = msgspec.convert(value, dt.datetime)  # which rounds as the decoder of events does
    except msgspec.ValidationError:
        try:
            parsed = dt.datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return _text(value)
    return str(value) if parsed.tzinfo is None else to_text()(np.array([parsed.timestamp()]))[0]


def _whole(value: Any) -> int | None:
    number = _real(value)
    if number is None or (isinstance(number, float) and not number.is_integer()):
        return None
    whole = int(number)
    return whole if -(2**63) <= whole < 2**63 else None  # as the stream's keys


def _float(value: Any) -> float | None:
    number = _real(value)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def _real(value: Any) -> float | None:
    """A number as Python's own, whole or not; None if the value is not one."""
    if isinstance(value, str):
        try:
            value = READERS["number"](value)
        except ValueError:
            return None
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value.adjusted() <= 40 and value == int(value) else float(value)
    return float(value) if isinstance(value, numbers.Real) else None


def _check_keys(values: Sequence[Any], keys: Sequence[Any], where: str) -> None:
    """Refuse values of which no key can be made."""
    for number, (value, key) in enumerate(zip(values, keys, strict=True), 1):
        if key is None and value not in (None, ""):
            raise TableError(
                f"{where}, row {number}: `{str(value)[:50]}` cannot be a key of the lookup.",
                "The key is a number, and a whole one if it has only one part. Rows count from 1, without the header. "
                "Correct the row; `gridscore features --skip-bad` leaves such rows out.",
            )


def _check_digits(series: pd.Series, where: str) -> None:
    """Refuse floats for whole numbers, and their texts, where they may have lost digits already."""
    if not pd.api.types.is_float_dtype(series.dtype):
        return
    bits = _EXACT_BITS.get(series.dtype.itemsize, 53)
    if (series.abs() >= 2.0**bits).any():
        raise TableError(
            f"{where} holds whole numbers beyond 2^{bits} as floats, which have lost their last digits.",
            "Read it with all of them: as `Int64` of pandas, or give the file itself.",
        )


def _is_time(series: pd.Series) -> bool:
    if isinstance(series.dtype, pd.ArrowDtype):  # a date is of the kind M there
        return bool(series.dtype.type is pd.Timestamp)
    return bool(series.dtype.kind == "M")


def _micros(series: pd.Series, where: str) -> list[int | None]:
    """Microseconds since 1970; nanoseconds are rounded as the decoder of events rounds them, half of one up."""
    if isinstance(series.dtype, pd.ArrowDtype):
        series = series.array.__arrow_array__().to_pandas()
    if not isinstance(series.dtype, pd.DatetimeTZDtype):
        raise TableError(
            f"{where} has times without a time zone.",
            'Say which it is before saving it: `column.dt.tz_localize("UTC")`.',
        )
    times = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    scale = {"s": 1_000_000, "ms": 1_000, "us": 1}.get(np.datetime_data(times.dtype)[0])
    missing, values = np.isnat(times).tolist(), times.astype(np.int64).tolist()
    return [
        None if no else (value + 500) // 1_000 if scale is None else value * scale
        for no, value in zip(missing, values, strict=True)
    ]


def _rfc3339(micros: int) -> str:
    try:
        return (_EPOCH + dt.timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{micros} microseconds since 1970"  # the decoder refuses it


def take_columns(frame: pd.DataFrame, names: Sequence[str], source: str) -> pd.DataFrame:
    """Columns of a table as they are. Raises TableError if one is missing."""
    for name in names:
        if name not in frame.columns:
            raise TableError(
                f"{source} has no column `{name}` to keep.", f"Its columns: {', '.join(map(str, frame.columns[:30]))}."
            )
        _series(frame, name, source)
    return frame[list(names)]
