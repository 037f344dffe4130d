"""The compiled forest gives XGBoost's own bits, and leaves alone what it was not made for."""

import json
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore import compiled
from gridscore.models import forest as forests
from gridscore.models.candidate import Candidate
from gridscore.models.document import read_document
from gridscore.models.forest import Forest
from gridscore.models.loaded import LoadedModel

FEATURES = 7

FAST = compiled.compiled("gridscore.models._forest")
BY_RANKS = [each for each in forests.BY_RANKS if hasattr(FAST, each.name)]
HAS_RANKS = bool(BY_RANKS)

pytestmark = pytest.mark.skipif(FAST is None, reason="the forest is not compiled here")
# where it must be, `test_compiled` fails


@pytest.fixture(
    autouse=True, scope="module", params=BY_RANKS or [None], ids=[each.name for each in BY_RANKS] or ["none"]
)
def way(request):
    """Each by which the processor can predict many rows, and it always pays."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(forests, "_by_ranks", request.param._replace(steps_of_top=-1_000))
        yield request.param


def rows(count, seed=3, missing=0.1):
    generator = np.random.default_rng(seed)
    values = (generator.normal(size=(count, FEATURES)) * 10.0 ** generator.integers(-3, 4, FEATURES)).astype(np.float32)
    values[generator.random(values.shape) < missing] = np.nan
    return values


def train(rounds=30, missing=0.1, **parameters):
    generator = np.random.default_rng(5)
    values = rows(2_000, 1, missing)
    labels = (np.nansum(values, axis=1) > generator.normal(size=2_000)).astype(float)
    options = {"objective": "binary:logistic", "nthread": 1, **parameters}
    return xgb.train(options, xgb.DMatrix(values, label=labels), rounds)


def forest_of(booster, form="ubj"):
    return Forest.of(read_document(bytes(booster.save_raw(form)), "the model"))


def assert_same_bits(booster, values):
    forest = forest_of(booster)
    assert forest is not None
    assert len(forest.ways) == 1 + HAS_RANKS
    expected = booster.inplace_predict(values).tobytes()
    margins = np.random.default_rng(len(values)).normal(size=len(values)).astype(np.float32)
    with_margins = booster.inplace_predict(values, base_margin=margins).tobytes()
    for way in forest.ways:
        assert forest.predict(values, way=way).tobytes() == expected
        assert forest.predict(values, margins, way).tobytes() == with_margins
    assert forest.predict(values).tobytes() == expected


def test_the_vectors_of_the_processor_are_used():
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists():
        pytest.skip("this system does not say what its processor has")
    assert ({"avx512f", "avx512bw", "avx512vbmi"} <= set(cpu.read_text().split())) == hasattr(
        FAST, "predict_by_vectors"
    )


def test_few_rows_are_predicted_in_another_way_than_many(way):
    if way is None:
        pytest.skip("the compiler has no vectors")
    forest, asked = forest_of(train(rounds=1)), []
    forest.ways = tuple(lambda *_, each=each: asked.append(each) for each in ("few", "many"))
    for count in (1, way.many - 1, way.many, 1_000):
        forest.predict(rows(count))
    assert asked == ["few", "few", "many", "many"]


@pytest.mark.parametrize(
    ("parameters", "pays"),
    [
        ({"rounds": 100, "max_depth": 6}, True),
        ({"rounds": 1, "max_depth": 6}, False),  # a value's rank serves all trees
        ({"rounds": 100, "max_depth": 1}, False),
        ({"rounds": 100, "gamma": 1e9}, False),
    ],
    ids=["many trees", "one tree", "stumps", "leaves"],
)
def test_ranks_are_used_where_they_pay(monkeypatch, way, parameters, pays):
    monkeypatch.setattr(forests, "_by_ranks", way)
    forest = forest_of(train(**parameters))
    assert len(forest.ways) == 1 + (pays and HAS_RANKS)
    more = sum(memoryview(each).nbytes for way in forest.ways[1:] for each in way.args[1:3])
    assert more <= 400 * len(forest.roots) + 1_092 * 256


SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38], np.float32)


def grow(generator, features, thresholds, depth):
    """A tree of any shape, as XGBoost writes it."""
    lefts, rights, parents, splits, conditions, levels = [-1], [-1], [2**31 - 1], [0], [0.0], [0]
    for node in range(1 << depth + 1):
        if node >= len(lefts):
            break
        if levels[node] < depth and generator.random() < 0.9:
            lefts[node], rights[node] = len(lefts), len(lefts) + 1
            for column, value in ((lefts, -1), (rights, -1), (parents, node), (splits, 0), (conditions, 0.0)):
                column += [value, value]
            levels += [levels[node] + 1] * 2
            splits[node] = int(generator.integers(features))
            conditions[node] = float(generator.choice(thresholds[splits[node]]))
        else:
            conditions[node] = float(np.float32(generator.normal()))
    count = len(lefts)
    return {
        "base_weights": [0.0] * count,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": generator.integers(0, 2, count).tolist(),
        "left_children": lefts,
        "loss_changes": [0.0] * count,
        "parents": parents,
        "right_children": rights,
        "split_conditions": conditions,
        "split_indices": splits,
        "split_type": [0] * count,
        "sum_hessian": [1.0] * count,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(count),
            "size_leaf_vector": "1",
        },
    }


def plant(generator, features, cuts, trees, depth):
    """A booster of trees at random, and values at its thresholds and beside them."""
    pool = np.concatenate([SPECIAL, generator.normal(size=cuts).astype(np.float32)])
    thresholds = [generator.choice(pool, cuts) for _ in range(features)]
    empty = xgb.DMatrix(np.zeros((1, features), np.float32), label=[0.0])
    document = json.loads(bytes(xgb.train({"base_score": 0.25}, empty, 1).save_raw("json")))
    model = document["learner"]["gradient_booster"]["model"]
    model["trees"] = [{**grow(generator, features, thresholds, depth), "id": each} for each in range(trees)]
    model["tree_info"], model["iteration_indptr"] = [0] * trees, list(range(trees + 1))
    model["gbtree_model_param"]["num_trees"] = str(trees)
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(json.dumps(document).encode()))
    used = np.concatenate(thresholds)
    beside = [np.nextafter(used, np.float32(side)) for side in (np.inf, -np.inf)]
    return booster, np.concatenate([used, *beside, SPECIAL, [np.nan]]).astype(np.float32)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    features=st.sampled_from([1, 2, 7, 64, 65, 130, 300]),
    cuts=st.sampled_from([1, 15, 16, 17, 254, 255, 700]),
    trees=st.integers(1, 12),
    depth=st.integers(0, 9),
    count=st.integers(1, 140),
)
def test_trees_of_any_shape_give_the_bits_of_the_booster(seed, features, cuts, trees, depth, count):
    generator = np.random.default_rng(seed)
    booster, pool = plant(generator, features, cuts, trees, depth)
    values = generator.choice(pool, (count, features))
    expected = booster.predict(xgb.DMatrix(values, nthread=1)).tobytes()
    infinite = np.where(generator.random(values.shape) < 0.1, np.float32(np.inf), values)
    infinite *= generator.choice(np.array([1, -1], np.float32), values.shape)
    forest = forest_of(booster)
    for way in forest.ways:
        assert forest.predict(values, way=way).tobytes() == expected
        assert forest.predict(infinite, way=way).tobytes() == booster.inplace_predict(infinite).tobytes()


def test_more_columns_than_ranks_have_bytes_are_walked():
    generator = np.random.default_rng(1)
    for features, ways in ((256, 1 + HAS_RANKS), (257, 1)):
        booster, pool = plant(generator, features, 3, 600, 3)
        forest, values = forest_of(booster), generator.choice(pool, (80, features))
        assert len(np.unique(forest.features)) == features
        assert len(forest.ways) == ways
        assert forest.predict(values).tobytes() == booster.predict(xgb.DMatrix(values)).tobytes()


OBJECTIVES = [
    "binary:logistic",
    "reg:logistic",
    "reg:squarederror",
    "reg:absoluteerror",
    "reg:pseudohubererror",
    "reg:squaredlogerror",
    "binary:logitraw",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_every_objective_gives_the_same_bits(objective, missing):
    booster = train(objective=objective, missing=missing)
    for count in (1, 3, 4, 15, 16, 17, 63, 64, 65, 200, 1_000):
        assert_same_bits(booster, rows(count, seed=count, missing=missing))


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_depth": 1},
        {"max_depth": 12, "min_child_weight": 0},
        {"grow_policy": "lossguide", "max_depth": 0, "max_leaves": 12},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"base_score": 0.03},
        {"scale_pos_weight": 20},
        {"gamma": 1e9},  # trees that are a single leaf
        {"tree_method": "exact"},
    ],
)
def test_every_form_of_trees_gives_the_same_bits(parameters):
    assert_same_bits(train(**parameters), rows(500))


def test_infinite_and_tiny_values_and_those_of_the_thresholds_themselves_go_the_same_way():
    booster = train()
    thresholds = booster.trees_to_dataframe().query("Feature != 'Leaf'")["Split"].to_numpy(np.float32)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38, np.nan], np.float32)
    pool = np.concatenate([special, thresholds, np.nextafter(thresholds, np.float32(np.inf))])
    assert_same_bits(booster, np.random.default_rng(2).choice(pool, (3_000, FEATURES)))


def test_the_logistic_function_gives_the_same_bits_for_margins_of_any_size():
    document = json.loads(bytes(train(rounds=40).save_raw("json")))
    generator = np.random.default_rng(8)
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        scale = 10.0 ** generator.integers(-6, 2)
        tree["split_conditions"] = [
            float(np.float32(generator.normal() * scale)) if left == -1 else condition
            for condition, left in zip(tree["split_conditions"], tree["left_children"], strict=True)
        ]
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(json.dumps(document).encode()))
    values = rows(200_000)
    assert len(np.unique(booster.inplace_predict(values))) > 1_000
    assert_same_bits(booster, values)


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:squarederror"])
def test_every_base_score_gives_the_same_bits(objective):
    """It is the mean of the labels where none is given, so any number; NumPy's logarithm differs for one in six."""
    document = json.loads(bytes(train(rounds=1, objective=objective).save_raw("json")))
    values = rows(1)
    for score in np.random.default_rng(9).uniform(0.001, 0.999, 300):
        document["learner"]["learner_model_param"]["base_score"] = f"[{score:.9g}]"
        assert_same_bits(xgb.Booster({"nthread": 1}, model_file=bytearray(json.dumps(document).encode())), values)


def test_a_model_saved_as_json_is_the_same_forest():
    booster = train()
    values = rows(100)
    assert forest_of(booster, "json").predict(values).tobytes() == forest_of(booster, "ubj").predict(values).tobytes()


def categorical():
    generator = np.random.default_rng(5)
    values = rows(500, missing=0)
    values[:, 0] = generator.integers(0, 5, 500)
    types = ["c", *["float"] * (FEATURES - 1)]
    data = xgb.DMatrix(values, label=values[:, 0] % 2, feature_types=types, enable_categorical=True)
    return xgb.train({"max_cat_to_onehot": 1}, data, 3)


def several_outputs():
    labels = np.random.default_rng(5).integers(0, 3, 500)
    return xgb.train({"objective": "multi:softprob", "num_class": 3}, xgb.DMatrix(rows(500), label=labels), 3)


def uneven():
    """A tree that cuts one row off at each level."""
    values = np.repeat(np.arange(30, dtype=np.float32)[:, None], FEATURES, axis=1)
    parameters = {"tree_method": "exact", "max_depth": 40, "min_child_weight": 0, "reg_lambda": 0, "base_score": 0}
    return xgb.train(parameters, xgb.DMatrix(values, label=3.0 ** values[:, 0]), 1)


@pytest.mark.parametrize(
    "make",
    [
        categorical,
        several_outputs,
        lambda: train(booster="dart", rate_drop=0.5, verbosity=0),
        lambda: train(objective="count:poisson"),
        uneven,
    ],
    ids=["categories", "several outputs", "dart", "another transformation", "deep trees"],
)
def test_other_models_are_left_to_xgboost(make):
    assert forest_of(make()) is None


def test_what_a_leaf_says_of_a_feature_is_not_looked_at():
    booster = train()
    document = json.loads(bytes(booster.save_raw("json")))
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        leaves = [node for node, child in enumerate(tree["left_children"]) if child == -1]
        for number, node in enumerate(leaves):
            tree["split_indices"][node] = (-1, 2**31, 2**40)[number % 3]
    values = rows(100)
    assert Forest.of(document).predict(values).tobytes() == booster.inplace_predict(values).tobytes()


@pytest.mark.parametrize("text", ["0.5f", "", "[]", "[" * 100_000, '{"a": 1}'])
def test_a_base_score_that_only_xgboost_may_read_is_left_to_it(text):
    document = json.loads(bytes(train().save_raw("json")))
    document["learner"]["learner_model_param"]["base_score"] = text
    assert Forest.of(document) is None


def test_a_matrix_with_other_columns_is_refused():
    with pytest.raises(ValueError, match="3 columns, but the model has 7 features"):
        forest_of(train()).predict(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="not a margin a row"):
        forest_of(train()).predict(np.zeros((2, FEATURES), np.float32), np.zeros(1, np.float32))


def test_a_loaded_model_uses_it():
    booster = train()
    booster.feature_names = [f"f{each}" for each in range(FEATURES)]
    checked = Candidate.check(booster, "m", metrics=None, categories=None)
    model = LoadedModel.load(checked.version, checked.payload)
    assert model.is_compiled
    values = rows(333)
    assert model.predict(values).tobytes() == booster.inplace_predict(values).tobytes()


def test_other_bits_and_xgboost_is_taken_instead(monkeypatch, caplog):
    booster = train()
    booster.feature_names = [f"f{each}" for each in range(FEATURES)]
    checked = Candidate.check(booster, "m", metrics=None, categories=None)
    right = Forest.predict
    monkeypatch.setattr(
        Forest, "predict", lambda forest, matrix, *_, **__: np.nextafter(right(forest, matrix), np.float32(2))
    )
    model = LoadedModel.load(checked.version, checked.payload)
    assert not model.is_compiled
    assert "other bits than XGBoost" in caplog.text
    values = rows(50)
    assert model.predict(values).tobytes() == booster.inplace_predict(values).tobytes()
