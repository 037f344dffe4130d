"""Drift: whether what a version scores is still what it was trained on; what workers have counted, merged and judged.

A record a job, in the map `gridscore.drift`, changed by compare-and-set only: each worker adds what it has counted, and
notes that it has, as the answer may be lost; whichever finds a window full judges it. So each event counts in one
window, and a window is judged once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from gridscore.errors import BadRecordError
from gridscore.features.baseline import psi
from gridscore.grid import Records
from gridscore.grid.records import Count, parsed

if TYPE_CHECKING:
    from gridscore.features.baseline import Baseline, Column
    from gridscore.grid import Grid
    from gridscore.job.monitoring import Drift

DRIFT_MAP = "gridscore.drift"

MEASURES = ("psi", "ks", "missing", "unseen")

# Alerts of a job, those that have ended and are not told of among them; while there are so many, no other begins.
MOST_ALERTS = 100

_LEAST = 100  # values from which on a distribution is compared
_MOST_VERSIONS = 8
_MOST_WORKERS = 512
_STALE_WINDOWS, _STALE_SECONDS = 4, 120.0  # a version that no worker has told of for so long does not score any more
Moment = Annotated[int, Meta(ge=0, lt=253_402_300_800_000)]  # milliseconds since 1970, before the year 10,000
Word = Annotated[str, Meta(max_length=1_200)]
Version = Annotated[str, Meta(max_length=200, pattern="^.+ v[1-9][0-9]{0,9}$")]
Counts = Annotated[tuple[Annotated[tuple[Count, ...], Meta(max_length=64)], ...], Meta(max_length=100_100)]


class Tally(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events of a time."""

    since: Moment  # begin, in milliseconds since 1970
    until: Moment  # end; of an open window, when the last events were added
    rows: Count = 0  # how many events they stand for: of many, some are looked at
    # For each column of the baseline: the events in each bin, those without a value, and those of them with a category
    # that the model does not know.
    counts: Counts = ()

    def plus(self, rows: int, counts: Counts, now: int) -> Tally:
        """With more events."""
        if not self.counts:
            return Tally(self.since, now, rows, counts)
        both = zip(self.counts, counts, strict=True)
        added = tuple(tuple(a + b for a, b in zip(mine, more, strict=True)) for mine, more in both)
        return Tally(self.since, now, self.rows + rows, added)


class Figures(NamedTuple):
    """How far a column has moved; None if it cannot be said, as of a category's order or of training without any."""

    psi: float | None
    ks: float | None
    missing: float  # share without a value
    missing_before: float  # the same in training
    unseen: float  # share with a category that the model does not know; these have no value, either

    def excess(self, measure: str) -> float | None:
        """What is compared with the threshold of a measure."""
        value: float | None = getattr(self, measure)
        return None if value is None else value - self.missing_before if measure == "missing" else value


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """A column that has moved too far."""

    version: Version  # as in `late v3`
    feature: Word  # its name; `<score>` is what the model gives
    measure: Annotated[str, Meta(pattern="^(psi|ks|missing|unseen)$")]
    value: float  # by the last window; of `missing`, how much more than in training
    threshold: Annotated[float, Meta(gt=0)]  # above which it begins
    since: Moment  # end of the window that began it, in milliseconds since 1970
    until: Moment = 0  # end of the window that ended it; 0 while it lasts
    why: Word = ""  # it has ended, if not by its value
    told: bool = False  # whether its begin, or its end if it has ended, is in the map of alerts

    @property
    def key(self) -> str:
        """Of its record, behind the job's name."""
        return f"{self.version}/{self.measure}/{self.feature}"


class Watched(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version: the open window, the last one that was judged, and which column had moved farthest in it by PSI."""

    open: Tally
    last: Tally | None = None
    worst: tuple[Word, float] | None = None


class DriftRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a job."""

    versions: Annotated[dict[Version, Watched], Meta(max_length=_MOST_VERSIONS)]  # by name and number, as `late v3`
    # By their keys; one that has ended stays until that is told.
    alerts: Annotated[dict[Annotated[str, Meta(max_length=3_000)], Alert], Meta(max_length=MOST_ALERTS)] = {}
    # By worker, when it counted what it has added last: it may not know that it has, and try again.
    added: Annotated[dict[Word, Moment], Meta(max_length=_MOST_WORKERS)] = {}

    @property
    def active(self) -> list[Alert]:
        """Alerts that last, the farthest above their thresholds first."""
        found = [alert for alert in self.alerts.values() if not alert.until]
        return sorted(found, key=lambda alert: -alert.value / alert.threshold)


async def drift_of(grid: Grid, job: str) -> DriftRecord | None:
    """The record of a job, if there is a usable one."""
    try:
        record = await Records(grid, DRIFT_MAP).get(job)
        return None if record is None else parsed(DriftRecord)(record)
    except (BadRecordError, msgspec.ValidationError):
        return None


def advanced(
    value: dict[str, Any] | None,  # the record; None if there is none; what is not one is begun anew
    version: str,
    baseline: Baseline,
    part: tuple[int, Counts],  # events and counts, as in a `Tally`
    spec: Drift,
    worker: str,
    now: int,  # when the worker counted them, in milliseconds since 1970
) -> DriftRecord:
    """The record of a job with what one worker has counted, once; judges the window if it is full."""
    try:
        record = msgspec.convert(value or {}, DriftRecord)
    except msgspec.ValidationError:
        record = DriftRecord({})
    if record.added.get(worker) == now:
        return record
    every = int(spec.every_seconds * 1000)
    stale = now - max(_STALE_WINDOWS * every, int(_STALE_SECONDS * 1000))
    versions = {name: each for name, each in record.versions.items() if name == version or each.open.until > stale}
    while len(versions) >= _MOST_VERSIONS and version not in versions:
        del versions[min(versions, key=lambda name: versions[name].open.until)]
    alerts = {key: alert for key, alert in record.alerts.items() if not (alert.until and alert.told)}
    for key, alert in alerts.items():
        if alert.version not in versions and not alert.until:
            alerts[key] = msgspec.structs.replace(alert, until=now, why="no worker scores with it", told=False)
    mine = versions.get(version)
    lengths = [len(counts) for counts in part[1]]
    if mine is None or (mine.open.counts and [len(counts) for counts in mine.open.counts] != lengths):
        mine = Watched(Tally(now, now))
    begun = mine.open
    if begun.since > now + every:  # by a clock that is wrong
        begun = Tally(now, now, begun.rows, begun.counts)
    window = begun.plus(*part, now)
    if now - window.since >= every and window.rows >= spec.events:
        found = figures_of(baseline, window)
        moved = [(figures.psi, name) for name, figures in found.items() if figures.psi is not None]
        worst = max(moved, default=None)
        mine = Watched(Tally(now, now), window, None if worst is None else (worst[1], round(worst[0], 6)))
        alerts = _judged(alerts, version, found, spec, now)
    else:
        mine = msgspec.structs.replace(mine, open=window)
    added = {name: at for name, at in record.added.items() if name != worker}
    while len(added) >= _MOST_WORKERS:
        del added[next(iter(added))]
    return DriftRecord({**versions, version: mine}, alerts, {**added, worker: now})


def figures_of(baseline: Baseline, window: Tally) -> dict[str, Figures]:
    """How far each column has moved in a window, by name; nothing if it does not have the baseline's columns."""
    columns = baseline.columns
    if [len(counts) for counts in window.counts] != [column.bins + 2 for column in columns.values()] or not window.rows:
        return {}
    return {
        name: _figures(column, counts) for (name, column), counts in zip(columns.items(), window.counts, strict=True)
    }


def _figures(column: Column, counts: tuple[int, ...]) -> Figures:
    *bins, missing, unseen = counts
    there = sum(bins)
    rows = there + missing
    shift, distance = None, None
    if there >= _LEAST and column.shares:
        before, now = np.array(column.shares), np.array(bins) / there
        shift = psi(before, now)
        distance = None if column.texts else float(np.abs(np.cumsum(now - before)).max())
    return Figures(shift, distance, missing / max(rows, 1), column.missing, unseen / max(rows, 1))


def _judged(
    alerts: dict[str, Alert], version: str, found: dict[str, Figures], spec: Drift, now: int
) -> dict[str, Alert]:
    """The alerts after a window of a version."""
    alerts = dict(alerts)
    fresh: list[Alert] = []
    thresholds = {measure: limit for measure in MEASURES if (limit := getattr(spec, measure)) is not None}
    values = {
        (name, measure): (excess, limit)
        for name, figures in found.items()
        for measure, limit in thresholds.items()
        if (excess := figures.excess(measure)) is not None
    }
    for key, alert in list(alerts.items()):
        if alert.version != version or alert.until:
            continue
        value, limit = values.get((alert.feature, alert.measure), (0.0, alert.threshold))
        told = alert.told and value > limit
        alerts[key] = msgspec.structs.replace(
            alert, value=round(value, 6), threshold=limit, until=0 if value > limit else now, told=told
        )
    for (name, measure), (value, limit) in values.items():
        alert = Alert(version, name, measure, round(value, 6), limit, now)
        if value > limit and alert.key not in alerts:
            fresh.append(alert)
    fresh.sort(key=lambda alert: -alert.value / alert.threshold)
    return {**alerts, **{alert.key: alert for alert in fresh[: max(MOST_ALERTS - len(alerts), 0)]}}
