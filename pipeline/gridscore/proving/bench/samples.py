"""Events of a user's own job to measure with: from a history, or from the job's event map as it is, only read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import GridscoreError
from gridscore.features import DecodeError, EventDecoder, FeaturePlan, LookupTable
from gridscore.features.tables import read_history, rows_as_json
from gridscore.grid.capacity import Source
from gridscore.grid.copies import payload
from gridscore.grid.entries import walk
from gridscore.grid.journal import Journal
from gridscore.grid.writer import partition_of
from gridscore.scoring.recent import look_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from gridscore.grid import Grid
    from gridscore.grid.capacity import Capacity
    from gridscore.job import Job
    from gridscore.models import LoadedModel

SAMPLES = 20_000  # different events that are taken, at most; more than these are the same ones under other keys
# Bytes of events that are put into somebody's cluster, at most; backups, journal and results come on top of them.
MAX_BYTES = 128 << 20

_FULL = 3 / 4  # part of the journal that is used: keys do not spread evenly, and each partition has a ring of its own
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Samples:
    """Events to measure with."""

    texts: list[bytes]  # JSON texts
    origin: str  # where they are from, for people
    bad: int = 0  # those left out, because the job would make dead letters of them
    example: str = ""  # what is wrong with one of these; empty if there are none

    @property
    def mean_bytes(self) -> float:
        return sum(map(len, self.texts)) / len(self.texts)


def from_history(path: Path, job: Job) -> Samples:
    """Rows of a table, spread evenly over all of it.

    Raises TableError if it cannot be read, or lacks a field of the job's events.
    """
    frame = read_history(path, job)
    if len(frame) > SAMPLES:
        frame = frame.iloc[np.linspace(0, len(frame) - 1, SAMPLES).astype(int)]
    return Samples(list(rows_as_json(frame, job.schema_, str(path))), str(path))


async def from_grid(grid: Grid, job: Job) -> Samples:
    """Entries of the job's event map, as many of each partition; or what its journal still has, if the map is empty.

    Raises GridscoreError if there are no events; HazelcastError if the cluster did not answer.
    """
    each = -(-SAMPLES // grid.partition_count)
    if await grid.has_map(job.events):
        for origin, read in (("map", _entries), ("journal of the map", _journalled)):
            if texts := await _all_of(grid, job.events, each, read):
                return Samples(texts[:SAMPLES], f"the {origin} {job.events}")
    raise GridscoreError(
        f"The event map `{job.events}` has no events to measure with, and none that are JSON in its journal.",
        "Give some with --history FILE.csv, or put events into the map first.",
    )


async def _all_of(
    grid: Grid, map_name: str, each: int, read: Callable[[Grid, str, int, int], Awaitable[list[bytes]]]
) -> list[bytes]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(partition: int) -> list[bytes]:
        async with limit:
            return await read(grid, map_name, partition, each)

    found = await asyncio.gather(*map(one, range(grid.partition_count)))
    # One of each partition, then the next of each: those that are cut off are spread evenly.
    longest = max(map(len, found))
    return [texts[row] for row in range(longest) for texts in found if row < len(texts)]


async def _entries(grid: Grid, map_name: str, partition: int, most: int) -> list[bytes]:
    texts: list[bytes] = []
    async for page in walk(grid, map_name, partition, most):
        texts += [text for _, value in page if (text := payload(value))]
        if len(texts) >= most:
            break
    return texts[:most]


async def _journalled(grid: Grid, map_name: str, partition: int, most: int) -> list[bytes]:
    page = await Journal(grid, map_name).newest(partition, most)
    return [] if page is None else page.texts


# ---------------------------------------------------------------------- what the job makes of them


async def featured(grid: Grid, job: Job, model: LoadedModel, samples: Samples) -> tuple[Samples, np.ndarray[Any, Any]]:
    """The samples that the job can score, with their features: shape (n, features), from the lookups as they are now.

    Raises GridscoreError if it can score none of them, or a lookup map is too large; HazelcastError if the cluster did
    not answer.
    """
    if job.used_windows:
        raise GridscoreError(f"The job `{job.name}` has windows, which this bench does not measure yet.")
    decoder = EventDecoder(job)
    events, texts, wrong = [], [], []
    for text in samples.texts:
        try:
            events.append(decoder.decode(text))
        except DecodeError as error:
            wrong.append(str(error))
        else:
            texts.append(text)
    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    plan = FeaturePlan(job, tables, model.version.learnt)
    await look_up(grid, job, plan, tables, events)
    try:
        matrix = plan.matrix(events)
    except Exception:  # noqa: BLE001 -- whatever it is, the worker would set those events aside that cause it
        good = [row for row, event in enumerate(events) if _computes(plan, event, wrong)]
        texts, matrix = [texts[row] for row in good], plan.matrix([events[row] for row in good])
    if not texts:
        raise GridscoreError(
            f"The job `{job.name}` can score none of the {len(wrong):,} events from {samples.origin}: {wrong[0]}",
            "Give others with --history, or correct the job's schema.",
        )
    return replace(samples, texts=texts, bad=len(wrong), example=wrong[0] if wrong else ""), matrix


def _computes(plan: FeaturePlan, event: Any, wrong: list[str]) -> bool:
    try:
        plan.matrix([event])
    except Exception as error:  # noqa: BLE001 -- as above
        wrong.append(f"{type(error).__name__}: {error}")
        return False
    return True


# ---------------------------------------------------------------------- how many, and under which keys


def bounded(wanted: int, capacity: Capacity, mean_bytes: float) -> tuple[int, str]:
    """As many events as are wanted, or as the journal and the cluster's memory should be asked to hold.

    Returns: the number, and why it is less than what was wanted; empty if it is not.
    """
    by_journal = max(capacity.partitions, int(capacity.total * _FULL))
    by_memory = max(1, int(MAX_BYTES / mean_bytes))
    most = min(by_journal, by_memory)
    if wanted <= most:
        return wanted, ""
    if most == by_memory:
        why = f"{wanted:,} events of {mean_bytes:,.0f} bytes are more than the {MAX_BYTES >> 20} MiB that this puts"
    else:
        how = "holds" if capacity.source is Source.CONFIGURED else "seems to hold"
        why = f"the journal {how} {capacity.total:,} entries, and not all partitions get equally many"
    return most, f"{most:,} of {wanted:,} events: {why}"


def keys(count: int, capacity: Capacity, serialize: Callable[[str], bytes]) -> Iterator[str]:
    """Keys of so many events, and none that overruns the ring of its partition.

    `count`: how many, no more than `bounded` gives; `capacity`: of the journal; `serialize`: makes a key's bytes.
    """
    room = [capacity.partition] * capacity.partitions
    number = 0
    while count:
        key = f"e{number}"
        number += 1
        partition = partition_of(serialize(key), capacity.partitions)
        if room[partition]:
            room[partition] -= 1
            count -= 1
            yield key
