"""A whole benchmark: which systems are measured on which work, in which order, and what becomes of those that fail."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from benchmarks import judgement, latency, throughput, view
from benchmarks.ground import ground
from benchmarks.limits import Limits
from benchmarks.outcome import Latency, Saturation, Spike, Status, SystemNote, Throughput, WorkNote
from benchmarks.systems import NotAvailableError, system_class
from benchmarks.throughput import Measured
from benchmarks.work import WORKS
from gridscore.errors import GridscoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from benchmarks.display import Display
    from benchmarks.ground import Ground
    from benchmarks.outcome import Outcome
    from benchmarks.systems.base import System
    from benchmarks.work import Work
    from gridscore.grid.launch import MemberExtras

PARTS = ("throughput", "limits", "latency", "spike", "growth")
QUICK_PARTS = ("throughput", "limits", "latency")

QUICK_EVENTS = 450_000
"""Of a throughput run, if quick."""

OTHER_WORKS_SYSTEMS = ("gridscore", "gridscore-cores", "by-hand", "jet-dictionary", "jet-replicated", "jet-imap")
"""On works other than the first, unless others are asked for."""

FLOOR_SYSTEMS = (view.OURS, judgement.JET)
LIVE_QUICK_SYSTEMS = FLOOR_SYSTEMS
SPIKE_SYSTEMS = (*FLOOR_SYSTEMS, "kafka-consumer")

RATES = (500.0, 2_000.0, 10_000.0)
QUICK_RATES = (500.0, 2_000.0)
SATURATION_PARTS = (0.5, 0.8)

_SETUP_SECONDS = 40.0
_RUN_SECONDS = 4.0
_RUN_EVENTS_PER_S = 180_000.0
_LIVE_SECONDS = 5.0
_WARM_UP_SECONDS = 20.0
_SATURATION_SECONDS = 4.0

LATENCY_ROUNDS = 3
"""Of the rates and the systems that the floors compare."""

FLOOR_SECONDS = {500.0: 20.0, 2_000.0: 60.0}
"""At a rate that the floors are about, of the systems that they compare. A member collects its young objects about once
a minute at the higher rate: in shorter windows, whether a pause falls into one decides its 99th percentile."""

_PART_SECONDS = 8.0
"""At a part of the saturation: less than at a fixed rate, as it is for every system."""


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        quick: Less of everything.
        works: Names, in order.
        systems: Names, in order.
        all_systems: The systems were not chosen one by one.
        rounds: Of throughput, that count.
        parts: Of `PARTS`.
        members: Of the cluster.
        heap: Of each member.
        events: Of a throughput run, instead of the work's own number.
    """

    quick: bool
    works: Sequence[str]
    systems: Sequence[str]
    all_systems: bool
    rounds: int
    parts: Sequence[str]
    members: int
    heap: str
    events: int | None = None

    def systems_on(self, work: str) -> list[str]:
        """Names of those that are measured on a work."""
        first = work == self.works[0]
        return [name for name in self.systems if first or not self.all_systems or name in OTHER_WORKS_SYSTEMS]

    def rounds_on(self, work: str) -> int:
        """Rounds that count; fewer on other works than the first."""
        return self.rounds if work == self.works[0] else min(self.rounds, 3)

    def live_parts(self, work: str) -> list[str]:
        """Parts with live events, which only the first work has."""
        return [part for part in ("latency", "spike") if part in self.parts and work == self.works[0]]

    def run_seconds(self, work: str) -> float:
        """How long one run should take, about."""
        return _RUN_SECONDS + (self.events or WORKS[work].count) / _RUN_EVENTS_PER_S

    @property
    def steady_seconds(self) -> tuple[float, float]:
        """Warm-up, and what counts, of one rate."""
        return (8.0, 6.0) if self.quick else (10.0, 10.0)

    @property
    def rates(self) -> tuple[float, ...]:
        """Events per second."""
        return QUICK_RATES if self.quick else RATES

    def steady_rates(self, system: str) -> list[latency.Rate]:
        """The rates for a system, with the seconds that count of each."""
        longer = FLOOR_SECONDS if system in FLOOR_SYSTEMS and not self.quick else {}
        return [latency.Rate(rate, longer.get(rate, self.steady_seconds[1])) for rate in self.rates]

    def floor_rates(self, system: str) -> list[latency.Rate]:
        """Those of them that the floors are about."""
        return [rate for rate in self.steady_rates(system) if rate.per_s in judgement.RATES]

    def live_systems(self, part: str, names: Sequence[str]) -> list[str]:
        """Those of the systems that a part with live events measures."""
        if not self.all_systems:
            return list(names)
        chosen = LIVE_QUICK_SYSTEMS if self.quick else SPIKE_SYSTEMS if part == "spike" else tuple(names)
        return [name for name in names if name in chosen]

    def seconds(self) -> float:
        """How long it should take, about."""
        total = 0.0
        for work in self.works:
            names = self.systems_on(work)
            rounds = self.rounds_on(work) + 1
            if "throughput" in self.parts:
                total += rounds * self.run_seconds(work) * len(names)
            if "limits" in self.parts:
                total += rounds * self.run_seconds(work)
            if self.live_parts(work):
                total += self.steady_seconds[0] + _WARM_UP_SECONDS + _LIVE_SECONDS
            if "latency" in self.live_parts(work):
                for name in self.live_systems("latency", names):
                    total += self._all_latency_seconds(name)
            if "spike" in self.live_parts(work):
                total += len(self.live_systems("spike", names)) * (latency.spike_seconds() + _LIVE_SECONDS)
            if total:
                total += _SETUP_SECONDS
        if "growth" in self.parts:
            from benchmarks.growth import expected_seconds

            total += expected_seconds(quick=self.quick)
        return total

    def _all_latency_seconds(self, system: str) -> float:
        """How long a system's latencies should take, about, all rounds of them."""
        warm_up, rates = self.steady_seconds[0], self.steady_rates(system)
        if self.quick:
            return _latency_seconds(warm_up, rates)
        rates += [latency.Rate(0, _PART_SECONDS, part) for part in SATURATION_PARTS]
        again = LATENCY_ROUNDS - 1 if system in FLOOR_SYSTEMS else 0
        return (
            _SATURATION_SECONDS
            + _LIVE_SECONDS
            + _latency_seconds(warm_up, rates)
            + again * _latency_seconds(warm_up, self.floor_rates(system))
        )


class Session:
    """Runs what is asked for, and notes what comes of it.

    Args:
        options: What is asked for.
        outcome: Where it is noted.
        save: Called whenever something was.
        display: For people.
    """

    def __init__(self, options: Options, outcome: Outcome, save: Callable[[], None], display: Display) -> None:
        self._options = options
        self._outcome = outcome
        self._save = save
        self._display = display
        self._classes: dict[str, type[System]] = {}
        self._unavailable: dict[str, str] = {}

    async def run(self) -> None:
        """Measure everything. What fails is noted; only what is not a system's fault is raised.

        Raises:
            GridscoreError: A cluster did not come up.
        """
        options = self._options
        if set(options.parts) - {"growth"}:
            self._look_for_systems()
            for name in options.works:
                if set(options.parts) & {"throughput", "limits"} or options.live_parts(name):
                    await self._work(replace(WORKS[name], count=options.events or WORKS[name].count))
        if "growth" in options.parts:
            from benchmarks.growth import measure

            await measure(options.members, options.heap, self._outcome, self._save, self._display, quick=options.quick)

    def _look_for_systems(self) -> None:
        for name in self._options.systems:
            try:
                found = self._classes[name] = system_class(name)
                note = SystemNote(name, found.title, found.tuning, found.share, found.in_grid, found.takes_backlog)
            except NotAvailableError as error:
                self._unavailable[name] = _reason(error)
                note = SystemNote(name, name, "")
                self._display.note(f"{name}: not available: {_reason(error)}")
            self._outcome.systems.append(note)

    async def _work(self, work: Work) -> None:
        options, display = self._options, self._display
        self._outcome.works.append(
            WorkNote(work.name, work.title, work.count, work.features, work.trees, work.event_bytes, work.users)
        )
        display.say(f"{work.name}: starting members")
        async with ground(
            work, work.count, members=options.members, heap=options.heap, progress=display.say, extras=self._extras
        ) as place:
            self._outcome.versions["hazelcast"] = place.cluster.version
            self._outcome.settings["partitions"] = place.bed.grid.partition_count
            backlog = bool(set(options.parts) & {"throughput", "limits"})
            if backlog:
                await place.fill()
            async with self._systems(place) as prepared:
                if backlog:
                    await self._rounds(place, prepared)
                    await place.clear()
                if options.live_parts(work.name):
                    await self._live(place, {each.system.name: each.system for each in prepared if not each.failure})

    def _extras(self, folder: Path) -> MemberExtras | None:
        """What the members run with: more than usual if Jet is to be measured."""
        jets = [name for name in self._classes if name.startswith("jet-")]
        if not jets:
            return None
        from benchmarks.systems.jet import member_extras

        try:
            return member_extras(folder / "jet", self._display.say)
        except GridscoreError as error:
            for name in jets:
                self._unavailable[name] = _reason(error)
                del self._classes[name]
            self._display.note(f"Jet: not available: {_reason(error)}")
            return None

    @asynccontextmanager
    async def _systems(self, place: Ground) -> AsyncIterator[list[Measured]]:
        """The systems for a work, prepared; closed when it is left. Those that are not to be had are noted."""
        work = place.bed.work
        made: list[System] = []
        prepared: list[Measured] = []
        try:
            for name in self._options.systems_on(work.name):
                if name in self._unavailable:
                    self._missing(work.name, name, Status.NOT_AVAILABLE, self._unavailable[name])
                    continue
                self._display.say(f"{work.name}: preparing {name}")
                try:
                    system = self._classes[name](place.bed)
                    made.append(system)
                    await system.prepare()
                except Exception as error:  # noqa: BLE001 -- whatever it is, it is this system's own
                    self._missing(work.name, name, Status.FAILED, _reason(error))
                    continue
                prepared.append(Measured(system, max(1, round(place.count * system.share))))
            yield prepared
        finally:
            for system in made:
                await self._close(work.name, system)

    async def _close(self, work: str, system: System) -> None:
        self._display.say(f"{work}: closing {system.name}")
        try:
            await system.close()
        except Exception as error:  # noqa: BLE001 -- the others must be closed, too
            self._display.note(f"{system.name} could not be closed: {_reason(error)}")

    def _missing(self, work: str, name: str, status: Status, reason: str) -> None:
        outcome, options = self._outcome, self._options
        self._display.note(f"{work}: {name}: {status}: {reason}")
        if "throughput" in options.parts:
            outcome.throughput.append(Throughput(work, name, status, reason))
        if "latency" in options.live_parts(work) and name in options.live_systems("latency", [name]):
            outcome.saturation.append(Saturation(work, name, status, reason))
            outcome.latency += [Latency(work, name, rate, None, status, reason) for rate in options.rates]
        if "spike" in options.live_parts(work) and name in options.live_systems("spike", [name]):
            outcome.spikes.append(Spike(work, name, status, reason))

    async def _rounds(self, place: Ground, prepared: list[Measured]) -> None:
        """Rounds of throughput and limits; the first does not count."""
        options, work = self._options, place.bed.work.name
        limits = Limits(place) if "limits" in options.parts else None
        systems = prepared if "throughput" in options.parts else []
        rounds, seconds = options.rounds_on(work), options.run_seconds(work)
        for number in range(rounds + 1):
            which = f"{work}: round {number} of {rounds}" if number else f"{work}: warming up"
            turn = number % max(1, len(systems))
            for measured in systems[turn:] + systems[:turn]:
                if measured.failure:
                    continue
                with self._display.step(f"{which}: {measured.system.name}", seconds):
                    await throughput.run(place, measured, number)
                self._display.note(f"{which}: {_said(measured, counts=number > 0)}")
                if measured.failure:
                    await self._close(work, measured.system)
                    await place.forget()
            if limits is not None:
                with self._display.step(f"{which}: limits", seconds):
                    await limits.run(number)
            if number:
                kept = [each for each in self._outcome.throughput if each.work != work or not _is_measured(each)]
                found = [each.outcome(work) for each in systems] + (limits.outcome() if limits else [])
                self._outcome.throughput[:] = kept + found
                self._save()

    async def _live(self, place: Ground, systems: dict[str, System]) -> None:
        """Latency at all rates, of one system after the other, and the spike."""
        options, outcome, work = self._options, self._outcome, place.bed.work.name
        texts = place.texts[: 1 << 16]
        warm_up, _ = options.steady_seconds
        # Members compile what live events need when they see the first: no system should pay that for the others.
        for name in list(systems)[:1]:
            with self._display.step(f"{work}: warming up with live events", _WARM_UP_SECONDS + _LIVE_SECONDS):
                first = latency.Rate(latency.WARM_UP_RATE, _WARM_UP_SECONDS)
                await latency.steady(systems[name], work, texts, [first], warm_up=warm_up, most=math.inf)
        if "latency" in options.parts:
            for name in options.live_systems("latency", list(systems)):
                rates, most = options.steady_rates(name), math.inf
                if not options.quick:
                    with self._display.step(f"{work}: saturation of {name}", _SATURATION_SECONDS + _LIVE_SECONDS):
                        found = await latency.saturation(systems[name], work, texts, _SATURATION_SECONDS)
                    outcome.saturation.append(found)
                    self._display.note(f"{work}: {name}: saturation {found.events_per_s:,.0f} events/s {found.reason}")
                    if found.status == Status.MEASURED:
                        most = found.events_per_s
                        rates += [latency.Rate(part * most, _PART_SECONDS, part) for part in SATURATION_PARTS]
                rates.sort(key=lambda rate: rate.per_s)
                with self._display.step(f"{work}: latency of {name}", _latency_seconds(warm_up, rates)):
                    measured = await latency.steady(systems[name], work, texts, rates, warm_up=warm_up, most=most)
                outcome.latency += measured
                for lately in measured:
                    said = _latency_said(lately)
                    self._display.note(f"{work}: {name} at {lately.rate_per_s:,.0f} events/s: {said}")
                self._save()
            await self._latency_again(systems, texts, work)
        if "spike" in options.parts:
            for name in options.live_systems("spike", list(systems)):
                with self._display.step(f"{work}: a spike for {name}", latency.spike_seconds() + _LIVE_SECONDS):
                    outcome.spikes.append(await latency.spike(systems[name], work, texts, warm_up=warm_up))
                self._save()

    async def _latency_again(self, systems: dict[str, System], texts: Sequence[bytes], work: str) -> None:
        """Further rounds at the rates that the floors are about, of the systems that they compare."""
        options = self._options
        names = [name for name in FLOOR_SYSTEMS if name in systems]
        if options.quick or len(names) < 2:
            return
        warm_up, _ = options.steady_seconds
        for number in range(2, LATENCY_ROUNDS + 1):
            for name in names[:: (-1) ** (number + 1)]:
                rates = options.floor_rates(name)
                with self._display.step(f"{work}: latency of {name}, round {number}", _latency_seconds(warm_up, rates)):
                    found = await latency.steady(systems[name], work, texts, rates, warm_up=warm_up, most=math.inf)
                self._outcome.latency_again += [msgspec.structs.replace(each, curve=[]) for each in found]
                for each in found:
                    said = _latency_said(each)
                    self._display.note(f"{work}: {name} at {each.rate_per_s:,.0f} events/s, round {number}: {said}")
            self._save()


def _latency_seconds(warm_up: float, rates: Sequence[latency.Rate]) -> float:
    pauses = len(rates) * (latency.PAUSE_SECONDS + latency.SETTLE_SECONDS)
    return _LIVE_SECONDS + warm_up + pauses + sum(rate.seconds for rate in rates)


def _is_measured(found: Throughput) -> bool:
    return found.expected_events > 0


def _reason(error: BaseException) -> str:
    text = str(error) if isinstance(error, GridscoreError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _said(measured: Measured, *, counts: bool) -> str:
    name = measured.system.name
    if measured.failure:
        return f"{name}: FAILED: {measured.failure}"
    wrong = f" WRONG: {measured.wrong}" if measured.wrong else ""
    if not counts:
        return f"{name}: done{wrong}"
    run = measured.runs[-1]
    return (
        f"{name}: {run.events_per_s:,.0f} events/s, CPU {run.scorer_cpu_us_per_event:.1f} +"
        f" {run.service_cpu_us_per_event:.1f} µs an event{wrong}"
    )


def _latency_said(found: Latency) -> str:
    if found.status != Status.MEASURED:
        return f"{found.status}: {found.reason}"
    if found.p50_ms is None or found.p99_ms is None:
        return "nothing was seen"
    return f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms{', saturated' if found.saturated else ''}"
