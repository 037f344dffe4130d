"""Results: what is written to the result map for each event, as JSON that any client reads."""

from __future__ import annotations

import time
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.job import Job
    from pipeline.models import ModelVersion


class ResultEncoder:
    """Encodes results of one job.

    A result is a JSON object: `score` (a number, or a list of numbers for a model with several outputs), `decision` (if
    the job has decisions), `model` and `version` (that made it), `sequence` (of the event in its journal; -1
    for an event that a rescan found in the map), `epoch` (of the lease that it was written under; see `leases`),
    `scored_at` (milliseconds since 1970), and the event fields that the job includes.
    """

    def __init__(self, job: Job) -> None:
        self._include = tuple(job.result.include)
        fields: list[Any] = ["score", "sequence", "epoch", "version", "model", "scored_at"]
        thresholds, self._labels = job.decision_steps
        # Scores are float32: compared as such, a score that prints as the threshold reaches it.
        self._thresholds = np.array(thresholds, dtype=np.float32)
        if self._labels:
            fields.insert(1, "decision")
        self._type = msgspec.defstruct("Result", [*fields, *self._include], gc=False)
        self._encode = msgspec.json.Encoder().encode

    def encode(
        self,
        events: Sequence[Any],
        scores: NDArray[np.float32],
        sequences: Sequence[int],
        epochs: Sequence[int],
        version: ModelVersion,
    ) -> list[bytes]:
        """JSON texts of the results of a batch.

        Args:
            events: Decoded events.
            scores: Shape (n,) or (n, outputs).
            sequences: Of the events.
            epochs: Of the leases under which they will be written.
            version: That made the scores.
        """
        columns: list[Iterable[Any]] = [scores.tolist()]
        if self._labels:
            steps = np.searchsorted(self._thresholds, scores, side="right")
            columns.append(map(self._labels.__getitem__, steps.tolist()))
        now = time.time_ns() // 1_000_000
        columns += [sequences, epochs, repeat(version.version), repeat(version.name), repeat(now)]
        # A pass a field is faster than one that makes a tuple an event.
        columns += [map(attrgetter(field), events) for field in self._include]
        return list(map(self._encode, map(self._type, *columns)))
