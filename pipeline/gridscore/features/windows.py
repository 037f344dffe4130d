"""Windows of a job: which series of events each entity keeps, and what features see of them.

The state of an entity is bytes, and the kernel is pure: from states and events in the order of their arrival to columns
and new states. However events are cut into batches, an event gets the same bits and the state is the same. The inner
loop is compiled (`_windows.c`); `window_kernel` is its twin.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.compiled import compiled
from gridscore.features import window_kernel
from gridscore.features.program import Program
from gridscore.features.times import END, FIRST, to_text
from gridscore.features.window_kernel import FUNCTIONS, MAX_OPEN, MOST_BYTES, Kind, head_of
from gridscore.job.check import compile_features
from gridscore.job.expressions import Scope, compile_expression
from gridscore.job.nodes import Node
from gridscore.job.syntax import parse
from gridscore.job.types import Type
from gridscore.job.windows import call_of, calls_of, is_windowed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.features.window_kernel import Head
    from gridscore.job import Job
    from gridscore.job.windows import WindowCall

_fast = compiled("gridscore.features._windows")
_run: Any = window_kernel.run if _fast is None else _fast.run
is_compiled = _fast is not None

_ANY = Node("constant", (), Type.BOOL, value=True)
_MISSING = Node("constant", (), Type.NUMBER, None)


class Series(NamedTuple):
    """Events that an entity keeps, each with a value: as the kernel takes it."""

    kind: float  # how they are kept; see `Kind`
    seconds: float  # how long
    last: float  # how many
    column: float  # of the events' values; NaN for one that does not belong here
    bare: float  # whether all values are 1, and none is kept


class Call(NamedTuple):
    """What a feature asks of a series: as the kernel takes it."""

    function: float
    series: float  # number of the series
    last: float  # of how many events
    column: float  # of the present event's values, for `seen`


@dataclass(slots=True)
class Layout:
    """What entities of a window keep."""

    name: str
    series: list[Series] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)  # the number of each call among all of the job
    # What the kernel needs of each event: a value, and the condition on which it counts.
    columns: list[Node] = field(default_factory=list)

    @property
    def most_bytes(self) -> int:
        """The most that the state of an entity takes."""
        return MOST_BYTES["header"] + sum(
            MOST_BYTES[Kind(int(each.kind)).name] + int(each.last) * 20 for each in self.series
        )


def layouts_of(job: Job) -> list[Layout]:
    """What the entities of each window that a feature uses keep, in the order of the job's windows."""
    found = {name: Layout(name) for name in job.windows}
    numbers: dict[Any, int] = {}
    for output, node in enumerate(
        calls_of(compile_features(job.features, job.schema_, job.lookups, job.windows).values())
    ):
        call = call_of(node)
        layout = found[call.window]
        value, where = node.args
        column = _column(layout, _counted(value, where), numbers)
        kind = _kind(call)
        bare = float(value.op == "constant" and (kind != Kind.ROWS or where == _ANY))
        wanted = Series(kind, call.seconds, float(call.last), column, bare)
        key = (call.window, wanted[:2], wanted.column)
        number = numbers.setdefault(key, len(layout.series))
        if number == len(layout.series):
            layout.series.append(wanted)
        elif layout.series[number].last < wanted.last:
            layout.series[number] = wanted
        probe = _column(layout, _counted(value, _ANY), numbers) if call.function == "seen" else 0.0
        layout.calls.append(Call(float(FUNCTIONS.index(call.function)), float(number), float(call.last), probe))
        layout.outputs.append(output)
    return [layout for layout in found.values() if layout.calls]


def texts_of(job: Job) -> list[str]:
    """How the job file writes each call, in the order of their numbers."""
    scope, texts = Scope(job.schema_, {}, windows=job.windows), dict[Node, str]()
    for expression in (each for feature in job.features.values() for each in feature.expressions):
        for part in ast.walk(parse(expression)):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and is_windowed(part.func.id, part):
                text = ast.unparse(part)
                texts.setdefault(compile_expression(text, scope), text)
    nodes = compile_features(job.features, job.schema_, job.lookups, job.windows)
    return [texts[node] for node in calls_of(nodes.values())]


def _kind(call: WindowCall) -> Kind:
    if call.function == "decayed":
        return Kind.DECAY
    if call.last:
        return Kind.LAST if call.function in ("last", "lag", "seconds_since_last") else Kind.ROWS
    return Kind.VALUES if call.function in ("distinct", "seen") else Kind.SPAN


def _counted(value: Node, where: Node) -> Node:
    return value if where == _ANY else Node("where", (where, value, _MISSING), Type.NUMBER)


def _column(layout: Layout, node: Node, numbers: dict[Any, int]) -> float:
    number = numbers.setdefault((layout.name, node), len(layout.columns))
    if number == len(layout.columns):
        layout.columns.append(node)
    return float(number)


class Inputs(NamedTuple):
    """What a window needs of some events."""

    keys: list[Any]  # the entity of each; None where there is none
    columns: NDArray[np.float64]  # a row a column of the layout


_text = to_text()


def _moment(seconds: float) -> str:
    """A time, for people."""
    return _text(np.floor([seconds]))[0] or f"{seconds:.15g} s after 1970"


class Windows:
    """Computes the windows of a job.

    `layouts`: what entities keep, by window; `calls`: how many there are in all of them; `late`: events so far that
    were too late to count, in any window; `tells_late`: whether what an event finds in a window has a number more than
    there are calls: if it was late, how many seconds it is older than the newest event of its entity.
    """

    def __init__(self, job: Job) -> None:
        self.layouts = layouts_of(job)
        self.late = 0
        self.tells_late = job.late is not None
        self.calls = sum(len(layout.calls) for layout in self.layouts)
        self._lateness = job.lateness_seconds
        self._order_by = job.order_by or ""
        self._unit = job.schema_[self._order_by].unit if self._order_by else ""
        self._program = Program(job, {}, None)
        self._specs = [
            (np.array(layout.series, np.float64), np.array(layout.calls, np.float64)) for layout in self.layouts
        ]
        self._slots = [
            (self._program.entities(layout.name), self._program.columns(layout.columns)) for layout in self.layouts
        ]

    def inputs(self, events: EventColumns) -> list[Inputs]:
        """What each window needs of these events, in the order of the layouts."""
        count = len(events)
        # As in `FeaturePlan.inputs`: a row alone is computed as one of two.
        rows = events.take((0, 0)) if count == 1 else events
        with np.errstate(all="ignore"):
            parts = self._program.run_in_parts(rows)
        return [
            Inputs(
                [key for values in parts for key in values[keys]][:count],
                np.array([np.concatenate([values[slot] for values in parts])[:count] for slot in slots], np.float64),
            )
            for keys, slots in self._slots
        ]

    def untimely(self, events: EventColumns, end: float = END) -> dict[int, str]:
        """The events that happened before the year 1, or not before `end`, each with what its time is.

        One such event would set the floor of its entity, below which no other counts any more.
        """
        times = np.asarray(events.column(self._order_by), np.float64)
        rows = np.flatnonzero(~((times >= FIRST) & (times < end))).tolist()
        name, unit = self._order_by, self._unit
        hint = {"s": " (is its unit `ms`, not `s`?)", "ms": " (is it in microseconds?)"}.get(unit, "")
        return {
            row: f"its `{name}` is {_moment(at)}{hint * (at >= END)}"
            for row, at in zip(rows, times[rows].tolist(), strict=True)
        }

    def look(self, number: int, state: bytes) -> tuple[Head, list[float]]:
        """What a state begins with, and what an event at the time of its newest one would see: a number a call.

        `number`: of the window, among the layouts. Raises ValueError if it is not a state of that window.
        """
        layout, head = self.layouts[number], head_of(state)
        one, columns = np.zeros(1, np.int64), np.full((len(layout.columns), 1), math.nan)
        out = np.full((len(layout.calls), 1), math.nan)
        _run(*self._specs[number], self._lateness, [state], one, one, np.array([head.newest]), columns, out)
        return head, out[:, 0].tolist()

    def apply(
        self,
        events: EventColumns,
        inputs: Sequence[Inputs],
        # Of entities by key, for each window; one that is not there has had no events.
        states: Sequence[Mapping[Any, bytes]],
        # Of the events; one that is not above that of its entity's state changes nothing. Without them, or for one
        # below 0, every event counts.
        sequences: Sequence[int] | None = None,
    ) -> tuple[EventColumns, list[dict[Any, bytes]]]:
        """Add events to their windows, in this order; nothing that is given is changed.

        Returns: the events with what each found in its windows; and the states of their entities afterwards. Raises
        ValueError if a state is not one of these windows.
        """
        times = self.times(events)
        parts = [
            self.add(number, one, times, known, sequences)
            for number, (one, known) in enumerate(zip(inputs, states, strict=True))
        ]
        return self.seen(events, [found for found, _ in parts]), [after for _, after in parts]

    def width(self, number: int) -> int:
        """How many numbers an event finds in a window, among the layouts."""
        return len(self.layouts[number].calls) + self.tells_late

    def seen(self, events: EventColumns, found: Sequence[NDArray[np.float64]]) -> EventColumns:
        """The events with what each found in its windows: of each, a row a call, and what `late_in` tells."""
        outputs: list[Any] = [None] * self.calls
        for layout, out in zip(self.layouts, found, strict=True):
            for output, values in zip(layout.outputs, out, strict=False):
                outputs[output] = values
        return events.with_windows(outputs + [out[-1] for out in found] * self.tells_late)

    def late_in(self, number: int, events: EventColumns) -> NDArray[np.float64]:
        """How many seconds too late events are older than the newest one, of those that `seen` gave; else NaN."""
        return events.window(self.calls + number)

    def times(self, events: EventColumns) -> NDArray[np.float64]:
        return np.ascontiguousarray(events.column(self._order_by), np.float64)

    def add(
        self,
        number: int,
        inputs: Inputs,
        times: NDArray[np.float64],
        states: Mapping[Any, bytes],
        sequences: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float64], dict[Any, bytes]]:
        """The same, of one window among the layouts: what each event found, a row a call; and the states afterwards."""
        count = len(times)
        numbers = np.full(count, -1, np.int64) if sequences is None else np.array(sequences, np.int64)
        index: dict[Any, int] = {}
        entities = np.fromiter(
            (-1 if key is None else index.setdefault(key, len(index)) for key in inputs.keys), np.int64, count
        )
        out = np.full((self.width(number), count), math.nan)
        before = [states.get(key, b"") for key in index]
        spec, columns = self._specs[number], inputs.columns
        changed, late = _run(*spec, self._lateness, before, entities, numbers, times, columns, out)
        self.late += late
        return out, dict(zip(index, changed, strict=True))


def why_late(job: Job) -> str:
    """Why events did not count."""
    return (
        f"is older than a row of its entity before it by more than the job's `lateness` ({job.lateness}), or more than "
        f"{MAX_OPEN} of those rows are newer, the most that are kept in order: it would not count in windows."
    )


class History:
    """Windows over a history, its events in the order in which they came."""

    def __init__(self, job: Job) -> None:
        self._windows = Windows(job)
        self._states: list[dict[Any, bytes]] = [{} for _ in self._windows.layouts]

    @property
    def late(self) -> int:
        """Events so far that were too late to count."""
        return self._windows.late

    def untimely(self, events: EventColumns) -> dict[int, str]:
        """See `Windows.untimely`; none, if there are no windows."""
        return self._windows.untimely(events) if self._states else {}

    def add(self, events: EventColumns) -> EventColumns:
        """The next events, with what each found in its windows."""
        if not events or not self._states:
            return events
        events, after = self._windows.apply(events, self._windows.inputs(events), self._states)
        for states, changed in zip(self._states, after, strict=True):
            states.update(changed)
        return events
