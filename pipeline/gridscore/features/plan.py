"""The feature plan: from decoded events to the float32 matrix that the model scores, and from scores to decisions."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features.columns import EventColumns
from gridscore.features.encodings import Encoding
from gridscore.features.functions import Functions
from gridscore.features.program import Program, in_parts
from gridscore.features.quality import QualityCounter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features.encodings import Learnt
    from gridscore.features.events import Event
    from gridscore.features.lookup_table import LookupTable
    from gridscore.job import Job


class Decider:
    """Decides on scored events. Whatever the batches, an event gets the same decision."""

    def __init__(self, job: Job, tables: Mapping[str, LookupTable], categories: Mapping[str, Learnt]) -> None:
        self._program = Program(job, tables, categories)
        self._slots = self._program.conditions()
        self.lookups = frozenset(self._program.lookup_slots)

    def decide(self, events: EventColumns, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """The number of each event's decision in the job's list. `scores`: shape (n,) or (n, outputs)."""
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


class FeaturePlan:
    """Computes the features of a job.

    Whatever the batches, an event gets the same bits. What is missing or not finite is NaN, always the same NaN. Python
    functions are called in this process, for events that come without what they return.

    `categories`: for each feature made with `category`, the values in the order of their codes; for one made with
    `target` and its like, its encoding. Raises ModelMismatchError if there is nothing of that for a feature that needs
    it.
    """

    def __init__(self, job: Job, tables: Mapping[str, LookupTable], categories: Mapping[str, Learnt]) -> None:
        self.names = job.feature_names  # the features, in the order of the matrix's columns
        self._schema = job.schema_
        self._program = Program(job, tables, categories)
        self._slots = [self._program.feature(name) for name in self.names]
        self._margin = self._program.margin()
        self._lookup_slots = list(self._program.lookup_slots.items())
        self._made_of = job, tables, categories
        self._functions = Functions(job, tables) if job.has_functions else None
        # Decides on scored events, if the job has conditions.
        self.decider = Decider(job, tables, categories) if job.has_conditions else None
        # Its decision 0 is for scored events that get reasons, if there is a condition for that.
        self.explained = None if (asked := job.explained) is None else Decider(asked, tables, categories)
        self._used = frozenset(self._program.lookup_slots)
        for each in (self.decider, self.explained):
            self._used |= each.lookups if each is not None else frozenset()
        self.looked_up = dict.fromkeys(job.lookups, 0)  # events looked up so far, by lookup
        self.missed = dict.fromkeys(job.lookups, 0)  # those that had no entry, or a bad one
        texts = {name: slot for name, (slot, _) in self._program.category_values().items()}
        # `onehot` knows one text a feature: of it, all others are as they should be.
        encoded = self._program.encoded_values().items()
        texts |= {name: slot for name, (slot, how) in encoded if how.name != "onehot"}
        known = {name: each.numbers if isinstance(each, Encoding) else each for name, each in categories.items()}
        # What was missing in the last events.
        self.quality = QualityCounter(self.names, self._program.lookup_slots, texts, known)

    def keys(self, events: EventColumns | Sequence[Event]) -> dict[str, list[Any]]:
        """The keys that each lookup is asked for, in the order of the events; None where an event has none."""
        program, slots = self._keys
        if not events:
            return {name: [] for name in slots}
        with np.errstate(all="ignore"):
            parts = program.run_in_parts(EventColumns.of(self._schema, events))
        # Only of lookups that a feature uses: nobody needs the others' entries.
        return {
            name: [key for values in parts for key in values[slot]] if name in self._used else [None] * len(events)
            for name, slot in slots.items()
        }

    @cached_property
    def _keys(self) -> tuple[Program, dict[str, int]]:
        """What makes the keys: a program that runs before there are entries. Few jobs have lookups that need it."""
        program = Program(*self._made_of)
        return program, {name: program.keys(name) for name in self._made_of[0].lookups}

    def matrix(self, events: EventColumns | Sequence[Event]) -> NDArray[np.float32]:
        """The features of these events: a row an event, in C order."""
        return self.inputs(events)[0]

    def inputs(self, events: EventColumns | Sequence[Event]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """What the model scores these events from.

        Returns: their features as `matrix` has them; and the margin of each, NaN where it is missing or not finite:
        float32 of shape (n,), or None if the job has no margin.

        Raises FunctionError if a Python function is not allowed in this process, or has failed.
        """
        events = EventColumns.of(self._schema, events)
        if self._functions is not None:
            events = self._functions.of(events)
        count = len(events)
        if count == 0:
            empty = np.empty((0, len(self._slots)), np.float32)
            return empty, None if self._margin is None else empty[:, 0].copy()
        if count == 1:
            # In places numpy takes an array of one item for a number; `power` has a short cut for those, and its last
            # bit may differ: a row alone is computed as one of two.
            matrix, margins = self._compute(events.take((0, 0)), 1)
            return matrix[:1], None if margins is None else margins[:1]
        parts = in_parts(count, lambda rows: self._compute(events[rows], rows.stop - rows.start))
        if len(parts) == 1:
            return parts[0]
        all_margins = [each for _, each in parts if each is not None]
        return np.concatenate([each for each, _ in parts]), np.concatenate(all_margins) if all_margins else None

    def _compute(self, events: EventColumns, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        margins = None
        out = np.empty((len(events), len(self._slots)), np.float32)
        with np.errstate(all="ignore"):
            values = self._program.run(events)
            for column, slot in zip(out.T, self._slots, strict=True):
                column[...] = values[slot]
            if self._margin is not None:
                margins = np.empty(len(events), np.float32)
                margins[...] = values[self._margin]
                np.copyto(margins, np.nan, where=~np.isfinite(margins))
        # XGBoost refuses to train on infinity; and one NaN is not another, bit by bit.
        finite = np.isfinite(out)
        np.copyto(out, np.nan, where=~finite)
        for name, slot in self._lookup_slots:
            self.looked_up[name] += count
            self.missed[name] += count - int(np.count_nonzero(values[slot][:count]))
        if self.quality.is_due():
            self.quality.count(values, finite, count)
        return out, margins
