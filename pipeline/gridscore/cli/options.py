"""Options that commands share, and the connection made of them."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.output import errors, safe
from gridscore.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid, GridSettings

Members = Annotated[
    list[str] | None,
    typer.Option(
        "--members",
        "-m",
        metavar="HOST:PORT",
        help="A member of the cluster; repeat for several. Else GRIDSCORE_MEMBERS, the settings file, or the cluster "
        "that `gridscore up` runs on this machine.",
        rich_help_panel="Connection",
    ),
]
ClusterName = Annotated[
    str | None,
    typer.Option("--cluster-name", metavar="NAME", help="Name of the cluster.", rich_help_panel="Connection"),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="Settings file (TOML): members, TLS, credentials. Else GRIDSCORE_CONFIG or ./gridscore.toml.",
        rich_help_panel="Connection",
    ),
]
AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed-features",
        help="Accept features that a job defines otherwise than training did, under the same names.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def grid_settings(members: list[str] | None, cluster_name: str | None, file: Path | None) -> GridSettings:
    """Settings of a command: what it was given, or the cluster that `gridscore up` runs here if nothing says where.

    Raises:
        SettingsError: They are not valid.
    """
    from gridscore.grid import GridSettings, or_local_cluster
    from gridscore.grid.connection import DEFAULT_ADDRESS

    if file is not None:
        if not file.is_file():
            raise SettingsError(
                f"--settings: there is no file {file}",
                "Give the path of a TOML file, or leave it out: GRIDSCORE_CONFIG or ./gridscore.toml is read then.",
            )
        os.environ["GRIDSCORE_CONFIG"] = str(file)
    named = GridSettings.load(members=members, cluster_name=cluster_name)
    found = or_local_cluster(named)
    if not named.members:
        where = ", ".join(found.members) or DEFAULT_ADDRESS
        whose = "which runs on this machine" if found.members else "the default"
        errors.print(
            f"[dim]Cluster [bold]{safe(found.cluster_name)}[/] at {safe(where)}, {whose}[/]",
            highlight=False,
            soft_wrap=True,
        )
    return found


@asynccontextmanager
async def connected(members: list[str] | None, cluster_name: str | None, file: Path | None) -> AsyncIterator[Grid]:
    """A connection for the time of a command.

    Raises:
        ConnectionFailedError: No member answered, or the cluster refused this client.
    """
    from gridscore.grid import connect

    async with await connect(grid_settings(members, cluster_name, file)) as grid:
        yield grid


def valid(kind: Any, option: str, text: str) -> str:
    """The text of an option, if it is one of a kind.

    Raises:
        UsageError: It is not.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return str(TypeAdapter(kind).validate_python(text))
    except ValidationError as error:
        raise UsageError(f"{option}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
