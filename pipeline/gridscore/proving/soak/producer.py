"""The producer of a soak: a process that puts events at a rate, and keeps a ledger of what the cluster acknowledged.

An event whose fate is not known is put again, with the same key and the same value, until it is acknowledged. SIGTERM
ends it: nothing new is put, what is under way is finished, and what cannot be is noted as in doubt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.grid import GridSettings, connect
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.proving.soak.evidence import LEDGER, LineFile
from gridscore.proving.soak.workload import event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gridscore.grid import Grid
    from gridscore.proving.soak.workload import Event

_log = logging.getLogger(__name__)

PROGRESS = "producer.json"
MAX_IN_FLIGHT = 4_000  # events put and not acknowledged, above which nothing new is put
_CHUNK_SECONDS = 0.04
_RETRY_SECONDS = 0.25
_FINISH_SECONDS = 60.0


@dataclass
class Progress:
    """How far the producer is."""

    acknowledged: int = 0  # events
    put: int = 0  # events given to the cluster at least once
    retries: int = 0  # puts of unknown fate, or refused, that were made again
    longest: float = 0.0  # seconds of the longest time that an event took to be acknowledged
    # Numbers of events that were put and never acknowledged; filled at the end.
    doubt: list[int] = field(default_factory=list)
    finished: bool = False  # whether it has come to its end


def read_progress(folder: Path) -> Progress:
    """How far the producer is; zeros before it has begun."""
    try:
        return Progress(**msgspec.json.decode((folder / PROGRESS).read_bytes()))
    except FileNotFoundError:
        return Progress()


class Producer:
    """Puts the events of a seed, in their order.

    `grid`: the connection; `map_name`: the event map; `folder`: where ledger and progress go; `seed`: of the events;
    `rate`: events per second; after a standstill it catches up at twice that.
    """

    def __init__(self, grid: Grid, map_name: str, folder: Path, *, seed: int, rate: float) -> None:
        self._grid = grid
        self._writer = MapWriter(grid, map_name)
        self._folder = folder
        self._ledger = LineFile(folder / LEDGER)
        self._seed, self._rate = seed, rate
        self._in_flight: set[int] = set()
        self._room = asyncio.Event()
        self._turns: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.progress = Progress()

    async def run(self) -> None:
        """Put until cancelled."""
        await self._writer.prepare()
        report = asyncio.create_task(self._report())
        try:
            await self._put_all()
        finally:
            report.cancel()
            await asyncio.gather(report, return_exceptions=True)
            await asyncio.shield(self._finish())

    async def _put_all(self) -> None:
        number, began = 0, time.monotonic()
        most = int(2 * self._rate * _CHUNK_SECONDS) + 1  # after a standstill it catches up, but not all at once
        while True:
            await asyncio.sleep(_CHUNK_SECONDS)
            due = int((time.monotonic() - began) * self._rate) - number
            while len(self._in_flight) + most > MAX_IN_FLIGHT:
                self._room.clear()
                await self._room.wait()
            if due > 0:
                count = min(due, most)
                self._put([event(self._seed, each) for each in range(number, number + count)])
                number += count

    def _put(self, events: Sequence[Event]) -> None:
        groups: dict[int, list[tuple[bytes, Event]]] = {}
        partitions, serialize = self._grid.partition_count, self._writer.serialize_key
        for each in events:
            key = serialize(each.key)
            groups.setdefault(partition_of(key, partitions), []).append((key, each))
        self._in_flight.update(each.number for each in events)
        self.progress.put += len(events)
        for partition, group in groups.items():
            task = asyncio.get_running_loop().create_task(self._put_group(partition, group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _put_group(self, partition: int, group: list[tuple[bytes, Event]]) -> None:
        keys, texts = [key for key, _ in group], [each.text for _, each in group]
        began = time.monotonic()
        # One put a partition at a time: a member that retries one may apply another before it, and an event that
        # replaces another must come after it.
        async with self._turns.setdefault(partition, asyncio.Lock()):
            while True:
                try:
                    await self._writer.put_partition(partition, keys, texts)
                    break
                except HazelcastError as error:
                    # Whether it happened is not known, or it did not: the same again does no harm.
                    self.progress.retries += 1
                    _log.info("A put to partition %d is made again: %s", partition, error)
                    await asyncio.sleep(_RETRY_SECONDS)
        at = b"%d" % (time.time_ns() // 1_000_000)
        for _, each in group:
            self._ledger.add(at, b"%d" % each.number, each.key.encode(), each.text)
            self._in_flight.discard(each.number)
        self.progress.acknowledged += len(group)
        self.progress.longest = max(self.progress.longest, round(time.monotonic() - began, 3))
        self._room.set()

    async def _finish(self) -> None:
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_FINISH_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ledger.close()
        self.progress.doubt = sorted(self._in_flight)
        self.progress.finished = True
        self._write_progress()

    async def _report(self) -> None:
        while True:
            self._ledger.flush()
            self._write_progress()
            await asyncio.sleep(0.5)

    def _write_progress(self) -> None:
        temporary = self._folder / f"{PROGRESS}.new"
        temporary.write_text(json.dumps(asdict(self.progress)))
        temporary.replace(self._folder / PROGRESS)


async def _main(options: argparse.Namespace) -> None:
    settings = GridSettings.load(members=options.member, cluster_name=options.cluster_name)
    async with await connect(settings, name="gridscore-soak-producer") as grid:
        producer = Producer(grid, options.map, options.folder, seed=options.seed, rate=options.rate)
        task = asyncio.create_task(producer.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()


def main() -> None:
    """Be the producer that the arguments describe."""
    parser = argparse.ArgumentParser(description="Puts the events of a soak.")
    parser.add_argument("--member", action="append", required=True)
    parser.add_argument("--cluster-name", required=True)
    parser.add_argument("--map", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
