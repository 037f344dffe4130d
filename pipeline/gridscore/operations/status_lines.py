"""What `gridscore status` says of a job, a source and a sink, in lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.operations.health import shares_text
from gridscore.texts import count_text, duration_text, milliseconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.operations.sink_status import SinkStatus
    from gridscore.operations.status import JobStatus
    from gridscore.sources.status import SourceStatus

_WORTH_SHOWING = 0.0005
_COUNTS = {"lost": "lost", "regressions": "regressions", "dead_letters": "dead letters", "rescued": "rescued"}


def job_lines(status: JobStatus) -> Iterable[str]:
    record, totals = status.record, status.totals
    lag = "unknown" if status.lag is None else f"{status.lag:,}"
    versions = ", ".join(f"v{version}" for version in status.versions) or "(no version scores)"
    # When workers that are gone committed last is unknown.
    never = "never" if status.workers else "-"
    commit = never if status.commit_age is None else f"{duration_text(status.commit_age)} ago"
    owned = f"{status.partitions} of {len(status.positions) or '?'} partitions owned"
    workers = count_text(status.workers, "worker")
    p99 = milliseconds_text(status.latency_ms["p99"])
    yield f"{workers}, {owned}, model {record.job.model.name} {versions}"
    yield f"{totals['rate']:,.0f} events/s, lag {lag}, p99 {p99}, last commit {commit}"
    yield ", ".join(f"{totals[key]:,.0f} {name}" for key, name in _COUNTS.items())
    if record.job.windows:
        where = f" (in `{record.job.late}`)" if record.job.late is not None else ""
        begun = f"{totals['broken_states']:,.0f} states of windows begun anew"
        yield f"{totals['late']:,.0f} late for windows{where}, {begun}"
    if record.job.result.reasons is not None:
        yield f"{totals['explained']:,.0f} results with reasons, {totals['unexplained']:,.0f} without for lack of time"
    if lacking := [f"{kind} {shares_text(shares)}" for kind, shares in _lacking(status)]:
        yield f"of the last {status.quality.events:,} events counted: {'; '.join(lacking)}"
    if status.experiment is not None:
        yield status.experiment.text
    if (certificate := status.certificate) is not None:
        yield f"parity with offline: {certificate.text}, {certificate.at[:16].replace('T', ' ')} UTC"


def _lacking(status: JobStatus) -> Iterable[tuple[str, dict[str, float]]]:
    for kind, shares in status.quality.shares().items():
        if some := {name: share for name, share in shares.items() if share >= _WORTH_SHOWING}:
            yield kind.replace("_", " "), some


def source_lines(status: SourceStatus) -> Iterable[str]:
    yield f"{status.kind} to {status.map}, {count_text(len(status.processes), 'process', 'processes')}"
    if status.processes:
        yield (
            f"{status.rate:,.0f} events/s, {status.events:,} events, {status.dead_letters:,} dead letters, waited "
            f"{status.waited:,.1f} s for room"
        )


def sink_lines(status: SinkStatus) -> Iterable[str]:
    lag = "unknown" if status.lag is None else f"{status.lag:,}"
    yield f"{status.record.map} to {status.record.kind}, {count_text(len(status.processes), 'process', 'processes')}"
    yield (
        f"{status.rate:,.0f} results/s, lag {lag}, {status.partitions} of {len(status.positions) or '?'} partitions "
        f"owned, {status.lost:,} lost, {status.dead_letters:,} dead letters"
    )
