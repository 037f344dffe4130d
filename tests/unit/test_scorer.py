"""The scorer: a score that is not a number is a dead letter, whatever its neighbours are."""

import json

import numpy as np
import pytest
import xgboost as xgb

from gridscore.features import FeaturePlan, window_kernel, windows
from gridscore.features.plan import Decider
from gridscore.grid.wire import Page
from gridscore.group.reader import Arrival, Cursor
from gridscore.job import parse_job
from gridscore.models import LoadedModel
from gridscore.models.candidate import Candidate
from gridscore.scoring import results
from gridscore.scoring.rehearsal import Given, Rehearsal, page_of_texts
from gridscore.scoring.scorer import Scorer
from gridscore.scoring.stats import JobStats
from gridscore.scoring.trial import ActiveModel
from gridscore.scoring.window_states import HistoryStates

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


def model(objective="count:poisson", names=("x",), **parameters):
    x = np.tile(np.linspace(0, 1, 60, dtype=np.float32)[:, None], len(names))
    labels = np.arange(60) % 3
    data = xgb.DMatrix(x, np.stack([labels, labels], axis=1) if parameters.pop("targets", 1) > 1 else labels)
    data.feature_names = list(names)
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


SPENT = """
job: counts
events: events.counts
results: results.counts
event_key: card
order_by: at
schema: {card: string, other: string, x: float, at: {type: timestamp, unit: s}}
windows: {card: card, other: other}
features: {x: x, spent: 'sum(x, card, "5m")'}
margin: {expression: "1000 if x == 13 else spent", default: 0}
model: counts
result: {features: all}
"""


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("key", ["card", "other"])
async def test_no_event_is_rejected_for_what_its_windows_have_of_one_that_was_rejected(monkeypatch, fast, key):
    if not fast:
        monkeypatch.setattr(windows, "_run", window_kernel.run)
    job = parse_job(SPENT.replace("x, card", f"x, {key}"), "test")
    loaded = model(names=("x", "spent"))
    random = np.random.default_rng(5)
    # After 95, or 60 and some more, scores are infinite; with 13 the event's own is.
    events = [
        {"card": f"c{random.integers(3)}", "other": f"o{random.integers(2)}", "x": float(x), "at": 1.7e9 + 30 * number}
        for number, x in enumerate(random.choice([1, 2, 13, 60, 95], 120, p=[0.4, 0.3, 0.1, 0.1, 0.1]))
    ]
    texts = [json.dumps(each).encode() for each in events]

    async def outcomes(step):
        rehearsal, found = Rehearsal(job, loaded, Given({}, {}), HistoryStates(job)), {}
        for begin in range(0, len(texts), step):
            results, rejected = await rehearsal.score(page_of_texts(texts[begin : begin + step], begin), Cursor(0, 0))
            found |= {each.sequence: each.error for each in rejected}
            found |= {each["sequence"]: (each["score"], each["features"]) for each in map(json.loads, results)}
        return found

    alone = await outcomes(1)
    assert sorted(alone) == list(range(120))
    rejected = [isinstance(each, str) for each in alone.values()]
    assert 10 < sum(rejected) < 90
    for step in (2, 7, 120):
        assert await outcomes(step) == alone


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
    right = Decider.decide

    def wrong(self, events, scores):
        if 0.7 in events.objects("x"):
            raise RuntimeError("oops")
        return right(self, events, scores)

    monkeypatch.setattr(Decider, "decide", wrong)
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
