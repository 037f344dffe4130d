"""The proof of a compiled forest reaches its leaves, from both sides of each threshold, in bounded time."""

import json

import numpy as np
import pytest
import xgboost as xgb

from gridscore import compiled
from gridscore.errors import ModelError
from gridscore.models import document as documents
from gridscore.models import proof
from gridscore.models.candidate import Candidate
from gridscore.models.description import describe
from gridscore.models.document import read_document
from gridscore.models.forest import Forest
from gridscore.models.loaded import LoadedModel

pytestmark = pytest.mark.skipif(
    compiled.compiled("gridscore.models._forest") is None, reason="the forest is not compiled here"
)  # where it must be, `test_compiled` fails


def places(rounds=40, features=2, missing=0.0):
    """A model of latitude and longitude: many thresholds on two features, and leaves in small boxes of both."""
    generator = np.random.default_rng(1)
    values = np.stack(
        [generator.uniform(40, 41, 6_000), generator.uniform(-74, -73, 6_000)]
        + [generator.normal(size=6_000) for _ in range(features - 2)],
        axis=1,
    ).astype(np.float32)
    waves = np.sin(values[:, 0] * 40) * np.cos(values[:, 1] * 50)
    values[generator.random(values.shape) < missing] = np.nan
    labels = waves > generator.normal(size=6_000) * 0.3
    names = ["latitude", "longitude", *(f"f{each}" for each in range(features - 2))]
    data = xgb.DMatrix(values, labels, feature_names=names)
    return xgb.train({"objective": "binary:logistic", "max_depth": 8, "max_bin": 512, "nthread": 1}, data, rounds)


def forest_of(booster):
    return Forest.of(read_document(bytes(booster.save_raw("ubj")), "the model"))


def reached(booster, rows):
    """Pairs of tree and leaf, as XGBoost itself finds them."""
    finite = np.where(np.isinf(rows), np.sign(rows) * np.finfo(np.float32).max, rows)
    leaves = booster.predict(xgb.DMatrix(finite, feature_names=booster.feature_names), pred_leaf=True)
    return {(tree, leaf) for tree in range(leaves.shape[1]) for leaf in np.unique(leaves[:, tree]).tolist()}


def leaves_of(booster):
    return int((booster.trees_to_dataframe()["Feature"] == "Leaf").sum())


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_every_leaf_is_reached_and_each_threshold_tried_on_both_sides(missing):
    booster = places(missing=missing)
    forest = forest_of(booster)
    rows = np.concatenate(list(proof.probe_rows(forest)))

    assert leaves_of(booster) > 2_000
    assert len(reached(booster, rows)) == leaves_of(booster)
    splits = booster.trees_to_dataframe().query("Feature != 'Leaf'")
    for column, name in enumerate(booster.feature_names):
        thresholds = splits.query(f"Feature == '{name}'")["Split"].to_numpy(np.float32)
        tried = set(rows[:, column].tolist())
        for tested in (thresholds, *(np.nextafter(thresholds, np.float32(to)) for to in (np.inf, -np.inf))):
            assert set(tested.tolist()) <= tried
        assert np.isnan(rows[:, column]).any()


def test_a_large_model_is_tried_evenly_within_the_work(monkeypatch):
    booster = places(features=6)
    forest = forest_of(booster)
    rows = 600
    monkeypatch.setattr(proof, "MAX_WORK", rows * (forest.steps + 8 * forest.columns))
    found = np.concatenate(list(proof.probe_rows(forest)))

    assert len(found) <= rows
    per_tree = np.zeros(forest.roots.size)
    for tree, _ in reached(booster, found):
        per_tree[tree] += 1
    assert per_tree.min() >= 8


@pytest.mark.parametrize("field", ["threshold", "feature", "value"])
def test_one_wrong_node_is_found(field):
    booster = places(rounds=10)
    forest, right = forest_of(booster), forest_of(booster)
    of_kind = np.isnan(forest.nodes["threshold"]) == (field == "value")
    for node in np.random.default_rng(3).choice(np.flatnonzero(of_kind), 10, replace=False):
        kept = forest.nodes[node].copy()
        if field == "feature":
            forest.nodes["feature"][node] ^= 1  # the other of the two
        else:
            forest.nodes[field][node] = np.nextafter(kept[field], np.float32(np.inf))
            if field == "value":  # a last bit would be lost in the sum
                forest.nodes[field][node] += 1
        _, _, depths, base, logistic = forest.ways[0].args
        changed = Forest(forest.nodes, forest.roots, np.asarray(depths), forest.columns, base, logistic)
        assert len(changed.ways) == len(right.ways)
        for way in changed.ways:
            assert not _agree(changed, way, right), (field, node, way)
        forest.nodes[node] = kept


def _agree(forest, way, right):
    return all(
        forest.predict(rows, way=way).tobytes() == right.predict(rows).tobytes() for rows in proof.probe_rows(right)
    )


@pytest.mark.parametrize("field", ["threshold", "column", "missing_right", "exit"])
def test_one_wrong_top_is_found(field):
    """Of a forest that predicts many rows in another way than few."""
    forest, right = forest_of(places(rounds=10, missing=0.2)), forest_of(places(rounds=10, missing=0.2))
    if len(forest.ways) == 1:
        pytest.skip("the processor has no such vectors")
    tops, cuts = map(np.asarray, forest.ways[1].args[1:3])
    bits = np.argwhere(tops["threshold"] < 255)
    for tree, bit in bits[np.random.default_rng(3).choice(len(bits), 10, replace=False)]:
        kept = tops[tree].copy()
        if field == "missing_right":
            tops[field][tree, 0] ^= 1 << 7  # of the root, which every missing value comes to
        elif field == "exit":
            tops[field][tree, 0] = tops[field][tree, 63]
        elif field == "column":
            tops[field][tree, bit] = (tops[field][tree, bit] + 1) % len(cuts)
        else:
            tops[field][tree, bit] ^= 1
        assert not proof.gives_same_bits(forest, right.predict), (field, tree, bit)
        tops[tree] = kept
    assert proof.gives_same_bits(forest, right.predict)


def test_the_loop_is_called_for_a_little_at_a_time(monkeypatch):
    forest = forest_of(places(rounds=10))
    monkeypatch.setattr(proof, "SLICE_WORK", 40 * forest.steps)
    sizes = []
    predict = Forest.predict

    def counted(self, matrix, margins=None, way=None):
        sizes.append(len(matrix))
        return predict(self, matrix, margins, way)

    monkeypatch.setattr(Forest, "predict", counted)
    assert proof.gives_same_bits(forest, lambda rows, margins=None: predict(forest, rows, margins))
    assert {1, 3, 16, 17, 40} <= set(sizes)
    assert max(sizes) <= 40


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_a_document_is_parsed_once_at_a_push_and_once_at_a_load(monkeypatch, form):
    booster = places(rounds=2)
    parsed = []
    for name in ("_json", "_Ubj"):
        right = getattr(documents, name)
        monkeypatch.setattr(documents, name, lambda payload, right=right: parsed.append(1) or right(payload))
    checked = Candidate.check(bytes(booster.save_raw(form)), "m", metrics=None, categories=None)
    assert len(parsed) == 1
    assert LoadedModel.load(checked.version, checked.payload).is_compiled
    assert len(parsed) == 2


@pytest.mark.parametrize(
    ("leaf", "value", "says"),
    [
        (False, float("nan"), "threshold of a split is not a number"),
        (True, float("nan"), "value of a leaf is not a finite number"),
        (True, float("inf"), "value of a leaf is not a finite number"),
        (True, 1e300, "value of a leaf is not a finite number"),
    ],
)
def test_a_threshold_that_is_not_a_number_is_refused(leaf, value, says):
    document = json.loads(bytes(places(rounds=1).save_raw("json")))
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    node = next(each for each, child in enumerate(tree["left_children"]) if (child == -1) is leaf)
    tree["split_conditions"][node] = value
    with pytest.raises(ModelError, match=says):
        describe(json.dumps(document).encode())
