"""What a worker does about drift: it counts features and scores in the bins of the training, and tells of alerts."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError
from gridscore.features.baseline import MAX_SCORES, counts_in
from gridscore.grid import Records
from gridscore.models.drift import DRIFT_MAP, Alert, DriftRecord, advanced, drift_of
from gridscore.scoring.audit import share_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gridscore.features.baseline import Baseline
    from gridscore.features.quality import QualityCounter
    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.models import ModelVersion
    from gridscore.models.drift import Counts
    from gridscore.scoring.stats import JobStats

_log = logging.getLogger(__name__)

# Of a time, so many rows are all looked at, and one in so many afterwards, which counts as many times.
WHOLE, EVERY = 10_000, 32

_BUFFER = 1_024
_LONGEST_TICK = 15.0


class Sketch:
    """Rows that were scored, counted in the bins of a baseline.

    Rows are copied, and counted when a buffer is full: that costs the same whatever the size of the batches.
    """

    def __init__(self, version: ModelVersion, baseline: Baseline, quality: QualityCounter) -> None:
        self.version, self.baseline = str(version), baseline
        self._quality = quality
        self._categories = version.categories
        self._features = len(version.features)
        places = [*map(version.features.index, baseline.features), *range(self._features, self._features + MAX_SCORES)]
        self._columns = [
            # Of a category, the bin of each code; the last is of what has no value.
            (
                place,
                np.array(column.edges),
                _bins_of(version.categories.get(name, ()), column.texts) if column.texts else None,
            )
            for place, (name, column) in zip(places, baseline.columns.items(), strict=False)
        ]
        self._buffer = np.empty((_BUFFER, self._features + len(baseline.scores)), np.float32)
        self._filled = self._seen = 0
        self._begin()

    def _begin(self) -> None:
        self._step, self._rows = 1, 0
        self._counts = [np.zeros(column.bins + 1, np.int64) for column in self.baseline.columns.values()]
        self._counted, self._unseen = self._quality.counted, dict(self._quality.unseen)

    def add(self, matrix: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        """Take some of the rows of a batch."""
        if self._step == 1 and self._rows >= WHOLE:
            self._count()  # these count once still
            self._step = EVERY
        first = -self._seen % self._step
        self._seen += len(matrix)
        if first >= len(matrix):
            return
        rows = slice(first, None, self._step)
        matrix, scores = matrix[rows], scores.reshape(len(scores), -1)[rows, : len(self.baseline.scores)]
        while len(matrix):
            end = min(self._filled + len(matrix), _BUFFER)
            taken = end - self._filled
            self._buffer[self._filled : end, : self._features] = matrix[:taken]
            self._buffer[self._filled : end, self._features :] = scores[:taken]
            matrix, scores, self._filled = matrix[taken:], scores[taken:], end
            if end == _BUFFER:
                self._count()

    def take(self) -> tuple[int, Counts]:
        """What was counted since the last call, as a `Tally` has it."""
        self._count()
        rows, seen = self._rows, self._quality.counted - self._counted
        counts = [tuple(each.tolist()) for each in self._counts]
        shares = {name: (n - self._unseen[name]) / max(seen, 1) for name, n in self._quality.unseen.items()}
        self._begin()
        return rows, tuple(
            # A category that is not known counts as missing, too; an encoding has a number for it.
            (*each, min(round(shares.get(name, 0.0) * rows), each[-1] if name in self._categories else rows))
            for name, each in zip(self.baseline.columns, counts, strict=True)
        )

    def _count(self) -> None:
        rows = self._buffer[: self._filled]
        for (place, edges, bins), counts in zip(self._columns, self._counts, strict=True):
            column = rows[:, place]
            lacking = np.isnan(column)
            if bins is not None:
                codes = np.where(lacking | (column < 0), len(bins) - 1, column).astype(np.intp)
                found = np.bincount(bins[np.minimum(codes, len(bins) - 1)], minlength=len(counts))
            else:
                missing = np.count_nonzero(lacking)
                found = np.r_[counts_in(edges, column), missing]
                found[-2] -= missing
            np.add(counts, found * self._step, out=counts)
        self._rows += self._filled * self._step
        self._filled = 0


def _bins_of(known: tuple[str, ...], texts: tuple[str, ...]) -> NDArray[np.intp]:
    places = {text: place for place, text in enumerate(texts)}
    return np.array([*(places.get(text, len(texts)) for text in known), len(texts) + 1])


async def watch_drift(
    grid: Grid, job: Job, watched: Callable[[], list[tuple[Sketch | None, int]]], worker: str, stats: JobStats
) -> None:
    """Add what a worker has counted to the job's record, and tell of alerts; returns at once if the job asks for none.

    `watched`: gives the sketch of each version that scores now, and its number; `stats`: where to say that drift
    cannot be told.
    """
    if (spec := job.drift) is None:
        return
    records, tick = Records(grid, DRIFT_MAP), min(spec.every_seconds / 4, _LONGEST_TICK)
    await asyncio.sleep(tick * share_of(job.name + worker))
    adds: dict[str, partial[DriftRecord]] = {}  # until the record is known to have them
    while True:
        await asyncio.sleep(tick)
        found = watched()
        lacking = [number for sketch, number in found if sketch is None]
        stats.drift_error = f"version {lacking[0]} has no baseline of its training" if lacking else ""
        for sketch, _ in found:
            if sketch is not None and sketch.version not in adds:
                adds[sketch.version] = partial(
                    advanced,
                    version=sketch.version,
                    baseline=sketch.baseline,
                    part=sketch.take(),
                    spec=spec,
                    worker=f"{worker} {sketch.version}",
                    now=int(time.time() * 1000),
                )
        try:
            for version, add in list(adds.items()):
                record = await records.update(job.name, lambda value, add=add: msgspec.to_builtins(add(value)))  # type: ignore[misc]
                del adds[version]
                for key, alert in msgspec.convert(record.value, DriftRecord).alerts.items():
                    if not alert.told:
                        await _tell(grid, job, key, alert)
        except (HazelcastError, GridError) as error:
            _log.warning("%s: drift could not be noted, trying again: %s", job.name, error)


async def _tell(grid: Grid, job: Job, key: str, alert: Alert) -> None:
    """Put an alert where applications listen, once, whichever workers try, or are killed in between.

    What is there is read before the record is: if another has told of it since, either the record says so, or the
    entry is not what it was.
    """
    alerts, name = Records(grid, job.alerts_map), f"{job.name}/{key}"
    there = await alerts.get(name)
    record = await drift_of(grid, job.name)
    if record is None or record.alerts.get(key) != alert:
        return
    entry = entry_of(job.name, alert)
    if there is None:
        await alerts.create(name, entry)
    elif any(there.value.get(what) != entry[what] for what in ("since", "state")):  # the value may be of later
        await alerts.replace(there, entry)
    _log.warning("%s: drift: %s", job.name, entry, extra={"action": "drift"})
    await Records(grid, DRIFT_MAP).update(job.name, lambda value: _told(value, key, alert))


def _told(value: dict[str, Any] | None, key: str, alert: Alert) -> dict[str, Any]:
    value = value or {}
    if (there := value.get("alerts", {}).get(key)) == msgspec.to_builtins(alert):
        there["told"] = True
    return value


def entry_of(job: str, alert: Alert) -> dict[str, Any]:
    """What applications get of an alert."""
    return {
        "job": job,
        "version": alert.version,
        "feature": alert.feature,
        "measure": alert.measure,
        "state": "ended" if alert.until else "started",
        "value": alert.value,
        "threshold": alert.threshold,
        "since": iso(alert.since),
        "until": iso(alert.until) if alert.until else None,
        "why": alert.why,
    }


def iso(milliseconds: int) -> str:
    """RFC 3339 in UTC, of milliseconds since 1970."""
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
