"""Bytes on their way to XGBoost: whatever they are, they are described or refused, and never end the process."""

import contextlib
import json
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridscore.errors import ModelError
from gridscore.models import document
from gridscore.models.description import describe
from gridscore.models.document import read_document

NAMES = ["a", "b", "c"]


def train(rounds=5, names=NAMES, types=None, **parameters):
    generator = np.random.default_rng(7)
    rows = generator.random((200, 3)).astype(np.float32)
    rows[:, 2] = generator.integers(0, 6, 200)
    labels = generator.integers(0, 3, 200)
    data = xgb.DMatrix(rows, labels, feature_names=names, feature_types=types, enable_categorical=True)
    return xgb.train({"objective": "multi:softprob", "num_class": 3, "nthread": 1, **parameters}, data, rounds)


@pytest.fixture(scope="module")
def booster():
    return train(types=["float", "q", "c"], max_cat_to_onehot=1)


def raw(booster, form):
    return bytes(booster.save_raw(form))


def damaged(booster, change):
    """The JSON form of a model after a change to its document."""
    document = json.loads(raw(booster, "json"))
    change(document["learner"]["gradient_booster"]["model"]["trees"][0], document)
    return json.dumps(document).encode()


def plain(value):
    """A document without numpy."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_a_model_is_described(booster, form):
    description = describe(raw(booster, form))

    assert description.features == ("a", "b", "c")
    assert description.feature_types == ("float", "q", "c")
    assert description.feature_count == 3
    assert description.objective == "multi:softprob"
    assert (description.trees, description.rounds) == (15, 5)
    assert description.xgboost_version == xgb.__version__
    assert set(description.highest_category) == {2}
    assert description.highest_category[2] <= 5


def test_both_forms_hold_the_same_document(booster):
    ubj, text = read_document(raw(booster, "ubj"), "x"), read_document(raw(booster, "json"), "x")

    def structure(tree):
        return {key: tree[key] for key in ("left_children", "right_children", "split_indices", "categories")}

    trees = [
        [structure(plain(tree)) for tree in document["learner"]["gradient_booster"]["model"]["trees"]]
        for document in (ubj, text)
    ]
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    "parameters",
    [
        {"booster": "dart", "rate_drop": 0.5, "verbosity": 0},
        {"tree_method": "exact", "gamma": 0.5},
        {"tree_method": "approx"},
        {"grow_policy": "lossguide", "max_leaves": 20},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"max_depth": 1},
    ],
)
def test_every_way_to_grow_trees_passes(parameters):
    for form in ("ubj", "json"):
        assert describe(raw(train(**parameters), form)).rounds == 5


def test_categories_of_a_data_frame_are_found():
    frame = pd.DataFrame({"x": range(60), "kind": pd.Categorical(["blue", "red", "green"] * 20)})
    model = xgb.train({"nthread": 1}, xgb.DMatrix(frame, np.arange(60) % 3, enable_categorical=True), 3)

    for form in ("ubj", "json"):
        assert describe(raw(model, form)).categories == {"kind": ("blue", "green", "red")}


def test_categories_that_xgboost_has_recorded_wrongly_are_not_taken():
    frame = pd.DataFrame({"x": range(60), "kind": pd.Categorical(["blå", "rot", "vert"] * 20)})
    model = xgb.train({"nthread": 1}, xgb.DMatrix(frame, np.arange(60) % 3, enable_categorical=True), 3)

    # Before 3.4, XGBoost cuts texts of other than ASCII letters in the middle.
    whole = tuple(map(int, xgb.__version__.split(".")[:2])) >= (3, 4)
    assert describe(raw(model, "ubj")).categories == ({"kind": ("blå", "rot", "vert")} if whole else {})


def test_numbers_as_categories_of_a_data_frame_are_refused_where_codes_would_be_mistaken():
    def model(values):
        frame = pd.DataFrame({"x": range(60), "month": pd.Categorical(values * 20)})
        return raw(xgb.train({"nthread": 1}, xgb.DMatrix(frame, np.arange(60) % 3, enable_categorical=True), 3), "ubj")

    assert describe(model([0, 1, 2])).categories == {}
    with pytest.raises(ModelError, match=r"`month` was trained as a category of numbers that are not 0, 1, 2"):
        describe(model([10, 20, 30]))


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_a_file_of_short_texts_is_refused_before_it_fills_the_memory(form, monkeypatch):
    if form == "json":
        payload = b'{"a": [' + b'"ab",' * 4_000_000 + b'""]}'
    else:
        monkeypatch.setattr(document, "_MOST_VALUES", 1_000)
        payload = b"{L\0\0\0\0\0\0\0\1a[" + b"SL\0\0\0\0\0\0\0\2ab" * 1_000 + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="more than 4,000,000 values"):
            describe(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_json_that_a_worker_may_have_no_memory_for_is_to_be_saved_as_ubj():
    with pytest.raises(ModelError, match="64 MiB at most") as refused:
        describe(b'{"learner":' + b" " * document.MAX_JSON + b"{}}")
    assert "model.ubj" in refused.value.hint


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "is empty"),
        (b"{}", "no `learner`"),
        (b'{"learner": {}}', "not a complete XGBoost model: no 'gradient_booster'"),
        (b'{"learner": 1}', "no `learner`"),
        (b'{"a": 1, "a": 2}', "a key is given twice"),
        (b'{"a": ' + b"[" * 100_000, "too many values for its size"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deep"),
        (b'{"a": [' + b"[]," * 2_000 + b"[]]}", "too many values for its size"),
        (b"{L\0\0\0\0\0\0\0\1a[" + b"[]" * 2_000 + b"]}", "too many values for its size"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "damaged"),
        (b'{"a": "\xff"}', "damaged"),
        (b"{L", "ends in the middle"),
        (b"{L" + b"\x7f" * 8, "ends in the middle"),
        (b"{L" + b"\xff" * 8, "ends in the middle"),
        (b"{L\0\0\0\0\0\0\0\1a[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff", "ends in the middle"),
        (b"{L\0\0\0\0\0\0\0\1a[#L\x7f\xff\xff\xff\xff\xff\xff\xff", "an array of"),
        (b"{L\0\0\0\0\0\0\0\1a" + b"[" * 10_000, "nested too deep"),
        (b"{L\0\0\0\0\0\0\0\1aH", "an unknown type"),
        (b"{}trailing", "bytes follow its end"),
        (b"binf" + b"\0" * 100, "old binary format"),
        (b"PK\x03\x04abc", "a ZIP archive"),
        (b"\x1f\x8babc", "compressed"),
        (b"tree\nversion=v4", "a LightGBM model"),
        (b"hello", "not XGBoost JSON or UBJ"),
        (b"[1, 2]", "not XGBoost JSON or UBJ"),
    ],
)
def test_what_is_not_a_model_is_refused(payload, says):
    with pytest.raises(ModelError, match=says):
        describe(payload)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_told_what_to_do(booster, protocol):
    with pytest.raises(ModelError, match="a Python pickle") as caught:
        describe(pickle.dumps(booster, protocol), "model.pkl")

    assert caught.value.message.startswith("model.pkl is")
    assert "booster.save_model('model.ubj')" in caught.value.hint


@pytest.mark.parametrize(
    ("weights", "rounds", "parameters", "says"),
    [
        ([1.0] * 11, 5, {}, "not one weight for each feature"),
        ([1.0] * 11 + [float("inf")], 5, {}, "not a finite number"),
        ([1.0] * 11 + ["1"], 5, {}, "not a list of numbers"),
        ([1.0] * 12, -1, {}, "number of rounds is out of range"),
        ([1.0] * 12, 5, {"num_class": "1000000"}, "its num_class is"),
        ([1.0] * 12, 5, {"num_feature": "100000"}, "not one weight for each"),
    ],
)
def test_a_linear_model_is_described_and_a_damaged_one_is_refused(weights, rounds, parameters, says):
    model = train(booster="gblinear", verbosity=0)  # XGBoost will drop it one day, and says so
    found = describe(raw(model, "ubj"))
    assert (found.booster, found.trees, found.rounds, found.outputs) == ("gblinear", 0, 5, 3)
    document = json.loads(raw(model, "json"))
    document["learner"]["gradient_booster"]["model"] = {"weights": weights, "boosted_rounds": rounds}
    document["learner"]["learner_model_param"] |= parameters
    with pytest.raises(ModelError, match=says):
        describe(json.dumps(document).encode())


@pytest.mark.parametrize("version", [np.array([3, 4, 1]), [True, 4, 1], [3.0, 4, 1]])
def test_a_version_that_xgboost_would_refuse_with_the_whole_document_is_refused_before(booster, version):
    from models_fuzz import Ubj

    document = read_document(raw(booster, "ubj"), "it")
    assert describe(Ubj().write(document)).trees == 15
    document |= {"version": version, "extra": np.zeros(3)}  # a double cannot be in such a message: XGBoost would end
    with pytest.raises(ModelError, match=r"its version is not|version is not a list"):
        describe(Ubj().write(document))


def test_vector_leaves_are_refused():
    rows = np.random.default_rng(1).random((50, 2))
    data = xgb.DMatrix(rows, rows, feature_names=["a", "b"])
    model = xgb.train({"multi_strategy": "multi_output_tree", "tree_method": "hist", "nthread": 1}, data, 2)

    with pytest.raises(ModelError, match="vector leaves"):
        describe(raw(model, "ubj"))


def test_a_model_without_trees_is_refused():
    with pytest.raises(ModelError, match="has no trees"):
        describe(raw(train(rounds=0), "ubj"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, _: t["left_children"].__setitem__(0, 9999), "a child is not a node below"),
        (lambda t, _: t["left_children"].__setitem__(0, 0), "a child is not a node below"),
        (lambda t, _: t["right_children"].__setitem__(0, -7), "a child is not a node below"),
        (lambda t, _: t["left_children"].__setitem__(0, 1.5), "not a list of integers"),
        (lambda t, _: t["left_children"].append(-1), "two children and a feature a node"),
        (lambda t, _: t["split_indices"].__setitem__(0, 77), "a feature that does not exist"),
        (lambda t, _: t["tree_param"].__setitem__("num_nodes", "0"), "its num_nodes is 0, and can be 1 to"),
        (lambda t, _: t["tree_param"].__setitem__("num_nodes", "x"), "its num_nodes is not a whole"),
        (lambda t, _: t["tree_param"].__setitem__("num_feature", "4"), "not the model's"),
        (lambda t, _: t["split_conditions"].pop(), "split_conditions has not"),
        (lambda t, _: t.pop("parents"), "no 'parents'"),
        (lambda t, _: t.__setitem__("id", 2), "its number is not its place"),
        (lambda t, _: t["tree_param"].__setitem__("size_leaf_vector", "-1"), "its size_leaf_vector is -1"),
        (lambda _, d: d["learner"]["learner_model_param"].__setitem__("num_class", "2147483647"), "its num_class is"),
        (
            lambda _, d: d["learner"]["learner_model_param"].__setitem__("num_feature", "2147483647"),
            "its num_feature is 2147483647",
        ),
        (lambda _, d: d["learner"]["feature_types"].__setitem__(0, "x"), "a feature type that"),
        (lambda _, d: d.__setitem__("version", [1, 5, 9]), "XGBoost 1.5.9, which is too old"),
        (lambda _, d: d.__setitem__("version", "3.2.0"), "version is not a list"),
        (lambda t, _: t["parents"].__setitem__(1, 10**6), "a parent is not a node"),
        (lambda t, _: t["parents"].__setitem__(2, 1), "a parent is not the one"),
        (lambda t, _: t["right_children"].__setitem__(0, t["left_children"][0]), "children of a node are one"),
        (lambda t, _: t.__setitem__("categories_nodes", []), "categorical splits are incomplete"),
        (lambda t, _: t["categories_sizes"].__setitem__(0, 10**6), "outside of its categories"),
        (lambda t, _: t["categories_segments"].__setitem__(0, 2**62), "outside of its categories"),
        (lambda t, _: t["categories"].__setitem__(0, 2**31 - 1), "category code is out of range"),
        (lambda _, d: d["learner"]["gradient_booster"]["model"]["tree_info"].__setitem__(0, 3), "an output that"),
        (lambda _, d: d["learner"]["gradient_booster"]["model"]["trees"].pop(), "number of trees is wrong"),
        (lambda _, d: d["learner"]["gradient_booster"]["model"]["iteration_indptr"].pop(), "does not divide"),
        (lambda _, d: d["learner"]["feature_names"].pop(), "2 feature names for 3 columns"),
        (lambda _, d: d["learner"]["feature_names"].__setitem__(0, 1), "not a list of texts"),
        (lambda _, d: d["learner"]["gradient_booster"].__setitem__("name", "other"), "unknown booster"),
        *(
            (lambda _, d, name=name, value=value: d["learner"]["learner_model_param"].__setitem__(name, value), says)
            for name, value, says in (
                ("num_target", "-4", "its num_target is -4"),
                ("num_target", "3", "3 classes and 3 targets"),
                ("num_class", "0", "3 numbers for 1 outputs"),
                ("num_class", " 3", "num_class is not a whole number"),
                ("num_class", 3, "num_class is not a whole number"),
                ("base_score", "nan", "base_score is not a number"),
                ("base_score", "1e300", "base_score is not a float32"),
                ("base_score", "[1,2]", "2 numbers for 3 outputs"),
                ("boost_from_average", "7", "boost_from_average is 7"),
            )
        ),
        (
            lambda _, d: d["learner"]["objective"]["softmax_multiclass_param"].__setitem__("num_class", "99999999"),
            "a different number of classes",
        ),
        (
            lambda _, d: d["learner"]["gradient_booster"]["model"]["gbtree_model_param"].__setitem__(
                "num_parallel_tree", "0"
            ),
            "its num_parallel_tree is 0",
        ),
        (lambda t, _: t["tree_param"].__setitem__("num_deleted", "-1"), "its num_deleted is -1"),
        (lambda t, _: t["split_type"].__setitem__(0, 2), "split_type is neither 0 nor 1"),
        (lambda t, _: t["default_left"].__setitem__(0, 2), "default_left is neither 0 nor 1"),
        (lambda t, _: t["split_conditions"].__setitem__(0, "x"), "not a list of numbers"),
    ],
)
def test_a_tree_that_prediction_could_not_follow_is_refused(booster, change, says):
    with pytest.raises(ModelError, match=says):
        describe(damaged(booster, change))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_or_altered_file_is_described_or_refused(booster, data):
    payload = bytearray(raw(booster, data.draw(st.sampled_from(["ubj", "json"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = bytes(payload[: data.draw(st.integers(0, len(payload)))])

    with contextlib.suppress(ModelError):
        describe(payload)


def test_the_sets_of_categories_may_not_take_memory_out_of_proportion(monkeypatch, booster):
    """A code of four bytes can ask for a set of two mebibytes, in each split."""
    monkeypatch.setattr("gridscore.models.description._SPARE_SETS", 1 << 20)

    def huge(tree, _):
        tree["categories"] = [(1 << 24) - 1 for _ in tree["categories"]]

    with pytest.raises(ModelError, match="far more memory than its file"):
        describe(damaged(booster, huge))


def test_a_document_takes_memory_in_proportion_to_its_file():
    worst = [
        b'{"a":[' + b"1.5," * 200_000 + b"2]}",
        b'{"a":[' + b'"xy",' * 160_000 + b'""]}',
        b'{"a":[' + b'{"b":[1]} ,'.ljust(16) * 50_000 + b"{}]}",
        b"{L" + (1).to_bytes(8, "big") + b"a[" + b"Z" * 90_000 + b"]}",
        # A text among numbers, in an array of numpy, would make each number as large as itself.
        b'{"a":[1,"' + b"x" * 300_000 + b'"' + b",1" * 700 + b"]}",
    ]
    for payload in worst:
        tracemalloc.start()
        with contextlib.suppress(ModelError):
            read_document(payload, "x")
        assert tracemalloc.get_traced_memory()[1] < 20 * len(payload) + 2_000_000
        tracemalloc.stop()
