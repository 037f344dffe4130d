"""Listeners: thousands of streams of results at one `gridscore serve`, some of whom stop reading.

`python -m benchmarks.listeners` starts a member, a worker that scores events at a rate, and a server; first one
listens, then `--listeners`, who take one result in fifty; but one in a hundred takes all, and stops reading. When all
is written, these read what is left, and go on at the place that they were told last. Everybody must have had each
result of theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import psutil

from benchmarks.crew import Crew, where
from benchmarks.ground import ground
from benchmarks.meter import Meter
from benchmarks.requests import said
from benchmarks.work import WORKS
from gridscore.errors import GridscoreError
from gridscore.grid.writer import MapWriter
from gridscore.job import Job, Jobs
from gridscore.leash import LeashedProcess
from gridscore.models import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.ground import Ground

_AT_ONCE = 100  # listeners that connect at once
_OF_ADDRESS = 400  # listeners of one address of this machine
_WAIT_SECONDS = 60.0
_RESULT = re.compile(rb'^data: \{"key":"e(\d+)"', re.MULTILINE)
_PLACE = re.compile(rb"^id: (\S+)$", re.MULTILINE)


@dataclass
class Listening:
    """One who listens, by a bare connection."""

    number: int
    port: int
    path: str
    slow: bool
    place: bytes = b""
    had: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    ends: int = 0  # how often its stream has ended

    async def listen(self, put_at: dict[int, float], stop: asyncio.Event, ready: asyncio.Semaphore) -> None:
        """Take results until told to stop, and for a slow one: until then nothing."""
        while True:
            async with ready:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, local_addr=(f"127.0.1.{1 + self.number // _OF_ADDRESS}", 0), limit=4_096
                )
                place = b"Last-Event-ID: %b\r\n" % self.place if self.place else b""
                writer.write(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % (self.path.encode(), place))
                rest = await self._take(reader, b"", put_at)
                while not self.place:
                    rest = await self._take(reader, rest, put_at)
            try:
                if self.slow and not self.ends:
                    await stop.wait()
                while True:
                    rest = await self._take(reader, rest, put_at)
            except (EOFError, ConnectionError):
                self.ends += 1
            finally:
                writer.close()

    async def _take(self, reader: asyncio.StreamReader, rest: bytes, put_at: dict[int, float]) -> bytes:
        read = await reader.read(1 << 16)
        if not read:
            raise EOFError
        if read.startswith(b"HTTP/") and b" 200 " not in read[:15]:
            raise GridscoreError(f"A listener is refused: {read[:200]!r}")
        now, (whole, _, rest) = time.perf_counter(), (rest + read).rpartition(b"\n\n")
        keys = [int(each) for each in _RESULT.findall(whole)]
        self.had += keys
        if not self.slow:
            self.delays += [now - put_at[key] for key in keys if key in put_at]
        if b"event: cut" in whole or b"event: end" in whole:
            self.place = _PLACE.findall(whole)[-1]
            raise EOFError
        if places := _PLACE.findall(whole):
            self.place = places[-1]
        return rest


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one window; times in milliseconds, CPU in cores."""

    listeners: int
    scored: float  # results a second
    told: float  # the same, to all together
    delay: tuple[float, float]  # from the put of an event to its result at a listener, p50 and p99
    worker: float
    server: float
    resident: float  # MiB of the server
    harness: float
    others: float  # of everybody else on the machine, the member among them

    def __str__(self) -> str:
        p50, p99 = self.delay
        return (
            f"{self.listeners:6,} listeners: {self.scored:6,.0f} results/s scored, {self.told:9,.0f}/s told, "
            f"delay p50 {p50:.1f} p99 {p99:.1f} ms, CPU of worker {self.worker:.2f}, of server {self.server:.2f}, "
            f"of listeners {self.harness:.2f}, of others {self.others:.2f}; server {self.resident:,.0f} MiB"
        )


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listeners", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=20, help="of each window")
    parser.add_argument("--rate", type=int, default=500, help="events a second")
    options = parser.parse_args()
    count = 2 * options.seconds * options.rate
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with ground(WORKS["card"], count, members=1, heap="1g", progress=print) as place:
        bed, job = place.bed, _decided(place)
        await Registry(bed.grid).push(place.booster, job.model.name, alias="champion")
        await Jobs(bed.grid).submit(job)
        crew = Crew(bed.grid, job.name, bed.folder)
        arguments = ["serve", "--port", "0", "--listeners", str(max(500, options.listeners + 10))]
        arguments += ["--max-per-address", "1000", *where(bed.cluster_name, bed.addresses)]
        try:
            with LeashedProcess("gridscore.cli", arguments, bed.folder / "serve.log") as server:
                port = int(await said(server, r"Serving at \S+:(\d+)"))
                await crew.joined(crew.start())
                await crew.balanced()
                await _measure(place, crew, server, port, options)
        finally:
            crew.close()


def _decided(place: Ground) -> Job:
    """The job of the work, which declines one event in fifty."""
    bound = float(np.quantile(place.expected, 0.98))
    plain = place.bed.work.job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    decisions = [{"decision": "decline", "at_least": bound}, {"decision": "approve"}]
    return Job.model_validate({**plain, "decisions": decisions})


async def _measure(place: Ground, crew: Crew, server: LeashedProcess, port: int, options: argparse.Namespace) -> None:
    job, stop, ready = place.bed.work.job, asyncio.Event(), asyncio.Semaphore(_AT_ONCE)
    put_at: dict[int, float] = {}
    path, half = f"/results/{job.name}/stream", options.seconds * options.rate
    first = Listening(-1, port, path, slow=False)
    all_of_them = [
        Listening(n, port, path if n % 100 == 0 else f"{path}?decision=decline", slow=n % 100 == 0)
        for n in range(options.listeners)
    ]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(first.listen(put_at, stop, ready))]
        await _until(lambda: bool(first.place))
        before = psutil.Process(server.pid).memory_info().rss
        for those, begin in (([first], 0), (all_of_them, half)):
            if those is all_of_them:
                running += [tasks.create_task(each.listen(put_at, stop, ready)) for each in those]
                await _until(lambda: all(each.place for each in all_of_them))
                size = (psutil.Process(server.pid).memory_info().rss - before) / len(those)
                print(f"{len(those):,} listeners are there: {size / 1024:.1f} KiB of the server each")
            meters = Meter(crew.pids, []), Meter([server.pid], [])
            told = sum(len(each.had) for each in those)
            await _put(place, begin, half, options.rate, put_at)
            used = [meter.read() for meter in meters]
            delays = np.array([each for one in those for each in one.delays]) * 1_000
            print(
                Figures(
                    len(those),
                    half / used[0].seconds,
                    (sum(len(each.had) for each in those) - told) / used[0].seconds,
                    tuple(np.percentile(delays, (50, 99))),
                    used[0].scorers / used[0].seconds,
                    used[1].scorers / used[1].seconds,
                    psutil.Process(server.pid).memory_info().rss / 2**20,
                    used[0].harness_cores,
                    used[0].others_cores - used[1].scorers / used[1].seconds,
                )
            )
        stop.set()
        await _until(lambda: len(set(first.had)) == 2 * half)
        wanted = set(range(half, 2 * half))
        slow = [each for each in all_of_them if each.slow]
        await _until(lambda: all(wanted <= set(each.had) for each in slow))
        fast = [sorted(each.had) for each in all_of_them if not each.slow]
        await _until(lambda: all(sorted(each.had) == fast[0] for each in all_of_them if not each.slow))
        print(f"{sum(1 for each in slow if each.ends)} of {len(slow)} slow ones were cut off; none lacks a result.")
        print(f"The others had the same {len(fast[0]):,} results, each once: {len(set(fast[0])) == len(fast[0])}")
        for task in running:
            task.cancel()


async def _put(place: Ground, begin: int, count: int, rate: int, put_at: dict[int, float]) -> None:
    """Put events at a rate, some at a time, each when it is due."""
    writer, began, done = MapWriter(place.bed.grid, place.bed.work.job.events), time.perf_counter(), 0
    while done < count:
        due = min(count, int((time.perf_counter() - began) * rate) + 1)
        numbers = range(begin + done, begin + due)
        put_at.update({number: began + (number - begin) / rate for number in numbers})
        await writer.put([(f"e{number}", place.texts[number]) for number in numbers])
        done = due
        await asyncio.sleep(1 / rate)
    await asyncio.sleep(1)  # for what is under way


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 -- of all kinds
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
