"""The syntax of expressions: from text to Python's syntax tree, within limits, and back to text for messages.

Python's parser only reads; nothing is compiled or run here.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass

from gridscore.errors import ExpressionError

MAX_LENGTH = 4_000
MAX_DEPTH = 100
MAX_INDEX = 1_000

_REFUSED = {
    ast.Lambda: "`lambda`",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Dict: "a dictionary",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment",
    ast.Starred: "`*` before a value",
    ast.Await: "`await`",
    ast.Yield: "`yield`",
}


def parse(text: str) -> ast.expr:
    """The syntax tree of an expression. Raises ExpressionError if it is not an expression, or too long or too deep."""
    text = text.strip()
    if not text:
        raise ExpressionError("the expression is empty")
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(text)} characters, more than {MAX_LENGTH}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # `1if x` and "\\d" are mistakes, not warnings
            # In parentheses, so that an expression can go over several lines of YAML.
            tree = ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"not an expression: {_detail(error, text)}") from None
    except (RecursionError, MemoryError):
        raise ExpressionError("not an expression: too deeply nested") from None
    except (ValueError, OverflowError, Warning) as error:
        raise ExpressionError(f"not an expression: {error}") from None
    if tree.col_offset == 0 and not isinstance(tree, ast.Tuple):
        # The only way to begin at our own parenthesis is to close it too early: `1) + (2`.
        raise ExpressionError("not an expression: unmatched `)`")
    if _depth(tree) > MAX_DEPTH:
        raise ExpressionError(f"the expression is nested more than {MAX_DEPTH} levels deep")
    return tree


def source_of(tree: ast.expr) -> str:
    """A part of an expression as text, shortened."""
    text = ast.unparse(tree)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def name_of(tree: ast.expr) -> str:
    """What Python calls a part that expressions cannot have."""
    return _REFUSED.get(type(tree), type(tree).__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies: in `order.items[0].price`, `order` and `items` are before the index, and `price` after it."""

    before: tuple[str, ...]
    index: int | None = None
    after: tuple[str, ...] = ()


PLACES = "a `.` can only stand between a lookup or an object and its field, and `[0]` behind an array"


def place_of(tree: ast.expr) -> Place | None:
    """Where a value lies, if the expression is names with dots between them, and an index."""
    names: list[str] = []
    index: int | None = None
    after: tuple[str, ...] = ()
    while not isinstance(tree, ast.Name):
        match tree:
            case ast.Attribute():
                names.append(tree.attr)
            case ast.Subscript() if index is None and len(names) <= 1:
                index, after, names = _whole_index(tree.slice), tuple(names), []
            case _:
                return None
        tree = tree.value
    return Place((tree.id, *reversed(names)), index, after)


def _whole_index(tree: ast.expr) -> int:
    """An index that is written out; one that is out of range if it is something else."""
    sign = -1 if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub) else 1
    value = getattr(tree.operand if isinstance(tree, ast.UnaryOp) and sign < 0 else tree, "value", None)
    return sign * value if type(value) is int else MAX_INDEX + 1


def _detail(error: SyntaxError, text: str) -> str:
    message = "invalid syntax" if "forgot a comma" in str(error.msg) else str(error.msg)
    place = error.offset - 2 if error.offset else -1
    if error.lineno == 1 and 0 <= place < len(text) and "\n" not in text:
        return f"{message}, at `{text[place : place + 20]}`"
    return message


def _depth(tree: ast.expr) -> int:
    """Levels of a syntax tree, counted without recursion: whatever recurses over it later knows that it may."""
    depth, level = 0, [tree]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return depth
