"""Features that results repeat: the bits that the model got, with no more decimals than these need."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gridscore.errors import JobFileError
from gridscore.features import EventDecoder, FeaturePlan
from gridscore.job import Job, parse_job
from gridscore.models.version import ModelVersion
from gridscore.scoring import results

TEXT = """\
job: shop
events: events.shop
model: shop
results: results.shop
schema: {amount: float?, limit: float}
features:
  amount: amount
  share % \\ of: amount / limit
  large: {expression: amount > 3, default: 0}
result: {include: [limit], features: all}
"""


def encoded(text, events):
    """Results of these events, each `features` with what the model got."""
    job = parse_job(text, "job.yaml")
    decoded = EventDecoder(job).decode_all([json.dumps(event).encode() for event in events])
    matrix = FeaturePlan(job, {}, {}).matrix(decoded)
    version = ModelVersion(
        name="shop",
        version=1,
        sha256="0" * 64,
        size=1,
        chunks=1,
        features=job.feature_names,
        objective="reg:squarederror",
        trees=1,
        rounds=1,
        xgboost_version="3.2.0",
        created_at="",
    )
    count = len(events)
    zeros = np.zeros(count, np.float32)
    texts = results.ResultEncoder(job, 1).encode(decoded, zeros, [0] * count, [0] * count, version, None, matrix)
    return [json.loads(each) for each in texts], matrix


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@example([0.1, 7.038531e-26, 16777216.0, 1e-45, 3.4028235e38, -0.0, 0.0, float("inf"), float("nan"), 1 / 3])
def test_a_number_keeps_its_bits(values):
    numbers = np.array(values, np.float32)
    texts = msgspec.json.encode(results.as_short(numbers[np.isfinite(numbers)]).tolist())
    back = np.array(json.loads(texts), np.float64).astype(np.float32)
    assert back.tobytes() == numbers[np.isfinite(numbers)].tobytes()
    assert np.array_equal(results.as_short(numbers).astype(np.float32), numbers, equal_nan=True)


@given(st.integers(-9_999, 9_999), st.integers(0, 4))
def test_it_has_no_more_decimals_than_it_was_written_with(digits, decimals):
    number = digits / 10**decimals
    assert results.as_short(np.array([number], np.float32))[0] == number


@pytest.mark.parametrize("fast", [True, False])
def test_results_repeat_what_the_model_got(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    events = [{"amount": 1.1, "limit": 3}, {"amount": None, "limit": 7}, {"amount": 5, "limit": 0}]
    found, matrix = encoded(TEXT, events)
    names = ["amount", "share % \\ of", "large"]
    assert [list(each["features"]) for each in found] == [names] * 3
    served = np.array([[each["features"][name] for name in names] for each in found], np.float32)
    assert np.array_equal(served, matrix, equal_nan=True)
    assert found[0]["features"]["amount"] == 1.1
    assert found[1]["features"] == {"amount": None, "share % \\ of": None, "large": 0}
    assert [each["limit"] for each in found] == [3, 7, 0]
    some, _ = encoded(TEXT.replace("features: all", "features: [large, amount]"), events)
    assert list(some[0]["features"].items()) == [("large", 0), ("amount", 1.1)]
    none, _ = encoded(TEXT.replace(", features: all", ""), events)
    assert "features" not in none[0]


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("[lrage]", "line 10: `result.features[1]`: there is no feature `lrage`, did you mean `large`?"),
        ("[large, large]", "line 10: `result.features[2]`: `large` is here twice"),
        ("some", "`result.features`: "),
    ],
)
def test_features_that_a_result_cannot_repeat(listed, said):
    with pytest.raises(JobFileError) as caught:
        parse_job(TEXT.replace("features: all", f"features: {listed}"), "job.yaml")
    assert said in caught.value.message


def test_its_name_is_taken():
    text = TEXT.replace("limit: float", "features: float, limit: float").replace("[limit]", "[features]")
    with pytest.raises(JobFileError, match="`features` is a field of every result already"):
        parse_job(text, "job.yaml")
    parse_job(text.replace(", features: all", ""), "job.yaml")


def test_a_job_survives_the_grid():
    job = parse_job(TEXT, "job.yaml")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert job.served_features == job.feature_names
