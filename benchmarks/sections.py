"""The tables of the report, as Markdown; each is a line that says so where there is no data for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import judgement, view
from benchmarks.limits import TITLES
from benchmarks.markdown import DASH, NOT_MEASURED, number, spread_text, table
from benchmarks.outcome import Status
from gridscore.proving.bench.rounds import REST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.outcome import Growth, Latency, Outcome, Throughput

STAGES = {
    "decode": "values of the journal to typed fields (`msgspec`), a batch at a time",
    "features": "fields to the float32 matrix, in columns, with lookups from the worker's own copies",
    "predict": "XGBoost, one thread",
    "encode": "scores to the JSON of results",
    "write": "results to put-all messages, one for each partition, and their acknowledgements",
    REST: "what is left of the process: reads of the journal, TCP, leases and offsets",
}
"""What each does; what has no line here is shown without one."""

GROWING = {
    "events": "events that lay there when the worker began",
    "jobs": "jobs on one grid, each scoring all events, one worker process",
    "features": "features of the model",
    "partitions": "partitions of the cluster",
    "workers": "worker processes on one job",
}

MEMORY_MB = 1e6


def throughput(outcome: Outcome, work: str) -> str:
    """Every system beside ours on a work."""
    found, ours = view.compared(outcome, work), outcome.throughput_of(work, view.OURS)
    if not found:
        return NOT_MEASURED
    columns = (
        "", "events/s", "Gridscore is … times as fast", "CPU µs per event", "of it: scoring processes",
        "members or broker", "scores checked", "",
    )  # fmt: skip
    rows = [
        (
            f"**{each.system}**" if each.system == view.OURS else each.system,
            spread_text(each.spread("events_per_s")),
            DASH if ours is None or each.system == view.OURS else spread_text(ours.ratio(each)),
            spread_text(each.spread("cpu_us_per_event")),
            spread_text(each.spread("scorer_cpu_us_per_event")),
            spread_text(each.spread("service_cpu_us_per_event")),
            f"{each.checked_scores:,}" if each.checked_scores else DASH,
            _throughput_note(outcome, each),
        )
        for each in found
    ]
    return table(columns, rows)


def limits(outcome: Outcome, work: str) -> str:
    """Ours beside what bounds it."""
    ours, by_hand = (outcome.throughput_of(work, name) for name in (view.OURS, "by-hand"))
    found = view.limits(outcome, work)
    if not found:
        return NOT_MEASURED
    if by_hand is not None and by_hand.runs:
        found.append(by_hand)
    if ours is not None and ours.runs:
        found.append(ours)
    columns = ("", "events/s", "Gridscore reaches … of it", "CPU µs per event, of the process", "of the members")
    return table(
        columns,
        (
            (
                TITLES.get(each.system, each.system).removeprefix("limit: "),
                spread_text(each.spread("events_per_s")),
                DASH if ours is None or each is ours else spread_text(ours.ratio(each)),
                spread_text(each.spread("scorer_cpu_us_per_event")),
                spread_text(each.spread("service_cpu_us_per_event")),
            )
            for each in found
        ),
    )


def stages(outcome: Outcome) -> str:
    """Where the worker's CPU goes, on each work; the members' below it."""
    works = view.staged_works(outcome)
    if not works:
        return NOT_MEASURED
    names = list(dict.fromkeys(name for each in works for name in each.stage_us_per_event))

    def row(title: str, micros: Sequence[float | None], what: str = "") -> tuple[str, ...]:
        return (title, *(number(each) for each in micros), what)

    def medians(figure: str) -> list[float | None]:
        return [spread.median if (spread := each.spread(figure)) else None for each in works]

    return table(
        ("µs of CPU per event", *(each.work for each in works), ""),
        [
            *(row(name, [each.stage_us_per_event.get(name) for each in works], STAGES.get(name, "")) for name in names),
            row("**the whole worker**", medians("scorer_cpu_us_per_event")),
            row("the members", medians("service_cpu_us_per_event"), "reads of the journal, puts and their backups"),
        ],
    )


def floors(outcome: Outcome) -> str:
    """What was asked, what was found, and whether that is enough."""
    columns = ("floor", "asked", "found", "")
    rows = ((each.floor, each.wanted, each.found, f"**{each.text}**") for each in judgement.judge(outcome))
    return table(columns, rows, texts=columns)


def latency(outcome: Outcome, rate: float) -> str:
    """Percentiles of all systems at a fixed rate."""
    return _latencies(view.latencies(outcome, rate))


def parts(outcome: Outcome) -> str:
    """Percentiles of all systems at parts of their own saturation."""
    found = view.parts(outcome)
    return _latencies(found, rates=True) if found else NOT_MEASURED


def saturations(outcome: Outcome) -> str:
    """The most that systems take live."""
    found = view.saturations(outcome)
    if not found:
        return NOT_MEASURED
    columns = (
        "", "events/s", "sender and listener, cores", "CPU µs per event: scoring processes", "members or broker", "",
    )  # fmt: skip
    rows = []
    for each in found:
        costs = (each.scorer_cpu_us_per_event, each.service_cpu_us_per_event)
        figures = (each.events_per_s, each.harness_cores, *costs) if each.status == Status.MEASURED else (None,) * 4
        note = _status_note(each.status, each.reason) or _harness_note(each.harness_cores)
        rows.append((each.system, *map(number, figures), note))
    return table(columns, rows)


def spikes(outcome: Outcome) -> str:
    """How systems came through a spike."""
    found = view.spikes(outcome)
    if not found:
        return NOT_MEASURED
    columns = ("", "p99 before, ms", "worst p99 since, ms", "as before again, seconds after the spike", "")
    return table(
        columns,
        (
            (
                each.system,
                number(each.normal_p99_ms),
                number(each.worst_p99_ms),
                DASH if each.seconds_until_normal is None else f"{each.seconds_until_normal:.1f}",
                _status_note(each.status, each.reason)
                or ("not as before within the time" if each.seconds_until_normal is None else ""),
            )
            for each in found
        ),
    )


def growth(outcome: Outcome, series: str) -> str:
    """One series."""
    columns = (series, "events/s", "CPU µs per event: workers", "members", "largest worker, MB", "")
    return table(columns, (_growth(each) for each in view.growth(outcome)[series]))


def _latencies(found: Sequence[Latency], *, rates: bool = False) -> str:
    columns = (
        "", "of its saturation", "events/s", "seconds",
        "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "sent late, p99 ms",
        "CPU µs per event: scoring processes", "members or broker", "",
    )  # fmt: skip
    rows = []
    for each in found:
        measured = each.status == Status.MEASURED
        percentiles = (each.p50_ms, each.p90_ms, each.p99_ms, each.p999_ms, each.max_ms, each.sent_late_p99_ms)
        costs = (each.scorer_cpu_us_per_event, each.service_cpu_us_per_event)
        rows.append(
            (
                f"**{each.system}**" if each.system == view.OURS else each.system,
                f"{each.part_of_saturation:.0%}" if each.part_of_saturation is not None else "",
                number(each.rate_per_s) if rates else "",
                number(each.due / each.rate_per_s if measured else None),
                *map(number, percentiles),
                *(number(cost if measured else None) for cost in costs),
                _latency_note(each),
            )
        )
    return table(columns, rows)


def _throughput_note(outcome: Outcome, found: Throughput) -> str:
    note = view.note_of(outcome, found.system)
    parts = [_status_note(found.status, found.reason)]
    if note is not None and found.runs:
        if not note.takes_backlog:
            parts.append(f"live: {found.expected_events:,} events sent one by one, up to 2,000 on their way")
        elif note.share < 1:
            parts.append(f"{found.expected_events:,} events")
        if not note.in_grid:
            parts.append("no members at work: its own broker, if it has one")
    return "; ".join(part for part in parts if part)


def _latency_note(found: Latency) -> str:
    if found.status != Status.MEASURED:
        return _status_note(found.status, found.reason)
    parts = []
    if found.saturated:
        parts.append("**saturated**: could not keep the rate, and was stopped")
    elif found.seen < found.due:
        parts.append(f"{found.due - found.seen:,} of {found.due:,} not seen")
    return "; ".join([*parts, *filter(None, [_harness_note(found.harness_cores)])])


def _harness_note(cores: float) -> str:
    return "sender and listener may be the limit" if cores >= view.HARNESS_IS_LIMIT_CORES else ""


def _growth(found: Growth) -> tuple[str, ...]:
    if found.status != Status.MEASURED:
        return (f"{found.value:,}", DASH, DASH, DASH, DASH, _status_note(found.status, found.reason))
    figures = (found.events_per_s, found.worker_cpu_us_per_event, found.member_cpu_us_per_event)
    return (f"{found.value:,}", *map(number, figures), number(found.worker_rss_bytes / MEMORY_MB), "")


def _status_note(status: Status, reason: str) -> str:
    return "" if status == Status.MEASURED else f"{status}: {reason}" if reason else str(status)
