"""`gridscore model export`, `import`, `pull` and `sample`: models and samples between files and the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import AllowChanged, Connection, Json, ModelName, Override, Why, run_on
from gridscore.cli.output import console, print_json, safe, say

if TYPE_CHECKING:
    from gridscore.models import ModelVersion

Version = Annotated[int | None, typer.Option("--version", help="The version; else the champion.", min=1)]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file, which must not be there.", show_default=False)]


def export(
    name: ModelName, *, output: Output, version: Version = None, connection: Connection, as_json: Json = False
) -> None:
    """Write a version with its tags, description, metrics and categories into a file for another cluster.

    Example: [bold]gridscore model export late --version 3 -o late.zip[/]
    """
    from gridscore.client import Client

    found = run_on(connection, lambda grid: Client(grid).export_model(name, output, version=version))
    _written(found, output, as_json=as_json)


def pull(
    name: ModelName, *, output: Output, version: Version = None, connection: Connection, as_json: Json = False
) -> None:
    """Write the model file of a version as it was pushed, for XGBoost.

    Example: [bold]gridscore model pull late -o late.ubj[/]
    """
    from gridscore.client import Client

    found = run_on(connection, lambda grid: Client(grid).pull_model(name, output, version=version))
    _written(found, output, as_json=as_json)


def _written(version: ModelVersion, output: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"output": str(output), **version.to_json()})
        return
    console.print(f"[bold green]{safe(output)}[/] holds version {version.version} of the model {safe(version.name)}.")


def import_(
    file: Annotated[Path, typer.Argument(help="What `gridscore model export` wrote.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Another name than it had.")] = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias at the version.")] = None,
    allow_changed_features: AllowChanged = False,
    why: Why = "",
    override: Override = "",
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Push what another cluster has exported, with every check of a push, as the next version of its model.

    Example: [bold]gridscore model import late.zip --alias challenger[/]
    """
    from gridscore.client import Client

    version, is_new = run_on(
        connection,
        lambda grid: Client(grid).import_model(
            file, name, alias=alias, allow_changed_features=allow_changed_features, why=why, override=override
        ),
    )
    if as_json:
        print_json({"new": is_new, "alias": alias, **version.to_json()})
        return
    what = f"is version {version.version}" if is_new else f"is there already, as version {version.version}"
    console.print(f"[bold green]{safe(file)}[/] {what} of the model {safe(version.name)}.")


def sample(
    name: ModelName,
    matrix: Annotated[Path, typer.Argument(help="What `gridscore features --keep LABEL` wrote.", show_default=False)],
    *,
    label: Annotated[str, typer.Option(help="The column with the labels: numbers.", show_default=False)],
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Keep a labelled sample in the cluster, by which gates judge versions; it replaces the one before.

    Example: [bold]gridscore model sample late check.parquet --label late[/]
    """
    from gridscore.client import Client

    rows = run_on(connection, lambda grid: Client(grid).store_sample(name, matrix, label))
    if as_json:
        print_json({"name": name, "rows": rows, "label": label})
        return
    say(f"Gates judge versions of the model {name} by {rows:,} rows of {matrix}.", to=console)
