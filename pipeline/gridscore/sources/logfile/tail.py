"""One log file, read as it grows, record by record."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import msgspec

from gridscore.sources.logfile.formats import is_open, without_bom
from gridscore.sources.logfile.positions import HEAD_BYTES, Fingerprint, digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gridscore.sources.logfile.formats import LogFormat
    from gridscore.sources.logfile.positions import FilePosition

CHUNK = 1 << 18
KEPT_OF_LONG = 4_096  # bytes of a too long line that go to the dead letters
_GZIP = b"\x1f\x8b"
PACKED_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


class Record(NamedTuple):
    """A line, or several of one CSV record."""

    offset: int  # of its first byte in the file, unpacked
    line: int  # number of its first line, from 1
    raw: bytes  # its bytes without the line end; the first ones if it is too long
    too_long: bool = False


def open_log(path: Path) -> tuple[BinaryIO, bool]:
    """An opened file, and whether it is packed. Raises OSError if it cannot be opened."""
    raw = path.open("rb", buffering=0)
    packed = raw.read(2) == _GZIP
    if packed:
        raw.close()
        return cast("BinaryIO", gzip.open(path, "rb")), True
    raw.seek(0)
    return raw, False


class Tail:
    """Reads one file from a position on."""

    def __init__(
        self,
        path: Path,  # where it is now; the source changes it when the file is renamed
        stream: BinaryIO,
        position: FilePosition,  # where to go on
        form: LogFormat,  # the format of its records
        *,
        packed: bool,
        header: bool,  # whether its first record is a header
        delimiter: str,
        max_event: int,  # most bytes of a record
    ) -> None:
        self.path = path
        self.packed = packed
        self.form = form
        self._position = position
        self._stream = stream
        self._header = header
        self._delimiter = delimiter
        self._max_line = max_event
        self._offset, self._line = position.offset, position.line
        self._seen = Fingerprint.of(stream, position.offset)
        # In the middle of a line, skip its rest: it was too long, or taken unfinished.
        self._skipping = position.offset > 0 and not self._seen.last.endswith(b"\n")
        self._rest = b""
        self._finished = position.finished
        self.broken = ""  # why it cannot be read any further; empty if it can
        self.gone = False  # whether it is out of sight
        stream.seek(0)
        self.head = stream.read(HEAD_BYTES)  # its first `HEAD_BYTES` when it was opened
        stream.seek(position.offset)

    @property
    def identity(self) -> str:
        """Of the file."""
        return self._position.identity

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode of the file."""
        return self._position.device, self._position.inode

    @property
    def offset(self) -> int:
        """Bytes that have been taken, unpacked."""
        return self._offset

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes on disk that have been read, and that there are."""
        try:
            number = self._stream.fileno()
            size = os.fstat(number).st_size
            return (os.lseek(number, 0, os.SEEK_CUR) if self.packed else self._offset), size
        except (AttributeError, OSError, ValueError):  # closed meanwhile, by a thread
            return 0, 0

    @property
    def finished(self) -> bool:
        """Whether it is packed and was read to its end."""
        return self._finished

    @property
    def position(self) -> FilePosition:
        """How far it has been taken."""
        return msgspec.structs.replace(
            self._position,
            path=str(self.path),
            offset=self._offset,
            line=self._line,
            head=digest(self._seen.head),
            last=digest(self._seen.last),
            finished=self._finished,
            at=0.0,
        )

    def is_same(self, stat: os.stat_result) -> bool:
        """Whether the file still begins with what has been read of it, so was not truncated or replaced."""
        if self.packed:
            return True
        if stat.st_size < self._offset + len(self._rest):
            return False
        seen = self._seen
        if self.now(0, len(seen.head)) != seen.head:
            return False
        return self._offset <= HEAD_BYTES or self.now(self._offset - len(seen.last), len(seen.last)) == seen.last

    def now(self, start: int, size: int) -> bytes:
        """A piece of the file as it is now, even if its name is gone; of a packed one only of its head.

        Raises OSError if the file cannot be read.
        """
        if self.packed:
            return self.head[start : start + size]
        here = self._stream.tell()
        self._stream.seek(start)
        piece = self._stream.read(size)
        self._stream.seek(here)
        return piece

    def read(self, size: int = CHUNK, *, to_end: bool = False) -> list[Record]:
        """The next records; empty if there is no whole one now.

        `size`: about how many bytes to read at once; `to_end`: also take a last line without a line end. Raises OSError
        if the file cannot be read.
        """
        while True:
            try:
                chunk = self._stream.read(size)
            except PACKED_ERRORS as error:
                # It is just being packed, or broken: the source reads it again when it has changed.
                self.broken = str(error)
                return []
            if not chunk and self.packed:
                to_end = self._finished = True
            records = self._cut(self._rest + chunk, to_end=to_end and not chunk)
            if records or not chunk:
                return records

    def close(self) -> None:
        self._stream.close()

    def _cut(self, data: bytes, *, to_end: bool) -> list[Record]:
        """The records in `data`, which begins at the offset; keeps the rest."""
        start = 0
        if self._skipping:
            start = data.find(b"\n") + 1
            if not start:
                self._take(data)
                self._rest = b""
                return []
            self._skipping = False
            self._line += 1
        end = len(data) if to_end else data.rfind(b"\n") + 1
        too_long = len(data) - end > self._max_line
        pieces = data[start:end].split(b"\n")
        if not pieces[-1]:
            pieces.pop()
        records: list[Record] = []
        offset, index = self._offset + start, 0
        while index < len(pieces):
            count = self._lines_of_record(pieces, index, flush=to_end or too_long) if self.form.quoted else 1
            if not count:
                end = offset - self._offset
                break
            raw = pieces[index] if count == 1 else b"\n".join(pieces[index : index + count])
            self._add(records, offset, raw)
            offset += len(raw) + 1
            self._line += count
            index += count
        if too_long:
            records.append(Record(self._offset + end, self._line + 1, data[end : end + KEPT_OF_LONG], too_long=True))
            self._skipping, end = True, len(data)
        self._take(data[:end])
        self._rest = data[end:]
        return records

    def _add(self, records: list[Record], offset: int, raw: bytes) -> None:
        raw = raw.removesuffix(b"\r")
        if offset == 0:
            raw = without_bom(raw)
            if self._header:
                return
        if len(raw) > self._max_line:
            records.append(Record(offset, self._line + 1, raw[:KEPT_OF_LONG], too_long=True))
        elif raw and not raw.isspace():
            records.append(Record(offset, self._line + 1, raw))

    def _lines_of_record(self, pieces: list[bytes], index: int, *, flush: bool) -> int:
        """Lines of the record that begins there; 0 if its end has not come yet."""
        first = pieces[index]
        if b'"' not in first or not is_open(first, self._delimiter):
            return 1
        # Line by line, once: starting over with each line would take quadratic time.
        size = 0

        def lines() -> Iterator[str]:
            nonlocal size
            for number in range(index, len(pieces)):
                size += len(pieces[number]) + 1
                if size > self._max_line + 1:
                    return
                yield pieces[number].decode("utf-8", "replace") + "\n"

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        try:
            closed = next(reader, None) is not None
        except csv.Error as error:
            closed = "unexpected end" not in str(error)
        if closed:
            return reader.line_num
        # A quote that never ends: only this line is bad.
        return 1 if flush or size > self._max_line + 1 else 0

    def _take(self, data: bytes) -> None:
        self._seen.add(data)
        self._offset += len(data)
