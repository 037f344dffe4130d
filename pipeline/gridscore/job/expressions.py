"""The expression language: the subset of Python that `pandas.DataFrame.eval` made known, parsed and type-checked.

Python's own parser reads the text and nothing of it is ever run: the syntax tree is walked, what is not on the list is
refused, and each part is given its type. The outcome is a tree of :class:`Node`, which `features` computes column-wise.
"""

from __future__ import annotations

import ast
import ctypes
import datetime as dt
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from gridscore.errors import ExpressionError
from gridscore.job import patterns, zones
from gridscore.job.functions import FUNCTIONS, LEARNT, NAMES, OF_ARRAYS, SPECIAL, example_of
from gridscore.job.nodes import INTEGERS, Node, find, is_coded
from gridscore.job.syntax import MAX_INDEX, PLACES, name_of, parse, place_of, source_of
from gridscore.job.types import Type
from gridscore.job.windows import is_windowed, parse_call
from gridscore.texts import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from gridscore.job.syntax import Place
    from gridscore.job.types import FieldType

# Strings put together or made longer in one expression; with the size of an event, this bounds what a row takes.
MAX_CONCATENATIONS = 16
MAX_ITEMS = 1_000
MAX_NODES, MAX_NODE_DEPTH = 4_000, 150
"""Operations that an expression is compiled to, each counted wherever it is used, and how deep they may be nested.

Short texts can mean many: the middle of `a < b < c` is used twice. Whatever walks over nodes relies on both.
"""
SMOOTHING, MAX_SMOOTHING = 20.0, 1e9
MAX_RANK = 1_000  # of the most frequent texts, how many can have a column of their own
MAX_PROBLEMS = 5  # problems told of one expression; each costs a search for what was meant
_ARITHMETIC = {
    ast.Add: ("add", "+"),
    ast.Sub: ("subtract", "-"),
    ast.Mult: ("multiply", "*"),
    ast.Div: ("divide", "/"),
    ast.FloorDiv: ("floor_divide", "//"),
    ast.Mod: ("modulo", "%"),
    ast.Pow: ("power", "**"),
}
_BITWISE = {ast.BitAnd: ("and", "&"), ast.BitOr: ("or", "|")}
_COMPARISONS = {
    ast.Eq: ("equal", "=="),
    ast.NotEq: ("not_equal", "!="),
    ast.Lt: ("less", "<"),
    ast.LtE: ("less_equal", "<="),
    ast.Gt: ("greater", ">"),
    ast.GtE: ("greater_equal", ">="),
}
# The fewest and the most arguments of functions that have more than one, and no signature.
_ARITY = {
    "where": (3, 3),
    "case": (2, 33),
    "coalesce": (2, 16),
    "hash": (2, 2),
    "bucket": (2, 2),
    "regex": (2, 3),
    "target": (1, 2),
    "onehot": (2, 2),
}
_A = {Type.NUMBER: "a number", Type.STRING: "a string", Type.BOOL: "true or false", Type.TIMESTAMP: "a timestamp"}


_UNKNOWN = Node("constant")
_NULL = Node("null")


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that an expression can use."""

    fields: Mapping[str, FieldType]  # of the event
    lookups: Mapping[str, Mapping[str, FieldType]]  # fields of each lookup
    features: Collection[str] = ()  # features defined earlier
    # Those of them that are made of a category's code, or of another number that training learns.
    coded: Collection[str] = ()
    broken: Collection[str] = ()  # names of fields, lookups and features that exist, but whose definition is wrong
    later: Collection[str] = ()  # features defined later, for a better message
    # Of the model, where its `score` and `label` can be used; None where they cannot.
    classes: tuple[str, ...] | None = None
    windows: Collection[str] | None = None  # over the events of an entity; None where they cannot be used

    def field_at(self, path: Sequence[str]) -> str | None:
        """The field that is written so: by its name, or by its place in nested objects if that made its name."""
        name = "_".join(path)
        found = self.fields.get(name)
        return name if found is not None and (len(path) == 1 or found.path(name) == tuple(path)) else None


def compile_expression(text: str, scope: Scope, *, category: str | None = None) -> Node:
    """Parse and type-check an expression.

    `category`: the feature whose categories `category()` means, and whose texts `target()` and its like; None where
    these cannot be used. Raises ExpressionError if it cannot be used; the message has a line for each reason.
    """
    compiler = _Compiler(text, scope, category)
    try:
        node = compiler.compile()
    except _EnoughError:
        node = _UNKNOWN
    if compiler.problems:
        raise ExpressionError("\n".join(compiler.problems))
    return node


class _EnoughError(Exception):
    """So much is wrong that no more need be told."""


class _Compiler:
    def __init__(self, text: str, scope: Scope, category: str | None) -> None:
        self._text = text
        self._scope = scope
        self._category = category
        self._categories = 0
        self._concatenations = 0
        self.problems: list[str] = []

    def compile(self) -> Node:
        try:
            tree = parse(self._text)
        except ExpressionError as error:
            return self._wrong(error.message)
        try:
            node = self._node(tree)
        except RecursionError:  # whoever called us had not much room left
            return self._wrong("too deeply nested")
        if self._concatenations > MAX_CONCATENATIONS:
            self._wrong(f"more than {MAX_CONCATENATIONS} strings put together with `+` or `replace`")
        if node is _NULL:
            return self._wrong("the whole expression is `None`")
        if not self.problems and find(node, _NULL.op) is not None:
            return self._wrong("`None` cannot be used so; `x is None` asks whether a value is missing")
        return node

    def _wrong(self, message: str) -> Node:
        if message not in self.problems:
            self.problems.append(message)
        if len(self.problems) >= MAX_PROBLEMS:
            raise _EnoughError
        return _UNKNOWN

    # ------------------------------------------------------------------ nodes

    def _node(self, tree: ast.expr) -> Node:
        node = self._any(tree)
        if node.size > MAX_NODES:
            self._wrong(f"it comes to more than {MAX_NODES:,} operations: make features of its parts")
            raise _EnoughError
        if node.depth > MAX_NODE_DEPTH:
            self._wrong(f"its operations are nested more than {MAX_NODE_DEPTH} levels deep: make features of its parts")
            raise _EnoughError
        return node

    def _any(self, tree: ast.expr) -> Node:
        match tree:
            case ast.Constant():
                return self._constant(tree)
            case ast.Name():
                return self._bare(tree.id)
            case ast.Attribute() | ast.Subscript():
                return self._attribute(tree)
            case ast.UnaryOp():
                return self._unary(tree)
            case ast.BinOp():
                return self._binary(tree)
            case ast.BoolOp():
                op = "and" if isinstance(tree.op, ast.And) else "or"
                values = [self._truth(self._node(value), value, f"`{op}`") for value in tree.values]
                return _all(op, values)
            case ast.Compare():
                return self._compare(tree)
            case ast.IfExp():
                return self._choose((tree.test,), (tree.body, tree.orelse), "`if`")
            case ast.Call():
                return self._call(tree)
            case ast.List() | ast.Tuple() | ast.Set():
                return self._wrong(f"{source_of(tree)}: a list can only stand after `in`")
            case _:
                return self._wrong(f"{source_of(tree)}: {name_of(tree)} cannot be used in an expression")

    def _constant(self, tree: ast.Constant) -> Node:
        value = tree.value
        if value is None:
            return _NULL
        if isinstance(value, bool):
            return Node("constant", (), Type.BOOL, value)
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isinf(number):
                return self._wrong(f"{source_of(tree)}: the number is too large")
            return Node("constant", (), Type.NUMBER, number)
        if isinstance(value, str):
            return Node("constant", (), Type.STRING, value)
        return self._wrong(f"{source_of(tree)}: only numbers, strings, True, False and None can be written out")

    def _bare(self, name: str) -> Node:
        scope = self._scope
        if scope.classes is not None and name in ("score", "label"):
            return self._outcome(name, scope.classes)
        if name in scope.fields:
            return self._field(name, name)
        if name in scope.features:
            return Node("feature", (), Type.NUMBER, name)
        if name in scope.broken:
            return _UNKNOWN
        if name in scope.lookups:
            fields = ", ".join(scope.lookups[name])
            return self._wrong(f"`{name}` is a lookup: name one of its fields, as in `{name}.field` ({fields})")
        if name in scope.later:
            return self._wrong(f"`{name}` is a feature defined further down: move it up")
        if name in NAMES:
            return self._wrong(f"`{name}` is a function: call it, as in `{example_of(name)}`")
        known = [*scope.fields, *scope.features, *scope.lookups]
        return self._wrong(f"there is no event field or earlier feature `{name}`{did_you_mean(name, known)}")

    def _field(self, name: str, shown: str) -> Node:
        kind = self._scope.fields[name]
        if kind.type == "array":
            part = next(iter(kind.of))
            of = f"{shown}.{part}" if part else shown
            item = f"{shown}[0].{part}" if part else f"{shown}[0]"
            return self._wrong(f"`{shown}` is an array: take `len({shown})`, `{item}` or `max({of})`")
        # An integer beyond 2**53 is not the same as a float: keys, categories and texts are made of the original.
        op = "int_field" if kind.type == "int" else "field"
        return Node(op, (), kind.value_type, name, nullable=kind.optional)

    def _outcome(self, name: str, classes: tuple[str, ...]) -> Node:
        """What the model has said of the event."""
        scope = self._scope
        for what, names in (
            ("an event field", scope.fields),
            ("a feature", scope.features),
            ("a lookup", scope.lookups),
        ):
            if name in names:
                return self._wrong(f"`{name}` is the model's here, and {what} as well: give that another name")
        if name == "score":
            return Node("score", (), Type.NUMBER)
        if not classes and "classes" not in scope.broken:
            return self._wrong("`label` is one of the model's classes: name them with `classes`")
        return Node("label", (), Type.STRING)

    def _score_of(self, name: str, classes: tuple[str, ...]) -> Node:
        score = self._outcome("score", classes)
        if "classes" in self._scope.broken:
            return score
        if score.op == "score" and name not in classes:
            return self._wrong(f"there is no class `{name}` in `classes`{did_you_mean(name, classes)}")
        return Node("score", (), Type.NUMBER, classes.index(name)) if score.op == "score" else score

    def _check_classes(self, node: Node, *others: Hashable) -> None:
        """Refuse to compare the label with what it never is."""
        classes = self._scope.classes or ()
        for other in others if node.op == "label" and "classes" not in self._scope.broken else ():
            if other not in classes:
                self._wrong(f"there is no class `{other}` in `classes`{did_you_mean(str(other), classes)}")

    def _attribute(self, tree: ast.Attribute | ast.Subscript) -> Node:
        match tree:
            case ast.Attribute(value=ast.Name(id="score"), attr=name) if self._scope.classes is not None:
                return self._score_of(name, self._scope.classes)
        place = place_of(tree)
        if place is None:
            return self._wrong(f"{source_of(tree)}: {PLACES}")
        scope, first = self._scope, place.before[0]
        if len(place.before) == 2 and place.index is None and first in scope.lookups:
            fields, name = scope.lookups[first], place.before[1]
            if name in fields:
                return Node("lookup", (), fields[name].value_type, (first, name), nullable=True)
            return self._wrong(f"the lookup `{first}` has no field `{name}`{did_you_mean(name, fields)}")
        if place.index is not None:
            return self._item(tree, place)
        if (field := scope.field_at(place.before)) is not None:
            return self._field(field, ".".join(place.before))
        if (array := scope.field_at(place.before[:-1])) is not None and scope.fields[array].type == "array":
            return self._field(array, ".".join(place.before[:-1]))
        if first in scope.broken or "_".join(place.before) in scope.broken:
            return _UNKNOWN
        shown = ".".join(place.before)
        if first in scope.fields:
            return self._wrong(f"`{shown}`: `{first}` is a {scope.fields[first].type} of the event, and has no fields")
        nested = [".".join(kind.path(name)) for name, kind in scope.fields.items() if len(kind.path(name)) > 1]
        if len(place.before) > 2 or not scope.lookups:
            return self._wrong(f"there is no event field `{shown}`{did_you_mean(shown, nested)}")
        return self._wrong(f"there is no lookup `{first}`{did_you_mean(first, [*scope.lookups, *nested])}")

    def _item(self, tree: ast.expr, place: Place) -> Node:
        """An item of an array, or a field of it."""
        scope, index = self._scope, place.index
        name, shown = scope.field_at(place.before), ".".join(place.before)
        if name is None or scope.fields[name].type != "array":
            if place.before[0] in scope.broken:
                return _UNKNOWN
            return self._wrong(f"{source_of(tree)}: `[...]` is for arrays, and `{shown}` is not one")
        if index is None or not -MAX_INDEX <= index <= MAX_INDEX:
            return self._wrong(f"{source_of(tree)}: the index must be a whole number, written out, to {MAX_INDEX:,}")
        kind = self._item_type(scope.fields[name], shown, ".".join(place.after))
        if kind is None:
            return _UNKNOWN
        op = "int_item" if kind.type == "int" else "item"
        return Node(op, (), kind.value_type, (name, ".".join(place.after), index), nullable=True)

    def _item_type(self, array: FieldType, shown: str, part: str) -> FieldType | None:
        """The type of an array's items, or of a field of them; None, and a problem noted, if there is none."""
        if part in array.of:
            return array.of[part]
        names = ", ".join(filter(None, array.of))
        if not part:
            self._wrong(f"the items of `{shown}` are objects: name one of their fields ({names})")
        elif names:
            self._wrong(f"the items of `{shown}` have no field `{part}`{did_you_mean(part, array.of)}")
        else:
            self._wrong(f"the items of `{shown}` are values, and have no field `{part}`")
        return None

    def _of_array(self, function: str, tree: ast.expr) -> Node | None:
        """What a function gives of an array, or of a field of its items; None if it is not given one."""
        scope, place = self._scope, place_of(tree)
        if place is None or place.index is not None or (len(place.before) == 2 and place.before[0] in scope.lookups):
            return None
        name, part, before = scope.field_at(place.before), "", place.before
        if name is None and len(before) > 1:
            before, part = before[:-1], before[-1]
            name = scope.field_at(before)
        if name is None or scope.fields[name].type != "array":
            return None
        array, shown = scope.fields[name], ".".join(before)
        if function == "len":
            if part:
                hint = f"`count({shown}.{part})` leaves out what is missing"
                return self._wrong(f"`len` takes the array, as in `len({shown})`; {hint}")
            return Node("array", (), Type.NUMBER, (name, "", function))
        kind = self._item_type(array, shown, part)
        if kind is None:
            return _UNKNOWN
        type_ = Type.NUMBER
        if kind.type == "timestamp" and function in ("min", "max"):
            type_ = Type.TIMESTAMP
        elif kind.type not in ("float", "int", "bool") and function != "count":
            return self._wrong(f"{source_of(tree)} is a {kind.type} in each item: `{function}` needs numbers")
        return Node("array", (), type_, (name, part, function))

    def _unary(self, tree: ast.UnaryOp) -> Node:
        operand = self._node(tree.operand)
        match tree.op:
            case ast.Not():
                return Node("not", (self._truth(operand, tree.operand, "`not`"),), Type.BOOL)
            case ast.Invert():
                return Node("not", (self._truth(operand, tree.operand, "`~`"),), Type.BOOL)
            case ast.UAdd():
                return self._number(operand, tree.operand, "`+`")
            case _:
                return Node("negative", (self._number(operand, tree.operand, "`-`"),), Type.NUMBER)

    def _binary(self, tree: ast.BinOp) -> Node:
        kind = type(tree.op)
        left, right = self._node(tree.left), self._node(tree.right)
        if kind in _BITWISE:
            op, sign = _BITWISE[kind]
            hint = ""
            if Type.NUMBER in {left.type, right.type}:
                # `a > 1 & b` is `a > (1 & b)` in Python, and so here.
                hint = f"; put comparisons in parentheses, or write `{op}`"
            a = self._truth(left, tree.left, f"`{sign}`", hint)
            b = self._truth(right, tree.right, f"`{sign}`", hint)
            return Node(op, (a, b), Type.BOOL)
        if kind not in _ARITHMETIC:
            return self._wrong(f"{source_of(tree)}: this operator cannot be used in an expression")
        op, sign = _ARITHMETIC[kind]
        types = {left.type, right.type} - {Type.UNKNOWN}
        if kind is ast.Add and types == {Type.STRING}:
            self._concatenations += 1
            return Node("concat", (left, right), Type.STRING)
        if kind is ast.Sub and types == {Type.TIMESTAMP}:
            return Node("subtract", (left, right), Type.NUMBER)
        if Type.STRING in types and kind is ast.Add:
            odd = tree.right if left.type == Type.STRING else tree.left
            return self._wrong(
                f"{source_of(tree)}: `+` needs two numbers or two strings; "
                f"`string({ast.unparse(odd)})` makes a string of the other"
            )
        if Type.TIMESTAMP in types:
            return self._wrong(
                f"{source_of(tree)}: of two timestamps only the difference, in seconds, can be taken; "
                "`epoch(x)` makes a number of one"
            )
        a, b = self._number(left, tree.left, f"`{sign}`"), self._number(right, tree.right, f"`{sign}`")
        return Node(op, (a, b), Type.NUMBER)

    def _compare(self, tree: ast.Compare) -> Node:
        parts: list[Node] = []
        left_tree = tree.left
        left = self._node(left_tree)
        for op, right_tree in zip(tree.ops, tree.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                member = self._member(left, left_tree, right_tree)
                parts.append(member if isinstance(op, ast.In) else Node("not", (member,), Type.BOOL))
                if len(tree.ops) > 1:
                    self._wrong(f"{source_of(tree)}: `in` cannot be chained with another comparison")
                break
            right = self._node(right_tree)
            if isinstance(op, ast.Is | ast.IsNot):
                if right is not _NULL or left is _NULL:
                    self._wrong(f"{source_of(tree)}: `is` can only be followed by `None`; write `==`")
                    break
                null = self._isnull(left)
                parts.append(null if isinstance(op, ast.Is) else Node("not", (null,), Type.BOOL))
            else:
                parts.append(self._comparison(op, left, left_tree, right, right_tree))
            left, left_tree = right, right_tree
        return _all("and", parts) if parts else _UNKNOWN

    def _comparison(self, op: ast.cmpop, left: Node, left_tree: ast.expr, right: Node, right_tree: ast.expr) -> Node:
        name, sign = _COMPARISONS[type(op)]
        shown = f"`{ast.unparse(left_tree)} {sign} {ast.unparse(right_tree)}`"
        if left is _NULL or right is _NULL:
            return self._wrong(f"{shown}: write `is None` or `is not None`")
        types = {left.type, right.type} - {Type.UNKNOWN}
        if types == {Type.STRING}:
            for node, other in ((left, right), (right, left)):
                self._check_classes(node, *([other.value] if other.op == "constant" else []))
            return Node(f"string_{name}", (left, right), Type.BOOL)
        if types <= {Type.TIMESTAMP}:
            return Node(name, (left, right), Type.BOOL)
        if types <= {Type.NUMBER, Type.BOOL}:
            left, right = _as_number(left), _as_number(right)
            return Node(name, (_as_score(left, right), _as_score(right, left)), Type.BOOL)
        hint = ""
        if Type.TIMESTAMP in types and Type.STRING in types:
            hint = '; write a timestamp as `timestamp("2026-01-31T00:00:00Z")`'
        return self._wrong(f"{shown} compares {_A[left.type]} with {_A[right.type]}{hint}")

    def _member(self, left: Node, left_tree: ast.expr, right_tree: ast.expr) -> Node:
        if not isinstance(right_tree, ast.List | ast.Tuple | ast.Set):
            hint = "; `contains(text, part)` looks inside a string" if left.type == Type.STRING else ""
            return self._wrong(
                f"{source_of(right_tree)}: `in` needs a list that is written out, as in `x in [1, 2]`{hint}"
            )
        if len(right_tree.elts) > MAX_ITEMS:
            return self._wrong(f"a list after `in` has more than {MAX_ITEMS} items")
        values: list[str | float] = []
        types = set()
        for item in right_tree.elts:
            negative = isinstance(item, ast.UnaryOp) and isinstance(item.op, ast.USub)
            constant = item.operand if isinstance(item, ast.UnaryOp) and negative else item
            node = self._constant(constant) if isinstance(constant, ast.Constant) else _UNKNOWN
            if node.type not in {Type.NUMBER, Type.STRING} or (negative and node.type != Type.NUMBER):
                return self._wrong(f"{source_of(item)}: a list after `in` can only hold numbers or strings")
            types.add(node.type)
            value: Any = node.value
            values.append(-value if negative else value)
        if len(types) > 1:
            return self._wrong(f"{source_of(right_tree)}: a list after `in` holds either numbers or strings")
        if left.type == Type.BOOL:
            left = _as_number(left)
        if left is _NULL or (types and left.type not in {*types, Type.UNKNOWN}):
            items = next(iter(types), "nothing but item")
            return self._wrong(f"{source_of(left_tree)} is {_a(left)}, the list after `in` holds {items}s")
        if left.type not in {Type.NUMBER, Type.STRING, Type.UNKNOWN}:
            return self._wrong(f"{source_of(left_tree)} is {_A[left.type]}: `in` is for numbers and strings")
        self._check_classes(left, *values)
        if left.op == "score":
            values = [as_float32(cast("float", value)) for value in values]
        op = "string_in" if left.type == Type.STRING else "number_in"
        return Node(op, (left,), Type.BOOL, tuple(dict.fromkeys(values)))

    # ------------------------------------------------------------------ functions

    def _call(self, tree: ast.Call) -> Node:
        if not isinstance(tree.func, ast.Name):
            hint = ""
            if isinstance(tree.func, ast.Attribute) and tree.func.attr in NAMES:
                hint = f"; write `{self._as_function(tree.func, tree.args)}`"
            return self._wrong(f"{source_of(tree)}: only functions can be called{hint}")
        name = tree.func.id
        if name == "score" and self._scope.classes is not None:
            match tree.args:
                case [ast.Constant(value=str(of))] if not tree.keywords:
                    return self._score_of(of, self._scope.classes)
            return self._wrong(f'{source_of(tree)}: `score` takes the name of a class, as in `score("cat")`')
        if name not in NAMES:
            return self._wrong(f"there is no function `{name}`{did_you_mean(name, NAMES)}")
        if name in OF_ARRAYS and len(tree.args) == 1 and not tree.keywords:
            node = self._of_array(name, tree.args[0])
            if node is not None:
                return node
        if is_windowed(name, tree):
            return self._window(name, tree)
        if name == "target" and [each.arg for each in tree.keywords] == ["smoothing"]:
            tree = ast.Call(tree.func, [*tree.args, tree.keywords[0].value], [])
        if tree.keywords:
            return self._wrong(f"`{name}` takes no named arguments")
        if any(isinstance(arg, ast.Starred) for arg in tree.args):
            return self._wrong(f"{source_of(tree)}: `*` before a value cannot be used in an expression")
        args = tree.args
        if name in FUNCTIONS:
            least, most = FUNCTIONS[name].arity
        else:
            least, most = _ARITY.get(name, (1, 1))
        if not least <= len(args) <= most:
            needs = f"{least}" if least == most else f"{least} to {most}"
            example = example_of(name)
            return self._wrong(f"`{name}` takes {needs} argument{'s' * (most > 1)}, as in `{example}`, not {len(args)}")
        if name in ("where", "case"):
            rest = args[-1] if len(args) % 2 else ast.Constant(None)
            return self._choose(args[:-1:2], [*args[1::2], rest], f"`{name}`")
        if name == "regex":
            return self._regex(*args)
        if name == "coalesce":
            return self._coalesce(args)
        if name == "bucket":
            return self._bucket(args[0], args[1])
        if name == "hash":
            return self._hash(args[0], args[1])
        if name in SPECIAL:
            node = self._node(args[0])
            if node is _NULL:
                return self._wrong(f"{source_of(tree)}: the argument is `None`")
            if name == "isnull":
                return self._isnull(node)
            return self._string(node) if name == "string" else self._learnt(name, node, args)
        return self._function(name, args)

    def _as_function(self, func: ast.Attribute, args: Sequence[ast.expr]) -> str:
        """How `np.log(x)` or `name.lower()` is written here: what names nothing of the job is a module of Python's."""
        base = func.value
        while isinstance(base, ast.Attribute | ast.Call):
            base = base.value if isinstance(base, ast.Attribute) else base.func
        scope = self._scope
        known = (scope.fields, scope.features, scope.lookups, scope.broken, scope.later)
        is_module = isinstance(base, ast.Name) and not any(base.id in names for names in known)
        shown = ", ".join(map(ast.unparse, args if is_module else [func.value, *args]))
        return f"{func.attr}({shown})"

    def _function(self, name: str, args: Sequence[ast.expr]) -> Node:
        function = FUNCTIONS[name]
        nodes: list[Node] = []
        constants: list[Any] = []
        for position, arg in enumerate(args):
            expected = function.takes[min(position, len(function.takes) - 1)]
            what = f"`{name}`"
            if position in function.constant:
                node = self._written_out(name, position + 1, expected, arg)
                if node is _UNKNOWN:
                    return node
                constants.append(node.value)
                continue
            node = self._node(arg)
            if expected == Type.NUMBER:
                nodes.append(self._number(node, arg, what))
            elif node.type not in {expected, Type.UNKNOWN}:
                hint = "; `string(x)` makes a string" if expected == Type.STRING else ""
                return self._wrong(f"{source_of(arg)} is {_a(node)}: {what} needs {_A[expected]}{hint}")
            else:
                nodes.append(node)
        if name == "timestamp":
            return self._timestamp(constants[0])
        value = self._value(name, constants)
        if function.takes[0] == Type.TIMESTAMP and value is not None:
            return self._part(name, nodes[0], value)
        if name == "clip":
            return Node("min", (Node("max", (nodes[0], nodes[1]), Type.NUMBER), nodes[2]), Type.NUMBER)
        if name in {"min", "max"}:
            return _fold(name, nodes)
        return Node(name, tuple(nodes), function.gives, value)

    def _written_out(self, name: str, position: int, expected: Type, tree: ast.expr) -> Node:
        """An argument that must be a constant."""
        node = _written(self._node(tree))
        if node is not _UNKNOWN and (node.type != expected or node.op != "constant"):
            kind = "a text in quotes" if expected == Type.STRING else "a number that is written out"
            example = example_of(name)
            return self._wrong(f"`{name}`: argument {position} must be {kind}, as in `{example}`")
        return node

    def _value(self, name: str, constants: Sequence[Any]) -> Any:
        """The arguments that are written out, as the operation takes them."""
        match name, constants:
            case "round", _:
                return self._whole(name, "number of digits", constants[0] if constants else 0.0, -15, 15)
            case "geohash", [length]:
                return self._whole(name, "length", length, 1, 12)
            case "replace", [old, new]:
                self._concatenations += 1
                if not old:
                    self._wrong("`replace`: the text to look for is empty")
                return old, new
            case "split", [separator, index]:
                if not separator:
                    self._wrong("`split`: the separator is empty")
                return separator, self._whole(name, "index", index, -1_000, 1_000)
            case "substring", [begin, *rest]:
                begin = self._whole(name, "beginning", begin, -1_000_000, 1_000_000)
                return begin, self._whole(name, "length", rest[0], 1, 1_000_000) if rest else None
        return constants[0] if constants else None

    def _whole(self, name: str, what: str, value: float, least: int, most: int) -> int:
        if not (value.is_integer() and least <= value <= most):
            self._wrong(f"`{name}`: the {what} must be a whole number from {least:,} to {most:,}")
        return int(value)

    def _part(self, name: str, node: Node, zone: str) -> Node:
        try:
            zones.zone(zone)
        except ExpressionError as error:
            return self._wrong(f"`{name}`: {error.message}{did_you_mean(zone[:64], zones.zone_names())}")
        return Node(name, (Node("local", (node,), Type.TIMESTAMP, zone),), FUNCTIONS[name].gives)

    def _timestamp(self, text: Any) -> Node:
        try:
            value = dt.datetime.fromisoformat(str(text))
        except ValueError:
            return self._wrong(f"`timestamp`: `{text}` is not a time like 2026-01-31T00:00:00Z")
        if value.tzinfo is None:
            return self._wrong(f"`timestamp`: `{text}` has no offset from UTC; put `Z` at its end if it is UTC")
        return Node("constant", (), Type.TIMESTAMP, value.timestamp())

    def _choose(self, tests: Sequence[ast.expr], values: Sequence[ast.expr], what: str) -> Node:
        """The value of the first condition that is true; the last value is for the rest."""
        conditions = [self._truth(self._node(test), test, what) for test in tests]
        unified = self._unify([self._node(value) for value in values], values, what)
        if unified is None:
            return _UNKNOWN
        result = unified[-1]
        for condition, node in zip(reversed(conditions), reversed(unified[:-1]), strict=True):
            op = "string_where" if node.type == Type.STRING else "where"
            nullable = node.nullable or result.nullable
            result = Node(op, (condition, node, result), node.type, None, nullable=nullable)
        return result

    def _coalesce(self, trees: Sequence[ast.expr]) -> Node:
        nodes = [self._node(tree) for tree in trees]
        unified = self._unify(nodes, trees, "`coalesce`")
        if unified is None:
            return _UNKNOWN
        result = unified[-1]
        for node in reversed(unified[:-1]):
            op = "string_coalesce" if node.type == Type.STRING else "coalesce"
            result = Node(op, (node, result), node.type, None, nullable=node.nullable and result.nullable)
        return result

    def _unify(self, nodes: Sequence[Node], trees: Sequence[ast.expr], what: str) -> list[Node] | None:
        """The same values with one type; None, and a problem noted, if there is none."""
        types = {node.type for node in nodes} - {Type.UNKNOWN}
        if types == {Type.NUMBER, Type.BOOL} or (types == {Type.BOOL} and any(node is _NULL for node in nodes)):
            nodes = [_as_number(node) for node in nodes]
            types = {Type.NUMBER}
        elif types == {Type.BOOL} and len({node.nullable for node in nodes}) > 1:
            # One may be missing: both become columns that can say so.
            nodes = [n if n.nullable else Node("to_number", (n,), Type.BOOL, None, nullable=True) for n in nodes]
        if len(types) > 1:
            given = [(tree, node) for tree, node in zip(trees, nodes, strict=True) if node is not _NULL]
            listed = ", ".join(f"{source_of(tree)} is {_a(node)}" for tree, node in given)
            self._wrong(f"{what} needs values of one type, but {listed}")
            return None
        if not types:
            if all(node is _NULL for node in nodes):
                self._wrong(f"{what}: all values are `None`")
            return None
        kind = types.pop()
        return [Node("constant", (), kind, None, nullable=True) if node is _NULL else node for node in nodes]

    def _isnull(self, node: Node) -> Node:
        if node.type == Type.BOOL and not node.nullable:
            return Node("constant", (), Type.BOOL, value=False)
        return Node("string_isnull" if node.type == Type.STRING else "isnull", (node,), Type.BOOL)

    def _string(self, node: Node) -> Node:
        if node.type == Type.STRING:
            return node
        op = {Type.BOOL: "string_of_bool", Type.TIMESTAMP: "string_of_timestamp"}.get(
            node.type, "string_of_int" if self._is_int(node) else "string_of_number"
        )
        arg = _as_number(node) if node.type == Type.BOOL else node
        return Node(op, (arg,), Type.STRING)

    def _is_int(self, node: Node) -> bool:
        """Whether the value is one that the grid holds with all its digits."""
        if node.op != "lookup":
            return node.op in INTEGERS
        lookup, name = cast("tuple[str, str]", node.value)
        return self._scope.lookups[lookup][name].type == "int"

    def _hash(self, tree: ast.expr, count: ast.expr) -> Node:
        node, written = self._node(tree), self._written_out("hash", 2, Type.NUMBER, count)
        if node is _NULL or node.type not in {Type.STRING, Type.NUMBER, Type.UNKNOWN}:
            return self._wrong(f"{source_of(tree)} is {_a(node)}: `hash` needs a string or a number")
        if node.type == Type.UNKNOWN or written is _UNKNOWN:
            return _UNKNOWN
        # A whole number up to here is one in a float32, too.
        value = self._whole("hash", "number of values", cast("float", written.value), 2, 1 << 24)
        return Node("hash", (self._string(node),), Type.NUMBER, value)

    def _regex(self, tree: ast.expr, pattern: ast.expr, group: ast.expr | None = None) -> Node:
        node, written = self._node(tree), self._written_out("regex", 2, Type.STRING, pattern)
        if node.type not in {Type.STRING, Type.UNKNOWN}:
            return self._wrong(f"{source_of(tree)} is {_a(node)}: `regex` needs a string; `string(x)` makes one")
        if written is _UNKNOWN:
            return written
        try:
            found = patterns.compiled(str(written.value))
        except ExpressionError as error:
            return self._wrong(f"`regex`: {error.message}")
        if group is None:
            return Node("regex", (node,), Type.BOOL, (written.value, None))
        number = self._written_out("regex", 3, Type.NUMBER, group)
        if number is _UNKNOWN:
            return number
        whole = self._whole("regex", "number of the group", cast("float", number.value), 0, found.groups)
        return Node("regex", (node,), Type.STRING, (written.value, whole))

    def _bucket(self, tree: ast.expr, listed: ast.expr) -> Node:
        node = self._number(self._node(tree), tree, "`bucket`")
        edges = listed.elts if isinstance(listed, ast.List | ast.Tuple) else []
        found = [_written(self._node(edge)) for edge in edges[: MAX_ITEMS + 1]]
        numbers = [each.value for each in found if each.op == "constant" and isinstance(each.value, float)]
        if not 1 <= len(numbers) == len(edges) <= MAX_ITEMS or any(a >= b for a, b in pairwise(numbers)):
            return self._wrong(
                f"`bucket`: argument 2 must be a list of 1 to {MAX_ITEMS:,} rising numbers, as in `{SPECIAL['bucket']}`"
            )
        return Node("bucket", (node,), Type.NUMBER, tuple(_as_score(edge, node).value for edge in found))

    def _learnt(self, name: str, node: Node, args: Sequence[ast.expr]) -> Node:
        """A number for a text, by what training has learnt: the code of a category, or of an encoding."""
        if self._category is None:
            return self._wrong(f"`{name}` can only be used in a feature")
        self._categories += 1
        if self._categories > 1:
            return self._wrong(
                f"`{name}` can be used once in a feature: its categories are kept under the feature's name"
                if name == "category"
                else f"`{name}` learns under the feature's name, which has learnt something already: make two features"
            )
        if node.type not in {Type.STRING, Type.NUMBER, Type.UNKNOWN}:
            return self._wrong(f"{source_of(args[0])} is {_a(node)}: `{name}` needs a string or a number")
        if is_coded(node, self._scope.coded):
            of = "the code of another category" if name == "category" else "what is learnt itself"
            return self._wrong(f"`{name}` cannot be made of {of}: it is known after training only")
        if name not in LEARNT:
            return Node("category", (self._string(node),), Type.NUMBER, self._category)
        given = [self._written_out(name, 2, Type.NUMBER, each) for each in args[1:]]
        if _UNKNOWN in given:
            return _UNKNOWN
        parameter = cast("float", given[0].value) if given else SMOOTHING
        if name == "onehot":
            parameter = self._whole(name, "place among the most frequent", parameter, 1, MAX_RANK)
        elif not 0 <= parameter <= MAX_SMOOTHING:
            return self._wrong(f"`target`: `smoothing` must be 0 to {MAX_SMOOTHING:,.0f}")
        return Node("encoded", (self._string(node),), Type.NUMBER, (self._category, name, parameter))

    def _window(self, name: str, tree: ast.Call) -> Node:
        """What a function gives of the events of an entity: of their values, and the condition on which one counts."""
        scope = self._scope
        try:
            parsed = parse_call(name, tree)
        except ExpressionError as error:
            return self._wrong(error.message)
        window, inner = parsed.call.window, [each for each in (parsed.value, parsed.where) if each is not None]
        if scope.windows is None:
            return self._wrong(f"{source_of(tree)}: windows can only be used in a feature, and not within one another")
        if window not in scope.windows:
            if window in scope.broken:
                return _UNKNOWN
            none = "" if scope.windows else ": `windows` names them, with the key of each"
            return self._wrong(f"there is no window `{window}`{did_you_mean(window, scope.windows) or none}")
        for part in (part for each in inner for part in ast.walk(each)):
            name_of_part = part.id if isinstance(part, ast.Name) else ""
            if name_of_part not in scope.fields and (name_of_part in scope.lookups or name_of_part in scope.features):
                return self._wrong(f"`{name_of_part}`: a window holds what is made of fields of the event alone")
        category = self._category
        # With the lookups of today, a window would not be the same when it is computed again.
        self._scope, self._category = Scope(scope.fields, {}, broken=scope.broken), None
        try:
            value = Node("constant", (), Type.NUMBER, 1.0)
            if parsed.value is not None:
                value = self._windowed(name, parsed.value)
            where = Node("constant", (), Type.BOOL, value=True)
            if parsed.where is not None:
                where = self._truth(self._node(parsed.where), parsed.where, "`where`")
        finally:
            self._scope, self._category = scope, category
        if name == "seen":
            return Node("window", (value, where), Type.BOOL, parsed.call, nullable=True)
        return Node("window", (value, where), Type.NUMBER, parsed.call)

    def _windowed(self, name: str, tree: ast.expr) -> Node:
        """A value that a window holds: a number, or what tells values apart."""
        node = self._node(tree)
        if name not in ("distinct", "seen") or node is _NULL or node.type == Type.BOOL:
            return self._number(node, tree, f"`{name}`")
        if node.type == Type.TIMESTAMP:
            return self._wrong(f"{source_of(tree)} is a timestamp: `{name}` needs a number or a string; use `epoch(x)`")
        if node.type == Type.STRING or self._is_int(node):
            return Node("code", (self._string(node),), Type.NUMBER)
        return node

    # ------------------------------------------------------------------ types

    def _number(self, node: Node, tree: ast.expr, what: str) -> Node:
        if node is _NULL:
            return self._wrong(f"{what} cannot be used with `None`; `x is None` asks whether a value is missing")
        if node.type in {Type.NUMBER, Type.UNKNOWN}:
            return node
        if node.type == Type.BOOL:
            return _as_number(node)
        hint = "; `number(x)` reads a number from a string" if node.type == Type.STRING else "; use `epoch(x)`"
        if node.type == Type.STRING and what not in {"`+`", "`-`", "`*`", "`/`"}:
            hint = ""
        return self._wrong(f"{source_of(tree)} is {_a(node)}: {what} needs a number{hint}")

    def _truth(self, node: Node, tree: ast.expr, what: str, hint: str = "") -> Node:
        if node.type == Type.UNKNOWN and node is not _NULL:
            return node
        if node.type != Type.BOOL:
            hint = hint or ("; write `!= 0`" if node.type == Type.NUMBER else "; write `is not None`, or compare it")
            return self._wrong(f"{source_of(tree)} is {_a(node)}: {what} needs true or false{hint}")
        return Node("truth", (node,), Type.BOOL) if node.nullable else node


def _as_number(node: Node) -> Node:
    if node.type != Type.BOOL:
        return node
    return Node("to_number", (node,), Type.NUMBER)


def _written(node: Node) -> Node:
    """A number that is written out with its sign."""
    if node.op == "negative" and isinstance(node.args[0].value, float):
        return Node("constant", (), Type.NUMBER, -node.args[0].value)
    return node


def as_float32(number: float) -> float:
    """The number as a score is one: compared with it, a score that prints as the number is equal to it."""
    return ctypes.c_float(number).value


def _as_score(node: Node, other: Node) -> Node:
    """A number that is written out, if it is compared with a score."""
    if other.op != "score":
        return node
    node = _written(node)
    if node.op != "constant":
        return node
    return Node("constant", (), Type.NUMBER, as_float32(cast("float", node.value)))


def _all(op: str, nodes: Sequence[Node]) -> Node:
    """Many conditions under `and` or `or`, halved again and again, so that many are not nested deeply."""
    if len(nodes) == 1:
        return nodes[0]
    half = len(nodes) // 2
    return Node(op, (_all(op, nodes[:half]), _all(op, nodes[half:])), Type.BOOL)


def _fold(op: str, nodes: Sequence[Node]) -> Node:
    result = nodes[0]
    for node in nodes[1:]:
        result = Node(op, (result, node), Type.NUMBER)
    return result


def _a(node: Node) -> str:
    return "`None`" if node is _NULL else _A.get(node.type, "not known")
