"""A shadow: challengers score what was answered, and the results of each go into a map of their own.

Best effort: nothing waits for it, and where its writes are not acknowledged in time, events are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gridscore.grid.writer import MapWriter
from gridscore.job.parts import ResultSpec
from gridscore.models.experiment import shadow_map
from gridscore.models.variants import VARIANTS
from gridscore.scoring.batches import PartitionBatch
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.trial import ActiveModel, Beside

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.group.group import Group
    from gridscore.job import JobRecord
    from gridscore.scoring.stats import JobStats
    from gridscore.scoring.trial import Answered

MOST_WRITES = 512  # writes that are not acknowledged, above which events are left out


class Shadow:
    """Scores beside, for one job. `stats`: where its time is counted, too."""

    def __init__(self, grid: Grid, record: JobRecord, group: Group, stats: JobStats) -> None:
        plain = record.job.model_copy(update={"result": ResultSpec()})
        self._scorer = Scorer(plain, record.revision, {}, {}, stats)
        self._results = [MapWriter(grid, shadow_map(record.job.results, name)) for name in VARIANTS[1:]]
        self._group = group
        self._waiting = 0

    def score(self, batch: Answered) -> None:
        """Score a batch with each challenger, and send what came of it."""
        trial = batch.trial
        for number, ((_, tried), other) in enumerate(zip(trial.experiment.named, trial.challengers, strict=True), 1):
            if tried.state != "running":
                continue
            if other is None:
                trial.tallies[number].behind += len(batch.events)
            elif self._waiting >= MOST_WRITES:
                trial.unseen += len(batch.events)
            else:
                self._score(batch, number, other)

    def _score(self, batch: Answered, number: int, other: ActiveModel) -> None:
        trial, count = batch.trial, len(batch.events)
        spans = [(PartitionBatch(p.partition, p.next, p.cursor, p.at), n) for p, n in batch.rows.spans]
        beside = Beside(trial.experiment, list(trial.challengers), tallies=trial.tallies, waiting=trial.waiting)
        beside.drawn, beside.number = batch.draws, number
        try:
            alike = trial.codes_alike(batch.champion, number, other)
            matrix = batch.matrix if alike else other.plan.matrix(batch.events)
            rows, active = replace(batch.rows, spans=spans), ActiveModel(other.model, other.plan, trial=beside)
            self._scorer.finish(batch.events, rows, matrix, batch.margins, [], active)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the answers have gone out
            trial.tallies[number].error = f"{other.model.version} could not score: {type(error).__name__}: {error}"
            trial.tallies[number].errors += count
            return
        for part, _ in spans:
            if part.keys and part.cursor.is_current:
                until = part.cursor.until
                self._waiting += 1
                put = self._results[number - 1].put_partition(part.partition, part.keys, part.texts, until=until)
                put.add_done_callback(self._done)

    def _done(self, put: Any) -> None:
        self._waiting -= 1
        if not put.cancelled():
            put.exception()  # nobody waits for it
