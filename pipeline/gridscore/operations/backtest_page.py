"""A backtest, or a report of a model at work, as a page: one HTML file that needs nothing else, with plots in SVG."""

from __future__ import annotations

import datetime as dt
import io
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COLOURS = ("#2e86ab", "#d1495b", "#66a182", "#edae49", "#7a5195", "#ef5675")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left }
th { border-bottom: 1px solid #7b8794 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto } .soft { color: #616e7c }
"""


def page_of(
    title: str,
    about: str,
    versions: Sequence[dict[str, Any]],
    drawn_as: Sequence[str],
    tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[Any]]]],
) -> str:
    """The page.

    `about`: a line below it; `versions`: what `judged` says of each; `drawn_as`: what to call them in plots; those
    without a name are not drawn; `tables`: title, columns and rows of each table that a terminal shows, too.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{escape(about)}</p>",
        _plots(versions, drawn_as),
        *(_table(*each) for each in tables),
        "</html>",
    ]
    return "\n".join(parts)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        row = (f"<{tag}{' class=n' * (n > 0)}>{escape(_text(cell))}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(row)}</tr>"

    return f"<h2>{escape(title)}</h2><table>{line('th', columns)}{''.join(line('td', row) for row in rows)}</table>"


def _plots(versions: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Metrics and means over time, and calibration. No text of the history's or the job's is drawn."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = next((metric for metric in ("auc", "rmse") if any(metric in each["metrics"] for each in versions)), None)
    with mpl.rc_context({"svg.hashsalt": "gridscore", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        over_time, means, calibration = figure.subplots(1, 3)
        for name, each, colour in zip(names, versions, _COLOURS, strict=False):
            periods = [period for period in each["periods"] if period["events"]]
            times = [dt.datetime.fromisoformat(period["from"]) for period in periods]
            style: dict[str, Any] = {"color": colour, "label": name, "marker": ".", "linewidth": 1.2}
            if drawn is not None:
                over_time.plot(times, [_or_nan(period.get(drawn)) for period in periods], **style)
            means.plot(times, [_or_nan(period["score_mean"]) for period in periods], **style)
            if each is versions[0]:
                rates = [_or_nan(period["label_mean"]) for period in periods]
                means.plot(times, rates, color="#616e7c", label="label", linestyle=":")
            bins = each["calibration"]
            calibration.plot([b["score_mean"] for b in bins], [b["label_mean"] for b in bins], **style)
        over_time.set_title("RMSE" if drawn == "rmse" else "AUC")
        means.set_title("mean score and label")
        calibration.set_title("calibration")
        calibration.plot([0, 1], [0, 1], color="#616e7c", linewidth=0.8, linestyle=":")
        for axes in (over_time, means):
            axes.tick_params(axis="x", rotation=30)
            if axes.get_lines():
                axes.legend(frameon=False, fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    _, begin, rest = text.getvalue().partition("<svg")  # without the prologue of a file of its own
    return begin + rest


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return (f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}") if isinstance(value, float) else str(value)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
