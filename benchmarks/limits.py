"""Limits: parts of what every system has to do, and nothing else, as fast as they go in this process.

- `limit-drain`: read the whole journal, one read in flight a partition.
- `limit-put`: write ready-made results, one put-all in flight a partition.
- `limit-predict`: `inplace_predict` of ready-made features, one thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.meter import Meter
from benchmarks.outcome import Run, Status, Throughput
from gridscore.errors import GridscoreError
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.proving.bench.rounds import PAGE
from gridscore.scoring.runner import BATCH_EVENTS

if TYPE_CHECKING:
    from benchmarks.ground import Ground
    from benchmarks.meter import Usage

NAMES = ("limit-drain", "limit-put", "limit-predict")

TITLES = {
    "limit-drain": "limit: drain the journal",
    "limit-put": "limit: put ready-made results",
    "limit-predict": "limit: inplace_predict alone",
}


class Limits:
    """The limits of a ground.

    Args:
        ground: With the backlog.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._map = f"{ground.bed.work.job.results}-limit"
        self._runs: dict[str, list[Run]] = {name: [] for name in NAMES}
        self._failures: dict[str, str] = {}

    async def run(self, number: int) -> None:
        """Each of them once; in round 0 they do not count."""
        for name, measure in (("limit-drain", self._drain), ("limit-put", self._put), ("limit-predict", self._predict)):
            try:
                usage = await measure()
            except GridscoreError as error:
                self._failures[name] = str(error)
                continue
            if number:
                self._runs[name].append(
                    Run(
                        number,
                        self._ground.count,
                        usage.seconds,
                        usage.harness,
                        usage.services,
                        0.0,
                        usage.others_cores,
                    )
                )

    def outcome(self) -> list[Throughput]:
        """For the file."""
        work, count = self._ground.bed.work.name, self._ground.count
        return [
            Throughput(
                work, name, Status.FAILED if name in self._failures else Status.MEASURED, self._failures.get(name, ""),
                count, 0, runs,
            )
            for name, runs in self._runs.items()
        ]  # fmt: skip

    async def _drain(self) -> Usage:
        grid = self._ground.bed.grid
        journal = Journal(grid, self._ground.bed.work.job.events)
        bounds = await asyncio.gather(*(journal.bounds(p) for p in range(grid.partition_count)))
        meter, values = self._meter(), list[bytes]()

        async def read(partition: int, position: int, newest: int) -> None:
            while position <= newest:
                page = await journal.read(partition, position, PAGE)
                if page is not None:
                    values.extend(page.values)
                    position = page.next

        await asyncio.gather(*(read(p, oldest, newest) for p, (oldest, newest) in enumerate(bounds)))
        usage = meter.read()
        if len(values) != self._ground.count:
            raise GridscoreError(f"The journal holds {len(values):,} of {self._ground.count:,} events.")
        return usage

    async def _put(self) -> Usage:
        grid, writer = self._ground.bed.grid, MapWriter(self._ground.bed.grid, self._map)
        await writer.prepare()
        keys: dict[int, list[bytes]] = {}
        for number in range(self._ground.count):
            key = writer.serialize_key(f"e{number}")
            keys.setdefault(partition_of(key, grid.partition_count), []).append(key)
        text = (
            b'{"score":0.7310585975646973,"sequence":1107,"epoch":1,"version":1,'
            b'"model":"bench-card","scored_at":1700000000000}'
        )
        meter = self._meter()

        async def write(partition: int, mine: list[bytes]) -> None:
            for begin in range(0, len(mine), PAGE):
                page = mine[begin : begin + PAGE]
                await writer.put_partition(partition, page, [text] * len(page))

        await asyncio.gather(*(write(partition, mine) for partition, mine in keys.items()))
        usage = meter.read()
        await grid.destroy(self._map)
        return usage

    async def _predict(self) -> Usage:
        predict, matrix = self._ground.booster.inplace_predict, self._ground.matrix
        meter = self._meter()
        for begin in range(0, len(matrix), BATCH_EVENTS):
            predict(matrix[begin : begin + BATCH_EVENTS], validate_features=False)
        return meter.read()

    def _meter(self) -> Meter:
        return Meter([], self._ground.bed.member_pids)
