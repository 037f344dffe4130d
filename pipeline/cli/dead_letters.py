"""`gridscore dead-letters`: events that could not be scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pipeline.cli.options import ClusterName, Json, Members, SettingsFile, connected
from pipeline.cli.output import console, print_json, print_table, run, visible

if TYPE_CHECKING:
    from pipeline.worker.dead_letters import DeadLetter

app = typer.Typer(help="Events that could not be scored, each with its error and its bytes.", no_args_is_help=True)

JobName = Annotated[str, typer.Argument(help="Name of the job.", show_default=False)]


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
    """List the dead letters of a job, the latest first.

    Example: [bold]gridscore dead-letters list flights[/]
    """
    from pipeline.job import Jobs
    from pipeline.worker.dead_letters import list_letters

    async def main() -> tuple[int, list[DeadLetter]]:
        async with connected(members, cluster_name, settings) as grid:
            total, letters = await list_letters(grid, job, limit)
            if not letters:
                await Jobs(grid).get(job)  # a misspelt name is an error, not an empty list
            return total, letters

    total, letters = run(main())
    if as_json:
        print_json([_plain(dead) for dead in letters])
        return
    rows = [(dead.id, dead.key, dead.stage, dead.at, dead.error) for dead in letters]
    print_table(("ID", "KEY", "STAGE", "AT", "ERROR"), rows, empty=f"The job {job} has no dead letters.")
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
    for name in ("job", "map", "partition", "sequence", "key", "stage", "error", "at", "size"):
        console.print(f"[bold]{name:>10}[/]  ", end="")
        console.print(visible(getattr(dead, name)), markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{'raw':>10}[/]  ", end="")
    raw = dead.raw_bytes.decode(errors="backslashreplace")
    console.print(visible(raw, layout=True), markup=False, highlight=False, soft_wrap=True)


def _plain(dead: DeadLetter) -> dict[str, Any]:
    return {"id": dead.id, **msgspec.structs.asdict(dead), "text": dead.raw_bytes.decode(errors="backslashreplace")}
