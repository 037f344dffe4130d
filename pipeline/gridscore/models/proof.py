"""Proof that a compiled forest gives XGBoost's bits: rows that reach its leaves, from both sides of each threshold.

The path to a leaf says between which bounds each feature must lie. A row in the lowest corner of these bounds lies on
the thresholds themselves, one in the highest a last bit below them, and a third is missing wherever the path lets it.
What a path does not ask for is drawn from the thresholds of the feature, their neighbours, and other special values, so
that other trees are tried at theirs. All leaves that any row can reach are reached, unless that is too much work: then
as many, drawn evenly from all trees, as the work allows.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gridscore.models.forest import Forest

    Predict = Callable[..., NDArray[np.float32]]

MAX_WORK = 1 << 29  # steps from node to node that the proof of each way takes at most: some seconds of one core
SLICE_WORK = 1 << 20  # steps of one call of the compiled loop, which holds the interpreter: about a millisecond
_CELLS = 1 << 19
_CELL_WORK = 8  # steps that making one number of a row is worth
_HIGH = np.float32(np.inf)
_SPECIAL = np.array([np.nan, 0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3e38], np.float32)
_SIZES = (1, 3, 16, 17, 64, 1024)  # rows a call, in turn: the compiled loop treats them in groups


def gives_same_bits(forest: Forest, predict: Predict) -> bool:
    """Whether both score alike, bit for bit, by each way that the forest has."""
    most = max(1, SLICE_WORK // forest.steps)
    sizes = cycle(min(size, most) for size in _SIZES)
    for rows in probe_rows(forest):
        expected = predict(rows)
        few = rows[:most]
        margins = np.nan_to_num(few[:, 0], posinf=1.0, neginf=-1.0)
        expected_with_margins = predict(few, margins).tobytes()
        for way in forest.ways:
            begin = 0
            while begin < len(rows):
                end = begin + next(sizes)
                if forest.predict(rows[begin:end], way=way).tobytes() != expected[begin:end].tobytes():
                    return False
                begin = end
            if forest.predict(few, margins, way).tobytes() != expected_with_margins:
                return False
    return True


def probe_rows(forest: Forest) -> Iterator[NDArray[np.float32]]:
    """Rows to prove a forest with, in batches; always the same for a forest."""
    generator = np.random.default_rng(len(forest.nodes))
    tree = _Paths.of(forest)
    pool = _Pool.of(forest)
    left = max(64, MAX_WORK // (forest.steps + _CELL_WORK * forest.columns))
    batch = max(1, min(2048, _CELLS // forest.columns))
    # Half of the work at most: the paths below come to all thresholds, too.
    sweeps = min(int(pool.counts.max()), left // 2)
    for begin in range(0, sweeps, batch):
        yield pool.sweep(np.arange(begin, min(begin + batch, sweeps)))
    left -= sweeps
    # In the order of their corners: what is left out first is a second visit to a leaf.
    for corner in range(3):
        leaves = generator.permutation(tree.leaves)[:left]
        left -= len(leaves)
        for begin in range(0, len(leaves), batch):
            part = leaves[begin : begin + batch]
            rows = tree.rows(part, corner, pool.draw(generator, len(part)))
            if len(rows):
                yield rows


def some_rows(forest: Forest, most: int) -> NDArray[np.float32]:
    """Finite or missing rows that reach leaves drawn evenly from all trees; always the same for a forest."""
    generator, paths = np.random.default_rng(len(forest.nodes)), _Paths.of(forest)
    leaves = generator.permutation(paths.leaves)[:most]
    others = _Pool.of(forest).draw(generator, len(leaves))
    rows = paths.rows(leaves, 0, others)
    rows = rows if len(rows) else others
    return np.where(np.isinf(rows), np.copysign(np.finfo(np.float32).max, rows), rows)


class _Pool(NamedTuple):
    """Values to try, feature by feature: `values[starts[f]]` and the `counts[f] - 1` after it."""

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, forest: Forest) -> _Pool:
        inner = ~np.isnan(forest.nodes["threshold"])
        split_on, thresholds = forest.features[inner], forest.nodes["threshold"][inner]
        order = np.lexsort((thresholds, split_on))
        split_on, thresholds = split_on[order], thresholds[order]
        values, counts = [], np.empty(forest.columns, np.int64)
        bounds = np.searchsorted(split_on, np.arange(forest.columns + 1))
        for feature in range(forest.columns):
            own = np.unique(thresholds[bounds[feature] : bounds[feature + 1]])
            values += [own, np.nextafter(own, _HIGH), np.nextafter(own, -_HIGH), _SPECIAL]
            counts[feature] = 3 * len(own) + len(_SPECIAL)
        return cls(np.concatenate(values), np.cumsum(counts) - counts, counts)

    def sweep(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows in which each feature takes its values in turn, neighbours at different places."""
        places = (numbers[:, None] + np.arange(len(self.counts)) * 7) % self.counts
        return self.values[self.starts + places]

    def draw(self, generator: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Rows of values at random."""
        places = generator.integers(0, 1 << 40, (count, len(self.counts))) % self.counts
        return self.values[self.starts + places]


class _Paths(NamedTuple):
    """The way from each node up to its root. Nodes of all trees are numbered through."""

    parent: NDArray[np.int64]  # of a root: -1
    is_right: NDArray[np.bool_]
    leaves: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    missing_right: NDArray[np.bool_]

    @classmethod
    def of(cls, forest: Forest) -> _Paths:
        count = len(forest.nodes)
        sizes = np.diff(np.append(forest.roots, count))
        child = np.repeat(forest.roots.astype(np.int64), sizes) + forest.nodes["child"]
        is_leaf = np.isnan(forest.nodes["threshold"])
        inner = np.flatnonzero(~is_leaf)
        parent, is_right = np.full(count, -1, np.int64), np.zeros(count, np.bool_)
        parent[child[inner]] = parent[child[inner] + 1] = inner
        is_right[child[inner] + 1] = True
        return cls(
            parent, is_right, np.flatnonzero(is_leaf), forest.features, forest.nodes["threshold"], forest.missing_right
        )

    def rows(self, leaves: NDArray[np.int64], corner: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The given rows, changed so that each comes to its leaf; without those whose leaf no row can reach."""
        low, high = np.full(rows.shape, -_HIGH), np.full(rows.shape, _HIGH)
        is_tested, may_miss = np.zeros(rows.shape, np.bool_), np.ones(rows.shape, np.bool_)
        number, at = np.arange(len(leaves)), leaves
        while (below := self.parent[at] >= 0).any():
            number, at = number[below], at[below]
            right, at = self.is_right[at], self.parent[at]
            place, threshold = (number, self.feature[at]), self.threshold[at]
            low[place] = np.where(right, np.maximum(low[place], threshold), low[place])
            high[place] = np.where(right, high[place], np.minimum(high[place], threshold))
            may_miss[place] &= self.missing_right[at] == right
            is_tested[place] = True
        has_number = (low < high) | (high == _HIGH)
        lowest = np.where(low == -_HIGH, np.nextafter(high, -_HIGH), low)
        highest = np.where(high == _HIGH, lowest, np.nextafter(high, -_HIGH))
        chosen = highest if corner == 1 else lowest
        chosen = np.where(may_miss & (~has_number | (corner == 2)), np.float32(np.nan), chosen)
        made = np.where(is_tested, chosen, rows)
        return np.ascontiguousarray(made[(has_number | may_miss | ~is_tested).all(axis=1)])
