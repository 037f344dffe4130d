"""The program of a batch: expressions of a job lowered to a list of column operations, each done once.

Nothing of an expression's text is left here: a step is a function of ours and the numbers of its operands.
"""

from __future__ import annotations

from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from gridscore.errors import ModelMismatchError
from gridscore.features import arrays
from gridscore.features.encodings import Encoding, How
from gridscore.features.lookup_table import LookupHistory
from gridscore.features.operations import COLUMNAR, ELEMENTWISE, MAX_TEXTS, TextsTooLongError, check_texts
from gridscore.job.check import compile_decisions, compile_features, compile_keys, compile_margin
from gridscore.job.nodes import INTEGERS, Node, find
from gridscore.job.types import Type
from gridscore.job.windows import calls_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.features.encodings import Learnt
    from gridscore.features.lookup_table import LookupTable
    from gridscore.job import FieldType, Job, Lookup, Window

T = TypeVar("T")
_NAN = float("nan")
_HELD_TEXTS = 4 * MAX_TEXTS  # characters at most of all the texts of categories, which are all there at once


class _Ref(NamedTuple):
    """Where a value is, and whether it is one for all rows."""

    slot: int
    scalar: bool = False


_COUNT = _Ref(0, scalar=True)
_EVENTS = _Ref(1)
_SCORES = _Ref(2)


class _Step(NamedTuple):
    run: Callable[..., Any]
    args: tuple[int, ...]
    out: int
    last: tuple[int, ...] = ()  # what nobody needs afterwards


def in_parts(rows: int, compute: Callable[[slice], T]) -> list[T]:
    """What is computed of all rows; or of half of them at a time, and so on, where their texts would be too many."""
    waiting, found = [slice(0, rows)], []
    while waiting:
        part = waiting.pop()
        try:
            found.append(compute(part))
        except TextsTooLongError:
            half = (part.start + part.stop) // 2
            waiting += slice(half, part.stop), slice(part.start, half)
    return found


def returned_by(nodes: Iterable[Node]) -> list[Node]:
    """The different features that Python functions make, always in the same order."""
    return [node for node in dict.fromkeys(nodes) if node.op == "python"]


class Program:
    """A list of steps from events to columns.

    Args:
        categories: What training has learnt for each feature that learns: its categories, or its encoding.

    Outputs are asked for with `feature`, `margin`, `conditions`, `category_values`, `encoded_values`, `keys`,
    `entities`, `key` and `columns`, before the first run. What is no output is let go after its last use: a job may
    have millions of numbers a row.
    """

    def __init__(self, job: Job, tables: Mapping[str, LookupTable], categories: Mapping[str, Learnt] | None) -> None:
        job.require_features()
        self._job = job
        self._tables = tables
        self._categories = categories
        self._nodes = compile_features(job.features, job.schema_, job.lookups, job.windows)
        self._windows = {node: number for number, node in enumerate(calls_of(self._nodes.values()))}
        self._functions = {node: number for number, node in enumerate(returned_by(self._nodes.values()))}
        self._values: list[Any] = [None, None, None]  # the number of rows, the events, and what the model said
        self._steps: list[_Step] = []
        self._memo: dict[Any, _Ref] = {}
        self._outputs: set[int] = set()
        self._texts_held = 0
        self.lookup_slots: dict[str, int] = {}

    # ------------------------------------------------------------------ outputs

    def feature(self, name: str) -> int:
        """The slot of a feature's values: an array, or a single number."""
        return self._output(self._feature(name))

    def margin(self) -> int | None:
        """The slot of the margins: an array, or a single number; None if the job has none."""
        job = self._job
        if job.margin is None:
            return None
        node = compile_margin(job.margin, job.features, job.schema_, job.lookups)
        self._earlier(node)
        return self._output(self._with_default(node, job.margin.default))

    def conditions(self) -> list[int]:
        """The slots of the conditions of all decisions but the last: arrays of bool, or one for all rows."""
        job = self._job
        slots = []
        for node in compile_decisions(job.decisions, job.classes, job.features, job.schema_, job.lookups):
            self._earlier(node)
            slots.append(self._output(self._lower(node)))
        return slots

    def category_values(self) -> dict[str, tuple[int, bool]]:
        """The slots of what is made a category, by feature: lists of strings; and whether they are those of numbers."""
        found = {}
        for name, node in self._nodes.items():
            inner = find(node, "category")
            if inner is not None:
                text = inner.args[0]
                self._earlier(text)
                found[name] = self._output(self._category(text)), text.op in {"string_of_int", "string_of_number"}
        return found

    def encoded_values(self) -> dict[str, tuple[int, How]]:
        """The slots of the texts that get a number that training learns, by feature; and what it is to learn."""
        found = {}
        for name, node in self._nodes.items():
            inner = find(node, "encoded")
            if inner is not None:
                self._earlier(inner.args[0])
                _, function, parameter = cast("tuple[str, str, float]", inner.value)
                found[name] = self._output(self._category(inner.args[0])), How(function, parameter)
        return found

    def keys(self, lookup: str) -> int:
        """The slot of the keys of a lookup: a list of strings or integers, None where there is none."""
        return self.key(self._job.lookups[lookup])

    def entities(self, window: str) -> int:
        """The slot of the keys of a window: a list of strings or integers, None where there is none."""
        return self.key(self._job.windows[window])

    def key(self, of: Lookup | Window) -> int:
        """The slot of keys by any other rule."""
        return self._output(self._keys(of))

    def columns(self, nodes: Sequence[Node]) -> list[int]:
        """The slots of what a window holds, or a function takes: a column each."""
        for node in nodes:
            self._earlier(node)
        return [self._output(self._column(node)) for node in nodes]

    def run(self, events: EventColumns, scores: NDArray[np.float32] | None = None) -> list[Any]:
        """The values of all outputs for these events, by slot, and their scores where conditions are asked for.

        Raises TextsTooLongError: of so many events, texts that are made would be too many; see `in_parts`.
        """
        values = self._values.copy()
        values[_COUNT.slot] = len(events)
        values[_EVENTS.slot] = events
        values[_SCORES.slot] = scores
        for run, args, out, last in self._ordered:
            values[out] = run(*[values[arg] for arg in args])
            for slot in last:
                values[slot] = None
        return values

    def run_in_parts(self, events: EventColumns) -> list[list[Any]]:
        """What `run` gives for all events; in parts where it must be."""
        return in_parts(len(events), lambda rows: self.run(events[rows]))

    @cached_property
    def _ordered(self) -> list[_Step]:
        """The steps, each with the slots that it is the last to need."""
        needed = {*self._outputs, *self.lookup_slots.values()}
        made = {step.out for step in self._steps}
        steps = []
        for step in reversed(self._steps):
            last = ({*step.args, step.out} & made) - needed
            needed |= last
            steps.append(step._replace(last=tuple(last)))
        return steps[::-1]

    def _output(self, ref: _Ref) -> int:
        self._outputs.add(ref.slot)
        return ref.slot

    # ------------------------------------------------------------------ lowering

    def _slot(self, value: Any = None) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _step(self, run: Callable[..., Any], *args: _Ref, scalar: bool = False) -> _Ref:
        out = self._slot()
        self._steps.append(_Step(run, tuple(arg.slot for arg in args), out))
        return _Ref(out, scalar)

    def _lower(self, node: Node) -> _Ref:
        found = self._memo.get(node)
        if found is None:
            found = self._memo[node] = self._lowered(node)
        return found

    def _lowered(self, node: Node) -> _Ref:
        value: Any = node.value
        match node.op:
            case "constant":
                missing = None if node.type == Type.STRING else _NAN
                return _Ref(self._slot(missing if value is None else value), scalar=True)
            case "field" | "int_field":
                return self._field(value)
            case "item" | "int_item":
                items = self._raw_of(node)
                return items if node.type == Type.STRING else self._step(arrays.numbers(self._part(*value[:2])), items)
            case "array":
                name, part, function = value
                if function == "len":
                    return self._step(arrays.lengths, self._raw(name))
                return self._step(arrays.computed(function, part, self._part(name, part)), self._raw(name))
            case "lookup":
                return self._gather(*value)
            case "feature":
                return self._feature(value)
            case "window":
                number = self._windows[node]
                return self._step(lambda events: events.window(number), _EVENTS)
            case "python":
                place = self._functions[node]
                return self._step(lambda events: events.returned[place], _EVENTS)
            case "score":
                return self._step(_scores_of(value), _SCORES)
            case "label":
                return self._step(_labels(self._job.classes), _SCORES)
            case "category":
                return self._step(self._encoder(value), self._category(node.args[0]))
            case "encoded":
                return self._step(self._encoder(value[0], value[1]), self._column(node.args[0]))
            case "to_number" if node.args[0].nullable:
                return self._lower(node.args[0])  # a column that can say "missing" is a number already
            case "string_of_int" if node.args[0].op == "lookup":
                return self._gather(*node.args[0].value, texts=True)  # type: ignore[misc]
            case "string_of_int":
                return self._step(COLUMNAR["string_of_int"](None), self._raw_of(node.args[0]))
            case "string_equal" | "string_not_equal" if any(arg.op == "constant" for arg in node.args):
                constant = next(arg for arg in node.args if arg.op == "constant")
                other = node.args[1] if node.args[0] is constant else node.args[0]
                member = Node("string_in", (other,), Type.BOOL, (constant.value,))
                return self._lower(member if node.op == "string_equal" else Node("not", (member,), Type.BOOL))
        if node.op in ELEMENTWISE:
            args = [self._lower(arg) for arg in node.args]
            return self._step(ELEMENTWISE[node.op], *args, scalar=all(arg.scalar for arg in args))
        return self._step(COLUMNAR[node.op](value), *(self._column(arg) for arg in node.args))

    def _column(self, node: Node) -> _Ref:
        """The value with one item a row."""
        ref = self._lower(node)
        if not ref.scalar:
            return ref
        memo = ("column", ref.slot)
        if memo not in self._memo:
            fill = _repeat if node.type == Type.STRING else _fill
            self._memo[memo] = self._step(fill, ref, _COUNT)
        return self._memo[memo]

    def _category(self, node: Node) -> _Ref:
        """The texts that are made a category, which are kept to the end to be counted."""
        ref = self._column(node)
        if node.op in ("field", "lookup"):  # they are those of the event or the table
            return ref
        memo = ("category", ref.slot)
        if memo not in self._memo:
            self._texts_held += 1
            self._memo[memo] = self._step(lambda texts: check_texts(texts, _HELD_TEXTS // self._texts_held), ref)
        return self._memo[memo]

    def _raw(self, name: str) -> _Ref:
        """The values of a field as decoded."""
        memo = ("raw", name)
        if memo not in self._memo:
            self._memo[memo] = self._step(lambda events: events.objects(name), _EVENTS)
        return self._memo[memo]

    def _raw_of(self, node: Node) -> _Ref:
        """The values of a field, or of an item of an array, as decoded."""
        if node.op == "int_field":
            return self._raw(str(node.value))
        name, part, index = cast("tuple[str, str, int]", node.value)
        memo = ("item", *node.value)  # type: ignore[misc]
        if memo not in self._memo:
            self._memo[memo] = self._step(arrays.items(part, index), self._raw(name))
        return self._memo[memo]

    def _part(self, name: str, part: str) -> FieldType:
        return self._job.schema_[name].of[part]

    def _field(self, name: str) -> _Ref:
        if self._job.schema_[name].type == "string":
            return self._raw(name)
        return self._step(lambda events: events.column(name), _EVENTS)

    def _feature(self, name: str) -> _Ref:
        memo = ("feature", name)
        if memo not in self._memo:
            self._memo[memo] = self._with_default(self._nodes[name], self._job.features[name].default)
        return self._memo[memo]

    def _earlier(self, node: Node) -> None:
        """Lower the features that a value is made of, from the first on: each may be made of the one before it."""
        needed: set[Any] = set()
        waiting = [node]
        while waiting:
            each = waiting.pop()
            waiting.extend(() if each.op == "python" else each.args)  # what functions take was computed before
            if each.op == "feature" and each.value not in needed:
                needed.add(each.value)
                waiting.append(self._nodes[str(each.value)])
        for name in self._nodes:
            if name in needed:
                self._feature(name)

    def _with_default(self, node: Node, default: float | None) -> _Ref:
        ref = self._lower(node)
        if default is None or (node.type == Type.BOOL and not node.nullable):
            return ref
        return self._step(_or_default(default), ref, scalar=ref.scalar)

    def _gather(self, lookup: str, field: str, *, texts: bool = False) -> _Ref:
        memo = ("rows", lookup)
        table = self._tables[lookup]
        if memo not in self._memo:
            self._memo[memo] = self._rows(lookup, table)
            self.lookup_slots[lookup] = self._memo[memo].slot
        gather = table.gather_texts if texts else table.gather
        return self._step(lambda rows: gather(field, rows), self._memo[memo])

    def _rows(self, lookup: str, table: LookupTable) -> _Ref:
        job, valid_to = self._job, self._job.lookups[lookup].valid_to
        if isinstance(table, LookupHistory):
            rows = self._step(table.rows_at, self._keys(job.lookups[lookup]), self._field(str(job.order_by)))
        else:
            rows = self._rows_now(lookup, table)
        if valid_to is None:
            return rows
        return self._step(
            lambda rows, times: np.where(table.gather(valid_to, rows) <= times, 0, rows),
            rows,
            self._field(str(job.order_by)),
        )

    def _rows_now(self, lookup: str, table: LookupTable) -> _Ref:
        nodes = compile_keys(self._job.lookups[lookup], self._job.schema_)
        if len(nodes) == 1 and (nodes[0].op == "int_field" or (nodes[0].op, nodes[0].type) == ("field", Type.STRING)):
            field = str(nodes[0].value)
            return self._step(lambda events: table.rows_of(events, field), _EVENTS)
        return self._step(table.rows, self._keys(self._job.lookups[lookup]))

    def _keys(self, of: Lookup | Window) -> _Ref:
        memo = ("keys", of.key, of.separator)
        if memo not in self._memo:
            nodes = compile_keys(of, self._job.schema_)
            if len(nodes) == 1:
                self._memo[memo] = self._single_key(nodes[0])
            else:
                parts = [self._column(_as_string(node)) for node in nodes]
                self._memo[memo] = self._step(_joiner(of.separator), *parts)
        return self._memo[memo]

    def _single_key(self, node: Node) -> _Ref:
        if node.op in INTEGERS:
            return self._raw_of(node)
        if node.type == Type.NUMBER:
            return self._step(_whole_numbers, self._column(node))
        return self._column(_as_string(node))

    def _encoder(self, feature: str, function: str = "category") -> Callable[[Any], Any]:
        if self._categories is None:  # they are still to be learnt
            return lambda column: np.full(len(column), _NAN)
        known = self._categories.get(feature)
        if known is None or isinstance(known, Encoding) is (function == "category"):
            what = "categories" if function == "category" else "encoding"
            raise ModelMismatchError(
                f"The model has no {what} for the feature `{feature}`, which the job file makes with `{function}`.",
                "Train it on a matrix of `gridscore features`, and attach that to the Booster before you save it.",
            )
        if isinstance(known, Encoding):
            return known.encoder()
        codes = {text: float(code) for code, text in enumerate(known)}
        return lambda column: np.fromiter(map(codes.get, column, repeat(_NAN)), np.float64, len(column))


def _as_string(node: Node) -> Node:
    if node.type == Type.STRING:
        return node
    if node.type == Type.TIMESTAMP:
        return Node("string_of_timestamp", (node,), Type.STRING)
    op = "string_of_int" if node.op in INTEGERS else "string_of_number"
    return Node(op, (node,), Type.STRING)


def _scores_of(number: int | None) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """The score, of several the highest; or that of a class by its number."""

    def of(scores: NDArray[np.float32]) -> NDArray[np.float64]:
        if scores.ndim > 1:
            found = scores.max(axis=1) if number is None else scores[:, number]
        else:  # of two classes, it is the second's
            found = np.float32(1) - scores if number == 0 else scores
        return found.astype(np.float64)

    return of


def class_numbers(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The class of each event, of so many: that with the highest score, of equal ones the first.

    Of two classes, one score is the second's, and decides as scikit-learn does; of more it is the number itself, as
    `multi:softmax` gives it. (That of two classes is 0 or 1.)
    """
    found: NDArray[np.intp] = (
        scores.argmax(axis=1) if scores.ndim > 1 else (scores > 0.5 if count == 2 else scores).astype(np.intp)
    )
    return found


def _labels(classes: Sequence[str]) -> Callable[[NDArray[np.float32]], list[str]]:
    return lambda scores: list(map(classes.__getitem__, class_numbers(scores, len(classes)).tolist()))


def _fill(value: Any, count: int) -> Any:
    return np.full(count, value)


def _repeat(value: Any, count: int) -> list[Any]:
    return [value] * count


def _or_default(default: float) -> Callable[[Any], Any]:
    # What is beyond a float32 would be missing to the model.
    return lambda value: np.where(np.isfinite(np.asarray(value, np.float32)), value, default)


def _whole_numbers(column: Any) -> list[int | None]:
    """As keys; none has more than 64 bits."""
    return [int(value) if value.is_integer() and -(2.0**63) <= value < 2.0**63 else None for value in column.tolist()]


def _joiner(separator: str) -> Callable[..., list[str | None]]:
    join = separator.join

    def joined(*parts: Sequence[str | None]) -> list[str | None]:
        try:
            return list(map(join, zip(*parts, strict=True)))
        except TypeError:  # a part is missing somewhere
            return [None if None in row else join(row) for row in zip(*parts, strict=True)]

    return joined
