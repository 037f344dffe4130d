"""`gridscore status`: is everything well? For scripts by exit code and JSON, for people with reasons and advice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Json, Reach, answered, job_names, run_on
from gridscore.cli.output import console, errors, print_json, safe
from gridscore.errors import UsageError
from gridscore.texts import with_moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gridscore.grid import Grid
    from gridscore.grid.heap import MemberHeap
    from gridscore.operations.flow import Flow, FlowObserver, History
    from gridscore.operations.health import Finding

UNHEALTHY = 10  # exit code when something is not well; those of errors are lower


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
    connection: Reach,
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

    from gridscore.cli.remote import Verb
    from gridscore.operations.flow import FlowObserver, History, to_json
    from gridscore.operations.status import acknowledge as note

    async def main(grid: Grid) -> dict[str, Any]:
        observer, history = FlowObserver(grid, job), History()
        with errors.status(f"Looking for {seconds:g} s") if seconds else contextlib.nullcontext():
            flow = await _look(grid, observer, history, seconds)
        noted = {}
        if acknowledge:
            noted = {"acknowledged": await note(grid, flow.overview.jobs[0])}
            flow = await answered(grid, observer.look())
            history.replace(flow)
        findings = history.findings(late_seconds=late)
        return {**with_moments({"healthy": findings.all_well, **to_json(flow, findings)}), **noted}

    noted = {}
    if acknowledge and connection.by_server:
        answer = run_on(connection, main, by=Verb("POST", ("jobs", str(job), "acknowledge"), {}))
        noted = {"acknowledged": answer}
    value = {**run_on(connection, main, tells_of_silence=True, by=Verb("GET", ("status",), made=_only(job))), **noted}
    if as_json:
        value.pop("acknowledged", None)
        print_json(value)
    else:
        _print(value)
    if not value["healthy"]:
        raise typer.Exit(UNHEALTHY)


def _only(job: str | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Of what a server says of all, what is of a job, the sources of its events and the sinks of its results."""

    def only(value: dict[str, Any]) -> dict[str, Any]:
        from gridscore.errors import JobNotFoundError

        if job is None:
            return value
        found = next((each for each in value["jobs"] if each["name"] == job), None)
        if found is None:
            raise JobNotFoundError(f"There is no job `{job}`.", "`gridscore jobs` lists them.")
        sources = [each for each in value["sources"] if each["map"] == found.get("events_map")]
        sinks = [each for each in value["sinks"] if each["map"] == found.get("results_map")]
        kept = {**value, "jobs": [found], "sources": sources, "sinks": sinks, "maps": []}
        judged = [*sources, *sinks, found, value["members"], *value["bad_records"]]
        return {**kept, "healthy": all(each["healthy"] for each in judged)}

    return only


def _print(value: dict[str, Any]) -> None:
    from gridscore.grid.heap import MemberHeap
    from gridscore.job.life import OVER
    from gridscore.operations.flow import INVALID

    if acknowledged := value.get("acknowledged"):
        lost, regressions = acknowledged["lost"], acknowledged["regressions"]
        unkept = f", {acknowledged['unkept']:,} without a dead letter" if acknowledged["unkept"] else ""
        console.print(f"Acknowledged: {lost:,} lost, {regressions:,} regressions{unkept}.")
    for each in value["sources"]:
        _show("source", each["name"], each["state"], each["lines"], _findings(each))
    for each in value["jobs"]:
        if each["state"] != INVALID:  # it is among the bad records
            over = each["state"] in OVER  # what is over for good is neither well nor not
            _show("", each["name"], each["state"], each.get("lines", ()), _findings(each), unjudged=over)
    for each in value["sinks"]:
        _show("sink", each["name"], each["state"], each["lines"], _findings(each))
    for each in value["bad_records"]:
        _show("record", f"{each['map']} {each['key']}", INVALID, (), _findings(each))
    for each in value["maps"]:
        _show("map", each["name"], "unread", (), _findings(each))
    heaps = [{name: of for name, of in heap.items() if name != "share"} for heap in value["members"]["heaps"]]
    _show_members([MemberHeap(**heap) for heap in heaps], _findings(value["members"]))
    for each in value["backups"]:
        error = f"; the last look: {each['error']}" if each["error"] else ""
        mark = "[yellow]late[/], " if each["late"] else ""
        console.print(f"backup to [bold]{safe(each['to'])}[/]: {mark}{safe(each['text'])}{safe(error)}")
    if not value["jobs"]:
        console.print("No jobs. `gridscore submit FILE` submits one.")


def _findings(value: dict[str, Any]) -> list[Finding]:
    from gridscore.operations.health import Finding, Level

    return [Finding(Level(each["level"]), each["code"], each["text"], each["advice"]) for each in value["findings"]]


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
