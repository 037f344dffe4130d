"""`gridscore submit`, `jobs`, `suspend`, `resume`, `restart`, `cancel`: the life of jobs in a cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowChanged, App, Connection, JobName, Json, Override, Why, ask, run_on
from gridscore.cli.output import console, one_line, print_json, print_table, print_warnings, safe
from gridscore.cli.state import fill, moment_of, told_of
from gridscore.errors import UsageError
from gridscore.texts import with_moments

if TYPE_CHECKING:
    from gridscore.client import Client
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.operations.flow import Flow
    from gridscore.operations.status import JobStatus
    from gridscore.operations.window_load import Loaded


def submit(
    file: Annotated[Path, typer.Argument(help="The job file.", show_default=False)],
    *,
    update: Annotated[bool, typer.Option("--update", help="Replace an active job of this name, and go on.")] = False,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A model (XGBoost UBJ or JSON) to push; it goes live together with the job."),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="The same for a version that was pushed before.")] = None,
    allow_changed_features: AllowChanged = False,
    prepare: Annotated[
        bool, typer.Option(help="Give the job's maps the journals that they lack; see `gridscore prepare`.")
    ] = True,
    suspended: Annotated[
        bool, typer.Option("--suspended", help="Score nothing before `resume`, as for `gridscore state load`.")
    ] = False,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="FILE",
            help="Fill the windows from a history before it scores, as `gridscore state load` does.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Of --history, the events before that moment.")
    ] = None,
    why: Why = "",
    override: Override = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Submit a job file to the cluster; any worker picks it up.

    Job and model go live together: no event is scored by one without the other.

    Example: [bold]gridscore submit jobs/flights/job.yaml --update --model model.ubj[/]
    """
    from gridscore.client import Client
    from gridscore.job import JobState, load_job
    from gridscore.job.life import OVER
    from gridscore.models.fit import fit_warnings
    from gridscore.operations.window_load import check_history
    from gridscore.scoring.preparation import warnings
    from gridscore.scoring.window_states import how_to_fill

    job = load_job(file)
    if until is not None and history is None:
        raise UsageError("--until says how far a history counts.", "Name it with --history FILE.")
    if history is not None and not (job.used_windows and history.is_file()):
        raise UsageError(f"`{history}` is not a file." if job.used_windows else f"The job `{job.name}` has no windows.")
    moment = None if until is None else moment_of(until)
    if history is not None:
        check_history(job, history, moment)

    async def main(grid: Grid) -> tuple[JobRecord | None, JobRecord, int, list[str], Loaded | None]:
        client = Client(grid)
        before = await client.jobs.find_usable(job.name)
        record = await client.submit(
            job,
            update=update,
            model=model,
            version=version,
            allow_changed_features=allow_changed_features,
            prepare=prepare,
            why=why,
            override=override,
            suspended=suspended or history is not None,
        )
        loaded = None
        if history is not None:
            stays = suspended or (before is not None and before.state is JobState.SUSPENDED)
            record, loaded = await _filled(client, record, history, moment, stays=stays)
        found = await client.version_of(job, record.release)
        told = [*await warnings(grid, job), *fit_warnings({job.name: record.job}, found)]
        return before, record, found.version, told, loaded

    before, record, number, told, loaded = run_on(connection, main)
    print_warnings(told)
    is_suspended = record.state is JobState.SUSPENDED
    filled = "" if loaded is None else f"\n{told_of(loaded, until)}"
    if before is not None and before.revision == record.revision:
        live = f" Version {number} of the model {safe(job.model.name)} is live." if model or version else ""
        if suspended and not is_suspended:
            live += f"\nIt goes on: `gridscore suspend {safe(record.name)}` suspends it."
        more = live + filled + (when_it_scores(record, "It goes on.") if filled else "")
        _report(record, "is submitted already, unchanged", loaded, as_json=as_json, version=number, more=more)
    else:
        more = f" with version {number} of the model {safe(job.model.name)}" if record.release else ""
        more = when_it_scores(record, f"Workers pick it up{more} within a second: `gridscore jobs`.")
        if loaded is None and record.job.used_windows and (before is None or before.state in OVER):
            more += f"\nIts windows begin empty. {safe(how_to_fill(record.name, is_suspended=is_suspended))}"
        if record.previous is not None:
            more += f"\nUndo it: `gridscore rollback {safe(record.name)}`."
        _report(record, "submitted", loaded, as_json=as_json, changed=True, version=number, more=filled + more)


async def _filled(
    client: Client, record: JobRecord, history: Path, until: float | None, *, stays: bool
) -> tuple[JobRecord, Loaded]:
    """Fill the windows of a job that was submitted, and let it score, unless it `stays` suspended."""
    from gridscore.job import JobState

    if record.state is not JobState.SUSPENDED:
        record = await client.jobs.suspend(record.name)
    try:
        loaded = await fill(client.grid, record, history, until)
    except BaseException:  # of the grid, or Ctrl-C
        way = f"`gridscore state load {record.name} HISTORY`, `gridscore resume {record.name}`"
        print_warnings([f"The job is submitted, and suspended, its windows not filled. Once that is mended: {way}."])
        raise
    return record if stays else await client.jobs.resume(record.name), loaded


def rollback(name: JobName, *, why: Why = "", connection: Connection, as_json: Json = False) -> None:
    """Undo the last update of a job, and the version of the model that went live with it, in one step.

    A second rollback undoes the first. A FAILED job runs again; a suspended one stays suspended.

    Example: [bold]gridscore rollback flights[/]
    """
    from gridscore.client import Client

    async def main(grid: Grid) -> tuple[JobRecord, int]:
        client = Client(grid)
        record = await client.rollback(name, why=why)
        return record, (await client.version_of(record.job, record.release)).version

    record, number = run_on(connection, main)
    text = f"It scores with version {number} of the model {safe(record.job.model.name)} within a second."
    more = when_it_scores(record, text)
    _report(record, "is as it was before its last update", as_json=as_json, changed=True, version=number, more=more)


def when_it_scores(record: JobRecord, text: str) -> str:
    """A line that says when a changed job scores: as `text` says, or not before it is resumed."""
    from gridscore.job import JobState

    if record.state is JobState.SUSPENDED:
        return f"\nIt is suspended: `gridscore resume {safe(record.name)}` starts it."
    return f"\n{text}"


app = App(invoke_without_command=True)


@app.callback()
def jobs(context: typer.Context, *, connection: Connection, as_json: Json = False) -> None:
    """List the jobs of the cluster: state, lag, rate, model version, losses; and sources and sinks, if there are any.

    Example: [bold]gridscore jobs --json[/]
    """
    if context.invoked_subcommand is not None:
        return
    from gridscore.operations.flow import GONE, INVALID, REPAIR, FlowObserver, orphaned

    flow = ask(connection, lambda grid: FlowObserver(grid).look())
    statuses = flow.overview.jobs
    if as_json:
        gone = [{"name": name, "state": GONE, "error": orphaned(name).text} for name in flow.gone]
        invalid = [{"name": each.key, "state": INVALID, "error": str(each)} for each in flow.invalid]
        print_json(with_moments([*(status.to_json() for status in statuses), *gone, *invalid]))
        return
    columns = ("JOB", "STATE", "WORKERS", "PARTITIONS", "EVENTS", "EVENTS/S", "LAG", "DEAD", "LOST", "MODEL")
    rows: list[tuple[Any, ...]] = []
    for s in statuses:
        model = f"{s.record.job.model.name} {', '.join(f'v{v}' for v in s.versions)}".strip()
        done = (int(s.totals["events"]), float(s.totals["rate"]), s.lag)
        bad = (int(s.totals["dead_letters"]), int(s.totals["lost"]))
        rows.append((s.record.name, s.state.value, s.workers, s.partitions, *done, *bad, model))
    rows += [(name, GONE, *[None] * 8) for name in flow.gone]
    rows += [(each.key, INVALID, *[None] * 8) for each in flow.invalid]
    print_table(columns, rows, empty="No jobs. `gridscore submit FILE` submits one.")
    for s in statuses:
        for problem in [s.record.error, *s.model_errors, *s.lookup_errors, *s.function_errors]:
            if problem:
                text = f"[yellow]{safe(s.record.name)}:[/] {safe(problem, layout=True)}"
                console.print(text)
    for name in flow.gone:
        found = orphaned(name)
        text = f"[red]{safe(name)}:[/] {safe(found.text)} {safe(found.advice)}"
        console.print(text)
    for each in flow.bad_records:
        console.print(f"[red]{safe(each)}.[/] {REPAIR}")
    _print_plugs(flow)


def _print_plugs(flow: Flow) -> None:
    if flow.sources:
        console.print()
        columns: tuple[str, ...] = ("SOURCE", "KIND", "MAP", "STATE", "PROCESSES", "EVENTS", "EVENTS/S", "DEAD")
        rows: list[tuple[Any, ...]] = []
        for s in flow.sources:
            what = (s.name, s.kind, s.map, s.state, len(s.processes))
            rows.append((*what, s.events, s.rate, s.dead_letters, one_line(s.waiting or s.error)))
        print_table((*columns, "WAITS FOR, LAST ERROR"), rows, empty="")
    if flow.sinks:
        console.print()
        columns = ("SINK", "KIND", "MAP", "STATE", "PROCESSES", "RESULTS", "RESULTS/S", "LAG", "DEAD", "LOST")
        rows = []
        for sink in flow.sinks:
            what = (sink.record.name, sink.record.kind, sink.record.map, sink.state, len(sink.processes))
            bad = (sink.dead_letters, sink.lost, one_line(sink.error))
            rows.append((*what, sink.delivered, sink.rate, sink.lag, *bad))
        print_table((*columns, "LAST ERROR"), rows, empty="")


def suspend(name: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """Stop scoring and keep the offsets.

    Example: [bold]gridscore suspend flights[/]
    """
    _move("suspend", name, connection, as_json=as_json)


def resume(name: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """Score again, from where the job stopped; also a job that FAILED, once it is fixed.

    Example: [bold]gridscore resume flights[/]
    """
    _move("resume", name, connection, as_json=as_json)


def cancel(name: JobName, *, connection: Connection, as_json: Json = False) -> None:
    """End a job for good. Its results stay; submitted again, it starts over.

    Example: [bold]gridscore cancel flights[/]
    """
    _move("cancel", name, connection, as_json=as_json)


def restart(
    name: JobName,
    *,
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="oldest, latest, committed, a time (2026-01-31T12:00:00Z), or how long ago (90s, 15m, 2h, 1d).",
        ),
    ] = "committed",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Restart a job from another place in the journal: score events again, or leave some out.

    Scoring again is safe: a result replaces the one before it, and listeners see it again. A suspended or FAILED job
    runs afterwards. A time means the first event that was scored then or later.

    Example: [bold]gridscore restart flights --from 2h[/]
    """
    from gridscore.job import Jobs
    from gridscore.operations.status import job_status

    place = _place(begin)

    async def main(grid: Grid) -> tuple[JobRecord, JobStatus]:
        jobs = Jobs(grid)
        before = await job_status(grid, await jobs.get(name))
        return await jobs.restart(name, place), before

    record, before = run_on(connection, main)
    figures = replay_figures(before, place)
    if as_json:
        print_json({**record.in_brief, "from": place, **figures})
        return
    _report(record, f"restarted from {safe(record.begin or place)}", as_json=False, changed=True)
    console.print(_what_happens(figures, exact=place in _PLACES))
    if not before.workers and not before.idle_workers:
        console.print("No worker is running; `gridscore worker` starts one.", style="yellow")


app.command("suspend")(suspend)
app.command("resume")(resume)
app.command("restart")(restart)
app.command("rollback")(rollback)
app.command("cancel")(cancel)

_PLACES = ("oldest", "latest", "committed")


def _place(text: str) -> str:
    """Where to begin; `2h` and `2h ago` as a time."""
    import datetime as dt
    import re

    from gridscore.errors import UsageError
    from gridscore.job.types import seconds_of
    from gridscore.texts import moment_text

    text = text.strip()
    if text in _PLACES:
        return text
    if found := re.fullmatch(r"([1-9][0-9]{0,8}[smhd])( ago)?", text):
        try:
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_of(found[1]))
        except OverflowError:
            raise UsageError(f"--from: `{text}` is before 1970.", "Say oldest.") from None
        return moment_text(moment)
    return text  # a time, or an error of the restart itself


def replay_figures(before: JobStatus, place: str) -> dict[str, int]:
    """How many events a restart reads, scores again and leaves out, by what the journal holds now.

    For a time they are upper limits: the journal knows no times.
    """
    unread = before.lag or 0
    if place == "latest":
        return {"to_read": 0, "scored_again": 0, "left_out": unread}
    if place == "committed":
        return {"to_read": unread, "scored_again": 0, "left_out": 0}
    held = sum(position.held for position in before.positions)
    return {"to_read": held, "scored_again": held - unread, "left_out": 0}


def _what_happens(figures: dict[str, int], *, exact: bool) -> str:
    about = "About" if exact else "At most"
    if figures["left_out"]:
        return f"About {figures['left_out']:,} events that nobody has read yet are left out."
    text = f"{about} {figures['to_read']:,} events are read from there"
    return f"{text}, {figures['scored_again']:,} of them scored before." if figures["scored_again"] else f"{text}."


def _move(verb: str, name: str, connection: Connection, *, as_json: bool) -> None:
    from gridscore.job import Jobs
    from gridscore.job.life import OVER, WANTED, JobState

    # A job that already is in the wanted state stays as it is.
    done, already, states = {
        "suspend": ("suspended", "is suspended already", {JobState.SUSPENDED}),
        "resume": ("resumed", "is not suspended", WANTED),
        "cancel": ("cancelled", "has ended already", OVER),
    }[verb]

    async def main(grid: Grid) -> tuple[JobRecord | None, bool]:
        before = await Jobs(grid).find_usable(name)
        return await getattr(Jobs(grid), verb)(name), before is None or before.state not in states

    record, changed = run_on(connection, main)
    if record is None:
        if as_json:
            print_json({"name": name, "state": None, "revision": None, "changed": True})
        else:
            text = f"The record of the job {safe(name)}, which could not be used, was removed; its offsets stay."
            console.print(text)
        return
    _report(record, done if changed else f"{already}, unchanged", as_json=as_json, changed=changed)


def _report(
    record: JobRecord,
    done: str,
    loaded: Loaded | None = None,
    *,
    as_json: bool,
    changed: bool = False,
    version: int | None = None,
    more: str = "",
) -> None:
    if as_json:
        value = {**record.in_brief, "changed": changed}
        value |= {} if loaded is None else {"loaded": dataclasses.asdict(loaded)}
        print_json(value if version is None else {**value, "version": version})
        return
    console.print(f"Job [bold]{safe(record.name)}[/] {done}: {record.state.value}, revision {record.revision}.{more}")
