"""The maps of the stub cluster: entries of each partition, and the ring journal that goes with them.

Keys and values are serialized data, as in a member. Two keys are the same if they differ in nothing but the partition
hash in their first four bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADDED, REMOVED, UPDATED = 1, 2, 4
CLEAR_ALL = 64

_HASH = 4
_ITEM = struct.Struct(">iibiii")
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)


def _field(data: bytes | None) -> bytes:
    return _NULL if data is None else _LENGTH.pack(len(data)) + data


class Change(NamedTuple):
    """What happened to an entry: `kind` is ADDED, REMOVED or UPDATED."""

    kind: int
    key: bytes
    value: bytes | None
    old: bytes | None

    def item(self) -> bytes:
        """The journal event as a member serializes it, the hash and type of the event itself included."""
        return _ITEM.pack(0, -2, 1, -4, 132, self.kind) + _field(self.key) + _field(self.value) + _field(self.old)


class Ring:
    """The journal of one partition: keeps the last `capacity` items; sequences begin at 0."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: deque[Change] = deque()
        self.newest = -1

    @property
    def oldest(self) -> int:
        """Sequence of the oldest item; one past the newest if there is none."""
        return self.newest + 1 - len(self._items)

    def append(self, item: Change) -> None:
        """Add an item; the oldest goes if the ring is full."""
        if len(self._items) == self.capacity:
            self._items.popleft()
        self._items.append(item)
        self.newest += 1

    def clamp(self, sequence: int) -> int:
        """The sequence that a read from there begins at: too old is the oldest, too far is one past the newest."""
        return max(self.oldest, min(sequence, self.newest + 1))

    def read(self, sequence: int, count: int) -> list[Change]:
        """Up to `count` items from a sequence on, which must be within the bounds."""
        begin = sequence - self.oldest
        return [self._items[i] for i in range(begin, min(begin + count, len(self._items)))]

    def pop(self) -> Change:
        """Lose the newest item."""
        self.newest -= 1
        return self._items.pop()

    def reset(self) -> None:
        """Lose everything and begin at 0 again."""
        self._items.clear()
        self.newest = -1

    def __len__(self) -> int:
        return len(self._items)


@dataclass(slots=True)
class _Entry:
    slot: int  # where a walk over the partition finds it
    key: bytes
    value: bytes


class Partition:
    """One partition of one map. `ring`: its journal, if the map has one; `changed`: called after every change."""

    def __init__(self, ring: Ring | None, changed: Callable[[Change], None]) -> None:
        self.ring, self._changed = ring, changed
        self._entries: dict[bytes, _Entry] = {}
        self._slots = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter([(entry.key, entry.value) for entry in self._entries.values()])

    def get(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key[_HASH:])
        return None if entry is None else entry.value

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Set a value; returns what was there."""
        entry = self._entries.get(key[_HASH:])
        if entry is None:
            self._entries[key[_HASH:]] = _Entry(self._slots, key, value)
            self._slots += 1
            self._note(Change(ADDED, key, value, None))
            return None
        old, entry.value = entry.value, value
        self._note(Change(UPDATED, entry.key, value, old))
        return old

    def remove(self, key: bytes, *, silently: bool = False, briefly: bool = False) -> bytes | None:
        """Remove an entry; returns what was there.

        `key`: its key; `silently`: only the journal hears of it, as when a map is cleared; `briefly`: listeners do not
        hear what was there, as when an entry is deleted.
        """
        entry = self._entries.pop(key[_HASH:], None)
        if entry is None:
            return None
        if self.ring is not None:
            self.ring.append(Change(REMOVED, entry.key, None, entry.value))
        if not silently:
            self._changed(Change(REMOVED, entry.key, None, None if briefly else entry.value))
        return entry.value

    def walk(self, index: int, count: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Up to `count` entries below an index, and the index to go on from; -1 at the end."""
        found: list[tuple[bytes, bytes]] = []
        for entry in reversed(self._entries.values()):
            if entry.slot < index:
                if len(found) == count:
                    return index, found
                found.append((entry.key, entry.value))
                index = entry.slot
        return -1, found

    def lose(self, changes: int | None = None) -> None:
        """Be what a backup is that had not seen the newest changes when the owner died; empty if None, as without one.

        `changes`: that are lost. A partition without a journal, which does not know them, loses all or nothing.
        """
        ring = self.ring
        if changes is None:
            self._entries.clear()
            if ring is not None:
                ring.reset()
            return
        for _ in range(min(changes, len(ring)) if ring is not None else 0):
            lost = ring.pop()  # type: ignore[union-attr]  # there are changes only with a ring
            entry = self._entries.get(lost.key[_HASH:])
            if lost.old is None:
                self._entries.pop(lost.key[_HASH:], None)
            elif entry is not None:
                entry.value = lost.old
            else:
                self._entries[lost.key[_HASH:]] = _Entry(self._slots, lost.key, lost.old)
                self._slots += 1

    def _note(self, change: Change) -> None:
        if self.ring is not None:
            self.ring.append(change)
        self._changed(change)


def same(one: bytes | None, other: bytes | None) -> bool:
    """Whether two serialized values are equal to a member."""
    return one is not None and other is not None and one[_HASH:] == other[_HASH:]
