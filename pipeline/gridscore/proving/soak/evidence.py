"""The files that a soak's processes write while it runs, and what they say, read back.

Each is append-only text, a line a fact, fields separated by tabs. A line counts once its newline is there: what a
killed process has left unfinished is ignored.

| file | written by | fields |
|---|---|---|
| ledger.tsv | producer | milliseconds of the acknowledgement, number, key, JSON of the event |
| notices.tsv | listener | milliseconds, key, JSON of the result; or `#`, milliseconds, what happened |
| journal.tsv, journal-end.tsv | recorder | partition, sequence in the result map's journal, key, JSON of the result |
| marks.tsv | recorder | milliseconds, partition, epoch, owner, where the result map's journal ended after that |
| results.tsv | recorder | key, JSON of the result: the map at the end |
| events.tsv | recorder | key, JSON of the event: the map at the end |
| incidents.tsv | the trial | JSON of each fault as it was done |
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEDGER = "ledger.tsv"
NOTICES = "notices.tsv"
JOURNAL = "journal.tsv"
JOURNAL_END = "journal-end.tsv"
MARKS = "marks.tsv"
RESULTS = "results.tsv"
EVENTS = "events.tsv"
INCIDENTS = "incidents.tsv"

_FLUSH_BYTES = 1 << 16


class LineFile:
    """An append-only file of lines; they are handed to the system whole, so a kill -9 leaves no half of one flushed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._pending: list[bytes] = []
        self._size = 0

    def add(self, *fields: bytes) -> None:
        """Add a line; it is written soon, or by `flush`."""
        line = b"\t".join(fields) + b"\n"
        self._pending.append(line)
        self._size += len(line)
        if self._size >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the system."""
        data = memoryview(b"".join(self._pending))
        self._pending, self._size = [], 0
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Write what is pending and close."""
        self.flush()
        os.close(self._file)


def lines(path: Path) -> Iterator[list[bytes]]:
    """The fields of each whole line; nothing if there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1].split(b"\t")


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a result says, as far as it is judged."""

    n: int  # number of the event
    score: float  # what the model gave
    sequence: int  # of the event in its partition's journal; below zero if it was found in the map instead
    version: int  # of the model
    scored_at: int  # milliseconds since 1970, by the worker's clock
    epoch: int | None = None  # of the lease under which it was written; None where workers do not say


class _Event(msgspec.Struct):
    n: int


_event = msgspec.json.Decoder(_Event).decode
_result = msgspec.json.Decoder(Result).decode


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """An event that the cluster acknowledged."""

    at: int
    number: int
    key: str
    text: bytes


class Write(msgspec.Struct, frozen=True, gc=False):
    """A write to the result map, as its journal has it."""

    partition: int  # where
    position: int  # sequence in the result map's journal
    key: str  # of event and result
    result: Result  # what was written
    text: bytes  # the same, as it was written
    final: bool = True  # whether it is in the journal as it was at the end, and not only as it was read during the run


class Notice(msgspec.Struct, frozen=True, gc=False):
    """A result as the listener was told of it."""

    at: int
    key: str
    result: Result


class Mark(msgspec.Struct, frozen=True, gc=False):
    """At that time the partition's lease had this epoch, and its result journal ended at this position.

    The position was asked for after the epoch had been read: whatever stands behind it was written later.
    """

    at: int
    partition: int
    epoch: int
    owner: str
    position: int


class Incident(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fault, as it was done."""

    number: int  # its number in the plan
    # See `plan.KINDS`, or `crash` for a worker that ended by itself. Of a fault that combines several, each is an
    # incident of its own kind, under the same number.
    kind: str
    at: int  # milliseconds since 1970 when it began
    until: int  # the same, when it was over: the worker or member was back, the bytes flowed again
    worker: int | None = None  # slot of the worker
    pid: int | None = None  # process of that worker; of the one that the fault was done to, not of its successor
    member: int | None = None  # index of the member
    note: str = ""  # more, for people


@dataclass(slots=True)
class Evidence:
    """All that is known of a run."""

    ledger: list[Acknowledged] = field(default_factory=list)  # acknowledged events
    # Numbers of events that were put and never acknowledged: they may have results, or not.
    doubt: set[int] = field(default_factory=set)
    # Writes to the result map, by partition in the order of their positions.
    writes: list[Write] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)  # what the listener saw
    # Milliseconds at which the listener's client connected to a member anew.
    reconnects: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)  # epochs and owners of the partitions as they were seen to change
    incidents: list[Incident] = field(default_factory=list)  # what was done to workers and members
    results: dict[str, Result] = field(default_factory=dict)  # the result map at the end
    events: dict[str, int] = field(default_factory=dict)  # the event map at the end: number of the event by key
    gaps: int = 0  # writes that the recorder knows to have missed in the journal, even at the end

    @classmethod
    def load(cls, folder: Path, doubt: set[int] | None = None) -> Self:
        """Read the files of a run."""
        notices, reconnects = [], []
        for first, *rest in lines(folder / NOTICES):
            if first == b"#":
                reconnects.append(int(rest[0]))
            else:
                notices.append(Notice(int(first), rest[0].decode(), _result(rest[1])))
        writes, gaps = _writes(folder)
        return cls(
            ledger=[
                Acknowledged(int(at), int(number), key.decode(), text)
                for at, number, key, text in lines(folder / LEDGER)
            ],
            doubt=doubt or set(),
            writes=writes,
            notices=notices,
            reconnects=reconnects,
            marks=[
                Mark(int(at), int(partition), int(epoch), owner.decode(), int(position))
                for at, partition, epoch, owner, position in lines(folder / MARKS)
            ],
            incidents=[msgspec.json.decode(text, type=Incident) for (text,) in lines(folder / INCIDENTS)],
            results={key.decode(): _result(text) for key, text in lines(folder / RESULTS)},
            events={key.decode(): _event(text).n for key, text in lines(folder / EVENTS)},
            gaps=gaps,
        )


def _writes(folder: Path) -> tuple[list[Write], int]:
    """The journal as it was at the end, and what was read during the run that is not in it any more."""
    final = _positions(folder / JOURNAL_END)
    seen = _positions(folder / JOURNAL)
    writes = [Write(p, i, key.decode(), _result(text), text) for (p, i), (key, text) in final.items()]
    # A write may stand elsewhere at the end if the member that was read died before its backup had it.
    texts = {(p, key, text) for (p, _), (key, text) in final.items()}
    writes += [
        Write(p, i, key.decode(), _result(text), text, final=False)
        for (p, i), (key, text) in seen.items()
        if (p, key, text) not in texts
    ]
    writes.sort(key=lambda write: (write.partition, write.position, write.final))
    covered = final.keys() | seen.keys()
    newest: dict[int, int] = {}
    for partition, position in covered:
        newest[partition] = max(newest.get(partition, -1), position)
    return writes, sum(position + 1 for position in newest.values()) - len(covered)


def _positions(path: Path) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """Key and text by partition and sequence."""
    return {(int(partition), int(position)): (key, text) for partition, position, key, text in lines(path)}


def pid_of(worker: str) -> int | None:
    """Process of a worker, from its identity: host, process and a random part."""
    match = re.fullmatch(r".*-(\d+)-[0-9a-f]+", worker)
    return int(match[1]) if match else None
