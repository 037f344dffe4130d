"""The plots of the report: SVG files, each in one variant for light pages and one for dark ones."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks import view
from benchmarks.markdown import number
from benchmarks.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from benchmarks.outcome import Outcome

_TEXT, _GRID = "#1f2328", "#d8dee4"

THEMES = {"": {}, "-dark": {_TEXT: "#e6edf3", _GRID: "#30363d"}}
"""By what is behind the name of a file: what takes the place of which colour. The ground is transparent."""

_COLOURS = (
    "#e4572e", "#8b949e", "#2f81f7", "#1b9e9e", "#8957e5", "#2da44e", "#bf8700", "#d2539c", "#a0522d", "#6e7781",
)  # fmt: skip
"""Visible on white and on black; by the place of a system."""

_WORKER, _MEMBERS = "#e4572e", "#2f81f7"
_BAR, _PANEL = 0.34, 3.0
"""Inches: height of a bar, of a panel."""

_MOST_TIMES = 12.0
"""What costs more times the least is cut off: all others would be slivers."""

_SHOWN = 1.15
"""Room for the figure at the end of the longest bar."""


def draw(outcome: Outcome, folder: Path) -> list[Path]:
    """Write those that there is data for, and remove those that there is none for; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        drawn = _svg(plot, outcome) if name in view.plots(outcome) else ""
        for suffix, colours in THEMES.items():
            path = folder / f"{name}{suffix}.svg"
            if not drawn:
                path.unlink(missing_ok=True)
                continue
            text = drawn
            for light, dark in colours.items():
                text = text.replace(light, dark)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def _svg(plot: Callable[[Outcome], Figure], outcome: Outcome) -> str:
    """The same each time for the same figures: without a date, and with names that do not change."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = plot(outcome)
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _throughput(outcome: Outcome) -> Figure:
    found = view.ran(outcome, view.WORK)
    figure = Figure(figsize=(10, 1.2 + _BAR * len(found)), layout="constrained")
    rate, cpu = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(found))
    costs = [spread.median for each in found if (spread := each.spread("cpu_us_per_event")) is not None]
    widest = _SHOWN * max(cost for cost in costs if cost <= _MOST_TIMES * min(costs))
    most = 0.0
    for place, each in zip(places, found, strict=True):
        colour = _colour(outcome, each.system)
        scorers, services = each.spread("scorer_cpu_us_per_event"), each.spread("service_cpu_us_per_event")
        spread, whole = each.spread("events_per_s"), each.spread("cpu_us_per_event")
        if spread is None or whole is None or scorers is None or services is None:
            continue
        most = max(most, spread.high)
        rate.barh(place, spread.median, color=colour, height=0.7)
        rate.plot([spread.low, spread.high], [place, place], color=_TEXT, linewidth=1.2)
        rate.text(spread.high, place, f"  {number(spread.median)}", va="center")
        cpu.barh(place, min(scorers.median, widest), color=colour, height=0.7)
        rest = max(0.0, min(services.median, widest - scorers.median))
        cpu.barh(place, rest, left=scorers.median, color=colour, alpha=0.45, height=0.7)
        cut = "" if whole.median <= widest else " (cut)"
        cpu.text(min(whole.median, widest), place, f"  {number(whole.median)}{cut}", va="center")
    rate.set_yticks(places, [each.system for each in found])
    rate.invert_yaxis()
    rate.set(title="Throughput; the line is from lowest to highest round", xlabel="events per second")
    rate.set_xlim(0, _SHOWN * most)
    rate.xaxis.set_major_formatter(_SHORT)
    cpu.set(title="CPU; strong: scoring processes, pale: members or broker", xlabel="microseconds per event")
    cpu.set_xlim(0, 1.2 * widest)
    for axes in (rate, cpu):
        axes.grid(visible=False, axis="y")
    return figure


def _stages(outcome: Outcome) -> Figure:
    works = view.staged_works(outcome)
    names = list(dict.fromkeys(name for each in works for name in each.stage_us_per_event))
    figure = Figure(figsize=(10, 1.4 + _BAR * len(works)), layout="constrained")
    axes = figure.subplots()
    places, left = np.arange(len(works)), np.zeros(len(works))
    for place, name in enumerate(names):
        micros = np.array([each.stage_us_per_event.get(name, 0.0) for each in works])
        axes.barh(places, micros, left=left, label=name, color=_COLOURS[place % len(_COLOURS)], height=0.7)
        left += micros
    axes.set_yticks(places, [each.work for each in works])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(title="CPU of Gridscore's worker by stage", xlabel="microseconds per event")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def _latency(outcome: Outcome) -> Figure:
    rates = [rate for rate in view.rates(outcome) if any(each.curve for each in view.latencies(outcome, rate))]
    figure = Figure(figsize=(10, _PANEL + 1), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    marks = (0.0, 50.0, 90.0, 99.0, 99.9)
    labels: dict[str, Line2D] = {}
    for rate, axes in zip(rates, panels, strict=True):
        for each in view.latencies(outcome, rate):
            curve = [(percentile, ms) for percentile, ms in each.curve if percentile < 100]
            if not curve:
                continue
            (line,) = axes.plot(
                [_nines(percentile) for percentile, _ in curve],
                [ms for _, ms in curve],
                color=_colour(outcome, each.system),
                linewidth=2.4 if each.system == view.OURS else 1.3,
                linestyle=":" if each.saturated else "-",
            )
            labels.setdefault(each.system, line)
        axes.set(title=f"{rate:,.0f} events/s", xlabel="percentile", yscale="log")
        axes.set_xticks([_nines(mark) for mark in marks], [f"{mark:g}" for mark in marks])
        _decades(axes)
    panels[0].set_ylabel("from due to seen, milliseconds")
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5)
    return figure


def _spike(outcome: Outcome) -> Figure:
    found = [each for each in view.spikes(outcome) if each.bins]
    figure = Figure(figsize=(10, _PANEL + 1), layout="constrained")
    axes = figure.subplots()
    for each in found:
        seen = [(bin_.begin_s, bin_.p99_ms) for bin_ in each.bins if bin_.p99_ms is not None]
        axes.plot(
            [at for at, _ in seen],
            [ms for _, ms in seen],
            color=_colour(outcome, each.system),
            linewidth=2.4 if each.system == view.OURS else 1.3,
            label=each.system,
        )
    first = found[0]
    axes.axvspan(first.spike_begin_s, first.spike_end_s, color="#8b949e", alpha=0.2, linewidth=0)
    axes.set(
        title=f"p99 of each half second; shaded: {first.factor:g} times {first.rate_per_s:,.0f} events/s",
        xlabel="when events were due, seconds",
        ylabel="from due to seen, milliseconds",
        yscale="log",
    )
    _decades(axes)
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def _growth(outcome: Outcome) -> Figure:
    series = {
        name: measured
        for name, points in view.growth(outcome).items()
        if (measured := [each for each in points if each.status == Status.MEASURED])
    }
    figure = Figure(figsize=(10, 2 * _PANEL - 0.5), layout="constrained")
    panels = figure.subplots(2, len(series), squeeze=False)
    for column, (name, points) in enumerate(series.items()):
        values = [each.value for each in points]
        cpu, rate = panels[0][column], panels[1][column]
        for label, colour, costs in (
            ("workers", _WORKER, [each.worker_cpu_us_per_event for each in points]),
            ("members", _MEMBERS, [each.member_cpu_us_per_event for each in points]),
        ):
            cpu.plot(values, costs, color=colour, marker="o", markersize=4, label=label if column == 0 else None)
        rate.plot(values, [each.events_per_s for each in points], color=_WORKER, marker="o", markersize=4)
        cpu.set(title=name, ylim=(0, None))
        rate.set(xlabel=name, ylim=(0, None))
        rate.yaxis.set_major_formatter(_SHORT)
        for axes in (cpu, rate):
            axes.set_xscale("log")
            axes.margins(x=0.15)
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(_SHORT)
    panels[0][0].set_ylabel("CPU, microseconds per event")
    panels[1][0].set_ylabel("events per second")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


PLOTS: dict[str, Callable[[Outcome], Figure]] = {
    "throughput": _throughput,
    "stages": _stages,
    "latency": _latency,
    "spike": _spike,
    "growth": _growth,
}
"""By name; `view.plots` says which there is data for."""


def _nines(percentile: float) -> float:
    """Where a percentile is on an axis on which each nine takes the same room."""
    return float(-np.log10(1 - percentile / 100))


def _colour(outcome: Outcome, system: str) -> str:
    return _COLOURS[view.rank(outcome, system) % len(_COLOURS)]


def _decades(axes: Axes) -> None:
    """Milliseconds on a logarithmic axis: 1, 2, 5, 10 and so on."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_minor_locator(NullLocator())


def _short(value: float, _position: int | None = None) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:,.10g}"


_SHORT = FuncFormatter(_short)
_THOUSANDS = FuncFormatter(lambda value, _position: f"{value:,.10g}")


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "gridscore",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
}
