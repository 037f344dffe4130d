"""`gridscore model report`: how the scores of a job turned out."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.backtest import check_page, tables_of
from gridscore.cli.options import Connection, JobName, Json, run_on, valid
from gridscore.cli.output import console, counted, print_json, print_table, safe, say

if TYPE_CHECKING:
    from gridscore.grid import Grid


def report(
    job: JobName,
    *,
    last: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only results no older than this, as 7d. Else all.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Compare the results of a job with the labels that have come since, version by version.

    Example: [bold]gridscore model report flights --last 7d --html report.html[/]
    """
    from gridscore.job.types import Duration, seconds_of
    from gridscore.operations.backtest_page import page_of
    from gridscore.operations.model_report import model_report

    seconds = None if last is None else seconds_of(valid(Duration, "--last", last))
    check_page(html)

    async def main(grid: Grid) -> dict[str, Any]:
        with counted("reading") as told:
            return await model_report(grid, job, last=seconds, on_progress=told)

    found = run_on(connection, main)
    fields = ("name", "scored", "labels", "unlabelled", "label_mean", "from", "to")
    rows = [tuple(each[field] for field in fields) for each in found["versions"]]
    tables = [
        ("Versions", ("VERSION", "RESULTS", "LABELS", "WITHOUT", "MEAN LABEL", "FROM", "TO"), rows),
        *tables_of(found),
    ]
    about = _about(found)
    if html is not None:
        names = [each["name"].replace("$", r"\$") for each in found["versions"]]  # which would be mathematics
        page = page_of(f"Report of {found['job']}", about, found["versions"], names, tables)
        html.write_text(page, encoding="utf-8")
    if as_json:
        print_json(found)
        return
    say(about, to=console)
    for title, columns, lines in tables:
        console.print(f"\n[bold]{safe(title)}[/]")
        print_table(columns, lines, empty="There are no results.")
    if html is not None:
        console.print(f"[bold green]{safe(html)}[/] is written.")


def _about(found: dict[str, Any]) -> str:
    labelled = sum(each["labels"] for each in found["versions"])
    text = f"{found['job']}: {found['results']:,} results, {labelled:,} with a label in {found['labels_map']}."
    if found["labels_without_result"]:
        text += f" {found['labels_without_result']:,} labels have no result: not scored yet, or not kept (`retain`)."
    if found["labels_invalid"]:
        text += f" {found['labels_invalid']:,} labels cannot be used: {found['first_invalid']}."
    if found["left_out"]:
        text += f" {len(found['left_out'])} older versions are left out."
    return text
