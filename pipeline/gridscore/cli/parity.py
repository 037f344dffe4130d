"""`gridscore parity`: are live results what the same events give offline, bit for bit?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import AllowPython, Connection, JobName, Json, working
from gridscore.cli.output import console, counted, json_text, print_json, print_table, run, safe
from gridscore.cli.status import UNHEALTHY

if TYPE_CHECKING:
    from gridscore.operations.parity import Difference, Parity


def parity(
    job: JobName,
    *,
    events: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many of the newest events to compare.")
    ] = 20_000,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|ALIAS", help="The version whose results are compared.", show_default="the one that scores"
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0.0, max=3_600.0, metavar="SECONDS", help="How long to wait for events, where windows need it."
        ),
    ] = 10.0,
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Compare live results with what the same events give offline, bit for bit, and keep the certificate.

    Exit code 0: no difference; 10: a difference. `gridscore status` shows it, too, until a later comparison has none.

    Example: [bold]gridscore parity flights --events 50000[/]
    """
    from gridscore.models.certificates import keep
    from gridscore.operations.parity import parity as compare
    from gridscore.operations.subject import subject_of

    async def main() -> Parity:
        async with subject_of(lambda: working(connection), job, [model], None) as subject:
            with counted("comparing") as told:
                found = await compare(subject, events=events, wait=wait, on_progress=told)
            if found.judged and subject.grid is not None:
                await keep(subject.grid, found.certificate)
            return found

    found = run(main())
    if as_json:
        print_json({**dataclasses.asdict(found), "unjudged": dict(found.unjudged), "judged": found.judged})
    else:
        _print(found)
    if found.different:
        raise typer.Exit(UNHEALTHY)


def _print(found: Parity) -> None:
    what = f"{safe(found.job)}, {safe(found.model)} v{found.version}, revision {found.revision}"
    colour = "red" if found.different else "green" if found.equal else "yellow"
    console.print(f"[bold {colour}]{found.certificate.text}[/]: {what}.")
    for reason, count in found.unjudged.items():
        console.print(f"  not compared: {count:,}: {safe(reason)}")
    if found.features:
        rows = [(name, equal, judged) for name, (equal, judged) in found.features.items()]
        print_table(("FEATURE", "EQUAL", "OF"), rows, empty="")
    if found.first is not None:
        _print_difference("The first difference", found.first)
    if found.first_unclear is not None:
        _print_difference("The first that cannot be told, as a lookup may have changed since", found.first_unclear)


def _print_difference(title: str, difference: Difference) -> None:
    console.print(f"[bold]{title}[/]: {safe(difference)}")
    console.print(f"  {safe(difference.event)}")
    rows = [(name, json_text(live), json_text(offline)) for name, (live, offline) in difference.values.items()]
    print_table(("", "LIVE", "OFFLINE"), rows, empty="")
    if difference.features:
        texts = (f"{name} {json_text(value)}" for name, value in difference.features.items())
        console.print(f"  features offline: {safe(', '.join(texts))}")
