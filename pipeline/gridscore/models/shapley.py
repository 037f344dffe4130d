"""What each feature adds to a margin, by the compiled loop in `_shapley.c`: SHAP values as XGBoost's TreeSHAP has them.

For the models that `Forest` takes. XGBoost computes in float32 with a fixed number of points, this in float64 with as
many as are exact, so both agree within XGBoost's own error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.compiled import compiled
from gridscore.models.forest import levels_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gridscore.models.forest import Forest

# As `Way` of `_shapley.c`.
_WAY = np.dtype([("z", np.float64), ("before", np.int32), ("unused", np.int32)])
_MOST_POINTS = 8
_LEAST_SHARE, _MOST_SHARE = 1e-12, 1.001  # what is far from that of rows that were counted loses digits
_MOST_NODES = 1_000_000  # of which some 100 MB are needed for a moment

_fast = compiled("gridscore.models._shapley")


class Shapley:
    """The contributions of one forest. Get one from `of`.

    `expected`: the mean of the forest over its training rows, without the base score.
    """

    def __init__(self, forest: Forest, ways: NDArray[Any], depth: int, expected: float) -> None:
        self._forest, self._ways, self.expected = forest, ways, expected
        # A product has a factor less than a path has features; n points are exact up to degree 2n - 1.
        count = min(max(1, (min(depth, forest.columns) + 1) // 2), _MOST_POINTS)
        points, weights = np.polynomial.legendre.leggauss(count)
        self._points, self._weights = (points + 1) / 2, weights / 2

    @classmethod
    def of(cls, forest: Forest, document: Mapping[str, Any]) -> Shapley | None:
        """Those of the forest of this document.

        None where nothing is compiled, for huge forests, and where nodes are not known to have been reached.
        """
        if _fast is None or len(forest.nodes) > _MOST_NODES or (covers := _covers(document)) is None:
            return None
        nodes, deepest = forest.nodes, int(forest.depths.max())
        at = np.arange(len(nodes), dtype=np.int32)
        left = nodes["child"] + np.repeat(forest.roots, np.diff(forest.roots, append=len(nodes)))
        inner = np.flatnonzero(left != at)
        parent, depth = at.copy(), np.zeros(len(nodes), np.int32)
        parent[left[inner]] = parent[left[inner] + 1] = inner
        levels = [forest.roots]
        for level in range(1, deepest + 1):
            above = levels[-1][left[levels[-1]] != levels[-1]]
            levels.append(np.concatenate([left[above], left[above] + 1]))
            depth[levels[-1]] = level
        features, last, above = forest.features, np.zeros(len(nodes), np.int32), at
        ways = np.zeros(len(nodes), _WAY)
        for _ in range(deepest):  # from each node up to its root
            split = parent[above]
            same = (ways["before"] == 0) & (split != above) & (features[split] == features)
            ways["before"][same], last[same] = depth[above[same]], above[same]
            above = split
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(parent == at, 1.0, covers / covers[parent])
        reached = shares.copy()
        ways["z"] = shares
        for of_level in levels[1:]:
            split = parent[of_level]
            reached[of_level] *= reached[split]
            ways["z"][of_level] *= np.where(ways["before"][split] > 0, ways["z"][last[split]], 1.0)
        if not ((ways["z"] > _LEAST_SHARE) & (shares < _MOST_SHARE)).all():  # NaN is neither
            return None
        return cls(forest, ways, deepest, float(nodes["value"].astype(np.float64) @ reached))

    def contributions(self, matrix: NDArray[np.float32], bases: NDArray[np.float32] | float) -> NDArray[np.float32]:
        """What each feature adds to the margin of each row.

        `matrix`: C-contiguous, of shape (n, features); `bases`: what a margin begins with, for all rows or each.
        Returns: shape (n, 1, features + 1); the last of a row is the base value. Raises ValueError if it has not as
        many columns as the model has features.
        """
        rows, columns = matrix.shape
        if columns != self._forest.columns:
            raise ValueError(f"{columns} columns, but the model has {self._forest.columns} features")
        added, forest = np.empty((rows, columns)), self._forest
        assert _fast is not None  # noqa: S101 -- see `of`
        _fast.contributions(forest.nodes, self._ways, forest.roots, self._points, self._weights, matrix, columns, added)
        found = np.empty((rows, 1, columns + 1), np.float32)
        found[:, 0, :-1], found[:, 0, -1] = added, self.expected + bases
        return found


def _covers(document: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """How much of the training rows came to each node of a forest; None if it is not known."""
    found = []
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        order, covers = np.concatenate(levels_of(tree)), np.asarray(tree.get("sum_hessian", ()), np.float32)
        if len(covers) <= order.max():
            return None
        found.append(covers[order])
    return np.concatenate(found, dtype=np.float64)
