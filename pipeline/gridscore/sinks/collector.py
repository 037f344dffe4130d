"""From journal pages to results: collected until there are enough for a delivery, decoded once, and filtered."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.dead_letters.letters import Rejected
from gridscore.grid import transport
from gridscore.grid.cutting import STRING
from gridscore.sinks.base import Delivered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.grid import Grid
    from gridscore.group.reader import Arrival, Cursor

# The most bytes of results that wait for their delivery, however long it takes to fill it.
COLLECTED_BYTES = 64 * 1024 * 1024

_STRING = STRING.to_bytes(4, "big", signed=True)

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_text = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Part:
    """What a delivery has of one partition."""

    cursor: Cursor  # that read it
    at: float  # when the first of its pages arrived, of the grid's clock
    next: int = 0  # the offset to commit when this is delivered
    lost: int = 0  # results that were overwritten before they were read
    results: list[Delivered] = field(default_factory=list)  # to deliver, in order
    keys: list[bytes] = field(default_factory=list)  # serialized key of each
    rejected: list[Rejected] = field(default_factory=list)  # entries that are not results
    filtered: int = 0  # how many were filtered out
    rescued: int = 0  # pages that a rescan inserted


def cut(parts: Mapping[int, Part], most: int) -> tuple[dict[int, Part], dict[int, Part]]:
    """The first so many results, and the rest; those of each partition stay in order.

    The pages of a rescan are not cut, so there may be more: a rescan is done as a whole, or not.
    """
    first: dict[int, Part] = {}
    rest: dict[int, Part] = {}
    room = most
    for partition, part in parts.items():
        if room > 0 and (len(part.results) <= room or part.rescued):
            first[partition] = part
            room -= len(part.results)
        elif room > 0:
            done = part.results[:room]
            following = min(part.next, done[-1].sequence + 1)
            # Rejected entries go with the offset that covers them.
            before = [each for each in part.rejected if each.sequence < following]
            after = [each for each in part.rejected if each.sequence >= following]
            first[partition] = replace(
                part, next=following, results=done, keys=part.keys[:room], rejected=before, filtered=0
            )
            rest[partition] = replace(part, lost=0, results=part.results[room:], keys=part.keys[room:], rejected=after)
            room = 0
        else:
            rest[partition] = part
    return first, rest


class Collector:
    """Results that have been read and wait to be delivered. `only`: deliver only results with these values."""

    def __init__(self, grid: Grid, only: Mapping[str, str]) -> None:
        self._client = grid.client
        self._only = list(only.items())
        self._pages: deque[Arrival] = deque()
        self._begun = 0  # entries of the first page that were in earlier deliveries
        self._entries = 0
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._pages

    def room(self, most: int) -> int:
        """How many entries may be added to a delivery of so many; 0 if it is full."""
        return 0 if self._bytes >= COLLECTED_BYTES else max(0, most - self._entries)

    def add(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            self._pages.append(arrival)
            self._entries += len(arrival.page.keys)
            self._bytes += arrival.page.size

    def take(self, most: int) -> dict[int, Part]:
        """The next delivery, by partition: so many results, or fewer if many are filtered out."""
        parts: dict[int, Part] = {}
        count = 0
        while self._pages and count < most:
            arrival = self._pages[0]
            page, begin = arrival.page, self._begun
            size = len(page.keys)
            end = min(size, begin + most - count)
            if arrival.cursor.is_current:
                part = parts.get(arrival.partition)
                if part is None or part.cursor is not arrival.cursor:
                    part = parts[arrival.partition] = Part(arrival.cursor, arrival.at)
                self._decode(part, arrival, begin, end)
                if begin == 0:
                    part.lost += arrival.lost
                count += end - begin
            self._entries -= end - begin
            self._begun = end
            if end == size:
                self._pages.popleft()
                self._begun = 0
                self._bytes -= page.size
        return parts

    def _decode(self, part: Part, arrival: Arrival, begin: int, end: int) -> None:
        page, partition, epoch, only = arrival.page, arrival.partition, part.cursor.epoch, self._only
        add, add_key = part.results.append, part.keys.append
        for index in range(begin, end):
            key, text, sequence = page.keys[index], page.values[index], page.sequences[index]
            try:
                value = _decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                reason = f"it is not a result, which is a JSON object: {error}"
                part.rejected.append(Rejected(partition, sequence, key, text, "decode", reason))
                continue
            if only and not all(name in value and _as_text(value[name]) == wanted for name, wanted in only):
                part.filtered += 1
                continue
            add(Delivered(self._plain(key), text, value, partition, sequence, epoch))
            add_key(key)
        whole = end == len(page.keys)
        if page.first == page.next:  # of a rescan: it moves no offset itself
            part.next = max(part.next, page.next)
            part.rescued += whole
        else:
            part.next = page.next if whole else page.sequences[end - 1] + 1

    def _plain(self, key: bytes) -> str | int | float:
        try:
            if key[4:8] == _STRING:
                return key[12:].decode()
            found = transport.to_object(self._client, key)
        except Exception:  # noqa: BLE001 -- what the client cannot read is known by its bytes
            return key.hex()
        return found if isinstance(found, str | int | float) and not isinstance(found, bool) else key.hex()


def _as_text(value: Any) -> str:
    """A value as it is written in a filter: strings as they are, all else as JSON."""
    return value if isinstance(value, str) else _text(value).decode()
