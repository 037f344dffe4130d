"""The experiment of a job in one process: its record is followed, its challenger loaded beside, its counts noted.

Every worker notes what it has counted. In turn, about one a second, they look at the counts of all, and move the
experiment on, or end it: by one compare-and-set, so that two at once do no harm. None of them is needed for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import ConflictError, GridscoreError
from gridscore.grid.records import Records
from gridscore.grid.watches import READ_ANYWAY_SECONDS, wait_for
from gridscore.group.members import PUBLISH_SECONDS, registered
from gridscore.models import Registry
from gridscore.models.experiment import (
    COUNTS_MAP,
    EXPERIMENTS_MAP,
    Counts,
    Experiment,
    counts_of,
    experiment_in,
    experiment_of,
    judged,
    together,
)
from gridscore.scoring.trial import Trial, key_of
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gridscore.features import LookupTable
    from gridscore.grid import Grid
    from gridscore.group.members import Members
    from gridscore.job import JobRecord
    from gridscore.scoring.live_model import LiveModel
    from gridscore.scoring.stats import JobStats

_log = logging.getLogger(__name__)

RECENT_SECONDS = 60.0  # what was counted lately is judged as well as all
_RETRY_SECONDS = 10.0


class LiveExperiment:
    """Keeps the trial of `model.active` as the job's experiment says.

    `stats`: where to say which experiment it takes part in; `members`: who else scores; None for a server, whose
    requests are not counted.
    """

    def __init__(
        self,
        grid: Grid,
        record: JobRecord,
        tables: Mapping[str, LookupTable],
        model: LiveModel,
        stats: JobStats,
        members: Members | None = None,
    ) -> None:
        self._grid, self._record, self._tables = grid, record, tables
        self._model, self._stats, self._members = model, stats, members
        self._registry = Registry(grid)
        self._counts = Records(grid, COUNTS_MAP)
        self._records = Records(grid, EXPERIMENTS_MAP)
        self._changed = asyncio.Event()
        self._stop_watching: Any = None
        self._told = ""
        self._key = f"{record.name}/{members.worker}" if members is not None else ""
        self._before, self._said = Counts(id=""), Counts(id="")
        self._load_at = self._step_at = self._judge_at = 0.0
        self._seen: deque[tuple[float, Counts]] = deque()
        self.trial: Trial | None = None

    async def start(self) -> None:
        """Look once, and load what is needed: whoever scores from now on chooses as the others do."""
        self._stop_watching = await registered(self._grid, lambda: self._records.watch(self._changed.set))
        await self._look()

    async def follow(self) -> None:
        """Follow the record until cancelled."""
        while True:
            await wait_for(self._changed, PUBLISH_SECONDS if self.trial or self._told else READ_ANYWAY_SECONDS)
            await self._look()

    async def _look(self) -> None:
        self._changed.clear()
        try:
            await self._reconcile()
            self._told = ""
        except Exception as error:  # noqa: BLE001 -- whatever it is, the job goes on as it does
            if (told := f"{type(error).__name__}: {error}") != self._told:
                _log.warning("%s: the experiment could not be looked at: %s", self._record.name, told)
            self._told = told

    async def close(self) -> None:
        """Stop watching, and note what was counted last."""
        try:
            if self._stop_watching is not None:
                stop, self._stop_watching = self._stop_watching, None
                await stop()
            await self._say()
        except HazelcastError:
            _log.debug("%s: the last counts of the experiment are not noted", self._record.name, exc_info=True)

    async def _reconcile(self) -> None:
        found = await experiment_of(self._grid, self._record)
        if found is None or found.state != "running":
            await self._end(removed=found is None)
            return
        trial = self.trial
        if trial is None or trial.experiment.id != found.id:
            trial = await self._begin(found)
        elif trial.experiment != found:
            trial.experiment = found
            self._step_at = self._grid.clock()
            _log.info("%s: %s", self._record.name, _text(found), extra={"action": "experiment_step"})
        await self._say()
        if trial.challenger is None and self._grid.clock() >= self._load_at:
            await self._load(trial)
        if self._members is not None and self._grid.clock() >= self._judge_at:
            self._judge_at = self._grid.clock() + PUBLISH_SECONDS * len(self._members.group(self._record.name))
            await self._judge(found)

    async def _begin(self, found: Experiment) -> Trial:
        # By a revision of before, in this process.
        noted = await self._counts.read(Counts.of_record) if self._key else {}
        self._before = together(found, [replace(noted[self._key], error="")] if self._key in noted else ())
        self.trial = trial = Trial(found, error="it is being loaded")
        self._step_at, self._load_at = self._grid.clock(), 0.0
        self._seen.clear()
        try:
            if found.key:
                trial.key = key_of(self._record.job, found.key, self._tables)
        except Exception as error:  # noqa: BLE001 -- the job was updated since, or the record is somebody else's
            trial.error, self._load_at = f"its key cannot be computed: {error}", float("inf")
            trial.key = lambda events: [None] * len(events)
        self._model.attempt(trial)
        self._stats.experiment = found.id
        _log.info("%s: %s", self._record.name, _text(found), extra={"action": "experiment_start"})
        return trial

    async def _load(self, trial: Trial) -> None:
        """Load the challenger; while that is done, or fails, the champion scores its events, which are counted."""
        experiment = trial.experiment
        try:
            version = await self._registry.resolve(experiment.model, version=experiment.version)
            trial.challenger = await self._model.load(version)
        except GridscoreError as error:
            if trial.error != str(error):
                _log.error(
                    "%s: the challenger, version %d of `%s`, is not used: %s",
                    self._record.name,
                    experiment.version,
                    experiment.model,
                    error,
                    extra={"action": "challenger_refused"},
                )
            trial.error, self._load_at = str(error), self._grid.clock() + _RETRY_SECONDS
        else:
            trial.error = ""

    async def _end(self, *, removed: bool) -> None:
        if self.trial is None:
            return
        _log.info("%s: the experiment is over", self._record.name, extra={"action": "experiment_end"})
        self._model.attempt(None)
        if not removed:
            await self._say()
        elif self._key:
            await self._counts.delete(self._key)
        self.trial, self._stats.experiment = None, ""

    async def _say(self) -> None:
        if self.trial is None or not self._key or (counts := self._before.plus(self.trial.counts)) == self._said:
            return
        await self._counts.put(self._key, counts.to_json())
        self._said = counts

    async def _judge(self, experiment: Experiment) -> None:
        """Move the experiment on, or end it, if it is time."""
        total, clock = await counts_of(self._grid, experiment), self._grid.clock()
        while len(self._seen) > 1 and self._seen[1][0] <= clock - RECENT_SECONDS:
            self._seen.popleft()
        recent = total.plus(self._seen[0][1], -1) if self._seen else total
        self._seen.append((clock, total))
        due = judged(experiment, total, recent, clock - self._step_at, moment_text())
        if due == experiment:
            return
        record = await self._records.get(experiment.job)
        if record is None or experiment_in(record) != experiment:
            return  # somebody else has changed it
        try:
            await self._records.replace(record, due.to_json())
        except ConflictError:
            return  # another worker was faster
        action = "experiment end" if due.state == "ended" else "experiment step"
        why = due.why or f"{_text(due)}, after {due.seen:,} events"
        _log.warning("%s: %s: %s", experiment.job, action, why, extra={"action": action.replace(" ", "_")})
        await self._registry.note(experiment.model, action, version=experiment.version, why=why[:500])
        self._changed.set()


def _text(found: Experiment) -> str:
    return f"{found.kind} of version {found.version} at {found.share:g} %"
