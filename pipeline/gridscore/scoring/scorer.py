"""The scorer: one micro-batch from journal pages to result texts. Decode, features, model, result; no grid in between.

A bad event harms no other: if it cannot be decoded, or turned into features, it is set aside with the reason, and its
neighbours are scored as if it were not there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.features import EventDecoder
from gridscore.features.window_kernel import LOOK
from gridscore.scoring.batches import PartitionBatch, Rows
from gridscore.scoring.late_events import note_late
from gridscore.scoring.results import ResultEncoder
from gridscore.scoring.trial import Answered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gridscore.dead_letters.letters import Rejected
    from gridscore.features import EventColumns, LookupTable
    from gridscore.features.functions import Functions
    from gridscore.features.plan import Decider
    from gridscore.grid.copies import Fetcher
    from gridscore.grid.wire import Page
    from gridscore.group.reader import Arrival
    from gridscore.job import Job
    from gridscore.scoring.drift import Sketch
    from gridscore.scoring.reasons import Reasons
    from gridscore.scoring.stats import JobStats
    from gridscore.scoring.trial import ActiveModel
    from gridscore.scoring.window_requests import WindowRequests
    from gridscore.scoring.window_states import HistoryStates, WindowStates

SURE_PASSES = 4
"""Passes over a batch in which functions should have failed for the same events, if they are pure."""

_FOREIGN_TYPES = {0: "null", -1: "a Portable", -2: "an IdentifiedDataSerializable", -55: "a Compact record"}


@dataclass(slots=True)
class ScoredBatch:
    """A batch, ready to be written."""

    partitions: list[PartitionBatch]
    rejected: list[Rejected]
    events: int
    answered: Answered | None = None  # what a shadow is to score, if the job has one


class Scorer:
    """Scores batches for one job."""

    def __init__(
        self,
        job: Job,
        revision: int,
        tables: Mapping[str, LookupTable],  # the lookup tables by name, those of mode `fetch` empty
        fetchers: Mapping[str, Fetcher],  # where lookups of mode `fetch` come from, by name
        stats: JobStats,
        # The states of its windows, if it has any whose key is the events'.
        windows: WindowStates | HistoryStates | None = None,
        requests: WindowRequests | None = None,  # asks its windows, if they have other keys
        reasons: Reasons | None = None,  # explains some of the results, if the job wants that
        functions: Functions | None = None,  # calls its Python functions, if it has any
    ) -> None:
        self._reasons, self._functions = reasons, functions
        self._decoder = EventDecoder(job)
        self._encoder = ResultEncoder(job, revision)
        self._tables, self._fetchers, self._stats = tables, fetchers, stats
        self._windows, self._requests = windows, requests
        looks = windows or requests
        self._tells_late = looks.windows if looks is not None and looks.windows.tells_late else None
        self._answered: Answered | None = None

    async def score(self, arrivals: Sequence[Arrival], active: ActiveModel) -> ScoredBatch:
        """Score pages.

        Raises HazelcastError if a lookup of mode `fetch` failed, or a read of windows' states; nothing was counted;
        ModelError if the model cannot predict at all; FunctionError if the process of its functions cannot be started.
        """
        clock = time.thread_time_ns
        stage_ns = self._stats.stage_ns
        began, self._answered = clock(), None
        rows = Rows()
        rejected: list[Rejected] = []
        batches: dict[int, PartitionBatch] = {}
        for partition, page, cursor, lost, at in arrivals:
            batch = batches.get(partition)
            if batch is None:
                batch = batches[partition] = PartitionBatch(partition, page.next, cursor, at)
            batch.next = page.next
            batch.lost += lost
            _append(rows, batch, page, rejected, marked=self._windows is not None)
        events, bad = self._decoder.decode_good(rows.values)
        rows = rows.without(bad, "decode", rejected)
        stage_ns["decode"] += clock() - began

        if self._fetchers:
            events, rows, keys = _try(active.plan.keys, events, rows, rejected, "lookup")
            for name, fetcher in self._fetchers.items():
                await self._fetch(name, fetcher, keys[name])

        if self._windows is not None:
            rows = await self._score_with_windows(self._windows, events, rows, rejected, active)
        else:
            if self._requests is not None:
                bad = self._requests.refused(events)
                events, rows = events.without(bad), rows.without(bad, "windows", rejected)
                spans = ((batch.cursor, count) for batch, count in rows.spans)
                events = await self._requests.ask(events, spans, rows.sequences, rows.keys, rows.values)
            if self._functions is not None:
                events, rows = await self._call(self._functions, events, rows, rejected)
            rows = self._finish(events, rows, rejected, active)
        return ScoredBatch(list(batches.values()), rejected, len(rows.keys), self._answered)

    async def _score_with_windows(
        self,
        windows: WindowStates | HistoryStates,
        events: EventColumns,
        rows: Rows,
        rejected: list[Rejected],
        active: ActiveModel,
    ) -> Rows:
        """Score a batch, and add what has been scored to its windows: an event counts there if it has a result."""
        clock, stage_ns = time.thread_time_ns, self._stats.stage_ns
        began = clock()
        bad = windows.refused(events, rows.keys, rows.scored)
        events, rows = events.without(bad), rows.without(bad, "windows", rejected)
        stage_ns["windows"] += clock() - began
        states = await windows.fetch((batch.cursor, keys) for batch, keys in rows.keys_by_batch())
        # From here on nothing is read: what is known afterwards is what this batch has made.
        gone: set[int] = set()
        passes = 0
        while events:
            began, passes = clock(), passes + 1
            rows.places = list(range(len(events)))
            numbers = rows.sequences
            if gone:
                numbers = [LOOK if row in gone else number for row, number in enumerate(numbers)]
            seen, after = await windows.apply(events, rows.keys, states, numbers)
            stage_ns["windows"] += clock() - began
            # Those that have their result count, whatever features and the model say of them now.
            stand = dict.fromkeys((row for row, stands in enumerate(rows.scored) if stands), "")
            new = rows.without(stand, "", [])
            found: list[Rejected] = []
            wanted = -1 if gone else len(new.places)
            seen, called = seen.without(stand), new
            if self._functions is not None:
                seen, called = await self._call(self._functions, seen, new, found)
                if passes > SURE_PASSES and (lost := set(new.places) - set(called.places)):
                    # It may fail as it likes. These have failed now, whatever they saw.
                    rejected += found
                    events, rows, gone = events.without(lost), rows.without(dict.fromkeys(lost, ""), "", []), set()
                    continue
            left = self._finish(seen, called, found, active, wanted) if called.places else called
            if len(left.places) == wanted:
                break
            # No event may have seen one that was rejected, not even to be rejected itself. So those that were now only
            # look, until the same ones are rejected: then each has seen what it would have seen alone. A pass settles
            # one more event of each entity at least, and nearly always all of them.
            before, gone = gone, set(new.places) - set(left.places)
            if gone == before:
                rejected += found
                events, rows = events.without(sorted(gone)), rows.without(dict.fromkeys(gone, ""), "", [])
                gone = set()
            await asyncio.sleep(0)
        else:
            return rows
        began, self._stats.late, self._stats.broken_states = clock(), windows.late, windows.broken
        for batch, keys in rows.keys_by_batch():
            batch.states |= windows.changed(batch.cursor, {key: after[key] for key in keys})
        stage_ns["windows"] += clock() - began
        return rows

    async def _call(
        self, functions: Functions, events: EventColumns, rows: Rows, rejected: list[Rejected]
    ) -> tuple[EventColumns, Rows]:
        """The events with what Python functions return, and those rejected for which one fails."""
        began = time.thread_time_ns()
        events, failed = await functions.apply(events)
        spent = time.thread_time_ns() - began
        self._stats.stage_ns["functions"] = self._stats.stage_ns.get("functions", 0) + spent
        return events, rows.without(failed, "functions", rejected)

    def _finish(
        self, events: EventColumns, rows: Rows, rejected: list[Rejected], active: ActiveModel, wanted: int | None = None
    ) -> Rows:
        """Features, scores, decisions and results of a batch; returns the rows that came through."""
        clock, stage_ns = time.thread_time_ns, self._stats.stage_ns
        began = clock()
        events, rows, (matrix, margins) = _try(active.plan.inputs, events, rows, rejected, "features")
        if margins is not None and (lacking := np.flatnonzero(np.isnan(margins))).size:
            bad = dict.fromkeys(lacking.tolist(), "the job's `margin` gives no number, and has no default")
            events, rows = events.without(bad), rows.without(bad, "features", rejected)
            matrix, margins = np.delete(matrix, lacking, axis=0), np.delete(margins, lacking)
        stage_ns["features"] += clock() - began
        return self.finish(events, rows, matrix, margins, rejected, active, wanted) if events else rows

    def finish(
        self,
        events: EventColumns,
        rows: Rows,
        matrix: np.ndarray[Any, Any],
        margins: np.ndarray[Any, Any] | None,
        rejected: list[Rejected],
        active: ActiveModel,
        wanted: int | None = None,
    ) -> Rows:
        """Scores, decisions and results of a batch whose features are known; returns the rows that came through.

        If so many are `wanted`, nothing is made or counted unless they are.
        """
        clock, stage_ns, trial = time.thread_time_ns, self._stats.stage_ns, active.trial
        after = clock()
        given = [matrix] if margins is None else [matrix, margins]
        columns: Sequence[np.ndarray[Any, Any]] = (
            [active.model.predict(*given), *given] if trial is None else trial.score(active, events, rows.keys, given)
        )
        stage_ns["predict"] += (began := clock()) - after
        if not np.isfinite(columns[0]).all():
            bad = _not_finite(columns[0])
            events, rows = events.without(bad), rows.without(bad, "predict", rejected)
            columns = [np.delete(each, list(bad), axis=0) for each in columns]
        decisions = None
        if active.plan.decider is not None:
            decide = partial(_decided, active.plan.decider) if trial is None else partial(trial.decide, active)
            events, rows, (columns, decisions) = _try(
                lambda events, *columns: (columns, decide(events, *columns)), events, rows, rejected, "decide", *columns
            )
        if wanted not in (None, len(events)):
            return rows
        scores, matrix, *rest = columns
        margins = None if margins is None else rest[-1]
        watched: Sequence[tuple[Sketch, Any]] = ()
        if trial is not None:
            watched = trial.sketches(active, rest[0])
        elif active.sketch is not None:
            watched = ((active.sketch, slice(None)),)
        if watched:
            counting = clock()
            for sketch, whose in watched:
                sketch.add(matrix[whose], scores[whose])
            stage_ns["drift"] = stage_ns.get("drift", 0) + (spent := clock() - counting)
            began += spent
        epochs = [epoch for batch, count in rows.spans for epoch in repeat(batch.cursor.epoch, count)]
        version = active.model.version if trial is None else trial.made_by(active, rest[0])
        named = self._encoder.named(scores, decisions)
        texts = self._encoder.encode(events, scores, rows.sequences, epochs, version, decisions, matrix, named)
        if trial is not None:
            trial.count(columns, named)
            if trial.is_shadowed:
                self._answered = Answered(trial, active, events, rows, matrix, margins, rest[1])
        if self._tells_late is not None:
            note_late(self._tells_late, events, rows)
        begin = 0
        for batch, count in rows.spans:
            batch.keys += rows.keys[begin : begin + count]
            batch.texts += texts[begin : begin + count]
            begin += count
        if self._reasons is not None:
            made, inputs = (rows.sequences, rows.keys, texts), (matrix, margins)
            variants = None if trial is None else rest[0]
            self._reasons.offer(active, events, inputs, scores, named, rows.spans, made, variants)
        stage_ns["encode"] += clock() - began
        return rows

    async def _fetch(self, name: str, fetcher: Fetcher, keys: Sequence[Any]) -> None:
        entries = await fetcher.fetch({key for key in keys if key is not None})
        table = self._tables[name]
        table.clear()
        for key, payload in entries:
            table.put(key, payload)


def _decided(decider: Decider, events: EventColumns, scores: np.ndarray[Any, Any], *_: object) -> Any:
    return decider.decide(events, scores)


def _not_finite(scores: np.ndarray[Any, Any]) -> dict[int, str]:
    """The rows with a score that is not finite, with the reason. No threshold can decide on such a score."""
    by_row = scores.reshape(len(scores), -1)
    where = np.flatnonzero(~np.isfinite(by_row).all(axis=1))
    return {
        int(row): f"the model's score is not a finite number: {next(x for x in by_row[row] if not np.isfinite(x))}"
        for row in where
    }


def _append(rows: Rows, batch: PartitionBatch, page: Page, rejected: list[Rejected], *, marked: bool) -> None:
    """Add the events of a page, except those that are not JSON."""
    taken = Rows(page.sequences, page.keys, page.values, [(batch, len(page.values))])
    if marked:
        taken.scored = [position in page.scored for position in range(len(page.values))]
    foreign = {}
    for index, number in page.foreign.items():
        kind = _FOREIGN_TYPES.get(number, f"of Hazelcast type {number}")
        foreign[index] = f"the value is {kind}; put JSON values (HazelcastJsonValue) or JSON strings"
    taken = taken.without(foreign, "decode", rejected)
    rows.sequences += taken.sequences
    rows.keys += taken.keys
    rows.values += taken.values
    rows.spans += taken.spans
    rows.scored += taken.scored


def _try(
    compute: Callable[..., Any],
    events: EventColumns,
    rows: Rows,
    rejected: list[Rejected],
    stage: str,
    *columns: np.ndarray[Any, Any],
) -> tuple[EventColumns, Rows, Any]:
    """Compute something of the events and columns; events for which that fails are rejected, one by one."""
    try:
        return events, rows, compute(events, *columns)
    except Exception:
        bad: dict[int, str] = {}
        for row in range(len(events)):
            try:
                compute(events.take((row,)), *(column[row : row + 1] for column in columns))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not stop the others
                bad[row] = f"{type(error).__name__}: {error}"
        if not bad:
            raise
    events = events.without(bad)
    columns = tuple(np.delete(column, list(bad), axis=0) for column in columns)
    return events, rows.without(bad, stage, rejected), compute(events, *columns)
