"""What a batch has: rows in columns, and for each partition the results to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from gridscore.dead_letters.letters import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gridscore.group.reader import Cursor


class Late(NamedTuple):
    """An event that was too late for windows."""

    sequence: int
    key: bytes
    raw: bytes
    by: dict[str, float]  # by window, how many seconds it is older than the newest event of its entity


@dataclass(slots=True)
class PartitionBatch:
    """What one batch has for one partition: results to write, then the offset to go on from."""

    partition: int
    next: int
    cursor: Cursor
    at: float  # when the first of its pages arrived, of the grid's clock
    lost: int = 0  # events that were overwritten before they were read
    keys: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)  # to write before them
    # Texts of the states of windows to write after them, by serialized key.
    states: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Rows:
    """The events of a batch in columns, and which of them go to which partition.

    Columns of plain objects rather than a tuple an event: the garbage collector looks at every tuple.
    """

    sequences: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    # Partitions in order, each with the number of its rows; a partition may occur twice.
    spans: list[tuple[PartitionBatch, int]] = field(default_factory=list)
    # Of a job with windows: whether the event has its result, and is for its windows only.
    scored: list[bool] = field(default_factory=list)
    # Of a job with windows: what tells the rows apart that come through.
    places: list[int] = field(default_factory=list)

    def keys_by_batch(self) -> Iterator[tuple[PartitionBatch, list[bytes]]]:
        begin = 0
        for batch, count in self.spans:
            yield batch, self.keys[begin : begin + count]
            begin += count

    def without(self, bad: Mapping[int, str], stage: str, rejected: list[Rejected]) -> Rows:
        """The rows without the bad ones, which are rejected for the reasons given."""
        if not bad:
            return self
        keep, rows = bytearray(b"\1") * len(self.keys), sorted(bad)
        for row in rows:
            keep[row] = 0
        kept, begin, at = Rows(), 0, 0
        kept.sequences += compress(self.sequences, keep)
        kept.keys += compress(self.keys, keep)
        kept.values += compress(self.values, keep)
        kept.scored += compress(self.scored, keep)
        kept.places += compress(self.places, keep)
        for batch, count in self.spans:
            end = begin + count
            kept.spans.append((batch, keep.count(1, begin, end)))
            while at < len(rows) and (row := rows[at]) < end:
                event = self.sequences[row], self.keys[row], self.values[row]
                rejected.append(Rejected(batch.partition, *event, stage, bad[row]))
                at += 1
            begin = end
        return kept
