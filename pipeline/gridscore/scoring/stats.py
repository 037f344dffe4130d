"""What a worker counts of a job and publishes in the grid; and what the group of a job reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.group.subscription import MOST_SHOWN, GroupStats, Subscription

if TYPE_CHECKING:
    from gridscore.job import JobRecord

STAGES = ("decode", "windows", "features", "predict", "encode", "write")
_COUNTERS = (
    "events",
    "lost",
    "regressions",
    "skipped",
    "late",
    "broken_states",
    "rescued",
    "explained",
    "unexplained",
    "rebalances",
    "taken",
    "given",
)
# What a worker's record holds as it is here.
_PLAIN = (*_COUNTERS, "partitions", "committed_at", "version", "quality", "experiment")

_LATENCY_WRITES = 2_048
_LATENCY_SECONDS = 10.0


LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Latencies:
    """How long events took, since the job began."""

    # Of events up to each of `LATENCY_SECONDS`, and beyond the last; each without those before.
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_SECONDS) + 1))
    total: float = 0.0  # of all, in seconds

    def add(self, seconds: float, events: int) -> None:
        """So many events took so long."""
        self.counts[bisect_left(LATENCY_SECONDS, seconds)] += events
        self.total += seconds * events


@dataclass(slots=True)
class JobStats(GroupStats):
    """Counters of one job in one worker, since it began."""

    batches: int = 0
    skipped: int = 0  # events that already had their result when they were read a second time
    late: int = 0  # events that were too late to count in windows
    broken_states: int = 0  # states of windows that could not be used, and began anew
    explained: int = 0  # results that were given reasons
    unexplained: int = 0  # results that should have been, and were not: for lack of time, or of the result
    # CPU nanoseconds of the event loop's thread, by stage.
    stage_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    version: int = 0  # of the model in use, 0 if none
    experiment: str = ""  # its id, if this worker takes part in one
    model_error: str = ""  # why a newer version is not in use; empty if it is
    drift_error: str = ""  # why drift cannot be told; empty if it can, or the job does not ask for it
    lookup_error: str = ""  # why a lookup map cannot be copied, or loaded again; empty if it can
    function_error: str = ""  # why Python functions of its features cannot be called; empty if they can
    # Of each lookup map's copy: entries, age in seconds, loads, bad entries and the error of the last one, and events
    # without an entry since the model went live.
    copies: dict[str, dict[str, Any]] = field(default_factory=dict)
    # What was missing in the last events; see `QualityCounter.to_json`.
    quality: dict[str, Any] = field(default_factory=dict)
    latencies: Latencies | None = None  # from arrival to acknowledgement, of all events; None if nobody wants to know
    _latencies: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LATENCY_WRITES))

    def wrote(self, arrived_at: float, now: float, events: int) -> None:
        """A write was acknowledged; the first of its events had arrived at `arrived_at`."""
        self._latencies.append((now, now - arrived_at))
        if self.latencies is not None:
            self.latencies.add(now - arrived_at, events)

    def latency_ms(self, now: float) -> dict[str, float]:
        """From arrival to acknowledgement, over the latest writes; empty if there were none lately."""
        latest = [latency * 1000 for at, latency in self._latencies if now - at < _LATENCY_SECONDS]
        if not latest:
            return {}
        p50, p99 = np.percentile(latest, [50, 99])
        return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(max(latest), 2)}

    def to_json(self, now: float) -> dict[str, Any]:
        """For the worker's record; `now` is of the grid's clock."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "dead_letters": self.dead,
            "rate": round(self.rate(), 1),
            "latency_ms": self.latency_ms(now),
            "model_error": self.model_error[:MOST_SHOWN],
            "lookup_error": self.lookup_error[:MOST_SHOWN],
            "function_error": self.function_error[:MOST_SHOWN],
            "drift_error": self.drift_error,
            # Read by `make bench`.
            "stage_us_per_event": {s: round(ns / 1000 / max(self.events, 1), 3) for s, ns in self.stage_ns.items()},
            "lookups": self.copies,
        }


def subscription_of(record: JobRecord) -> Subscription:
    """What the group of a job reads."""
    job = record.job
    return Subscription(
        job.name,
        job.events,
        job.start,
        job.on_loss,
        begin=record.begin,
        restarts=record.restarts,
        again=f"`gridscore resume {job.name}`",
    )
