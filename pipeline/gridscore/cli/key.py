"""`gridscore key`: keys of those who come by HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import App, Json, Reach, ask, run_on, valid
from gridscore.cli.output import console, print_json, print_table, say
from gridscore.errors import UsageError
from gridscore.keys import Keys, Role

if TYPE_CHECKING:
    from gridscore.grid import Grid

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
    connection: Reach,
    as_json: Json = False,
) -> None:
    """Make a key, and print it. It is shown this once.

    Example: [bold]gridscore key create --role score --only card-fraud --expires 90d --note till[/]
    """
    from gridscore.cli.remote import Verb
    from gridscore.job.types import Duration, MapName, seconds_of

    if len(note) > 200:
        raise UsageError("--note: 200 characters are possible.")
    if len(only or ()) > 100:
        raise UsageError("--only: 100 names are possible.")
    names = [valid(MapName, "--only", name) for name in only or ()]
    seconds = None if expires is None else seconds_of(valid(Duration, "--expires", expires))

    async def main(grid: Grid) -> dict[str, Any]:
        key, text = await Keys(grid).create(role, names, note=note, seconds=seconds, rate=rate)
        return {**key.to_json(), "key": text}

    given = {"roles": role, "only": names, "note": note, "expires": expires, "rate": rate}
    made = run_on(connection, main, by=Verb("POST", ("keys",), given))
    if as_json:
        print_json(made)
    else:
        say(made["key"], to=console)


@app.command("list")
def list_(*, connection: Reach, as_json: Json = False) -> None:
    """List the keys, without what makes them one.

    Example: [bold]gridscore key list --json[/]
    """
    from gridscore.cli.remote import Verb

    async def main(grid: Grid) -> list[dict[str, Any]]:
        return [key.to_json() for key in await Keys(grid).list()]

    found = ask(connection, main, by=Verb("GET", ("keys",)))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            key["id"],
            key["note"],
            ", ".join(key["roles"]),
            ", ".join(key["only"]) or "all",
            key["rate"],
            key["created_at"][:10],
            "expired" if key["expired"] else (key["expires_at"] or "")[:16].replace("T", " "),
        )
        for key in found
    ]
    print_table(("ID", "NOTE", "ROLES", "ONLY", "RATE", "CREATED", "EXPIRES"), rows, empty="There are no keys.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as listed.", show_default=False)],
    *,
    connection: Reach,
) -> None:
    """Remove a key: servers refuse it within a second.

    Example: [bold]gridscore key revoke 5f3a9c0d1e2b[/]
    """
    from gridscore.cli.remote import Verb

    run_on(connection, lambda grid: Keys(grid).revoke(name), by=Verb("DELETE", ("keys", name)))
    say(f"The key {name} is revoked.", to=console)


@app.command()
def log(*, connection: Reach, as_json: Json = False) -> None:
    """Show what was done on the dashboard with which key, the latest first; the last 1,000 actions are kept.

    Example: [bold]gridscore key log --json[/]
    """
    import msgspec

    from gridscore.cli.remote import Verb
    from gridscore.operations.actions import Action, ActionLog

    by = Verb("GET", ("log",), made=lambda answer: msgspec.convert(answer, list[Action]))
    found = ask(connection, lambda grid: ActionLog(grid).list(), by=by)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    rows = [(each.at, each.by, each.verb, each.target, each.detail, each.why, each.outcome) for each in found]
    print_table(("AT", "KEY", "ACTION", "ON", "WHAT", "WHY", "OUTCOME"), rows, empty="Nothing was done yet.")
