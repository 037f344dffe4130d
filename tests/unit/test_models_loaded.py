"""A loaded model gives the bits of `Booster.predict`; one that is not what it says is not loaded."""

import json

import msgspec
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.errors import ModelError, UsageError
from gridscore.models import LoadedModel
from gridscore.models.candidate import Candidate

NAMES = ["a", "b", "kind"]
TYPES = ["float", "int", "c"]


def rows(count, seed=3):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, 3)).astype(np.float32)
    values[:, 2] = generator.integers(0, 5, count)
    values[generator.random(values.shape) < 0.1] = np.nan
    return values


def train(rounds=20, early_stopping=None, labels=2, **parameters):
    generator = np.random.default_rng(5)
    data, check = (
        xgb.DMatrix(
            rows(600, seed),
            generator.integers(0, labels, 600),
            feature_names=NAMES,
            feature_types=TYPES,
            enable_categorical=True,
        )
        for seed in (1, 2)
    )
    evaluation = {"evals": [(check, "check")], "early_stopping_rounds": early_stopping} if early_stopping else {}
    return xgb.train(
        {"max_cat_to_onehot": 1, "nthread": 1, **parameters}, data, rounds, verbose_eval=False, **evaluation
    )


def candidate(model, **options):
    options = {"metrics": None, "categories": None, **options}
    return Candidate.check(model, "m", **options)


def load(model):
    checked = candidate(model)
    return LoadedModel.load(checked.version, checked.payload)


@pytest.mark.parametrize(
    ("parameters", "shape"),
    [
        ({"objective": "binary:logistic"}, ()),
        ({"objective": "reg:squarederror"}, ()),
        ({"objective": "count:poisson", "grow_policy": "lossguide"}, ()),
        ({"objective": "multi:softprob", "num_class": 3, "labels": 3}, (3,)),
        ({"objective": "multi:softmax", "num_class": 3, "labels": 3}, ()),
        ({"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3, "verbosity": 0}, ()),
        ({"objective": "binary:logistic", "num_parallel_tree": 4, "subsample": 0.5}, ()),
    ],
)
def test_scores_are_the_bits_of_booster_predict(parameters, shape):
    booster = train(**parameters)
    model = load(booster)

    for count in (1, 7, 500):
        values = rows(count, seed=count)
        data = xgb.DMatrix(values, feature_names=NAMES, feature_types=TYPES, enable_categorical=True)
        scores = model.predict(values)
        assert scores.dtype == np.float32
        assert scores.shape == (count, *shape)
        assert scores.tobytes() == booster.predict(data).tobytes()
        if "num_class" not in parameters:
            margins = rows(count, seed=9)[:, 0].copy()
            data = xgb.DMatrix(  # anew: a Booster remembers what it predicted for one
                values, base_margin=margins, feature_names=NAMES, feature_types=TYPES, enable_categorical=True
            )
            assert model.predict(values, margins).tobytes() == booster.predict(data).tobytes()
    # What is asked for one by one, to explain a score.
    data = xgb.DMatrix(values, feature_names=NAMES, feature_types=TYPES, enable_categorical=True)
    added = model.contributions(values)
    assert added.shape == (count, parameters.get("num_class", 1), len(NAMES) + 1)
    whole = booster.predict(data, output_margin=True, strict_shape=True)
    np.testing.assert_allclose(added.sum(axis=2), whole, atol=1e-4)


def test_an_early_stopped_model_scores_with_all_its_rounds_as_booster_predict_does():
    booster = train(rounds=50, early_stopping=3)
    checked = candidate(booster)
    values = rows(100)
    data = xgb.DMatrix(values, feature_names=NAMES, feature_types=TYPES, enable_categorical=True)

    scores = LoadedModel.load(checked.version, checked.payload).predict(values)

    assert checked.version.best_iteration == booster.best_iteration
    assert checked.version.rounds == booster.num_boosted_rounds() > booster.best_iteration + 1
    assert scores.tobytes() == booster.predict(data).tobytes()
    best = booster[: booster.best_iteration + 1]
    assert load(best).predict(values).tobytes() == best.predict(data).tobytes() != scores.tobytes()


def test_an_estimator_is_taken_like_its_booster():
    frame = pd.DataFrame(rows(100)[:, :2], columns=["a", "b"])
    estimator = xgb.XGBClassifier(n_estimators=3, n_jobs=1).fit(frame, np.arange(100) % 2)

    model = load(estimator)

    assert model.version.features == ("a", "b")
    expected = estimator.predict_proba(frame)[:, 1]
    assert model.predict(frame.to_numpy(np.float32)).tobytes() == np.ascontiguousarray(expected).tobytes()


def test_other_bytes_than_were_pushed_are_refused():
    checked = candidate(train(rounds=2))

    for payload in (checked.payload[:-1], checked.payload[:-1] + b"]", b""):
        with pytest.raises(ModelError, match="SHA-256 differs"):
            LoadedModel.load(checked.version, payload)


def test_metadata_of_another_model_is_refused():
    checked = candidate(train(rounds=2))
    version = msgspec.structs.replace(checked.version, features=("x", "y", "z"), categories={})

    with pytest.raises(ModelError, match="other features than the grid says"):
        LoadedModel.load(version, checked.payload)


def test_a_file_is_read_and_named_in_errors(tmp_path):
    train(rounds=2).save_model(tmp_path / "good.json")
    (tmp_path / "bad.ubj").write_bytes(b"{L")

    assert candidate(tmp_path / "good.json").version.trees == 2
    with pytest.raises(ModelError, match=r"bad\.ubj is damaged"):
        candidate(tmp_path / "bad.ubj")
    with pytest.raises(ModelError, match="There is no file"):
        candidate(str(tmp_path / "none.ubj"))
    with pytest.raises(ModelError, match="is a folder"):
        candidate(tmp_path)


def test_a_file_above_the_limit_is_refused_unread(tmp_path):
    with (tmp_path / "huge.ubj").open("wb") as file:
        file.truncate((1 << 30) + 1)

    with pytest.raises(ModelError, match="the limit is 1,073,741,824"):
        candidate(tmp_path / "huge.ubj")


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="A dict is not a model"):
        candidate({})
    with pytest.raises(ModelError, match="has not been fitted"):
        candidate(xgb.XGBClassifier())


def test_a_model_without_feature_names_is_refused_with_the_remedy():
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(rows(50), np.arange(50) % 2), 2)

    with pytest.raises(ModelError, match="no feature names") as caught:
        candidate(booster)
    assert "feature_names=[" in caught.value.hint
    booster.feature_names = NAMES
    assert candidate(booster).version.features == tuple(NAMES)


def attach(booster, **content):
    booster.set_attr(gridscore=json.dumps(content))
    return booster


def test_the_attached_categories_travel_with_the_model():
    categories = {"kind": ["v", "w", "x", "y", "z"]}
    booster = attach(train(rounds=2), features=NAMES, categories=categories)

    assert candidate(booster).version.categories == {"kind": ("v", "w", "x", "y", "z")}
    given = {"kind": ["z", "y", "x", "w", "v"]}
    assert candidate(booster, categories=given).version.categories == {"kind": ("z", "y", "x", "w", "v")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"features": ["b", "a", "kind"]}, "attached to other features"),
        ({"features": [], "categories": {}}, "is not valid"),
        ({"features": NAMES, "surprise": 1}, "is not valid"),
        ({"features": NAMES, "categories": {"kind": "vwxyz"}}, "is not valid"),
        ({"features": NAMES, "categories": {"kind": [1, 2, 3, 4, 5]}}, "is not valid"),
        ({"features": NAMES, "categories": {"kinds": ["v"]}}, "Did you mean `kind`"),
        ({"features": NAMES, "categories": {"kind": ["v", "v", "x", "y", "z"]}}, "hold a text twice"),
        ({"features": NAMES, "categories": {"kind": ["v", "w"]}}, r"splits on category \d of `kind`, but only 2"),
    ],
)
def test_an_attribute_that_is_wrong_is_refused(content, says):
    with pytest.raises(ModelError, match=says):
        candidate(attach(train(), **content))


def test_metrics_must_be_numbers():
    booster = train(rounds=1)

    assert candidate(booster, metrics={"auc": np.float32(0.5)}).version.metrics == {"auc": 0.5}
    for value in ("high", float("nan"), None):
        with pytest.raises(UsageError, match="not a number"):
            candidate(booster, metrics={"auc": value})


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", " a", "a`", "x" * 65])
def test_a_feature_that_no_job_file_can_name_is_refused(name):
    booster = train(2)
    raw = bytes(booster.save_raw("json")).replace(
        b'"feature_names":["a"', b'"feature_names":[' + json.dumps(name).encode()
    )
    with pytest.raises(ModelError, match="that no job file can name"):
        candidate(raw)


def test_categories_that_the_registry_could_not_be_asked_for_are_refused():
    with pytest.raises(ModelError, match="the limit is"):
        candidate(train(2), categories={"kind": [f"{number:0100}" for number in range(90_000)]})


def test_a_model_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="There is no file") as caught:
        candidate(tmp_path / "none.ubj")
    assert "save_model" in caught.value.hint
