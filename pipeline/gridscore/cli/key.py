"""`gridscore key`: keys of those who come by HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from gridscore.cli.options import App, Connection, Json, ask, run_on, valid
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.errors import UsageError
from gridscore.keys import Keys, Role

app = App(no_args_is_help=True)


@app.command()
def create(
    role: Annotated[list[Role], typer.Option(help="What it may do. Repeatable.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A job, map or model that it is for; else all. Repeatable.")
    ] = None,
    note: Annotated[str, typer.Option(help="Who has it, or what for.")] = "",
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is good for, as 90d; else for ever.")
    ] = None,
    rate: Annotated[
        str, typer.Option(metavar="N/s|N/m|N/h", help="Requests that each server answers; else any number.")
    ] = "",
    *,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Make a key, and print it. It is shown this once.

    Example: [bold]gridscore key create --role score --only card-fraud --expires 90d --note till[/]
    """
    from gridscore.job.types import Duration, MapName, seconds_of

    if len(note) > 200:
        raise UsageError("--note: 200 characters are possible.")
    if len(only or ()) > 100:
        raise UsageError("--only: 100 names are possible.")
    names = [valid(MapName, "--only", name) for name in only or ()]
    seconds = None if expires is None else seconds_of(valid(Duration, "--expires", expires))
    key, text = run_on(connection, lambda grid: Keys(grid).create(role, names, note=note, seconds=seconds, rate=rate))
    if as_json:
        print_json({**key.to_json(), "key": text})
    else:
        say(text, to=console)


@app.command("list")
def list_(*, connection: Connection, as_json: Json = False) -> None:
    """List the keys, without what makes them one.

    Example: [bold]gridscore key list --json[/]
    """
    found = ask(connection, lambda grid: Keys(grid).list())
    if as_json:
        print_json([key.to_json() for key in found])
        return
    rows = [
        (
            key.id,
            key.note,
            ", ".join(key.roles),
            ", ".join(key.only) or "all",
            key.rate,
            f"{key.created_at:%Y-%m-%d}",
            "expired" if key.has_expired else "" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}",
        )
        for key in found
    ]
    print_table(("ID", "NOTE", "ROLES", "ONLY", "RATE", "CREATED", "EXPIRES"), rows, empty="There are no keys.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as listed.", show_default=False)],
    *,
    connection: Connection,
) -> None:
    """Remove a key: servers refuse it within a second.

    Example: [bold]gridscore key revoke 5f3a9c0d1e2b[/]
    """
    run_on(connection, lambda grid: Keys(grid).revoke(name))
    say(f"The key {name} is revoked.", to=console)


@app.command()
def log(*, connection: Connection, as_json: Json = False) -> None:
    """Show what was done on the dashboard with which key, the latest first; the last 1,000 actions are kept.

    Example: [bold]gridscore key log --json[/]
    """
    from gridscore.operations.actions import ActionLog

    found = ask(connection, lambda grid: ActionLog(grid).list())
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    rows = [(each.at, each.by, each.verb, each.target, each.detail, each.why, each.outcome) for each in found]
    print_table(("AT", "KEY", "ACTION", "ON", "WHAT", "WHY", "OUTCOME"), rows, empty="Nothing was done yet.")
