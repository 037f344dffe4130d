"""Decisions by conditions: over score, label, event and features; the same live and offline, to the last bit."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st

from gridscore.errors import JobFileError, ModelMismatchError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, offline_matrix
from gridscore.features.plan import Decider
from gridscore.job import Job, parse_job
from gridscore.models import check_fit, loaded_from
from gridscore.scoring import results
from gridscore.scoring.results import ResultEncoder

TEXT = """\
job: shop
events: events.shop
schema: {amount: float?, country: string?, vip: bool?}
lookups:
  land: {map: lands, key: country, fields: {risk: float?}}
features:
  amount: amount
  country: category(country)
  large: {expression: amount / 1000, default: -1}
model: shop
results: results.shop
decisions:
  - {decision: decline, at_least: 0.9}
  - {decision: review, when: score > 0.6 and amount > 1000 and not vip}
  - {decision: call, when: land.risk >= 0.5 or large == -1}
  - {decision: approve}
"""
NAMES = ("decline", "review", "call", "approve")
CATEGORIES = {"country": ("DE", "FR")}
CLASSES, TWO = "classes: [cat, dog, New York]\n", "classes: [a, b]\n"


def job(*conditions, more="", text=TEXT):
    """A job with these conditions, and a last decision."""
    if conditions:
        listed = "".join(f"  - {{decision: d{n}, when: {json.dumps(each)}}}\n" for n, each in enumerate(conditions))
        text = re.sub(r"decisions:\n(.|\n)*", f"decisions:\n{listed}  - {{decision: rest}}\n", text)
    return parse_job(text + more, "job.yaml")


def problems(*conditions, more="", text=TEXT):
    with pytest.raises(JobFileError) as caught:
        job(*conditions, more=more, text=text)
    return [
        re.sub(r"^job.yaml line \d+: (`decisions[^`]*`: )?", "", line) for line in caught.value.message.splitlines()
    ]


def lands():
    table = LookupTable(job().lookups["land"])
    table.put("FR", b'{"risk": 0.5}')
    return {"land": table}


def decided(given_job, events, scores):
    """What is decided on all of them at once, after one by one was found to be the same."""
    decoded = EventDecoder(given_job).decode_all([json.dumps(event).encode() for event in events])
    scores = np.asarray(scores, np.float32)
    decide = FeaturePlan(given_job, lands(), CATEGORIES).decider.decide
    together = decide(decoded, scores)
    singly = [decide(decoded[row : row + 1], scores[row : row + 1])[0] for row in range(len(events))]
    assert together.tolist() == singly
    return [given_job.decisions[number].decision for number in together]


def test_the_first_decision_whose_condition_is_true_is_taken():
    events = [
        {"amount": 2000.0, "country": "DE"},
        {"amount": 2000.0, "country": "FR"},
        {"amount": 1000.0, "country": "DE"},
        {"amount": 2000.0, "country": "DE", "vip": True},
        {"amount": 2000.0, "country": "FR", "vip": True},
        {"country": "DE"},
        {},
    ]
    assert decided(job(), events, [0.95, 0.7, 0.7, 0.7, 0.6, 0.1, 0.9]) == [
        "decline",
        "review",
        "approve",
        "approve",
        "call",
        "call",
        "decline",
    ]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([1000.0, 1000.0000001])),
            st.sampled_from([None, "DE", "FR", "IT"]),
            st.sampled_from([None, True, False]),
            st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.6, 0.9])),
        ),
        max_size=20,
    )
)
def test_decisions_are_those_of_plain_python(rows):
    def plain(amount, country, vip, score):
        score = np.float32(score)
        if score >= np.float32(0.9):
            return "decline"
        if score > np.float32(0.6) and amount is not None and amount > 1000 and not vip:
            return "review"
        return "call" if country == "FR" or amount is None else "approve"

    events = [{"amount": amount, "country": country, "vip": vip} for amount, country, vip, _ in rows]
    # -1 is what `large` has where `amount` is missing, and where it is -1000.
    expected = ["call" if e == "approve" and r[0] == -1000 else e for r in rows for e in [plain(*r)]]
    assert decided(job(), events, np.array([row[3] for row in rows], np.float32)) == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_a_condition_on_the_score_is_a_threshold(scores):
    """`at_least` without conditions goes another way live, by the thresholds alone."""
    thresholds = [0.9, 0.1, -0.3, -1e30]
    listed = "".join(f"  - {{decision: d{n}, at_least: {least}}}\n" for n, least in enumerate(thresholds))
    plain = job(text=re.sub(r"decisions:\n(.|\n)*", f"decisions:\n{listed}  - {{decision: rest}}\n", TEXT))
    written = job(*(f"score >= {least}" for least in thresholds))
    bucketed = job(*(f"bucket(score, {sorted(thresholds)}) == {number}" for number in (4, 3, 2, 1)))
    assert not plain.has_conditions
    scores = np.array([*scores, *thresholds], np.float32)
    events = [{}] * len(scores)
    decoded = EventDecoder(plain).decode_all([b"{}"] * len(scores))
    steps, names = plain.decision_steps
    live = [names[step] for step in np.searchsorted(np.array(steps, np.float32), scores, side="right")]
    offline = Decider(plain, lands(), CATEGORIES).decide(decoded, scores)
    assert live == decided(bucketed, events, scores)
    assert live == decided(written, events, scores) == [plain.decisions[number].decision for number in offline]


def test_a_score_in_a_list_is_compared_as_a_score_is():
    assert decided(job("score in [0.6, -0.7]"), [{}] * 3, [0.6, -0.7, 0.5]) == ["d0", "d0", "rest"]
    assert decided(job("score not in [0.6]"), [{}] * 2, [0.6, 0.5]) == ["rest", "d0"]


def test_classes_by_name():
    given_job = job(
        'label == "dog" and score > 0.8',
        'score.cat > 0.4 and label != "cat"',
        'label in ["New York"]',
        'score("New York") >= score.dog',
        more=CLASSES,
    )
    scores = [[0.05, 0.9, 0.05], [0.45, 0.5, 0.05], [0.1, 0.4, 0.5], [0.4, 0.3, 0.3], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]
    assert decided(given_job, [{}] * 6, scores) == ["d0", "d1", "d2", "d3", "rest", "rest"]


def test_two_classes_of_one_probability():
    given_job = job(
        'label == "bad" and score > 0.8', "score.good > 0.9", 'label == "bad"', more="classes: [good, bad]\n"
    )
    assert decided(given_job, [{}] * 4, [0.9, 0.05, 0.6, 0.5]) == ["d0", "d1", "d2", "rest"]


def test_thresholds_of_the_highest_score():
    text = re.sub(r"  - \{decision: (review|call).*\n", "", TEXT) + CLASSES
    assert decided(job(text=text), [{}] * 2, [[0.95, 0.01, 0.04], [0.5, 0.4, 0.1]]) == ["decline", "approve"]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("score > 0.5 and amuont > 3", "there is no event field or earlier feature `amuont`, did you mean `amount`?"),
        ("score", "the value is a number, a condition is true or false: compare it"),
        ("score > -amuont", "there is no event field or earlier feature `amuont`, did you mean `amount`?"),
        ("label == 'cat'", "`label` is one of the model's classes: name them with `classes`"),
        ("score.cat > 1", "there is no class `cat` in `classes`"),
        ("category(country) == 1", "`category` can only be used in a feature"),
        ("__import__('os')", "there is no function `__import__`"),
        ("score.__class__ == 1", "there is no class `__class__` in `classes`"),
        ("score(amount) > 1", '`score(amount)`: `score` takes the name of a class, as in `score("cat")`'),
    ],
)
def test_a_condition_that_cannot_be_used(condition, said):
    assert problems(condition) == [said]


def test_a_class_that_is_not_there():
    assert problems('label == "cta"', "score.dgo > 1", 'label not in ["Rome"]', more=CLASSES) == [
        "there is no class `cta` in `classes`, did you mean `cat`?",
        "there is no class `dgo` in `classes`, did you mean `dog`?",
        "there is no class `Rome` in `classes`",
    ]


def test_what_a_list_of_decisions_cannot_be():
    assert problems(text=TEXT.replace("at_least: 0.9", "at_least: 0.9, when: vip")) == [
        "`at_least` and `when` are two conditions: write `when: score >= 0.9 and …`"
    ]
    assert problems(text=TEXT.replace("decision: approve", "decision: approve, when: vip")) == [
        "the last decision is for all the rest: leave its `when` out"
    ]
    assert problems(text=TEXT.replace(", at_least: 0.9", "")) == [
        "only the last decision, for all lower scores, can be without `at_least`, or `when`"
    ]
    assert problems(text=TEXT.replace("country: string?", "country: string?, score: float")) == [
        "`score` is the model's here, and an event field as well: give that another name"
    ]
    assert "`classes`: a class is here twice" in problems(more="classes: [a, b, a]\n")


def test_conditions_are_bounded_together():
    many = [" or ".join(["vip"] * 550)] * 20
    (problem,) = problems(*many)
    assert "come to more than 30,000 operations" in problem


def test_classes_that_are_numbers_are_their_texts():
    assert job('label == "1"', more="classes: [0, 1, 2]\n").classes == ("0", "1", "2")
    # What is wrong is told once, and nothing of what would follow from it.
    told = "`classes[2]`: it must be a text, not `true`"
    assert problems('label == "1"', "score.x > 1", more="classes: [0, true]\n") == [told]
    assert problems(more="classes: [a]\n") == ["`classes`: it needs 2 at least"]


def model(classes, rows=200, **parameters):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"amount": generator.normal(1000, 500, rows), "country": generator.integers(0, 2, rows)})
    frame["large"] = frame["amount"] / 1000
    target = generator.integers(0, classes, rows)
    made = xgb.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1, **parameters)
    booster = made.fit(frame, target).get_booster()
    given_job = job()
    history = pd.DataFrame({"amount": [1.0, 2.0], "country": ["DE", "FR"], "vip": [None, None]})
    matrix = offline_matrix(given_job, history, {"land": pd.DataFrame({"country": ["FR"], "risk": [0.5]})})
    matrix.attach(booster)
    return booster


@pytest.mark.parametrize(
    ("classes", "more", "said", "objective"),
    [
        (3, "", "`decisions` compare one score with thresholds, the model gives 3 scores per event", ""),
        (3, TWO, "the job names 2 `classes`, the model (multi:softprob) gives 3 scores per event", ""),
        (2, CLASSES, "the job names 3 `classes`, the model (binary:logistic) gives one score per event", ""),
        (3, TWO, "the job names 2 `classes`, the model has 3", "multi:softmax"),
        (3, CLASSES, "a decision needs the score of a class (`score.NAME`), the model only says", "multi:softmax"),
    ],
)
def test_classes_are_those_of_the_model(classes, more, said, objective):
    parameters = {"objective": objective} if objective else {}
    version, _ = loaded_from(model(classes, **parameters), "shop")
    conditions = ["score.cat > 0.1"] if more == CLASSES else []
    with pytest.raises(ModelMismatchError, match=re.escape(said)):
        check_fit(job(*conditions, more=more), version)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("classes", "objective", "names"),
    [
        (2, "binary:logistic", ["good", "bad"]),
        (3, "multi:softprob", ["cat", "dog", "New York"]),
        (3, "multi:softmax", ["cat", "dog", "New York"]),
        (2, "multi:softmax", ["good", "bad"]),
    ],
)
def test_results_name_the_class(fast, classes, objective, names, monkeypatch):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    parameters = {"num_class": classes} if objective.startswith("multi") else {}
    booster = model(classes, objective=objective, **parameters)
    version, loaded = loaded_from(booster, "shop")
    history = pd.DataFrame({"amount": np.linspace(0, 2000, 50), "country": ["DE", "FR"] * 25, "vip": [None] * 50})
    lookups = {"land": pd.DataFrame({"country": ["FR"], "risk": [0.5]})}
    for decides in (False, True):
        text = TEXT if decides else TEXT.partition("decisions")[0]
        given_job = job(*[f"label == {names[1]!r}"] * decides, text=text, more=f"classes: {json.dumps(names)}\n")
        check_fit(given_job, version)
        offline = offline_matrix(given_job, history, lookups, version.categories, score=loaded.predict)
        plan = FeaturePlan(given_job, lands(), version.categories)
        assert (plan.decider is not None) == decides
        events = EventDecoder(given_job).decode_all([json.dumps(row).encode() for row in history.to_dict("records")])
        scores = loaded.predict(plan.matrix(events))
        decisions = plan.decider.decide(events, scores) if decides else None
        texts = ResultEncoder(given_job, 1).encode(events, scores, [0] * 50, [0] * 50, version, decisions)
        live = [json.loads(each) for each in texts]
        expected = [names[n] for n in (scores.argmax(axis=1) if scores.ndim > 1 else scores.round().astype(int))]

        assert [each["label"] for each in live] == expected == offline.kept["label"].tolist()
        assert len(set(expected)) > 1
        if decides:
            taken = ["d0" if label == names[1] else "rest" for label in expected]
            assert [each["decision"] for each in live] == taken == offline.kept["decision"].tolist()


@pytest.mark.parametrize(("classes", "more"), [(2, ""), (2, "classes: [good, bad]\n"), (3, CLASSES)])
def test_a_history_is_decided_on_as_the_stream(classes, more):
    generator = np.random.default_rng(1)
    version, loaded = loaded_from(model(classes), "shop")
    second = 'label == "dog" or score > 0.55' if classes == 3 else "score > 0.55 and amount > 1000"
    given_job = job(second, "land.risk == 0.5 and score > 0.4", more=more)
    check_fit(given_job, version)
    history = pd.DataFrame(
        {
            "amount": generator.normal(1000, 500, 300),
            "country": generator.choice(["DE", "FR", "IT"], 300),
            "vip": generator.choice([True, False], 300),
        }
    )
    table = pd.DataFrame({"country": ["FR"], "risk": [0.5]})
    offline = offline_matrix(
        given_job, history, {"land": table}, version.categories, keep=["vip"], score=loaded.predict
    )
    events = EventDecoder(given_job).decode_all([json.dumps(row).encode() for row in history.to_dict("records")])
    plan = FeaturePlan(given_job, lands(), version.categories)
    scores = loaded.predict(plan.matrix(events))
    encoder, count = ResultEncoder(given_job, 1), len(history)
    texts = encoder.encode(events, scores, [0] * count, [0] * count, version, plan.decider.decide(events, scores))
    live = [json.loads(text) for text in texts]

    assert offline.kept["decision"].tolist() == [result["decision"] for result in live]
    assert len(set(offline.kept["decision"])) == 3
    columns = ["score"] if classes == 2 else ["score.cat", "score.dog", "score.New York"]
    assert list(offline.kept.columns) == ["vip", *columns, *["label"] * bool(more), "decision"]
    expected = np.array([result["score"] for result in live], np.float32).reshape(count, -1)
    assert offline.kept[columns].to_numpy().tobytes() == expected.tobytes()


def test_a_job_survives_the_grid():
    for given_job in (job(), job('label == "cat"', more=CLASSES)):
        assert Job.from_json(json.loads(json.dumps(given_job.to_json()))) == given_job


def test_a_job_without_conditions_has_no_second_program():
    plain = job(text=re.sub(r"  - \{decision: (review|call).*\n", "", TEXT))
    assert FeaturePlan(plain, lands(), CATEGORIES).decider is None
