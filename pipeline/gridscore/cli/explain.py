"""`gridscore explain`: why a result is what it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from gridscore.cli.options import Connection, JobName, Json, ask
from gridscore.cli.output import (
    console,
    json_text,
    lookup_texts,
    print_json,
    print_table,
    print_warnings,
    safe,
    shorten,
    value_text,
    values_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.operations.explain import Explanation

_BAR = 20  # characters of the longest bar
_LONGEST = 2_000  # characters of a line; `--json` has all


def explain(
    job: JobName,
    key: Annotated[str, typer.Argument(help="The event's key.", show_default=False)],
    *,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Features with the largest contributions.")] = 10,
    output: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Of a model with several. Else the one that the result names."),
    ] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Explain a result: its event, lookups and features, and what each feature adds to the score.

    The contributions are SHAP values: with the base value they sum to the margin, the score before its last function.

    Example: [bold]gridscore explain flights "UA 1"[/]
    """
    from gridscore.operations.explain import explain as explained

    found = ask(connection, lambda grid: explained(grid, job, key, output=output), times=math.inf)
    if as_json:
        print_json({"job": job, "key": key, **found.to_json()})
        return
    result = found.result
    what = "" if result.get("decision") is None else f": [bold]{safe(str(result['decision']))}[/]"
    console.print(
        f"[bold]{safe(shorten(key, 100))}[/] has the score {json_text(result.get('score'))}{what}, by "
        f"{safe(result.get('model'))} v{result['version']}, revision {result.get('revision')} of the job.",
        highlight=False,
        soft_wrap=True,
    )
    for name, text in _lines(found):
        console.print(f"  {name:<9} {safe(shorten(text, _LONGEST))}", highlight=False, soft_wrap=True)
    if found.margin is not None:
        about = "" if found.output is None else f" of the class {found.output}"
        print_table(("FEATURE", "VALUE", "ADDS", ""), _rows(found, top), empty="")
        console.print(
            f"With the base value {found.base:.4g}, the margin{about} is {found.margin:.4g}.", highlight=False
        )
    print_warnings(found.notes)


def _lines(found: Explanation) -> Iterator[tuple[str, str]]:
    if found.event is not None:
        yield "event", values_text(found.event)
    for text in lookup_texts(found.lookups):
        yield "looked up", text


def _rows(found: Explanation, top: int) -> Iterator[tuple[str, str, str, str]]:
    ranked = sorted(found.contributions.items(), key=lambda each: -abs(each[1]))
    largest = max((abs(adds) for _, adds in ranked), default=0.0) or 1.0
    for name, adds in ranked[:top]:
        bar = ("+" if adds > 0 else "-") * round(_BAR * abs(adds) / largest)
        yield name, value_text(found.features[name]), f"{adds:+.4g}", bar
    if rest := ranked[top:]:
        yield f"{len(rest)} others", "", f"{sum(adds for _, adds in rest):+.4g}", ""
