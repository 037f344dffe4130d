"""`gridscore scale`, `logs` and `down`: what `gridscore up --docker` started, and workers beside it, as containers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import ClusterName, Connection, JobName, ask, grid_settings
from gridscore.cli.output import console, errors, safe, say
from gridscore.errors import UsageError
from gridscore.texts import count_text

if TYPE_CHECKING:
    from gridscore.containers import Containers

Image = Annotated[str, typer.Option("--image", help="Our image; `make image` builds it.")]


def scale(
    job: JobName,
    what: Annotated[str, typer.Argument(metavar="worker=N", help="How many workers.", show_default=False)],
    *,
    image: Image = "gridscore",
    connection: Connection,
) -> None:
    """Run that many workers of a job, as containers on this machine; surplus workers leave in order.

    Example: [bold]gridscore scale flights worker=4[/]
    """
    from gridscore.containers import Containers
    from gridscore.job import Jobs

    if not (match := re.fullmatch(r"worker=(\d{1,3})", what)):
        raise UsageError(f"`{what}` does not say how many workers.", "Write it as worker=4.")

    ask(connection, lambda grid: Jobs(grid).get(job))
    where = grid_settings(connection)
    containers, count = Containers(where.cluster_name), int(match[1])
    containers.scale(job, count, where, image, say)
    containers.await_workers(job)
    console.print(
        f"{count_text(count, 'worker')} of {safe(job)} {'runs in a container' if count == 1 else 'run in containers'}."
    )


def _containers(cluster_name: str | None) -> Containers:
    from gridscore.containers import Containers
    from gridscore.grid import GridSettings

    return Containers(GridSettings.load(cluster_name=cluster_name).cluster_name)


def logs(
    *,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, max=100_000, help="Lines of each log.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, until Ctrl-C.")] = False,
    cluster_name: ClusterName = None,
) -> None:
    """Show the last lines of each container's log.

    Example: [bold]gridscore logs --follow[/]
    """

    def show(name: str, line: str) -> None:
        say(f"{name} | {line}", to=console)

    if not _containers(cluster_name).logs(show, tail=tail, follow=follow):
        errors.print("There are no containers of this cluster.")


def down(*, cluster_name: ClusterName = None) -> None:
    """Stop and remove the containers of a cluster: its workers first, then its members with their data.

    Example: [bold]gridscore down[/]
    """
    count = _containers(cluster_name).down()
    errors.print(f"{count_text(count, 'container')} removed." if count else "There were no containers of this cluster.")
