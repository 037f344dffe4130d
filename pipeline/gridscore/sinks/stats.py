"""What a process of a sink counts, and publishes in the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gridscore.group.subscription import MOST_SHOWN, GroupStats

STARTING, DELIVERING, WAITING, PAUSED = "starting", "delivering", "waiting", "paused"
"""States of a process: it opens its destination, delivers, waits until its destination can be reached again, or pauses
because there is no room for dead letters."""


@dataclass(slots=True)
class SinkStats(GroupStats):
    """Counters of one process of a sink, since it began.

    Attributes:
        state: `starting`, `delivering`, `waiting` or `paused`.
        error: Why it waits or pauses; empty if it does not.
        deliveries: Made.
        filtered: Results that were not to be delivered.
        interruptions: Times that a destination could not be reached.
    """

    state: str = STARTING
    error: str = ""
    deliveries: int = 0
    filtered: int = 0
    interruptions: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the process's record."""
        return {
            "state": self.state,
            "error": self.error[:MOST_SHOWN],
            "delivered": self.events,
            "rate": round(self.rate(), 1),
            "deliveries": self.deliveries,
            "filtered": self.filtered,
            "dead_letters": self.dead,
            "interruptions": self.interruptions,
            "lost": self.lost,
            "regressions": self.regressions,
            "rescued": self.rescued,
            "rescans": self.rescans,
            "partitions": self.partitions,
            "rebalances": self.rebalances,
            "committed_at": self.committed_at,
        }
