"""`gridscore dead-letters`: what could not be scored, delivered, or taken as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import App, Connection, Json, ask, job_names, run_on, valid, working
from gridscore.cli.output import confirmed, console, print_json, print_table, progress_bar, run, say, visible

if TYPE_CHECKING:
    from gridscore.dead_letters.letters import Listed
    from gridscore.grid import Grid
    from gridscore.operations.removal import Choice, Removed
    from gridscore.operations.replay import Replayed
    from gridscore.scoring.superseded import By

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
    connection: Connection,
    as_json: Json = False,
) -> None:
    """List the dead letters of a job, a source or a sink, the latest first.

    Example: [bold]gridscore dead-letters list flights[/]
    """
    from gridscore.dead_letters.letters import Listed, get_letter, job_of, list_letters
    from gridscore.scoring.superseded import superseded

    async def main(grid: Grid) -> tuple[int, list[Listed], dict[str, By]]:
        record = await job_of(grid, job)
        last = Listed(before, await get_letter(grid, job, before)) if before else None
        total, letters = await list_letters(grid, job, limit, last)
        return total, letters, await superseded(grid, record.job, (each.dead for each in letters)) if record else {}

    total, letters, over = ask(connection, main)
    if as_json:
        print_json([each.to_json(over.get(each.dead.id, "")) for each in letters])
        return
    rows = []
    for letter_id, dead in letters:
        error = f"({over[dead.id].value}) {dead.error}" if dead.id in over else dead.error
        rows.append((letter_id, dead.key, dead.stage, dead.at, error))
    empty = f"{job} has no dead letters{f' before {before}' if before else ''}."
    print_table(("ID", "KEY", "STAGE", "AT", "ERROR"), rows, empty=empty)
    if len(letters) == limit and total > limit:
        text = f"{total:,} in all. Go on: --before {letters[-1].id}; or show more: --limit."
        console.print(text, style="dim")


@app.command()
def show(
    job: JobName,
    key: Annotated[str, typer.Argument(help="The dead letter's ID, as `list` shows it.", show_default=False)],
    *,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Show one dead letter: error, origin and the event's bytes.

    Example: [bold]gridscore dead-letters show flights 17-9af3c0015b2e77d0[/]
    """
    from gridscore.dead_letters.letters import Listed, get_letter

    dead = ask(connection, lambda grid: get_letter(grid, job, key))
    if as_json:
        print_json(Listed(key, dead).to_json())
        return
    names = ("partition", "sequence") if not dead.origin else ("origin",)
    for name in ("job", "map", *names, "key", "stage", "error", "at", "size"):
        console.print(f"[bold]{name:>10}[/]  ", end="")
        say(getattr(dead, name), to=console)
    console.print(f"[bold]{'raw':>10}[/]  ", end="")
    say(dead.raw_bytes.decode(errors="backslashreplace"), to=console, layout=True)


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
    connection: Connection,
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
    from gridscore.errors import UsageError
    from gridscore.operations.replay import letter_ids, summary
    from gridscore.operations.replay import replay as bring_back
    from gridscore.sinks.records import find_sink

    if everything == bool(ids):
        raise UsageError("Say which dead letters: their IDs, or --all.", f"`gridscore dead-letters list {job}`")

    async def main(grid: Grid) -> tuple[list[Replayed], bool]:
        wanted = await letter_ids(grid, job) if everything else list(dict.fromkeys(ids or ()))
        with progress_bar() as bar:
            task, done = bar.add_task("Putting events back", total=len(wanted)), []
            of_job = await find_sink(grid, job) is None
            async for each in bring_back(grid, job, wanted, force=force, of_job=of_job):
                done.append(each)
                bar.advance(task)
        return done, of_job

    done, of_job = run_on(connection, main)
    value = summary(done)
    refused, put = value["refused"], value["replayed"]
    if as_json:
        print_json(value)
    elif not done:
        say(f"{job} has no dead letters.", to=console)
    else:
        if refused:
            print_table(("ID", "KEY", "REFUSED BECAUSE"), [tuple(each.values()) for each in refused], empty="")
        what, where = ("events", "event map") if of_job else ("results", "result map")
        console.print(f"{put:,} of {len(done):,} {what} are in the {where} again.")
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
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Remove dead letters for good: all, or those that meet all conditions. A source or sink that paused goes on.

    The events of a job stay in its event map: a later audit finds that they have no result, and has them scored again.
    --with-events removes them, too, unless the map has newer ones.

    Example: [bold]gridscore dead-letters purge flights --older-than 7d[/]
    """
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
    if not dry_run and not yes:
        found = run(_remove(job, choice, connection, with_events=with_events, dry_run=True))
        events = ", and their events" if with_events else ""
        question = f"Remove {found.letters:,} dead letters of {visible(job)}{events}?"
        if found.letters and not confirmed(question, as_json=as_json):
            raise typer.Exit(1)
    _say(job, run(_remove(job, choice, connection, with_events=with_events, dry_run=dry_run)), dry_run, as_json)


@app.command()
def discard(
    job: JobName,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Dead letters, as `list` shows them.")],
    *,
    with_events: WithEvents = False,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Remove single dead letters for good. The exit code is 1 if one is not there.

    The events of a job stay in its event map, as with `purge`.

    Example: [bold]gridscore dead-letters discard flights 17-9af3c0015b2e77d0[/]
    """
    from gridscore.operations.removal import Choice

    choice = Choice(ids=frozenset(ids))
    found = run(_remove(job, choice, connection, with_events=with_events))
    _say(job, found, False, as_json)
    if found.left:
        raise typer.Exit(1)


async def _remove(
    name: str, choice: Choice, connection: Connection, *, with_events: bool, dry_run: bool = False
) -> Removed:
    from gridscore.dead_letters.letters import job_of, map_of
    from gridscore.errors import UsageError
    from gridscore.grid import transport
    from gridscore.operations.removal import Removed, remove

    async with working(connection) as grid:
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
        return done


def _say(job: str, found: Removed, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**found.to_json(), "dry_run": dry_run})
        return
    what = "would be removed" if dry_run else "removed"
    events = f", and {found.events:,} of their events" if found.events else ""
    say(f"{job}: {found.letters:,} dead letters {what}{events}.", to=console)
    for letter_id in sorted(found.left):
        text = f"{letter_id} was not removed: there is no such dead letter, or it is being put back just now."
        say(text, to=console)
