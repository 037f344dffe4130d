"""What a sink promises, and what it may rely on.

A sink is a worker group on the result map's journal. The runner (`gridscore.sinks.runner`) drives each process so:

1. `open`; after an interruption, anew.
2. `taken`, when partitions came; `dropped`, when they went.
3. `deliver`, one delivery at a time, results of a partition in the order of its journal. When it returns, the
   destination has the delivery for good, and the offset may be committed.
4. `close`, whatever happened.

A delivery may come again: after a crash, after an error, to another process. So a sink is at least once, and what it
does with a result must be idempotent: the result's key with its `epoch` and `sequence` says which is newer.
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
    """The destination is away, or refuses for now. Trying again may heal it: the delivery is made again."""

    exit_code = 3


class Delivered(NamedTuple):
    """One result on its way to a destination.

    Attributes:
        key: Of the event and the result: a string or a number; the hexadecimal form of its bytes if it is of another
            type.
        text: The result's JSON text, as it stands in the map.
        value: The same, decoded.
        partition: Of the result map.
        sequence: In that partition's journal. If a rescan found it in the map, that of the journal's end when the map
            was looked at: it is as new as that.
        epoch: Of the sink's lease. It begins with the time at which the partition was first held, in seconds since
            1970, and grows with every owner, so that (`epoch`, `sequence`) grows with time, though the cluster may lose
            all that it has: of two results of a key, the one with the larger pair is the newer, even if it comes first.
    """

    key: str | int | float
    text: bytes
    value: dict[str, Any]
    partition: int
    sequence: int
    epoch: int


class Refused(NamedTuple):
    """A result that the destination does not take, and never will: it goes to the dead letters of the sink."""

    result: Delivered
    error: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is delivered in one go.

    Attributes:
        results: In order within each partition; those that are filtered out are not among them.
        offsets: By partition, the sequence to go on from when this is delivered.
        until: Of the monotonic clock: when the first lease of these partitions ends unless it is renewed. What has not
            been sent by then must not be sent.
    """

    results: Sequence[Delivered]
    offsets: Mapping[int, int]
    until: float


class Sink(Protocol):
    """Delivers to one place. Its methods are never called while another of them is under way.

    A sink whose `open` was interrupted is closed, and made anew for the next attempt.

    Attributes:
        max_results: Results of one delivery at most.
        identity: Of this process, as `taken` calls those that held partitions before; the runner sets it before `open`.

    A sink may have an attribute `linger`: seconds for which the runner collects results to fill a delivery. Without it,
    what is there is delivered at once. One that has an attribute `identity` is given that of its process before `open`:
    it is what `taken` names it by in other processes. One that has a method `look` is asked by it, while there is
    nothing to deliver, whether its destination is there; it takes seconds at most, and raises what `deliver` would.
    """

    max_results: int
    identity: str

    async def open(self) -> None:
        """Connect, and find out what can be found out: credentials, names, the form of a table.

        Raises:
            SinkInterruptedError: It cannot now, and may later.
            GridscoreError: It cannot, and trying again would not heal it: one message for people.
        """

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """Partitions came, each with the process that held it before without giving it back, or an empty name.

        Returns:
            For partitions of which the destination itself knows more than the grid: the sequence to go on from.
        """

    async def dropped(self, partitions: Collection[int]) -> None:
        """Partitions went."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Deliver; returns what the destination does not take, when it has all the rest for good.

        Raises:
            SinkInterruptedError: It cannot now; some may have been delivered. The runner tries the same again, with
                growing pauses, as long as the leases stand.
            GridscoreError: It cannot, and trying again would not heal it: the sink stops with this message.
        """

    async def close(self) -> None:
        """Let everything go. Raises nothing."""


KINDS = PlugKinds[SinkSettings, Sink]("sink")
