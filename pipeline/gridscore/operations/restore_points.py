"""Restore points: each is complete or not there, and every piece of it is known by its SHA-256.

    backup.json        which backup this is
    points/0000000042  what a point consists of; its first line is the SHA-256 of the rest
    data/SHA-256       entries of a map, or a part of a model: written once, however many points have it

A point is written when all that it names is: a crash leaves the points before.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
from msgspec import Meta

from gridscore.errors import UsageError, missing_extra
from gridscore.grid.records import Count, Figure, Word  # noqa: TC001 -- msgspec reads the annotations
from gridscore.models.chunks import CHUNKS_MAP
from gridscore.models.version import Sha256  # noqa: TC001 -- msgspec reads the annotations
from gridscore.operations.backup_stores import DATA, EARLIER, IDENTITY, POINTS, BackupError, Folder, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT, KEPT_HOURS = 10, 24  # the newest points that are kept; and for how many hours the last one of each
MOST_BYTES = 1 << 30  # of the entries of one map
_MOST_POINT = 64 << 20
_SLACK = 1_000
_FORMAT = 1
_NAME = "backup.json"


class Part(msgspec.Struct, frozen=True):
    """A piece with entries of a map."""

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
    every: Figure = 0.0  # seconds that it may be old before the next stands; 0 if it was a single one
    feeds: dict[Word, tuple[Word, ...]] = {}  # the maps that each source puts into, as far as that is known
    maps: dict[Word, tuple[Part, ...]] = {}  # pieces by map; a later one of a map prevails
    format: Annotated[int, Meta(ge=_FORMAT, le=_FORMAT)] = _FORMAT


class _Identity(msgspec.Struct, frozen=True):
    backup: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


_read_entries = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode


class Points:
    """The restore points of a place. Only one process at a time may write there.

    What is asked for and is missing or damaged is a `BackupError`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.place, self.address = store.place, store.address
        self.close, self.undo = store.close, store.undo
        self.id = ""
        self._points: dict[int, tuple[float, frozenset[str]]] = {}  # when each was made, and the data that it names

    @classmethod
    def open(cls, to: str | Path) -> Self:
        """Points for reading, of a folder or the address of a PostgreSQL database.

        Raises UsageError if there are none.
        """
        found = cls(_store(to))
        try:
            found.id = found._identity()
        except BaseException:
            found.close()
            raise
        return found

    @classmethod
    def write(cls, to: str | Path) -> Self:
        """Points to write; what a crash has left is removed.

        Raises UsageError if something else is there, or another process writes to it.
        """
        found = cls(_store(to))
        try:
            found.begin()
        except BaseException:
            found.close()
            raise
        return found

    def _identity(self) -> str:
        why = f"there is no `{_NAME}`"
        try:
            if self.store.has(IDENTITY, _NAME):
                return msgspec.json.decode(self.store.read(IDENTITY, _NAME, 1_000), type=_Identity).backup
        except ValueError as error:
            why = str(error)
        raise UsageError(f"`{self.address}` has no backup: {why}.", "Name what --to of `gridscore backup` named.")

    def begin(self) -> None:
        """Become the one that writes, read what is there, and remove what a crash has left."""
        store = self.store
        store.begin()
        if not store.has(IDENTITY, _NAME):
            store.write(IDENTITY, _NAME, msgspec.json.encode(_Identity(uuid.uuid4().hex)))
        self.id = self._identity()
        self._points = {number: self._names(self.read(number)) for number in self.numbers()}
        wanted = frozenset[str]().union(*(names for _, names in self._points.values()))
        store.remove(DATA, [name for name in store.names(DATA) if _is_digest(name) and name not in wanted])
        store.commit()

    def is_as_left(self, backup: str, number: int) -> bool:
        """Whether it is that backup, ours to write, and that its newest point (0: none), with all that it names."""
        try:
            if not self.store.is_ours() or self._identity() != backup or max(self.numbers(), default=0) != number:
                return False
        except UsageError:  # it was emptied
            return False
        return self._points.get(number, (0.0, frozenset[str]()))[1].issubset(self.store.names(DATA))

    def numbers(self) -> list[int]:
        """The points, the newest last."""
        names = self.store.names(POINTS)
        return sorted(int(name) for name in names if len(name) == 10 and name.isascii() and name.isdecimal())

    def read(self, number: int | None = None) -> Point:
        """A point, by default the newest."""
        numbers = self.numbers()
        if not numbers or number not in (None, *numbers):
            what = f"no restore point {number}" if numbers else "no restore point yet"
            raise BackupError(f"`{self.address}` has {what}.", f"It has: {', '.join(map(str, numbers)) or 'none'}.")
        number = numbers[-1] if number is None else number
        why = f"it is not point {number}"
        try:
            digest, _, text = self.store.read(POINTS, _point(number), _MOST_POINT).partition(b"\n")
            if digest == _sha256(text).encode():
                point = msgspec.json.decode(text, type=Point)
                if point.number == number:
                    return point
            else:
                why = "its SHA-256 is another one"
        except (ValueError, RecursionError) as error:
            why = str(error)
        others = ", ".join(str(each) for each in numbers if each != number) or "none"
        raise BackupError(
            f"The restore point {number} in `{self.address}` is damaged: {why}.",
            f"`gridscore restore --point` takes another one: {others}. For new points, name a new place.",
        )

    def entries(self, point: Point, name: str) -> dict[bytes, bytes]:
        """Serialized keys and texts of a map."""
        return {key: text for key, text in self._merged(point.maps.get(name, ())).items() if text is not None}

    def data(self, sha256: str, most: int = 2 * MOST_BYTES) -> bytes:
        found = self.store.read(DATA, _checked(sha256), most)
        if _sha256(found) != sha256:
            raise BackupError(f"`{self._shown(sha256)}` is not what was written: its SHA-256 differs.", EARLIER)
        return found

    def put(self, data: bytes) -> str:
        """Keep some bytes; returns their name."""
        name = _sha256(data)
        if not self.store.has(DATA, name):
            self.store.write(DATA, name, data)
        return name

    def add(self, parts: Iterable[Part], changed: Mapping[bytes, bytes | None], live: int) -> tuple[Part, ...]:
        """The pieces of a map after some changes; only what has changed is written, and what small ones had before.

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
        self.store.write(POINTS, _point(point.number), _sha256(text).encode() + b"\n" + text)
        points = {**self._points, point.number: names}
        kept = _kept({number: at for number, (at, _) in points.items()})
        gone = [number for number in points if number not in kept]
        unwanted = frozenset[str]().union(*(points.pop(number)[1] for number in gone))
        if gone:
            self.store.remove(POINTS, map(_point, gone))
            self.store.remove(DATA, unwanted.difference(*(names for _, names in points.values())))
        self.store.commit()
        self._points = points

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
                raise BackupError(f"`{self._shown(part.sha256)}` does not hold entries: {error}.") from None
        return found

    def _shown(self, sha256: str) -> str:
        return f"{self.address}/{DATA}/{sha256}"


def _store(to: str | Path) -> Store:
    text = str(to)
    if "://" in text:
        if not text.startswith(("postgresql://", "postgres://")):
            kind = text.partition(":")[0]
            raise UsageError(
                f"A backup cannot be kept at `{kind}://`.", "Name a folder, or postgresql://USER@HOST:5432/DATABASE."
            )
        try:
            from gridscore.operations.backup_database import Database
        except ModuleNotFoundError as error:
            raise missing_extra("A backup in PostgreSQL", "postgres", error) from None
        return Database(text)
    return Folder(Path(to))


def _kept(made: Mapping[int, float]) -> set[int]:
    """The points that stay, of when each was made."""
    numbers = sorted(made)
    last = {int(made[number] // 3600): number for number in numbers}
    now = int(made[numbers[-1]] // 3600)
    return {*numbers[-KEPT:], *(number for hour, number in last.items() if hour > now - KEPT_HOURS)}


def _point(number: int) -> str:
    return f"{number:010d}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _checked(name: str) -> str:
    """Refuse what would lead out of the folder, to files that are then read or removed."""
    if not _is_digest(name):
        raise BackupError("A restore point names a file that is not one of it: somebody has changed it.")
    return name
