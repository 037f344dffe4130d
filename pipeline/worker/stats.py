"""What a worker counts, per job, and publishes in the grid."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

STAGES = ("decode", "features", "predict", "encode", "write")


@dataclass(slots=True)
class JobStats:
    """Counters of one job in one worker, since it began.

    Attributes:
        events: Scored, results acknowledged.
        dead: Sent to the dead letters.
        batches: Micro-batches.
        lost: Events overwritten before they were read.
        regressions: Journals that began again.
        stage_ns: CPU nanoseconds of the event loop's thread, by stage.
        version: Version of the model in use, 0 if none.
        model_error: Why a newer version is not in use, empty if it is.
        partitions: Held now.
        copies: Of each lookup map's copy: entries, age in seconds, loads, bad entries, and events that had no entry
            since the model went live.
    """

    events: int = 0
    dead: int = 0
    batches: int = 0
    lost: int = 0
    regressions: int = 0
    stage_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    version: int = 0
    model_error: str = ""
    partitions: int = 0
    copies: dict[str, dict[str, float]] = field(default_factory=dict)
    _window: list[tuple[float, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Events per second over the last few calls; call it once a second."""
        now = time.monotonic()
        self._window.append((now, self.events))
        del self._window[:-6]
        (since, then), (until, last) = self._window[0], self._window[-1]
        return (last - then) / (until - since) if until > since else 0.0

    def to_json(self) -> dict[str, Any]:
        """For the worker's record."""
        return {
            "events": self.events,
            "dead_letters": self.dead,
            "batches": self.batches,
            "rate": round(self.rate(), 1),
            "lost": self.lost,
            "regressions": self.regressions,
            "version": self.version,
            "model_error": self.model_error,
            "partitions": self.partitions,
            "stage_us_per_event": {s: round(ns / 1000 / max(self.events, 1), 3) for s, ns in self.stage_ns.items()},
            "lookups": self.copies,
        }
