"""`gridscore dead-letters`: what could not be scored or delivered, and what sources read that is no event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, errors, print_json, print_table, run, visible

if TYPE_CHECKING:
    from pipeline.worker.dead_letters import DeadLetter
    from pipeline.worker.replay import Replayed

app = typer.Typer(help="Events that could not be scored, each with its error and its bytes.", no_args_is_help=True)

JobName = Annotated[str, typer.Argument(help="Name of the job, source or sink.", show_default=False)]


@app.command("list")
def list_(
    job: JobName,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Show at most so many, latest first.")] = 20,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """List the dead letters of a job, a source or a sink, the latest first.

    Example: [bold]gridscore dead-letters list flights[/]
    """
    from pipeline.job import Jobs
    from pipeline.sinks.records import find_sink
    from pipeline.sources.status import is_known
    from pipeline.worker.dead_letters import list_letters

    async def main() -> tuple[int, list[DeadLetter]]:
        async with connected(members, cluster_name, settings) as grid:
            total, letters = await list_letters(grid, job, limit)
            if not letters and not await is_known(grid, job) and await find_sink(grid, job) is None:
                await Jobs(grid).get(job)  # a misspelt name is an error, not an empty list
            return total, letters

    total, letters = run(main())
    if as_json:
        print_json([_plain(dead) for dead in letters])
        return
    rows = [(dead.id, dead.key, dead.stage, dead.at, dead.error) for dead in letters]
    print_table(("ID", "KEY", "STAGE", "AT", "ERROR"), rows, empty=f"{job} has no dead letters.")
    if total > len(letters):
        console.print(f"… and {total - len(letters):,} more (--limit).", style="dim")


@app.command()
def show(
    job: JobName,
    key: Annotated[str, typer.Argument(help="The dead letter's ID, as `list` shows it.", show_default=False)],
    *,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter: error, origin and the event's bytes.

    Example: [bold]gridscore dead-letters show flights 17-4-9af3c001[/]
    """
    from pipeline.worker.dead_letters import get_letter

    async def main() -> DeadLetter:
        async with connected(members, cluster_name, settings) as grid:
            return await get_letter(grid, job, key)

    dead = run(main())
    if as_json:
        print_json(_plain(dead))
        return
    names = ("partition", "sequence") if not dead.origin else ("origin",)
    for name in ("job", "map", *names, "key", "stage", "error", "at", "size"):
        console.print(f"[bold]{name:>10}[/]  ", end="")
        console.print(visible(getattr(dead, name)), markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{'raw':>10}[/]  ", end="")
    raw = dead.raw_bytes.decode(errors="backslashreplace")
    console.print(visible(raw, layout=True), markup=False, highlight=False, soft_wrap=True)


@app.command()
def replay(
    job: JobName,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Dead letters, as `list` shows them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of the job.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Put an event back even if a newer one has its key meanwhile.")
    ] = False,
    members: Members = None,
    cluster_name: ClusterName = None,
    settings: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Put events back into the event map, under their own keys, to be scored once their cause is mended.

    Those of a sink are results: they are put back into the result map, so that it delivers them again. Other sinks and
    the listeners of that map get them once more, too.

    A dead letter is removed when the cluster has confirmed its event. One that fails again makes a new dead letter.
    Refused, and left as they are: dead letters that hold only a part of a large event, and those whose key has a newer
    event meanwhile, unless --force is given. The exit code is 1 if any was refused.

    Example: [bold]gridscore dead-letters replay flights --all[/]
    """
    from pipeline.errors import UsageError
    from pipeline.sinks.records import find_sink
    from pipeline.worker.replay import letter_ids
    from pipeline.worker.replay import replay as bring_back

    if everything == bool(ids):
        raise UsageError("Say which dead letters: their IDs, or --all.", f"`gridscore dead-letters list {job}`")

    async def main() -> list[Replayed]:
        async with connected(members, cluster_name, settings) as grid:
            wanted = await letter_ids(grid, job) if everything else list(dict.fromkeys(ids or ()))
            columns = (TextColumn("Putting events back"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
                task, done = bar.add_task("", total=len(wanted)), []
                of_job = await find_sink(grid, job) is None
                async for each in bring_back(grid, job, wanted, force=force, of_job=of_job):
                    done.append(each)
                    bar.advance(task)
            return done

    done = run(main())
    refused = sorted((each for each in done if each.refusal), key=lambda each: each.id)
    if as_json:
        plain = [{"id": each.id, "key": each.key, "reason": each.refusal} for each in refused]
        print_json({"replayed": len(done) - len(refused), "refused": plain})
    elif not done:
        console.print(f"{visible(job)} has no dead letters.", markup=False, highlight=False)
    else:
        if refused:
            print_table(("ID", "KEY", "REFUSED BECAUSE"), [(r.id, r.key, r.refusal) for r in refused], empty="")
        put = len(done) - len(refused)
        console.print(f"{put:,} of {len(done):,} events are in the event map again.", highlight=False)
    if refused:
        raise typer.Exit(1)


def _plain(dead: DeadLetter) -> dict[str, Any]:
    return {"id": dead.id, **msgspec.structs.asdict(dead), "text": dead.raw_bytes.decode(errors="backslashreplace")}
