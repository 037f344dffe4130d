"""`gridscore dead-letters`: what could not be scored, delivered, or taken as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import App, Connection, Json, Reach, ask, job_names, run_on, valid
from gridscore.cli.output import confirmed, console, print_json, print_table, progress_bar, say, visible

if TYPE_CHECKING:
    from gridscore.cli.remote import Verb
    from gridscore.grid import Grid
    from gridscore.operations.removal import Choice

app = App(no_args_is_help=True)

JobName = Annotated[
    str, typer.Argument(help="Name of the job, source or sink.", autocompletion=job_names, show_default=False)
]
WithEvents = Annotated[bool, typer.Option("--with-events", help="Remove the events themselves, too; of a job.")]


@app.command("list")
def list_(
    job: JobName,
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many to show, latest first.")] = 20,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on after this ID, the last of the list before.")
    ] = None,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """List the dead letters of a job, a source or a sink, the latest first.

    Example: [bold]gridscore dead-letters list flights[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.dead_letters.letters import Listed, get_letter, job_of, list_letters
    from gridscore.scoring.superseded import superseded

    async def main(grid: Grid) -> dict[str, Any]:
        record = await job_of(grid, job)
        last = Listed(before, await get_letter(grid, job, before)) if before else None
        total, letters = await list_letters(grid, job, limit, last)
        over = await superseded(grid, record.job, (each.dead for each in letters)) if record else {}
        return {"total": total, "dead_letters": [each.to_json(over.get(each.dead.id, "")) for each in letters]}

    found = ask(connection, main, by=Verb("GET", ("dead-letters", job), query={"limit": limit, "before": before}))
    total, letters = found["total"], found["dead_letters"]
    if as_json:
        print_json(letters)
        return
    rows = []
    for each in letters:
        error = f"({each['superseded']}) {each['error']}" if each["superseded"] else each["error"]
        rows.append((each["id"], each["key"], each["stage"], each["at"], error))
    empty = f"{job} has no dead letters{f' before {before}' if before else ''}."
    print_table(("ID", "KEY", "STAGE", "AT", "ERROR"), rows, empty=empty)
    # A server may list fewer than asked for, though there are more.
    if letters and total > len(letters) and (len(letters) == limit or connection.by_server):
        text = f"{total:,} in all. Go on: --before {letters[-1]['id']}; or show more: --limit."
        console.print(text, style="dim")


@app.command()
def show(
    job: JobName,
    key: Annotated[str, typer.Argument(help="The dead letter's ID, as `list` shows it.", show_default=False)],
    *,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Show one dead letter: error, origin and the event's bytes.

    Example: [bold]gridscore dead-letters show flights 17-9af3c0015b2e77d0[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.dead_letters.letters import Listed, get_letter

    async def main(grid: Grid) -> dict[str, Any]:
        return Listed(key, await get_letter(grid, job, key)).to_json()

    dead = ask(connection, main, by=Verb("GET", ("dead-letters", job, key)))
    if as_json:
        print_json(dead)
        return
    names = ("partition", "sequence") if not dead["origin"] else ("origin",)
    for name in ("job", "map", *names, "key", "stage", "error", "at", "size"):
        console.print(f"[bold]{name:>10}[/]  ", end="")
        say(dead[name], to=console)
    console.print(f"[bold]{'raw':>10}[/]  ", end="")
    say(dead["text"], to=console, layout=True)


@app.command()
def replay(
    job: JobName,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Dead letters, as `list` shows them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of the job.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Put an event back even if its key has a newer one by now.")
    ] = False,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Put events back into the event map, under their own keys, once what was wrong is fixed.

    Dead letters of a sink are results: they go back into the result map, so that it delivers them again. Other sinks
    and listeners of that map see them again, too.

    Events of one key come back oldest first. A dead letter is removed once the cluster has confirmed its event; if that
    fails again, a new one is written. Refused, and kept, are dead letters that hold only part of a large event, that
    another process is putting back, or whose key has a newer event by now, unless --force is given. The exit code is 1
    if any was refused.

    Example: [bold]gridscore dead-letters replay flights --all[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.errors import UsageError
    from gridscore.operations.replay import letter_ids, summary
    from gridscore.operations.replay import replay as bring_back
    from gridscore.sinks.records import find_sink

    if everything == bool(ids):
        raise UsageError("Say which dead letters: their IDs, or --all.", f"`gridscore dead-letters list {job}`")

    async def main(grid: Grid) -> dict[str, Any]:
        wanted = await letter_ids(grid, job) if everything else list(dict.fromkeys(ids or ()))
        with progress_bar() as bar:
            task, done = bar.add_task("Putting events back", total=len(wanted)), []
            of_job = await find_sink(grid, job) is None
            async for each in bring_back(grid, job, wanted, force=force, of_job=of_job):
                done.append(each)
                bar.advance(task)
        return summary(done, of_job=of_job)

    asked = {"ids": list(dict.fromkeys(ids or ())), "all": everything, "force": force}
    value = run_on(connection, main, by=Verb("POST", ("dead-letters", job, "replay"), asked))
    refused, put = value["refused"], value["replayed"]
    if as_json:
        print_json(value)
    elif not (refused or put):
        say(f"{job} has no dead letters.", to=console)
    else:
        if refused:
            print_table(("ID", "KEY", "REFUSED BECAUSE"), [tuple(each.values()) for each in refused], empty="")
        what = value["what"]
        console.print(f"{put:,} of {put + len(refused):,} {what} are in the {what.removesuffix('s')} map again.")
    if refused:
        raise typer.Exit(1)


@app.command()
def purge(
    job: JobName,
    *,
    older_than: Annotated[str | None, typer.Option(metavar="TIME", help="Only older ones, such as 7d.")] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Only those whose error has this text.")] = "",
    over: Annotated[
        bool, typer.Option("--superseded", help="Only those whose event, or a newer one of its key, is scored.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    with_events: WithEvents = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Remove dead letters for good: all, or those that meet all conditions. A source or sink that paused goes on.

    The events of a job stay in its event map: a later audit finds that they have no result, and has them scored again.
    --with-events removes them, too, unless the map has newer ones.

    Example: [bold]gridscore dead-letters purge flights --older-than 7d[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.errors import UsageError
    from gridscore.job.types import Duration, seconds_of
    from gridscore.operations.removal import Choice

    if everything == bool(older_than or reason or over):
        raise UsageError(
            "Say which dead letters: --all, or some of --older-than, --reason and --superseded.",
            f"`gridscore dead-letters list {job}`",
        )
    seconds = seconds_of(valid(Duration, "--older-than", older_than)) if older_than else None
    choice = Choice(seconds, reason, over)
    asked = {"all": everything, "older_than": older_than, "reason": reason, "superseded": over}

    def remove(*, dry_run: bool) -> dict[str, Any]:
        verb = Verb("POST", ("dead-letters", job, "purge"), {**asked, "with_events": with_events, "dry_run": dry_run})
        return _remove(job, choice, connection, verb, with_events=with_events, dry_run=dry_run)

    if not dry_run and not yes:
        found = remove(dry_run=True)
        events = ", and their events" if with_events else ""
        question = f"Remove {found['removed']:,} dead letters of {visible(job)}{events}?"
        if found["removed"] and not confirmed(question, as_json=as_json):
            raise typer.Exit(1)
    _say(job, remove(dry_run=dry_run), dry_run, as_json)


@app.command()
def discard(
    job: JobName,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Dead letters, as `list` shows them.")],
    *,
    with_events: WithEvents = False,
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Remove single dead letters for good. The exit code is 1 if one is not there.

    The events of a job stay in its event map, as with `purge`.

    Example: [bold]gridscore dead-letters discard flights 17-9af3c0015b2e77d0[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.operations.removal import Choice

    choice = Choice(ids=frozenset(ids))
    verb = Verb("POST", ("dead-letters", job, "discard"), {"ids": sorted(choice.ids), "with_events": with_events})
    found = _remove(job, choice, connection, verb, with_events=with_events)
    _say(job, found, False, as_json)
    if found.get("not_removed"):
        raise typer.Exit(1)


def _remove(
    name: str, choice: Choice, connection: Connection, verb: Verb, *, with_events: bool, dry_run: bool = False
) -> dict[str, Any]:
    from gridscore.dead_letters.letters import job_of, map_of
    from gridscore.errors import UsageError
    from gridscore.grid import transport
    from gridscore.operations.removal import Removed, remove

    async def main(grid: Grid) -> dict[str, Any]:
        record = await job_of(grid, name)
        if record is None and (with_events or choice.superseded):
            option = "--with-events" if with_events else "--superseded"
            raise UsageError(f"{option} only applies to a job, and `{name}` is not a job.", "Leave it out.")
        total = len(choice.ids) or await transport.map_size(grid.client, map_of(name))
        done = Removed()
        with progress_bar() as bar:
            task = bar.add_task("Looking through", total=total)
            job = record.job if record else None
            async for done in remove(grid, name, choice, job=job, with_events=with_events, dry_run=dry_run):
                bar.update(task, completed=done.looked)
        return done.to_json()

    return run_on(connection, main, by=verb)


def _say(job: str, found: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**found, "dry_run": dry_run})
        return
    what = "would be removed" if dry_run else "removed"
    events = f", and {found['events_removed']:,} of their events" if found["events_removed"] else ""
    say(f"{job}: {found['removed']:,} dead letters {what}{events}.", to=console)
    for letter_id in found.get("not_removed", ()):
        text = f"{letter_id} was not removed: there is no such dead letter, or it is being put back just now."
        say(text, to=console)
