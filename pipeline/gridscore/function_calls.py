"""Calls Python functions of users: where they may come from, what they are given, and what they may return.

A worker runs this in a process of its own (`main`), which `features.function_process` starts, asks, and ends when it
hangs; so it imports little. They speak over pipes: a length, then MessagePack. Columns go as their bytes, texts as
lists; nothing that could name code. What functions print goes nowhere. The system ends the process when a call has used
up its processor time, or its parent has gone; no code of the call needs to hear of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from gridscore.errors import FunctionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

MOST_TOLD = 3_000
"""Characters of a traceback that are kept, the last ones."""
_FRAMES = 8
COLD = 10  # how many times as long the first call in a process may compute, as it may import or compile
LENGTH = 4  # bytes of a message's length


class Call(NamedTuple):
    """A function, and how it is called.

    Attributes:
        target: As the job names it.
        names: Columns of the DataFrame that it takes; none if it takes arrays.
        columns: Of what it returns; one without a name if that is itself the column.
        cpu: Seconds of processor time that a call may use.
    """

    target: str
    names: tuple[str, ...]
    columns: tuple[str | None, ...]
    cpu: float


class Failure(NamedTuple):
    """Why a function has given nothing, and into how many parts its rows are to be cut to find those that did it."""

    why: str
    parts: int = 2


Answer = list["NDArray[np.float64]"] | Failure


encode = msgspec.msgpack.Encoder().encode
Column = tuple[str, bytes | list[str | None]]


class Start(msgspec.Struct, array_like=True):
    """What the process begins with."""

    calls: list[Call]
    allowed: list[str]
    memory: int
    parent: int


class Question(msgspec.Struct, array_like=True):
    """A call, by its number among those of the start."""

    number: int
    rows: int
    columns: list[Column]


class Reply(msgspec.Struct, array_like=True):
    """Columns of float64; or why there are none."""

    columns: list[bytes] = []
    why: str = ""
    hint: str = ""


start_of = msgspec.msgpack.Decoder(Start).decode
question_of = msgspec.msgpack.Decoder(Question).decode
reply_of = msgspec.msgpack.Decoder(Reply).decode


def answered(function: Callable[..., Any], call: Call, arrays: list[NDArray[Any]], rows: int) -> Answer:
    """What a function returns, as columns of numbers; or why that is nothing that a feature can be."""
    try:
        given: list[Any] = arrays
        if call.names:
            import pandas as pd

            frame = pd.DataFrame(dict(zip(call.names, arrays, strict=True)))
            for name, array in zip(call.names, arrays, strict=True):
                if array.dtype.kind == "M":
                    frame[name] = frame[name].dt.tz_localize("UTC")
            given = [frame]
        returned = function(*given)
        return [_numbers(returned if name is None else returned[name], rows) for name in call.columns]
    except _UnfitError as error:
        return Failure(str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it is, it must not stop the others
        return Failure(_told(error))


class _UnfitError(Exception):
    """What was returned is no column of a feature."""


def _numbers(value: Any, rows: int) -> NDArray[np.float64]:
    """A column that was returned.

    Raises:
        _UnfitError: It has not a number for each row.
    """
    if hasattr(value, "sort_index") and hasattr(value, "to_numpy") and value.ndim == 1:
        value = value.sort_index()  # rows keep their places, as when a frame is given a column
        if value.index.tolist() != list(range(rows)):
            raise _UnfitError(f"returned {len(value)} values with an index of their own for {rows} rows")
        if value.dtype.kind in "fiub":
            value = value.to_numpy(np.float64, na_value=np.nan)
    array = np.asarray(value)
    if array.shape != (rows,):
        raise _UnfitError(f"returned something of the shape {array.shape} for {rows} rows: a number a row is needed")
    if array.dtype.kind not in "fiub":
        raise _UnfitError(f"returned values of the type {array.dtype}: a feature is a number")
    return array.astype(np.float64)


def _told(error: BaseException) -> str:
    """An error with the end of its traceback, from the function on; nothing of the values in it."""
    told = "".join(traceback.format_exception_only(error)).strip()[:500]
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    where = "".join(traceback.format_tb(frames, limit=-_FRAMES))[-MOST_TOLD:]
    return f"raised {told}\n{where}".rstrip().encode(errors="backslashreplace").decode()


# ------------------------------------------------------------------ where they come from


_INSTALL = "Install the distribution that has it where this runs."


def _is_allowed(module: str, allowed: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{each}.") for each in allowed)


def require_allowed(target: str, allowed: Collection[str]) -> None:
    """Refuse a function whose module is not allowed. Nothing is imported.

    Raises:
        FunctionError: It is not.
    """
    module = target.partition(":")[0]
    if not _is_allowed(module, allowed):
        raise FunctionError(
            f"The job calls the Python function `{target}`, and functions of `{module}` are not allowed here.",
            f"Whoever runs this can allow them: `--allow-python {module}`, or GRIDSCORE_ALLOW_PYTHON; in a program, "
            f'`gridscore.allow_python("{module}")`.',
        )


def resolved(target: str, allowed: Collection[str]) -> Callable[..., Any]:
    """A function that is allowed.

    Raises:
        FunctionError: It is not, cannot be imported, or is one of another module that is not allowed.
    """
    require_allowed(target, allowed)
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"[:500]
        raise FunctionError(f"The Python function `{target}` cannot be imported here: {why}.", _INSTALL) from error
    home = getattr(function, "__module__", None)
    if not callable(function) or not isinstance(home, str) or not _is_allowed(home, allowed):
        what = f"is of `{home}`, which is not allowed" if callable(function) else "is not a function"
        raise FunctionError(
            f"`{target}` {what}.", f"Name a function that `{module}` defines itself; a `def` around another will do."
        )
    found: Callable[..., Any] = function
    return found


def distribution_of(target: str) -> str:
    """The distribution here that has a function, and its version; empty if there is none."""
    from importlib import metadata

    return ", ".join(f"{name} {metadata.version(name)}" for name in _distributions(target.partition(":")[0]))


@functools.cache
def _distributions(module: str) -> list[str]:
    from importlib import metadata

    top = module.partition(".")[0]
    # `packages_distributions` reads each line of each, in ten times the time. Several may share a namespace.
    whole, first = (re.compile(rf"^{re.escape(path)}[/.]", re.MULTILINE) for path in (module.replace(".", "/"), top))
    records = [(each.name, each.read_text("RECORD") or "", each) for each in metadata.distributions()]
    if found := {name for name, record, _ in records if whole.search(record)}:
        return sorted(found)
    return sorted(
        name
        for name, record, each in records
        if first.search(record) or top in (each.read_text("top_level.txt") or "").split()
    )


def packed(array: NDArray[Any]) -> Column:
    kind = array.dtype.kind
    return kind, array.tolist() if kind == "O" else array.tobytes()


_DTYPES = {"f": "float64", "b": "bool", "M": "datetime64[us]"}


def _unpacked(column: Column) -> NDArray[Any]:
    """The same array; it can be written to."""
    kind, data = column
    if isinstance(data, bytes):
        return np.frombuffer(data, _DTYPES[kind]).copy()
    array = np.empty(len(data), object)
    array[:] = data
    return array


# ------------------------------------------------------------------ in the child


def main() -> None:
    """In the child: import functions, and call them as asked, until the input ends."""
    # Pipes of our own: what functions read or print must not be taken for ours.
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    start = start_of(_read(questions))
    _end_with(start.parent)
    try:
        functions = [resolved(call.target, start.allowed) for call in start.calls]
        if any(call.names for call in start.calls):
            import pandas as pd  # noqa: F401 -- it takes long the first time
    except FunctionError as error:
        _write(answers, Reply(why=error.message, hint=error.hint))
        return
    _limit(start.memory)
    _write(answers, Reply())
    warm: set[int] = set()
    while text := _read(questions):
        asked = question_of(text)
        _write(answers, _replied(functions[asked.number], start.calls[asked.number], asked, asked.number in warm))
        warm.add(asked.number)


def _replied(function: Callable[..., Any], call: Call, asked: Question, is_warm: bool) -> Reply:
    _alarm(call.cpu * (1 if is_warm else COLD))
    try:
        answer = answered(function, call, list(map(_unpacked, asked.columns)), asked.rows)
        return Reply(why=answer.why) if isinstance(answer, Failure) else Reply([each.tobytes() for each in answer])
    except MemoryError:
        return Reply(why="raised MemoryError")
    finally:
        _alarm(0)


def _read(questions: BinaryIO) -> bytes:
    return questions.read(int.from_bytes(questions.read(LENGTH), "little"))


def _write(answers: BinaryIO, reply: Reply) -> None:
    message = encode(reply)
    answers.write(len(message).to_bytes(LENGTH, "little") + message)
    answers.flush()


def _limit(memory: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold events


def _alarm(seconds: float) -> None:
    """Have the system end this process when it has computed for so long, in whatever code; 0: no longer.

    Only what it computes itself counts: not a pause, and not a machine that is busy with others.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """Have the system end this process when its parent has gone. Where it cannot, the end of the input does."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
