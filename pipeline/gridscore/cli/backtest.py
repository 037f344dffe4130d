"""`gridscore backtest`: a history through a job, with one version of its model or two."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import AllowPython, ChosenModel, Connection, JobOrFile, Json, valid, working
from gridscore.cli.output import console, counted, print_json, print_table, print_warnings, run, safe
from gridscore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]

_METRICS = {"auc": "AUC", "log_loss": "log loss", "brier": "Brier", "rmse": "RMSE", "mae": "MAE", "cost": "mean cost"}


def backtest(
    job: JobOrFile,
    history: Annotated[
        Path, typer.Argument(help="Events as rows: CSV, Parquet or JSON lines, in order.", show_default=False)
    ],
    *,
    model: ChosenModel = None,
    against: Annotated[
        str | None, typer.Option(metavar="FILE|VERSION|ALIAS", help="What it is compared with: what would change.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What came of each event: 0 or 1, or a number.")
    ] = None,
    label_delay: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it takes until that is known: younger events have none."),
    ] = None,
    value: Annotated[str | None, typer.Option(metavar="COLUMN", help="Numbers to be summed for decisions.")] = None,
    lookups: Annotated[
        Path | None, typer.Option(help="Directory with a table for each lookup. Else the maps of the cluster, as now.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    allow_python: AllowPython = None,  # noqa: ARG001 -- its callback does it
    connection: Connection,
    as_json: Json = False,
) -> None:
    """Replay a history through a job: its own features, scores and decisions, and what labels say of them.

    Example: [bold]gridscore backtest job.yaml history.csv --model model.ubj --label fraud --value amount[/]
    """
    from gridscore.job.types import Duration, seconds_of
    from gridscore.operations import backtest as operation
    from gridscore.operations.backtest_page import page_of
    from gridscore.operations.subject import subject_of

    delay = 0.0 if label_delay is None else seconds_of(valid(Duration, "--label-delay", label_delay))
    if label is None and delay:
        raise UsageError("--label-delay is for labels.", "Name their column: --label COLUMN.")
    check_page(html)
    wanted = [model, *([] if against is None else [against])]

    async def main() -> dict[str, Any]:
        async with subject_of(lambda: working(connection), job, wanted, lookups) as subject:
            with counted("reading", "scoring") as told:
                return await operation.backtest(
                    subject.job,
                    subject.sides,
                    subject.given,
                    history,
                    label=label,
                    label_delay=delay,
                    value=value,
                    on_progress=told,
                )

    report = run(main())
    if report["may_leak"]:
        named = ", ".join(report["may_leak"])
        print_warnings([f"Of an event, these lookups say what is so today, and not what was so then: {named}."])
    tables = list(tables_of(report))
    if html is not None:
        about = f"{report['history']}: {report['rows']:,} rows{_span(report)}."
        page = page_of(f"Backtest of {report['job']}", about, report["versions"], ("--model", "--against"), tables)
        html.write_text(page, encoding="utf-8")
    if as_json:
        print_json(report)
        return
    _print(report, tables)
    if html is not None:
        console.print(f"[bold green]{safe(html)}[/] is written.")


def check_page(html: Path | None) -> None:
    """Refuse a page that cannot be written, before a long run."""
    from gridscore.operations.backtest import require

    if html is not None:
        if html.is_dir() or not html.parent.is_dir():
            raise UsageError(f"`{html}` cannot be written: it is a folder, or its folder is not there.")
        require("matplotlib", "`--html`")


def _span(report: dict[str, Any]) -> str:
    return f", {report['from']} to {report['to']}" if report["from"] else ""


def _print(report: dict[str, Any], tables: Sequence[_Table]) -> None:
    span = _span(report)
    console.print(
        f"[bold]{safe(report['job'])}[/]: {report['rows']:,} rows of {safe(report['history'])}{span}, in "
        f"{report['seconds']:.1f} s ({report['rows_per_second']:,.0f}/s)."
    )
    if report["label"]:
        mean = "" if report["label_mean"] is None else f", on average {report['label_mean']:.4g}"
        console.print(f"{report['labels']:,} have a label in `{safe(report['label'])}`{mean}.")
    for each in report["versions"]:
        if each["rejected"]:
            counts = ", ".join(f"{count:,} at {stage}" for stage, count in each["rejected"].items())
            console.print(f"[yellow]{safe(each['name'])} cannot score[/] {counts}. {safe(each['first_rejected'])}")
    for title, columns, rows in tables:
        console.print(f"\n[bold]{safe(title)}[/]")
        print_table(columns, rows, empty="")


def tables_of(report: dict[str, Any]) -> Iterator[_Table]:
    """Title, columns and rows of each table, of a backtest or a report; all but the first column are figures."""
    fields: tuple[str, ...]
    columns: tuple[str, ...]
    versions = report["versions"]
    names = [each["name"] for each in versions]
    found = [name for name in _METRICS if any(name in each["metrics"] for each in versions)]
    if found:
        rows = [(_METRICS[name], *(each["metrics"].get(name) for each in versions)) for name in found]
        yield "Metrics", ("", *names), rows
    for each in versions:
        if each["decisions"]:
            columns = ("DECISION", "EVENTS", "SHARE", report.get("value_column", "VALUE"), "PRECISION", "RECALL")
            fields = ("decision", "events", "share", "value", "precision", "recall")
            yield f"Decisions of {each['name']}", columns, [tuple(d[f] for f in fields) for d in each["decisions"]]
    if changes := report.get("changes"):
        title = f"What would change: {names[1]} to {names[0]}"
        if changes["decisions"]:
            fields = ("events", "value", "label_mean")
            rows = [(f"{c['from']} → {c['to']}", *(c[f] for f in fields)) for c in changes["decisions"]]
            yield title, ("DECISION", "EVENTS", "VALUE", "MEAN LABEL"), rows
        if "same_score" in changes:
            apart = changes["score_difference"]
            rows = [("events scored by both", changes["scored_by_both"]), ("same score", changes["same_score"])]
            yield "Scores apart", ("", ""), [*rows, *((f"difference, {name}", value) for name, value in apart.items())]
    for each in versions:
        if any("labels" in period and period["labels"] for period in each["periods"]) or len(each["periods"]) > 1:
            named = [name for name in found if name != "cost"]
            columns = ("FROM", "EVENTS", "SCORE", "LABEL", *(_METRICS[name] for name in named))
            rows = [
                (
                    p["from"][:16].replace("T", " "),
                    p["events"],
                    p["score_mean"],
                    p["label_mean"],
                    *(p.get(n) for n in named),
                )
                for p in each["periods"]
            ]
            yield f"Over time, {each['name']}", columns, rows
        if each["calibration"]:
            rows = [
                (f"{b['from']:.1f} to {b['to']:.1f}", b["events"], b["score_mean"], b["label_mean"])
                for b in each["calibration"]
            ]
            yield f"Calibration of {each['name']}", ("SCORE", "EVENTS", "MEAN SCORE", "MEAN LABEL"), rows
