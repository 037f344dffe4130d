"""What a result holds for each kind of model that XGBoost trains: the scores of `Booster.predict`, bit for bit."""

import asyncio

import numpy as np
import pytest
import xgboost as xgb

from gridscore.job import parse_job
from gridscore.models.candidate import Candidate
from gridscore.testing import StubCluster

NAMES = ["amount", "age", "kind"]
TYPES = ["float", "float", "c"]
QUANTILES = np.array([0.1, 0.5, 0.9])

KINDS = {
    "binary:logistic": ({}, "score"),
    "binary:logitraw": ({}, "score"),
    "binary:hinge": ({}, "score"),
    "multi:softprob": ({"num_class": 3}, 3),
    "multi:softmax": ({"num_class": 3}, "score"),
    "reg:squarederror": ({}, "score"),
    "reg:absoluteerror": ({}, "score"),
    "reg:pseudohubererror": ({}, "score"),
    "reg:squaredlogerror": ({}, "score"),
    "reg:logistic": ({}, "score"),
    "reg:gamma": ({}, "score"),
    "reg:tweedie": ({}, "score"),
    "count:poisson": ({}, "score"),
    "reg:quantileerror": ({"quantile_alpha": QUANTILES}, 3),
    "rank:ndcg": ({}, "score"),
    "rank:map": ({}, "score"),
    "rank:pairwise": ({}, "score"),
    "survival:cox": ({}, "score"),
    "survival:aft": ({}, "score"),
    "several targets": ({"objective": "reg:squarederror"}, 2),
    "dart": ({"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3}, "score"),
    "dart of classes": ({"objective": "multi:softprob", "num_class": 3, "booster": "dart", "rate_drop": 0.3}, 3),
    "random forest": ({"objective": "binary:logistic", "num_parallel_tree": 4, "subsample": 0.5}, "score"),
    "gblinear": ({"objective": "binary:logistic", "booster": "gblinear"}, "score"),
    "gblinear of classes": ({"objective": "multi:softprob", "num_class": 3, "booster": "gblinear"}, 3),
}
CATEGORICAL = [name for name in KINDS if "gblinear" not in name]

JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float?, age: float?, kind: int?}}
features: {features}
model: {{name: {name}, alias: champion}}
results: results.{name}
"""


def rows(count, seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, 3)).astype(np.float32)
    values[:, 2] = generator.integers(0, 5, count)
    values[generator.random(values.shape) < 0.1] = np.nan
    return values


def columns(name):
    return 3 if name in CATEGORICAL else 2


def matrix(values, name, **more):
    count = columns(name)
    return xgb.DMatrix(
        values[:, :count], feature_names=NAMES[:count], feature_types=TYPES[:count], enable_categorical=True, **more
    )


def train(name):
    parameters, _ = KINDS[name]
    parameters = {"objective": name, "nthread": 1, "verbosity": 0, "max_cat_to_onehot": 1, **parameters}
    objective = parameters["objective"]
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 3 if "num_class" in parameters else 2, 300).astype(np.float32)
    if objective.startswith(("reg:gamma", "survival")):
        labels += 1
    if name == "several targets":
        labels = np.stack([labels, 2 * labels + 1], axis=1)
    values = rows(300, 1)
    data = matrix(values, name, label=labels)
    if objective.startswith("rank:"):
        data.set_group([30] * 10)
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", labels)
        data.set_float_info("label_upper_bound", labels)
    return xgb.train(parameters, data, 5)


@pytest.fixture(scope="module")
def trained():
    return {name: train(name) for name in KINDS}


async def test_a_result_holds_the_scores_of_booster_predict(trained):
    values = rows(20, 2)
    async with StubCluster(partitions=3) as stub:
        client = await stub.client()
        for number, (name, booster) in enumerate(trained.items()):
            job, used = f"k{number}", NAMES[: columns(name)]
            await client.push_model(booster, job, alias="champion")
            await client.submit(parse_job(JOB.format(name=job, features=f"[{', '.join(used)}]"), "test"))
            events = {
                f"e{row}": {
                    field: None if np.isnan(value) else int(value) if field == "kind" else float(value)
                    for field, value in zip(NAMES, line, strict=True)
                }
                for row, line in enumerate(values)
            }
            await client.put_events(f"events.{job}", events)
        async with stub.worker():
            for number, (name, booster) in enumerate(trained.items()):
                results = await stub.results(f"results.k{number}", len(values))
                scores = np.array([results[f"e{row}"]["score"] for row in range(len(values))], np.float32)
                expected = booster.predict(matrix(values, name))
                holds = KINDS[name][1]
                assert scores.shape == ((20,) if holds == "score" else (20, holds)), name
                assert scores.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(
    "name", [name for name, (_, holds) in KINDS.items() if holds == "score" and name != "multi:softmax"]
)
def test_a_margin_takes_the_place_of_the_base_score_in_each_kind(trained, name):
    model = Candidate.check(trained[name], "m", metrics=None, categories=None).model
    values, margins = rows(50, 3), rows(50, 4)[:, 1].copy()
    margins[np.isnan(margins)] = 0
    expected = trained[name].predict(matrix(values, name, base_margin=margins))
    given = np.ascontiguousarray(values[:, : columns(name)])
    assert model.predict(given, margins).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["multi:softprob", "multi:softmax", "several targets", "gblinear of classes", "dart"])
async def test_reasons_are_of_the_output_that_stands_out_and_change_nothing_else(trained, name):
    values, booster, used = rows(20, 2)[:, : columns(name)], trained[name], NAMES[: columns(name)]
    text = JOB.format(name="why", features=f"[{', '.join(used)}]") + "result: {reasons: {top: 100, budget: 1.0}}\n"
    async with StubCluster(partitions=3) as stub:
        client = await stub.client()
        await client.push_model(booster, "why", alias="champion")
        await client.submit(parse_job(text, "test"))
        for row, line in enumerate(values):
            event = {
                field: None if np.isnan(value) else float(value) for field, value in zip(NAMES, line, strict=False)
            }
            event |= {"kind": int(event["kind"])} if event.get("kind") is not None else {}
            await client.put_events("events.why", {f"e{row}": event})
        async with stub.worker(), asyncio.timeout(30):
            results = {}
            while not results or not all("reasons" in each for each in results.values()):
                results = await stub.results("results.why", 20)
    scores = booster.predict(matrix(values, name))
    adds = booster.predict(matrix(values, name), pred_contribs=True, strict_shape=True)
    for row in range(20):
        result = results[f"e{row}"]
        assert np.float32(result["score"]).tobytes() == scores[row].tobytes()
        number = 0 if adds.shape[1] == 1 else int(scores[row]) if scores.ndim == 1 else int(scores[row].argmax())
        expected = dict(zip(used, adds[row, number, :-1].tolist(), strict=True))
        assert {each["feature"]: each["adds"] for each in result["reasons"]} == pytest.approx(expected, abs=1e-5)
        for each in result["reasons"]:
            value = values[row, used.index(each["feature"])]
            assert (each["value"] is None) == bool(np.isnan(value))
