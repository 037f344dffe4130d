"""What each feature adds, by the compiled loop: as by its definition, as by XGBoost, and together the margin."""

import logging
import math
from itertools import combinations

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore import compiled
from gridscore.models.candidate import Candidate
from gridscore.models.document import read_document
from gridscore.models.forest import Forest
from gridscore.models.loaded import LoadedModel
from gridscore.models.shapley import Shapley

pytestmark = pytest.mark.skipif(
    compiled.compiled("gridscore.models._shapley") is None, reason="SHAP values are not compiled here"
)  # where they must be, `test_compiled` fails


def rows(count, features, seed=3, missing=0.1):
    draw = np.random.default_rng(seed)
    values = (draw.normal(size=(count, features)) * 10).astype(np.float32)
    values[draw.random(values.shape) < missing] = np.nan
    return values


def names(features):
    return [f"f{number}" for number in range(features)]


def train(features=5, rounds=20, **parameters):
    values = rows(1_500, features, 1)
    signs = np.where(np.arange(features) % 2, -1, 1)
    labels = (np.nansum(values * signs, axis=1) + np.nan_to_num(values[:, 0] * values[:, -1]) > 0).astype(float)
    options = {"objective": "binary:logistic", "nthread": 1, "seed": 5, **parameters}
    return xgb.train(options, xgb.DMatrix(values, labels, feature_names=names(features)), rounds)


def document_of(booster):
    return read_document(bytes(booster.save_raw("json")), "the model")


def load(booster):
    checked = Candidate.check(bytes(booster.save_raw()), "m", metrics=None, categories=None)
    return LoadedModel.load(checked.version, checked.payload)


def by_definition(document, row):
    """SHAP values of a row: what a feature adds, in the mean over all orders of features, by covers."""
    added = np.zeros(len(row) + 1)
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        lefts, rights, covers = tree["left_children"], tree["right_children"], tree["sum_hessian"]

        def value(known, node=0, tree=tree, lefts=lefts, rights=rights, covers=covers):
            if lefts[node] == -1:
                return float(np.float32(tree["split_conditions"][node]))
            left, right = lefts[node], rights[node]
            if (feature := tree["split_indices"][node]) in known:
                x = row[feature]
                is_left = tree["default_left"][node] if np.isnan(x) else x < np.float32(tree["split_conditions"][node])
                return value(known, left if is_left else right)
            return (covers[left] * value(known, left) + covers[right] * value(known, right)) / covers[node]

        split_on = {feature for node, feature in enumerate(tree["split_indices"]) if lefts[node] != -1}
        added[-1] += value(frozenset())
        for feature in split_on:
            others = split_on - {feature}
            for size in range(len(others) + 1):
                weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(split_on))
                for some in map(frozenset, combinations(sorted(others), size)):
                    added[feature] += weight * (value(some | {feature}) - value(some))
    return added


@pytest.mark.parametrize(("features", "depth"), [(5, 1), (5, 3), (4, 6), (2, 7), (1, 4)])
def test_it_is_what_the_definition_says(features, depth):
    """Few features and deep trees split on a feature again and again."""
    booster = train(features, rounds=2, max_depth=depth)
    document = document_of(booster)
    values = rows(11, features, missing=0.3)
    found = Shapley.of(Forest.of(document), document).contributions(values, 0.0)
    expected = [by_definition(document, row) for row in values]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 30),
    depth=st.integers(0, 16),
    rounds=st.integers(1, 30),
    count=st.integers(1, 70),
    logistic=st.booleans(),
    lossguide=st.booleans(),
)
def test_it_is_what_xgboost_says_and_adds_up_to_the_margin(features, depth, rounds, count, logistic, lossguide):
    booster = train(
        features,
        rounds,
        max_depth=depth or 16,
        objective="binary:logistic" if logistic else "reg:squarederror",
        grow_policy="lossguide" if lossguide else "depthwise",
        gamma=0 if depth else 1e9,  # trees of one leaf
        min_child_weight=0.1,
    )
    values = rows(count, features, missing=0.2)
    document = document_of(booster)
    forest = Forest.of(document)
    found = Shapley.of(forest, document).contributions(values, forest.base)
    data = xgb.DMatrix(values, feature_names=names(features))
    margins = booster.predict(data, output_margin=True)
    expected = booster.predict(data, pred_contribs=True, strict_shape=True)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    np.testing.assert_allclose(found.sum(axis=(1, 2), dtype=np.float64), margins, atol=1e-5 * scale)


def test_a_loaded_model_takes_it_with_and_without_margins():
    booster = train()
    model, values = load(booster), rows(70, 5)
    margins = np.linspace(-3, 3, 70).astype(np.float32)
    for given_margins in (None, margins):
        data = xgb.DMatrix(values, base_margin=given_margins, feature_names=names(5))
        expected = booster.predict(data, pred_contribs=True, strict_shape=True)
        np.testing.assert_allclose(model.contributions(values, given_margins), expected, atol=1e-4)
    assert model._contributions != model._contributions_by_xgboost
    reference = model.reference()
    reference.contributions(values)
    assert reference._contributions == reference._contributions_by_xgboost  # nothing of ours


def test_what_does_not_agree_with_xgboost_is_not_taken(monkeypatch, caplog):
    model, values = load(train()), rows(20, 5)
    right = Shapley.contributions
    monkeypatch.setattr(Shapley, "contributions", lambda *given: right(*given) + np.float32(0.5))
    with caplog.at_level(logging.WARNING):
        found = model.contributions(values)
    assert "not those of XGBoost" in caplog.text
    assert found.tobytes() == model._contributions_by_xgboost(values, None).tobytes()


def test_contributions_that_are_small_are_compared_as_well(monkeypatch):
    values = rows(500, 5)
    data = xgb.DMatrix(values, np.nan_to_num(values[:, 0]) * 1e-4, feature_names=names(5))
    booster = xgb.train({"objective": "reg:squarederror", "nthread": 1}, data, 20)
    assert (model := load(booster)).contributions(values) is not None
    assert model._contributions != model._contributions_by_xgboost
    model, right = load(booster), Shapley.contributions
    monkeypatch.setattr(Shapley, "contributions", lambda *given: right(*given) * np.float32(1.3))
    model.contributions(values)
    assert model._contributions == model._contributions_by_xgboost


@pytest.mark.parametrize("share", [1e-3, 1e-9, 1e-11])
def test_leaves_that_hardly_any_row_reached_are_exact_where_a_feature_is_split_on_again(share):
    document = document_of(train(features=5, rounds=1, max_depth=1))
    model = document["learner"]["gradient_booster"]["model"]
    # f0 < 0: 0. Else, by that share of the rows, f0 < 0.5: -1. Else by f1 and f2, which change nothing: 3.
    inner = {0: (1, 2, 0, 0.0), 2: (3, 4, 0, 0.5), 4: (5, 6, 1, 0.0), 6: (7, 8, 2, 0.0)}
    values = {1: 0.0, 3: -1.0, 5: 3.0, 7: 3.0, 8: 3.0}
    covers = [1.0, 1.0 - share, share, share / 2, share / 2, share / 4, share / 4, share / 8, share / 8]
    tree = model["trees"][0]
    tree["left_children"] = [inner.get(node, (-1,))[0] for node in range(9)]
    tree["right_children"] = [inner[node][1] if node in inner else -1 for node in range(9)]
    tree["split_indices"] = [inner[node][2] if node in inner else 0 for node in range(9)]
    tree["split_conditions"] = [inner[node][3] if node in inner else values[node] for node in range(9)]
    tree["default_left"], tree["split_type"], tree["sum_hessian"] = [0] * 9, [0] * 9, covers
    found = Shapley.of(Forest.of(document), document).contributions(np.ones((1, 5), np.float32), 0.0)
    np.testing.assert_allclose(found[0, 0], [3 - share, 0, 0, 0, 0, share], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("covers", ["none", "zero", "infinite", "short", "rare", "heavy"])
def test_trees_of_which_covers_are_not_known_are_left_to_xgboost(covers):
    document = document_of(train())
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        if covers == "none":
            del tree["sum_hessian"]
        else:
            known = tree["sum_hessian"]
            tree["sum_hessian"] = {
                "zero": [0.0] * len(known),
                "infinite": [math.inf] * len(known),
                "short": known[:1],
                "rare": [known[0], *(cover * 1e-14 for cover in known[1:])],
                "heavy": [cover * 2.0**node for node, cover in enumerate(known)],
            }[covers]
    assert Shapley.of(Forest.of(document), document) is None


def test_a_model_that_nobody_asks_for_reasons_keeps_nothing_for_them():
    forest = Forest.of(document_of(train()))
    kept = sum(each.nbytes for each in vars(forest).values() if isinstance(each, np.ndarray))
    assert kept == forest.nodes.nbytes + forest.roots.nbytes + forest.depths.nbytes


def test_matrices_that_do_not_fit_are_refused():
    document = document_of(train())
    shapley = Shapley.of(Forest.of(document), document)
    with pytest.raises(ValueError, match="4 columns, but the model has 5 features"):
        shapley.contributions(rows(3, 4), 0.0)
    assert shapley.contributions(rows(0, 5), 0.0).shape == (0, 1, 6)
