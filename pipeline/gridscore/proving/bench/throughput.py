"""Throughput of one worker, beside its two limits: reading the journal and nothing else, predicting and nothing else.

All three do the same events in the same run, in turn, several times. CPU is that of whole processes, as the operating
system accounts for it; the stages are CPU time of the worker's event loop, measured where they happen.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from hazelcast.protocol.builtin import FixSizedTypesCodec
from hazelcast.protocol.client_message import RESPONSE_HEADER_SIZE

from gridscore.features import FeaturePlan, LookupTable
from gridscore.grid import transport, wire
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.models import Registry
from gridscore.proving.bench import card
from gridscore.proving.bench.rounds import (
    PAGE,
    Meter,
    Run,
    drain,
    feature_matrix,
    figures,
    predict,
    put_events,
    score,
    stage_figures,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from gridscore.grid import Grid
    from gridscore.job import Job

_EVENTS = "events.bench"


async def fill_lookups(grid: Grid) -> None:
    """Put the lookups of the work into the grid."""
    for name, entries in (("lookups.bench-users", card.users()), ("lookups.bench-merchants", card.merchants())):
        await MapWriter(grid, name).put((key, msgspec.json.encode(value)) for key, value in entries.items())


async def fill(grid: Grid, count: int, progress: Callable[[int], None]) -> None:
    """Put the lookups and the events of the work into the grid."""
    await fill_lookups(grid)
    await put_events(grid, _EVENTS, card.events(count), progress)


async def drain_as_published(grid: Grid, pids: Sequence[int]) -> Run:
    """The same journal through the client's own connection, as published: one object a frame, items uncut."""
    from hazelcast.asyncio import HazelcastClient
    from hazelcast.protocol.builtin import ListDataCodec

    def decode(message: Any) -> tuple[int, int]:
        frame = message.next_frame()
        following = FixSizedTypesCodec.decode_long(frame.buf, RESPONSE_HEADER_SIZE + 4)
        return len(ListDataCodec.decode(message)), following

    settings = grid.settings
    client = await HazelcastClient.create_and_start(
        cluster_members=list(settings.members), cluster_name=settings.cluster_name
    )
    try:
        journal = Journal(grid, _EVENTS)
        bounds = await asyncio.gather(*(journal.bounds(p) for p in range(grid.partition_count)))
        count = 0
        meter = Meter(pids)

        async def read(partition: int, position: int, newest: int) -> None:
            nonlocal count
            while position <= newest:
                message = wire.encode_read(_EVENTS, position, 1, PAGE)
                got, position = await transport.invoke(client, message, partition, decode)
                count += got

        await asyncio.gather(*(read(p, oldest, newest) for p, (oldest, newest) in enumerate(bounds)))
        return Run.of(count, meter)
    finally:
        await client.shutdown()


def matrix_of(job: Job, values: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The feature matrix of the events, offline."""
    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    for name, entries in (("customer", card.users()), ("shop", card.merchants())):
        for key, value in entries.items():
            tables[name].put(key, msgspec.json.encode(value))
    return feature_matrix(job, FeaturePlan(job, tables, {}), values)


@dataclass(frozen=True, slots=True)
class Report:
    """Medians over the rounds."""

    events: int
    rounds: int
    members: int
    drain: list[Run]
    published: list[Run]
    predict: list[Run]
    worker: list[Run]

    def to_json(self) -> dict[str, Any]:
        """Medians with their spread, for scripts and for the table."""

        def ratio(drains: Sequence[Run]) -> float:
            return round(statistics.median(w.rate / d.rate for w, d in zip(self.worker, drains, strict=True)), 3)

        return {
            "events": self.events,
            "rounds": self.rounds,
            "members": self.members,
            "worker": figures(self.worker),
            "journal_drain": figures(self.drain),
            "journal_drain_client_as_published": figures(self.published),
            "inplace_predict": figures(self.predict),
            "worker_stage_us_per_event": stage_figures(self.worker),
            "worker_to_drain_ratio": ratio(self.drain),
            "worker_to_drain_as_published_ratio": ratio(self.published),
        }


async def measure(
    grid: Grid, pids: Sequence[int], *, events: int, rounds: int, progress: Callable[[str, int], None]
) -> Report:
    """Run the whole comparison.

    `grid`: a connection to a cluster made for this: its `*.bench*` maps are destroyed afterwards; `pids`: processes of
    the members, for their CPU; `events`: how many; `rounds`: how often each is measured, in turn; `progress`: called
    with what is going on and how many events of it are done.
    """
    drains, published, predictions, workers = [], [], [], []
    job = card.card_job("bench", "results.bench")
    registry = Registry(grid)
    booster = card.booster(job)
    await registry.push(booster, job.model.name, alias="champion")
    booster.set_param({"nthread": 1})
    await fill(grid, events, lambda done: progress("putting events", done))

    def infer(rows: np.ndarray[Any, Any]) -> Any:
        return booster.inplace_predict(rows, validate_features=False)

    matrix = None
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: journal drain", 0)
        run, values = await drain(grid, _EVENTS, pids, events)
        drains.append(run)
        published.append(await drain_as_published(grid, pids))
        matrix = matrix_of(job, values) if matrix is None else matrix
        del values
        progress(f"round {number + 1} of {rounds}: inplace_predict", 0)
        predictions.append(predict(infer, matrix, events, pids))
        progress(f"round {number + 1} of {rounds}: worker", 0)
        workers.append(await score(grid, pids, job, events))
    for name in (_EVENTS, "lookups.bench-users", "lookups.bench-merchants"):
        await grid.destroy(name)
    return Report(events, rounds, len(pids), drains, published, predictions, workers)
