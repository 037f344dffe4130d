"""A shadow: the challenger scores what was answered, and its results go into a map of their own.

Best effort: nothing waits for it, and where its writes are not acknowledged in time, events are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gridscore.grid.writer import MapWriter
from gridscore.job.parts import ResultSpec
from gridscore.models.experiment import shadow_map
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
        self._results = MapWriter(grid, shadow_map(record.job.results))
        self._group = group
        self._waiting = 0

    def score(self, batch: Answered) -> None:
        """Score a batch, and send what came of it."""
        trial, other, count = batch.trial, batch.trial.challenger, len(batch.events)
        if other is None or self._waiting >= MOST_WRITES:
            trial.behind += count if other is None else 0
            trial.unseen += 0 if other is None else count
            return
        spans = [(PartitionBatch(p.partition, p.next, p.cursor, p.at), n) for p, n in batch.rows.spans]
        beside = Beside(trial.experiment, other, tallies=trial.tallies, waiting=trial.waiting)
        beside.drawn = batch.draws
        try:
            matrix = batch.matrix if trial.codes_alike(batch.champion) else other.plan.matrix(batch.events)
            rows, active = replace(batch.rows, spans=spans), ActiveModel(other.model, other.plan, trial=beside)
            self._scorer.finish(batch.events, rows, matrix, batch.margins, [], active)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the answers have gone out
            trial.error = f"{other.model.version} could not score: {type(error).__name__}: {error}"
            trial.tallies[1].errors += count
            return
        for part, _ in spans:
            if part.keys and part.cursor.is_current:
                until = part.cursor.until
                self._waiting += 1
                self._results.put_partition(part.partition, part.keys, part.texts, until=until).add_done_callback(
                    self._done
                )

    def _done(self, put: Any) -> None:
        self._waiting -= 1
        if not put.cancelled():
            put.exception()  # nobody waits for it
