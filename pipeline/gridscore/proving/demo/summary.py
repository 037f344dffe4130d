"""The summary: what the demo prints at its end, and what to type next."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from gridscore.proving.demo.report import Quality, Report


def print_summary(console: Console, report: Report) -> None:
    parts: list[RenderableType] = [_figures(report)]
    if report.quality is not None:
        parts += [Text(), _deciles(report.quality)]
    good = not report.problems
    console.print(
        Panel(
            Group(*parts),
            title="[bold]Every score is there, and right to the bit[/]" if good else "[bold]Something is wrong[/]",
            title_align="left",
            border_style="green" if good else "red",
            padding=(1, 2),
            expand=False,
        )
    )
    for problem in report.problems:
        console.print(f"[bold red]✗[/] {escape(problem)}", highlight=False, soft_wrap=True)


def _figures(report: Report) -> Table:
    check, quality = report.check, report.quality
    scored = check.events - check.missing
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("scored", f"[bold]{scored:,}[/] of {check.events:,} events in {report.seconds:.1f} s")
    table.add_row("throughput", f"[bold]{report.throughput:,.0f}[/] events/s{_pace(report)}")
    if report.latency_ms:
        latency = "  ".join(f"{name} [bold]{value:,.1f}[/]" for name, value in report.latency_ms.items())
        table.add_row("latency, ms", latency)
        table.add_row("", "[dim]from just before the put to the listener's call[/]")
    decisions = "   ".join(f"{escape(name)} [bold]{count:,}[/]" for name, count in sorted(report.decisions.items()))
    table.add_row("decisions", decisions)
    if quality is not None:
        auc = "not defined, one outcome only" if quality.auc is None else f"[bold]{quality.auc:.4f}[/]"
        table.add_row(
            "ROC AUC", f"{auc}   [dim]on {quality.arrived:,} flights that arrived, {quality.late:.1%} late[/]"
        )
        table.add_row(
            "Brier score",
            f"[bold]{quality.brier:.4f}[/]   [dim]always saying {quality.late:.1%} would get "
            f"{quality.brier_of_base_rate:.4f}[/]",
        )
        table.add_row("calibration", f"off by [bold]{quality.calibration_error:.1%}[/] in the mean of the deciles")
    return table


def _pace(report: Report) -> str:
    if not report.rate:
        return "   [dim]as fast as they were scored[/]"
    waited = f", waited {report.waited_seconds:.1f} s for the worker" if report.waited_seconds >= 0.1 else ""
    return f"   [dim]put at {report.rate:,.0f}{waited}[/]"


def _deciles(quality: Quality) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("scores", "flights", "predicted late", "really late"):
        table.add_column(name, justify="right")
    for decile in quality.deciles:
        table.add_row(
            f"{decile.low:.3f} to {decile.high:.3f}",
            f"{decile.flights:,}",
            f"{decile.predicted:.1%}",
            f"{decile.actual:.1%}",
        )
    return table


def print_next(console: Console, *, own_cluster: bool, running: bool) -> None:
    """Say what to type next.

    `console`: where; `own_cluster`: whether the demo has started the cluster; `running`: whether cluster and worker go
    on running.
    """
    command = _command()
    if running:
        lines = [
            (f"{command} jobs", "state, rate and lag of the job"),
            (f"{command} model list", "what is in the registry"),
            (f"{command} doctor", "is this cluster fit for jobs?"),
        ]
        head = "Cluster and worker keep running until Ctrl-C. In another terminal:"
    elif own_cluster:
        lines = [
            (f"{command} demo --keep-running", "the same, and leaves cluster and worker up to look at"),
            (f"{command} demo --rate 0", "as fast as this machine scores"),
            (f"{command} up", "a cluster of your own; then submit jobs/flights/job.yaml"),
        ]
        head = "The demo's cluster is stopped. Next:"
    else:
        lines = [
            (f"{command} jobs", "the job, waiting for a worker"),
            (f"{command} worker", "score what you put into events.flights"),
            (f"{command} watch flights", "results as they come"),
        ]
        head = "The job, the model and the results stay in the cluster. Next:"
    console.print(head, highlight=False)
    width = max(len(line) for line, _ in lines)
    for line, what in lines:
        console.print(f"  [bold]{escape(line.ljust(width))}[/]  [dim]{what}[/]", highlight=False, soft_wrap=True)


def _command() -> str:
    """How `gridscore` is to be typed here: after `make demo` it is in .venv, which is not on the path."""
    if shutil.which("gridscore"):
        return "gridscore"
    script = Path(sys.executable).with_name("gridscore")
    if not script.exists():
        return "python -m gridscore.cli"
    with contextlib.suppress(ValueError):
        return str(script.relative_to(Path.cwd()))
    return str(script)
