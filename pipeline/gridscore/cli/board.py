"""What `gridscore top` shows: jobs, sources, sinks, workers and what is wrong, fitted into the terminal."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from gridscore.cli.output import one_line, visible
from gridscore.grid.heap import worst_of
from gridscore.job import JobState
from gridscore.operations.flow import GONE, INVALID, Findings
from gridscore.operations.health import Level, is_well
from gridscore.texts import count_text, duration_text, milliseconds_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from gridscore.operations.flow import Flow
    from gridscore.operations.health import Finding
    from gridscore.operations.sink_status import SinkStatus
    from gridscore.operations.status import JobFigures, JobStatus, Overview, WorkerRecord
    from gridscore.sources.status import SourceStatus

_NAME_WIDTH = 8  # least width of a table's first column, however narrow the terminal


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    value: Callable[[Any], str | Text]
    width: int = 0  # its least width, so that nothing jumps about
    keep: int = 99  # the smaller, the sooner it is left out in a narrow terminal; 99 never is
    left: bool = False  # whether it is aligned to the left


@dataclass(slots=True)
class Scene:
    """What to show at one moment."""

    cluster: str  # the heading
    clock: str
    flow: Flow | None = None  # the last look that succeeded; None before the first
    findings: Findings = field(default_factory=Findings)
    silence: str = ""  # since when the cluster does not answer; empty if it does


@dataclass(frozen=True, slots=True)
class _Section:
    """A table, and what to say instead if it has no rows; without that, it is left out."""

    what: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    empty: str = ""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one worker does for one job."""

    worker: WorkerRecord
    job: str
    figures: JobFigures | None
    lag: int


def board(scene: Scene, width: int, height: int | None = None, *, hint: str = "") -> RenderableType:
    """Everything, fitted into this width and height; without a height, all of it.

    `hint`: how to leave, shown at the right of the first line.
    """
    lines: list[Text] = [_head(scene, width, hint)]
    if scene.silence:
        lines.append(Text(scene.silence, "bold yellow", no_wrap=True, overflow="ellipsis"))
    if scene.flow is None:
        return Group(*lines)
    flow, overview, dim = scene.flow, scene.flow.overview, bool(scene.silence)
    said = _findings(scene, width)
    sections = [
        _Section(
            "job",
            _job_columns(scene),
            [*overview.jobs, *_absent(flow)],
            "No jobs. `gridscore submit FILE` submits one.",
        ),
        _Section("source", _source_columns(scene), flow.sources),
        _Section("sink", _sink_columns(scene), flow.sinks),
        _Section("row", _WORKER_COLUMNS, _shares(overview), "No workers. `gridscore worker` starts one, anywhere."),
    ]
    sections = [section for section in sections if section.rows or section.empty]
    # Besides heads and blank lines, the room is shared, so that each section keeps some.
    room = 10_000 if height is None else max(2 * (len(sections) + 1), height - len(lines) - 2 * len(sections) - 2)
    fair = room // (len(sections) + 1)
    least = [min(len(section.rows), fair) for section in sections]
    shown_said, room = _cut(len(said), room, least=sum(least))
    for index, section in enumerate(sections):
        shown, room = _cut(len(section.rows), room, least=sum(least[index + 1 :]))
        lines.append(Text())
        if section.rows:
            lines += table(section.columns, section.rows[:shown], width, dim=dim)
            lines += _more(len(section.rows) - shown, section.what)
        else:
            lines.append(Text(section.empty, "yellow"))
    if said:
        lines.append(Text())
        lines += said[:shown_said]
        lines += _more(len(said) - shown_said, "line")
    return Group(*lines)


def table(columns: Sequence[Column], rows: Sequence[Any], width: int, *, dim: bool = False) -> list[Text]:
    """Lines of a table that fits the width if at all possible: columns that matter less are left out."""
    cells = [[_cell(column.value(row)) for column in columns] for row in rows]
    widths = [
        max(column.width, cell_len(column.title), *(cell_len(row[index].plain) for row in cells))
        if cells
        else max(column.width, cell_len(column.title))
        for index, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    gap = 2
    while _needed(kept, widths, gap, shrunk=True) > width:
        if gap == 2 and _needed(kept, widths, 1, shrunk=True) <= width:
            gap = 1
            break
        least = min(kept[1:], key=lambda index: (columns[index].keep, -index), default=None)
        if least is None or columns[least].keep == 99:
            gap = 1
            break
        kept.remove(least)
    excess = _needed(kept, widths, gap, shrunk=False) - width
    if excess > 0:
        widths[0] = max(_NAME_WIDTH, widths[0] - excess)
    lines = [_line([Text(columns[i].title, "bold") for i in kept], kept, columns, widths, gap)]
    for row in cells:
        lines.append(_line([row[i] for i in kept], kept, columns, widths, gap))
        if dim:
            lines[-1].stylize("dim")
    return lines


def compact(number: float) -> str:
    """A count in at most seven characters: `999,999`, `1.23M`, `4.56G`."""
    if abs(number) < 999_999.5:
        return f"{number:,.0f}"
    for unit, size in (("M", 1e6), ("G", 1e9)):
        if abs(number) < 999.5 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number / 1e12:.3g}T"


def _head(scene: Scene, width: int, hint: str) -> Text:
    parts = [scene.cluster]
    if scene.flow is not None:
        jobs, workers = len(scene.flow.overview.jobs), len(scene.flow.overview.workers)
        parts.append(count_text(jobs, "job"))
        parts.append(count_text(workers, "worker"))
        if heap := worst_of(scene.flow.heaps):
            parts.append(f"heap {heap.share:.0%}")
    left = f"gridscore top  {visible(' · '.join(parts))}"
    right = f"{hint}  {scene.clock}" if hint else scene.clock
    if cell_len(left) + cell_len(right) + 2 > width:
        right = scene.clock
    # A pipe has no right side: a line is as long as its text.
    space = min(width, cell_len(left) + 2 + cell_len(right) if width > 1_000 else width) - cell_len(right)
    left = set_cell_size(left, max(space - 2, 8)) if cell_len(left) > space - 2 else left
    text = Text(left.ljust(max(space, 0)), no_wrap=True)
    text.stylize("bold", 0, 13)
    return text.append(right, "dim")


def _findings(scene: Scene, width: int) -> list[Text]:
    lines: list[Text] = []
    for level, style in ((Level.PROBLEM, "red"), (Level.NOTE, "yellow")):
        for name, findings in scene.findings:
            for finding in findings:
                if finding.level is level:
                    lines += _said(visible(name), finding, style, width)
    return lines


def _said(name: str, finding: Finding, style: str, width: int) -> list[Text]:
    """A finding in lines: its advice in the same line if both fit, else below."""
    text, advice = f"{name}: {visible(one_line(finding.text))}", visible(one_line(finding.advice))
    if cell_len(text) + cell_len(advice) < width:
        line = Text(text, style).append(f" {advice}", "default dim")
        line.stylize("bold", 0, len(name) + 1)
        line.rstrip()
        return [line]
    lines = [Text(each, style) for each in textwrap.wrap(text, width, subsequent_indent="  ")]
    lines[0].stylize("bold", 0, len(name) + 1)
    return [*lines, *(Text(f"  {each}", "dim") for each in textwrap.wrap(advice, max(width - 2, 10)))]


def _shares(overview: Overview) -> list[_Share]:
    lags = {status.record.name: status for status in overview.jobs}
    shares = []
    for worker in overview.workers:
        mine = [
            _Share(worker, name, figures, lags[name].lag_of(worker.id))
            for name, figures in sorted(worker.jobs.items())
            if name in lags
        ]
        shares += mine or [_Share(worker, "-", None, 0)]
    return shares


def _cut(wanted: int, room: int, *, least: int) -> tuple[int, int]:
    """How many of the wanted lines to show, and the room left, with at least `least` for others.

    Where some are left out, one line says so.
    """
    if wanted <= room - least:
        return wanted, room - wanted
    shown = max(0, room - least - 1)
    return shown, max(0, room - shown - 1)


def _more(left_out: int, what: str) -> list[Text]:
    if left_out <= 0:
        return []
    return [Text(f"… {left_out:,} more {what if left_out == 1 else what + 's'}", "dim")]


def _needed(kept: Sequence[int], widths: Sequence[int], gap: int, *, shrunk: bool) -> int:
    first = min(widths[0], _NAME_WIDTH * 2) if shrunk else widths[0]
    return first + sum(widths[index] for index in kept[1:]) + gap * (len(kept) - 1)


def _line(cells: list[Text], kept: list[int], columns: Sequence[Column], widths: Sequence[int], gap: int) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for place, (index, cell) in enumerate(zip(kept, cells, strict=True)):
        fitting = cell.copy()
        fitting.truncate(widths[index], overflow="ellipsis")
        if place:
            line.append(" " * gap)
        pad = " " * (widths[index] - cell_len(fitting.plain))
        if columns[index].left:
            line.append_text(fitting).append(pad)
        else:
            line.append(pad).append_text(fitting)
    line.rstrip()
    return line


def _cell(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(visible(value))


def _warn(number: float) -> Text:
    """A count that should be zero."""
    return Text(compact(number), "yellow" if number else "")


def _age(seconds: float | None) -> str:
    return "never" if seconds is None else duration_text(seconds)


def _versions(numbers: Sequence[int]) -> str:
    return ",".join(f"v{number}" for number in numbers) or "-"


def _model(status: JobStatus) -> str:
    """The versions in use, and those of challengers with their share: `v2 v3@25%`."""
    using = _versions(status.versions)
    if status.experiment is None:
        return using
    found = status.experiment.experiment
    at = "shadow" if found.kind == "shadow" else f"{found.share:g}%"
    return " ".join([using, *(f"v{each.version}@{at}" for each in found.challengers if each.state == "running")])


def _state(text: str, findings: Sequence[Finding], *, good: bool) -> Text:
    if not is_well(findings):
        return Text(text, "bold red")
    return Text(text, "green" if good else "yellow")


def _source_columns(scene: Scene) -> list[Column]:
    def state(status: SourceStatus) -> Text:
        return _state(status.state, scene.findings.sources.get(status.name, ()), good=status.state == "running")

    return [
        Column("SOURCE", lambda s: s.name, left=True),
        Column("STATE", state, 8, left=True),
        Column("PROCESSES", lambda s: compact(len(s.processes)), keep=30),
        Column("EVENTS/S", lambda s: compact(s.rate), 7),
        Column("WAITED", lambda s: duration_text(s.waited), 6, keep=60),
        Column("DEAD", lambda s: _warn(s.dead_letters), 4, keep=94),
        Column("KIND", lambda s: s.kind, keep=40, left=True),
        Column("MAP", lambda s: s.map, keep=50, left=True),
        Column("EVENTS", lambda s: compact(s.events), 7, keep=10),
    ]


def _sink_columns(scene: Scene) -> list[Column]:
    def state(status: SinkStatus) -> Text:
        findings = scene.findings.sinks.get(status.record.name, ())
        return _state(status.state, findings, good=status.state == "delivering")

    def owned(status: SinkStatus) -> Text:
        wanted = bool(status.processes) and status.partitions < len(status.positions)
        return Text(f"{status.partitions}/{len(status.positions)}", "yellow" if wanted else "")

    return [
        Column("SINK", lambda s: s.record.name, left=True),
        Column("STATE", state, 8, left=True),
        Column("PROCESSES", lambda s: compact(len(s.processes)), keep=30),
        Column("OWNED", owned, 7, keep=70),
        Column("RESULTS/S", lambda s: compact(s.rate), 7),
        Column("LAG", lambda s: "?" if s.lag is None else compact(s.lag), 7),
        Column("LOST", lambda s: _warn(s.lost), 4, keep=95),
        Column("DEAD", lambda s: _warn(s.dead_letters), 4, keep=94),
        Column("KIND", lambda s: s.record.kind, keep=40, left=True),
        Column("MAP", lambda s: s.record.map, keep=50, left=True),
        Column("RESULTS", lambda s: compact(s.delivered), 7, keep=10),
    ]


@dataclass(frozen=True, slots=True)
class _Absent:
    """A job without figures, because it has no usable record."""

    name: str
    state: str


def _absent(flow: Flow) -> list[_Absent]:
    return [_Absent(name, GONE) for name in flow.gone] + [_Absent(bad.key, INVALID) for bad in flow.invalid]


def _of_absent(title: str, value: Callable[[Any], str | Text]) -> Callable[[Any], str | Text]:
    """What a column of jobs shows, also for absent ones."""

    def show(row: Any) -> str | Text:
        if not isinstance(row, _Absent):
            return value(row)
        return row.name if title == "JOB" else Text(row.state, "bold red") if title == "STATE" else "-"

    return show


def _job_columns(scene: Scene) -> list[Column]:
    def state(status: JobStatus) -> Text:
        name = status.state
        return _state(name.value, scene.findings.jobs.get(status.record.name, ()), good=name == JobState.RUNNING)

    def owned(status: JobStatus) -> Text:
        wanted = status.state == JobState.RUNNING and status.partitions < len(status.positions)
        return Text(f"{status.partitions}/{len(status.positions)}", "yellow" if wanted else "")

    def lag(status: JobStatus) -> str:
        return "?" if status.lag is None else compact(status.lag)

    columns = [
        Column("JOB", lambda s: s.record.name, left=True),
        Column("STATE", state, 8, left=True),
        Column("WORKERS", lambda s: compact(s.workers), keep=30),
        Column("OWNED", owned, 7, keep=90),
        Column("EVENTS/S", lambda s: compact(s.totals["rate"]), 7),
        Column("LAG", lag, 7),
        Column("P50", lambda s: milliseconds_text(s.latency_ms["p50"]), 7, keep=40),
        Column("P99", lambda s: milliseconds_text(s.latency_ms["p99"]), 7, keep=80),
        Column("COMMIT", lambda s: _age(s.commit_age) if s.workers else "-", 6, keep=50),
        Column("LOST", lambda s: _warn(s.totals["lost"]), 4, keep=95),
        Column("DEAD", lambda s: _warn(s.totals["dead_letters"]), 4, keep=94),
        Column("MODEL", _model, keep=70, left=True),
        Column("MISSES", lambda s: _worst(s, "lookup_misses"), keep=24),
        Column("UNSEEN", lambda s: _worst(s, "unseen_categories"), keep=23),
        Column("MISSING", lambda s: _worst(s, "missing_values"), keep=22),
        Column("REBALANCES", lambda s: compact(s.totals["rebalances"]), keep=25),
        Column("SKIPPED", lambda s: compact(s.totals["skipped"]), keep=15),
        Column("RESCUED", lambda s: compact(s.totals["rescued"]), keep=20),
        Column("EVENTS", lambda s: compact(s.totals["events"]), 7, keep=10),
    ]
    jobs = [] if scene.flow is None else [status.record.job for status in scene.flow.overview.jobs]
    if any(job.windows for job in jobs):
        columns.append(Column("LATE", lambda s: _warn(s.totals["late"]), 4, keep=61))
    if any(job.drift is not None for job in jobs):
        columns.append(Column("DRIFT", _drift, 5, keep=60))
    return [replace(column, value=_of_absent(column.title, column.value)) for column in columns]


def _drift(status: JobStatus) -> Text:
    """The PSI of what has moved farthest; red while there is an alert."""
    alerts = status.drift is not None and status.drift.active
    return Text("-" if status.farthest is None else f"{status.farthest[1]:.2f}", "bold red" if alerts else "")


def _worst(status: JobStatus, kind: str) -> str:
    """The largest share of a kind: that of the lookup, or feature, that lacks most."""
    if not status.quality.events:
        return "-"
    share = max(status.quality.shares()[kind].values(), default=0.0)
    return f"{share:.{0 if share >= 0.0995 or not share else 1}%}"


def _of(share: _Share, name: str) -> str:
    return "-" if share.figures is None else compact(getattr(share.figures, name))


def _latency(share: _Share, name: str) -> str:
    return milliseconds_text(share.figures.latency_ms.get(name) if share.figures is not None else None)


def _place(share: _Share) -> str:
    worker = share.worker
    return f"{worker.host}:{worker.pid}" if worker.host else worker.id


_WORKER_COLUMNS = [
    Column("WORKER", _place, left=True),
    Column("JOB", lambda s: s.job, left=True, keep=60),
    Column("OWNED", lambda s: _of(s, "partitions"), 5),
    Column("EVENTS/S", lambda s: _of(s, "rate"), 7),
    Column("LAG", lambda s: "-" if s.figures is None else compact(s.lag), 7),
    Column("P50", lambda s: _latency(s, "p50"), 7, keep=40),
    Column("P99", lambda s: _latency(s, "p99"), 7, keep=80),
    Column("COMMIT", lambda s: _age(s.worker.commit_age(s.job)) if s.figures is not None else "-", 6, keep=50),
    Column("LOST", lambda s: "-" if s.figures is None else _warn(s.figures.lost), 4, keep=64),
    Column("DEAD", lambda s: _of(s, "dead_letters"), 4, keep=62),
    Column("MODEL", lambda s: "-" if s.figures is None else _versions([s.figures.version]), keep=70, left=True),
    Column("REBALANCES", lambda s: _of(s, "rebalances"), keep=45),
    Column("SKIPPED", lambda s: _of(s, "skipped"), keep=15),
    Column("RESCUED", lambda s: _of(s, "rescued"), keep=20),
    Column("EVENTS", lambda s: _of(s, "events"), 7, keep=10),
    Column("UP", lambda s: _up(s.worker), 6, keep=12),
]


def _up(worker: WorkerRecord) -> str:
    return duration_text(max(0, worker.seen_at - worker.began_at) / 1000) if worker.began_at else "-"
