"""The plot: scores by outcome, calibration and latency, in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.proving.demo.report import milliseconds_text

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gridscore.proving.demo.report import Report

_LATE, _ON_TIME, _INK, _SOFT, _GRID = "#d1495b", "#2e86ab", "#1f2933", "#7b8794", "#e4e7eb"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same everywhere
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def save_plot(
    path: Path,
    report: Report,
    scores: NDArray[np.float64],
    arr_delay: NDArray[np.float64],
    latency: NDArray[np.float64],
    late_minutes: float,
) -> None:
    """Draw the report's figures into a PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(15, 5.2), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        known = ~np.isnan(arr_delay) & ~np.isnan(scores)
        late = arr_delay[known] > late_minutes
        left, middle, right = figure.subplots(1, 3)
        _outcomes(left, scores[known], late, late_minutes)
        _calibration(middle, report)
        _latency(right, report, latency[~np.isnan(latency)] * 1000)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.008, 0.01, 0.984, 0.84), wspace=0.06)
        figure.text(0.016, 0.945, "Will it arrive late?", fontsize=17, fontweight="bold")
        figure.text(0.016, 0.885, _subtitle(report), fontsize=10.5, color=_SOFT)
        figure.savefig(path, format="png")


def _subtitle(report: Report) -> str:
    parts = [
        f"{report.check.events - report.check.missing:,} flights scored live",
        f"{report.throughput:,.0f} events/s",
    ]
    if report.quality and report.quality.auc is not None:
        parts.append(f"ROC AUC {report.quality.auc:.3f}")
    if report.latency_ms:
        parts.append(f"latency {', '.join(f'{p} {milliseconds_text(report.latency_ms[p])}' for p in ('p50', 'p99'))}")
    return "   ·   ".join(parts)


def _outcomes(axes: Any, scores: NDArray[np.float64], late: NDArray[np.bool_], late_minutes: float) -> None:
    bins = np.linspace(0, 1, 51)
    axes.set_title("Scores, by what happened")
    for chosen, colour, label in (
        (~late, _ON_TIME, "arrived on time"),
        (late, _LATE, f"arrived more than {late_minutes:.0f} min late"),
    ):
        if chosen.any():
            weights = np.full(int(chosen.sum()), 100 / chosen.sum())
            axes.hist(scores[chosen], bins, weights=weights, color=colour, alpha=0.22)
            axes.hist(scores[chosen], bins, weights=weights, color=colour, histtype="step", linewidth=1.6, label=label)
    axes.set(xlabel="score: probability of being late", ylabel="% of the flights with this outcome", xlim=(0, 1))
    if len(late):
        axes.legend(loc="upper center")


def _calibration(axes: Any, report: Report) -> None:
    axes.set_title("Calibration, by deciles of the score")
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (4, 4)), label="perfect")
    if report.quality:
        deciles = report.quality.deciles
        axes.plot(
            [d.predicted for d in deciles],
            [d.actual for d in deciles],
            color=_INK,
            linewidth=1.6,
            marker="o",
            markersize=6,
            markerfacecolor="white",
            markeredgewidth=1.6,
            clip_on=False,
            zorder=3,
            label=f"live scores (Brier {report.quality.brier:.3f})",
        )
    axes.set(xlabel="predicted: mean score", ylabel="actual: part that was late", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")


def _latency(axes: Any, report: Report, milliseconds: NDArray[np.float64]) -> None:
    axes.set_title("Latency, from put to listener")
    if not len(milliseconds):
        return
    low, high = max(milliseconds.min(), 0.05), max(milliseconds.max(), 0.2)
    axes.hist(
        milliseconds,
        np.geomspace(low, high, 70),
        weights=np.full(len(milliseconds), 100 / len(milliseconds)),
        color=_ON_TIME,
        alpha=0.75,
    )
    top = axes.get_ylim()[1] * 1.22
    for height, name in zip((0.97, 0.90, 0.83), ("p50", "p99", "p99.9"), strict=True):
        value = report.latency_ms[name]
        axes.axvline(value, color=_INK, linewidth=1, linestyle=(0, (4, 3)), ymax=height)
        # To the left of its line where there is no room to the right.
        near_the_end = np.log(value / low) > 0.7 * np.log(high / low)
        axes.annotate(
            f" {name}  {milliseconds_text(value)} ",
            (value, top * height),
            fontsize=9,
            va="top",
            ha="right" if near_the_end else "left",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="milliseconds", ylabel="% of the flights", ylim=(0, top))
    axes.margins(x=0.02)
