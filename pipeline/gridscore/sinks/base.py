"""What a sink promises, and what it may rely on.

The processes of a sink are a worker group on the result map's journal. The runner (`gridscore.sinks.runner`) calls:

1. `open`; after an interruption, that of a new sink.
2. `taken`, when partitions came; `dropped`, when they went.
3. `deliver`, one delivery at a time, the results of a partition in the order of its journal. When it returns, the
   destination has the delivery for good, and the offset may be committed.
4. `close`, whatever happened.

A delivery may be repeated: after a crash, after an error, by another process. So a sink delivers at least once, and
must treat results idempotently: a result's `epoch` and `sequence` say which of two under a key is newer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gridscore.errors import GridscoreError
from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.kinds import PlugKinds

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class SinkInterruptedError(GridscoreError):
    """The destination is away, or refuses for now: the delivery is tried again."""

    exit_code = 3


class Delivered(NamedTuple):
    """One result on its way to a destination.

    Attributes:
        key: Of the event and the result: a string or a number; for other types, the hexadecimal form of its bytes.
        text: The result's JSON text, as in the map.
        value: The same, decoded.
        partition: Of the result map.
        sequence: In that partition's journal. If a rescan found it in the map, that of the journal's end at the time.
        epoch: Of the sink's lease. It begins with the time at which the partition was first held, in seconds since
            1970, and grows with every owner. So (`epoch`, `sequence`) grows with time even if the cluster loses all
            that it has: of two results of a key, the one with the larger pair is newer, even if it comes first.
    """

    key: str | int | float
    text: bytes
    value: dict[str, Any]
    partition: int
    sequence: int
    epoch: int


class Refused(NamedTuple):
    """A result that the destination will never take: it goes to the sink's dead letters."""

    result: Delivered
    error: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is delivered at once.

    Attributes:
        results: In order within each partition, without those that are filtered out.
        offsets: By partition, the offset to commit when this is delivered.
        until: Of the monotonic clock: nothing may be sent later. The first lease of these partitions ends then, unless
            it is renewed.
    """

    results: Sequence[Delivered]
    offsets: Mapping[int, int]
    until: float


class Sink(Protocol):
    """Delivers to one place. Its methods are never called at the same time.

    A sink whose `open` was interrupted is closed, and the next attempt makes a new one.

    Attributes:
        max_results: The most results of a delivery.
        identity: Of this process; the runner sets it before `open`. `taken` names earlier owners by it.

    A sink may have an attribute `linger`: for how many seconds the runner collects results to fill a delivery. Without
    it, results are delivered at once. If it has a method `look`, the runner calls it while there is nothing to deliver,
    to see whether the destination is there; it takes seconds at most, and raises what `deliver` would.
    """

    max_results: int
    identity: str

    async def open(self) -> None:
        """Connect, and check what can be checked: credentials, names, the columns of a table.

        Raises:
            SinkInterruptedError: It cannot now, but may later.
            GridscoreError: It cannot, and a retry would not help: the message is for people.
        """

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """Partitions came, each with the process that held it before without giving it back, or an empty name.

        Returns:
            The offsets of partitions of which the destination knows more than the grid.
        """

    async def dropped(self, partitions: Collection[int]) -> None:
        """Partitions went."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Deliver; returns what the destination does not take, once it has all the rest for good.

        Raises:
            SinkInterruptedError: It cannot now; some may have been delivered. The runner tries the same again, with
                growing pauses, as long as the leases hold.
            GridscoreError: It cannot, and a retry would not help: the sink stops with this message.
        """

    async def close(self) -> None:
        """Release everything. Raises nothing."""


KINDS = PlugKinds[SinkSettings, Sink]("sink")
