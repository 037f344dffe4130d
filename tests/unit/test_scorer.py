"""The scorer: a score that is not a number is a dead letter, whatever its neighbours are."""

import json

import numpy as np
import pytest
import xgboost as xgb

from gridscore.features import FeaturePlan, decisions
from gridscore.grid.wire import Page
from gridscore.group.reader import Arrival, Cursor
from gridscore.job import parse_job
from gridscore.models import LoadedModel
from gridscore.models.candidate import Candidate
from gridscore.scoring import results
from gridscore.scoring.scorer import ActiveModel, Scorer
from gridscore.scoring.stats import JobStats

JOB = """
job: counts
events: events.counts
results: results.counts
schema: {x: float, start: float}
features: {x: x}
margin: start
model: counts
result: {include: [x]}
"""
DECISIONS = """
decisions:
  - {decision: many, at_least: 10}
  - {decision: few}
"""


def model(objective="count:poisson", **parameters):
    x = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    labels = np.arange(60) % 3
    data = xgb.DMatrix(x, np.stack([labels, labels], axis=1) if parameters.pop("targets", 1) > 1 else labels)
    data.feature_names = ["x"]
    booster = xgb.train({"objective": objective, "nthread": 1, **parameters}, data, 3)
    checked = Candidate.check(booster, "counts", metrics=None, categories=None)
    return LoadedModel.load(checked.version, checked.payload)


def page(values):
    texts = [text.encode() for text in values]
    keys = [b"k%d" % each for each in range(len(texts))]
    return Page(0, len(texts), list(range(len(texts))), keys, texts, {}, 0)


async def score(job, loaded, values):
    plan = FeaturePlan(job, {}, {})
    arrival = Arrival(0, page(values), Cursor(0, 1), 0, 0.0)
    return await Scorer(job, 1, {}, {}, JobStats()).score([arrival], ActiveModel(loaded, plan))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("decisions", [True, False])
async def test_a_score_that_is_not_a_number_is_a_dead_letter_and_its_neighbours_are_scored(
    monkeypatch, fast, decisions
):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    job = parse_job(JOB + (DECISIONS if decisions else ""), "test")
    values = [f'{{"x": 0.5, "start": {start}}}' for start in (0, 1e30, 1, 200, 2)]

    scored = await score(job, model(), values)

    assert [rejected.sequence for rejected in scored.rejected] == [1, 3]
    assert all(rejected.stage == "predict" for rejected in scored.rejected)
    assert "not a finite number: inf" in scored.rejected[0].error
    (batch,) = scored.partitions
    assert batch.keys == [b"k0", b"k2", b"k4"]
    assert all(b"null" not in text for text in batch.texts)
    assert (b'"decision":"few"' in batch.texts[0]) is decisions
    assert scored.events == 3
    nothing = await score(job, model(), values[1:2])
    assert (len(nothing.rejected), nothing.partitions[0].texts) == (1, [])


async def test_one_element_of_a_vector_is_enough(monkeypatch):
    job = parse_job(JOB.replace("margin: start\n", ""), "test")
    loaded = model("multi:softprob", num_class=3)
    right = loaded._predict

    def wrong(matrix, margins):
        scores = right(matrix, margins).copy()
        scores[1, 2], scores[2, 0] = np.nan, -np.inf
        return scores

    monkeypatch.setattr(loaded, "_predict", wrong)
    scored = await score(job, loaded, ['{"x": 0.5, "start": 1}'] * 4)

    assert [(rejected.sequence, rejected.error.rpartition(" ")[2]) for rejected in scored.rejected] == [
        (1, "nan"),
        (2, "-inf"),
    ]
    assert scored.partitions[0].keys == [b"k0", b"k3"]


@pytest.mark.parametrize("fast", [True, False])
async def test_decisions_on_several_scores_are_never_made(monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    job = parse_job(JOB.replace("margin: start\n", "") + DECISIONS, "test")
    with pytest.raises(ValueError, match="decisions need one score per event"):
        await score(job, model("multi:softprob", num_class=3), ['{"x": 0.5, "start": 1}'] * 4)


CONDITIONS = DECISIONS.replace("at_least: 10", "when: score > 1 and x > 0.3")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("classes", [True, False])
async def test_decisions_by_conditions_and_one_that_cannot_be_made_harms_nobody(monkeypatch, fast, classes):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    logging = JOB.replace("include: [x]", "include: [x], features: all")
    text, loaded = logging + CONDITIONS, model()
    if classes:
        text = logging.replace("margin: start\n", "") + CONDITIONS.replace("score > 1", 'label != "z"')
        text, loaded = text + "classes: [x, y, z]\n", model("multi:softprob", num_class=3)
    job = parse_job(text, "test")
    values = [f'{{"x": {x}, "start": {start}}}' for x, start in ((0.5, 1), (0.2, 1), (0.7, 9), (0.5, 1e30), (0.6, 1))]
    right = decisions.Decider.decide

    def wrong(self, events, scores):
        if 0.7 in events.objects("x"):
            raise RuntimeError("oops")
        return right(self, events, scores)

    monkeypatch.setattr(decisions.Decider, "decide", wrong)
    scored = await score(job, loaded, values)

    last = [] if classes else [(3, "predict")]
    assert sorted((each.sequence, each.stage) for each in scored.rejected) == [(2, "decide"), *last]
    assert "RuntimeError: oops" in str([each.error for each in scored.rejected])
    (batch,) = scored.partitions
    assert batch.keys == [b"k0", b"k1", *([b"k3"] if classes else []), b"k4"]
    written = list(map(json.loads, batch.texts))
    assert all(each["features"] == {"x": each["x"]} for each in written)
    names = [each["decision"] for each in written]
    assert names[1] == "few"
    assert classes or names == ["many", "few", "many"]
