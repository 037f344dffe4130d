"""The lab: what users test their own jobs with."""

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.errors import EventRejectedError, ModelError, TableError, UsageError
from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.testing import Fault, Lab

JOB = """\
job: cards
events: events.cards
schema: {card: string, amount: float, at: timestamp}
event_key: card
order_by: at
windows: {card: card}
lookups: {limit: {map: lookups.limits, key: card, fields: {most: float?}}}
features: {amount: amount, usual: 'mean(amount, card, "30d")', most: limit.most}
model: cards
results: results.cards
"""


SHOP = """\
job: shop
events: events.shop
schema: {town: string, amount: float, base: float}
features: {town: category(town), amount: amount}
margin: base
model: shop
results: results.shop
"""


def model(seed=0, names=("amount", "usual", "most")):
    draw = np.random.default_rng(seed)
    rows = draw.uniform(0, 100, size=(200, len(names))).astype(np.float32)
    return xgb.train({"nthread": 1}, xgb.DMatrix(rows, rows[:, 0], feature_names=list(names)), 2)


@pytest.fixture
def lab(gridscore_lab):
    gridscore_lab.submit(JOB, model=model(), lookups={"limit": {"c1": {"most": 7.0}}})
    return gridscore_lab


def paid(amount, at, card="c1"):
    return {card: {"card": card, "amount": amount, "at": at}}


def test_a_window_of_thirty_days_takes_no_time(lab):
    lab.score(paid(10.0, "2025-01-01T00:00:00Z"))
    lab.score(paid(30.0, "2025-01-29T00:00:00Z"))
    (result,) = lab.score(paid(5.0, "2025-02-05T00:00:00Z")).values()
    assert result["features"] == {"amount": 5.0, "usual": 30.0, "most": 7.0}
    assert lab.score(paid(5.0, "2025-02-05T00:00:00Z", "c2"))["c2"]["features"]["most"] is None


def test_models_are_swapped_and_refused(lab):
    first = lab.score(paid(10.0, "2025-01-01T00:00:00Z"))["c1"]
    assert lab.swap(model(1)) == 2
    assert (first["version"], lab.score(paid(10.0, "2025-01-01T00:00:00Z"))["c1"]["version"]) == (1, 2)
    with pytest.raises(ModelError):
        lab.run(lab.client.submit(lab.job, update=True, model=model(names=("other", "names", "here"))))


def test_what_a_killed_worker_held_is_scored_by_another(lab):
    lab.kill_worker()
    lab.put(paid(1.0, "2025-01-01T00:00:00Z"))
    lab.advance(30.0)
    with pytest.raises(TimeoutError):
        lab.results(1)
    lab.add_worker()
    assert lab.results(1).keys() == {"c1"}
    with pytest.raises(UsageError, match="There are worker-2"):
        lab.kill_worker("worker-9")


def test_a_write_of_unknown_fate_loses_nothing(lab):
    lab.cluster.faults.append(Fault("timeout", request="Map.PutAll", map="results.*"))
    assert lab.score(paid(1.0, "2025-01-01T00:00:00Z"))["c1"]["features"]["amount"] == 1.0


def test_a_bad_event_is_told_with_its_reason_and_the_rest_is_scored(lab):
    with pytest.raises(EventRejectedError, match="amount"):
        lab.score({"bad": {"card": "bad"}} | paid(1.0, "2025-01-01T00:00:00Z"))
    assert lab.results(1).keys() == {"c1"}
    assert "amount" in lab.dead_letters()["bad"]


def test_a_model_of_a_jobs_own_dmatrix_scores_live_as_offline(gridscore_lab):
    job = parse_job(SHOP, "test")
    draw = np.random.default_rng(3)
    names = np.array(["Köln", "Rome", "Oslo", "Lyon", "Bonn", "Nice"])[draw.integers(0, 6, 300)]
    frame = pd.DataFrame({"town": names, "amount": draw.uniform(0, 9, 300), "base": draw.normal(size=300)})
    frame["late"] = np.isin(frame.town, ["Rome", "Nice"]) ^ (frame.amount > 8)
    matrix = offline_matrix(job, frame, keep=["late"])
    data = matrix.dmatrix("late")
    assert (data.feature_names, data.feature_types) == (["town", "amount"], ["c", "float"])
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix.dmatrix("late", rows=slice(0, 200)), 5)
    matrix.attach(booster)
    gridscore_lab.submit(job, model=booster)
    rest = frame.iloc[200:].drop(columns="late").to_dict("records")
    live = [result["score"] for result in gridscore_lab.score(rest).values()]
    expected = booster.predict(matrix.dmatrix(rows=np.arange(200, 300)))
    assert np.array(live, np.float32).tobytes() == expected.tobytes()
    assert len(set(live)) > 20
    test = frame[frame.town != "Bonn"]
    with pytest.raises(ModelError, match=r"The model has other codes of `town` than .*: Bonn, Köln, .*here Köln"):
        offline_matrix(job, test).predict(booster)
    rows = np.flatnonzero((frame.town != "Bonn") & (frame.index >= 200))
    for known in (matrix, booster):
        scores = offline_matrix(job, test, categories=known).predict(booster)
        assert scores[-len(rows) :].tobytes() == expected[rows - 200].tobytes()
    plain = xgb.train({}, matrix.dmatrix("late"), 1)
    for unknown in (lambda: matrix.predict(plain), lambda: offline_matrix(job, test, categories=plain)):
        with pytest.raises(ModelError, match="codes of the model are unknown"):
            unknown()
    with pytest.raises(TableError, match="`lat` was not kept"):
        matrix.dmatrix("lat")


def test_there_is_one_lab_at_a_time(gridscore_lab):
    with pytest.raises(RuntimeError, match="another virtual time is in force"):
        Lab()
    gridscore_lab.close()
    with Lab():
        pass


def test_what_the_lab_cannot_do_it_says(gridscore_lab):
    with pytest.raises(UsageError, match="no job in the lab"):
        gridscore_lab.score([{}])
    with pytest.raises(UsageError, match="has no lookup `limits`"):
        gridscore_lab.submit(JOB, model=model(), lookups={"limits": {}})
    with pytest.raises(UsageError, match="Windows go by the times in the events"):
        gridscore_lab.advance(30 * 86_400.0)
