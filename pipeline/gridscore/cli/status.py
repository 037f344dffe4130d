"""`gridscore status`: is everything well? For scripts by exit code and JSON, for people with reasons and advice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, Json, answered, job_names, run_on
from gridscore.cli.output import console, errors, print_json, safe
from gridscore.errors import UsageError
from gridscore.texts import count_text, duration_text, milliseconds_text, with_moments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.heap import MemberHeap
    from gridscore.operations.flow import Flow, FlowObserver, History
    from gridscore.operations.health import Finding
    from gridscore.operations.sink_status import SinkStatus
    from gridscore.operations.status import JobStatus
    from gridscore.sources.status import SourceStatus

UNHEALTHY = 10  # exit code when something is not well; those of errors are lower
_WORTH_SHOWING = 0.0005
_COUNTS = {"lost": "lost", "regressions": "regressions", "dead_letters": "dead letters", "rescued": "rescued"}


def status(
    job: Annotated[
        str | None, typer.Argument(help="Name of the job; else all jobs.", show_default=False, autocompletion=job_names)
    ] = None,
    *,
    seconds: Annotated[
        float, typer.Option("--for", min=0.0, max=600.0, help="How long to look, in seconds; 0 looks once.")
    ] = 5.0,
    late: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Growing lag is bad if working it off would take longer, or p99 is above a fifth of this.",
        ),
    ] = 10.0,
    acknowledge: Annotated[bool, typer.Option("--acknowledge", help="Acknowledge the losses of JOB so far.")] = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Say whether jobs, sources and sinks are well, and why not.

    With JOB, only that job, the sources of its events and the sinks of its results. Exit code 0: all are well; 10: at
    least one is not; anything else is an error. It looks several times in --for seconds, and what is over at one of
    these looks is not a problem.

    Example: [bold]gridscore status flights --json[/]
    """
    if acknowledge and job is None:
        raise UsageError("--acknowledge is for one job.", "Name it: `gridscore status JOB --acknowledge`.")

    from gridscore.job.life import OVER
    from gridscore.operations.flow import GONE, INVALID, FlowObserver, History, to_json
    from gridscore.operations.status import acknowledge as note

    async def main(grid: Grid) -> tuple[History, Flow, dict[str, int]]:
        observer, history = FlowObserver(grid, job), History()
        with errors.status(f"Looking for {seconds:g} s") if seconds else contextlib.nullcontext():
            flow = await _look(grid, observer, history, seconds)
        if not acknowledge:
            return history, flow, {}
        numbers = await note(grid, flow.overview.jobs[0])
        flow = await answered(grid, observer.look())
        history.replace(flow)
        return history, flow, numbers

    history, flow, acknowledged = run_on(connection, main, tells_of_silence=True)
    findings = history.findings(late_seconds=late)
    if as_json:
        workers = [worker.id for worker in flow.overview.workers]
        print_json(with_moments({"healthy": findings.all_well, **to_json(flow, findings), "workers": workers}))
    else:
        if acknowledged:
            lost, regressions = acknowledged["lost"], acknowledged["regressions"]
            unkept = f", {acknowledged['unkept']:,} without a dead letter" if acknowledged["unkept"] else ""
            console.print(f"Acknowledged: {lost:,} lost, {regressions:,} regressions{unkept}.")
        for source in flow.sources:
            _show("source", source.name, source.state, _source_lines(source), findings.sources[source.name])
        for each in flow.overview.jobs:
            name = each.record.name
            over = each.state in OVER  # what is over for good is neither well nor not
            _show("", name, each.state.value, _job_lines(each), findings.jobs[name], unjudged=over)
        for name in flow.gone:
            _show("", name, GONE, (), findings.jobs[name])
        for sink in flow.sinks:
            _show("sink", sink.record.name, sink.state, _sink_lines(sink), findings.sinks[sink.record.name])
        for place, found in findings.records.items():
            _show("record", place, INVALID, (), found)
        for name, found in findings.maps.items():
            _show("map", name, "unread", (), found)
        _show_members(flow.heaps, findings.members)
        for backup in flow.backups:
            error = f", and the last look failed: {backup.error}" if backup.error else ""
            mark = "[yellow]late[/], " if backup.is_late else ""
            console.print(f"backup to [bold]{safe(backup.to)}[/]: {mark}{backup.text}{safe(error)}")
        if not flow.has_jobs:
            console.print("No jobs. `gridscore submit FILE` submits one.")
    if not findings.all_well:
        raise typer.Exit(UNHEALTHY)


async def _look(grid: Grid, observer: FlowObserver, history: History, seconds: float) -> Flow:
    """Look about once a second; returns the last look. Raises GridError if the cluster does not answer in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        flow = await answered(grid, observer.look())
        history.add(flow)
        left = began + seconds - loop.time()
        if left <= 0:
            return flow
        await asyncio.sleep(min(1.0, left))


def _job_lines(status: JobStatus) -> Iterable[str]:
    from gridscore.operations.health import shares_text

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


def _source_lines(status: SourceStatus) -> Iterable[str]:
    yield f"{status.kind} to {status.map}, {count_text(len(status.processes), 'process', 'processes')}"
    if status.processes:
        yield (
            f"{status.rate:,.0f} events/s, {status.events:,} events, {status.dead_letters:,} dead letters, waited "
            f"{status.waited:,.1f} s for room"
        )


def _sink_lines(status: SinkStatus) -> Iterable[str]:
    lag = "unknown" if status.lag is None else f"{status.lag:,}"
    yield f"{status.record.map} to {status.record.kind}, {count_text(len(status.processes), 'process', 'processes')}"
    yield (
        f"{status.rate:,.0f} results/s, lag {lag}, {status.partitions} of {len(status.positions) or '?'} partitions "
        f"owned, {status.lost:,} lost, {status.dead_letters:,} dead letters"
    )


def _show_members(heaps: Sequence[MemberHeap], findings: Sequence[Finding]) -> None:
    from gridscore.grid.heap import size_text, worst_of
    from gridscore.operations.health import is_well

    if heap := worst_of(heaps):
        of = f"{heap.share:.0%} of {size_text(heap.most)} of heap used, garbage included"
        # What may be garbage is neither well nor a problem.
        _show("", "members", f"{len(heaps)}, {of}", (), findings, unjudged=bool(findings) and is_well(findings))


def _show(
    kind: str, name: str, state: str, lines: Iterable[str], findings: Sequence[Finding], *, unjudged: bool = False
) -> None:
    from gridscore.operations.health import Level, is_well

    verdict = "" if unjudged else "[green]well[/], " if is_well(findings) else "[red]not well[/], "
    what = f"{kind} " if kind else ""
    console.print(f"{what}[bold]{safe(name)}[/]: {verdict}{safe(state)}")
    for line in lines:
        console.print(f"  {safe(line)}")
    for finding in findings:
        mark = "[red]problem[/]" if finding.level is Level.PROBLEM else "[yellow]note[/]   "
        # Errors have lines of their own, as a message and what to do.
        text = safe(finding.text, layout=True).rstrip().replace("\n", f"\n{' ' * 11}")
        console.print(f"  {mark}  {text}")
        if finding.advice:
            console.print(f"           {safe(finding.advice)}", style="dim")
