"""Latency: from when an event was due to when the application saw its result, at steady rates and through a spike."""

from __future__ import annotations

import asyncio
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from hdrh.histogram import HdrHistogram

from benchmarks.load import OUTSTANDING, closed_loop, open_loop, schedule
from benchmarks.outcome import Latency, Saturation, Spike, SpikeBin, Status
from benchmarks.throughput import RUN_SECONDS
from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from benchmarks.load import Sights
    from benchmarks.meter import Usage
    from benchmarks.systems.base import System

Found = TypeVar("Found")

WARM_UP_RATE = 2_000.0
PAUSE_SECONDS = 1.0
"""Between two rates, without events: what one leaves behind is not the other's."""

SETTLE_SECONDS = 1.0
"""Of a rate, before it counts."""

SPIKE_RATE = 1_000.0
SPIKE_FACTOR = 10.0
SPIKE_SECONDS = 5.0
SPIKE_BEFORE_SECONDS = 5.0
SPIKE_AFTER_SECONDS = 8.0
SPIKE_BEHIND_SECONDS = 15.0
"""How far results may fall behind in a spike, which is there for that."""

BIN_SECONDS = 0.5
STAY_SECONDS = 1.5
"""How long latency must be normal before it counts as normal again."""

SATURATION_WARM_UP_SECONDS = 2.0

_MICROSECONDS = 600_000_000
"""Of the histogram's largest value: ten minutes."""

_DIGITS = 3


async def saturation(system: System, work: str, texts: Sequence[bytes], seconds: float) -> Saturation:
    """The most that a system takes live, with up to `OUTSTANDING` events on their way; what goes wrong is noted."""

    async def measure() -> Saturation:
        found = await closed_loop(system, texts, warm_up=SATURATION_WARM_UP_SECONDS, seconds=seconds)
        usage = found.usage
        return Saturation(
            work=work,
            system=system.name,
            status=Status.MEASURED,
            outstanding=OUTSTANDING,
            seconds=usage.seconds,
            events_per_s=found.events / usage.seconds,
            harness_cores=usage.harness_cores,
            scorer_cpu_us_per_event=usage.scorers * 1e6 / found.events,
            service_cpu_us_per_event=usage.services * 1e6 / found.events,
        )

    return await _live(system, measure, lambda reason: Saturation(work, system.name, Status.FAILED, reason))


class Rate(NamedTuple):
    """A steady rate.

    Attributes:
        per_s: Events per second.
        seconds: That count.
        part: Of the system's saturation, if the rate is one.
    """

    per_s: float
    seconds: float
    part: float | None = None


async def steady(
    system: System, work: str, texts: Sequence[bytes], rates: Sequence[Rate], *, warm_up: float, most: float
) -> list[Latency]:
    """Latency at steady rates, open loop, in one run; what goes wrong is noted.

    Args:
        system: Prepared, with no run under way.
        work: Name of the work.
        texts: Of the events.
        rates: One after the other, with a pause between; what comes after one that is too much is not measured.
        warm_up: Seconds before the first, at `WARM_UP_RATE` or half of `most`.
        most: The system's saturation in events per second, if it is known; else infinite.
    """

    async def measure() -> list[Latency]:
        phases, marks, begin = [(min(WARM_UP_RATE, most / 2), warm_up)], list[float](), warm_up
        for rate in rates:
            phases += [(0.0, PAUSE_SECONDS), (rate.per_s, SETTLE_SECONDS + rate.seconds)]
            marks.append(begin + PAUSE_SECONDS + SETTLE_SECONDS)
            begin += PAUSE_SECONDS + SETTLE_SECONDS + rate.seconds
        sights = await open_loop(system, texts, schedule(*phases), marks)
        return [
            _latency(system.name, work, rate, sights, mark, usage)
            if usage is not None
            else _not_reached(system.name, work, rate)
            for rate, mark, usage in zip_longest(rates, marks, sights.usages)
        ]

    def failed(reason: str) -> list[Latency]:
        return [Latency(work, system.name, rate.per_s, rate.part, Status.FAILED, reason) for rate in rates]

    return await _live(system, measure, failed)


async def spike(system: System, work: str, texts: Sequence[bytes], *, warm_up: float) -> Spike:
    """Latency through a ten-fold spike; what goes wrong is noted."""

    async def measure() -> Spike:
        due = schedule(
            (SPIKE_RATE, warm_up + SPIKE_BEFORE_SECONDS),
            (SPIKE_RATE * SPIKE_FACTOR, SPIKE_SECONDS),
            (SPIKE_RATE, SPIKE_AFTER_SECONDS),
        )
        sights = await open_loop(system, texts, due, [], SPIKE_BEHIND_SECONDS)
        bins = bins_of(due - warm_up, sights.latency_ms)
        begin, end = SPIKE_BEFORE_SECONDS, SPIKE_BEFORE_SECONDS + SPIKE_SECONDS
        before = [each.p99_ms for each in bins if each.begin_s < begin and each.p99_ms is not None]
        after = [each.p99_ms for each in bins if each.begin_s >= begin and each.p99_ms is not None]
        return Spike(
            work=work,
            system=system.name,
            status=Status.MEASURED,
            rate_per_s=SPIKE_RATE,
            factor=SPIKE_FACTOR,
            spike_begin_s=begin,
            spike_end_s=end,
            normal_p99_ms=float(np.median(before)) if before else None,
            worst_p99_ms=max(after, default=None),
            seconds_until_normal=seconds_until_normal(bins, end, max(before)) if before else None,
            bins=bins,
        )

    return await _live(system, measure, lambda reason: Spike(work, system.name, Status.FAILED, reason))


async def _live(
    system: System, measure: Callable[[], Coroutine[Any, Any, Found]], failed: Callable[[str], Found]
) -> Found:
    """A run with live events, from start to stop."""
    try:
        async with asyncio.timeout(RUN_SECONDS):
            try:
                await system.start(backlog=False)
                return await measure()
            finally:
                await system.stop()
    except GridscoreError as error:
        return failed(str(error))
    except TimeoutError:
        return failed(f"It took longer than {RUN_SECONDS:.0f} s.")
    except Exception as error:  # noqa: BLE001 -- whatever it is, the other systems are still to be measured
        return failed(f"{type(error).__name__}: {error}")


def _not_reached(name: str, work: str, rate: Rate) -> Latency:
    return Latency(
        work, name, rate.per_s, rate.part, Status.MEASURED, "a lower rate was too much already", saturated=True
    )


def _latency(name: str, work: str, rate: Rate, sights: Sights, begin: float, usage: Usage) -> Latency:
    counts = (sights.due >= begin) & (sights.due < begin + rate.seconds)
    sent = counts & ~np.isnan(sights.sent)
    latency = sights.latency_ms[counts & ~np.isnan(sights.seen)]
    histogram = histogram_of(latency)
    seen = len(latency)

    def at(percentile: float) -> float | None:
        return histogram.get_value_at_percentile(percentile) / 1e3 if seen else None

    late = (sights.sent - sights.due)[sent] * 1e3
    return Latency(
        work=work,
        system=name,
        rate_per_s=rate.per_s,
        part_of_saturation=rate.part,
        status=Status.MEASURED,
        saturated=sights.behind and seen < int(counts.sum()),
        seconds=usage.seconds,
        due=int(sent.sum()),
        seen=seen,
        p50_ms=at(50),
        p90_ms=at(90),
        p99_ms=at(99),
        p999_ms=at(99.9),
        max_ms=float(latency.max()) if seen else None,
        sent_late_p99_ms=float(np.percentile(late, 99)) if len(late) else None,
        harness_cores=usage.harness_cores,
        scorer_cpu_us_per_event=usage.scorers * 1e6 / max(1, seen),
        service_cpu_us_per_event=usage.services * 1e6 / max(1, seen),
        others_cores=usage.others_cores,
        curve=[(p, value) for p in CURVE if (value := at(p)) is not None],
    )


CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 100.0)
"""Percentiles of a curve."""


def histogram_of(latency_ms: NDArray[np.float64]) -> HdrHistogram:
    """Of latencies; its values are microseconds, to three digits."""
    histogram = HdrHistogram(1, _MICROSECONDS, _DIGITS)
    micros = np.clip(np.rint(latency_ms * 1e3), 1, _MICROSECONDS).astype(np.int64)
    for value, count in zip(*(column.tolist() for column in np.unique(micros, return_counts=True)), strict=True):
        histogram.record_value(value, count)
    return histogram


def bins_of(due: NDArray[np.float64], latency_ms: NDArray[np.float64]) -> list[SpikeBin]:
    """Half-second bins by when events were due; what was due before 0 is left out.

    Args:
        due: Seconds, rising; shape (n,).
        latency_ms: NaN for what was not seen; shape (n,).
    """
    if not len(due) or due[-1] < 0:
        return []
    edges = np.arange(0, np.floor(due[-1] / BIN_SECONDS) + 2) * BIN_SECONDS
    bins = []
    for begin, (low, high) in zip(edges, pairwise(np.searchsorted(due, edges)), strict=False):
        seen = latency_ms[low:high][~np.isnan(latency_ms[low:high])]
        p50, p99 = np.percentile(seen, [50, 99]) if len(seen) else (None, None)
        bins.append(
            SpikeBin(
                float(begin),
                int(high - low),
                len(seen),
                None if p50 is None else float(p50),
                None if p99 is None else float(p99),
            )
        )
    return bins


def seconds_until_normal(bins: Sequence[SpikeBin], end: float, normal_ms: float) -> float | None:
    """Seconds from the end of a spike until p99 was no worse than normal, and stayed so for `STAY_SECONDS`."""
    stay = round(STAY_SECONDS / BIN_SECONDS)
    after = [each for each in bins if each.begin_s >= end]
    for position in range(len(after) - stay + 1):
        if all(
            each.p99_ms is not None and each.p99_ms <= normal_ms and each.seen == each.due
            for each in after[position : position + stay]
        ):
            return after[position].begin_s - end
    return None


def spike_seconds() -> float:
    """How long a spike takes with what is before and after it."""
    return SPIKE_BEFORE_SECONDS + SPIKE_SECONDS + SPIKE_AFTER_SECONDS
