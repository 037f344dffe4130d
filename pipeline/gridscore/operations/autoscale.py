"""How many workers a job should have: a pure function of what was seen of it, and of earlier decisions.

The aim is that a backlog is worked off within seconds, that nothing unread is overwritten, and that no worker is idle
for long. The capacity of a worker is not configured but observed: while there is a backlog, all work as fast as they
can. Growing is quick and in proportion, but waits for workers that are starting: their backlog is no lack of workers.
Shrinking is slow, by small steps, and only if the observed load leaves room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from gridscore.grid.records import Count, Records, Word, parsed
from gridscore.operations.health import fullest
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.operations.status import JobStatus

AUTOSCALE_MAP = "gridscore.autoscale"  # by job: the last decisions about its number of workers
KEPT = 100  # decisions that are kept
_WINDOW_SECONDS = 10.0
_COMMIT_SECONDS = 2.0  # events of these last seconds may be scored but not committed: they are not backlog


@dataclass(frozen=True)
class Policy:
    """What is wanted."""

    least: int = 1
    most: int = 8
    drain_seconds: float = 10.0  # a backlog that takes longer to work off calls for more workers
    ring_seconds: float = 60.0  # unread events that are overwritten sooner than this call for `most` workers at once
    # 99th percentile from the arrival of an event at a worker to its result, above which there are too few; None: only
    # the backlog counts.
    latency_ms: float | None = None
    up_seconds: float = 15.0  # how long the next growth waits after a change
    # How long there must have been no backlog, and no change, before a worker is stopped; and the load of twice that
    # time must be within the capacity of the rest.
    down_seconds: float = 120.0
    spare: float = 0.3  # part of the remaining workers' capacity that must stay free
    # How long workers may take until they own partitions. No more are asked for until then, unless events would be
    # overwritten; those that take longer count as failed.
    start_seconds: float = 60.0


@dataclass(frozen=True)
class Load:
    """A job at one moment."""

    at: float  # seconds of a monotonic clock
    workers: int  # those that own partitions; others are still starting
    rate: float  # events scored in a second
    lag: int  # events that no committed offset covers
    full: float = 0.0  # part of the fullest partition's ring that unread events fill, 0 to 1
    latency_ms: float | None = None  # 99th percentile of the slowest worker; None if nothing was scored lately

    @classmethod
    def of(cls, status: JobStatus, at: float) -> Load:
        """From a job's status, whose journal could be read."""
        rate, p99 = float(status.totals["rate"]), status.latency_ms["p99"]
        workers = sum(each.partitions > 0 for each in status.figures.values())
        return cls(at, workers, rate, status.lag or 0, fullest(status.positions), p99)


@dataclass(frozen=True)
class Memory:
    """What the policy remembers between two looks."""

    target: int  # how many workers there should be now
    changed_at: float = float("-inf")  # when that was decided; minus infinity if never
    each: float = 0.0  # the most events a second that one worker was seen to do
    calm_at: float | None = None  # since when there has been no backlog; None while there is one
    seen: tuple[Load, ...] = ()  # the loads of the last seconds, with the present number of workers
    # The end of each recent period, with the most events a second that arrived in it.
    peaks: tuple[tuple[float, float], ...] = ()
    # The first and the last look that found fewer workers than `target`; None once enough work for a while.
    short: tuple[float, float] | None = None
    waits: bool = False  # whether more workers are wanted, but some have been starting since before

    def late(self, policy: Policy, load: Load) -> str:
        """How many workers still do not score, though they have had the time to start; empty if there are none."""
        missing = self.target - load.workers
        if self.short is None or missing <= 0 or load.at - self.short[0] < policy.start_seconds:
            return ""
        of = f"{missing} of {count_text(self.target, 'worker')} still {'does' if missing == 1 else 'do'} not score"
        return f"{of} after {policy.start_seconds:g} s"


class Decision(msgspec.Struct, frozen=True):
    """What was decided, and why."""

    workers: Count
    target: Count
    why: Word  # one line for people
    at: Count = 0  # in milliseconds since 1970; 0 if it was not kept


def decide(policy: Policy, memory: Memory, load: Load) -> tuple[Decision, Memory]:
    """Decide after one more look; if nothing changes, the target is that of the memory."""
    # What fewer workers did, or more, says nothing of these.
    of_these = (each for each in memory.seen if each.workers == load.workers)
    seen = (*(each for each in of_these if load.at - each.at < _WINDOW_SECONDS), load)
    span = load.at - seen[0].at
    rate = sum(each.rate for each in seen) / len(seen)
    arriving = max(0.0, rate + (load.lag - seen[0].lag) / span) if span else rate
    # How fast rings fill is seen though workers come and go.
    before = seen[0] if span else memory.seen[-1] if memory.seen else load
    filling = (load.full - before.full) / (load.at - before.at) if load.at > before.at else 0.0
    overwritten_in = (1 - load.full) / filling if filling > 0 else math.inf
    backlog = max(0.0, load.lag - _COMMIT_SECONDS * rate)
    busy = backlog > rate or (load.workers == 0 and load.lag > 0)
    each = max(memory.each, load.rate / max(load.workers, 1))
    if busy and load.workers:
        # All work as fast as they can, perhaps slower than before, on costlier events.
        each = max(load.rate / load.workers, memory.each * 0.95)
    peaks = _with_peak(memory.peaks, load.at, arriving, 2 * policy.down_seconds)
    calm_at = None if busy else load.at if memory.calm_at is None else memory.calm_at
    short = memory.short
    if load.workers < memory.target:
        short = (short[0] if short else load.at, load.at)
    elif short and load.at - short[1] >= _WINDOW_SECONDS:
        short = None
    waits = memory.waits and short is not None
    memory = replace(memory, each=each, seen=seen, peaks=peaks, calm_at=calm_at, short=short, waits=waits)

    def decided(target: int, why: str) -> tuple[Decision, Memory]:
        target = min(max(target, policy.least), policy.most)
        decision = Decision(load.workers, target, why)
        if target == memory.target:
            return decision, memory
        return decision, Memory(target, load.at, each, peaks=peaks)

    target, since = memory.target, load.at - memory.changed_at
    if target < policy.least or target > policy.most:
        return decided(target, f"between {policy.least} and {policy.most} workers are allowed")
    wanted, why = _more(policy, memory, load, rate, arriving, backlog, overwritten_in)
    if wanted > target:
        if overwritten_in < policy.ring_seconds:
            return decided(policy.most, why)
        if target == policy.most:
            return decided(target, f"{why}, but {policy.most} is the most that is allowed")
        late = memory.late(policy, load)
        if short and not late:
            decision, memory = decided(target, f"{why}; {_so_far(target, load, short[1])}")
            return decision, replace(memory, waits=True)
        if since < policy.up_seconds:
            return decided(target, f"{why}; the last change was {since:.0f} s ago")
        return decided(min(wanted, 2 * target), f"{why}; {late}" if late else why)
    if target == policy.least or busy:
        return decided(target, why or f"{arriving:,.0f} events/s are scored as they come")
    fewer = max(policy.least, target - max(1, target // 4))
    peak = max(most for _, most in peaks)
    if peak > (1 - policy.spare) * each * fewer:
        lately = "" if peak == arriving else f" of the last {2 * policy.down_seconds:g} s"
        return decided(target, f"{peak:,.0f} events/s{lately} need {target} workers, of {each:,.0f} events/s each")
    calm = load.at - (calm_at if calm_at is not None else load.at)
    if min(calm, since) < policy.down_seconds:
        return decided(target, f"{fewer} will do, if it stays like this for {policy.down_seconds:g} s")
    return decided(fewer, f"{peak:,.0f} events/s at most, and no backlog for {calm:.0f} s: {fewer} will do")


def _so_far(target: int, load: Load, short_at: float) -> str:
    if load.workers < target:
        return f"{load.workers} of {count_text(target, 'worker')} score{'s' * (target == 1)} so far"
    return f"the last worker began {load.at - short_at:.0f} s ago"


def _with_peak(
    peaks: tuple[tuple[float, float], ...], at: float, arriving: float, seconds: float
) -> tuple[tuple[float, float], ...]:
    """The peaks of the last seconds, with the present load."""
    peaks = tuple(each for each in peaks if at - each[0] < seconds)
    if peaks and at - peaks[-1][0] < 0:
        return (*peaks[:-1], (peaks[-1][0], max(peaks[-1][1], arriving)))
    return (*peaks, (at + _WINDOW_SECONDS, arriving))


def _more(
    policy: Policy, memory: Memory, load: Load, rate: float, arriving: float, backlog: float, overwritten_in: float
) -> tuple[int, str]:
    """How many workers there should be, if there are too few, and why; otherwise 0."""
    target, each = memory.target, memory.each
    if overwritten_in < policy.ring_seconds:
        return policy.most + 1, f"unread events are overwritten in {overwritten_in:.0f} s at this rate"
    drain = backlog / rate if rate else math.inf if backlog else 0.0
    if drain > policy.drain_seconds:
        needed = math.ceil((arriving + backlog / policy.drain_seconds) / each) if each else target + 1
        takes = f"{drain:,.0f} s" if math.isfinite(drain) else "for ever"
        return max(needed, target + 1), f"a backlog of {backlog:,.0f} events takes {takes} at {rate:,.0f} events/s"
    if policy.latency_ms is not None and load.latency_ms is not None and load.latency_ms > policy.latency_ms:
        return target + 1, f"p99 is {load.latency_ms:,.0f} ms, more than {policy.latency_ms:g}"
    return 0, ""


class Decisions(msgspec.Struct, frozen=True):
    """What the record of a job's decisions holds, the newest last."""

    decisions: list[Decision]


async def keep(grid: Grid, job: str, decision: Decision) -> None:
    """Keep a decision for `--explain`."""
    found = await kept(grid, job)
    value = [msgspec.to_builtins(each) for each in [*found, decision][-KEPT:]]
    await Records(grid, AUTOSCALE_MAP).put(job, {"decisions": value})


async def kept(grid: Grid, job: str) -> list[Decision]:
    """The last decisions about a job, the newest last."""
    found = await Records(grid, AUTOSCALE_MAP).read(parsed(Decisions))
    return list(found[job].decisions) if job in found else []
