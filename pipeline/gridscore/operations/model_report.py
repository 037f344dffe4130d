"""How the scores of a job turned out: its results, joined with the labels that have come since.

Nothing is kept for it beside results and labels: a report reads both, partition by partition, when somebody asks.
"""

from __future__ import annotations

import contextlib
import math
import time
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.errors import JobError, UsageError
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk
from gridscore.job import Jobs
from gridscore.operations.backtest import iso, judged, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid
    from gridscore.job import Job
    from gridscore.job.monitoring import Labels

MOST_ROWS = 5_000_000  # results, and labels with keys of their own, that a report takes: 40 bytes each
_MOST_GROUPS = 20
_Group = tuple[str, int, str]
_PAGE = 1_000
_LARGEST, _FARTHEST = 3.4e38, 6e13  # a float32, and milliseconds since 1970 that can be written as a time: 1,900 years
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class _Rows:
    """The results of one version and variant."""

    times: array[float] = field(default_factory=lambda: array("d"))
    labels: array[float] = field(default_factory=lambda: array("d"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    decisions: array[int] = field(default_factory=lambda: array("h"))


class _Outcomes:
    """The labels of a job, and what is wrong with some."""

    def __init__(self, grid: Grid, labels: Labels) -> None:
        self._grid, self._labels = grid, labels
        self._by_key: dict[str, bytes] = {}
        self.matched = self.invalid = 0
        self.example = ""

    async def read(self) -> None:
        """Read all, if their keys are not those of results."""
        if self._labels.key is None:
            return
        for partition in range(self._grid.partition_count):
            async for entries in walk(self._grid, self._labels.map, partition, _PAGE):
                for key, value in entries:
                    with contextlib.suppress(HazelcastError):  # a key of a kind that no event field has
                        self._by_key[str(transport.to_object(self._grid.client, key))] = value
                if len(self._by_key) > MOST_ROWS:
                    raise UsageError(f"`{self._labels.map}` has more than {MOST_ROWS:,} labels with keys of their own.")

    async def of(self, partition: int, results: dict[bytes, dict[str, Any]]) -> dict[bytes, bytes]:
        """The entries of some results, by the results' keys."""
        if (name := self._labels.key) is None:
            return await values_of(self._grid, self._labels.map, partition, results)
        wanted = {key: str(value) for key, result in results.items() if (value := result.get(name)) is not None}
        return {key: self._by_key[text] for key, text in wanted.items() if text in self._by_key}

    def number(self, entry: bytes | None) -> float:
        """The label as a number; NaN if there is none, or it cannot be used."""
        if entry is None:
            return math.nan
        self.matched += 1
        try:
            return label_of(payload(entry), self._labels)
        except ValueError as error:
            self.invalid += 1
            self.example = self.example or str(error)
            return math.nan


def label_of(text: bytes, labels: Labels) -> float:
    """The number that an entry of a map of labels stands for; NaN if it has none yet.

    Raises ValueError if it is not a number, and `positive` does not say what counts as 1.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = text.decode(errors="replace")  # a string that is not JSON is the label itself
    if isinstance(value, dict):
        value = value.get(labels.field)
    if value is None:
        return math.nan
    if labels.positive and not isinstance(value, list | dict):
        return float((str(value).lower() if isinstance(value, bool) else str(value)) in labels.positive)
    if not isinstance(value, bool | int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{str(value)[:100]!r} is not a number: name the texts that count as 1, `positive`")
    return float(value)


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
    outcomes = _Outcomes(grid, labels)
    await outcomes.read()
    since = 0.0 if last is None else time.time() - last
    names = {decision.decision: number for number, decision in enumerate(job.decisions)}
    groups: dict[_Group, _Rows] = defaultdict(_Rows)
    count = 0
    for partition in range(grid.partition_count):
        seen: set[bytes] = set()  # an entry may come twice
        async for entries in walk(grid, job.results, partition, _PAGE):
            results = {key: _result(value) for key, value in entries if key not in seen}
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


def _result(value: bytes) -> dict[str, Any]:
    try:
        return _decode(payload(value))
    except (msgspec.DecodeError, RecursionError):
        return {}  # whatever it is, it is not one of our results


def _row(result: dict[str, Any], since: float) -> tuple[_Group, float, float] | None:
    """Model, version and variant, time and score of a result; None of what is not one, or too old."""
    version, at, score = (result.get(what) for what in ("version", "scored_at", "score"))
    if isinstance(score, list):
        raise UsageError("A report compares one score with a label; the model gives several.")
    if not isinstance(version, int) or not isinstance(at, int) or not isinstance(score, int | float):
        return None
    if abs(at) > _FARTHEST or at / 1000 < since or not abs(score) <= _LARGEST:
        return None
    model, variant = (str(result.get(what) or "")[:100] for what in ("model", "variant"))
    return (model, version, variant), at / 1000, float(score)


def _judged(job: Job, group: _Group, rows: _Rows) -> dict[str, Any]:
    model, version, variant = group
    costs_of = {} if job.labels is None else job.labels.cost
    columns = {"time": np.array(rows.times), "label": np.array(rows.labels), "value": np.full(len(rows.times), np.nan)}
    decisions = np.array(rows.decisions, np.int16)
    for number, decision in enumerate(job.decisions):
        for label, cost in enumerate(costs_of.get(decision.decision, ())):
            columns["value"][(decisions == number) & (columns["label"] == label)] = cost
    names = [decision.decision for decision in job.decisions]
    found = judged(np.array(rows.scores, np.float32), decisions, names, columns)
    known = ~np.isnan(columns["label"])
    costs = columns["value"][~np.isnan(columns["value"])]
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
        "label_mean": float(columns["label"][known].mean()) if known.any() else None,
        "from": iso(columns["time"].min()),
        "to": iso(columns["time"].max()),
        **found,
    }
