"""Parity: whether live results have the bits that the same events give offline, with `Booster.predict` itself.

Events and their results are read from the journals, without a lease or an offset. What cannot be judged is counted, and
said: results of other versions, events whose results are not there any more, lookups and windows that nobody knows as
they were.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
from hazelcast.errors import HazelcastError

from gridscore.dead_letters.letters import text_of_key
from gridscore.errors import GridError, GridscoreError, JournalMissingError, UsageError
from gridscore.features.definitions import looked_up_by
from gridscore.grid.copies import payload
from gridscore.grid.entries import values_of
from gridscore.grid.journal import Journal
from gridscore.group.lease_records import read_records
from gridscore.group.reader import PAGE_BYTES, Cursor
from gridscore.models.certificates import Certificate, keep
from gridscore.operations.subject import subject_of
from gridscore.scoring.rehearsal import Rehearsal
from gridscore.scoring.window_states import HistoryStates, Snapshot
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from gridscore.dead_letters.letters import Rejected
    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.group.lease_records import LeaseRecord
    from gridscore.job import JobRecord
    from gridscore.models import ModelVersion
    from gridscore.operations.subject import Subject

_log = logging.getLogger(__name__)

EVENTS = 20_000  # events that are compared, unless one says otherwise
AT_PUSH = 2_000
MOST_EVENTS = 1_000_000
MOST_SHOWN = 2_000  # characters of an event that a difference shows
_FIRST_PAGE, _PAGE = 16, 512
_READ_SECONDS = 10.0
# What a result says of how it was written, and of why it is what it is.
_BY_WRITER = frozenset(("epoch", "scored_at", "sequence", "variant", "reasons", "amended_at"))

_FEATURE = "feature "

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class Difference:
    """The first result that is another one offline."""

    key: str
    partition: int
    sequence: int
    event: str
    values: dict[str, tuple[Any, Any]]  # by what differs, live and offline; `None` where there is nothing
    features: dict[str, float | None]  # of the event, offline, as far as they are known

    def __str__(self) -> str:
        name, (live, here) = next(iter(self.values.items()))
        where = f"event {self.key[:100]} (partition {self.partition}, sequence {self.sequence})"
        return f"{where}: {name} {live} live, {here} offline"


@dataclass(slots=True)
class Parity:
    """What a comparison has shown so far."""

    job: str
    revision: int
    model: str
    version: int
    served: Literal["live", "here"]
    at: str = field(default_factory=moment_text)  # when it began, RFC 3339 in UTC
    equal: int = 0  # events whose results have the same bits
    different: int = 0  # events whose results have others
    unclear: int = 0  # events whose results have others, and whose lookups may have changed since
    unjudged: Counter[str] = field(default_factory=Counter)  # why other events were not compared, with their number
    # Of each feature that results carry: on how many events it was equal, and was compared.
    features: dict[str, list[int]] = field(default_factory=dict)
    first: Difference | None = None  # the first different one
    first_unclear: Difference | None = None  # the first of the others

    @property
    def judged(self) -> int:
        """Events that were compared."""
        return self.equal + self.different + self.unclear

    @property
    def certificate(self) -> Certificate:
        return Certificate(
            model=self.model,
            version=self.version,
            job=self.job,
            revision=self.revision,
            at=self.at,
            served=self.served,
            equal=self.equal,
            different=self.different,
            unclear=self.unclear,
            features={name: (equal, judged) for name, (equal, judged) in self.features.items()},
            difference="" if self.first is None else str(self.first)[:1_000],
        )


async def parity(
    subject: Subject,  # a submitted job, and the version that is judged
    *,
    events: int = EVENTS,  # how many, or a few more
    wait: float = _READ_SECONDS,  # seconds to wait for events, where a job has windows that are older than the journal
    # `here` compares with what the worker's code gives in this process, and not with results.
    served: Literal["live", "here"] = "live",
    # Called with the partitions done and all partitions.
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Parity:
    """Compare the newest events of a job, spread over its partitions, with what they give offline.

    Raises MapNotFoundError if there is no event map; UsageError if the job is not submitted, or has windows with other
    keys than its events.
    """
    job, (record, grid) = subject.job, await subject.live()
    if job.routes_windows and served == "live":
        raise UsageError(
            f"The job `{job.name}` has windows with other keys than its events: in which order those of several "
            "partitions were added to an entity is not known any more, so they cannot be compared.",
            "`gridscore backtest` and `gridscore features` make the same features of a history.",
        )
    version = subject.sides[0].model.version
    found = Parity(job.name, record.revision, version.name, version.version, served)
    comparison = _Comparison(subject, record, grid, found, await read_records(grid, job.name))
    samples = await comparison.samples(min(events, MOST_EVENTS), wait)
    for done, sample in enumerate(samples):
        on_progress(done, len(samples))
        await comparison.compare(sample)
    return found


async def parity_at_push(grid: Grid, version: ModelVersion, jobs: Iterable[str]) -> list[Parity]:
    """Compare what a version that has scored nothing yet gives for live events of jobs, and keep the certificates.

    Jobs that have no events, or that it does not fit, are left out: a push is done whatever comes of this.
    """
    compared = []
    for job in jobs:
        try:
            async with subject_of(lambda: nullcontext(grid), job, [str(version.version)], None) as subject:
                found = await parity(subject, events=AT_PUSH, served="here")
            if found.judged:
                await keep(grid, found.certificate)
                compared.append(found)
        except (GridscoreError, HazelcastError) as error:
            _log.info("%s: %s was not compared with the same events offline: %s", job, version, error)
    return compared


class _Sample(NamedTuple):
    """Events of a partition that are read, from `begin` to `end`, and from which on they are compared."""

    partition: int
    begin: int
    judged: int
    end: int


class _Comparison:
    def __init__(
        self, subject: Subject, record: JobRecord, grid: Grid, found: Parity, leases: Mapping[int, LeaseRecord]
    ) -> None:
        self._grid, self._record = grid, record
        self._job = job = subject.job
        self._found = found
        self._model = model = subject.sides[0].model
        self._states, states = (_states(grid, record, leases) for _ in range(2))
        self._offline = Rehearsal(job, model.reference(), subject.given, self._states, record.revision)
        self._here = Rehearsal(job, model, subject.given, states, record.revision)
        self._journal = Journal(grid, job.events)
        self._origins = {partition: lease.origin for partition, lease in leases.items()}
        # Their windows have events that the journal has not, or lack some that it has.
        self._interrupted = {partition for partition, lease in leases.items() if lease.regressions or lease.lost}
        self._by_lookups = {name for name, lookups in looked_up_by(job).items() if lookups}
        if job.lookups and (job.margin is not None or job.has_conditions):
            self._by_lookups.add("")  # not a feature, and it may be made of lookups

    async def samples(self, events: int, wait: float) -> list[_Sample]:
        """The newest events of each partition.

        Where there are windows, the events before them are read as well, from the first that there was, if the journal
        still has it and the windows have not begun anew since. Elsewhere only those can be compared that come while
        we wait, on states as they are now.
        """
        record, grid = self._record, self._grid
        bounds = await asyncio.gather(*map(self._journal.bounds, range(grid.partition_count)))
        each = _share([newest + 1 - oldest for oldest, newest in bounds], events)
        newest = [_Sample(p, max(o, n + 1 - each), max(o, n + 1 - each), n) for p, (o, n) in enumerate(bounds)]
        states = self._states
        if isinstance(states, Snapshot) and self._found.served == "live":
            is_first = record.revision == 1 and record.beginning == "oldest"
            whole = {
                p for p, (oldest, _) in enumerate(bounds) if is_first and oldest == 0 and p not in self._interrupted
            }
            newest = [sample._replace(begin=0) if sample.partition in whole else sample for sample in newest]
            if later := [partition for partition in range(grid.partition_count) if partition not in whole]:
                if await grid.has_map(states.map_name):
                    for partition in later:
                        await states.take(partition)
                before = {partition: await self._journal.bounds(partition) for partition in later}
                await asyncio.sleep(wait)
                for partition, (first, end) in before.items():
                    begin = states.begins(partition, first, end)
                    still, newest_now = await self._journal.bounds(partition)
                    newest[partition] = _Sample(partition, begin, end + 1, newest_now)
                    if max(first, still) > begin:
                        newest[partition] = _Sample(partition, 0, 0, -1)
                        self._found.unjudged["what windows held is not known"] += newest_now - end
        return [sample for sample in newest if sample.judged <= sample.end]

    async def compare(self, sample: _Sample) -> None:
        partition = sample.partition
        cursors = Cursor(partition, sample.begin), Cursor(partition, sample.begin)
        journalled: dict[int, bytes] | None = None
        expected = sample.begin
        async for page in _pages(self._journal, partition, sample.begin, sample.end):
            if page.first > expected:
                # What windows held is not known from there on.
                lost = page.first if self._states is None else sample.end + 1
                self._found.unjudged["overwritten before it was read"] += max(0, lost - max(expected, sample.judged))
                if self._states is not None:
                    return
            expected = page.next
            texts, rejected = await self._offline.score(page, cursors[0])
            if page.next <= sample.judged:
                continue
            offline = {result["sequence"]: result for result in map(_decode, texts)}
            why = {event.sequence: f"rejected at {event.stage}: {event.error}" for event in rejected}
            features_of = partial(_features, self._offline, page, rejected)
            newer: set[int] = set()
            if self._found.served == "here":
                texts, _ = await self._here.score(page, cursors[1])
                live = {result["sequence"]: result for result in map(_decode, texts)}
            else:
                live, newer = await self._in_map(partition, page)
                if newer and journalled is None:
                    journalled = await self._in_journal(partition, sample.end + 1 - sample.judged)
                live |= {s: _decode(text) for s in newer if journalled and (text := journalled.get(s)) is not None}
            for index, sequence in enumerate(page.sequences):
                if sequence >= sample.judged:
                    event = page.keys[index], page.values[index], partition, sequence
                    self._judge(event, live.get(sequence), offline.get(sequence), why, features_of, newer)

    async def _in_map(self, partition: int, page: Page) -> tuple[dict[int, dict[str, Any]], set[int]]:
        """Results of these events that are in the result map, and the events whose key has that of another."""
        values = await values_of(self._grid, self._job.results, partition, page.keys)
        results = {key: result for key, value in values.items() if (result := _read(payload(value))) is not None}
        found, others = {}, set()
        for key, sequence in zip(page.keys, page.sequences, strict=True):
            if (result := results.get(key)) is not None:
                if result["sequence"] == sequence and result["epoch"] >= self._origins.get(partition, 0):
                    found[sequence] = result
                else:
                    others.add(sequence)
        return found, others

    async def _in_journal(self, partition: int, events: int) -> dict[int, bytes]:
        """The newest results that the journal of the result map has, by sequence, for about so many events."""
        journal, found = Journal(self._grid, self._job.results), dict[int, bytes]()
        try:
            oldest, newest = await journal.bounds(partition)
        except JournalMissingError:
            return found
        async for page in _pages(journal, partition, max(oldest, newest + 1 - 2 * events - _PAGE), newest):
            for text in page.values:
                result = _read(text)
                if result is not None and result["epoch"] >= self._origins.get(partition, 0):
                    found[result["sequence"]] = text
        return found

    def _judge(
        self,
        event: tuple[bytes, bytes, int, int],
        live: dict[str, Any] | None,
        offline: dict[str, Any] | None,
        why: Mapping[int, str],
        features_of: Callable[[int], dict[str, float | None]],
        newer: set[int],
    ) -> None:
        found, (key, text, partition, sequence) = self._found, event
        if live is None:
            if offline is None:
                found.unjudged["cannot be scored"] += 1
            elif sequence in newer:
                found.unjudged["the result of the key is of another event"] += 1
            else:
                found.unjudged["no result"] += 1
            return
        if (live.get("model"), live.get("version"), live.get("revision")) != (
            found.model,
            found.version,
            found.revision,
        ):
            found.unjudged["another version or revision"] += 1
            return
        values: dict[str, tuple[Any, Any]] = {}
        if offline is None:
            values["result"] = live.get("score"), why.get(sequence, "none")
        else:
            served = live.get("features")
            for name, value in served.items() if isinstance(served, dict) else ():
                if name not in self._job.features:
                    continue
                here = (offline.get("features") or {}).get(name)
                counts = found.features.setdefault(name, [0, 0])
                counts[0] += same(value, here)
                counts[1] += 1
                if not same(value, here):
                    values[f"{_FEATURE}{name}"] = value, here
            for name in dict.fromkeys((*live, *offline)):
                if name not in _BY_WRITER and name != "features" and not same(live.get(name), offline.get(name)):
                    values[name] = live.get(name), offline.get(name)
        if not values:
            found.equal += 1
            return
        unclear = self._may_be_of_lookups(values, live)
        if unclear:
            found.unclear += 1
        else:
            found.different += 1
        if (found.first_unclear if unclear else found.first) is None:
            shown = text[:MOST_SHOWN].decode(errors="backslashreplace")
            where = text_of_key(self._grid, key), partition, sequence
            difference = Difference(*where, shown, values, features_of(sequence))
            setattr(found, "first_unclear" if unclear else "first", difference)

    def _may_be_of_lookups(self, values: Mapping[str, Any], live: dict[str, Any]) -> bool:
        """Whether lookups that have changed since can be the reason; not where something else is different as well."""
        job = self._job
        if not self._by_lookups or any(name in job.result.include for name in values):
            return False
        if any(n.startswith(_FEATURE) and n.removeprefix(_FEATURE) not in self._by_lookups for n in values):
            return False
        served, score = live.get("features"), live.get("score")
        if job.margin is not None or not isinstance(served, dict) or not set(job.features) <= set(served):
            return True
        # With the features that it was scored with, a score does not depend on lookups.
        row = np.array([[_or_nan(served[name]) for name in job.feature_names]], np.float32)
        scored = self._model.predict(np.repeat(row, 2, axis=0))[0]
        return same(score, scored.tolist())


def _share(sizes: Sequence[int], events: int) -> int:
    """How many of each partition at most, so that in all they are as many as are wanted, or all that there are."""
    left = events
    for place, size in enumerate(sorted(sizes)):
        partitions = len(sizes) - place
        if size * partitions >= left:
            return -(-left // partitions)
        left -= size
    return max(sizes)


def _states(grid: Grid, record: JobRecord, leases: Mapping[int, LeaseRecord]) -> Snapshot | HistoryStates | None:
    if record.job.routes_windows:
        return HistoryStates(record.job)
    return Snapshot(grid, record, leases) if record.job.used_windows else None


async def _pages(journal: Journal, partition: int, begin: int, end: int) -> AsyncIterator[Page]:
    """What a journal has from one sequence to another, both included; of large events fewer at once."""
    events = _FIRST_PAGE
    while begin <= end:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                page = await journal.read(partition, begin, min(events, end + 1 - begin))
        except (HazelcastError, TimeoutError) as error:
            raise GridError(f"The journal of `{journal.map_name}` could not be read: {error or 'no answer'}") from error
        if page is None or page.next <= begin:
            return
        yield page
        begin, mean = page.next, page.size / (page.next - page.first)
        events = max(1, min(_PAGE, int(PAGE_BYTES / mean)))


def _features(offline: Rehearsal, page: Page, rejected: list[Rejected], sequence: int) -> dict[str, float | None]:
    """The features of an event of a page that was scored last; none where it cannot be told which row is whose."""
    gone = {event.sequence for event in rejected if event.stage in ("decode", "lookup", "windows")}
    left = [each for each in page.sequences if each not in gone]
    if (seen := offline.plan.seen) is None or len(left) != len(seen[1]) or sequence not in left:
        return {}
    row = seen[1][left.index(sequence)].tolist()
    return {n: None if math.isnan(v) else v for n, v in zip(offline.plan.names, row, strict=True)}


def _read(text: bytes) -> dict[str, Any] | None:
    """A result; None if it is something else."""
    try:
        result = _decode(text)
    except (ValueError, RecursionError):
        return None
    return result if all(isinstance(result.get(name), int) for name in ("sequence", "epoch")) else None


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same to the last bit."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and bool(one == other)


def _or_nan(value: Any) -> float:
    return value if isinstance(value, float) else math.nan
