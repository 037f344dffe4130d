"""Growth: what an event costs Gridscore when one thing grows: events, jobs, features, partitions, workers.

A point is measured as a run of throughput is. Several workers hold their partitions in equal parts before anything is
put: they are suspended while the backlog is, and then go on together.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.crew import suspended
from benchmarks.ground import ground
from benchmarks.meter import resident_bytes
from benchmarks.outcome import Growth, Status
from benchmarks.systems.gridscore import Gridscore
from benchmarks.throughput import worked_off
from benchmarks.work import WORKS
from gridscore.errors import GridscoreError
from gridscore.grid.template import load_template
from gridscore.proving.bench.rounds import put_events

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from benchmarks.display import Display
    from benchmarks.ground import Ground
    from benchmarks.outcome import Outcome

LEASE_SECONDS = 120.0
"""Longer than the workers are suspended; leases of that length are renewed by the same commits."""

_WARM_UP_EVENTS = 200_000
_PUT_PER_SECOND = 80_000.0
_SCORED_PER_SECOND = 120_000.0
_SETUP_SECONDS = 20.0
_BYTES_PER_EVENT = 700
"""Of heap on each member, an event with its result, on two members; generously."""

_SPARE = 3
"""A journal's ring holds so many times a partition's share of the events: shares differ."""


@dataclass(frozen=True)
class Point:
    """What a point of a series is measured with.

    Attributes:
        series: What grows.
        value: So many of them.
        events: Of the backlog.
        jobs: That each score all of it.
        features: Of the model.
        partitions: Of the cluster.
        workers: Processes.
    """

    series: str
    value: int
    events: int = 300_000
    jobs: int = 1
    features: int = 12
    partitions: int = 271
    workers: int = 1

    @property
    def place(self) -> tuple[int, int, int]:
        """Points that have this in common share a cluster: its partitions, its capacity, the model's features."""
        return self.partitions, max(1_000_000, self.events * _SPARE), self.features

    @property
    def seconds(self) -> float:
        """How long it should take, about."""
        events = self.events + _WARM_UP_EVENTS
        return events / _PUT_PER_SECOND + events * self.jobs / _SCORED_PER_SECOND + _SETUP_SECONDS


def points(*, quick: bool) -> list[Point]:
    """All of them; two for each series if quick."""
    if quick:
        return [
            *(Point("events", count, events=count) for count in (100_000, 300_000)),
            *(Point("jobs", count, jobs=count) for count in (1, 4)),
            *(Point("features", count, features=count) for count in (12, 200)),
            *(Point("partitions", count, partitions=count) for count in (271, 1_999)),
            *(Point("workers", count, workers=count) for count in (1, 2)),
        ]
    return [
        *(Point("events", count, events=count) for count in (100_000, 300_000, 1_000_000, 5_000_000)),
        *(Point("jobs", count, jobs=count, events=100_000) for count in (1, 4, 16)),
        *(Point("features", count, features=count) for count in (12, 50, 200, 500)),
        *(Point("partitions", count, partitions=count) for count in (271, 1_999)),
        *(Point("workers", count, workers=count) for count in (1, 2, 4, 8)),
    ]


def expected_seconds(*, quick: bool) -> float:
    """How long all of them should take, about."""
    return sum(point.seconds for point in points(quick=quick))


async def measure(
    members: int, heap: str, outcome: Outcome, save: Callable[[], None], display: Display, *, quick: bool
) -> None:
    """Measure all series; a point that fails is noted, and the others go on.

    Args:
        members: Of each cluster.
        heap: Of each member; more where events need it.
        outcome: Where points are noted.
        save: Called whenever some were.
        display: For people.
        quick: Fewer points.
    """
    wanted = points(quick=quick)
    places: dict[tuple[int, int, int], list[Point]] = defaultdict(list)
    for point in wanted:
        places[point.place].append(point)
    found: dict[Point, Growth] = {}
    for shared in places.values():
        try:
            with tempfile.TemporaryDirectory(prefix="gridscore-bench-") as folder:
                work = replace(WORKS["card"], name="growth", features=shared[0].features)
                async with ground(
                    work,
                    0,
                    members=members,
                    heap=_heap(heap, max(point.events * max(1, point.jobs // 2) for point in shared)),
                    progress=display.say,
                    config=_config(Path(folder) / "members.yaml", shared[0]),
                ) as place:
                    for point in shared:
                        which = f"growth: {point.value:,} {point.series}"
                        with display.step(which, point.seconds):
                            found[point] = await _point(place, point)
                        display.note(f"{which}: {_said(found[point])}")
        except GridscoreError as error:
            for point in shared:
                if point not in found:
                    found[point] = Growth(point.series, point.value, Status.FAILED, str(error))
                    display.note(f"growth: {point.value:,} {point.series}: {error}")
        outcome.growth[:] = [found[point] for point in wanted if point in found]
        save()


async def _point(place: Ground, point: Point) -> Growth:
    system = Gridscore(place.bed, workers=point.workers, jobs=point.jobs, lease=LEASE_SECONDS)
    try:
        await system.prepare()
        await _run(place, system, point, _WARM_UP_EVENTS)
        return await _run(place, system, point, point.events)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the other points are still to be measured
        reason = str(error) if isinstance(error, GridscoreError) else f"{type(error).__name__}: {error}"
        return Growth(point.series, point.value, Status.FAILED, reason)
    finally:
        await system.close()


async def _run(place: Ground, system: Gridscore, point: Point, count: int) -> Growth:
    bed, which = place.bed, f"growth: {point.value:,} {point.series}"

    def put() -> Coroutine[Any, Any, int]:
        return put_events(
            bed.grid,
            bed.work.job.events,
            bed.work.events(count),
            lambda done: bed.progress(f"{which}: putting events: {done:,} of {count:,}"),
        )

    try:
        if point.workers == 1:
            await put()
            await system.start(backlog=True)
        else:
            await system.start(backlog=False)
            async with suspended(system.pids(), bed.folder) as resume:
                await put()
                resume()
        bed.progress(f"{which}: scoring {count:,} events")
        resident = 0

        def look() -> None:
            nonlocal resident
            resident = max(resident, resident_bytes(system.pids()))

        events, usage = await worked_off(system, count * point.jobs, look)
    finally:
        await system.stop()
        await place.clear()
    return Growth(
        series=point.series,
        value=point.value,
        status=Status.MEASURED,
        events=events,
        seconds=usage.seconds,
        worker_cpu_us_per_event=usage.scorers * 1e6 / events,
        member_cpu_us_per_event=usage.services * 1e6 / events,
        worker_rss_bytes=resident,
        others_cores=usage.others_cores,
    )


def _heap(asked: str, events: int) -> str:
    """What is asked for, or what so many events need if that is more."""
    from gridscore.grid.member import parse_heap

    needed = events * _BYTES_PER_EVENT + (512 << 20)
    return asked if parse_heap(asked) >= needed else f"{-(-needed >> 20)}m"


def _config(file: Path, point: Point) -> Path:
    """Our member configuration with another capacity of the journals, and other partitions, as a file."""
    partitions, capacity, _ = point.place
    template = load_template()
    for name in ("events.*", "results.*"):
        template["map"][name]["event-journal"]["capacity"] = capacity
    template["properties"] = {**template.get("properties", {}), "hazelcast.partition.count": partitions}
    file.write_text(yaml.safe_dump({"hazelcast": template}), encoding="utf-8")
    return file


def _said(found: Growth) -> str:
    if found.status != Status.MEASURED:
        return f"{found.status}: {found.reason}"
    return (
        f"{found.events_per_s:,.0f} events/s, CPU {found.worker_cpu_us_per_event:.1f} +"
        f" {found.member_cpu_us_per_event:.1f} µs an event, {found.worker_rss_bytes / 1e6:,.0f} MB"
    )
