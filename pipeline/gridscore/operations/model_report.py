"""How the scores of a job turned out: its results, joined with the labels that have come since.

Nothing is kept for it beside results and labels: a report reads both, partition by partition, when somebody asks.
"""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import JobError, UsageError
from gridscore.grid import transport
from gridscore.grid.entries import walk
from gridscore.job import Jobs
from gridscore.models.outcomes import costs_of
from gridscore.operations.backtest import iso, judged, require
from gridscore.scoring.labels import LARGEST, MOST_ROWS, PAGE, KnownLabels, result_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid
    from gridscore.job import Job

_MOST_GROUPS = 20
_Group = tuple[str, int, str]
_FARTHEST = 6e13  # milliseconds since 1970 that can be written as a time: 1,900 years


@dataclass(slots=True)
class _Rows:
    """The results of one version and variant."""

    times: array[float] = field(default_factory=lambda: array("d"))
    labels: array[float] = field(default_factory=lambda: array("d"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    decisions: array[int] = field(default_factory=lambda: array("h"))


async def model_report(
    grid: Grid,
    name: str,
    *,
    last: float | None = None,  # only results of so many seconds; default: all that are kept
    # Called with the partitions done and all partitions.
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Metrics of each version that has scored, over what is known by now; plain, as JSON has it.

    Raises JobError if there is no such job, or it says nothing of labels; UsageError if scikit-learn is not installed,
    or there is too much to be read.
    """
    job = (await Jobs(grid).get(name)).job
    if (labels := job.labels) is None:
        raise JobError(
            f"The job `{name}` says nothing of labels.",
            f"Write `labels: {{map: labels.{name}}}` into its job file, and submit it again.",
        )
    require("sklearn.metrics", "Comparing scores with labels")
    outcomes = KnownLabels(grid, labels)
    await outcomes.read()
    since = 0.0 if last is None else time.time() - last
    names = {decision.decision: number for number, decision in enumerate(job.decisions)}
    groups: dict[_Group, _Rows] = defaultdict(_Rows)
    count = 0
    for partition in range(grid.partition_count):
        seen: set[bytes] = set()  # an entry may come twice
        async for entries in walk(grid, job.results, partition, PAGE):
            results = {key: result_of(value) for key, value in entries if key not in seen}
            seen |= results.keys()
            found = await outcomes.of(partition, results)
            for key, result in results.items():
                label = outcomes.number(found.get(key))
                if (row := _row(result, since)) is None:
                    continue
                count += 1
                rows = groups[row[0]]
                rows.times.append(row[1])
                rows.scores.append(row[2])
                rows.labels.append(label)
                rows.decisions.append(names.get(str(result.get("decision")), -1))
        if count > MOST_ROWS:
            raise UsageError(f"There are more than {MOST_ROWS:,} results.", "Take the last ones: `--last 7d`.")
        on_progress(partition + 1, grid.partition_count)
    newest = sorted(groups, reverse=True)
    return {
        "job": name,
        "model": job.model.name,
        "labels_map": labels.map,
        "results": count,
        "labels_without_result": max(0, await transport.map_size(grid.client, labels.map) - outcomes.matched),
        "labels_invalid": outcomes.invalid,
        "first_invalid": outcomes.example,
        "left_out": [list(group) for group in newest[_MOST_GROUPS:]],
        "value_column": "COST",
        "versions": [_judged(job, group, groups[group]) for group in newest[:_MOST_GROUPS]],
    }


def _row(result: dict[str, Any], since: float) -> tuple[_Group, float, float] | None:
    """Model, version and variant, time and score of a result; None of what is not one, or too old."""
    version, at, score = (result.get(what) for what in ("version", "scored_at", "score"))
    if isinstance(score, list):
        raise UsageError("A report compares one score with a label; the model gives several.")
    if not isinstance(version, int) or not isinstance(at, int) or not isinstance(score, int | float):
        return None
    if abs(at) > _FARTHEST or at / 1000 < since or not abs(score) <= LARGEST:
        return None
    model, variant = (str(result.get(what) or "")[:100] for what in ("model", "variant"))
    return (model, version, variant), at / 1000, float(score)


def _judged(job: Job, group: _Group, rows: _Rows) -> dict[str, Any]:
    model, version, variant = group
    decisions, labels = np.array(rows.decisions, np.int16), np.array(rows.labels)
    names = [decision.decision for decision in job.decisions]
    values = costs_of(decisions, labels, names, {} if job.labels is None else job.labels.cost)
    columns = {"time": np.array(rows.times), "label": labels, "value": values}
    found = judged(np.array(rows.scores, np.float32), decisions, names, columns)
    known = ~np.isnan(labels)
    costs = values[~np.isnan(values)]
    if len(costs):
        found["metrics"]["cost"] = float(costs.mean())
    return {
        "name": f"{'' if model == job.model.name else f'{model} '}v{version}{variant and f' {variant}'}",
        "model": model,
        "version": version,
        "variant": variant or None,
        "scored": len(known),
        "labels": int(known.sum()),
        "unlabelled": int((~known).sum()),
        "label_mean": float(labels[known].mean()) if known.any() else None,
        "from": iso(columns["time"].min()),
        "to": iso(columns["time"].max()),
        **found,
    }
