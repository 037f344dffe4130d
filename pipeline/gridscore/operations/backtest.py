"""A backtest: a history through the job's own scorer, and what its labels say of the scores and decisions.

A history is read in chunks, and what is kept of a row is its time, label, value, score and decision: some 30 bytes.
"""

from __future__ import annotations

import datetime as dt
import importlib
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gridscore.errors import TableError, UsageError, missing_extra
from gridscore.features.cells import BOOLS, MISSING
from gridscore.features.lookup_table import LookupHistory
from gridscore.features.tables import kinds_of, read_chunks, rows_as_json, take_columns
from gridscore.features.windows import why_late
from gridscore.group.reader import Cursor
from gridscore.scoring.rehearsal import Rehearsal, outcome_of, page_of_texts
from gridscore.scoring.window_states import HistoryStates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gridscore.job import Job
    from gridscore.operations.subject import Side
    from gridscore.scoring.rehearsal import Given

_CHUNK = 8_192
# Lengths of the periods that metrics are shown for, in seconds.
_PERIODS = (60, 300, 900, 3_600, 21_600, 86_400, 7 * 86_400, 30 * 86_400, 91 * 86_400, 365 * 86_400)

_MOST_PERIODS = 24
_FARTHEST = 6e10  # seconds from 1970 to times that can be written, about 1,900 years
_BINS = 10


@dataclass(slots=True)
class _Scored:
    """What a version makes of the rows: NaN and -1 where it makes nothing."""

    rehearsal: Rehearsal
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    decisions: list[NDArray[np.int16]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    example: str = ""


async def backtest(
    job: Job,  # whose schema, features and decisions
    sides: Sequence[Side],  # the versions: one, or two to be compared, what there is now last
    given: Given,  # the lookups
    history: Path,  # CSV, Parquet or JSON lines, in the order of time if the job has windows
    *,
    # The column with what came of each event: 0 or 1, or a number; empty where that is not known.
    label: str | None = None,
    # Seconds until a label is known: events that are younger than that at the end of the history count without one.
    label_delay: float = 0.0,
    value: str | None = None,  # a column of numbers, to be summed for decisions
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,  # called with the rows done and all rows
) -> dict[str, Any]:
    """Score a history, and say what came of it; the report is plain, as JSON has it.

    Raises TableError if the history cannot be read, lacks a column, is out of order by more than the job's lateness, or
    has a label or value that is not a number; UsageError if scikit-learn, which metrics need, is not installed; or a
    delay is given, and the job has no time.
    """
    clock = _time_field(job)
    if label is not None:
        require("sklearn.metrics", "Comparing scores with labels")
    if label_delay and clock is None:
        raise UsageError("--label-delay needs the time of each event.", "Name its field in the job: `order_by`.")
    names = [decision.decision for decision in job.decisions]
    numbers = {name: number for number, name in enumerate(names)}
    scored = [
        _Scored(Rehearsal(job, side.model, given, HistoryStates(job) if job.used_windows else None)) for side in sides
    ]
    cursor, began = Cursor(0, 0), time.perf_counter()
    columns: dict[str, list[NDArray[np.float64]]] = {"time": [], "label": [], "value": []}
    done = 0
    with read_chunks(history, kinds_of(job.schema_), _CHUNK, keep=[*filter(None, (label, value))]) as (total, chunks):
        for frame in chunks:
            texts = list(rows_as_json(frame, job.schema_, str(history)))
            count = len(texts)
            nothing = np.full(count, math.nan)
            columns["time"].append(nothing if clock is None else _times(frame, job, clock))
            for what, column in (("label", label), ("value", value)):
                columns[what].append(nothing if column is None else _numbers(frame, column, str(history), done))
            for each in scored:
                await _score(each, texts, done, cursor, numbers)
                if job.used_windows and each.rehearsal.stats.late:
                    raise TableError(
                        f"{history}: a row up to {done + count} {why_late(job)}",
                        f"Sort the history by `{job.order_by}`.",
                    )
            done += count
            on_progress(done, max(total, done))
    if not done:
        raise TableError(f"`{history}` has no rows.", "Give a history with at least one event.")
    seconds = time.perf_counter() - began
    rows = {what: np.concatenate(parts) for what, parts in columns.items()}
    if label_delay:
        rows["label"][rows["time"] > np.nanmax(rows["time"]) - label_delay] = math.nan
    known = ~np.isnan(rows["label"])
    report: dict[str, Any] = {
        "job": job.name,
        "history": str(history),
        "rows": done,
        "seconds": round(seconds, 3),
        "rows_per_second": round(done / seconds, 1),
        "from": iso(np.nanmin(rows["time"])) if clock and not np.isnan(rows["time"]).all() else None,
        "to": iso(np.nanmax(rows["time"])) if clock and not np.isnan(rows["time"]).all() else None,
        "label": label,
        "label_delay": label_delay,
        "labels": int(known.sum()),
        "label_mean": float(rows["label"][known].mean()) if known.any() else None,
        "value": value,
        "may_leak": [name for name, table in given.tables.items() if not isinstance(table, LookupHistory)],
        "versions": [],
    }
    found = []
    for side, each in zip(sides, scored, strict=True):
        scores, decisions = _joined(each.scores), np.concatenate(each.decisions)
        found.append((scores, decisions))
        report["versions"].append(
            {
                "name": side.name,
                "model": side.model.version.name,
                "sha256": side.model.version.sha256,
                "scored": done - each.rejected.total(),
                "rejected": dict(each.rejected),
                "first_rejected": each.example,
                **judged(scores, decisions, names, rows),
            }
        )
    if len(found) > 1:
        report["changes"] = _changes(*found, names=names, values=rows["value"], labels=rows["label"])
    return report


async def _score(each: _Scored, texts: list[bytes], first: int, cursor: Cursor, numbers: dict[str, int]) -> None:
    results, rejected = await each.rehearsal.score(page_of_texts(texts, first), cursor)
    for event in rejected:
        each.example = each.example or f"row {event.sequence + 1}: {event.stage}: {event.error}"
        each.rejected[event.stage] += 1
    outcomes = list(map(outcome_of, results))
    rows = np.fromiter((outcome.sequence - first for outcome in outcomes), np.intp, len(outcomes))
    made = np.array([outcome.score for outcome in outcomes], np.float32)
    scores = np.full((len(texts), *made.shape[1:]), math.nan, np.float32)
    scores[rows] = made.reshape(len(rows), *scores.shape[1:])
    decisions = np.full(len(texts), -1, np.int16)
    if numbers:
        decisions[rows] = [numbers[str(outcome.decision)] for outcome in outcomes]
    each.scores.append(scores)
    each.decisions.append(decisions)


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """All scores; a chunk of which no row was scored does not say how many there are of each."""
    shape = max((part.shape[1:] for part in parts), key=len)
    return np.concatenate([part if part.shape[1:] == shape else np.full((len(part), *shape), np.nan) for part in parts])


# ---------------------------------------------------------------------- columns of the history


def _time_field(job: Job) -> str | None:
    """The field with the time of an event: what orders them, or else the only time that there is."""
    times = [name for name, kind in job.schema_.items() if kind.type == "timestamp"]
    return job.order_by or (times[0] if len(times) == 1 else None)


def _times(frame: pd.DataFrame, job: Job, name: str) -> NDArray[np.float64]:
    """Seconds since 1970; NaN where there is no time. They are for periods only."""
    kind = job.schema_[name]
    series = frame[kind.key(name) if kind.key(name) in frame.columns else name]
    if kind.unit != "iso" and series.dtype.kind != "M":
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=math.nan)
        times = numbers / 1_000 if kind.unit == "ms" else numbers
    else:
        moments = pd.to_datetime(series, utc=True, errors="coerce", format="ISO8601")
        times = np.asarray((moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), np.float64)
    return np.where(np.abs(times) < _FARTHEST, times, math.nan)


def _numbers(frame: pd.DataFrame, column: str, source: str, first: int) -> NDArray[np.float64]:
    """The numbers of a column, true and false among them; NaN for what is missing.

    Raises TableError if a cell has something else.
    """
    series = take_columns(frame, [column], source)[column]
    if series.dtype == object or not pd.api.types.is_numeric_dtype(series.dtype):
        series = series.map(lambda cell: None if (text := str(cell)) in MISSING else BOOLS.get(text.lower(), cell))
        series = series.astype(object)
    found: NDArray[np.float64] = pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=math.nan)
    for row in np.flatnonzero(series.notna().to_numpy() & ~np.isfinite(found))[:1]:
        raise TableError(
            f"{source}, row {first + row + 1}: `{str(series.iloc[row])[:50]}` in `{column}` is not a number.",
            "Of classes, write 1 for the one that scores are of, and 0 for others; leave empty what is not known.",
        )
    return found


# ---------------------------------------------------------------------- what they say


def require(module: str, what: str) -> None:
    """Say what is missing before a long run. Raises UsageError if the module is not installed."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_extra(what, "backtest", error) from None


def judged(
    scores: NDArray[np.float32], decisions: NDArray[np.int16], names: Sequence[str], rows: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Metrics, decisions, calibration, and metrics over time.

    `scores`: NaN where there is none; `decisions`: places in the names; -1 where there is none; `names`: of the
    decisions; `rows`: `time` in seconds since 1970, `label` and `value` of each; NaN where there is none.
    """
    labels, values = rows["label"], rows["value"]
    one = scores if scores.ndim == 1 else np.full(len(scores), math.nan, np.float32)
    known = ~np.isnan(labels) & ~np.isnan(one)
    classes = bool(known.any()) and bool(np.isin(labels[known], (0, 1)).all())
    is_binary = classes and bool(((one[known] >= 0) & (one[known] <= 1)).all())
    return {
        "metrics": metrics_of(labels[known], one[known], is_binary=is_binary),
        "decisions": [
            _decided(name, decisions == number, decisions >= 0, labels, values, classes=classes)
            for number, name in enumerate(names)
        ],
        "calibration": _calibration(labels[known], one[known]) if is_binary else [],
        "periods": [
            {
                "from": iso(begin),
                "events": int(within.sum()),
                "labels": int((within & known).sum()),
                "score_mean": _mean(one[within]),
                "label_mean": _mean(labels[within]),
                **metrics_of(labels[within & known], one[within & known], is_binary=is_binary),
            }
            for begin, within in _periods(rows["time"])
        ],
    }


def metrics_of(labels: NDArray[Any], scores: NDArray[Any], *, is_binary: bool) -> dict[str, float | None]:
    """What labels say of scores: of probabilities, `auc`, `log_loss` and `brier`; of numbers, `rmse` and `mae`.

    None where they say nothing, as of an AUC where all labels are the same; nothing where there are none.
    """
    if not len(labels):
        return {}
    from sklearn import metrics

    scores = scores.astype(np.float64)
    if not is_binary:
        error = scores - labels
        return {"rmse": float(np.sqrt(np.mean(error * error))), "mae": float(np.abs(error).mean())}
    both = 0 < labels.sum() < len(labels)
    return {
        "auc": float(metrics.roc_auc_score(labels, scores)) if both else None,
        "log_loss": float(metrics.log_loss(labels, scores, labels=[0, 1])),
        "brier": float(metrics.brier_score_loss(labels, scores)),
    }


def _decided(
    name: str,
    these: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    labels: NDArray[Any],
    values: NDArray[Any],
    *,
    classes: bool,
) -> dict[str, Any]:
    """Of the events with a decision: how many of them, of those with a label, are 1; and how many of all 1 they are."""
    known = these & ~np.isnan(labels)
    hits, all_hits = labels[known].sum(), np.nansum(labels[scored])
    return {
        "decision": name,
        "events": int(these.sum()),
        "share": int(these.sum()) / max(int(scored.sum()), 1),
        "value": _sum(values[these]),
        "labels": int(known.sum()),
        "precision": float(hits / known.sum()) if classes and known.any() else None,
        "recall": float(hits / all_hits) if classes and all_hits else None,
    }


def _calibration(labels: NDArray[Any], scores: NDArray[Any]) -> list[dict[str, Any]]:
    bins = np.minimum((scores * _BINS).astype(np.intp), _BINS - 1)
    return [
        {
            "from": number / _BINS,
            "to": (number + 1) / _BINS,
            "events": int(within.sum()),
            "score_mean": _mean(scores[within]),
            "label_mean": _mean(labels[within]),
        }
        for number in range(_BINS)
        if (within := bins == number).any()
    ]


def _periods(times: NDArray[np.float64]) -> list[tuple[float, NDArray[np.bool_]]]:
    """Where each period begins, and which events are in it."""
    if np.isnan(times).all():
        return []
    span = float(np.nanmax(times) - np.nanmin(times))
    length = next((each for each in _PERIODS if span / each < _MOST_PERIODS), span / _MOST_PERIODS)
    numbers = np.floor(times / length)
    return [(number * length, numbers == number) for number in np.unique(numbers[~np.isnan(numbers)])]


def _changes(
    after: tuple[NDArray[Any], NDArray[Any]],
    before: tuple[NDArray[Any], NDArray[Any]],
    *,
    names: Sequence[str],
    values: NDArray[Any],
    labels: NDArray[Any],
) -> dict[str, Any]:
    """What would be otherwise with the first version instead of the second; of events that both have scored."""
    (new, to), (old, come) = after, before
    found: dict[str, Any] = {"decisions": [], "changed": 0}
    if new.shape == old.shape:
        both = ~(np.isnan(new) | np.isnan(old)).reshape(len(new), -1).any(axis=1)
        apart = np.abs(new[both].astype(np.float64) - old[both]).reshape(both.sum(), -1).max(axis=1, initial=0.0)
        found |= {
            "scored_by_both": int(both.sum()),
            "same_score": int((apart == 0).sum()),
            "score_difference": {
                name: float(np.quantile(apart, q)) if len(apart) else None
                for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }
    for one, was in enumerate(names):
        for other, becomes in enumerate(names):
            these = (come == one) & (to == other)
            if these.any():
                found["decisions"].append(
                    {
                        "from": was,
                        "to": becomes,
                        "events": int(these.sum()),
                        "value": _sum(values[these]),
                        "label_mean": _mean(labels[these]),
                    }
                )
                found["changed"] += int(these.sum()) if one != other else 0
    return found


def _mean(column: NDArray[Any]) -> float | None:
    there = column[~np.isnan(column)]
    return float(there.mean(dtype=np.float64)) if len(there) else None


def _sum(column: NDArray[Any]) -> float | None:
    there = column[~np.isnan(column)]
    return math.fsum(there) if len(there) else None


def iso(seconds: float) -> str:
    """RFC 3339 in UTC, of seconds since 1970."""
    return dt.datetime.fromtimestamp(float(seconds), dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
