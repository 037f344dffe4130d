"""Encodings learnt of a history: against an oracle that shares no code, out of fold, bounded, the same live."""

import json
import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.cli.model import _learnt
from gridscore.errors import ModelError, ModelMismatchError, TableError
from gridscore.features import EventDecoder, FeaturePlan, OfflineMatrix, encodings, offline_matrix
from gridscore.features.baseline import baseline_of
from gridscore.job import Job
from gridscore.models.candidate import Candidate
from gridscore.models.comparison import compare
from gridscore.models.drift import Tally, figures_of
from gridscore.models.sample import Sample
from gridscore.models.signing import statement
from gridscore.scoring.drift import Sketch
from gridscore.serve.inference import _metadata

JOB = Job.model_validate(
    {
        "job": "shop",
        "events": "events.shop",
        "results": "results.shop",
        "model": "m",
        "schema": {"shop": "string?", "branch": "int?", "amount": "float"},
        "features": {
            "amount": "amount",
            "rate": "target(shop, smoothing=3)",
            "branch_rate": {"expression": "log1p(target(branch))", "default": -1},
            "share": "frequency(shop)",
            "first": "onehot(shop, 1)",
            "third": "onehot(upper(shop), 3)",
        },
    }
)
SHOPS = ["a", "b", "ü", "d", None]


def history(rows=400, seed=1):
    draw = np.random.default_rng(seed)
    shop = draw.choice(len(SHOPS), rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    late = (draw.random(rows) < 0.1 + 0.2 * shop).astype(float)
    return pd.DataFrame(
        {
            "shop": [SHOPS[number] for number in shop],
            "branch": pd.array(draw.integers(2**60, 2**60 + 5, rows), "Int64"),
            "amount": draw.gamma(2, 20, rows),
            "late": np.where(draw.random(rows) < 0.1, np.nan, late),
        }
    )


def mean_of(texts, labels, text, smoothing, rows):
    """The smoothed mean by hand."""
    known = [labels[row] for row in rows if not math.isnan(labels[row])]
    prior = sum(known) / len(known)
    mine = [labels[row] for row in rows if texts[row] == text and not math.isnan(labels[row])]
    return (sum(mine) + smoothing * prior) / (len(mine) + smoothing)


def served(job, learnt, events):
    """The features of events as a worker computes them: in a batch, and each alone."""
    plan, payloads = FeaturePlan(job, {}, learnt), [json.dumps(event).encode() for event in events]
    found = plan.matrix(EventDecoder(job).decode_all(payloads))
    alone = [plan.matrix(EventDecoder(job).decode_all([each])) for each in payloads]
    assert found.tobytes() == b"".join(each.tobytes() for each in alone)
    return found


def bits(matrix):
    return np.asarray(matrix.values).tobytes()


def trained(matrix):
    rows = ~np.isnan(matrix.kept["late"].to_numpy())
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix.dmatrix("late", rows=rows), 5)
    matrix.attach(booster)
    return booster


@pytest.fixture(scope="module")
def matrix():
    return offline_matrix(JOB, history(), label="late")


def test_what_is_served_is_what_all_rows_teach(matrix):
    frame = history()
    shops, branches, labels = (frame[name].astype(object).tolist() for name in ("shop", "branch", "late"))
    events = [{"shop": shop, "branch": 2**60 + 1, "amount": 1.0} for shop in (*SHOPS, "never seen", "A")]
    found = served(JOB, matrix.learnt, events)
    every, counts = range(len(frame)), Counter(shop for shop in shops if shop in SHOPS[:-1])
    prior = mean_of([None] * len(labels), labels, "none of them", 1, every)
    rates = [mean_of(shops, labels, shop, 3, every) for shop in SHOPS[:-1]]
    expected = np.float32([*rates, math.nan, prior, prior])
    assert found[:, 1] == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert found[0, 2] == pytest.approx(np.log1p(mean_of(branches, labels, 2**60 + 1, 20, every)))
    shares = [counts[shop] / counts.total() for shop in SHOPS[:-1]]
    assert found[:, 3] == pytest.approx(np.float32([*shares, math.nan, 0, 0]), rel=1e-6, nan_ok=True)
    assert found[:, 4].tolist()[:4] == [1, 0, 0, 0]
    assert found[:, 5].tolist()[:4] == [0, 0, 1, 0]
    assert np.isnan(found[4, [1, 3, 4, 5]]).all()
    assert found[5, [4, 5]].tolist() == [0, 0]


def test_no_row_learns_from_its_own_label(matrix):
    frame = history()
    texts, labels = frame["shop"].astype(object).tolist(), frame["late"].tolist()
    values, folds = np.asarray(matrix.values), np.random.default_rng(0).permutation(len(frame)) % 5
    for row in range(len(frame)):
        others = np.flatnonzero(folds != folds[row])
        value = math.nan if texts[row] not in SHOPS[:-1] else mean_of(texts, labels, texts[row], 3, others)
        assert values[row, 1] == pytest.approx(value, rel=1e-6, nan_ok=True)
    turned = frame.assign(late=1 - frame["late"])
    labelled = int(np.flatnonzero(frame["late"].notna())[7])
    one = frame["late"].where(np.arange(len(frame)) != labelled, turned["late"])
    again = offline_matrix(JOB, frame.assign(late=one), label="late")
    assert np.asarray(again.values)[labelled].tobytes() == values[labelled].tobytes()
    assert bits(again) != bits(matrix)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.text("abc", max_size=2), st.sampled_from([0.0, 1.0, math.nan])), min_size=1
    ).filter(lambda rows: not all(math.isnan(label) for _, label in rows))
)
def test_any_history_gives_the_same_numbers_twice_and_from_a_file(rows):
    frame = pd.DataFrame({"shop": [shop for shop, _ in rows], "branch": None, "amount": 1.0})
    frame["late"] = [label for _, label in rows]
    first, second = (offline_matrix(JOB, frame, label="late") for _ in range(2))
    assert first.learnt == second.learnt
    assert bits(first) == bits(second)
    assert np.isfinite(np.asarray(first.values)[[shop is not None for shop, _ in rows], 1]).all()


def test_encodings_travel_with_the_model(matrix, tmp_path):
    booster, frame = trained(matrix), history(50, seed=2)
    booster.save_model(tmp_path / "m.ubj")
    candidate = Candidate.check(tmp_path / "m.ubj", "m", jobs={"shop": JOB})
    assert candidate.version.learnt == matrix.learnt
    matrix.to_parquet(tmp_path / "m.parquet")
    again = OfflineMatrix.from_parquet(tmp_path / "m.parquet")
    assert again.learnt == matrix.learnt
    events = json.loads(frame.drop(columns="late").to_json(orient="records"))
    live = served(JOB, candidate.version.learnt, events)
    for learnt in (matrix, again, booster):
        offline = offline_matrix(JOB, frame, categories=learnt)
        assert bits(offline) == live.tobytes()
        assert offline.predict(booster).tobytes() == candidate.model.predict(live).tobytes()

    other = offline_matrix(JOB, history(300, seed=3), label="late")
    with pytest.raises(ModelError, match="other codes of `rate`"):
        other.predict(booster)
    with pytest.raises(ModelError, match=r"attached to other codes of `rate`: it has a 0\.\d+, .* a 0\."):
        other.attach(booster)
    changed = Candidate.check(trained(other), "m", jobs={"shop": JOB})
    assert statement(changed.version) != statement(candidate.version)
    facts = [fact.what for fact in compare(candidate.model, changed.model).facts]
    assert "encoding rate" in facts


def test_drift_is_told_from_what_the_stream_sees_and_not_from_the_numbers_of_the_folds(tmp_path):
    plain = JOB.to_json()
    job = Job.from_json({**plain, "features": {**plain["features"], "doubled": "rate * 2", "rated": "amount * 2"}})
    frame = history()
    matrix = offline_matrix(job, frame, label="late")
    assert matrix.served.keys() >= {"rate", "doubled"}
    assert not matrix.served.keys() & {"amount", "share", "rated"}
    live = offline_matrix(job, frame, categories=matrix)
    assert not live.served
    matrix.to_parquet(tmp_path / "m.parquet")
    for each in (matrix, OfflineMatrix.from_parquet(tmp_path / "m.parquet")):
        booster = trained(each)
        version = Candidate.check(booster, "m", jobs={"shop": job}).version
        assert version.baseline.features.keys() == set(job.features)
        seen = baseline_of(live.names, live.values, live.categories, live.predict(booster), len(live))
        assert version.baseline == seen
        assert baseline_of(each.names, each.values, each.categories, each.predict(booster), len(each)) != seen


def test_texts_that_training_has_not_seen_are_counted(matrix):
    plan = FeaturePlan(JOB, {}, matrix.learnt)
    events = [{"shop": shop, "branch": None, "amount": 1.0} for shop in ("a", "b", "new", "newer", None)]
    plan.matrix(EventDecoder(JOB).decode_all([json.dumps(event).encode() for event in events]))
    assert plan.quality.to_json()["unseen"] == {"rate": 2, "share": 2}


def test_drift_sees_texts_that_training_has_not_seen_of_encodings_and_of_many_categories():
    plain = JOB.to_json()
    features = {"code": "category(shop)", "rate": "target(shop)"}
    job = Job.from_json({**plain, "features": features})
    frame = history(3_000).assign(shop=[f"shop {number % 300}" for number in range(3_000)])  # none has a bin of its own
    learnt = offline_matrix(job, frame, label="late")
    version = Candidate.check(trained(learnt), "m", jobs={"shop": job}).version
    plan = FeaturePlan(job, {}, version.learnt)
    sketch = Sketch(version, version.baseline, plan.quality)
    event = json.dumps({"shop": "new", "branch": None, "amount": 1.0}).encode()
    rows = plan.matrix(EventDecoder(job).decode_all([event] * 1_000))
    sketch.add(rows, np.zeros(1_000, np.float32))
    found = figures_of(version.baseline, Tally(0, 1, *sketch.take()))
    assert {name: figures.unseen for name, figures in found.items()} == {"code": 1.0, "rate": 1.0, "<score>": 0.0}


def test_what_a_model_has_learnt_is_shown(matrix):
    version = Candidate.check(trained(matrix), "m", jobs={"shop": JOB}).version
    assert _metadata(version, ["1"])["inputs"][0]["parameters"]["encodings"] == version.definitions.encodings
    texts = _learnt(version.learnt["rate"])
    assert re.match(r"a 0\.\d+, b 0\.\d+, .*; others 0\.\d+$", texts)


def test_a_sample_judges_no_version_that_encodes_otherwise(tmp_path):
    frame = history().dropna(subset="late")
    learnt = offline_matrix(JOB, frame, label="late", keep=["late"])
    learnt.to_parquet(tmp_path / "sample.parquet")
    sample = Sample.unpack(Sample.from_parquet(tmp_path / "sample.parquet", "late").pack(), "it")
    same = Candidate.check(trained(learnt), "m", jobs={"shop": JOB}).version
    assert sample.inputs(same)[0].tobytes() == bits(learnt)
    other = Candidate.check(trained(offline_matrix(JOB, history(300, seed=3), label="late")), "m").version
    none = Sample(sample.features, sample.values, {}, sample.labels)
    for each, version in ((sample, other), (none, same)):
        with pytest.raises(ModelError, match="another encoding of `rate` than the sample was made with"):
            each.inputs(version)


def test_a_worker_scores_with_them(matrix, gridscore_lab):
    booster, frame = trained(matrix), history(60, seed=2)
    offline = offline_matrix(JOB, frame, categories=booster)
    gridscore_lab.submit(JOB, model=booster)
    events = json.loads(frame.drop(columns="late").to_json(orient="records"))
    results = gridscore_lab.score({f"e{number}": event for number, event in enumerate(events)})
    live = [results[f"e{number}"] for number in range(len(events))]
    features = [[result["features"][name] for name in offline.names] for result in live]
    assert np.array(features, np.float32).tobytes() == bits(offline)
    assert np.float32([result["score"] for result in live]).tobytes() == offline.predict(booster).tobytes()


def test_a_model_without_the_encoding_is_refused(matrix):
    rows = xgb.DMatrix(matrix.values, np.arange(len(matrix)), feature_names=list(matrix.names))
    booster = xgb.train({"nthread": 1}, rows, 1)
    with pytest.raises(ModelMismatchError, match="has not learnt its encoding"):
        Candidate.check(booster, "m", jobs={"shop": JOB})
    with pytest.raises(ModelMismatchError, match=r"no encoding for the feature `rate`, which .* makes with `target`"):
        FeaturePlan(JOB, {}, {})


def test_it_is_bounded(monkeypatch):
    monkeypatch.setattr(encodings, "MOST", 3)
    monkeypatch.setattr(encodings, "_LONGEST", 5)
    shops = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2 + ["too long"] * 9
    frame = pd.DataFrame({"shop": shops, "branch": None, "amount": 1.0, "late": 1.0})
    assert [*offline_matrix(JOB, frame, label="late").learnt["share"].numbers] == ["a", "b", "c"]


def test_a_model_of_which_no_record_can_hold_the_encodings_is_refused(matrix, monkeypatch):
    booster = trained(matrix)
    monkeypatch.setattr("gridscore.models.candidate._MAX_RECORD", 1_000)
    with pytest.raises(ModelError, match=r"says of its columns has .* bytes; the limit is 1,000\."):
        Candidate.check(booster, "m", jobs={"shop": JOB})


def test_what_it_needs_is_said(tmp_path):
    with pytest.raises(TableError, match="`rate` is made with `target`, which is the mean of the label"):
        offline_matrix(JOB, history())
    with pytest.raises(TableError, match=r"`rate` is made with `target`, .* and no row has one"):
        offline_matrix(JOB, history().assign(late=math.nan), label="late")
    with pytest.raises(TableError, match="labels that are not numbers"):
        offline_matrix(JOB, history().assign(late="yes"), label="late")
    (tmp_path / "job.json").write_text(json.dumps(JOB.to_json()))
    history().to_parquet(tmp_path / "h.parquet")
    words = ["features", str(tmp_path / "job.json"), str(tmp_path / "h.parquet"), "-o", str(tmp_path / "m.parquet")]
    assert "--label COLUMN" in CliRunner().invoke(_commands(), words).exception.hint
    done = CliRunner().invoke(_commands(), [*words, "--label", "late"])
    assert done.exit_code == 0, done.output
    assert OfflineMatrix.from_parquet(tmp_path / "m.parquet").kept.columns.tolist() == ["late"]
    again = [*words[:-1], str(tmp_path / "n.parquet"), "--categories-from", str(tmp_path / "m.parquet")]
    assert CliRunner().invoke(_commands(), again).exit_code == 0
    assert OfflineMatrix.from_parquet(tmp_path / "n.parquet").learnt.keys() >= {"rate", "share", "first"}
