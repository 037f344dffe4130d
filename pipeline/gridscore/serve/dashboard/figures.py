"""What figures mean: pure functions from what was seen to what a page says and draws."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.features.baseline import counts_in, psi
from gridscore.operations.health import is_well
from gridscore.texts import count_text, ranges_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.features.baseline import Column
    from gridscore.operations.explain import Explanation
    from gridscore.operations.health import Finding
    from gridscore.operations.status import JobFigures, JobStatus, Overview, WorkerRecord
    from gridscore.serve.observation import Point, Recent

WIDTH, HEIGHT = 320, 64  # of a chart, in its own units
BINS = 20

# How much more than its share waits for a worker that is behind; how much slower than the others one is slow; how much
# more or less is a change.
_BEHIND, _SLOW, _CHANGED = 1.5, 3.0, 1.3


def health(findings: Sequence[Finding]) -> str:
    """How a job, source or sink is, in words."""
    if not findings:
        return "well"
    return "not well" if not is_well(findings) else "well, with notes"


class Worker(NamedTuple):
    """A worker as a row of a table."""

    record: WorkerRecord
    figures: JobFigures
    partitions: int
    ranges: str  # the partitions that it owns, as `0-67, 70`
    lag: int  # events that wait in them
    cost: float  # microseconds of CPU for an event, over all it has scored
    stage: str  # where most of them go
    remark: str  # what is unusual about it; empty if nothing is


def workers_of(overview: Overview, status: JobStatus) -> list[Worker]:
    """The workers of a job, those with a remark first."""
    rows, name = [], status.record.name
    latencies = {worker: each.latency_ms.get("p99") or 0.0 for worker, each in status.figures.items()}
    for record in overview.workers:
        if (figures := record.jobs.get(name)) is None:
            continue
        owned = [number for number, each in enumerate(status.positions) if each.owner == record.id]
        lag, stages = status.lag_of(record.id), figures.stage_us_per_event
        others = [value for worker, value in latencies.items() if worker != record.id and value]
        remark = _remark(status, figures, len(owned), lag, latencies[record.id], others)
        stage = max(stages, key=lambda each: stages[each], default="")
        rows.append(Worker(record, figures, len(owned), ranges_text(owned), lag, sum(stages.values()), stage, remark))
    return sorted(rows, key=lambda row: (not row.remark, -row.lag, row.record.id))


def _remark(status: JobStatus, figures: JobFigures, owned: int, lag: int, p99: float, others: Sequence[float]) -> str:
    said = []
    if len(status.figures) > 1 and status.lag and lag > max(figures.rate, 100):
        waits, has = lag / status.lag, owned / len(status.positions)
        if waits >= _BEHIND * has:
            said.append(f"behind: {waits:.0%} of what waits, in {has:.0%} of the partitions")
    if others and p99 >= _SLOW * median(others):
        said.append(f"slow: its p99 is {p99 / median(others):.0f} times that of the others")
    if figures.model_error:
        said.append(f"cannot use the model that is meant: {figures.model_error}")
    return "; ".join(said)


def why_lag_grows(points: Sequence[Point]) -> str:
    """What has changed since lag began to grow, from the last minute or two; empty if it does not grow."""
    if len(points) < 6:
        return ""
    cut = max(3, len(points) // 4)
    before, now = [each for each in points[:-cut] if points[-1].at - each.at < 120], points[-cut:]
    if not before:
        return ""
    start, end = before[-1].lag or 0, now[-1].lag or 0
    comes, scored = (median(values) for values in zip(*((each.comes, each.scored) for each in now), strict=True))
    if end <= start or comes <= scored * 1.05:
        return ""
    text = f"Lag grows because {comes:,.0f} events a second come, and {scored:,.0f} are scored."
    came, did = (median(values) for values in zip(*((each.comes, each.scored) for each in before), strict=True))
    had, has = max(each.workers for each in before), now[-1].workers
    if has < had:
        text += f" There are fewer workers: {has}, before {had}."
    if came and comes > _CHANGED * came:
        text += f" More events come than before: {came:,.0f} then."
    if did > _CHANGED * scored and comes <= _CHANGED * came:
        text += f" Fewer are scored than before: {did:,.0f} then. See which worker is slow."
    return text


def line(values: Sequence[float | None], most: float) -> str:
    """The points of a line over the width of a chart, for SVG."""
    step = WIDTH / max(1, len(values) - 1)
    return " ".join(
        f"{index * step:.1f},{HEIGHT - 2 - (HEIGHT - 4) * value / (most or 1):.1f}"
        for index, value in enumerate(values)
        if value is not None and math.isfinite(value)
    )


def chart(title: str, *lines: tuple[str, Sequence[float | None]], unit: str = "") -> dict[str, Any]:
    """A chart of some lines that begin at zero."""
    found = [value for _, values in lines for value in values if value is not None and math.isfinite(value)]
    most = max(found, default=0.0)
    last = {name: next((value for value in reversed(values) if value is not None), None) for name, values in lines}
    now = ", ".join(f"{name} {'unknown' if value is None else f'{value:,.0f}{unit}'}" for name, value in last.items())
    drawn = [(name, line(values, most)) for name, values in lines]
    return {"title": title, "text": f"{title}: {now} now, at most {most:,.0f}{unit}", "lines": drawn, "now": now}


def charts(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        chart("Events a second", ("come", [p.comes for p in points]), ("scored", [p.scored for p in points])),
        chart("Lag", ("waiting", [p.lag for p in points])),
        chart("Latency", ("p99", [p.p99 for p in points]), unit=" ms"),
    ]


def scores_of(recent: Sequence[Recent]) -> dict[str, Any] | None:
    """How the scores of some results are spread; None if they are not single numbers."""
    scores = [each.result.score for each in recent]
    numbers = [each for each in scores if isinstance(each, float) and math.isfinite(each)]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    width = (high - low) / BINS or 1.0
    counts = Counter(min(BINS - 1, int((each - low) / width)) for each in numbers)
    most, step = max(counts.values()), WIDTH / BINS
    bars = [(index * step, count * (HEIGHT - 2) / most, step - 1) for index, count in sorted(counts.items())]
    text = f"Scores of {len(numbers):,} recent results, from {min(numbers):.4g} to {max(numbers):.4g}"
    return {"text": f"{text}; the median is {median(numbers):.4g}", "bars": bars, "low": low, "high": high}


def against(training: Sequence[float], live: Sequence[float]) -> dict[str, Any]:
    """Shares of bins, live as bars and those of the training as a line."""
    most, step = max(*training, *live, 1e-9), WIDTH / len(training)
    bars = [(index * step, share * (HEIGHT - 2) / most, step - 1) for index, share in enumerate(live)]
    heights = [f"{HEIGHT - share * (HEIGHT - 2) / most:.1f}" for share in training]
    line = " ".join(f"{i * step:.1f},{height} {(i + 1) * step:.1f},{height}" for i, height in enumerate(heights))
    return {"bars": bars, "line": line}


def scores_against(training: Column | None, scores: Sequence[float]) -> dict[str, Any] | None:
    """How some scores of one output are spread over the bins of the training; None if these are not known."""
    if training is None or not training.shares or not training.edges or not scores:
        return None
    live = counts_in(np.array(training.edges), np.array(scores, np.float32)) / len(scores)
    moved = psi(np.array(training.shares), live)
    text = f"{count_text(len(scores), 'recent score')} against the training: PSI {moved:.2f}"
    return {"text": text, **against(training.shares, live.tolist())}


def decisions_of(recent: Sequence[Recent]) -> list[tuple[str, int, float]]:
    """Decisions, or else classes, with their number and share, the most frequent first."""
    names = [each.result.decision if each.result.decision is not None else each.result.label for each in recent]
    found = Counter(str(name) for name in names if name is not None)
    return [(name, count, count / len(recent)) for name, count in found.most_common(20)]


def contributions_of(found: Explanation, most: int = 15) -> list[dict[str, Any]]:
    """What each feature adds to the margin, the largest first, with the length of its bar in percent."""
    ranked = sorted(found.contributions.items(), key=lambda each: -abs(each[1]))
    largest = max((abs(adds) for _, adds in ranked), default=0.0) or 1.0
    rows = [
        {"name": name, "value": found.features.get(name), "adds": adds, "bar": round(100 * abs(adds) / largest)}
        for name, adds in ranked[:most]
    ]
    if rest := ranked[most:]:
        adds = sum(each for _, each in rest)
        rows.append({"name": f"{len(rest)} others", "value": "", "adds": adds, "bar": 0})
    return rows
