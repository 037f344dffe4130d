"""Decisions by conditions: over the score, and over whatever features are made of, by the same code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gridscore.features.program import Program, in_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.features.lookup_table import LookupTable
    from gridscore.job import Job


class Decider:
    """Decides on scored events. Whatever the batches, an event gets the same decision."""

    def __init__(self, job: Job, tables: Mapping[str, LookupTable], categories: Mapping[str, Sequence[str]]) -> None:
        self._program = Program(job, tables, categories)
        self._slots = self._program.conditions()
        self.lookups = frozenset(self._program.lookup_slots)

    def decide(self, events: EventColumns, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """The number of each event's decision in the job's list.

        Args:
            scores: Shape (n,) or (n, outputs).
        """
        count = len(events)
        if count == 0:
            return np.empty(0, np.intp)
        if count == 1:  # as in `FeaturePlan.inputs`
            events, scores = events.take((0, 0)), np.repeat(scores, 2, axis=0)
        with np.errstate(all="ignore"):
            parts = in_parts(len(events), lambda rows: self._decide(events[rows], scores[rows]))
        return np.concatenate(parts)[:count]

    def _decide(self, events: EventColumns, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        values = self._program.run(events, scores)
        found = np.full(len(events), len(self._slots), np.intp)
        for number, slot in reversed(list(enumerate(self._slots))):
            found = np.where(values[slot], number, found)
        return found
