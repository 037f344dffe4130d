"""What the two stages of windows with other keys than the events' write for each other, and where.

A *request* has what windows need of some events; it lies in the partition of their entities, in the journal of one map.
An *answer* has what an event found in a window; it lies in the partition of the event, in another map. Requests are
put under one key a partition: only the journal is read. Answers take turns in `SLOTS` keys a partition and window.
"""

from __future__ import annotations

import hashlib
import struct
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gridscore.features.window_kernel import EMPTY_HEAD
from gridscore.grid.writer import partition_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gridscore.features.windows import Windows

SLOTS = 1_024
"""Answers of a partition and window that are kept, twice: of the journal's events, and of those found in the map."""

REQUEST_RING, ANSWER_RING = 256, SLOTS
"""Entries of a partition's journal. What is overwritten unread is asked for again."""

_STRING, _LONG = -11, -8
_LONG_KEY, _TEXT_KEY = struct.Struct(">iiq"), struct.Struct(">iii")


def request_map(job: str) -> str:
    """Name of the map of a job's requests."""
    return f"window-requests.{job}"


def answer_map(job: str) -> str:
    """Name of the map of a job's answers."""
    return f"window-answers.{job}"


def group_of(job: str) -> str:
    """Name of the group that reads the requests of a job, which no job can have."""
    return f"windows:{job}"


def tag_of(states: str, windows: Windows) -> str:
    """Tells requests and answers of these windows, whose states have a tag, from those that ask something else."""
    text = repr((states, [(layout.calls, layout.outputs) for layout in windows.layouts]))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def entity_key(window: str, entity: str | int) -> bytes:
    """Serialized key of an entity's state: a string, in the partition of its hash."""
    text = f"{window}:{entity}".encode("utf-8", "surrogatepass")
    return _TEXT_KEY.pack(0, _STRING, len(text)) + text


def key_in(partition: int, partition_count: int, text: str) -> bytes:
    """Serialized key of a string whose explicit hash puts it into a partition."""
    there = f"{text}{partition}".encode()
    return _TEXT_KEY.pack(partition + partition_count, _STRING, len(there)) + there


def answer_key(partition: int, partition_count: int, window: int, number: int) -> bytes:
    """Serialized key of an event's answer."""
    slot = number % SLOTS if number >= 0 else SLOTS + -number % SLOTS
    return _LONG_KEY.pack(partition + partition_count, _LONG, window * 2 * SLOTS + slot)


def number_of(sequence: int, key: bytes, value: bytes) -> int:
    """What tells an event from others of its partition: its sequence; of one found in the map, a hash below 0."""
    if sequence >= 0:
        return sequence
    return -1 - (int.from_bytes(hashlib.blake2b(key + b"\0" + value, digest_size=8).digest()) >> 2)


class Request(msgspec.Struct, array_like=True, frozen=True):
    """Events that ask a window, as the map has them.

    Attributes:
        windows: See `tag_of`.
        window: Number of the window.
        again: Whether an answer is overdue.
        partitions: Of each event, int32.
        origins: The first epoch of its partition's journal as it is, uint32.
        numbers: See `number_of`, int64.
        times: float64.
        columns: What the window holds, float64, an event after the other a column.
        lengths: Of each key, int32.
        keys: Of the state of its entity, serialized.
    """

    windows: str
    window: int
    again: bool
    partitions: bytes
    origins: bytes
    numbers: bytes
    times: bytes
    columns: bytes
    lengths: bytes
    keys: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an event found in a window.

    Attributes:
        windows: As of the request.
        window: As of the request.
        origin: As of the request.
        number: As of the request.
        values: float64, a call after the other.
    """

    windows: str
    window: int
    origin: int
    number: int
    values: bytes


class Asked(NamedTuple):
    """The events of a request."""

    window: int
    again: bool
    partitions: NDArray[np.int32]
    origins: NDArray[np.uint32]
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    columns: NDArray[np.float64]
    keys: list[bytes]


encode = msgspec.json.Encoder().encode
_request = msgspec.json.Decoder(Request).decode
answer_of = msgspec.json.Decoder(Answer).decode


def request_text(windows: str, asked: Asked) -> bytes:
    """A request as the map has it."""
    lengths = np.fromiter(map(len, asked.keys), np.int32, len(asked.keys))
    return encode(
        Request(
            windows,
            asked.window,
            asked.again,
            asked.partitions.tobytes(),
            asked.origins.tobytes(),
            asked.numbers.tobytes(),
            asked.times.tobytes(),
            asked.columns.tobytes(),
            lengths.tobytes(),
            b"".join(asked.keys),
        )
    )


def read_request(text: bytes, tag: str, windows: Windows, partition: int, partition_count: int) -> Asked | None:
    """The events of a request in a partition; None if it is of other windows.

    Raises:
        ValueError: It is not one, or does not belong there.
    """
    found = _request(text)
    if found.windows != tag:
        return None
    if not 0 <= found.window < len(windows.layouts):
        raise ValueError("there is no such window")
    numbers = np.frombuffer(found.numbers, np.int64)
    count = len(numbers)
    columns = np.frombuffer(found.columns, np.float64)
    lengths = np.frombuffer(found.lengths, np.int32)
    partitions = np.frombuffer(found.partitions, np.int32)
    asked = Asked(
        found.window,
        found.again,
        partitions,
        np.frombuffer(found.origins, np.uint32),
        numbers,
        np.frombuffer(found.times, np.float64),
        columns.reshape(len(windows.layouts[found.window].columns), count),
        _cut(found.keys, lengths.tolist()),
    )
    if {len(partitions), len(asked.origins), len(asked.times), len(asked.keys)} != {count}:
        raise ValueError("its columns are not equally long")
    if count and (partitions.min() < 0 or partitions.max() >= partition_count):
        raise ValueError("there is no such partition")
    if any(partition_of(key, partition_count) != partition for key in set(asked.keys)):
        raise ValueError("an entity lies in another partition")
    return asked


def _cut(keys: bytes, lengths: Sequence[int]) -> list[bytes]:
    if any(length < _TEXT_KEY.size for length in lengths) or sum(lengths) != len(keys):
        raise ValueError("its keys are cut off")
    return [keys[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]


class Ledger:
    """Which events of each partition of the event map a partition's entities of a window have already.

    An event is asked for only once all before it of its partition are answered. So the newest tells it of all, but for
    those that were found in the map. Its bytes begin with a head as any state's do.
    """

    def __init__(self, state: bytes, partition_count: int) -> None:
        """Of its bytes; empty bytes, or those of another number of partitions, are one without any."""
        if len(state) == len(EMPTY_HEAD) + partition_count * 12:
            self._origins = np.frombuffer(state, np.uint32, partition_count, len(EMPTY_HEAD)).copy()
            self._numbers = np.frombuffer(state, np.int64, offset=len(EMPTY_HEAD) + partition_count * 4).copy()
        else:
            self._origins = np.zeros(partition_count, np.uint32)
            self._numbers = np.full(partition_count, -1, np.int64)

    def encode(self) -> bytes:
        """Its bytes."""
        return EMPTY_HEAD + self._origins.tobytes() + self._numbers.tobytes()

    def lacks(self, asked: Asked) -> NDArray[np.bool_]:
        """Which events of a request it does not have."""
        origins, numbers = self._origins[asked.partitions], self._numbers[asked.partitions]
        newer: NDArray[np.bool_] = (asked.origins > origins) | ((asked.origins == origins) & (asked.numbers > numbers))
        return newer & (asked.numbers >= 0)

    def note(self, asked: Asked, rows: NDArray[Any]) -> None:
        """It has these events now, which are in the order of their sequences."""
        self._origins[asked.partitions[rows]] = asked.origins[rows]
        self._numbers[asked.partitions[rows]] = asked.numbers[rows]
