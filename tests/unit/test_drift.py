"""Drift: bins of the training, live counts in them, and when alerts begin and end; each figure against plain numpy."""

# ruff: noqa: PD011 -- these `.values` are those of a matrix, not of pandas

import dataclasses
import json
import math
from itertools import pairwise

import msgspec
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from test_health import codes, record, status

from gridscore.errors import JobFileError, ModelError
from gridscore.features import EventDecoder, FeaturePlan, baseline, offline_matrix
from gridscore.features.quality import QualityCounter
from gridscore.job import parse_job
from gridscore.job.monitoring import Drift
from gridscore.models.candidate import Candidate
from gridscore.models.drift import MOST_ALERTS, DriftRecord, Tally, advanced, figures_of
from gridscore.scoring import drift as watch
from gridscore.scoring.drift import Sketch, entry_of

JOB = """
job: late
events: events.late
results: results.late
schema: {amount: float?, country: string?}
features: {amount: amount, country: category(country)}
model: late
"""
NOW = 1_700_000_000_000
MINUTE = 60_000


def history(count, seed=0, shift=0.0, countries=("DE", "FR", "US", "US")):
    draw = np.random.default_rng(seed)
    amount = pd.Series(draw.normal(100 + shift, 20, count)).mask(draw.random(count) < 0.04)
    return pd.DataFrame({"amount": amount, "country": draw.choice([*countries, None], count)})


@pytest.fixture(scope="module")
def trained():
    """The job, its matrix, and the version of a model that has it attached."""
    job = parse_job(JOB, "test")
    matrix = offline_matrix(job, history(5_000))
    labels = np.nan_to_num(matrix.values[:, 0]) > 100
    types = ["q", "c"]
    data = xgb.DMatrix(matrix.values, labels, feature_names=list(matrix.names), feature_types=types)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 4)
    matrix.attach(booster)
    checked = Candidate.check(booster, "late", metrics=None, categories=None)
    return job, matrix, checked.model


def psi_by_hand(before, after):
    before, after = np.maximum(before, 1e-4), np.maximum(after, 1e-4)
    return float(np.sum((after - before) * np.log(after / before)))


def counted(trained, frame, batch=700):
    """What a sketch makes of a history that is scored in batches."""
    job, _, model = trained
    plan = FeaturePlan(job, {}, model.version.categories)
    sketch = Sketch(model.version, model.version.baseline, plan.quality)
    texts = [json.dumps(row).encode() for row in frame.astype(object).where(frame.notna(), None).to_dict("records")]
    events, _ = EventDecoder(job).decode_good(texts)
    parts = [plan.matrix(events[slice(at, at + batch)]) for at in range(0, len(texts), batch)]
    for part in parts:
        sketch.add(part, model.predict(part))
    return sketch.take(), np.concatenate(parts)


def test_a_baseline_has_the_shares_of_the_training(trained):
    _, matrix, model = trained
    kept = model.version.baseline
    amount, country = matrix.values.T
    there = amount[np.isfinite(amount)].astype(np.float64)
    column = kept.features["amount"]
    bounds = [-np.inf, *column.edges, np.inf]
    expected = [np.mean((there >= low) & (there < high)) for low, high in pairwise(bounds)]
    assert column.shares == pytest.approx(expected, abs=1e-6)
    assert len(column.edges) == 12
    assert column.missing == pytest.approx(np.isnan(amount).mean(), abs=1e-6)
    named = kept.features["country"]
    assert set(named.texts) == {"DE", "FR", "US"}
    assert named.texts[0] == "US"  # the most frequent
    codes = country[np.isfinite(country)]
    known = matrix.categories["country"]
    for text, share in zip(named.texts, named.shares, strict=False):
        assert share == pytest.approx(np.mean(codes == known.index(text)), abs=1e-6)
    (scores,) = kept.scores
    predicted = model.predict(np.ascontiguousarray(matrix.values)).astype(np.float64)
    below = np.searchsorted(np.sort(predicted), scores.edges, side="left") / len(predicted)
    assert np.cumsum(scores.shares)[:-1] == pytest.approx(below, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 700])
def test_a_sketch_counts_each_row_once_in_its_bin(trained, batch):
    (rows, counts), values = counted(trained, history(1_500, seed=3), batch)
    amount, country = values.T
    kept = trained[2].version.baseline
    assert rows == len(values)
    *bins, missing, unseen = counts[0]
    edges = [-np.inf, *kept.features["amount"].edges, np.inf]
    there = amount[np.isfinite(amount)].astype(np.float64)
    assert bins == [np.sum((there >= low) & (there < high)) for low, high in pairwise(edges)]
    assert (missing, unseen) == (np.isnan(amount).sum(), 0)
    *bins, missing, unseen = counts[1]
    codes = [trained[2].version.categories["country"].index(text) for text in kept.features["country"].texts]
    assert bins == [*(np.sum(country == code) for code in codes), 0]
    assert (missing, unseen) == (np.isnan(country).sum(), 0)
    assert sum(counts[2]) == rows


def test_a_default_is_not_a_code(trained):
    _, matrix, model = trained
    given = parse_job(JOB.replace("category(country)", "{expression: category(country), default: -3}"), "test")
    filled = offline_matrix(given, history(5_000))
    assert (filled.values[:, 1] == -3).any()
    found = baseline.baseline_of(filled.names, filled.values, filled.categories, None, len(filled))
    assert found.features["country"] == model.version.baseline.features["country"]
    plan = FeaturePlan(given, {}, matrix.categories)
    sketch = Sketch(model.version, model.version.baseline, plan.quality)
    sketch.add(filled.values, np.zeros(len(filled), np.float32))
    _, counts = sketch.take()
    assert sum(counts[1][-2:]) == np.sum(filled.values[:, 1] == -3)


def test_of_many_rows_some_are_looked_at_and_count_for_the_others(trained, monkeypatch):
    monkeypatch.setattr(watch, "WHOLE", 1_024)
    (rows, counts), values = counted(trained, history(40_000, seed=4))
    assert rows == pytest.approx(len(values), abs=2 * watch.EVERY)
    amount = values[:, 0]
    assert counts[0][-2] / rows == pytest.approx(np.isnan(amount).mean(), abs=0.02)
    assert sum(counts[0]) == sum(counts[1]) == sum(counts[2]) == rows


def test_figures_are_those_of_numpy(trained):
    frame = history(3_000, seed=5, shift=15.0, countries=("DE", "XX", "US", "US"))
    (rows, counts), values = counted(trained, frame)
    _, matrix, model = trained
    found = figures_of(model.version.baseline, Tally(0, 1, rows, counts))
    assert list(found) == ["amount", "country", "<score>"]
    edges = model.version.baseline.features["amount"].edges

    def shares(column):
        there = column[np.isfinite(column)].astype(np.float64)
        return np.histogram(there, [-np.inf, *edges, np.inf])[0] / len(there)

    before, after = shares(matrix.values[:, 0]), shares(values[:, 0])
    assert found["amount"].psi == pytest.approx(psi_by_hand(before, after), rel=1e-3)
    assert found["amount"].ks == pytest.approx(np.abs(np.cumsum(after) - np.cumsum(before)).max(), abs=1e-5)
    # Of all values, and not only at the edges, it is not much more.
    exact = max(
        abs(np.mean(matrix.values[:, 0] <= at) / 0.96 - np.mean(values[:, 0] <= at) / 0.96) for at in range(200)
    )
    assert found["amount"].ks == pytest.approx(exact, abs=0.06)
    assert found["amount"].missing == pytest.approx(np.isnan(values[:, 0]).mean())
    assert found["amount"].missing_before == pytest.approx(np.isnan(matrix.values[:, 0]).mean(), abs=1e-6)
    assert found["country"].ks is None
    assert found["country"].unseen == pytest.approx((frame["country"] == "XX").mean(), abs=1e-3)
    live = frame["country"][frame["country"].isin(["DE", "FR", "US"])]
    training = history(5_000)["country"].dropna()
    texts = ["US", "DE", "FR"]
    by_hand = psi_by_hand(*(np.array([np.mean(each == text) for text in texts]) for each in (training, live)))
    assert found["country"].psi == pytest.approx(by_hand, rel=1e-3)


def test_a_column_without_values_has_no_psi():
    empty = baseline.baseline_of(("x",), np.full((200, 1), np.nan, np.float32), {}, None, 200)
    assert empty.features["x"].missing == 1.0
    (figures,) = figures_of(empty, Tally(0, 1, 100, ((60, 40, 0),))).values()
    assert (figures.psi, figures.ks, figures.missing) == (None, None, 0.4)
    assert figures_of(empty, Tally(0, 1, 100, ((1, 2),))) == {}  # of another baseline
    assert baseline.baseline_of(("x",), np.empty((0, 1), np.float32), {}, None, 0) is None


def test_a_baseline_stays_small():
    values = np.random.default_rng(0).normal(size=(300, 3_000)).astype(np.float32)
    kept = baseline.baseline_of([f"feature number {n}" for n in range(3_000)], values, {}, None, len(values))
    assert 500 < len(kept.features) < 3_000
    assert len(msgspec.json.encode(kept)) < baseline.MAX_BYTES
    texts = [f"text {n}" for n in range(2_000)]
    codes = np.r_[np.repeat(np.arange(80), 40), np.arange(2_000)].astype(np.float32)[:, None]
    column = baseline.baseline_of(["c"], codes, {"c": texts}, None, len(codes)).features["c"]
    assert column.texts == tuple(texts[:50])
    assert column.shares[-1] == pytest.approx(1 - 50 * 41 / 5_200, abs=1e-6)
    rare = baseline.baseline_of(["c"], codes[3_200:], {"c": texts}, None, len(codes)).features["c"]
    assert (rare.texts, rare.shares) == ((), (1.0,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": [2.0, 1.0], "shares": [0.5, 0.2, 0.3]},
        {"edges": [1.0], "shares": [1.0]},
        {"edges": [1.0], "shares": [0.5, 1.5]},
        {"edges": list(range(100)), "shares": []},
        {"texts": ["a"] * 51, "shares": []},
    ],
)
def test_a_hostile_baseline_is_refused_when_it_is_pushed(trained, wrong):
    _, matrix, _ = trained
    data = xgb.DMatrix(matrix.values, matrix.values[:, 0] > 100, feature_names=list(matrix.names))
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 1)
    text = json.dumps({"baseline": {"rows": 1, "features": {"amount": wrong}}})
    booster.set_attr(gridscore_training=text)
    with pytest.raises(ModelError, match="`gridscore_training` of The model is not valid"):
        Candidate.check(booster, "late", metrics=None, categories={"country": ["DE"]})
    booster.set_attr(gridscore_training=json.dumps({"baseline": {"rows": 1, "features": {"other": {}}}}))
    with pytest.raises(ModelError, match="a baseline of `other`, which is not a feature"):
        Candidate.check(booster, "late", metrics=None, categories={"country": ["DE"]})


SPEC = Drift(psi=0.2, missing=0.1, unseen=0.05, every="1m", events=100)
PLAIN = baseline.Baseline(1_000, {"x": baseline.Column((0.0,), (), (0.5, 0.5), 0.0)})
SAME, MOVED = ((100, 100, 0, 0),), ((195, 5, 0, 0),)


def step(value, counts, minutes, version="late v1", spec=SPEC, kept=PLAIN, worker="w1"):
    done = advanced(value, version, kept, (sum(counts[0]), counts), spec, worker, NOW + int(minutes * MINUTE))
    return msgspec.to_builtins(done)


def of(value):
    return msgspec.convert(value, DriftRecord)


def told(value):
    for alert in value.get("alerts", {}).values():
        alert["told"] = True
    return value


def test_what_a_worker_tries_to_add_again_counts_once_and_the_last_of_many_workers_are_remembered():
    value = step(step(None, SAME, 0), SAME, 0)
    assert of(value).versions["late v1"].open.rows == 200
    for number in range(2, 700):
        value = step(value, ((1, 0, 0, 0),), 0, worker=f"w{number}")
    assert of(step(value, ((1, 0, 0, 0),), 0, worker="w699")).versions["late v1"].open.rows == 200 + 698
    assert (len(value["added"]), list(value["added"])[-1]) == (512, "w699")


def test_a_window_is_judged_when_it_is_long_enough_and_has_enough_events():
    value = step(None, ((10, 10, 0, 0),), 0)
    value = step(value, ((10, 10, 0, 0),), 1.5)
    assert of(value).versions["late v1"].last is None  # too few
    value = step(value, SAME, 2)
    watched = of(value).versions["late v1"]
    assert watched.last == Tally(NOW, NOW + 2 * MINUTE, 240, ((120, 120, 0, 0),))
    assert watched.open.rows == 0
    assert watched.worst == ("x", 0.0)
    value = step(value, MOVED, 2.5)
    assert of(value).versions["late v1"].last == watched.last  # too short
    assert not of(value).alerts


def test_an_alert_begins_once_and_ends_once():
    value = step(step(None, SAME, 0), SAME, 1)
    value = step(value, MOVED, 2)
    (alert,) = of(value).active
    assert (alert.feature, alert.measure, alert.version, alert.told) == ("x", "psi", "late v1", False)
    assert alert.value == pytest.approx(psi_by_hand(np.array([0.5, 0.5]), np.array([0.975, 0.025])), abs=1e-6)
    assert alert.since == NOW + 2 * MINUTE
    entry = entry_of("late", alert)
    assert (entry["state"], entry["until"]) == ("started", None)
    value = step(told(value), ((180, 20, 0, 0),), 3)
    (still,) = of(value).active
    assert (still.since, still.told) == (alert.since, True)
    assert still.value < alert.value
    value = step(value, SAME, 4)
    (ended,) = of(value).alerts.values()
    assert (ended.until, ended.told, of(value).active) == (NOW + 4 * MINUTE, False, [])
    assert entry_of("late", ended)["state"] == "ended"
    value = step(value, MOVED, 5)
    assert of(value).alerts == {ended.key: ended}  # its end is told first
    assert not of(step(told(value), SAME, 6)).alerts


def test_missing_values_count_by_how_much_more_they_are_and_unknown_categories_by_their_share():
    kept = baseline.Baseline(1_000, {"x": baseline.Column((), ("a",), (1.0, 0.0), 0.3)})
    value = step(step(None, ((140, 0, 60, 0),), 0, kept=kept), ((60, 0, 40, 0),), 1, kept=kept)
    assert not of(value).alerts
    value = step(value, ((110, 0, 90, 20),), 2, kept=kept)
    assert {(alert.measure, alert.value) for alert in of(value).active} == {("missing", 0.15), ("unseen", 0.1)}


def test_a_version_that_does_not_score_any_more_takes_its_alerts_along():
    value = told(step(step(None, SAME, 0), MOVED, 1))
    value = step(value, SAME, 2, version="late v2")
    assert len(of(value).active) == 1
    value = step(value, SAME, 1 + 4.5, version="late v2")
    (alert,) = of(value).alerts.values()
    assert (alert.until > 0, alert.why, list(of(value).versions)) == (True, "no worker scores with it", ["late v2"])


def test_alerts_are_bounded():
    names = [f"f{number}" for number in range(3 * MOST_ALERTS)]
    kept = baseline.Baseline(1_000, dict.fromkeys(names, PLAIN.features["x"]))
    value = step(step(None, SAME * len(names), 0, kept=kept), MOVED * len(names), 1, kept=kept)
    assert len(of(value).alerts) == MOST_ALERTS
    again = step(told(value), MOVED * len(names), 2, kept=kept)
    assert of(again).alerts.keys() == of(value).alerts.keys()


@pytest.mark.parametrize(
    "hostile",
    [
        {"versions": 7},
        {"versions": {"v": {"open": {"since": NOW, "until": NOW}}}},
        {"versions": {"late v1": {"open": {"since": -1, "until": 0}}}},
        {"versions": {"late v1": {"open": {"since": 2**60, "until": 0}}}},
        {"versions": {"late v1": {"open": {"since": NOW, "until": NOW, "rows": 1, "counts": [[1]]}}}},
        {"versions": {f"late v{n}": {"open": {"since": NOW, "until": NOW}} for n in range(2, 10)}},
        {
            "alerts": {
                "x": {"version": "late v1", "feature": "x", "measure": "no", "value": 1, "threshold": 1, "since": 1}
            }
        },
    ],
)
def test_what_is_not_a_record_is_begun_anew(hostile):
    value = step(hostile, SAME, 0)
    assert of(value).versions["late v1"].open.rows == 200
    assert len(of(value).versions) <= 8


def test_a_window_of_a_clock_that_is_ahead_is_judged_nevertheless():
    value = step(None, SAME, 600)
    value = step(value, SAME, 0)
    value = step(value, SAME, 1)
    assert of(value).versions["late v1"].last.rows == 600


def test_a_job_says_when_it_has_drifted():
    assert parse_job(JOB, "test").drift is None
    job = parse_job(JOB + "drift: {}\n", "test")
    assert (job.drift.psi, job.drift.ks, job.drift.missing, job.drift.unseen) == (0.2, None, 0.1, 0.05)
    assert (job.drift.every_seconds, job.alerts_map) == (300, "alerts.late")
    assert parse_job(JOB + "drift: {alerts: alerts.all, psi: null}\n", "test").alerts_map == "alerts.all"
    for wrong in ("every: 32d", "psi: -1", "alerts: results.late", "psi: .nan", "events: 1", "wasserstein: 1"):
        with pytest.raises(JobFileError):
            parse_job(JOB + f"drift: {{{wrong}}}\n", "test")


def test_a_job_with_alerts_is_not_well():
    job = parse_job(JOB + "drift: {}\n", "test")
    watched = dataclasses.replace(record(), job=job)
    value = of(step(step(None, SAME, 0), MOVED, 1))
    drifted = status(job=watched, drift=value)
    assert codes(drifted) == ["drift"]
    assert drifted.to_json()["drift"]["farthest"]["feature"] == "x"
    assert drifted.to_json()["drift"]["alerts"][0]["measure"] == "psi"
    assert codes(status(job=watched, drift=of(step(None, SAME, 0)))) == []
    assert status().to_json()["drift"] is None


def test_the_counter_of_unknown_categories_does_not_fade():
    counter = QualityCounter(("c",), {}, {"c": 0}, {"c": ("a",)})
    finite = np.ones((15_000, 1), bool)
    for _ in range(3):
        counter.count([["x", "a", None] * 5_000], finite, 15_000)
    assert (counter.counted, counter.unseen) == (45_000, {"c": 15_000})
    assert math.isclose(counter.to_json()["unseen"]["c"] / counter.to_json()["events"], 1 / 3)
