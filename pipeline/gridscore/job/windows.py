"""Windows: what expressions ask of the events of an entity that came before the present one.

`sum(amount, card, "1h", where=entry == "chip")` is a call: a function, what it is of, a window (which says whose
events), how far back, and which events count.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from gridscore.errors import ExpressionError
from gridscore.job.functions import WINDOWED
from gridscore.job.syntax import source_of
from gridscore.job.types import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.job.nodes import Node

MAX_SECONDS = 90 * 86_400.0
MAX_LAST = 100
MAX_CALLS = 100  # different calls in a job
MAX_WINDOWS = 16

_SPAN = re.compile(r"[1-9][0-9]{0,7}[smhd]")
_NO_VALUE = frozenset({"count", "seconds_since_last"})
# Functions without a choice between a time and `last=N`.
_NO_LAST = frozenset({"last", "lag", "seconds_since_last", "decayed"})


@dataclass(frozen=True, slots=True)
class WindowCall:
    """What a call asks, without its expressions."""

    window: str  # name of the window
    function: str  # which
    seconds: float = 0.0  # how far back it looks, or the half-life of `decayed`; 0: over the last events
    last: int = 0  # how many events back it looks; 0: a time


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call, its expressions not compiled yet; `value` is None for functions that count events."""

    call: WindowCall
    value: ast.expr | None
    where: ast.expr | None


def is_windowed(name: str, tree: ast.Call) -> bool:
    """Whether a call of a function is one of a window: `min(x, y)` is not, `min(x, card, "1h")` is."""
    if name not in ("min", "max"):
        return name in WINDOWED
    last = tree.args[-1] if tree.args else None
    return bool(tree.keywords) or (len(tree.args) == 3 and isinstance(getattr(last, "value", None), str))


def parse_call(name: str, tree: ast.Call) -> ParsedCall:
    """Read a call. Raises ExpressionError if it is not one."""
    example = f"as in `{WINDOWED[name]}`"
    args = list(tree.args)
    if any(isinstance(arg, ast.Starred) for arg in args) or any(each.arg is None for each in tree.keywords):
        raise ExpressionError(f"{source_of(tree)}: `*` before a value cannot be used in an expression")
    named = {str(each.arg): each.value for each in tree.keywords}
    spans = name not in _NO_LAST
    for key in named:
        if key != "where" and not (key == "last" and spans):
            possible = "`where` and `last`" if spans else "`where`"
            raise ExpressionError(f"`{name}` takes no argument `{key}`, only {possible}, {example}")
    value = None
    if name not in _NO_VALUE:
        value = args.pop(0) if args else None
        if value is None:
            raise ExpressionError(f"`{name}` needs a value, a window and how far back it looks, {example}")
    window = args.pop(0) if args else None
    if not isinstance(window, ast.Name):
        what = f"{source_of(window)} is not one" if window is not None else "there is none"
        raise ExpressionError(f"`{name}` needs the name of a window: {what}, {example}")
    where, count = named.get("where"), named.get("last")
    seconds, last = 0.0, 0
    if name == "lag":
        last = _whole(name, args.pop(0) if args else None, example)
    elif count is not None:
        last = _whole(name, count, example)
    elif name == "seconds_since_last" or (name == "last" and not args):
        last = 1
    else:
        seconds = _span(name, args.pop(0) if args else None, example)
    if args:
        also = "either a time or `last`" if count is not None else "no more"
        raise ExpressionError(f"`{name}` takes {also}, {example}: {source_of(args[0])} is too much")
    return ParsedCall(WindowCall(window.id, name, seconds, last), value, where)


def _span(name: str, tree: ast.expr | None, example: str) -> float:
    text = getattr(tree, "value", None)
    if not isinstance(text, str) or not _SPAN.fullmatch(text):
        not_one = f"; {source_of(tree)} is not a time span" if tree is not None else ""
        hint = " or `last=10`" if name not in _NO_LAST else ""
        raise ExpressionError(
            f'`{name}` needs how far back it looks, as `"90s"`, `"15m"`, `"1h"`, `"2d"`{hint}{not_one}'
        )
    if (seconds := seconds_of(text)) > MAX_SECONDS:
        raise ExpressionError(f"`{name}`: a window looks back 90 days at most, not `{text}`, {example}")
    return seconds


def _whole(name: str, tree: ast.expr | None, example: str) -> int:
    number = getattr(tree, "value", None)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_LAST:
        raise ExpressionError(
            f"`{name}`: the number of events must be a whole number from 1 to {MAX_LAST}, written out, {example}"
        )
    return number


def calls_of(nodes: Iterable[Node]) -> list[Node]:
    """The different calls of windows in expressions, always in the same order."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "window":
            found[node] = None
        waiting += node.args[::-1]
    return list(found)


def call_of(node: Node) -> WindowCall:
    """What a node of the operation `window` asks."""
    return cast("WindowCall", node.value)
