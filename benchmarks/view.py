"""What of an outcome the report shows, selected and ordered: shared by its tables, its plots and its judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.outcome import Status

if TYPE_CHECKING:
    from benchmarks.outcome import Growth, Latency, Outcome, Saturation, Spike, SystemNote, Throughput

OURS = "gridscore"
WORK = "card"
"""The work that all systems are measured on, live events among them, and that the floors are about."""

HARNESS_IS_LIMIT_CORES = 0.9
"""Sender and listener share one thread: from here on they may be what is measured."""


def note_of(outcome: Outcome, system: str) -> SystemNote | None:
    """What a system is; None for limits."""
    return next((each for each in outcome.systems if each.name == system), None)


def rank(outcome: Outcome, system: str) -> int:
    """Place of a system in tables, and its colour in plots; the same in all of them."""
    names = [each.name for each in outcome.systems]
    return names.index(system) if system in names else len(names)


def compared(outcome: Outcome, work: str) -> list[Throughput]:
    """Systems on a work, those that could not be measured among them."""
    found = [each for each in outcome.throughput if each.work == work and not each.is_limit]
    return sorted(found, key=lambda each: rank(outcome, each.system))


def limits(outcome: Outcome, work: str) -> list[Throughput]:
    """Limits on a work that were measured."""
    return [each for each in outcome.throughput if each.work == work and each.is_limit and each.runs]


def ran(outcome: Outcome, work: str) -> list[Throughput]:
    """Systems on a work that have figures, wrong ones left out."""
    return [each for each in compared(outcome, work) if each.runs and each.status == Status.MEASURED]


def staged_works(outcome: Outcome) -> list[Throughput]:
    """Ours on each work on which it says where its CPU goes."""
    found = (outcome.throughput_of(work.name, OURS) for work in outcome.works)
    return [each for each in found if each is not None and each.stage_us_per_event]


def rates(outcome: Outcome) -> list[float]:
    """Fixed rates of live events, rising."""
    return sorted({each.rate_per_s for each in outcome.latency if each.part_of_saturation is None})


def latencies(outcome: Outcome, rate: float) -> list[Latency]:
    """All systems at a fixed rate."""
    found = [each for each in outcome.latency if each.part_of_saturation is None and each.rate_per_s == rate]
    return sorted(found, key=lambda each: rank(outcome, each.system))


def latency(outcome: Outcome, system: str, rate: float) -> Latency | None:
    """A system at a fixed rate; None if it was not measured, or nothing was seen."""
    found = (each for each in latencies(outcome, rate) if each.system == system and each.work == WORK)
    return next((each for each in found if each.status == Status.MEASURED and each.seen), None)


def latency_rounds(outcome: Outcome, system: str, rate: float) -> list[Latency]:
    """A system at a fixed rate, in all rounds; empty if the first was not measured, or nothing was seen."""
    first = latency(outcome, system, rate)
    again = (each for each in outcome.latency_again if (each.system, each.rate_per_s) == (system, rate))
    return [] if first is None else [first, *(each for each in again if each.status == Status.MEASURED and each.seen)]


def parts(outcome: Outcome) -> list[Latency]:
    """All systems at parts of their own saturation."""
    found = [each for each in outcome.latency if each.part_of_saturation is not None]
    return sorted(found, key=lambda each: (each.part_of_saturation or 0.0, rank(outcome, each.system)))


def saturations(outcome: Outcome) -> list[Saturation]:
    """All systems, with as many live events as they take."""
    return sorted(outcome.saturation, key=lambda each: rank(outcome, each.system))


def spikes(outcome: Outcome) -> list[Spike]:
    """All systems, through a spike."""
    return sorted(outcome.spikes, key=lambda each: rank(outcome, each.system))


def growth(outcome: Outcome) -> dict[str, list[Growth]]:
    """Points by series, rising."""
    names = dict.fromkeys(each.series for each in outcome.growth)
    return {
        name: sorted((each for each in outcome.growth if each.series == name), key=lambda each: each.value)
        for name in names
    }


def plots(outcome: Outcome) -> set[str]:
    """Names of the plots that there is data for."""
    there = {
        "throughput": ran(outcome, WORK),
        "stages": staged_works(outcome),
        "latency": [each for rate in rates(outcome) for each in latencies(outcome, rate) if each.curve],
        "spike": [each for each in outcome.spikes if each.bins],
        "growth": [each for each in outcome.growth if each.status == Status.MEASURED],
    }
    return {name for name, data in there.items() if data}
