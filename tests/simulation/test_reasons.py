"""Reasons of results: what they say, and that they never overwrite anything, delay anything, or change a score."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import xgboost as xgb
from world import BOOSTER, JOB, World, _entries, _text, score_of

from gridscore.errors import JobFileError
from gridscore.job import parse_job
from gridscore.scoring.reasons import Reasons

REASONS = """\
decisions: [{decision: decline, at_least: 1500}, {decision: approve}]
result:
  reasons: {decisions: [decline], when: amount != 700, top: 1, text: {amount: "It was {value}"}}
"""


def job(reasons):
    return JOB + f"result: {{reasons: {reasons}}}\n"


def results(world):
    return {_text(key): json.loads(_text(value)) for key, value in _entries(world.cluster, "results.sim")}


def contributions(amount):
    row = np.array([[amount, np.log1p(amount)]], dtype=np.float32)
    matrix = xgb.DMatrix(row, feature_names=["amount", "log_amount"])
    found = BOOSTER.predict(matrix, pred_contribs=True)[0][:2]
    return sorted(zip(("amount", "log_amount"), found.tolist(), strict=True), key=lambda each: -abs(each[1]))


@pytest.fixture
def world(request):
    world = World(job=request.param)
    yield world
    world.close()


def explained(world):
    return sum(each["amended_at"] > 0 for each in results(world).values() if "amended_at" in each)


@pytest.mark.parametrize("world", [JOB + REASONS], indirect=True)
def test_declined_results_get_the_reasons_that_xgboost_gives_and_others_none(world):
    events = {f"e{number}": 20.0 * number for number in range(50)}
    world.start()
    world.put(events)
    declined = {key for key, amount in events.items() if score_of(amount) >= 1500 and amount != 700.0}
    assert 5 < len(declined) < 49
    assert world.time.run_until(lambda: explained(world) == len(declined), seconds=30.0)
    world.settle()
    for key, result in results(world).items():
        assert result["score"] == score_of(events[key])
        assert ("reasons" in result) == (key in declined)
        if key in declined:
            name, adds = contributions(events[key])[0]
            (reason,) = result["reasons"]
            assert (reason["feature"], reason["adds"]) == (name, pytest.approx(adds, rel=1e-6, abs=1e-5))
            if name == "amount":
                assert reason["value"] == events[key]
                assert reason["text"] == f"It was {events[key]:g}"
    world.check()


@pytest.mark.parametrize(
    ("number", "value", "text"),
    [
        (1234567.89, 1234567.9, "1234567.9"),
        (19.9, 19.9, "19.9"),
        (3.0, 3.0, "3"),
        (np.nan, None, "missing"),
        (1.0, "FR", "FR"),
        (-3.0, None, "missing"),  # defaults of a category
        (2.0, None, "missing"),
    ],
)
def test_the_value_of_a_reason_is_that_of_the_feature(number, value, text):
    categories = {"x": ("DE", "FR")} if value == "FR" or (value is None and not math.isnan(number)) else {}
    version = SimpleNamespace(features=("x",), categories=categories)
    row = SimpleNamespace(model=SimpleNamespace(version=version), row=np.float32([number]), text=b'{"score":1.0}')
    spec = parse_job(job('{top: 1, text: {amount: "{value}"}}'), "test").result.reasons
    spec = spec.model_copy(update={"text": {"x": "It was {value}"}})
    made = json.loads(Reasons._amended(SimpleNamespace(_spec=spec), row, np.float32([0.5, 0.0])))
    assert made["reasons"] == [{"feature": "x", "value": value, "adds": 0.5, "text": f"It was {text}"}]


@pytest.mark.parametrize("world", [job("{budget: 0.001, top: 1}")], indirect=True)
def test_a_newer_result_is_never_overwritten_by_an_older_one_with_reasons(world, monkeypatch):
    world.start()
    world.settle()
    # The first few take their budget; what comes under their keys meanwhile is not what was computed.
    from gridscore.scoring import reasons

    compute = reasons._contributions
    monkeypatch.setattr(reasons, "_contributions", lambda rows: (compute(rows)[0], 0.05))
    old = {f"e{number}": 10.0 + number for number in range(100)}
    world.put(old)
    world.time.advance(2.0)
    before = explained(world)
    assert 0 < before < 100
    new = dict.fromkeys(old, 333.0)
    world.put(new)
    world.time.advance(400.0)
    for key, result in results(world).items():
        assert result["score"] == score_of(new[key])
        assert result.get("reasons", [{"value": 333.0}])[0]["value"] in {333.0, float(np.log1p(np.float32(333.0)))}
    world.check()


@pytest.mark.parametrize("world", [job("{share: 0.5}")], indirect=True)
def test_a_sample_is_drawn_and_workers_that_die_leave_nothing_wrong(world):
    names = [world.start() for _ in range(3)]
    world.settle()
    events = {}
    for step in range(6):
        more = {f"e{step}-{number}": 7.0 * number + step for number in range(60)}
        events |= more
        world.put(more)
        world.time.advance(0.4)
        if step == 3:
            world.kill(names[0])
    world.settle()
    world.time.advance(60.0)
    found = results(world)
    assert found.keys() == events.keys()
    drawn = [key for key, result in found.items() if "reasons" in result]
    assert 90 < len(drawn) < 230
    for key, result in found.items():
        assert result["score"] == score_of(events[key])
        if "reasons" in result:
            assert [each["feature"] for each in result["reasons"]] == [name for name, _ in contributions(events[key])]
    world.check()


@pytest.mark.parametrize(
    ("reasons", "message"),
    [
        ("{decisions: [declin]}", "there is no decision `declin`"),
        ("{when: amount}", "`when`: the value is a number"),
        ("{when: amoun > 1}", "there is no"),
        ("{text: {amont: x}}", "there is no feature `amont`, did you mean `amount`"),
        ("{share: 0}", "share"),
        ("{budget: 2}", "budget"),
        ("{top: 0}", "top"),
        ("{why: 1}", "why"),
    ],
)
def test_reasons_that_cannot_be_given_are_refused(reasons, message):
    with pytest.raises(JobFileError, match=message.replace("[", r"\[")):
        parse_job(job(reasons), "x")


def test_a_result_cannot_include_what_reasons_are_called():
    with pytest.raises(JobFileError, match="cannot include the event field `reasons`"):
        parse_job(
            JOB.replace("{amount: float}", "{amount: float, reasons: string}")
            + "result: {include: [reasons], reasons: {}}\n",
            "x",
        )
