"""What the two stages of windows with other keys than the events' write for each other, and where.

A *request* has what windows need of some events; it lies in the partition of their entities, in the journal of one map.
An *answer* has what an event found in a window; it lies in the partition of the event, in another map. Requests are
put under one key a partition: only the journal is read. Answers take turns in `SLOTS` keys a partition and window.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gridscore.features.window_kernel import EMPTY_HEAD
from gridscore.features.window_parts import names_of
from gridscore.grid.cutting import LONG, TEXT_HEADER
from gridscore.grid.wire import string_data
from gridscore.grid.writer import partition_of
from gridscore.group.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features.window_parts import Parts
    from gridscore.features.windows import Windows
    from gridscore.job import Job

# Answers of a partition and window that are kept, twice: of the journal's events, and of those found in the map.
SLOTS = 1_024

# Entries of a partition's journal. What is overwritten unread is asked for again, if it was not answered.
REQUEST_RING, ANSWER_RING = 256, SLOTS

# Workers times windows for which the ring of requests has room: each has one that waits or asks for what stands
# answered, one just answered, and one more as a put failed.
MOST_ASKING = REQUEST_RING // 3

LEDGER_PARTITIONS = 32  # partitions of events that a ledger is for: a batch writes those of which it has events
_SEQUENCE = struct.Struct("<q")
_LONG_KEY = struct.Struct(">iiq")


def asks_too_much(job: Job, workers: int) -> str:
    """What to say of a job with so many workers, if the ring of requests has no room for all of them; or nothing."""
    windows = len(job.used_windows) if job.routes_windows else 0
    if workers * windows <= MOST_ASKING:
        return ""
    return (
        f"Its {workers} workers ask for {windows} windows, together more than {MOST_ASKING}: if one is killed, events "
        "that it had just answered may be in no window."
    )


def request_map(job: str) -> str:
    return f"window-requests.{job}"


def answer_map(job: str) -> str:
    return f"window-answers.{job}"


def group_of(job: str) -> str:
    """Name of the group that reads the requests of a job, which no job can have."""
    return f"windows:{job}"


def subscription_of(job: str) -> Subscription:
    """How that group reads: what is lost is asked for again."""
    return Subscription(group_of(job), request_map(job), "oldest", "continue")


def tag_of(parts: Parts, windows: Windows) -> str:
    """Tells answers of these windows, whose states have these parts, from those that say something else."""
    told = [(layout.calls, layout.outputs) for layout in windows.layouts]
    text = repr((parts.tags, parts.series, told, *["late"] * windows.tells_late))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def entity_key(window: str, entity: str | int) -> bytes:
    """Serialized key of an entity's state: a string, in the partition of its hash."""
    text = f"{window}:{entity}".encode("utf-8", "surrogatepass")
    return string_data(text)


def key_in(partition: int, partition_count: int, text: str) -> bytes:
    """Serialized key of a string whose explicit hash puts it into a partition."""
    return string_data(f"{text}{partition}".encode(), partition + partition_count)


def answer_key(partition: int, partition_count: int, window: int, number: int) -> bytes:
    """Serialized key of an event's answer."""
    slot = number % SLOTS if number >= 0 else SLOTS + -number % SLOTS
    return _LONG_KEY.pack(partition + partition_count, LONG, window * 2 * SLOTS + slot)


def number_of(sequence: int, key: bytes, value: bytes) -> int:
    """What tells an event from others of its partition: its sequence; of one found in the map, a hash below 0."""
    if sequence >= 0:
        return sequence
    return -1 - (int.from_bytes(hashlib.blake2b(key + b"\0" + value, digest_size=8).digest()) >> 2)


def mark_of(key: bytes, value: bytes) -> int:
    """What tells an event from another that got its sequence: a member may die alone with the newest ones."""
    return zlib.crc32(value, zlib.crc32(key))


class Request(msgspec.Struct, array_like=True, frozen=True):
    """Events that ask a window, as the map has them: columns as `_KINDS` says, but for the keys."""

    window: str  # the tag of the window; see `Parts`
    held: bytes  # the names of the columns: an update may have changed which there are
    again: bool  # whether an answer is overdue
    partitions: bytes
    origins: bytes  # the first epoch of each event's partition's journal as it is
    numbers: bytes  # see `number_of`
    marks: bytes  # see `mark_of`
    times: bytes
    columns: bytes  # what the window holds, an event after the other a column
    lengths: bytes  # of each key
    keys: bytes  # of the state of its entity, serialized


_KINDS: dict[str, Any] = {
    "partitions": np.int32,
    "origins": np.uint32,
    "numbers": np.int64,
    "marks": np.uint32,
    "times": np.float64,
    "columns": np.float64,
    "lengths": np.int32,
}


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an event found in a window."""

    windows: str
    window: int
    origin: int
    number: int
    mark: int
    values: bytes  # float64, a call after the other


class Asked(NamedTuple):
    """The events of a request."""

    window: int
    again: bool
    partitions: NDArray[np.int32]
    origins: NDArray[np.uint32]
    numbers: NDArray[np.int64]
    marks: NDArray[np.uint32]
    times: NDArray[np.float64]
    columns: NDArray[np.float64]
    keys: list[bytes]


encode = msgspec.json.Encoder().encode
_request = msgspec.json.Decoder(Request).decode
answer_of = msgspec.json.Decoder(Answer).decode


def request_text(parts: Parts, asked: Asked) -> bytes:
    lengths = np.fromiter(map(len, asked.keys), np.int32, len(asked.keys))
    rest = [each.tobytes() for each in (*asked[2:-1], lengths)] + [b"".join(asked.keys)]
    return encode(Request(parts.tags[asked.window], parts.columns[asked.window], asked.again, *rest))


def read_request(text: bytes, parts: Parts, partition: int, partition_count: int) -> Asked | None:
    """The events of a request in a partition; None if it is of other windows.

    Of another revision of the job, it may lack columns: these events are in no part that needs them.

    Raises ValueError if it is not one, or does not belong there.
    """
    found = _request(text)
    if found.window not in parts.tags:
        return None
    window = parts.tags.index(found.window)
    read: list[Any] = [np.frombuffer(getattr(found, name), kind) for name, kind in _KINDS.items()]
    *plain, columns, lengths = read
    partitions, count = plain[0], len(plain[0])
    there = names_of(found.held)
    columns = columns.reshape(len(there), count)
    if found.held != parts.columns[window]:
        rows = dict(zip(there, columns, strict=True))
        columns = np.array([rows.get(name, np.full(count, np.nan)) for name in names_of(parts.columns[window])])
    asked = Asked._make([window, found.again, *plain, columns, _cut(found.keys, lengths.tolist())])
    if {len(each) for each in (*plain, asked.keys)} != {count}:
        raise ValueError("its columns are not equally long")
    if count and (partitions.min() < 0 or partitions.max() >= partition_count):
        raise ValueError("there is no such partition")
    if any(partition_of(key, partition_count) != partition for key in set(asked.keys)):
        raise ValueError("an entity lies in another partition")
    return asked


def keys_of(text: bytes) -> list[bytes]:
    """The keys of the states that a request asks for. Raises ValueError if it is not one."""
    found = _request(text)
    return _cut(found.keys, np.frombuffer(found.lengths, np.int32).tolist())


def _cut(keys: bytes, lengths: Sequence[int]) -> list[bytes]:
    if any(length < TEXT_HEADER.size for length in lengths) or sum(lengths) != len(keys):
        raise ValueError("its keys are cut off")
    return [keys[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]


class Ledger:
    """Which events of each partition of the event map a partition's entities of a window have already.

    An event is asked for only once all before it of its partition are answered. So the newest tells it of all, but for
    those that were found in the map. It is kept in parts, of `LEDGER_PARTITIONS` each: a head as any state's, the
    sequence of the newest request that is in it, and a row a partition.

    An event with the sequence of the newest one, but another mark, took its place if it is asked for later. Requests
    that are read again are told by their sequence: they have both.
    """

    _ROW = np.dtype([("origin", "<u4"), ("mark", "<u4"), ("number", "<i8")])
    _BEGIN = len(EMPTY_HEAD) + _SEQUENCE.size

    def __init__(self, parts: Mapping[int, bytes], partition_count: int) -> None:
        """Of the bytes of its parts, by number; one that is empty, or not one, is without any."""
        size = LEDGER_PARTITIONS
        self._requests = np.full(-(-partition_count // size), -1, np.int64)
        self._rows = np.zeros(len(self._requests) * size, self._ROW)
        self._rows["number"] = -1
        self._changed: set[int] = set()
        for part, state in parts.items():
            if len(state) == self._BEGIN + size * self._ROW.itemsize:
                self._requests[part] = _SEQUENCE.unpack_from(state, len(EMPTY_HEAD))[0]
                self._rows[part * size : (part + 1) * size] = np.frombuffer(state, self._ROW, offset=self._BEGIN)

    def changed(self) -> dict[int, bytes]:
        """The bytes of the parts that have changed, by number."""
        size, found = LEDGER_PARTITIONS, {}
        for part in self._changed:
            rows = self._rows[part * size : (part + 1) * size]
            found[part] = EMPTY_HEAD + _SEQUENCE.pack(self._requests[part]) + rows.tobytes()
        return found

    def lacks(self, request: int, asked: Asked) -> NDArray[np.bool_]:
        """Which events of a request it does not have, given the request's sequence."""
        there = self._rows[asked.partitions]
        is_same = asked.origins == there["origin"]
        lacks: NDArray[np.bool_] = (asked.origins > there["origin"]) | (is_same & (asked.numbers > there["number"]))
        is_later = request > self._requests[asked.partitions // LEDGER_PARTITIONS]
        lacks |= is_later & is_same & (asked.numbers == there["number"]) & (asked.marks != there["mark"])
        return lacks & (asked.numbers >= 0)

    def note(self, request: int, asked: Asked, rows: NDArray[Any]) -> None:
        """It has these events of a request now, which are in the order of their sequences."""
        partitions = asked.partitions[rows]
        for name, values in (("origin", asked.origins), ("mark", asked.marks), ("number", asked.numbers)):
            self._rows[name][partitions] = values[rows]
        parts = parts_of(partitions)
        self._requests[parts] = request
        self._changed.update(parts)


def parts_of(partitions: NDArray[np.int32]) -> list[int]:
    """The parts of a ledger that partitions of events are in."""
    found: list[int] = np.unique(partitions // LEDGER_PARTITIONS).tolist()
    return found
