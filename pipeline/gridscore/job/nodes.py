"""The tree that an expression is compiled to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gridscore.job.types import Type

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

_COSTS = {"regex": 100}  # operations that take more than others, in memory or time: as how many they count


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of an expression."""

    op: str  # what it does: `field`, `lookup`, `feature`, `constant`, or the name of an operation in `features`
    args: tuple[Node, ...] = ()  # what it does it to
    type: Type = Type.UNKNOWN  # type of its value
    # What identifies a field, lookup field, feature or category; the value of a constant or constant argument.
    value: Hashable = None
    nullable: bool = False  # whether a BOOL can be missing; values of other types always can
    size: int = field(init=False, compare=False, repr=False)  # what the tree below and itself count as operations
    depth: int = field(init=False, compare=False, repr=False)  # levels of that tree
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Counted and hashed once: a walk over all that is below would take for ever where parts are used twice.
        put = object.__setattr__
        put(self, "size", _COSTS.get(self.op, 1) + sum(arg.size for arg in self.args))
        put(self, "depth", 1 + max((arg.depth for arg in self.args), default=0))
        put(self, "_hash", hash((self.op, self.args, self.type, self.value, self.nullable)))

    def __hash__(self) -> int:
        return self._hash


INTEGERS = frozenset(("int_field", "int_item"))  # operations whose values have all digits of a whole number


def find(node: Node, op: str) -> Node | None:
    """The first operation of that name in an expression."""
    if node.op == op:
        return node
    return next((found for arg in node.args if (found := find(arg, op)) is not None), None)


def is_coded(node: Node, coded: Collection[str]) -> bool:
    """Whether a value depends on what training learns of texts, given the earlier features that do."""
    if node.op in ("category", "encoded") or (node.op == "feature" and node.value in coded):
        return True
    return any(is_coded(arg, coded) for arg in node.args)
