"""A trial: what a worker does for the experiment of a job. It chooses by entity who scores an event, and counts.

Whatever the challenger does, every event gets a result: what it gives no finite score for, or cannot score because it
is not loaded here, is the champion's, and counted. Variants have numbers: 0 is the champion, 1 the first challenger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.features.program import Program
from gridscore.grid.cutting import STRING
from gridscore.job.parts import Window
from gridscore.models.variants import VARIANTS, Counts, Tally
from gridscore.scoring.results import MadeBy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gridscore.features import EventColumns, FeaturePlan, LookupTable
    from gridscore.job import Job
    from gridscore.models import LoadedModel
    from gridscore.models.experiment import Experiment
    from gridscore.scoring.batches import Rows
    from gridscore.scoring.drift import Sketch

_BATCHES, _EVENTS = 64, 1_024  # of so many, counts are settled at once: a batch alone may have one event
_TEXT, _NULL = STRING.to_bytes(4, "big", signed=True), bytes(4)

Given = Sequence[Any]  # what models score: the matrix, and the margins if there are any
# Of a batch: scores, matrix, who gave each score, the number of each entity (-1 if there is none), and the margins, if
# there are any.
Columns = Sequence[Any]


@dataclass(frozen=True, slots=True)
class ActiveModel:
    """A model, the features that it needs, and the experiment if there is one; exchanged between two batches."""

    model: LoadedModel
    plan: FeaturePlan
    sketch: Sketch | None = None  # counts what is scored, if the job watches for drift
    trial: Trial | None = None


class Answered(NamedTuple):
    """The events of a batch whose answers are on their way, for a shadow."""

    trial: Trial
    champion: ActiveModel
    events: EventColumns
    rows: Rows
    matrix: NDArray[np.float32]
    margins: NDArray[np.float32] | None
    draws: NDArray[np.int64]


@dataclass(slots=True)
class Trial:
    """What a worker does for an experiment."""

    experiment: Experiment  # as it is now: exchanged at a step
    challengers: list[ActiveModel | None] = field(default_factory=list)  # each is None as long as it is not loaded
    # Gives the entities of events, or is None if these are the events' keys.
    key: Callable[[EventColumns], Sequence[str | int | None]] | None = None
    tallies: list[Tally] = field(default_factory=list)  # of each variant
    waiting: list[tuple[Any, ...]] = field(default_factory=list)
    nobodys: int = 0
    unseen: int = 0
    _alike: dict[int, tuple[ActiveModel, ActiveModel, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.experiment.challengers)
        self.challengers += [None] * (count - len(self.challengers))
        self.tallies += [Tally() for _ in range(count + 1 - len(self.tallies))]

    @property
    def is_shadowed(self) -> bool:
        """Whether challengers are to score what is answered."""
        return self.experiment.kind == "shadow"

    def codes_alike(self, champion: ActiveModel, number: int, other: ActiveModel) -> bool:
        """Whether a challenger codes texts as the champion does, so that both take the same matrix."""
        before = self._alike.get(number)
        if before is not None and before[0] is champion and before[1] is other:
            return before[2]
        same = champion.model.version.learnt == other.model.version.learnt
        self._alike[number] = champion, other, same
        return same

    @property
    def counts(self) -> Counts:
        self._settle()
        return Counts(
            id=self.experiment.id,
            variants={name: tally.counted() for name, tally in zip(VARIANTS, self.tallies, strict=False)},
            nobodys=self.nobodys,
            unseen=self.unseen,
        )

    def draws(self, events: EventColumns, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The numbers of the events' entities."""
        if self.key is None:
            return self.experiment.draws([key[12:] if key[4:8] == _TEXT else _other_entity(key) for key in keys])
        found = [None if each is None else str(each).encode(errors="surrogatepass") for each in self.key(events)]
        return self.experiment.draws(found)

    def score(self, champion: ActiveModel, events: EventColumns, keys: Sequence[bytes], given: Given) -> Columns:
        """Score a batch. Where a challenger codes categories otherwise, its rows of the matrix become its own."""
        draws, variants = self.draws(events, keys), np.zeros(len(events), np.int64)
        self.nobodys += int(np.count_nonzero(draws < 0))
        whose, found = self.experiment.variants(draws), []
        for number in range(1, len(self.challengers) + 1):
            if (rows := np.flatnonzero(whose == number)).size:
                rows, theirs = self._challenged(number, champion, events, given, rows)
                if theirs is not None:
                    variants[rows] = number
                    found.append((rows, theirs))
        if not found:
            return self.timed(0, champion, given), given[0], variants, draws, *given[1:]
        scores = np.empty((len(events), *found[0][1].shape[1:]), np.float32)
        for rows, theirs in found:
            scores[rows] = theirs
        if (rest := np.flatnonzero(variants == 0)).size:
            scores[rest] = self.timed(0, champion, [each[rest] for each in given])
        return scores, given[0], variants, draws, *given[1:]

    def _challenged(
        self, number: int, champion: ActiveModel, events: EventColumns, given: Given, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32] | None]:
        """Those of the rows for which a challenger has a score, and these; None if it has none."""
        other, tally = self.challengers[number - 1], self.tallies[number]
        if other is not None and other.model.version.outputs != champion.model.version.outputs:
            tally.error = f"{other.model.version} does not give as many scores an event as {champion.model.version}."
        elif other is not None:
            alike = self.codes_alike(champion, number, other)
            try:
                matrix = given[0][rows] if alike else other.plan.matrix(events.take(rows.tolist()))
                scores = self.timed(number, other, [matrix, *(each[rows] for each in given[1:])])
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is no reason to give an event no result
                tally.error = f"{other.model.version} could not predict: {type(error).__name__}: {error}"
                tally.errors += rows.size
                return rows, None
            if not np.isfinite(scores).all():
                good = _finite(scores)
                rows, scores, matrix = rows[good], scores[good], matrix[good]
            if not alike:
                given[0][rows] = matrix
            return rows, scores if rows.size else None
        tally.behind += rows.size
        return rows, None

    def timed(self, number: int, active: ActiveModel, given: Given) -> NDArray[np.float32]:
        """What a variant predicts; its time, and rows without a score, are counted."""
        began, tally = time.thread_time_ns(), self.tallies[number]
        scores = active.model.predict(*given)
        tally.ns += time.thread_time_ns() - began
        if not np.isfinite(scores).all():
            tally.errors += int(np.count_nonzero(~_finite(scores)))
        return scores

    def decide(
        self, champion: ActiveModel, events: EventColumns, *columns: Any, by: str = "decider"
    ) -> NDArray[np.intp]:
        """The decision of each event, or, by `explained`, whether it wants reasons; by the features of its variant."""
        scores, _, variants, *_ = columns
        decisions: NDArray[np.intp] = getattr(champion.plan, by).decide(events, scores)
        for number, other in enumerate(self.challengers, 1):
            if other is None or self.codes_alike(champion, number, other):
                continue
            if (theirs := variants == number).any():
                decisions = np.where(theirs, getattr(other.plan, by).decide(events, scores), decisions)
        return decisions

    def sketches(self, champion: ActiveModel, variants: NDArray[np.int64]) -> list[tuple[Sketch, NDArray[np.bool_]]]:
        """What counts the drift of each variant, and which rows are its: each has a baseline of its own."""
        of = [None if each is None else each.sketch for each in (champion, *self.challengers)]
        return [(sketch, variants == number) for number, sketch in enumerate(of) if sketch is not None]

    def count(self, columns: Columns, named: Mapping[str, tuple[Sequence[str], NDArray[np.intp]]]) -> None:
        """Count the events of a batch that have an entity, and a score: many batches at a time."""
        scores, _, variants, draws, *_ = columns
        names, choices = named.get("decision") or named.get("label") or ((), None)
        self.waiting.append((scores, variants, draws, variants if choices is None else choices, names))
        if len(self.waiting) >= _BATCHES or len(scores) >= _EVENTS:
            self._settle()

    def _settle(self) -> None:
        if not self.waiting:
            return
        names = self.waiting[0][-1]
        scores, variants, draws, choices = (np.concatenate(each) for each in list(zip(*self.waiting, strict=True))[:-1])
        self.waiting.clear()
        for number, tally in enumerate(self.tallies):
            if (rows := np.flatnonzero((variants == number) & (draws >= 0))).size:
                tally.add(draws[rows], scores[rows], names, choices[rows])

    def made_by(self, champion: ActiveModel, variants: NDArray[np.int64]) -> MadeBy:
        """Who made the results of a batch."""
        of = [champion, *(each or champion for each in self.challengers)]
        return MadeBy([each.model.version for each in of], variants)


class Beside(Trial):
    """The other side of a shadow: a challenger scores every event, for itself."""

    is_shadowed = False
    number: int
    drawn: NDArray[np.int64]

    def score(self, champion: ActiveModel, events: EventColumns, _keys: Sequence[bytes], given: Given) -> Columns:
        """Score a batch; the model that it is given is the challenger."""
        whose = np.full(len(events), self.number)
        return self.timed(self.number, champion, given), given[0], whose, self.drawn, *given[1:]

    def codes_alike(self, *_of: object) -> bool:
        """It scores with features of its own."""
        return True


def _finite(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)
    return found


def key_of(job: Job, key: str, tables: Mapping[str, LookupTable]) -> Callable[[EventColumns], list[Any]]:
    """What gives the entities of events by an expression; an event for which it fails has none.

    Raises ExpressionError if it is not a key.
    """
    program = Program(job, tables, None)
    slot = program.key(Window.model_validate(key))

    def entities(events: EventColumns) -> list[Any]:
        with np.errstate(all="ignore"):
            return [each for values in program.run_in_parts(events) for each in values[slot]]

    def one_by_one(events: EventColumns) -> list[Any]:
        try:
            return entities(events)
        except Exception:  # noqa: BLE001 -- whatever it is, the event is scored
            return (
                [None] if len(events) == 1 else [e for n in range(len(events)) for e in one_by_one(events[n : n + 1])]
            )

    return one_by_one


def _other_entity(key: bytes) -> bytes | None:
    """The entity of a serialized key that is not a string: its bytes; None if there is no key."""
    return None if key[4:8] == _NULL else key[8:]
