"""All log files of a source: which there are, and which are new, renamed, truncated, packed or copies."""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from gridscore.sources.logfile.formats import LogFormat, format_of, has_header, is_open, without_bom
from gridscore.sources.logfile.positions import HEAD_BYTES, LAST_BYTES, FilePosition, identity_of
from gridscore.sources.logfile.tail import PACKED_ERRORS, Tail, open_log

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from gridscore.sources.logfile.settings import LogfileSourceSettings

_log = logging.getLogger(__name__)

_Inode = tuple[int, int]

_FIRST_LINE = 1024


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    stat: os.stat_result

    @property
    def inode(self) -> _Inode:
        return self.stat.st_dev, self.stat.st_ino


class LogFiles:
    """The files of a source, each with its position.

    `positions`: how far they have been read, by identity. `problems`: files that cannot be read, and why. The source
    takes them.
    """

    def __init__(self, settings: LogfileSourceSettings, positions: dict[str, FilePosition]) -> None:
        self._settings = settings
        self._positions = dict(positions)
        self._form = format_of(settings)
        self._tails: dict[_Inode, Tail] = {}
        self._waiting: dict[_Inode, int] = {}  # files that could not be read, with their size then
        self._followed = {(position.device, position.inode) for position in positions.values()}
        self._first = True
        self.problems: list[tuple[str, str]] = []
        self._at_end = settings.start == "latest" and not positions

    def scan(self) -> list[Tail]:
        """Find the files; returns those to read, oldest first. Raises OSError if a folder cannot be read."""
        found = {each.inode: each for each in self._list()}
        for inode, tail in list(self._tails.items()):
            here = found.get(inode)
            if here is None:
                tail.gone = True  # renamed out of sight, or removed: its rest is still read
                continue
            tail.gone, tail.path = False, here.path
            if tail.broken:
                if self._waiting.get(inode) != here.stat.st_size:
                    self._drop(tail)
            elif not tail.is_same(here.stat):
                _log.info("%s was truncated or replaced", tail.path, extra={"action": "log_truncated"})
                self._drop(tail)
        for inode, each in sorted(found.items(), key=lambda item: (item[1].stat.st_mtime_ns, item[1].path)):
            if inode not in self._tails and each.stat.st_size and self._waiting.get(inode) != each.stat.st_size:
                self._open(each)
        self._first = self._at_end = False
        return [tail for tail in self._tails.values() if not tail.finished and not tail.broken]

    def drop(self, tail: Tail) -> None:
        """Close a file that is gone and was read to its end, or is finished; its position is kept."""
        self._drop(tail)
        if tail.finished:
            self._wait(tail)

    def break_off(self, tail: Tail) -> None:
        """Stop reading a packed file until its size has changed."""
        self._wait(tail)

    def _wait(self, tail: Tail) -> None:
        try:
            self._waiting[tail.inode] = tail.path.stat().st_size
        except OSError:
            tail.gone = True

    @property
    def positions(self) -> dict[str, FilePosition]:
        """Where every file is now, by identity."""
        live = {tail.identity: tail.position for tail in self._tails.values()}
        return {**{name: position for name, position in self._positions.items() if name not in live}, **live}

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes on disk that have been read, and that there are."""
        tails = dict(self._tails)  # another thread may be reading
        done = total = sum(size for inode, size in dict(self._waiting).items() if inode not in tails)
        for read, size in [tail.progress for tail in tails.values()]:
            done, total = done + read, total + max(read, size)
        return done, total

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()

    # ------------------------------------------------------------------ finding

    def _list(self) -> Iterator[_Found]:
        seen: set[_Inode] = set()
        for pattern in self._settings.path:
            # `Path.glob` takes no absolute pattern, and no pattern that is a plain path.
            for name in glob.iglob(str(Path(pattern).expanduser()), recursive=True):  # noqa: PTH207
                if (found := _found(Path(name))) is not None and found.inode not in seen:
                    seen.add(found.inode)
                    yield found
        if self._first:
            yield from self._renamed(seen)

    def _renamed(self, seen: set[_Inode]) -> Iterator[_Found]:
        """Unfinished files that were renamed out of sight while nobody looked."""
        missing = {
            (position.device, position.inode): position
            for position in self._positions.values()
            if not position.finished and (position.device, position.inode) not in seen
        }
        for folder in {Path(position.path).parent for position in missing.values()}:
            try:
                entries = list(folder.iterdir())
            except OSError:
                continue
            for path in entries:
                found = _found(path)
                if found is None or found.inode in seen or found.inode not in missing:
                    continue
                position = missing[found.inode]
                if found.stat.st_size > position.offset and _is_of(position, path):
                    seen.add(found.inode)
                    yield found

    # ------------------------------------------------------------------ recognizing

    def _open(self, found: _Found) -> None:
        try:
            stream, packed = open_log(found.path)
        except OSError as error:
            _log.warning("%s cannot be read: %s", found.path, error, extra={"action": "log_unreadable"})
            self._waiting[found.inode] = found.stat.st_size
            return
        kept = False
        try:
            kept = self._follow(found, stream, packed=packed)
        except PACKED_ERRORS as error:
            _log.info("%s cannot be unpacked, or not yet: %s", found.path, error, extra={"action": "log_packed"})
            if self._settings.until_end:
                self.problems.append((str(found.path), f"The file cannot be unpacked: {error}"))
            self._waiting[found.inode] = found.stat.st_size
        except ValueError as error:
            self._waiting[found.inode] = found.stat.st_size
            self.problems.append((f"{found.path}:1", f"The file has no header: {error}"))
        finally:
            if not kept:
                stream.close()

    def _follow(self, found: _Found, stream: BinaryIO, *, packed: bool) -> bool:
        """Find a file's position and follow it from there; False if it is left alone."""
        first = _first_line(stream, whole=self._settings.until_end or packed)
        if first is None:
            return False
        position = self._recognized(found, stream, packed=packed)
        if position is None:
            return False
        if position.finished:
            self._waiting[found.inode] = found.stat.st_size
            return False
        form = self._form_of(stream)
        if form is None:
            return False
        if not position.offset and self._at_end:
            position.offset, position.line = _end(stream)
        self._waiting.pop(found.inode, None)
        tail = Tail(
            found.path,
            stream,
            position,
            form,
            packed=packed,
            header=has_header(self._settings),
            delimiter=self._settings.delimiter,
            max_event=self._settings.max_event,
        )
        self._tails[found.inode] = tail
        self._followed.add(found.inode)
        self._positions[position.identity] = tail.position
        return True

    def _recognized(self, found: _Found, stream: BinaryIO, *, packed: bool) -> FilePosition | None:
        """The position of a file: its own, or that of the file it is a copy of, or a new one.

        None if it is a copy of a file that we follow.
        """
        device, inode = found.inode
        live = {tail.identity: tail for tail in self._tails.values()}
        stream.seek(0)
        head = stream.read(HEAD_BYTES)
        own = [position for position in self._positions.values() if (position.device, position.inode) == found.inode]
        own.sort(key=lambda position: position.generation)
        if own and own[-1].identity not in live and own[-1].is_of(stream, head):
            return own[-1]
        for position in list(self._positions.values()):
            tail = live.get(position.identity)
            if tail is not None:
                # A file that we have followed is not a copy, even if it begins as it did before it was truncated.
                if found.inode not in self._followed and _is_copy(stream, head, found, tail, packed=packed):
                    return None
            elif position.is_of(stream, head):
                _log.info("%s goes on where %s was", found.path, position.path, extra={"action": "log_recognized"})
                here = {"device": device, "inode": inode, "path": str(found.path)}
                return msgspec.structs.replace(position, **here, generation=0, finished=False)
            elif not packed and found.stat.st_size < position.offset and position.begins(head):
                return None  # an older copy of a file that was read
        generation = own[-1].generation + 1 if own else 0
        first = head.partition(b"\n")[0]
        # A copy may have taken over the identity of this inode: its new content must not get the same keys.
        while (identity := identity_of(device, inode, generation, first)) in self._positions:
            generation += 1
        return FilePosition(identity=identity, path=str(found.path), device=device, inode=inode, generation=generation)

    def _form_of(self, stream: BinaryIO) -> LogFormat | None:
        """The format of a file; None if its header is not whole yet.

        Raises ValueError if its first line is not a header.
        """
        header = b""
        if has_header(self._settings):
            limit = self._settings.max_event
            stream.seek(0)
            data = stream.read(limit + 1)
            end = data.find(b"\n")
            while end >= 0 and is_open(data[:end], self._settings.delimiter):
                end = data.find(b"\n", end + 1)
            if end < 0:
                if len(data) > limit:
                    raise ValueError(f"its first record is longer than {limit:,} bytes")
                if not self._settings.until_end:
                    return None
                end = len(data)
            header = without_bom(data[:end].removesuffix(b"\r"))
        return self._form(header)

    def _drop(self, tail: Tail) -> None:
        self._positions[tail.identity] = tail.position
        tail.close()
        self._tails.pop(tail.inode, None)


def _is_copy(stream: BinaryIO, head: bytes, found: _Found, tail: Tail, *, packed: bool) -> bool:
    """Whether all of a file is in one that we follow, too."""
    if not (tail.head.startswith(head) or head.startswith(tail.head)) or tail.now(0, len(head)) != head:
        return False
    if packed or tail.packed:
        stream.seek(len(head))
        return len(head) == HEAD_BYTES or not stream.read(1)
    start = max(0, found.stat.st_size - LAST_BYTES)
    stream.seek(start)
    last = stream.read(LAST_BYTES)
    return tail.now(start, len(last)) == last


def _found(path: Path) -> _Found | None:
    try:
        stat = path.stat()
    except OSError:  # it is gone by now, or a broken link
        return None
    return _Found(path, stat) if path.is_file() else None


def _is_of(position: FilePosition, path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return position.is_of(stream, stream.read(HEAD_BYTES))
    except OSError:
        return False


def _first_line(stream: BinaryIO, *, whole: bool) -> bytes | None:
    """The first line, or its beginning if it is long; None if it is not whole yet."""
    stream.seek(0)
    data = stream.read(_FIRST_LINE)
    if not data:
        return None
    line, end, _ = data.partition(b"\n")
    return line if end or len(data) == _FIRST_LINE or whole else None


def _end(stream: BinaryIO) -> tuple[int, int]:
    """Where the last whole line of a file ends, and how many lines there are."""
    stream.seek(0)
    offset = end = lines = 0
    while data := stream.read(1 << 20):
        count = data.count(b"\n")
        if count:
            end = offset + data.rfind(b"\n") + 1
        lines += count
        offset += len(data)
    return end, lines
