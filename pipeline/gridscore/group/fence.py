"""The fence: until when a lease's owner may send, how long the system may hold that, and when a successor may write.

No member refuses a write because its writer's lease has passed on. So all that an owner has sent must have arrived
before its successor writes. All times follow from the lease time, here and nowhere else, counted from the moment at
which the owner *began* its last renewal:

    last send + longest hold + slack <= the lease time: a watcher of the record marks it
                                      + settling:       and takes it. Its first write comes later.

1. The owner sends nothing after `send`; the clock is read right before the system takes the bytes (`grid.outbox`).
2. The system gives up what a member has not confirmed within `hold` (`TCP_USER_TIMEOUT`).
3. `slack` is for what is then on the wire, and for clocks and timers that run unevenly.
4. A successor's clock begins when it has *seen* the renewal, which is later. After the lease time it marks the record,
   and takes it `SETTLE_SECONDS` later: what a member held because the partition moved is written by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from gridscore.errors import UsageError
from gridscore.grid.transport import HOLD_SECONDS

# How long a member may take to do writes that it held while a partition moved, once the partition takes writes again:
# it retries every 500 ms (`hazelcast.invocation.retry.pause.millis`).
SETTLE_SECONDS = 1.0

# Bounds of a lease. A hold below a fifth of a second would break connections when one packet has to be sent again.
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 86_400.0

_HOLD = 0.25
_SLACK = 0.05
_EXACT = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Fence:
    """The times of a lease, in seconds."""

    lease: float  # after this, somebody who has watched the record marks it
    send: float  # after this, its owner sends nothing more
    hold: float  # how long the system holds what the owner has sent
    slack: float  # for what the clocks do not show

    def __post_init__(self) -> None:
        if min(self.send, self.hold, self.slack) <= 0 or self.latest_arrival > self.lease * _EXACT:
            raise ValueError(f"an owner's writes may arrive after its successor's: {self}")

    @property
    def latest_arrival(self) -> float:
        """When all that the owner has sent has arrived, or never will."""
        return self.send + self.hold + self.slack

    @property
    def first_write(self) -> float:
        """No successor writes before: a member may have held for so long what arrived when the record was marked."""
        return self.lease + SETTLE_SECONDS

    @classmethod
    def of(cls, lease: float) -> Self:
        """The times of a lease. Raises UsageError if the lease is too short or too long."""
        if not SHORTEST_SECONDS <= lease <= LONGEST_SECONDS:
            raise UsageError(
                f"A lease of {lease:g} s is not between {SHORTEST_SECONDS:g} s and a day.", "Give another."
            )
        hold, slack = min(HOLD_SECONDS, lease * _HOLD), lease * _SLACK
        return cls(lease, lease - hold - slack, hold, slack)
