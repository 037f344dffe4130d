"""How the variants of an experiment turn out: its results, joined with the labels that have come since.

Nothing is kept of labels between two looks: each reads what is in the grid then. So a label that comes late, twice or
is corrected counts once, whichever workers were killed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import GridscoreError
from gridscore.features import EventDecoder
from gridscore.grid import transport
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of, walk
from gridscore.group.members import PUBLISH_SECONDS
from gridscore.models.experiment import LABELS, Experiment, end_alerts, experiment_in, shadow_map, tell_alert
from gridscore.models.outcomes import Labelled, Outcomes, Rows, outcomes_of
from gridscore.models.variants import GROUPS, VARIANTS
from gridscore.scoring.labels import LARGEST, KnownLabels, result_of
from gridscore.texts import moment_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.grid import Grid
    from gridscore.grid.records import Record, Records
    from gridscore.group.members import Members
    from gridscore.job import Job
    from gridscore.scoring.trial import Trial

_log = logging.getLogger(__name__)

# Labelled results that a look keeps, as many of each variant; of more, those with every second, fourth, … key.
MOST_ROWS = 200_000
_MOST_LABELS = 500_000
_PAGE = 200  # so that no event waits long for one
_OUT = 10  # looks of others that a worker lets pass after it could not


class _Row(NamedTuple):
    key: int  # a hash
    label: float
    score: float
    decision: int
    is_of_step: bool
    group: int


class Look:
    """A look at the labels of an experiment."""

    def __init__(self, grid: Grid, job: Job, trial: Trial) -> None:
        if job.labels is None:
            raise GridscoreError("the job says nothing of `labels` any more")
        self._grid, self._job, self._trial = grid, job, trial
        self._experiment = trial.experiment
        self._labels, self._map = KnownLabels(grid, job.labels, _MOST_LABELS), job.labels.map
        self._decoder = EventDecoder(job)
        self._decisions = [decision.decision for decision in job.decisions]
        self._begun, self._since = (
            1000 * moment_seconds(at) for at in (self._experiment.begun, self._experiment.since)
        )
        self._names = VARIANTS[: len(self._experiment.challengers) + 1]
        self._rows: list[list[_Row]] = [[] for _ in self._names]
        self._masks, self._most = [0] * len(self._names), MOST_ROWS // len(self._names)

    async def outcomes(self) -> Outcomes:
        """What labels say.

        Raises HazelcastError if the grid did not answer, GridscoreError if it cannot be said.
        """
        began, at, before, experiment = self._grid.clock(), time.time(), self._experiment.outcomes, self._experiment
        await self._labels.read()
        for partition in range(self._grid.partition_count):
            await self._read(partition)
        limits, costs = experiment.limits, {} if self._job.labels is None else self._job.labels.cost
        rows = [_rows(each, mask + 1) for each, mask in zip(self._rows, self._masks, strict=True)]
        tried, least = len(experiment.challengers), max(1, limits.least_labels)
        found = await asyncio.to_thread(outcomes_of, limits.outcomes, rows, least, self._decisions, costs, tried)
        labels = {
            name: Labelled(each.seen, sum(row.is_of_step for row in its) * each.one_of)
            for name, its, each in zip(self._names, self._rows, rows, strict=True)
        }
        return Outcomes(
            number=before.number + 1,
            at=int(at * 1000),
            step=experiment.step,
            seconds=round(self._grid.clock() - began, 3),
            labels=labels,
            found=tuple(found),
            invalid=self._labels.invalid,
            problem=(await self._problem())[:1_000],
        )

    async def _problem(self) -> str:
        """Why there are no labels, where more of them will not come by themselves."""
        found, name = self._labels, self._map
        if not await transport.map_size(self._grid.client, name):
            return f"there are none in the map `{name}`"
        if found.invalid and found.invalid == found.matched:
            return f"none of {found.invalid:,} in the map `{name}` can be used: {found.example}"
        return ""

    async def _read(self, partition: int) -> None:
        seen: set[bytes] = set()  # an entry may come twice
        async for entries in walk(self._grid, self._job.results, partition, _PAGE):
            results, least = {}, min(self._masks)
            for key, value in entries:
                if key not in seen and not (hashed := zlib.crc32(key)) & least:
                    result = result_of(value)
                    if self._counts(result) and not hashed & self._masks[self._names.index(result["variant"])]:
                        results[key] = result
                seen.add(key)
            found = await self._labels.of(partition, results)
            labels = {key: label for key in results if not math.isnan(label := self._labels.number(found.get(key)))}
            if labels:
                await self._take(partition, results, labels)
            while full := [number for number, rows in enumerate(self._rows) if len(rows) > self._most]:
                # Of a shadow, all are to be of the same events.
                for number in range(len(self._rows)) if self._experiment.kind == "shadow" else full:
                    mask = self._masks[number] = 2 * self._masks[number] + 1
                    self._rows[number] = [row for row in self._rows[number] if not row.key & mask]

    def _counts(self, result: dict[str, Any]) -> bool:
        """Whether a result is of this experiment, and has one score."""
        at, score, variant = (result.get(what) for what in ("scored_at", "score", "variant"))
        return (
            variant in self._names
            and isinstance(at, int)
            and at >= self._begun
            and isinstance(score, int | float)
            and abs(score) <= LARGEST
        )

    async def _take(self, partition: int, results: dict[bytes, dict[str, Any]], labels: dict[bytes, float]) -> None:
        draws = await self._draws(partition, list(labels))
        made = [(0, key, results[key]) for key in labels]  # by the number of the variant
        if self._experiment.kind == "shadow":
            for number, (name, _) in enumerate(self._experiment.named, 1):
                beside = await values_of(self._grid, shadow_map(self._job.results, name), partition, labels)
                theirs = {key: result_of(value) for key, value in beside.items()}
                made += [
                    (number, key, result)
                    for key, result in theirs.items()
                    # That of another event has other things to be compared with.
                    if self._counts(result) and result.get("sequence") == results[key].get("sequence")
                ]
        else:
            made = [(self._names.index(result["variant"]), key, result) for _, key, result in made]
        for variant, key, result in made:
            draw, decision = draws[key], result.get("decision")
            if draw >= 0:
                place = self._decisions.index(decision) if decision in self._decisions else -1
                is_of_step = result["scored_at"] >= self._since
                score, hashed = float(result["score"]), zlib.crc32(key)
                self._rows[variant].append(_Row(hashed, labels[key], score, place, is_of_step, draw % GROUPS))

    async def _draws(self, partition: int, keys: list[bytes]) -> dict[bytes, int]:
        """The numbers of entities; where they are not the keys, of the events, as far as these are still there."""
        if self._trial.key is None:
            return dict(zip(keys, self._trial.draws(self._decoder.decode_all([]), keys).tolist(), strict=True))
        entries = await values_of(self._grid, self._job.events, partition, keys)
        events, bad = self._decoder.decode_good([payload(value) for value in entries.values()])
        good = [key for number, key in enumerate(entries) if number not in bad]
        found = dict(zip(good, self._trial.draws(events, good).tolist(), strict=True))
        return {key: found.get(key, -1) for key in keys}


def _rows(rows: list[_Row], one_of: int) -> Rows:
    return Rows(
        np.array([row.label for row in rows]),
        np.array([row.score for row in rows], np.float32),
        np.array([row.decision for row in rows], np.int64),
        np.array([row.group for row in rows], np.int64),
        one_of,
    )


async def look_at_labels(
    grid: Grid, records: Records, job: Job, members: Members, current: Callable[[], Trial | None]
) -> None:
    """Look at the labels of a job's experiment from time to time, until cancelled, and note what they say.

    One worker does. If no look is noted for long, so that the worker is gone or cannot, the next one does; two at once
    find the same.

    `current`: gives what this worker does for the experiment; None if there is none.
    """
    mark: tuple[Any, ...] = ()
    since, told, out = 0.0, "", 0
    while True:
        await asyncio.sleep(PUBLISH_SECONDS)
        trial = current()
        if trial is None or not (experiment := trial.experiment).limits.least_labels:
            continue
        outcomes, clock = experiment.outcomes, grid.clock()
        if mark != (now := (experiment.id, experiment.step, outcomes.number)):
            mark, since, out = now, clock, max(0, out - 1)
        # Who failed comes after the others, or its failures would hide what they find.
        turn = 2 * len(members.group(job.name)) if out else 1 + 2 * members.rank(job.name)
        if clock - since < outcomes.pause * turn:
            continue
        since = clock
        try:
            found = await Look(grid, job, trial).outcomes()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the job goes on as it does
            said = str(error) if isinstance(error, GridscoreError) else f"{type(error).__name__}: {error}"
            if said != told:
                _log.warning("%s: the labels of the experiment could not be looked at: %s", job.name, said)
            # Its number stays, and with it the time since which the others have waited.
            told, out, found = said, _OUT, replace(outcomes, problem=said[:1_000])
        else:
            told, out = "", 0
        try:
            if await _note(records, experiment, found):
                await _tell(grid, records, job, experiment, found)
        except (HazelcastError, GridscoreError, ValueError):  # the last of a record that became unreadable meanwhile
            _log.debug("%s: what labels say could not be noted", job.name, exc_info=True)


async def _note(records: Records, experiment: Experiment, found: Outcomes) -> bool:
    """Note what labels say, unless the experiment is another one, or over, or another worker was faster."""
    for _ in range(3):
        record: Record | None = await records.get(experiment.job)
        current = None if record is None else experiment_in(record)
        if record is None or current is None or current.id != experiment.id or current.state != "running":
            return False
        if current.outcomes.number > experiment.outcomes.number:
            return False
        try:
            await records.replace(record, replace(current, outcomes=found).to_json())
        except GridscoreError:
            continue  # it was changed meanwhile
        return True
    return False


async def _tell(grid: Grid, records: Records, job: Job, experiment: Experiment, found: Outcomes) -> None:
    """Tell applications that an experiment waits in vain, or does no more: two looks say so, and its step is over."""
    if not found.problem:
        await end_alerts(grid, job, experiment, LABELS)
    elif experiment.outcomes.problem and experiment.is_due(time.time()):
        await tell_alert(grid, job, experiment, LABELS, found.problem)
        record = await records.get(experiment.job)
        now = None if record is None else experiment_in(record)
        # Who stopped or ended it may have seen no alert to end.
        if now is None or now.id != experiment.id or now.state != "running":
            await end_alerts(grid, job, experiment, LABELS)
