"""A preview: what a job makes of each event, stage by stage, by the worker's own code; nothing is written anywhere."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.dead_letters.letters import text_of_key
from gridscore.errors import GridError, UsageError
from gridscore.features import DecodeError, EventDecoder
from gridscore.features.tables import kinds_of, read_chunks, rows_as_json
from gridscore.features.windows import texts_of
from gridscore.grid import transport
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import read_records
from gridscore.group.reader import Cursor, JournalReader
from gridscore.scoring.rehearsal import Rehearsal, page_of_texts
from gridscore.scoring.window_states import HistoryStates, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.grid.wire import Page
    from gridscore.job import Job
    from gridscore.models import LoadedModel
    from gridscore.operations.subject import Subject
    from gridscore.scoring.rehearsal import Given

MOST_RAW = 1 << 20  # bytes of an event that are shown
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Passed:
    """An event, and what the job makes of it."""

    key: str
    partition: int  # -1 if it is of a file
    sequence: int  # in its partition's journal; of a file, its row, from 1
    raw: str
    decoded: dict[str, Any] | None  # its fields; None if it could not be decoded
    # By name, the `key` that was asked for, and the fields of the `entry`; None where there is none.
    lookups: dict[str, Any]
    windows: dict[str, float | None]  # by call, what it saw; None where that is missing
    features: dict[str, float | None]  # by name; None where the value is missing
    margin: float | None  # what its score begins with; None if the job has no margin
    result: dict[str, Any] | None  # what a worker would write; None if it would be a dead letter
    rejected: dict[str, str] | None  # the `stage` and the `error` of that
    # Microseconds of CPU by stage, this event alone; of `fetch`, until the cluster had answered.
    micros: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Preview:
    """Looks at single events; `states` are those of the job's windows, if it has any."""

    def __init__(
        self, job: Job, model: LoadedModel, given: Given, states: Snapshot | HistoryStates | None, revision: int = 1
    ) -> None:
        self._job, self._given = job, given
        self._decoder = EventDecoder(job)
        self._rehearsal = Rehearsal(job, model, given, states, revision)
        self._calls = texts_of(job) if job.used_windows else []

    def key_of(self, text: bytes) -> str:
        """The event's key, if the job says which field it is; empty if it does not, or the event cannot be decoded."""
        try:
            return "" if self._job.event_key is None else str(getattr(self._decoder.decode(text), self._job.event_key))
        except DecodeError:
            return ""

    async def pass_over(self, page: Page, cursor: Cursor) -> None:
        """Let events be counted in windows, without a look at them."""
        if page.keys:
            await self._rehearsal.score(page, cursor)

    async def look(self, page: Page, cursor: Cursor, key: str) -> Passed:
        plan, spent = self._rehearsal.plan, self._rehearsal.stats.stage_ns
        before, began = dict(spent), time.perf_counter_ns()
        texts, rejected = await self._rehearsal.score(page, cursor)
        took = time.perf_counter_ns() - began
        micros = {
            stage: (ns - before.get(stage, 0)) / 1_000 for stage, ns in spent.items() if ns > before.get(stage, 0)
        }
        if self._given.fetchers:
            micros["fetch"] = took / 1_000 - sum(micros.values())
        (value,) = page.values
        try:
            event = None if page.foreign else self._decoder.decode(value)
        except DecodeError:
            event = None
        windows: dict[str, float | None] = {}
        features: dict[str, float | None] = {}
        margin = None
        if plan.seen is not None and len(plan.seen[0]):
            seen, matrix, margins = plan.seen
            windows = {text: _number(seen.window(number)[0]) for number, text in enumerate(self._calls)}
            features = dict(zip(plan.names, map(_number, matrix[0]), strict=True))
            margin = None if margins is None else _number(margins[0])
        return Passed(
            key=key,
            partition=cursor.partition,
            sequence=page.sequences[0],
            raw=value[:MOST_RAW].decode(errors="backslashreplace"),
            decoded=None if event is None else msgspec.to_builtins(msgspec.structs.asdict(event)),
            lookups={} if event is None else self._looked_up(event),
            windows=windows,
            features=features,
            margin=margin,
            result=msgspec.json.decode(texts[0]) if texts else None,
            rejected={"stage": rejected[0].stage, "error": rejected[0].error} if rejected else None,
            micros=micros,
        )

    def _looked_up(self, event: Any) -> dict[str, Any]:
        """What the features of the event have found; nothing if there are none."""
        plan, found = self._rehearsal.plan, {}
        for name, row in plan.looked_up_in().items():
            table, fields = self._given.tables[name], self._job.lookups[name].fields
            entry = {field: _plain(table.gather(field, np.array([row]))[0]) for field in fields} if row else None
            found[name] = {"key": plan.keys([event])[name][0], "entry": entry}
        return found


async def of_file(
    job: Job, model: LoadedModel, given: Given, path: Path, key: str | None = None
) -> AsyncGenerator[Passed, None]:
    """The events that the rows of a file are, in their order; all of them count in windows.

    Raises TableError if it cannot be read, or lacks a field of the job's events.
    """
    preview = Preview(job, model, given, HistoryStates(job) if job.used_windows else None)
    cursor, row = Cursor(-1, 0), 0
    if key is not None and job.event_key is None:
        raise UsageError("The job does not say which field of an event is its key.", "Leave out --key.")
    with read_chunks(path, kinds_of(job.schema_), _CHUNK) as (_, frames):
        for frame in frames:
            for text in rows_as_json(frame, job.schema_, str(path)):
                row += 1
                page = page_of_texts([text], row)
                name = preview.key_of(text) or str(row)
                if key in (None, name):
                    yield await preview.look(page, cursor, name)
                else:
                    await preview.pass_over(page, cursor)


async def of_journal(
    subject: Subject,  # a submitted job, and the version that scores
    *,
    key: str | None = None,  # only those with this key
    oldest: bool = False,  # begin with the oldest that the journal has, and not with the next one
    # Called with the number of events that were overwritten before they were read.
    missed: Callable[[int], None] = lambda _count: None,
) -> AsyncGenerator[Passed, None]:
    """The events of a job as they are put, for as long as one iterates.

    Raises MapNotFoundError if there is no event map; GridscoreError if a lookup cannot be copied; or what windows hold
    cannot be told.
    """
    job, (record, grid) = subject.job, await subject.live()
    wanted = None if key is None else set(data_of(grid, key))
    partitions = (
        range(grid.partition_count)
        if wanted is None
        else sorted({partition_of(data, grid.partition_count) for data in wanted})
    )
    shown: dict[int, int] = {}

    def begun_again(partition: int, first: int) -> None:
        if job.used_windows:
            reader.fail(untold)
        else:
            shown[partition] = first
            reader.start(partition, first)

    reader = JournalReader(grid, job.events, begun_again, _as_it_is)
    untold = GridError(
        f"Events of `{job.events}` were overwritten before they were read, or its journal has begun again: what "
        "windows hold cannot be told from here on.",
        "Begin again; with --key KEY there is less to read.",
    )
    states: Snapshot | None = None
    if job.used_windows:
        if job.routes_windows:
            raise UsageError(
                f"The job `{job.name}` has windows with other keys than its events, which change while one looks.",
                "Look at the events of a file: --input FILE.",
            )
        if oldest:
            raise UsageError(
                f"The job `{job.name}` has windows: what they held when an older event came is not known any more.",
                "Look at events from now on, or at those of a file: --input FILE.",
            )
        states = Snapshot(grid, record, await read_records(grid, job.name, partitions))
        if await grid.has_map(states.map_name):
            for partition in partitions:
                for each in wanted or [None]:
                    if each is None or partition_of(each, grid.partition_count) == partition:
                        await states.take(partition, each)
    preview = Preview(job, subject.sides[0].model, subject.given, states, record.revision)
    try:
        for partition in partitions:
            first, newest = await reader.bounds(partition)
            shown[partition] = first if oldest else newest + 1
            begin = shown[partition] if states is None else states.begins(partition, first, newest)
            if begin < first:
                raise untold
            reader.start(partition, begin)
        while True:
            await reader.wait()
            for partition, page, cursor, lost, _ in reader.take(1):
                if lost:
                    missed(lost)
                    if states is not None:
                        raise untold
                rows = [n for n, each in enumerate(page.keys) if wanted is None or each in wanted]
                old = [n for n in rows if page.sequences[n] < shown[partition]]
                await preview.pass_over(_part(page, old), cursor)
                for n in rows[len(old) :]:
                    yield await preview.look(_part(page, [n]), cursor, text_of_key(grid, page.keys[n]))
    finally:
        reader.close()


async def _as_it_is(_cursor: Cursor, page: Page, _gap: int) -> Page:
    return page


def _part(page: Page, rows: list[int]) -> Page:
    return page._replace(
        sequences=[page.sequences[n] for n in rows],
        keys=[page.keys[n] for n in rows],
        values=[page.values[n] for n in rows],
        foreign={new: page.foreign[n] for new, n in enumerate(rows) if n in page.foreign},
    )


def data_of(grid: Grid, key: str) -> list[bytes]:
    """The serialized keys that a text may mean: it may be a number."""
    return [data for form in dict.fromkeys((key, _whole(key))) for data in transport.key_forms(grid.client, form)]


def _whole(key: str) -> Any:
    """The key as a whole number, if it may be one."""
    return int(key) if key.removeprefix("-").isdecimal() and key.isascii() and len(key) < 20 else key


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else _number(value)
