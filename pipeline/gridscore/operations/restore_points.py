"""Restore points in a folder: each is complete or not there, and every file of it is known by its SHA-256.

    backup.json        which backup this is
    points/0000000042  what a point consists of; its first line is the SHA-256 of the rest
    data/SHA-256       entries of a map, or a part of a model: written once, however many points have it

A point is renamed into place when all that it names is on the disk: a crash leaves the points before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
from msgspec import Meta

from gridscore.errors import GridscoreError, UsageError
from gridscore.grid.records import Count, Figure, Word  # noqa: TC001 -- msgspec reads the annotations
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.version import Sha256  # noqa: TC001 -- msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

KEPT, KEPT_HOURS = 10, 24  # the newest points that are kept; and for how many hours the last one of each
MOST_BYTES = 1 << 30  # of the entries of one map
_MOST_POINT = 64 << 20
_SLACK = 1_000
_EARLIER = "An earlier point may do: --point."
_FORMAT = 1


class BackupError(GridscoreError):
    """A folder of restore points cannot be used, or a point in it."""


class Part(msgspec.Struct, frozen=True):
    """A file with entries of a map."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=2 * MOST_BYTES)]
    entries: Count


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A restore point."""

    number: Annotated[int, Meta(ge=1, lt=10**10)]
    at: Figure  # when the cluster was read, in seconds since 1970
    cluster: Word  # identity of the cluster
    # Records of the sources' positions, by key: what came before them has its results.
    positions: dict[Word, dict[str, Any]] = {}
    positions_at: Figure = 0.0  # when the sources were there; 0 if there is no such moment yet
    held: Word = ""  # why the sources' positions are older than the rest; empty if nothing held them up
    feeds: dict[Word, tuple[Word, ...]] = {}  # the maps that each source puts into, as far as that is known
    maps: dict[Word, tuple[Part, ...]] = {}  # files by map; a later one of a map prevails
    format: Annotated[int, Meta(ge=_FORMAT, le=_FORMAT)] = _FORMAT


class _Identity(msgspec.Struct, frozen=True):
    backup: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


_read_entries = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode


class Folder:
    """A folder with restore points. Only one process at a time may write into it.

    What is asked for and is missing or damaged is a `BackupError`.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.id = identity
        self._lock: int | None = None
        self._points: dict[int, tuple[float, frozenset[str]]] = {}  # when each was made, and the data that it names

    @classmethod
    def open(cls, path: Path) -> Self:
        """A folder that has points, for reading. Raises UsageError if it has none."""
        try:
            identity = msgspec.json.decode((path / "backup.json").read_bytes()[:1_000], type=_Identity)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"`{path}` is not a folder of `gridscore backup`: {error}", "Name the one that --to named."
            ) from None
        return cls(path, identity.backup)

    @classmethod
    def write(cls, path: Path) -> Self:
        """A folder to write to, which is made if it is not there. What a crash has left in it is removed.

        Raises UsageError if something else is there, or another process writes to it.
        """
        path.mkdir(0o700, parents=True, exist_ok=True)
        others = sorted({each.name for each in path.iterdir()} - {"lock", ".backup.json.new"})
        if others and "backup.json" not in others:
            raise UsageError(
                f"`{path}` has other files, `{others[0]}` for one, and no backup.", "Name a new or empty folder."
            )
        found = cls(path, "")
        found._become_writer()
        try:
            found._begin()
        except BaseException:
            found.close()
            raise
        return found

    def _become_writer(self) -> None:
        with contextlib.suppress(ImportError):  # on Windows
            import fcntl

            self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.close()
                raise UsageError(
                    f"Another process writes to `{self.path}`.", "Name another folder, or end it."
                ) from None

    def _begin(self) -> None:
        """Read what is there, and remove what a crash has left."""
        if not (self.path / "backup.json").exists():
            _write(self.path / "backup.json", msgspec.json.encode(_Identity(uuid.uuid4().hex)))
        for name in ("points", "data"):
            (self.path / name).mkdir(0o700, exist_ok=True)
            for each in (self.path / name).glob(".*.new"):
                each.unlink()
        self.id = Folder.open(self.path).id
        self._points = {number: self._names(self.read(number)) for number in self.numbers()}
        wanted = frozenset[str]().union(*(names for _, names in self._points.values()))
        for each in (self.path / "data").iterdir():
            if _is_digest(each.name) and each.name not in wanted:
                each.unlink()

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def numbers(self) -> list[int]:
        """The points, the newest last."""
        try:
            names = [each.name for each in (self.path / "points").iterdir()]
        except FileNotFoundError:  # it has just begun
            return []
        except OSError as error:
            raise BackupError(f"`{self.path}` cannot be read: {error.strerror}.") from None
        return sorted(int(name) for name in names if len(name) == 10 and name.isascii() and name.isdecimal())

    def read(self, number: int | None = None) -> Point:
        """A point, by default the newest."""
        numbers = self.numbers()
        if not numbers or number not in (None, *numbers):
            what = f"no restore point {number}" if numbers else "no restore point yet"
            raise BackupError(f"`{self.path}` has {what}.", f"It has: {', '.join(map(str, numbers)) or 'none'}.")
        number = numbers[-1] if number is None else number
        why = f"it is not point {number}"
        try:
            path = self._point_path(number)
            digest, _, text = (path.read_bytes() if path.stat().st_size <= _MOST_POINT else b"").partition(b"\n")
            if digest == _sha256(text).encode():
                point = msgspec.json.decode(text, type=Point)
                if point.number == number:
                    return point
            else:
                why = "its SHA-256 is another one"
        except (OSError, ValueError, RecursionError) as error:
            why = str(error)
        others = ", ".join(str(each) for each in numbers if each != number) or "none"
        raise BackupError(
            f"The restore point {number} in `{self.path}` is damaged: {why}.", f"Others: {others} (--point)."
        )

    def entries(self, point: Point, name: str) -> dict[bytes, bytes]:
        """Serialized keys and texts of a map."""
        return {key: text for key, text in self._merged(point.maps.get(name, ())).items() if text is not None}

    def data(self, sha256: str, most: int = 2 * MOST_BYTES) -> bytes:
        path = self.path / "data" / _checked(sha256)
        try:
            found = path.read_bytes() if path.stat().st_size <= most else b""
        except OSError as error:
            raise BackupError(f"`{path}` cannot be read: {error.strerror}.", _EARLIER) from None
        if _sha256(found) != sha256:
            raise BackupError(f"`{path}` is not what was written: its SHA-256 differs.", _EARLIER)
        return found

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their name."""
        name = _sha256(data)
        path = self.path / "data" / name
        if not path.exists():
            _write(path, data)
        return name

    def add(self, parts: Iterable[Part], changed: Mapping[bytes, bytes | None], live: int) -> tuple[Part, ...]:
        """The files of a map after some changes; only what has changed is written, and what small files had before.

        `parts`: as they are; `changed`: texts by key; None where the entry is gone; `live`: entries that the map has
        now.
        """
        kept, new = list(parts), dict(changed)
        # Each is more than what follows, so there are few, and an entry is written again only when as much is new.
        while kept and (kept[-1].entries <= len(new) or sum(p.entries for p in kept) > 2 * live + _SLACK):
            new = self._merged([kept.pop()]) | new
        entries = [(key, text) for key, text in new.items() if kept or text is not None]
        if not entries:
            return tuple(kept)
        data = msgspec.msgpack.encode(entries)
        return (*kept, Part(self.put(data), len(data), len(entries)))

    def commit(self, point: Point) -> None:
        """Make a point that can be restored, and remove old ones."""
        names = self._names(point)
        text = msgspec.json.encode(point)
        _write(self._point_path(point.number), _sha256(text).encode() + b"\n" + text)
        self._points[point.number] = names
        self._prune()

    def _prune(self) -> None:
        numbers = sorted(self._points)
        now = self._points[numbers[-1]][0]
        last = {int(at // 3600): number for number in numbers for at in [self._points[number][0]]}
        kept = {*numbers[-KEPT:], *(number for hour, number in last.items() if hour > now // 3600 - KEPT_HOURS)}
        gone = [number for number in numbers if number not in kept]
        unwanted = frozenset[str]().union(*(self._points[number][1] for number in gone))
        for number in gone:
            self._point_path(number).unlink(missing_ok=True)
            del self._points[number]
        if gone:
            _sync(self.path / "points")  # or a crash may bring points back whose data is gone
        for name in unwanted.difference(*(names for _, names in self._points.values())):
            (self.path / "data" / name).unlink(missing_ok=True)

    def _names(self, point: Point) -> tuple[float, frozenset[str]]:
        parts = {part.sha256 for parts in point.maps.values() for part in parts}
        blobs = {_checked(text.decode("latin-1")) for text in self.entries(point, CHUNKS_MAP).values()}
        return point.at, frozenset(parts | blobs)

    def _merged(self, parts: Iterable[Part]) -> dict[bytes, bytes | None]:
        found: dict[bytes, bytes | None] = {}
        for part in parts:
            try:
                found.update(_read_entries(self.data(part.sha256, part.size)))
            except ValueError as error:
                raise BackupError(f"`{self.path / 'data' / part.sha256}` does not hold entries: {error}.") from None
        return found

    def _point_path(self, number: int) -> Path:
        return self.path / "points" / f"{number:010d}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _checked(name: str) -> str:
    """Refuse what would lead out of the folder, to files that are then read or removed."""
    if not _is_digest(name):
        raise BackupError("A restore point names a file that is not one of it: somebody has changed it.")
    return name


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole, after any crash, or not at all."""
    new = path.with_name(f".{path.name}.new")
    # It holds hashes of HTTP keys, and customers' data in the clear.
    with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
