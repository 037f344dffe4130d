"""The curve of a spike as a picture: what was put, lag and latency, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.errors import missing_extra

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise missing_extra("`--plot`", "demo", error) from None

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.spike import Spike

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
}


def save(path: Path, report: Spike) -> None:
    """Draw a measurement into a PNG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 8), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        rate, lag, latency = figure.subplots(3, 1, sharex=True)
        rate.plot(report.times, report.put, color="#2e86ab", linewidth=1)
        rate.set(title="Put, events per second", ylim=(0, None))
        lag.fill_between(report.times, report.lag, color="#d1495b", alpha=0.35)
        lag.plot(report.times, report.lag, color="#d1495b", linewidth=1)
        lag.set(title="Lag, events put and not scored", ylim=(0, None))
        latency.plot(report.times, report.p99, color="#1f2933", linewidth=1.2, label="p99")
        latency.plot(report.times, report.p50, color="#2e86ab", linewidth=1.2, label="p50")
        latency.axhline(report.worst_p99, color="#7b8794", linewidth=1, linestyle="--", label="worst p99 before")
        latency.set(title="Latency from due to listener, ms, of the last second", xlabel="seconds", yscale="log")
        latency.legend(loc="upper right")
        for axes in (rate, lag, latency):
            axes.axvspan(report.began, report.ended, color="#f2c14e", alpha=0.18, linewidth=0)
        figure.savefig(path, format="png")
