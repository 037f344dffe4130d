"""A rehearsal: the worker's own scorer over events, without a lease, an offset, or a write.

Backtests, previews and parity are made of it, so what they say of an event is what a worker would say.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from gridscore.features import FeaturePlan
from gridscore.features.functions import Functions
from gridscore.grid.wire import Page
from gridscore.group.reader import Arrival, Cursor
from gridscore.scoring.lookups import JobLookups, Lookups
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.stats import JobStats
from gridscore.scoring.trial import ActiveModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.dead_letters.letters import Rejected
    from gridscore.features import EventColumns, LookupTable
    from gridscore.grid import Grid
    from gridscore.grid.copies import Fetcher
    from gridscore.job import Job
    from gridscore.models import LoadedModel
    from gridscore.scoring.window_states import HistoryStates, WindowStates


class Outcome(msgspec.Struct):
    """What a result says of an event."""

    sequence: int
    score: float | list[float]
    decision: str | None = None


outcome_of = msgspec.json.Decoder(Outcome).decode


class Given(NamedTuple):
    """What lookups of mode `copy` and of mode `fetch` are made of, by name; and what calls Python functions.

    Without that, it is done in this process.
    """

    tables: Mapping[str, LookupTable]
    fetchers: Mapping[str, Fetcher]
    functions: Functions | None = None


@asynccontextmanager
async def lookups_of(grid: Grid, job: Job) -> AsyncIterator[Given]:
    """The lookups of a job as a worker has them: copies that are kept current meanwhile.

    Raises MapNotFoundError if a lookup map is not there; LookupTooLargeError if one has more entries than may be
    copied.
    """
    lookups = JobLookups(grid, job, Lookups(grid))
    try:
        await lookups.start()
        yield Given(lookups.tables, lookups.fetchers)
    finally:
        await lookups.close()


class _WatchedPlan(FeaturePlan):
    """A feature plan that remembers the last batch."""

    seen: tuple[EventColumns, NDArray[Any], NDArray[Any] | None] | None = None

    def inputs(self, events: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        matrix, margins = super().inputs(events)
        self.seen = events, matrix, margins
        return matrix, margins

    def looked_up_in(self) -> dict[str, int]:
        """The row of each lookup's table that the first of the last events has found, 0 where there is none."""
        if self.seen is None or not len(self.seen[0]):
            return {}
        with np.errstate(all="ignore"):
            values = self._program.run(self.seen[0].take((0, 0)))
        return {name: int(values[slot][0]) for name, slot in self._lookup_slots}


class Rehearsal:
    """Scores events of a job as a worker would.

    `states`: of its windows, if it has any. `plan`: computes the features; its `seen` has the events that the last call
    has scored, their features, and their margins; `stats`: what a worker would count.
    """

    def __init__(
        self,
        job: Job,
        model: LoadedModel,
        given: Given,
        states: WindowStates | HistoryStates | None = None,
        revision: int = 1,
    ) -> None:
        self.plan = _WatchedPlan(job, given.tables, model.version.learnt)
        self.stats = JobStats()
        functions = given.functions or (Functions(job, given.tables) if job.has_functions else None)
        self._scorer = Scorer(job, revision, given.tables, given.fetchers, self.stats, states, functions=functions)
        self._active = ActiveModel(model, self.plan)

    async def score(self, page: Page, cursor: Cursor) -> tuple[list[bytes], list[Rejected]]:
        """The texts of the results that a page of events gets, and the events that get none."""
        self.plan.seen = None
        batch = await self._scorer.score([Arrival(cursor.partition, page, cursor, 0, 0.0)], self._active)
        return [text for part in batch.partitions for text in part.texts], batch.rejected


def page_of_texts(texts: Sequence[bytes], first: int) -> Page:
    """Events that were in no journal, as a page of one; their sequences count from `first`."""
    count = len(texts)
    return Page(first, first + count, list(range(first, first + count)), [b""] * count, list(texts), {}, 0)
