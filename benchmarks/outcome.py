"""What a benchmark found, typed: written as JSON by the harness, read by the report. Units are in the names."""

from __future__ import annotations

import statistics
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMAT = 1
"""Of the file; raised when a field changes its meaning."""


class Status(StrEnum):
    """What became of a system in a part of the benchmark."""

    MEASURED = "measured"
    NOT_AVAILABLE = "not available"
    """Something that it needs is not installed here."""
    FAILED = "failed"
    """It did not start, stopped, or took too long."""
    WRONG = "WRONG"
    """Its scores are not those that the model gives offline."""


class Spread(msgspec.Struct, frozen=True):
    """Median, lowest and highest of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Of values; None of no values."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known)) if known else None


class Run(msgspec.Struct, frozen=True):
    """One run of a throughput measurement: from the first tenth of its results to the beginning of the last.

    Attributes:
        round: From 1; the same round of another system was measured next to it.
        events: Results that came within the window.
        seconds: Length of the window.
        scorer_cpu_seconds: Of the processes that score, children among them.
        service_cpu_seconds: Of the members, or of what takes their place.
        harness_cpu_seconds: Of the process that measures (and sends, where the system takes no backlog).
        others_cores: Cores that everybody else on the machine used meanwhile.
        stage_us_per_event: CPU microseconds by stage, of systems that know.
    """

    round: int
    events: int
    seconds: float
    scorer_cpu_seconds: float
    service_cpu_seconds: float
    harness_cpu_seconds: float = 0.0
    others_cores: float = 0.0
    stage_us_per_event: dict[str, float] = {}

    @property
    def events_per_s(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def scorer_cpu_us_per_event(self) -> float:
        """CPU microseconds per event of the processes that score."""
        return self.scorer_cpu_seconds * 1e6 / self.events

    @property
    def service_cpu_us_per_event(self) -> float:
        """CPU microseconds per event of the members, or of what takes their place."""
        return self.service_cpu_seconds * 1e6 / self.events

    @property
    def cpu_us_per_event(self) -> float:
        """CPU microseconds per event of all."""
        return self.scorer_cpu_us_per_event + self.service_cpu_us_per_event


class Throughput(msgspec.Struct, frozen=True):
    """A system (or a limit) on a work.

    Attributes:
        work: Name of the work.
        system: Name of the system, or of the limit: `limit-drain`, `limit-put`, `limit-predict`.
        status: What became of it.
        reason: Why it was not measured, or is wrong.
        expected_events: Results of a run.
        checked_scores: Results that were compared with offline scores, in all rounds; 0 for a limit.
        runs: One for each round, in order; a round that failed is missing.
    """

    work: str
    system: str
    status: Status
    reason: str = ""
    expected_events: int = 0
    checked_scores: int = 0
    runs: list[Run] = []

    @property
    def is_limit(self) -> bool:
        """Whether it is not a system, but a part of what every system has to do."""
        return self.system.startswith("limit-")

    def spread(self, figure: str) -> Spread | None:
        """Spread of a figure of the runs, by the name of its attribute: `events_per_s`; None if there was no run."""
        return Spread.of(getattr(run, figure) for run in self.runs)

    def ratio(self, other: Throughput, figure: str = "events_per_s") -> Spread | None:
        """Spread of this one's figure divided by the other's, round by round; None if they share no round."""
        theirs = {run.round: getattr(run, figure) for run in other.runs}
        pairs = ((getattr(run, figure), theirs[run.round]) for run in self.runs if run.round in theirs)
        return Spread.of(mine / other for mine, other in pairs if other)

    @property
    def stage_us_per_event(self) -> dict[str, float]:
        """Median of the rounds by stage; empty if the system does not know."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.stage_us_per_event))
        return {name: statistics.median(run.stage_us_per_event.get(name, 0.0) for run in self.runs) for name in names}


class Saturation(msgspec.Struct, frozen=True):
    """The most that a system takes live, found with a bounded number of events outstanding.

    Attributes:
        work: Name of the work.
        system: Name of the system.
        status: What became of it.
        reason: Why it was not measured.
        outstanding: Events sent and not answered, at most.
        seconds: How long it was measured.
        events_per_s: Results per second.
        harness_cores: Cores that sender and listener used; near 1, they were the limit.
        scorer_cpu_us_per_event: Of the processes that score.
        service_cpu_us_per_event: Of the members, or of what takes their place.
    """

    work: str
    system: str
    status: Status
    reason: str = ""
    outstanding: int = 0
    seconds: float = 0.0
    events_per_s: float = 0.0
    harness_cores: float = 0.0
    scorer_cpu_us_per_event: float = 0.0
    service_cpu_us_per_event: float = 0.0


class Latency(msgspec.Struct, frozen=True):
    """Time from when an event was due to when the application saw its result, at a steady rate, open loop.

    Attributes:
        work: Name of the work.
        system: Name of the system.
        rate_per_s: Events due per second.
        part_of_saturation: 0.5 or 0.8 if the rate is that part of the system's own saturation; None for a fixed rate.
        status: What became of it.
        reason: Why it was not measured.
        saturated: The system could not keep the rate: results fell behind by more than two seconds. It was stopped,
            and the percentiles are of what came until then.
        seconds: How long it was measured, without the warm-up.
        due: Events that were due in this time.
        seen: Those whose results were seen.
        p50_ms: Percentiles, and the largest; None if nothing was seen.
        p90_ms: The same.
        p99_ms: The same.
        p999_ms: The same.
        max_ms: The same.
        sent_late_p99_ms: 99th percentile of the time from due to sent: the sender's own part in all of these.
        harness_cores: Cores that sender and listener used.
        scorer_cpu_us_per_event: Of the processes that score.
        service_cpu_us_per_event: Of the members, or of what takes their place.
        others_cores: Cores that everybody else on the machine used meanwhile.
        curve: Percentile and milliseconds, for plots.
    """

    work: str
    system: str
    rate_per_s: float
    part_of_saturation: float | None
    status: Status
    reason: str = ""
    saturated: bool = False
    seconds: float = 0.0
    due: int = 0
    seen: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    sent_late_p99_ms: float | None = None
    harness_cores: float = 0.0
    scorer_cpu_us_per_event: float = 0.0
    service_cpu_us_per_event: float = 0.0
    others_cores: float = 0.0
    curve: list[tuple[float, float]] = []


class SpikeBin(msgspec.Struct, frozen=True):
    """Half a second of a spike, by when events were due.

    Attributes:
        begin_s: From the first event that counts.
        due: Events.
        seen: Those whose results were seen.
        p50_ms: From due to seen; None if none was seen.
        p99_ms: The same.
    """

    begin_s: float
    due: int
    seen: int
    p50_ms: float | None
    p99_ms: float | None


class Spike(msgspec.Struct, frozen=True):
    """A steady rate, ten times as much for some seconds, and the steady rate again.

    Attributes:
        work: Name of the work.
        system: Name of the system.
        status: What became of it.
        reason: Why it was not measured.
        rate_per_s: Of the steady rate.
        factor: Of the spike.
        spike_begin_s: On the scale of the bins.
        spike_end_s: The same.
        normal_p99_ms: Median of the bins before the spike.
        worst_p99_ms: Of the bins during the spike and after it.
        seconds_until_normal: From the end of the spike until p99 was no worse than in the worst bin before it, and
            stayed so; None if it was not within the time.
        bins: In order.
    """

    work: str
    system: str
    status: Status
    reason: str = ""
    rate_per_s: float = 0.0
    factor: float = 0.0
    spike_begin_s: float = 0.0
    spike_end_s: float = 0.0
    normal_p99_ms: float | None = None
    worst_p99_ms: float | None = None
    seconds_until_normal: float | None = None
    bins: list[SpikeBin] = []


class Growth(msgspec.Struct, frozen=True):
    """One point of a series: what an event costs Gridscore when one thing grows.

    Attributes:
        series: `events`, `jobs`, `features`, `partitions` or `workers`.
        value: So many of them.
        status: What became of it.
        reason: Why it was not measured.
        events: Results within the window, of all jobs.
        seconds: Length of the window.
        worker_cpu_us_per_event: Of all workers.
        member_cpu_us_per_event: Of all members.
        worker_rss_bytes: The most that any worker had resident, looked at several times a second.
        others_cores: Cores that everybody else on the machine used meanwhile.
    """

    series: str
    value: int
    status: Status
    reason: str = ""
    events: int = 0
    seconds: float = 0.0
    worker_cpu_us_per_event: float = 0.0
    member_cpu_us_per_event: float = 0.0
    worker_rss_bytes: int = 0
    others_cores: float = 0.0

    @property
    def events_per_s(self) -> float:
        """Events per second; 0 if it was not measured."""
        return self.events / self.seconds if self.seconds else 0.0


class SystemNote(msgspec.Struct, frozen=True):
    """What is compared.

    Attributes:
        name: Short.
        title: For people.
        tuning: How it was tuned.
        share: Part of a work's events that a throughput run takes.
        in_grid: Whether events and results lie in the grid; if not, `service` CPU is not that of members.
        takes_backlog: Whether it works off what lies there; if not, throughput is that of events sent one by one.
    """

    name: str
    title: str
    tuning: str
    share: float = 1.0
    in_grid: bool = True
    takes_backlog: bool = True


class WorkNote(msgspec.Struct, frozen=True):
    """What was scored; see `benchmarks.work.Work`."""

    name: str
    title: str
    events: int
    features: int
    trees: int
    event_bytes: int
    users: int


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str


class Outcome(msgspec.Struct):
    """A whole benchmark.

    Attributes:
        format: See `FORMAT`.
        started_at: RFC 3339, UTC.
        seconds: How long it took.
        command: Arguments of `python -m benchmarks`.
        git_commit: With `+` behind it if files had been changed; empty if this is not a checkout.
        machine: Where.
        versions: Of packages, by name; `hazelcast` is that of the members.
        settings: By name: members, heap, rounds and so on.
        works: That were asked for.
        systems: That were asked for, those that are not available among them.
        throughput: Systems and limits, by work.
        saturation: Of live events.
        latency: At fixed rates and at parts of the saturation.
        latency_again: At the rates of the floors, of the systems that the floors compare, in further rounds; in order,
            and without curves.
        spikes: One for each system.
        growth: Point by point.
        complete: Whether it came to its end; written as it goes on, too.
    """

    format: int
    started_at: str
    seconds: float
    command: list[str]
    git_commit: str
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, str | int | float | bool]
    works: list[WorkNote] = []
    systems: list[SystemNote] = []
    throughput: list[Throughput] = []
    saturation: list[Saturation] = []
    latency: list[Latency] = []
    latency_again: list[Latency] = []
    spikes: list[Spike] = []
    growth: list[Growth] = []
    complete: bool = False

    def throughput_of(self, work: str, system: str) -> Throughput | None:
        """Of a system or limit on a work; None if there is none."""
        return next((each for each in self.throughput if (each.work, each.system) == (work, system)), None)

    def save(self, path: Path) -> None:
        """Write it as JSON; what was there is replaced as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read it.

        Raises:
            OSError: It cannot be read.
            msgspec.ValidationError: It is not an outcome, or one of another version.
        """
        return msgspec.json.decode(path.read_bytes(), type=cls)
