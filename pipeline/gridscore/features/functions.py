"""Python functions of users as features: which a job has, what each takes, and for which events one fails.

A function takes columns of a micro-batch and returns one number a row. Training calls it in the user's own process, a
worker in a process of its own (`function_process`); both by `function_calls`, with the same arrays.
"""

from __future__ import annotations

from importlib import util
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.errors import FunctionError
from gridscore.features.program import Program, returned_by
from gridscore.function_calls import Answer, Call, Failure, answered, distribution_of, resolved
from gridscore.job.check import compile_features
from gridscore.job.types import Type

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from numpy.typing import NDArray

    from gridscore.features.columns import EventColumns
    from gridscore.features.lookup_table import LookupTable
    from gridscore.job import Job
    from gridscore.job.nodes import Node

_MOST_SECONDS = 9.0e12
_COMPARED = 256

_allowed: set[str] = set()


def allow_python(*modules: str) -> None:
    """Allow jobs to call Python functions of these modules, and of all below them, in this process.

    Whoever can write a job file can then have any of them called. It is for training, backtests and the like; a worker
    calls functions in a process of its own, as its option `--allow-python` allows.
    """
    _allowed.update(modules)


def allowed() -> list[str]:
    """What jobs may call in this process, and in those that it starts for the time of a command."""
    return sorted(_allowed)


class Request(NamedTuple):
    """What a function is asked: `arrays` are columns of so many rows."""

    number: int
    call: Call
    arrays: list[NDArray[Any]]
    rows: int
    is_alone: bool  # of an event alone, which comes twice


Applied = tuple["EventColumns", dict[int, str]]
"""Events with what functions have returned, and why others have failed, by their rows before."""


class Functions:
    """The functions of a job, and what they take; here they are called in this process."""

    def __init__(self, job: Job, tables: Mapping[str, LookupTable]) -> None:
        nodes = returned_by(compile_features(job.features, job.schema_, job.lookups, job.windows).values())
        values: list[Any] = [node.value for node in nodes]
        together: dict[Any, list[int]] = {}  # what takes the same is called once, for all its columns
        for number, (target, names, _, cpu) in enumerate(values):
            together.setdefault((target, names, cpu, nodes[number].args), []).append(number)
        self.calls: list[Call] = []
        self._taken: list[tuple[Program, list[int], tuple[Node, ...], list[int]]] = []
        for (target, names, cpu, args), numbers in together.items():
            self.calls.append(Call(target, names, tuple(values[each][2] for each in numbers), cpu))
            program = Program(job, tables, None)
            self._taken.append((program, program.columns(args), args, numbers))
        self.most = [1 << 20] * len(self.calls)  # rows of a call
        self._found: list[Callable[..., Any]] = []

    def of(self, events: EventColumns) -> EventColumns:
        """Events with what functions return, if they do not have it.

        Raises:
            FunctionError: One is not allowed in this process, or has failed.
        """
        if events.returned is not None or not events:
            return events
        events, failed = self.applied(events)
        if failed:
            raise FunctionError(next(iter(failed.values())))
        return events

    async def apply(self, events: EventColumns) -> Applied:
        """The same, as a scorer asks."""
        return self.applied(events)

    def applied(self, events: EventColumns) -> Applied:
        """Call the functions for these events.

        Raises:
            FunctionError: One is not allowed in this process, or cannot be imported.
        """
        if not self._found:
            self._found = [resolved(call.target, _allowed) for call in self.calls]
        steps, answer = self._steps(events), None
        while True:
            try:
                request = steps.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                result: Applied = end.value
                return result
            answer = answered(self._found[request.number], request.call, request.arrays, request.rows)

    def require_row_wise(self, events: EventColumns) -> None:
        """Refuse functions that give some of these events other values now that they are alone, and backwards.

        Raises:
            FunctionError: One does.
        """
        rows = range(min(len(events), _COMPARED))[::-1]
        again, failed = self.applied(events.take(rows))
        places = [row for place, row in enumerate(rows) if place not in failed]
        for call, (*_, numbers) in zip(self.calls, self._taken, strict=True):
            for number in numbers:
                before, after = (each.returned[number] for each in (events.take(places), again))  # type: ignore[index]
                if (differ := np.flatnonzero((before != after) & ~(np.isnan(before) & np.isnan(after)))).size:
                    one, other = before[differ[0]], after[differ[0]]
                    raise FunctionError(
                        f"`{call.target}` gives the same event {one:g} among some events, and {other:g} among others.",
                        "Live, batches are whatever arrives: a function must make each row of that row alone, without "
                        "means, ranks, shifts, chance or state.",
                    )

    def _steps(self, events: EventColumns) -> Generator[Request, Answer, Applied]:
        """Ask for one call after another, and for parts of one that has failed, until it is known for which rows."""
        failed: dict[int, str] = {}
        kept = list(range(len(events)))
        events = events.with_returned({})
        for number, (call, (*_, numbers)) in enumerate(zip(self.calls, self._taken, strict=True)):
            found = np.full((len(numbers), len(events)), np.nan)
            wrong: dict[int, str] = {}
            waiting = [slice(0, len(events))] if events else []
            while waiting:
                part = waiting.pop()
                if (end := part.start + self.most[number]) < part.stop:
                    waiting.append(slice(end, part.stop))
                    part = slice(part.start, end)
                answer = yield from self._asked(number, call, events, part)
                if not isinstance(answer, Failure):
                    found[:, part] = answer
                elif (size := part.stop - part.start) > 1:
                    step = -(-size // answer.parts)
                    waiting += (slice(at, min(at + step, part.stop)) for at in range(part.start, part.stop, step))
                else:
                    wrong |= dict.fromkeys(range(part.start, part.stop), answer.why)
            good = [row for row in range(len(kept)) if row not in wrong]
            failed |= {kept[row]: f"`{call.target}` {why}" for row, why in wrong.items()}
            if wrong:
                kept, events, found = [kept[row] for row in good], events.take(good), found[:, good]
            events = events.with_returned(dict(zip(numbers, found, strict=True)))
        return events, dict(sorted(failed.items()))

    def _asked(self, number: int, call: Call, events: EventColumns, part: slice) -> Generator[Request, Answer, Answer]:
        rows = part.stop - part.start
        program, slots, nodes, _ = self._taken[number]
        # As in `FeaturePlan.inputs`: an event alone is given as one of two.
        some = events.take((part.start, part.start)) if rows == 1 else events[part]
        try:
            with np.errstate(all="ignore"):
                values = program.run_in_parts(some)
            arrays = [
                np.concatenate([_array(each[slot], node) for each in values])
                for slot, node in zip(slots, nodes, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not stop the others
            return Failure(f"was not called: {type(error).__name__}: {error}")
        answer = yield Request(number, call, arrays, len(some), is_alone=rows == 1)
        return answer if isinstance(answer, Failure) else [column[:rows] for column in answer]


def _array(column: Any, node: Node) -> NDArray[Any]:
    """A column as a function gets it: float64, bool, texts with None, or times in microseconds."""
    if node.type == Type.STRING:
        texts = np.empty(len(column), object)
        texts[:] = column
        return texts
    if node.type != Type.TIMESTAMP:
        return np.array(column, np.bool_ if node.type == Type.BOOL and not node.nullable else np.float64)
    known = np.abs(column) < _MOST_SECONDS
    times = np.round(np.where(known, column, 0.0) * 1e6).astype(np.int64).astype("datetime64[us]")
    times[~known] = np.datetime64("NaT", "us")
    return times


def whereabouts(target: str) -> str:
    """Where a function is, as far as that is known without running code of it."""
    module = target.partition(":")[0].partition(".")[0]
    return distribution_of(target) or ("installed here" if util.find_spec(module) else "not installed here")
