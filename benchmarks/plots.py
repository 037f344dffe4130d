"""The plots of the report: SVG files, each in one variant for light pages and one for dark ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import view
from benchmarks.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.lines import Line2D

    from benchmarks.outcome import Outcome, Throughput

THEMES = {
    "": {"text": "#1f2328", "grid": "#d8dee4"},
    "-dark": {"text": "#e6edf3", "grid": "#30363d"},
}
"""Colours by what is behind the name of a file; the ground is transparent."""

_COLOURS = (
    "#e4572e", "#8b949e", "#2f81f7", "#1b9e9e", "#8957e5", "#2da44e", "#bf8700", "#d2539c", "#6e7781", "#a0522d",
)  # fmt: skip
"""Visible on white and on black; by the place of a system."""

_WORKER, _MEMBERS = "#e4572e", "#2f81f7"
_BAR, _PANEL = 0.34, 3.0
"""Inches: height of a bar, of a panel."""

_THROUGHPUT = "events_per_s"


def draw(outcome: Outcome, folder: Path) -> list[Path]:
    """Write those that there is data for, and remove those that there is none for; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        for suffix, theme in THEMES.items():
            path = folder / f"{name}{suffix}.svg"
            if name not in view.plots(outcome):
                path.unlink(missing_ok=True)
                continue
            with mpl.rc_context(_style(theme)):
                figure = plot(outcome)
                FigureCanvasSVG(figure)
                # Without a date, and with names that are the same each time, the same figures give the same file.
                figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            path.write_text(
                "\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n",
                encoding="utf-8",
            )
            written.append(path)
    return written


def _throughput(outcome: Outcome) -> Figure:
    found = view.ran(outcome, view.WORK)
    figure = Figure(figsize=(10, 1.2 + _BAR * len(found)), layout="constrained")
    rate, cpu = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(found))
    for place, each in zip(places, found, strict=True):
        spread = each.spread(_THROUGHPUT)
        if spread is None:
            continue
        colour = _colour(outcome, each.system)
        rate.barh(place, spread.median, color=colour, height=0.7)
        rate.plot([spread.low, spread.high], [place, place], color=mpl.rcParams["text.color"], linewidth=1.2)
        scorers, services = each.spread("scorer_cpu_us_per_event"), each.spread("service_cpu_us_per_event")
        if scorers is not None and services is not None:
            cpu.barh(place, scorers.median, color=colour, height=0.7)
            cpu.barh(place, services.median, left=scorers.median, color=colour, alpha=0.45, height=0.7)
    rate.set_yticks(places, [each.system for each in found])
    rate.invert_yaxis()
    rate.set(title="Throughput; the line is from lowest to highest round", xlabel="events per second", xlim=(0, None))
    rate.xaxis.set_major_formatter(_THOUSANDS)
    cpu.set(
        title="CPU; strong: scoring processes, pale: members or broker",
        xlabel="microseconds per event, logarithmic" if _is_wide(found) else "microseconds per event",
        xscale="log" if _is_wide(found) else "linear",
    )
    for axes in (rate, cpu):
        axes.grid(visible=False, axis="y")
    return figure


def _is_wide(found: list[Throughput]) -> bool:
    """Whether costs differ so much that most bars would be slivers."""
    costs = [spread.median for each in found if (spread := each.spread("cpu_us_per_event")) is not None]
    return max(costs) > 30 * min(costs)


def _stages(outcome: Outcome) -> Figure:
    works = view.staged_works(outcome)
    names = list(dict.fromkeys(name for each in works for name in each.stage_us_per_event))
    figure = Figure(figsize=(10, 1.4 + _BAR * len(works)), layout="constrained")
    axes = figure.subplots()
    places, left = np.arange(len(works)), np.zeros(len(works))
    for number, name in enumerate(names):
        micros = np.array([each.stage_us_per_event.get(name, 0.0) for each in works])
        axes.barh(places, micros, left=left, label=name, color=_COLOURS[number % len(_COLOURS)], height=0.7)
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
        axes.yaxis.set_major_formatter(_THOUSANDS)
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
    axes.yaxis.set_major_formatter(_THOUSANDS)
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def _growth(outcome: Outcome) -> Figure:
    series = {
        name: measured
        for name, points in view.growth(outcome).items()
        if (measured := [each for each in points if each.status == Status.MEASURED])
    }
    figure = Figure(figsize=(10, 2 * _PANEL - 0.5), layout="constrained")
    panels = figure.subplots(2, len(series), squeeze=False, sharey="row")
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
        rate.yaxis.set_major_formatter(_THOUSANDS)
        for axes in (cpu, rate):
            axes.set_xscale("log")
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


def _short(value: float, _position: int | None = None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


_SHORT = FuncFormatter(_short)
_THOUSANDS = FuncFormatter(lambda value, _position: f"{value:,.10g}")


def _style(theme: dict[str, str]) -> dict[str, object]:
    return {
        "svg.fonttype": "none",  # text stays text: small files
        "svg.hashsalt": "gridscore",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.which": "major",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.facecolor": "none",
        "legend.frameon": False,
        "text.color": theme["text"],
        "axes.labelcolor": theme["text"],
        "axes.edgecolor": theme["text"],
        "xtick.color": theme["text"],
        "ytick.color": theme["text"],
        "grid.color": theme["grid"],
    }
