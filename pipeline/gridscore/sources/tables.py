"""Files with tables, row by row: CSV, Parquet and JSON lines become keys and JSON texts, however large the file is.

A row that cannot be read is named by its number: its line in the file, or its row in Parquet.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from gridscore.errors import TableError
from gridscore.features.cells import JSON_LINES, READERS
from gridscore.sources.base import MAX_KEY
from gridscore.texts import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from gridscore.features.cells import CellKind

MAX_ROW = 1 << 20  # the most bytes of a row
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,15})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_WORDS = {"": None, "true": True, "false": False, "True": True, "False": False}
_PARQUET_ROWS = 2_000

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder().decode


class Row(NamedTuple):
    """One row."""

    number: int  # its line, or its row in a Parquet file, from 1
    key: str | int
    text: bytes  # the row as a JSON object


class BadRow(NamedTuple):
    """A row that cannot be read: where it is, and why."""

    number: int
    error: str


class RowMaker:
    """Makes entries of rows."""

    def __init__(
        self,
        what: str,  # the table or query, for people
        key: Sequence[str],  # columns of the key; several are joined
        *,
        separator: str = "|",  # what joins them
        required: Collection[str] = (),  # columns that must be there, besides those of the key
        max_event: int = MAX_ROW,  # the most bytes of a row
        # By column, makes a part of the key of its value; None if that cannot be one.
        parts: Mapping[str, Callable[[Any], Any]] | None = None,
        # By column, its name in the entry, unless another column has that; and a function that converts its value, or
        # raises a ValueError.
        values: Mapping[str, tuple[str, Callable[[Any], Any]]] | None = None,
    ) -> None:
        self._what = what
        self._key = tuple(key)
        self._separator = separator
        self._required = tuple(required)
        self._max_row = max_event
        self._parts = dict(parts or {})
        self._values = dict(values or {})

    def row(
        self, number: int, value: dict[str, Any], text: bytes | None = None, key: str | int | None = None
    ) -> Row | BadRow:
        """A row. `value`: its columns; `text`: their JSON, if they are to stay as they are; `key`: if it is known."""
        made_key = self._key_of(number, value) if key is None or self._parts else key
        if isinstance(made_key, BadRow):
            return made_key
        if text is None:
            for name, (called, made) in self._values.items():
                if value.get(name) is not None:
                    try:
                        value[name] = made(value[name])
                    except ValueError as error:
                        return BadRow(number, f"`{name}`: {error}")
                if name in value and called not in value:
                    value[called] = value.pop(name)
            try:
                text = _encode(value)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                return BadRow(number, f"it cannot be written as JSON: {error}")
        if len(text) > self._max_row:
            return self._too_long(number)
        return Row(number, made_key, text)

    def _key_of(self, number: int, value: dict[str, Any]) -> str | int | BadRow:
        parts = []
        for name in self._key:
            part = value.get(name)
            if part is None or part == "":
                return BadRow(number, f"it has no `{name}`, which belongs to the key")
            if name in self._parts and (part := self._parts[name](part)) is None:
                return BadRow(number, f"its `{name}` cannot be a key of the lookup")
            if isinstance(part, bool | float | list | dict | bytes):
                return BadRow(number, f"its `{name}` is neither text nor a whole number, and cannot be a key")
            parts.append(part if isinstance(part, int | str) else str(part))
        key = parts[0] if len(parts) == 1 else self._separator.join(map(str, parts))
        if isinstance(key, str) and len(key) > MAX_KEY:
            return BadRow(number, f"its key has {len(key):,} characters; the limit is {MAX_KEY:,}")
        if isinstance(key, int) and not -(1 << 63) <= key < 1 << 63:
            return BadRow(number, f"its key {key} has more than 64 bits")
        return key

    def _too_long(self, number: int) -> BadRow:
        return BadRow(number, f"it is longer than {self._max_row:,} bytes")

    def look_for_columns(self, columns: Sequence[str]) -> None:
        """Raise a `TableError` if a column is missing."""
        for name in (*self._key, *self._required):
            if name not in columns:
                meant = nearest(name, columns)
                raise TableError(
                    f"{self._what} has no column `{name}`{', which belongs to the key' * (name in self._key)}.",
                    f"Did you mean `{meant}`?" if meant else f"Its columns: {', '.join(columns[:30])}.",
                )


class TableFile(RowMaker):
    """A file of rows.

    Args:
        path: A file named .csv, .parquet, .jsonl, .ndjson, or, except Parquet, one of them with .gz.
        key: Columns of the key; several are joined.
        kinds: For CSV, the types of columns. By default, keys are strings, and the types of others are guessed.
        how: See :class:`RowMaker`.

    Raises:
        TableError: There is no such file, or its name does not say what it is.
    """

    def __init__(
        self, path: Path, key: Sequence[str], *, kinds: Mapping[str, CellKind] | None = None, **how: Any
    ) -> None:
        super().__init__(f"`{path}`", key, **how)
        self.path = path
        self._kinds = dict(kinds or {})
        self._read = self._reader_of(path)
        self.size = path.stat().st_size  # how much there is to read: bytes, or rows of a Parquet file
        self.done = 0  # how much of that was read

    def rows(self) -> Iterator[Row | BadRow]:
        """Every row, in order.

        Raises TableError if the file is not what its name says, or lacks a column of the key.
        """
        try:
            yield from self._read()
        except (OSError, EOFError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise TableError(
                f"`{self.path}` cannot be read: {reason}.", "Is it what its name says? Save it again, in UTF-8."
            ) from None

    def _reader_of(self, path: Path) -> Callable[[], Iterator[Row | BadRow]]:
        if path.is_dir() or not path.exists():
            what = f"`{path}` is a folder, not a table." if path.is_dir() else f"There is no file `{path}`."
            raise TableError(what, "Give the path of a CSV, Parquet or JSON lines file.")
        name = path.name.lower()
        if name.endswith(".parquet"):
            return self._parquet
        if name.endswith((".csv", ".csv.gz")):
            return self._csv
        if name.endswith(JSON_LINES):
            return self._json_lines
        raise TableError(
            f"`{path}` is neither CSV nor Parquet nor JSON lines.", "Name it .csv, .jsonl, .ndjson or .parquet."
        )

    # ------------------------------------------------------------------ formats

    def _json_lines(self) -> Iterator[Row | BadRow]:
        with self._bytes() as file:
            number = 0
            while line := file.readline(self._max_row + 2):
                number += 1
                if len(line) > self._max_row and not line.endswith(b"\n"):
                    while (rest := file.readline(1 << 16)) and not rest.endswith(b"\n"):
                        pass
                    yield self._too_long(number)
                    continue
                text = line.strip().removeprefix(b"\xef\xbb\xbf")
                if not text:
                    continue
                try:
                    value = _decode(text)
                except (msgspec.DecodeError, RecursionError) as error:
                    yield BadRow(number, f"it is not JSON: {error}")
                    continue
                if not isinstance(value, dict):
                    yield BadRow(number, "it is JSON, but not an object")
                    continue
                yield self.row(number, value, text)

    def _csv(self) -> Iterator[Row | BadRow]:
        with self._bytes() as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            reader = csv.reader(text, strict=True)
            csv.field_size_limit(max(csv.field_size_limit(), self._max_row))
            header = next(reader, None)
            if not header:
                raise TableError(f"`{self.path}` is empty.", "Its first line must be the names of its columns.")
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise TableError(f"`{self.path}` has two columns `{twice}`.", "Give each column a name of its own.")
            self.look_for_columns(header)
            kinds: dict[str, CellKind] = {**dict.fromkeys(self._key, "string"), **self._kinds}
            guess = [READERS[kinds[name]] if name in kinds else _guessed for name in header]
            line = reader.line_num
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:  # nothing after it can be read
                    raise TableError(f"`{self.path}`, line {reader.line_num}: {error}.", "Correct the file.") from None
                if cells is None:
                    break
                first, line = line + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield BadRow(first, f"it has {len(cells)} cells, and the header has {len(header)}")
                    continue
                try:
                    value = {name: make(cell) for name, make, cell in zip(header, guess, cells, strict=True)}
                except ValueError as error:
                    yield BadRow(first, str(error))
                    continue
                yield self.row(first, value)

    def _parquet(self) -> Iterator[Row | BadRow]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self.path) as file:
            self.size, self.done = file.metadata.num_rows, 0
            self.look_for_columns(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for value in _in_micros(batch).to_pylist():
                    number += 1
                    yield self.row(number, value)
                self.done = number

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        with self.path.open("rb") as raw:
            counted = io.BufferedReader(_Counting(raw, self))
            if self.path.name.lower().endswith(".gz"):
                with gzip.open(counted) as unpacked:
                    yield cast("IO[bytes]", unpacked)
            else:
                yield counted


class _Counting(io.RawIOBase):
    """A file that counts what was read."""

    def __init__(self, file: IO[bytes], table: TableFile) -> None:
        self._file, self._table = file, table

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        self._table.done += len(part)
        return len(part)


def _in_micros(batch: Any) -> Any:
    """A batch of Parquet, with nanoseconds rounded to microseconds as in events, halves up."""
    import pyarrow as pa

    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            nanos = batch[index].cast(pa.int64()).to_pylist()
            values = [None if value is None else (value + 500) // 1_000 for value in nanos]
            batch = batch.set_column(index, field.name, pa.array(values, pa.timestamp("us", field.type.tz)))
    return batch


def _guessed(cell: str) -> Any:
    if cell in _WORDS:
        return _WORDS[cell]
    if _INT.fullmatch(cell):
        return int(cell)
    return READERS["float"](cell) if _FLOAT.fullmatch(cell) else cell
