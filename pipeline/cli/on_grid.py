"""Sources that the cluster itself runs: their SQL, printed or executed, and their end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import connected
from pipeline.cli.output import console, run, visible
from pipeline.cli.plug_run import say
from pipeline.errors import UsageError
from pipeline.sources.registry import name_of

if TYPE_CHECKING:
    from pipeline.job.plugs.kafka_source import KafkaSourceSettings

KINDS_ON_GRID = {"kafka"}
_PANEL = "On the grid"
ON_GRID: dict[str, Any] = {
    "on_grid": Annotated[
        bool,
        typer.Option(
            "--on-grid",
            help="Run nothing here: print the SQL by which the cluster's own engine does it.",
            rich_help_panel=_PANEL,
        ),
    ],
    "submit": Annotated[
        bool,
        typer.Option("--submit", help="With --on-grid: execute it, and see that it runs.", rich_help_panel=_PANEL),
    ],
}
"""Options of kinds that the cluster can run itself."""


def place(settings: KafkaSourceSettings, connection: tuple[Any, Any, Any], *, on_grid: bool, submit: bool) -> None:
    """Print the statements that make the cluster run a source, or execute them.

    Raises:
        GridscoreError: The cluster cannot, or does not.
    """
    from pipeline.grid.engine import identifier
    from pipeline.sources import kafka_on_grid

    if not on_grid:
        raise UsageError("--submit goes with --on-grid.")
    name = name_of(settings)
    if not submit:
        text = ";\n\n".join(kafka_on_grid.statements(settings, name)) + ";"
        sys.stdout.write(visible(text, layout=True) + "\n")
        say("Nothing was executed. --submit does it, and sees that it runs.")
        return

    async def main() -> str:
        async with connected(*connection) as grid:
            return await kafka_on_grid.submit(grid, settings, name)

    note = run(main())
    _print(f"{name} runs on the grid: topic {settings.topic} to {settings.to}.")
    _print(f"See it: gridscore source list. End it: gridscore source drop {name}")
    _print(f"By SQL: DROP JOB {identifier(kafka_on_grid.job_of(name))}")
    if note:
        say(note)


def drop_from_grid(name: str, connection: tuple[Any, Any, Any]) -> None:
    """Drop a source that the cluster runs.

    Raises:
        UsageError: There is none of that name.
        GridscoreError: The cluster does not do it.
    """
    from pipeline.sources import kafka_on_grid

    async def main() -> bool:
        async with connected(*connection) as grid:
            return await kafka_on_grid.drop(grid, name)

    if not run(main()):
        raise UsageError(f"There is no source `{name}` on the grid.", "See: gridscore source list")
    _print(f"{name}: dropped.")


def _print(text: str) -> None:
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
