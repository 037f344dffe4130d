"""What a model file says about itself, with its trees checked, before XGBoost is let near it.

XGBoost loads a tree whose child lies outside of it without complaint, and ends the process when it predicts (tried with
3.2). So every index that prediction follows is checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gridscore.errors import ModelError
from gridscore.models.document import SAVE_HINT, array_of, read_document

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEAF = -1
_MAX_CATEGORY = 1 << 24  # above it, float32 cannot tell category codes apart
# XGBoost before it counts characters where it cuts bytes: beyond ASCII its texts are not what training had.
_WHOLE_TEXTS = (3, 4, 0)

MAX_FEATURES = 100_000

_HIGHEST = 2**31 - 1
_WHOLE = re.compile(r"-?[0-9]{1,10}")
_SCORE = r"-?[0-9]{1,40}(\.[0-9]{0,40})?([eE][-+]?[0-9]{1,4})?"
_SCORES = re.compile(rf"{_SCORE}|\[{_SCORE}(,{_SCORE})*\]")
_SCORE_LENGTH = 100

_SPARE_SETS = 64 << 20
# Bytes that XGBoost may take for sets of categories, for each byte of the file: it keeps a bit for each code up to the
# highest in each split, and a file says that code in four bytes.
_SETS_PER_BYTE = 64

NAMES_HINT = (
    "Train on a DataFrame, give names to `xgboost.DMatrix(X, label=y, feature_names=[...])`, or set "
    "`booster.feature_names = [...]` in the order of the columns, and save it again."
)


@dataclass(frozen=True, slots=True)
class Description:
    """A model file's own account."""

    features: tuple[str, ...]  # names in the order of the columns; empty if it has none
    feature_types: tuple[str, ...]  # as XGBoost names them (`float`, `int`, `i`, `q`, `c`); empty if it has none
    feature_count: int  # number of columns that it was trained on
    booster: str  # `gblinear`, `gbtree`, or `dart` if its trees have weights, whatever the file calls it
    objective: str  # as XGBoost names it
    outputs: int
    classes: int
    trees: int
    rounds: int
    best_iteration: int | None  # where early stopping found the best round, if it was used
    xgboost_version: str
    attributes: dict[str, str]  # texts that its maker attached
    # Category texts by feature, where training on a DataFrame recorded them in ASCII.
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Highest category code that a split asks for, by column.
    highest_category: dict[int, int] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()  # columns whose categories were recorded beyond ASCII, and so are lost


def describe(payload: bytes, source: str = "The model") -> Description:
    """Read a model file's bytes and check that prediction can follow its trees.

    Raises ModelError if they are not a model that Gridscore can score with, or are damaged.
    """
    return describe_document(read_document(payload, source), len(payload), source)


def describe_document(document: dict[str, Any], size: int, source: str) -> Description:
    """The same of a document that was read already.

    Raises ModelError if it is not a model that Gridscore can score with, or is damaged.
    """
    if not isinstance(document.get("learner"), dict):
        raise ModelError(f"{source} has no `learner`: it is JSON, but not an XGBoost model.", SAVE_HINT)
    try:
        return _describe(document, size, source)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"{source} is not a complete XGBoost model: {what}.", "Copy it again, or save it anew from training."
        ) from None


def _describe(document: dict[str, Any], size: int, source: str) -> Description:
    learner = document["learner"]
    booster = learner["gradient_booster"]
    name = booster["name"]
    saved_by = _version(document["version"], source)
    parameters = learner["learner_model_param"]
    if name == "gblinear":
        return _describe_linear(learner, booster["model"], saved_by)
    if name not in ("gbtree", "dart"):
        raise ValueError(f"unknown booster `{name}`")
    model = (booster["gbtree"] if name == "dart" else booster)["model"]
    trees = model["trees"]
    if not isinstance(trees, list):
        raise TypeError("its trees are not a list")
    if not trees:
        raise ModelError(f"{source} has no trees.", "Train it for at least one round before saving it.")
    if any(_parameter(tree["tree_param"], "size_leaf_vector", 0, _HIGHEST, "1") > 1 for tree in trees):
        raise ModelError(
            f"{source} has trees with vector leaves (`multi_strategy=multi_output_tree`), which are not supported.",
            "Train it with `multi_strategy=one_output_per_tree`.",
        )
    # Each output has a tree at least.
    count, classes, outputs = _shape(parameters, len(trees))
    settings = model["gbtree_model_param"]
    _expect(_parameter(settings, "num_trees", 1, _HIGHEST) == len(trees), "its number of trees is wrong")
    parallel = _parameter(settings, "num_parallel_tree", 1, len(trees), "1")
    info = _integers(model["tree_info"], "tree_info")
    _expect(len(info) == len(trees), "its tree_info has not one number a tree")
    _expect(bool(((info >= 0) & (info < outputs)).all()), "its tree_info names an output that it does not have")
    weights = tree_weights(learner)
    if name == "dart" or weights is not None:
        name = "dart"
        _expect(weights is not None and weights.shape == (len(trees),), "its weight_drop is not one number per tree")
    highest: dict[int, int] = {}
    room = _SPARE_SETS + _SETS_PER_BYTE * size
    for number, tree in enumerate(trees):
        try:
            _expect(type(tree["id"]) is int and tree["id"] == number, "its number is not its place")
            room -= _check_tree(tree, count, highest)
            _expect(room >= 0, "its categorical splits take far more memory than its file")
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"tree {number}: {what}") from None

    rounds = _rounds(model, len(trees), outputs * parallel)
    found = _described(learner, saved_by, (count, classes, outputs), name, trees=len(trees), rounds=rounds)
    whole = tuple(map(int, saved_by.split("."))) >= _WHOLE_TEXTS
    categories, unreadable = _recorded_categories(model.get("cats"), found.features, count, whole=whole)
    return replace(found, categories=categories, unreadable=unreadable, highest_category=highest)


def _describe_linear(learner: dict[str, Any], model: dict[str, Any], saved_by: str) -> Description:
    """Of a model without trees (`gblinear`): a weight for each feature and output, and a bias for each output."""
    weights = _numbers(model["weights"], "weights")
    count, classes, outputs = _shape(learner["learner_model_param"], len(weights))
    _expect(len(weights) == (count + 1) * outputs, "it has not one weight for each feature and output, and the biases")
    _expect(bool(np.isfinite(weights).all()), "a weight is not a finite number")
    rounds = model.get("boosted_rounds", 1)
    _expect(type(rounds) is int and 0 <= rounds <= _HIGHEST, "its number of rounds is out of range")
    found = _described(learner, saved_by, (count, classes, outputs), "gblinear", trees=0, rounds=max(1, rounds))
    _expect("c" not in found.feature_types, "it is linear, and has categories")
    return found


def _described(
    learner: dict[str, Any], saved_by: str, shape: tuple[int, int, int], booster: str, *, trees: int, rounds: int
) -> Description:
    """What all kinds of models say of themselves."""
    count, classes, outputs = shape
    objective = _objective(learner["objective"], classes)
    features, types, attributes, best = _columns(learner, count)
    return Description(
        features=features,
        feature_types=types,
        feature_count=count,
        booster=booster,
        objective=objective,
        # `multi:softmax` sums a score for each class and gives the number of the highest.
        outputs=1 if objective == "multi:softmax" else outputs,
        classes=classes,
        trees=trees,
        rounds=rounds,
        best_iteration=best,
        xgboost_version=saved_by,
        attributes=attributes,
    )


def _shape(parameters: dict[str, Any], most: int) -> tuple[int, int, int]:
    """Features, classes (0 if it has none) and outputs, of which there are at most so many."""
    count = _parameter(parameters, "num_feature", 1, MAX_FEATURES)
    classes = _parameter(parameters, "num_class", 0, most, "0")
    targets = _parameter(parameters, "num_target", 1, most, "1")
    outputs = max(1, classes, targets)
    _expect(min(classes, targets) <= 1, f"it has {classes} classes and {targets} targets at once")
    _parameter(parameters, "boost_from_average", 0, 1, "1")
    _check_base_score(parameters["base_score"], outputs)
    return count, classes, outputs


def _columns(
    learner: dict[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str], int | None]:
    """Names, types, attributes, and the best round if early stopping found one."""
    features = _texts(learner.get("feature_names", []), "feature_names")
    types = _texts(learner.get("feature_types", []), "feature_types")
    _expect(len(features) in (0, count), f"{len(features)} feature names for {count} columns")
    _expect(len(types) in (0, count), f"{len(types)} feature types for {count} columns")
    _expect(set(types) <= {"float", "int", "i", "q", "c"}, "a feature type that XGBoost does not have")
    attributes = learner.get("attributes", {})
    _texts(list(attributes.values()), "attributes")
    best = attributes.get("best_iteration")
    number = int(best) if best is not None and best.isascii() and best.isdecimal() else None
    return features, types, attributes, number


def tree_weights(learner: Mapping[str, Any]) -> np.ndarray | None:
    """The weights of the trees of a `dart` model, float32 of shape (trees,), or None for other models.

    XGBoost 3.2 calls such a model `dart`, 3.3 `gbtree` with weights beside its model, 3.4 `gbtree` with weights inside.

    Raises KeyError if it has no model; TypeError if they are not numbers; ValueError if they are not finite.
    """
    booster = learner["gradient_booster"]
    model = (booster["gbtree"] if booster["name"] == "dart" else booster)["model"]
    found = booster.get("weight_drop", model.get("weight_drop"))
    if found is None or not len(found):
        return None
    weights = array_of(found, "weight_drop")
    if weights.dtype.kind not in "fiu":
        raise TypeError("weight_drop is not a list of numbers")
    _expect(bool(np.isfinite(weights).all()), "its weight_drop is not finite")
    return weights.astype(np.float32)


def _version(value: Any, source: str) -> str:
    if isinstance(value, list):
        _expect(all(type(part) is int for part in value), "its version is not three whole numbers")
    parts = _integers(value, "version").tolist()
    _expect(len(parts) == 3 and min(parts) >= 0 and max(parts) < 1000, "its version is not three numbers")
    text = ".".join(map(str, parts))
    if parts < [1, 6, 0]:
        raise ModelError(
            f"{source} was saved by XGBoost {text}, which is too old.",
            "Load it with a newer XGBoost and save it again.",
        )
    return text


def _parameter(parameters: dict[str, Any], name: str, low: int, high: int, default: str = "") -> int:
    """A whole number that XGBoost has written as text, in its range."""
    text = parameters.get(name, default)
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise ValueError(f"its {name} is not a whole number")
    _expect(low <= int(text) <= high, f"its {name} is {text}, and can be {low} to {high}")
    return int(text)


def _check_base_score(text: Any, outputs: int) -> None:
    fits = isinstance(text, str) and len(text) <= _SCORE_LENGTH * (outputs + 1) and _SCORES.fullmatch(text)
    _expect(bool(fits), "its base_score is not a number")
    scores = np.array(text.strip("[]").split(","), np.float64)
    _expect(bool((np.abs(scores) <= np.finfo(np.float32).max).all()), "its base_score is not a float32")
    _expect(len(scores) in (1, outputs), f"its base_score is {len(scores)} numbers for {outputs} outputs")


def _objective(objective: dict[str, Any], classes: int) -> str:
    name = objective["name"]
    if not isinstance(name, str):
        raise TypeError("the name of its objective is not a text")
    if (softmax := objective.get("softmax_multiclass_param")) is not None:
        _expect(
            _parameter(softmax, "num_class", 0, _HIGHEST) == classes, "its objective has a different number of classes"
        )
    _expect(not name.startswith("multi:") or classes > 0, "it has no classes for its objective")
    return name


def _rounds(model: dict[str, Any], trees: int, per_round: int) -> int:
    if (starts := model.get("iteration_indptr")) is None:  # before XGBoost 2.0
        return max(1, trees // per_round)
    starts = _integers(starts, "iteration_indptr")
    increasing = len(starts) > 0 and starts[0] == 0 and starts[-1] == trees and bool((np.diff(starts) >= 0).all())
    _expect(increasing, "its iteration_indptr does not divide its trees")
    return len(starts) - 1


def _check_tree(tree: dict[str, Any], feature_count: int, highest: dict[int, int]) -> int:
    """Check one tree, and return the bytes that XGBoost will take for its sets of categories."""
    parameters = tree["tree_param"]
    nodes = _parameter(parameters, "num_nodes", 1, _HIGHEST)
    columns = _parameter(parameters, "num_feature", 1, MAX_FEATURES)
    _expect(columns == feature_count, "its number of features is not the model's")
    _parameter(parameters, "num_deleted", 0, nodes - 1, "0")
    left, right = _integers(tree["left_children"], "left_children"), _integers(tree["right_children"], "right_children")
    features = _integers(tree["split_indices"], "split_indices")
    parents = _integers(tree["parents"], "parents")
    for name in ("split_conditions", "default_left", "base_weights", "loss_changes", "sum_hessian"):
        _expect(len(tree[name]) == nodes, f"{name} has not one number a node")
    _expect(len(left) == len(right) == len(features) == nodes, "it has not two children and a feature a node")
    _expect(len(parents) == nodes, "it has not one parent a node")
    _expect(bool(((parents[1:] >= 0) & (parents[1:] < nodes)).all()), "a parent is not a node")
    inner = np.flatnonzero(left != _LEAF)
    conditions = _numbers(tree["split_conditions"], "split_conditions")
    # A comparison with NaN is never true, and never the same way in two implementations.
    _expect(not np.isnan(conditions[inner]).any(), "the threshold of a split is not a number")
    _expect(bool(np.isfinite(conditions[left == _LEAF]).all()), "the value of a leaf is not a finite number")
    default_left = _integers(tree["default_left"], "default_left")
    _expect(bool(((default_left == 0) | (default_left == 1)).all()), "default_left is neither 0 nor 1")
    for children in (left[inner], right[inner]):
        # XGBoost numbers a child after its parent. Whoever follows such numbers comes to a leaf.
        _expect(bool(((children > inner) & (children < nodes)).all()), "a child is not a node below its parent")
        _expect(bool((parents[children] == inner).all()), "a parent is not the one whose child it is")
    # Otherwise each level that is walked would have twice the nodes of the one above, whatever the tree has.
    _expect(bool((left[inner] != right[inner]).all()), "the two children of a node are one")
    split_on = features[inner]
    _expect(bool(((split_on >= 0) & (split_on < feature_count)).all()), "it splits on a feature that does not exist")
    if "split_type" in tree:
        kinds = _integers(tree["split_type"], "split_type")
        _expect(len(kinds) == nodes, "split_type has not one number a node")
        _expect(bool(((kinds == 0) | (kinds == 1)).all()), "split_type is neither 0 nor 1")
        return _check_categories(tree, nodes, features, inner[kinds[inner] != 0], highest)
    return 0


def _check_categories(
    tree: dict[str, Any], nodes: int, features: np.ndarray, inner: np.ndarray, highest: dict[int, int]
) -> int:
    at = _integers(tree["categories_nodes"], "categories_nodes")
    starts = _integers(tree["categories_segments"], "categories_segments")
    sizes = _integers(tree["categories_sizes"], "categories_sizes")
    codes = _integers(tree["categories"], "categories")
    _expect(len(at) == len(starts) == len(sizes), "its categorical splits are incomplete")
    if not len(at):
        _expect(not len(inner), "its categorical splits are missing")
        return 0
    _expect(bool(at[0] >= 0 and at[-1] < nodes and (np.diff(at) > 0).all()), "its categories_nodes are not in order")
    _expect(bool(np.isin(inner, at).all()), "a categorical split has no categories")
    in_range = (starts >= 0) & (starts <= len(codes)) & (sizes > 0) & (sizes <= len(codes) - starts)
    _expect(bool(in_range.all()), "its categories_segments lie outside of its categories")
    _expect(int(sizes.sum()) <= len(codes), "its categories_segments overlap")  # read once each, whatever they say
    _expect(bool(((codes >= 0) & (codes < _MAX_CATEGORY)).all()), "a category code is out of range")
    memory = 0
    for node, start, size in zip(at.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        column = int(features[node])
        code = int(codes[start : start + size].max())
        highest[column] = max(highest.get(column, 0), code)
        memory += code // 8 + 4  # a bit for each code up to the highest, in words of four bytes
    return memory


def _recorded_categories(
    cats: Any, features: tuple[str, ...], count: int, *, whole: bool
) -> tuple[dict[str, tuple[str, ...]], tuple[int, ...]]:
    """What XGBoost 3.1 and later record of a DataFrame's categories: the texts, in the order of their codes.

    And the columns of which it recorded them wrongly; `whole` says that it does not.
    """
    if cats is None:  # before XGBoost 3.1
        return {}, ()
    columns = cats["enc"]
    segments = _integers(cats["feature_segments"], "feature_segments")
    order = _integers(cats["sorted_idx"], "sorted_idx")
    if not len(columns):
        _expect(not len(segments) and not len(order), "its recorded categories are incomplete")
        return {}, ()
    _expect(isinstance(columns, list) and len(columns) == count, "its recorded categories are not one list a feature")
    _expect(len(segments) == count + 1 and segments[0] == 0, "its recorded categories are not one segment a feature")
    lengths = np.diff(segments)
    _expect(bool((lengths >= 0).all()) and segments[-1] == len(order), "its recorded categories are incomplete")
    found: dict[str, tuple[str, ...]] = {}
    lost: list[int] = []
    for column, length in enumerate(lengths.tolist()):
        part = order[segments[column] : segments[column + 1]]
        _expect(bool(((part >= 0) & (part < max(length, 1))).all()), "its recorded categories are out of order")
        recorded = columns[column]
        if "offsets" not in recorded:
            _expect(len(recorded["values"]) == length, "its recorded categories are incomplete")
            if not np.array_equal(array_of(recorded["values"], "values"), np.arange(length)):
                name = features[column] if features else str(column)
                raise ModelError(
                    f"The feature `{name}` was trained as a category of numbers that are not 0, 1, 2, …: their codes "
                    "would be taken for the numbers themselves.",
                    "Make them texts in training, `frame[name].astype(str).astype('category')`, or train on the matrix "
                    "of `gridscore features`.",
                )
            continue
        offsets = _integers(recorded["offsets"], "offsets")
        raw = (_integers(recorded["values"], "values") & 0xFF).astype(np.uint8).tobytes()
        _expect(max(len(offsets) - 1, 0) == length, "its recorded categories are incomplete")
        if not length:
            continue
        fits = offsets[0] == 0 and offsets[-1] == len(raw) and bool((np.diff(offsets) >= 0).all())
        _expect(bool(fits), "its recorded categories lie outside of their text")
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        try:
            texts = tuple(raw[start:end].decode() for start, end in bounds)
        except UnicodeDecodeError:
            texts = ()
        if not texts or not (whole or raw.isascii()):
            lost.append(column)
        elif features:
            found[features[column]] = texts
    return found, tuple(lost)


def _integers(values: Any, name: str) -> np.ndarray:
    """An array of integers; anything else, also a number with a fraction, is refused."""
    if not isinstance(values, list | np.ndarray):
        raise TypeError(f"{name} is not a list")
    array = array_of(values, name) if len(values) else np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise TypeError(f"{name} is not a list of integers")
    return array.astype(np.int64)


def _numbers(values: Any, name: str) -> np.ndarray:
    """An array of float32; an integer is a number, too."""
    array = array_of(values, name)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} is not a list of numbers")
    with np.errstate(over="ignore"):  # what is too large is infinite, as it is for XGBoost
        return array.astype(np.float32)


def _texts(values: Any, name: str) -> tuple[str, ...]:
    if isinstance(values, np.ndarray) and not len(values):
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} is not a list of texts")
    return tuple(values)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
