"""Positions in log files: how far each has been read, and how a file is recognized under another name or as a copy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.position import Positions

if TYPE_CHECKING:
    from gridscore.grid import Grid

HEAD_BYTES = 1024  # bytes of the beginning of a file, to recognize it by
LAST_BYTES = 256  # bytes before the position, to check that a file is still the one that was read
KEPT = 2_000  # how many positions to keep of files that are gone: they may come back, packed or copied


class FilePosition(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How far one file has been read, as the grid keeps it.

    A file is recognized by device and inode, as long as it begins with what has been read of it; with another device or
    inode (packed, copied, or on another disk), by that beginning alone.
    """

    identity: str  # its permanent name: the keys of its events begin with it
    path: str  # where it was seen last
    device: int
    inode: int
    generation: int = 0  # how often the inode had other content before
    offset: int = 0  # bytes that have been read, unpacked
    line: int = 0  # lines that have been read
    head: str = ""  # hash of the beginning of what has been read
    last: str = ""  # hash of the end of what has been read
    finished: bool = False  # whether nothing can follow, because the file is packed and was read to its end
    at: float = 0.0  # when the grid got this, in seconds since 1970

    def is_of(self, stream: BinaryIO, head: bytes) -> bool:
        """Whether a file begins with what has been read. `head`: its first `HEAD_BYTES`."""
        if not self.offset or digest(head[: self.offset]) != self.head:
            return False
        if self.finished and self.offset >= HEAD_BYTES:
            return True  # do not unpack it only to see that it is finished
        stream.seek(max(0, self.offset - LAST_BYTES))
        return digest(stream.read(min(self.offset, LAST_BYTES))) == self.last

    def begins(self, head: bytes) -> bool:
        """Whether a file has the same beginning, and enough of it has been read to tell."""
        return self.offset >= HEAD_BYTES and digest(head) == self.head


@dataclass(slots=True)
class Fingerprint:
    """What has been read of a file, as far as its `FilePosition` needs it."""

    head: bytes = b""
    last: bytes = b""

    def add(self, data: bytes) -> None:
        """Add what was read next."""
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self.last = data[-LAST_BYTES:] if len(data) >= LAST_BYTES else (self.last + data)[-LAST_BYTES:]

    @classmethod
    def of(cls, stream: BinaryIO, offset: int) -> Fingerprint:
        """What has been read up to an offset."""
        stream.seek(0)
        head = stream.read(min(offset, HEAD_BYTES))
        stream.seek(max(0, offset - LAST_BYTES))
        return cls(head, stream.read(min(offset, LAST_BYTES)))


def digest(data: bytes) -> str:
    """Hash of a piece of a file."""
    return blake2b(data, digest_size=16).hexdigest()


def identity_of(device: int, inode: int, generation: int, first_line: bytes) -> str:
    """Identity of a new file: unique, and the same whenever it is read from the beginning."""
    content = b"%d:%d:%d:" % (device, inode, generation) + first_line
    return blake2b(content, digest_size=8).hexdigest()


class FilePositions:
    """The positions of one source in the grid."""

    def __init__(self, grid: Grid, source: str) -> None:
        self._positions = Positions(grid, source)

    async def load(self) -> dict[str, FilePosition]:
        """All of them, by identity, the last written at the end.

        Raises SourceInterruptedError if the cluster did not answer.
        """
        try:
            found = [msgspec.convert(value, FilePosition) for value in (await self._positions.load()).values()]
            found.sort(key=lambda position: position.at)
            for position in found[:-KEPT]:
                await self._positions.forget(position.identity)
        except HazelcastError as error:
            raise SourceInterruptedError(f"The positions in the log files cannot be read: {error}") from error
        return {position.identity: position for position in found[-KEPT:]}

    async def save(self, position: FilePosition) -> None:
        """Write one.

        Raises SourceInterruptedError if the cluster did not answer; PositionTakenError if another process follows the
        same file under the same name.
        """
        position.at = time.time()
        try:
            await self._positions.move(position.identity, msgspec.to_builtins(position))
        except HazelcastError as error:
            raise SourceInterruptedError(f"The position in {position.path} cannot be kept: {error}") from error
