"""Where restore points are kept: what every place must do, and a folder that does."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Protocol

from gridscore.errors import GridscoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Kinds of pieces: which backup this is, what points consist of, and what these name.
IDENTITY, POINTS, DATA = "", "points", "data"
EARLIER = "An earlier point may do: --point."


class BackupError(GridscoreError):
    """A place of restore points cannot be used, or a point in it."""


class Store(Protocol):
    """Pieces of bytes by kind and name, that one process at a time may write.

    What fails is a `BackupError`, or an `OSError` of a folder.
    """

    place: str  # where it is, for people
    address: str  # the same as `--from` takes it, without a user and a password

    def begin(self) -> None:
        """Become the one that writes, or go on to be, and make what is not there.

        Raises UsageError if something else is there, or another process writes.
        """

    def is_ours(self) -> bool:
        """Whether nobody else can write, at the place as it is now."""

    def names(self, kind: str) -> list[str]:
        """Of all pieces of a kind."""

    def has(self, kind: str, name: str) -> bool:
        """Whether a piece is there."""

    def read(self, kind: str, name: str, most: int) -> bytes:
        """A piece; empty if it is larger than `most`."""

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Keep a piece: after any crash it is there as a whole, and all that was written before, or not at all."""

    def remove(self, kind: str, names: Iterable[str]) -> None:
        """Remove pieces; what is removed later is never gone before them."""

    def commit(self) -> None:
        """What was written and removed since the last time holds from now on, if it did not yet."""

    def undo(self) -> None:
        """Something failed: what was not committed need not stay."""

    def close(self) -> None:
        """Let others write."""


class Folder:
    """A folder; see `Store`. A piece is a file that is renamed into place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = f"{socket.gethostname()}:{path.resolve()}"
        self.address = str(path)
        self._lock: int | None = None
        self._device: int | None = None  # the disk that it was on
        self._new: list[Path] = []

    def begin(self) -> None:
        """Make the folder if it is not there, and lock it: it may be another one than before."""
        self.close()
        there = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if self._device not in (None, there.stat().st_dev) and not (self.path / "backup.json").exists():
            raise UsageError(
                f"`{self.path}` has no backup any more, and is on another disk than before.",
                "Mount the disk that it was on, and the backup goes on; to begin anew there, start the backup again.",
            )
        self.path.mkdir(0o700, parents=True, exist_ok=True)
        others = sorted({each.name for each in self.path.iterdir()} - {"lock", ".backup.json.new"})
        if others and "backup.json" not in others:
            raise UsageError(
                f"`{self.path}` has other files, `{others[0]}` for one, and no backup.", "Name a new or empty folder."
            )
        self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        with contextlib.suppress(ImportError):  # on Windows
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.close()
                raise UsageError(
                    f"Another process writes to `{self.path}`.", "Name another folder, or end it."
                ) from None
        self._device = os.fstat(self._lock).st_dev
        for kind in (POINTS, DATA):
            for each in (self.path / kind).glob(".*.new"):
                each.unlink()

    def is_ours(self) -> bool:
        """Whether the lock is that of the folder: a copy may have taken its place."""
        try:
            return self._lock is not None and os.path.samestat(os.fstat(self._lock), (self.path / "lock").stat())
        except FileNotFoundError:
            return False

    def names(self, kind: str) -> list[str]:
        """Of the files of a kind."""
        try:
            return [each.name for each in (self.path / kind).iterdir()]
        except FileNotFoundError:  # it has just begun
            return []
        except OSError as error:
            raise BackupError(f"`{self.path}` cannot be read: {error.strerror}.") from None

    def has(self, kind: str, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / kind / name).exists()

    def read(self, kind: str, name: str, most: int) -> bytes:
        """What a file has."""
        path = self.path / kind / name
        try:
            return path.read_bytes() if path.stat().st_size <= most else b""
        except OSError as error:
            raise BackupError(f"`{path}` cannot be read: {error.strerror}.", EARLIER) from None

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Write a file."""
        path = self.path / kind / name
        path.parent.mkdir(0o700, exist_ok=True)
        self._new.append(path)
        _write(path, data)

    def remove(self, kind: str, names: Iterable[str]) -> None:
        """Remove files."""
        if not (some := list(names)):
            return
        for name in some:
            (self.path / kind / name).unlink(missing_ok=True)
        _sync(self.path / kind)  # or a crash may bring points back whose data is gone

    def commit(self) -> None:
        """Forget what was new: each file counts as soon as it is there."""
        self._new.clear()

    def undo(self) -> None:
        """Remove what is new, the point first: a disk that is full would get no room otherwise."""
        while self._new:
            path = self._new.pop()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                if path.parent.name == POINTS:
                    _sync(path.parent)

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole, after any crash, or not at all."""
    new = path.with_name(f".{path.name}.new")
    # It holds hashes of HTTP keys, and customers' data in the clear.
    try:
        with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        new.unlink(missing_ok=True)  # a full disk would stay full
        raise
    new.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
