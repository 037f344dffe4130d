"""A model's trees laid out for the compiled loop in `_forest.c`: half of XGBoost's time a batch, much less a row.

It takes the common models only: one output, splits on numbers, an objective whose transformation is the identity or the
logistic function. All others, and all models where the module is not compiled, are predicted by XGBoost itself. Whoever
loads a model proves that both give the same bits (see `loaded`), and takes XGBoost where they do not.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.compiled import compiled
from gridscore.models.description import tree_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Way = Callable[[NDArray[np.float32], int, NDArray[np.float32], NDArray[np.float32] | None], None]
    """Fills scores; see `Forest.predict`."""

_IDENTITY = frozenset(
    (
        "binary:logitraw",
        "rank:map",
        "rank:ndcg",
        "rank:pairwise",
        "reg:absoluteerror",
        "reg:pseudohubererror",
        "reg:squarederror",
        "reg:squaredlogerror",
    )
)
_LOGISTIC = frozenset(("binary:logistic", "reg:logistic"))

MAX_DEPTH = 16  # all rows go as deep as the deepest leaf of a tree: trees that are deeper are usually uneven, too
_NODE = np.dtype([("threshold", np.float32), ("feature", np.uint32), ("child", np.int32), ("value", np.float32)])
_MISSING_RIGHT = np.uint32(1 << 31)
_LEAF = -1

_fast = compiled("gridscore.models._forest")


class ByRanks(NamedTuple):
    """A function for many rows.

    `steps_of_top`, `steps_of_rank`: what a row's way through a top, and one of its ranks, cost, in steps from a node.
    """

    name: str
    many: int
    steps_of_top: int
    steps_of_rank: int


# The faster one first: AVX-512, and AVX2 or NEON.
BY_RANKS = (ByRanks("predict_by_vectors", 16, 3, 4), ByRanks("predict_by_lanes", 32, 3, 12))
_by_ranks = next((each for each in BY_RANKS if hasattr(_fast, each.name)), None)

# As `Top` and `Cuts` of `_forest.c`.
_TOP = np.dtype(
    [
        ("column", np.uint8, 64),
        ("threshold", np.uint8, 64),
        ("missing_right", np.uint8, 8),
        ("root", np.int32),
        ("depth", np.int32),
        ("exit", np.uint32, 64),
    ]
)
_CUTS = np.dtype([("last", np.float32, 16), ("part", np.float32, (16, 16)), ("feature", np.int32)])
_TOP_LEVELS = 6
_MAX_RANKED = 256
_MAX_CUTS = 254
_NEVER = 255


class Forest:
    """The trees of one model. Get one from `of`.

    `nodes`: of all trees, one after the other; `roots`: where each tree begins; `columns`: features of a row; `base`:
    what a margin begins with; `steps`: from node to node that one row takes; `ways`: by which it predicts: for few
    rows, and, if it has another, for many.
    """

    def __init__(
        self,
        nodes: NDArray[Any],
        roots: NDArray[np.int32],
        depths: NDArray[np.int32],
        columns: int,
        base: float,
        logistic: bool,
    ) -> None:
        self.nodes, self.roots, self.depths, self.columns = nodes, roots, depths, columns
        self.base = -math.log(1 / base - 1) if logistic and 0 < base < 1 else base
        self.steps = int(depths.sum()) + len(roots)
        self.ways: tuple[Way, ...] = (_way("predict", nodes, roots, depths, base, logistic),)
        self._many = 0 if _by_ranks is None else _by_ranks.many
        if _by_ranks is not None and (ranked := _rank(nodes, roots, depths, _by_ranks)):
            self.ways += (_way(_by_ranks.name, nodes, *ranked, base, logistic),)

    @property
    def features(self) -> NDArray[np.int64]:
        """The feature that each node splits on; of a leaf 0."""
        return (self.nodes["feature"] & ~_MISSING_RIGHT).astype(np.int64)

    @property
    def missing_right(self) -> NDArray[np.bool_]:
        """Whether a missing value goes to the right of each node."""
        missing_right: NDArray[np.bool_] = (self.nodes["feature"] & _MISSING_RIGHT) != 0
        return missing_right

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Forest | None:
        """The forest of a model's document, which `describe` has passed; None if it cannot be walked."""
        learner = document["learner"]
        parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
        objective = learner["objective"]["name"]
        outputs = max(1, int(parameters.get("num_class", 0)), int(parameters.get("num_target", 1)))
        if _fast is None or booster["name"] != "gbtree" or outputs > 1 or objective not in _IDENTITY | _LOGISTIC:
            return None
        if tree_weights(learner) is not None:
            return None
        trees = booster["model"]["trees"]
        if any(np.any(np.asarray(tree.get("split_type", ()))) for tree in trees):
            return None
        laid = [_lay_out(tree) for tree in trees]
        depths = np.array([depth for _, depth in laid], np.int32)
        if depths.max() > MAX_DEPTH:
            return None
        roots = np.cumsum([0, *(len(nodes) for nodes, _ in laid[:-1])], dtype=np.int32)
        logistic = objective in _LOGISTIC
        try:
            score = _base_score(parameters["base_score"])
        except (ValueError, TypeError, IndexError, RecursionError):  # XGBoost reads more than JSON as a number
            return None
        nodes = np.concatenate([nodes for nodes, _ in laid])
        return cls(nodes, roots, depths, int(parameters["num_feature"]), float(score), logistic)

    def predict(
        self, matrix: NDArray[np.float32], margins: NDArray[np.float32] | None = None, way: Way | None = None
    ) -> NDArray[np.float32]:
        """Scores of the rows of a matrix; one that is not C-contiguous float32 is copied first.

        `matrix`: shape (n, features); `margins`: float32 of shape (n,), instead of the model's base score; `way`: one
        of `ways`, instead of the faster one. Returns: float32 of shape (n,). Raises ValueError if it has not as many
        columns as the model has features, or there is not one margin a row.
        """
        matrix = np.ascontiguousarray(matrix, np.float32)
        rows, columns = matrix.shape
        if columns != self.columns:
            raise ValueError(f"{columns} columns, but the model has {self.columns} features")
        scores = np.empty(rows, np.float32)
        (way or self.ways[-1 if rows >= self._many else 0])(matrix, columns, scores, margins)
        return scores


def _way(name: str, *arguments: NDArray[Any] | float) -> Way:
    # Views are had sooner than arrays, which one row notices.
    views = (memoryview(each) if isinstance(each, np.ndarray) else each for each in arguments)
    return partial(getattr(_fast, name), *views)


def _base_score(text: str) -> np.float32:
    """XGBoost writes a number, or, since 3.1, a list with one number for each output."""
    value = json.loads(text)
    return np.float32(value[0] if isinstance(value, list) else value)


def levels_of(tree: Mapping[str, Any]) -> list[NDArray[np.int64]]:
    """The numbers of a tree's nodes, level by level, as a forest has them: the children of each side by side."""
    lefts, rights = np.asarray(tree["left_children"], np.int64), np.asarray(tree["right_children"], np.int64)
    found = [np.zeros(1, np.int64)]
    while (inner := found[-1][lefts[found[-1]] != _LEAF]).size:
        found.append(np.stack([lefts[inner], rights[inner]], axis=1).ravel())
    return found


def _lay_out(tree: Mapping[str, Any]) -> tuple[NDArray[Any], int]:
    """Nodes of a tree, and its depth."""
    lefts, by_level = np.asarray(tree["left_children"], np.int64), levels_of(tree)
    conditions = np.asarray(tree["split_conditions"], np.float32)
    # Of leaves there may be anything.
    features = np.where(lefts == _LEAF, 0, np.asarray(tree["split_indices"]).astype(np.int64)).astype(np.uint32)
    missing_left = np.asarray(tree["default_left"], np.bool_)
    order = np.concatenate(by_level)
    leaf = lefts[order] == _LEAF
    nodes = np.zeros(len(order), _NODE)
    nodes["threshold"] = np.where(leaf, np.float32(np.nan), conditions[order])
    nodes["feature"] = np.where(leaf, 0, features[order] | np.where(missing_left[order], np.uint32(0), _MISSING_RIGHT))
    # The children of the n-th inner node, in this order, are the n-th pair after the root.
    nodes["child"] = np.where(leaf, np.arange(len(order)), 2 * np.cumsum(~leaf) - 1)
    nodes["value"] = np.where(leaf, conditions[order], np.float32(0))
    return nodes, len(by_level) - 1


def _rank(
    nodes: NDArray[Any], roots: NDArray[np.int32], depths: NDArray[np.int32], way: ByRanks
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The upper levels of each tree, and the thresholds that rank values for them; None if it does not pay."""
    saved = int(np.minimum(depths, _TOP_LEVELS).sum()) + (1 - way.steps_of_top) * len(roots)  # below, all are walked
    most = min(_MAX_RANKED, saved // way.steps_of_rank)
    inner = np.flatnonzero(~np.isnan(nodes["threshold"]))
    split_on = nodes["feature"][inner] & ~_MISSING_RIGHT
    features, starts = np.unique(np.sort(split_on), return_index=True)
    if len(features) > most:
        return None
    columns, ranks = np.zeros(len(nodes), np.uint8), np.full(len(nodes), _NEVER, np.uint8)
    parts: list[tuple[int, NDArray[np.float32]]] = []
    for feature, own in zip(features, np.split(inner[np.argsort(split_on)], starts[1:]), strict=False):
        thresholds, places = np.unique(nodes["threshold"][own], return_inverse=True)
        columns[own], ranks[own] = len(parts) + places // _MAX_CUTS, 1 + places % _MAX_CUTS
        parts += [(feature, thresholds[at : at + _MAX_CUTS]) for at in range(0, len(thresholds), _MAX_CUTS)]
    if len(parts) > most:
        return None
    cuts = np.zeros(len(parts), _CUTS)
    for row, (feature, thresholds) in zip(cuts, parts, strict=True):
        padded = np.full(256, np.nan, np.float32)
        padded[: len(thresholds)] = thresholds
        row["part"], row["feature"] = padded.reshape(16, 16), feature
    cuts["last"] = cuts["part"][:, :, -1]
    return _lay_out_tops(nodes, roots, depths, columns, ranks), cuts


def _lay_out_tops(
    nodes: NDArray[Any],
    roots: NDArray[np.int32],
    depths: NDArray[np.int32],
    columns: NDArray[np.uint8],
    ranks: NDArray[np.uint8],
) -> NDArray[Any]:
    tops = np.zeros(len(roots), _TOP)
    tops["threshold"], tops["root"], tops["depth"] = _NEVER, roots, depths
    missing_right = np.zeros((len(roots), 64), np.bool_)
    root = roots[:, None]
    at = np.zeros((len(roots), 1), np.int32)  # of each tree, the nodes of a level from left to right
    for level in range(_TOP_LEVELS):
        number = np.arange(1 << level)
        if level < 3:  # half of the levels; see `Top` for where their bits are
            bits = 8 * ((1 << level) - 1 + number) + 7
        else:
            within = 1 << level - 3
            bits = 8 * (number // within) + within - 1 + number % within
        tops["column"][:, bits], tops["threshold"][:, bits] = columns[root + at], ranks[root + at]
        missing_right[:, bits] = nodes["feature"][root + at] >> 31
        left = nodes["child"][root + at]
        at = np.stack([left, left + (left != at)], axis=2).reshape(len(roots), -1)  # a leaf leads to itself
    tops["missing_right"] = np.packbits(missing_right, axis=1, bitorder="little")
    is_deeper = (depths > _TOP_LEVELS)[:, None]
    tops["exit"] = np.where(is_deeper, at.view(np.uint32), nodes["value"][root + at].view(np.uint32))
    return tops
