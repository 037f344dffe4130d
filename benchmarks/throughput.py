"""Throughput: how fast a system works off the work's events, what that costs, and whether its scores are right.

A run is measured from the first tenth of its results to the beginning of the last: what a system needs to begin is
not in it, and what it has under way then is made up for by what it has under way at the end. In each
round every system has a run, in an order that goes round, so that none always has the warmer members, and a neighbour's
noise hits all of them. The first round is not counted: it is there for the members' just-in-time compiler.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.load import closed_loop
from benchmarks.meter import Meter
from benchmarks.outcome import Run, Status, Throughput
from gridscore.errors import GridscoreError
from gridscore.proving.bench.rounds import REST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.ground import Ground
    from benchmarks.meter import Usage
    from benchmarks.systems.base import System

FIRST, LAST = 0.1, 0.9
"""Parts of the results at which the window begins and ends."""

SAMPLE = 500
"""Scores that are compared in each run."""

RUN_SECONDS = 300.0
"""After which a run is given up."""

_LOOK_SECONDS = 0.02
_MIDDLE_LOOK_SECONDS = 0.1
_MIDDLE = 0.7
_LONG_EVENTS = 300_000
_BEGIN_SECONDS = 90.0
_STALLED_SECONDS = 30.0


@dataclass
class Measured:
    """A system on a ground, round by round.

    Attributes:
        system: The system, prepared.
        expected: Results of a run.
        runs: Of the rounds that count.
        checked: Scores that were compared.
        failure: Why it was given up; empty if it was not.
        wrong: What is wrong with its scores; empty if nothing is.
    """

    system: System
    expected: int
    runs: list[Run] = field(default_factory=list)
    checked: int = 0
    failure: str = ""
    wrong: str = ""

    def outcome(self, work: str) -> Throughput:
        """For the file."""
        status = Status.FAILED if self.failure else Status.WRONG if self.wrong else Status.MEASURED
        reason = self.failure or self.wrong
        return Throughput(work, self.system.name, status, reason, self.expected, self.checked, list(self.runs))


async def run(ground: Ground, measured: Measured, number: int) -> None:
    """One run of a system; what goes wrong is noted.

    Args:
        ground: With the backlog.
        measured: Where it is noted.
        number: Of the round; 0 for the one that does not count.
    """
    try:
        async with asyncio.timeout(RUN_SECONDS):
            await _run(ground, measured, number)
    except GridscoreError as error:
        measured.failure = str(error)
    except TimeoutError:
        measured.failure = f"A run took longer than {RUN_SECONDS:.0f} s."
    except Exception as error:  # noqa: BLE001 -- whatever it is, the other systems are still to be measured
        measured.failure = f"{type(error).__name__}: {error}"


async def _run(ground: Ground, measured: Measured, number: int) -> None:
    system, expected = measured.system, measured.expected
    try:
        await system.start(backlog=system.takes_backlog)
        if system.takes_backlog:
            events, usage = await worked_off(system, expected)
        else:
            closed = await closed_loop(system, ground.texts, count=expected)
            events, usage = closed.events, closed.usage
        await _check(ground, measured, number)
        if number:
            stages = _stages(await system.stages(), events, usage)
            measured.runs.append(run_of(number, events, usage, stages))
    finally:
        await system.stop()


def run_of(number: int, events: int, usage: Usage, stages: dict[str, float]) -> Run:
    """A run for the file."""
    return Run(
        round=number,
        events=events,
        seconds=usage.seconds,
        scorer_cpu_seconds=usage.scorers,
        service_cpu_seconds=usage.services,
        harness_cpu_seconds=usage.harness,
        others_cores=usage.others_cores,
        stage_us_per_event=stages,
    )


async def worked_off(system: System, expected: int, look: Callable[[], None] = lambda: None) -> tuple[int, Usage]:
    """Watch a system work off a backlog; returns the results within the window, and what that took.

    Args:
        system: Just started.
        expected: Results in the end.
        look: Called at each look.

    Raises:
        GridscoreError: It ended, or no results came for long.
    """
    meter, before, window = None, None, None
    last, last_at, patience = -1, time.monotonic(), _BEGIN_SECONDS
    while True:
        size = await system.results()
        if meter is None:
            if size:
                meter = Meter(system.pids(), system.service_pids())
                continue
        elif before is None:
            if size >= expected * FIRST:
                meter.begin()
                before = size
        elif window is None and size >= expected * LAST:
            window = size - before, meter.read()
        if size >= expected:
            break
        look()
        await system.check()
        if size != last:
            last, last_at = size, time.monotonic()
            patience = _STALLED_SECONDS if size else patience
        elif time.monotonic() - last_at > patience:
            raise GridscoreError(
                f"It came to {size:,} of {expected:,} results, and then to no more for {patience:.0f} s."
            )
        # Looking costs the members: in the middle of a long run there is nothing to see.
        middle = expected >= _LONG_EVENTS and expected * FIRST <= size < expected * _MIDDLE
        await asyncio.sleep(_MIDDLE_LOOK_SECONDS if middle else _LOOK_SECONDS)
    if window is None and before is not None and meter is not None and size > before:
        # The last tenth came between two looks: a short run ends with its last result.
        window = size - before, meter.read()
    if window is None:
        raise GridscoreError(f"All {expected:,} results came between two looks.", "Take more events.")
    return window


async def _check(ground: Ground, measured: Measured, number: int) -> None:
    """Compare a sample of scores with those computed offline, bit by bit."""
    draw = random.Random(number)  # the same sample for every system
    numbers = draw.sample(range(measured.expected), min(SAMPLE, measured.expected))
    scores = await measured.system.scores(numbers)
    wrong = wrong_scores(ground, numbers, scores)
    measured.checked += len(numbers)
    if wrong and not measured.wrong:
        measured.wrong = wrong


def wrong_scores(ground: Ground, numbers: Sequence[int], scores: dict[int, float]) -> str:
    """What is wrong with scores, of which there should be these; empty if nothing is."""
    missing = [number for number in numbers if number not in scores]
    if missing:
        return f"{len(missing)} of {len(numbers)} events have no score, e{missing[0]} is one."
    differ = [number for number in numbers if np.float32(scores[number]) != ground.expected[number]]
    if differ:
        first = differ[0]
        return (
            f"{len(differ)} of {len(numbers)} scores are not those computed offline:"
            f" e{first} has {scores[first]!r}, not {float(ground.expected[first])!r}."
        )
    return ""


def _stages(stages: dict[str, float], events: int, usage: Usage) -> dict[str, float]:
    """The stages, and what is left of the scorers' CPU."""
    if not stages:
        return {}
    return {**stages, REST: usage.scorers * 1e6 / events - sum(stages.values())}
