"""The experiment of a job in one process: its record is followed, challengers are loaded beside, counts noted.

Every worker notes what it has counted. In turn, about one a second, they look at the counts of all, and move the
experiment on, or end it: by one compare-and-set, so that two at once do no harm. None of them is needed for that. What
has ended by itself is told, in the model's log and the map of alerts, by the worker that ended it; or, if that is
killed, by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from hazelcast.errors import HazelcastError
from msgspec.structs import replace

from gridscore.errors import ConflictError, GridscoreError
from gridscore.grid.records import Records
from gridscore.grid.watches import READ_ANYWAY_SECONDS, wait_for
from gridscore.group.members import PUBLISH_SECONDS, registered
from gridscore.models import Registry
from gridscore.models.experiment import (
    ENDED,
    EXPERIMENTS_MAP,
    LABELS,
    Experiment,
    counts_of,
    end_alerts,
    experiment_in,
    experiment_of,
    judged,
    tell_alert,
    together,
)
from gridscore.models.variants import COUNTS_MAP, Counts
from gridscore.scoring.outcomes import look_at_labels
from gridscore.scoring.trial import Trial, key_of

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
_TELL_SECONDS = 5.0
_LIST_SECONDS = 10.0  # by all workers together


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
        self._load_at: list[float] = []
        self._step_at = self._judge_at = self._list_at = 0.0
        self._keys: set[str] = set()  # of what workers have counted, those that are gone included
        self._tell_at: float | None = None
        self._seen: deque[tuple[float, Counts]] = deque()
        self.trial: Trial | None = None

    async def start(self) -> None:
        """Look once, and load what is needed: whoever scores from now on chooses as the others do."""
        self._stop_watching = await registered(self._grid, lambda: self._records.watch(self._changed.set))
        await self._look()

    async def follow(self) -> None:
        """Follow the record until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._members is not None:
                current = partial(getattr, self, "trial")
                tasks.create_task(look_at_labels(self._grid, self._records, self._record.job, self._members, current))
            while True:
                soon = self.trial is not None or self._told or self._tell_at is not None
                await wait_for(self._changed, PUBLISH_SECONDS if soon else READ_ANYWAY_SECONDS)
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
        if self._members is not None and found is not None:
            await self._tell(found, self._members)
        if found is None or found.state != "running":
            await self._end(removed=found is None)
            return
        trial = self.trial
        if trial is None or trial.experiment.id != found.id:
            trial = await self._begin(found)
        elif trial.experiment != found:
            is_step, trial.experiment = trial.experiment.step != found.step, found
            if is_step:
                self._step_at = self._grid.clock()
                _log.info("%s: %s", self._record.name, _text(found), extra={"action": "experiment_step"})
        await self._say()
        for number, (_, tried) in enumerate(found.named):
            is_missing = trial.challengers[number] is None and tried.state == "running"
            if is_missing and self._grid.clock() >= self._load_at[number]:
                await self._load(trial, number)
        if self._members is not None and self._grid.clock() >= self._judge_at:
            self._judge_at = self._grid.clock() + PUBLISH_SECONDS * len(self._members.group(self._record.name))
            await self._judge(found, self._members)

    async def _begin(self, found: Experiment) -> Trial:
        # By a revision of before, in this process.
        noted = await self._counts.read(Counts.of_record, [self._key]) if self._key else {}
        self._before = together(found, [noted[self._key].without_errors()] if self._key in noted else ())
        self.trial = trial = Trial(found)
        self._step_at, self._load_at = self._grid.clock(), [0.0] * len(found.challengers)
        for tally in trial.tallies[1:]:
            tally.error = "it is being loaded"
        self._seen.clear()
        try:
            if found.key:
                trial.key = key_of(self._record.job, found.key, self._tables)
        except Exception as error:  # noqa: BLE001 -- the job was updated since, or the record is somebody else's
            self._load_at = [float("inf")] * len(found.challengers)
            for tally in trial.tallies[1:]:
                tally.error = f"its key cannot be computed: {error}"
            trial.key = lambda events: [None] * len(events)
        self._model.attempt(trial)
        self._stats.experiment = found.id
        _log.info("%s: %s", self._record.name, _text(found), extra={"action": "experiment_start"})
        return trial

    async def _load(self, trial: Trial, number: int) -> None:
        """Load a challenger; while that is done, or fails, the champion scores its events, which are counted."""
        experiment, tally = trial.experiment, trial.tallies[number + 1]
        wanted = experiment.challengers[number].version
        try:
            version = await self._registry.resolve(experiment.model, version=wanted)
            trial.challengers[number] = await self._model.load(version)
        except GridscoreError as error:
            if tally.error != str(error):
                _log.error(
                    "%s: the challenger, version %d of `%s`, is not used: %s",
                    self._record.name,
                    wanted,
                    experiment.model,
                    error,
                    extra={"action": "challenger_refused"},
                )
            tally.error, self._load_at[number] = str(error), self._grid.clock() + _RETRY_SECONDS
        else:
            tally.error = ""

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

    async def _judge(self, experiment: Experiment, members: Members) -> None:
        """Move the experiment on, or end it, if it is time."""
        name, clock, group = experiment.job, self._grid.clock(), members.group(experiment.job)
        if clock >= self._list_at:  # all keys of all jobs are many
            self._keys, self._list_at = await self._counts.keys(f"{name}/"), clock + _LIST_SECONDS * len(group)
        self._keys |= {f"{name}/{worker}" for worker in group}
        total = await counts_of(self._grid, experiment, self._keys)
        while len(self._seen) > 1 and self._seen[1][0] <= clock - RECENT_SECONDS:
            self._seen.popleft()
        recent = total.plus(self._seen[0][1], -1) if self._seen else total
        self._seen.append((clock, total))
        due = judged(experiment, total, recent, clock - self._step_at, time.time())
        if due == experiment:
            return
        record = await self._records.get(experiment.job)
        if record is None or experiment_in(record) != experiment:
            return  # somebody else has changed it
        try:
            await self._records.replace(record, due.to_json())
        except ConflictError:
            return  # another worker was faster
        self._changed.set()
        if due.step == experiment.step:
            self._tell_at = 0.0
            return
        why = f"{_text(due)}, after {due.seen:,} events"
        _log.warning("%s: experiment step: %s", experiment.job, why, extra={"action": "experiment_step"})
        version = experiment.challengers[0].version
        await self._registry.note(experiment.model, "experiment step", version=version, why=why)

    async def _tell(self, found: Experiment, members: Members) -> None:
        """Tell of challengers that have ended by themselves, once, and note that it is told."""
        untold = [(name, each) for name, each in found.named if not each.told]
        if not untold:
            self._tell_at = None
            return
        if self._tell_at is None:  # the worker that has ended it comes first
            self._tell_at = self._grid.clock() + _TELL_SECONDS * (1 + members.rank(found.job))
        if self._grid.clock() < self._tell_at:
            return
        log = [each for each in await self._registry.log(found.model) if each.at >= found.begun]
        for name, each in untold:
            what = ("experiment end", each.version, each.why)
            if not any((entry.action, entry.version, entry.why) == what for entry in log):
                _log.warning("%s: %s: %s", found.job, what[0], each.why, extra={"action": "experiment_end"})
                await self._registry.note(found.model, what[0], version=each.version, why=each.why)
            await tell_alert(self._grid, self._record.job, found, ENDED, each.why, name)
        if found.state != "running":  # nobody looks at labels any more
            await end_alerts(self._grid, self._record.job, found, LABELS)
        record = await self._records.get(found.job)
        now = None if record is None else experiment_in(record)
        if now is None or now.id != found.id:  # who has stopped it may have seen no alert to end
            await end_alerts(self._grid, self._record.job, found, ENDED)
        elif record is not None and now == found:
            all_told = tuple(replace(each, told=True) for each in found.challengers)
            with contextlib.suppress(ConflictError):  # looked at again
                await self._records.replace(record, replace(found, challengers=all_told).to_json())
        self._changed.set()


def _text(found: Experiment) -> str:
    return f"{found.kind} of {found.versions} at {found.share:g} %"
