"""Reasons: which features made the score of a result what it is, added to it after it was written.

A lane of its own, so that no score waits for it: rows whose results want reasons wait here, a thread computes what each
feature adds (see `LoadedModel.contributions`), and the result is exchanged, by compare-and-set on its exact bytes, for
one that has the reasons as well. So a newer result is never overwritten, whoever wrote it and however late this comes.
The lane works no more than its part of a core; what it cannot keep up with is left out and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.features.operations import number_text
from gridscore.grid import wire
from gridscore.grid.entries import replace_same
from gridscore.scoring.results import as_short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features import EventColumns
    from gridscore.grid import Grid
    from gridscore.group.group import Group
    from gridscore.group.reader import Cursor
    from gridscore.job import Job
    from gridscore.models import LoadedModel
    from gridscore.scoring.batches import PartitionBatch
    from gridscore.scoring.stats import JobStats
    from gridscore.scoring.trial import ActiveModel

_log = logging.getLogger(__name__)

_WAITING_ROWS = 2_048
_ROWS = 32  # that are computed at a time
_MOST_CLASSES = 1_000
_LOOK_SECONDS = 0.05
_STAND_SECONDS = 10.0  # how long a result may take until it stands
_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that waits, with the result to be amended."""

    model: LoadedModel
    row: NDArray[np.float32]
    margin: NDArray[np.float32] | None
    output: int
    cursor: Cursor
    partition: int
    sequence: int
    key: bytes
    text: bytes


class Reasons:
    """The reasons of one job's results, as one worker adds them."""

    def __init__(self, grid: Grid, job: Job, group: Group, stats: JobStats) -> None:
        spec = job.result.reasons
        assert spec is not None  # noqa: S101 -- there is no lane without
        self._grid, self._job, self._group = grid, job, group
        self._stats, self._spec = stats, spec
        self._waiting: deque[_Row] = deque()
        self._some = asyncio.Event()
        self._said = False

    def offer(
        self,
        active: ActiveModel,
        events: EventColumns,
        # What was scored: the matrix, and the margins if there are any.
        inputs: tuple[NDArray[np.float32], NDArray[np.float32] | None],
        scores: NDArray[np.float32],
        # Labels and decisions, as `ResultEncoder.named` gives them.
        named: Mapping[str, tuple[tuple[str, ...], NDArray[np.intp]]],
        spans: Sequence[tuple[PartitionBatch, int]],  # partitions in order, each with the number of its rows
        rows: tuple[Sequence[int], Sequence[bytes], Sequence[bytes]],  # sequences, keys and results
        variants: NDArray[np.int64] | None = None,  # who made each, during an experiment
    ) -> None:
        """Take the rows of a scored batch that want reasons."""
        wanted = np.ones(len(events), bool)
        if self._spec.decisions:
            texts_of, numbers = named["decision"]
            wanted &= np.isin(numbers, [place for place, text in enumerate(texts_of) if text in self._spec.decisions])
        if active.plan.explained is not None and wanted.any():
            if variants is None or active.trial is None:
                wanted &= active.plan.explained.decide(events, scores) == 0
            else:
                wanted &= active.trial.decide(active, events, scores, None, variants, by="explained") == 0
        sequences, keys, texts = rows
        places = np.array(sequences, np.int64)
        wanted &= places >= 0  # a rescan's events have no place in the journal that says when their results stand
        if self._spec.share < 1.0:
            partitions = np.repeat([batch.partition for batch, _ in spans], [number for _, number in spans])
            wanted &= _drawn(partitions, places, self._spec.share)
        if not wanted.any():
            return
        matrix, margins = inputs
        # One score an event is the only one, or, by `multi:softmax`, the number of the class.
        outputs = scores.argmax(axis=1) if scores.ndim > 1 else np.clip(scores, 0, _MOST_CLASSES).astype(np.intp)
        ends = np.cumsum([number for _, number in spans])
        models, order = [active.model], np.flatnonzero(wanted)
        if variants is not None and active.trial is not None:
            models += [(each or active).model for each in active.trial.challengers]
            order = order[np.argsort(variants[order], kind="stable")]  # rows of one model are explained together
        for i in order.tolist():
            if len(self._waiting) >= _WAITING_ROWS:
                self._stats.unexplained += 1
                continue
            margin = None if margins is None else margins[i : i + 1].copy()
            batch = spans[int(np.searchsorted(ends, i, side="right"))][0]
            self._waiting.append(
                _Row(
                    models[0 if variants is None else variants[i]],
                    matrix[i].copy(),
                    margin,
                    int(outputs[i]),
                    batch.cursor,
                    batch.partition,
                    sequences[i],
                    keys[i],
                    texts[i],
                )
            )
        if self._waiting:
            self._some.set()

    async def run(self) -> None:
        """Add reasons until cancelled."""
        while True:
            await self._some.wait()
            first = self._waiting[0].model
            some = list(takewhile(lambda each: each.model is first, islice(self._waiting, _ROWS)))  # noqa: B023
            for _ in some:
                self._waiting.popleft()
            if not self._waiting:
                self._some.clear()
            try:
                spent = await self._explain(some)
            except Exception as error:  # noqa: BLE001 -- scores go on, whatever becomes of their reasons
                self._stats.unexplained += len(some)
                if not self._said:
                    _log.warning("%s: %d results get no reasons: %s", self._job.name, len(some), error)
                self._said, spent = True, 1.0
            await asyncio.sleep(spent * (1 / self._spec.budget - 1))

    async def _explain(self, rows: list[_Row]) -> float:
        """Add the reasons of some rows; returns the seconds of CPU that it took."""
        found, spent = await asyncio.to_thread(_contributions, rows)
        began = time.thread_time()
        texts = [self._amended(row, adds) for row, adds in zip(rows, found, strict=True)]
        spent += time.thread_time() - began
        stand = await asyncio.gather(*map(self._stands, rows))
        writes = [self._write(row, text) for row, text, is_there in zip(rows, texts, stand, strict=True) if is_there]
        written = sum(await asyncio.gather(*writes))
        self._stats.explained += written
        self._stats.unexplained += len(rows) - written
        return spent

    async def _stands(self, row: _Row) -> bool:
        """Wait until a row's result is acknowledged; False if its partition is no longer read here, or it never is."""
        until = self._grid.clock() + _STAND_SECONDS
        while row.cursor.is_current and self._grid.clock() < until:
            to = self._group.acknowledged_to(row.partition)
            if to is not None and to > row.sequence:
                return True
            await asyncio.sleep(_LOOK_SECONDS)
        return False

    async def _write(self, row: _Row, text: bytes) -> bool:
        before, after = wire.json_data(row.text), wire.json_data(text)
        try:
            return await replace_same(self._grid, self._job.results, row.key, before, after, until=row.cursor.until)
        except HazelcastError as error:
            _log.debug("%s: the reasons of a result could not be written: %s", self._job.name, error)
            return False

    def _amended(self, row: _Row, adds: NDArray[np.float32]) -> bytes:
        """The result with its reasons: the features that add or take away most."""
        version, values = row.model.version, as_short(row.row)
        reasons = []
        for place in np.argsort(-np.abs(adds[:-1]), kind="stable")[: self._spec.top].tolist():
            name, number = version.features[place], float(values[place])
            categories = version.categories.get(name)
            value: Any = None if math.isnan(number) else number
            if categories:  # a feature's default is not a code
                value = categories[int(number)] if 0 <= number < len(categories) else None
            reason = {"feature": name, "value": value, "adds": round(float(adds[place]), 6)}
            if template := self._spec.text.get(name):
                shown = "missing" if value is None else value if isinstance(value, str) else str(number_text(value))
                reason["text"] = template.replace("{value}", shown)
            reasons.append(reason)
        made = msgspec.json.encode({"reasons": reasons, "amended_at": time.time_ns() // 1_000_000})
        return row.text[:-1] + b"," + made[1:]


def _drawn(partitions: NDArray[np.int64], sequences: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Whether each event is in the sample, by where it is: always the same ones, whoever scores them.

    Mixed as by SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    """
    mixed = sequences.astype(np.uint64) * _MIX[0] + partitions.astype(np.uint64) * _MIX[1]
    for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * factor
    drawn: NDArray[np.bool_] = (mixed ^ mixed >> np.uint64(31)) >> np.uint64(11) < np.uint64(share * 2.0**53)
    return drawn


def _contributions(rows: list[_Row]) -> tuple[list[NDArray[np.float32]], float]:
    """What each feature adds to each row's margin, the base value last; and the seconds of CPU that it took."""
    began = time.thread_time()
    first = rows[0]
    margins = None if first.margin is None else np.concatenate([row.margin for row in rows if row.margin is not None])
    found = first.model.contributions(np.stack([row.row for row in rows]), margins)
    outputs = [row.output if found.shape[1] > 1 else 0 for row in rows]
    return [found[i, output] for i, output in enumerate(outputs)], time.thread_time() - began
