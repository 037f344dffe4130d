"""The floors that the project set itself, and what was reached of them: computed from an outcome, never typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import view
from benchmarks.markdown import spread_text
from benchmarks.outcome import Spread, Status

if TYPE_CHECKING:
    from benchmarks.outcome import Outcome, Throughput

JET = "jet-dictionary"

THROUGHPUT = ((JET, 1.3), ("jet-replicated", 1.5), ("jet-imap", 2.5), ("by-hand", 0.7))
"""At least so many times the events a second of each."""

CPU = 0.75
"""At most so much of Jet's CPU per event, of workers and members together."""

RATES = (500.0, 2_000.0)
PERCENTILES = (("p50", "p50_ms", 1.0), ("p99", "p99_ms", 1.0), ("p99.9", "p999_ms", 1.5))
"""At most so many times Jet's, at each of the rates."""

AIM = 2.0
"""Beyond the floors: times the events a second of Jet."""


@dataclass(frozen=True)
class Verdict:
    """On one floor.

    Attributes:
        floor: What it is about.
        wanted: The floor itself.
        found: What was measured, or why it was not.
        reached: None if it was not measured.
        in_every_round: The same can be said of each round; False for what has no rounds.
    """

    floor: str
    wanted: str
    found: str
    reached: bool | None
    in_every_round: bool = False

    @property
    def text(self) -> str:
        """For people."""
        if self.reached is None:
            return "not measured in this run"
        if self.reached:
            return "reached, in every round" if self.in_every_round else "reached"
        return "not reached, in no round" if self.in_every_round else "not reached"


def judge(outcome: Outcome) -> list[Verdict]:
    """All floors; the aim is the last."""
    verdicts = [_throughput(outcome, system, floor) for system, floor in THROUGHPUT]
    verdicts.insert(-1, _cpu(outcome))
    for rate in RATES:
        for name, field, factor in PERCENTILES:
            verdicts.append(_latency(outcome, rate, name, field, factor))
    verdicts.append(_throughput(outcome, JET, AIM, "The aim beyond the floors: events/s"))
    return verdicts


def _throughput(outcome: Outcome, system: str, floor: float, what: str = "Events/s") -> Verdict:
    floor_of, wanted = f"{what} beside `{system}`", f"at least {floor} times as many"
    pair = _pair(outcome, system)
    ratio = pair and pair[0].ratio(pair[1])
    if not ratio:
        return Verdict(floor_of, wanted, _why(outcome, system), _ours_is_bad(outcome))
    reached = ratio.median >= floor
    return Verdict(
        floor_of,
        wanted,
        f"{spread_text(ratio)} times",
        reached,
        _is_spread(ratio) and (ratio.low >= floor if reached else ratio.high < floor),
    )


def _cpu(outcome: Outcome) -> Verdict:
    floor, wanted = f"CPU per event, all processes, beside `{JET}`", f"at most {CPU} of it"
    pair = _pair(outcome, JET)
    ratio = pair and pair[0].ratio(pair[1], "cpu_us_per_event")
    if not ratio:
        return Verdict(floor, wanted, _why(outcome, JET), _ours_is_bad(outcome))
    reached = ratio.median <= CPU
    every = _is_spread(ratio) and (ratio.high <= CPU if reached else ratio.low > CPU)
    return Verdict(floor, wanted, f"{spread_text(ratio)} of it", reached, every)


def _latency(outcome: Outcome, rate: float, name: str, field: str, factor: float) -> Verdict:
    floor = f"{name} from due to seen at {rate:,.0f} events/s, beside `{JET}`"
    wanted = "at most as long" if factor == 1 else f"at most {factor} times as long"
    ours, theirs = (view.latency_rounds(outcome, name, rate) for name in (view.OURS, JET))
    pairs = [(getattr(mine, field), getattr(other, field)) for mine, other in zip(ours, theirs, strict=False)]
    ratio = Spread.of(mine / other for mine, other in pairs)
    if ratio is None:
        return Verdict(floor, wanted, "", None)
    texts = (spread_text(Spread.of(values)) for values in zip(*pairs, strict=True))
    found = " ms, and ".join(texts) + " ms"
    stopped = [name for name, rounds in (("Gridscore", ours), ("Jet", theirs)) if any(r.saturated for r in rounds)]
    if stopped:
        # Percentiles of a run that was stopped say nothing: who kept the rate is better.
        who = " and ".join(stopped)
        return Verdict(floor, wanted, f"{found}; {who} could not keep the rate", "Gridscore" not in stopped)
    reached = ratio.median <= factor
    every = _is_spread(ratio) and (ratio.high <= factor if reached else ratio.low > factor)
    return Verdict(floor, wanted, found, reached, every)


def _pair(outcome: Outcome, system: str) -> tuple[Throughput, Throughput] | None:
    """Ours and another, if both can be compared: scores of both are right, and no round failed."""
    ours, theirs = (outcome.throughput_of(view.WORK, name) for name in (view.OURS, system))
    if ours is None or theirs is None or {ours.status, theirs.status} != {Status.MEASURED}:
        return None
    return ours, theirs


def _ours_is_bad(outcome: Outcome) -> bool | None:
    """False (not reached) if ours was tried and failed, None if there is nothing to judge."""
    ours = outcome.throughput_of(view.WORK, view.OURS)
    return False if ours is not None and ours.status in {Status.FAILED, Status.WRONG} else None


def _why(outcome: Outcome, system: str) -> str:
    """Why two cannot be compared; empty if one was not asked for."""
    found = (outcome.throughput_of(view.WORK, name) for name in (view.OURS, system))
    return "; ".join(f"`{each.system}`: {each.status}" for each in found if each and each.status != Status.MEASURED)


def _is_spread(ratio: Spread) -> bool:
    return ratio.low < ratio.high
