"""`gridscore submit`, `jobs`, `suspend`, `resume`, `restart`, `cancel`: the life of jobs in a cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowChanged, App, JobName, Json, Override, Reach, Why, ask, run_on
from gridscore.cli.output import console, one_line, print_json, print_table, print_warnings, safe
from gridscore.cli.state import fill, moment_of, told_of
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from gridscore.cli.options import Connection
    from gridscore.client import Client
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
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
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Submit a job file to the cluster; any worker picks it up.

    Job and model go live together: no event is scored by one without the other.

    Example: [bold]gridscore submit jobs/flights/job.yaml --update --model model.ubj[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client
    from gridscore.job import JobState, load_job
    from gridscore.job.life import OVER
    from gridscore.models.fit import fit_warnings
    from gridscore.operations.window_load import check_history
    from gridscore.scoring.preparation import warnings
    from gridscore.scoring.window_states import how_to_fill

    job = load_job(file)
    if connection.by_server and model is None and history is None and until is None:
        given = {"job": job.to_json(), "update": update, "version": version, "suspended": suspended, "prepare": prepare}
        given |= {"allow_changed_features": allow_changed_features, "why": why, "override": override}
        answer = run_on(connection, _nothing, by=Verb("PUT", ("jobs", job.name), given))
        print_warnings(answer.pop("warnings"))
        done, scores = "is submitted already, unchanged", "It goes on."
        if answer["changed"]:
            done, scores = "submitted", "Workers pick it up within a second: `gridscore jobs`."
        _report(answer, done, as_json=as_json, more=when_it_scores(answer, scores))
        return
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
        more = live + filled + (when_it_scores(record.in_brief, "It goes on.") if filled else "")
        value = {**record.in_brief, "changed": False, **_loaded(loaded), "version": number}
        _report(value, "is submitted already, unchanged", as_json=as_json, more=more)
    else:
        more = f" with version {number} of the model {safe(job.model.name)}" if record.release else ""
        more = when_it_scores(record.in_brief, f"Workers pick it up{more} within a second: `gridscore jobs`.")
        if loaded is None and record.job.used_windows and (before is None or before.state in OVER):
            more += f"\nIts windows begin empty. {safe(how_to_fill(record.name, is_suspended=is_suspended))}"
        if record.previous is not None:
            more += f"\nUndo it: `gridscore rollback {safe(record.name)}`."
        value = {**record.in_brief, "changed": True, **_loaded(loaded), "version": number}
        _report(value, "submitted", as_json=as_json, more=filled + more)


async def _nothing(_grid: Grid) -> Any:
    """The work of what a server does."""


def _loaded(loaded: Loaded | None) -> dict[str, Any]:
    return {} if loaded is None else {"loaded": dataclasses.asdict(loaded)}


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


def rollback(name: JobName, *, why: Why = "", connection: Reach, as_json: Json = False) -> None:
    """Undo the last update of a job, and the version of the model that went live with it, in one step.

    A second rollback undoes the first. A FAILED job runs again; a suspended one stays suspended.

    Example: [bold]gridscore rollback flights[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.client import Client

    async def main(grid: Grid) -> dict[str, Any]:
        client = Client(grid)
        record = await client.rollback(name, why=why)
        version = await client.version_of(record.job, record.release)
        return {**record.in_brief, "changed": True, "version": version.version, "model": version.name}

    value = run_on(connection, main, by=Verb("POST", ("jobs", name, "rollback"), {"why": why}))
    version = "the version of before" if value["version"] is None else f"version {value['version']}"
    text = f"It scores with {version} of the model {safe(value['model'] or 'it had')} within a second."
    more = when_it_scores(value, text)
    _report(value, "is as it was before its last update", as_json=as_json, more=more)


def when_it_scores(job: dict[str, Any], text: str) -> str:
    """A line that says when a changed job scores: as `text` says, or not before it is resumed."""
    from gridscore.job import JobState

    if job["state"] == JobState.SUSPENDED:
        return f"\nIt is suspended: `gridscore resume {safe(job['name'])}` starts it."
    return f"\n{text}"


app = App(invoke_without_command=True)


@app.callback()
def jobs(context: typer.Context, *, connection: Reach, as_json: Json = False) -> None:
    """List the jobs of the cluster: state, lag, rate, model version, losses; and sources and sinks, if there are any.

    Example: [bold]gridscore jobs --json[/]
    """
    if context.invoked_subcommand is not None:
        return
    from gridscore.cli.remote import Verb
    from gridscore.errors import BadRecord
    from gridscore.operations.flow import GONE, REPAIR, FlowObserver, jobs_json, orphaned

    async def main(grid: Grid) -> Any:
        flow = await FlowObserver(grid).look()
        if as_json:
            return jobs_json(flow)
        plugs = {"sources": [each.to_json() for each in flow.sources], "sinks": [each.to_json() for each in flow.sinks]}
        bad = [each.to_json() for each in flow.bad_records]
        return {"jobs": jobs_json(flow), **plugs, "bad_records": bad}

    value = ask(connection, main, by=Verb("GET", ("jobs" if as_json else "status",)))
    if as_json:
        print_json(value)
        return
    columns = ("JOB", "STATE", "WORKERS", "PARTITIONS", "EVENTS", "EVENTS/S", "LAG", "DEAD", "LOST", "MODEL")
    rows: list[tuple[Any, ...]] = []
    for s in value["jobs"]:
        if "model" not in s:  # nothing is known of it but its name
            rows.append((s["name"], s["state"], *[None] * 8))
            continue
        model = f"{s['model']} {', '.join(f'v{v}' for v in s['model_versions'])}".strip()
        done = (int(s["events"]), float(s["rate"]), s["lag"])
        bad = (int(s["dead_letters"]), int(s["lost"]))
        rows.append((s["name"], s["state"], s["workers"], s["partitions"], *done, *bad, model))
    print_table(columns, rows, empty="No jobs. `gridscore submit FILE` submits one.")
    for s in value["jobs"]:
        errors = [s["error"], *s["model_errors"], *s["lookup_errors"], *s["function_errors"]] if "model" in s else ()
        for problem in errors:
            if problem:
                text = f"[yellow]{safe(s['name'])}:[/] {safe(problem, layout=True)}"
                console.print(text)
    for s in value["jobs"]:
        if s["state"] == GONE:
            found = orphaned(s["name"])
            text = f"[red]{safe(s['name'])}:[/] {safe(found.text)} {safe(found.advice)}"
            console.print(text)
    for each in value["bad_records"]:
        console.print(f"[red]{safe(BadRecord(each['map'], each['key'], each['reason'], b'', b''))}.[/] {REPAIR}")
    print_plugs(value["sources"], value["sinks"])


def print_plugs(sources: list[dict[str, Any]], sinks: list[dict[str, Any]]) -> None:
    """Print tables of sources and sinks, if there are any."""
    if sources:
        console.print()
        columns: tuple[str, ...] = ("SOURCE", "KIND", "MAP", "STATE", "PROCESSES", "EVENTS", "EVENTS/S", "DEAD")
        rows: list[tuple[Any, ...]] = []
        for s in sources:
            what = (s["name"], s["kind"], s["map"], s["state"], len(s["processes"]))
            rows.append((*what, s["events"], s["rate"], s["dead_letters"], one_line(s["waiting"] or s["error"])))
        print_table((*columns, "WAITS FOR, LAST ERROR"), rows, empty="")
    if sinks:
        console.print()
        columns = ("SINK", "KIND", "MAP", "STATE", "PROCESSES", "RESULTS", "RESULTS/S", "LAG", "DEAD", "LOST")
        rows = []
        for s in sinks:
            what = (s["name"], s["kind"], s["map"], s["state"], len(s["processes"]))
            bad = (s["dead_letters"], s["lost"], one_line(s["error"]))
            rows.append((*what, s["delivered"], s["rate"], s["lag"], *bad))
        print_table((*columns, "LAST ERROR"), rows, empty="")


def suspend(name: JobName, *, connection: Reach, as_json: Json = False) -> None:
    """Stop scoring and keep the offsets.

    Example: [bold]gridscore suspend flights[/]
    """
    _move("suspend", name, connection, as_json=as_json)


def resume(name: JobName, *, connection: Reach, as_json: Json = False) -> None:
    """Score again, from where the job stopped; also a job that FAILED, once it is fixed.

    Example: [bold]gridscore resume flights[/]
    """
    _move("resume", name, connection, as_json=as_json)


def cancel(name: JobName, *, connection: Reach, as_json: Json = False) -> None:
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
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Restart a job from another place in the journal: score events again, or leave some out.

    Scoring again is safe: a result replaces the one before it, and listeners see it again. A suspended or FAILED job
    runs afterwards. A time means the first event that was scored then or later.

    Example: [bold]gridscore restart flights --from 2h[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.operations.status import restarted

    place = _place(begin)
    value = run_on(
        connection,
        lambda grid: restarted(grid, name, place),
        by=Verb("POST", ("jobs", name, "restart"), {"begin": place}),
    )
    workers = value.pop("workers")
    if as_json:
        print_json(value)
        return
    _report(value, f"restarted from {safe(value['from'])}", as_json=False)
    console.print(_what_happens(value, exact=place in _PLACES))
    if not workers:
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


def _what_happens(figures: dict[str, int], *, exact: bool) -> str:
    about = "About" if exact else "At most"
    if figures["left_out"]:
        return f"About {figures['left_out']:,} events that nobody has read yet are left out."
    text = f"{about} {figures['to_read']:,} events are read from there"
    return f"{text}, {figures['scored_again']:,} of them scored before." if figures["scored_again"] else f"{text}."


def _move(verb: str, name: str, connection: Connection, *, as_json: bool) -> None:
    from gridscore.cli.remote import Verb
    from gridscore.job import Jobs
    from gridscore.job.life import OVER, WANTED, JobState

    # A job that already is in the wanted state stays as it is.
    done, already, states = {
        "suspend": ("suspended", "is suspended already", {JobState.SUSPENDED}),
        "resume": ("resumed", "is not suspended", WANTED),
        "cancel": ("cancelled", "has ended already", OVER),
    }[verb]

    async def main(grid: Grid) -> dict[str, Any]:
        before = await Jobs(grid).find_usable(name)
        record = await getattr(Jobs(grid), verb)(name)
        if record is None:
            return {"name": name, "state": None, "revision": None, "changed": True}
        return {**record.in_brief, "changed": before is None or before.state not in states}

    value = run_on(connection, main, by=Verb("POST", ("jobs", name, verb), {}))
    if value["state"] is None and not as_json:
        text = f"The record of the job {safe(name)}, which could not be used, was removed; its offsets stay."
        console.print(text)
        return
    _report(value, done if value["changed"] else f"{already}, unchanged", as_json=as_json)


def _report(value: dict[str, Any], done: str, *, as_json: bool, more: str = "") -> None:
    """Print what a job is now."""
    if as_json:
        print_json(value)
        return
    name, state, revision = safe(value["name"]), value["state"], value["revision"]
    console.print(f"Job [bold]{name}[/] {done}: {state}, revision {revision}.{more}")
