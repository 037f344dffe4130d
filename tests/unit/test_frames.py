"""Tables of pandas as entries, and results as tables: keys and digits are those of the stream."""

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.cli.load import _target
from gridscore.errors import UsageError
from gridscore.job import parse_job
from gridscore.results.frames import entries_of, frame_of
from gridscore.testing import StubCluster

BIG = 4111111111111111111
JOB = parse_job(
    """\
job: s
events: events.s
event_key: user
schema: {user: int, cust: int?, amount: float, at: timestamp}
order_by: at
windows: {user: user}
lookups:
  c: {map: lookups.c, key: cust, fields: {limit: float?}}
features: {amount: amount, limit: c.limit, n: 'count(user, "1h")'}
model: m
results: results.s
result: {include: [cust], features: all}
""",
    "job.yaml",
)
CUSTOMERS = pd.DataFrame({"id": [1, BIG], "limit": [10.0, 30.0]})


def keys(frame, name, key=None, jobs=(JOB,)):
    return [key for key, _ in entries_of(frame, name, key, jobs)]


async def test_tables_are_found_and_results_keep_their_digits():
    values = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    data = xgb.DMatrix(values, values[:, 0] > 0, feature_names=list(JOB.feature_names))
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 2)
    at = pd.Timestamp("2026-01-01T00:00:00Z")
    frame = pd.DataFrame({"user": [7, 7, 8], "cust": pd.array([1, None, BIG], "Int64"), "amount": 1.0, "at": at})
    async with StubCluster(partitions=2) as cluster:
        client = await cluster.client()
        # Lookup maps must be there when the job is submitted, so they are filled before.
        await client.put_events("lookups.c", CUSTOMERS, key="id", job=JOB)
        await client.push_model(booster, "m", alias="champion")
        await client.submit(JOB)
        async with cluster.worker():
            scored = await client.score_frame("events.s", frame, key="user", timeout=20)
            await client.put_events("lookups.c", CUSTOMERS.assign(limit=[11.0, 31.0]), key="id")
            frame.loc[1, "amount"] = np.nan
            again = await client.score_frame("events.s", frame.set_index("user", drop=False), timeout=20)
        with pytest.raises(UsageError, match="does not read `lookups"):
            await client.put_events("lookups.d", CUSTOMERS, key="id", job=JOB)
        with pytest.raises(UsageError, match="`job` says how to read a DataFrame"):
            await client.put_events("lookups.c", {"a": {}}, job=JOB)
    assert [each["limit"] for each in scored["features"]] == [10.0, None, 30.0]
    assert [each["n"] for each in scored["features"]] == [0.0, 1.0, 0.0]  # one after the other, in the table's order
    assert scored["cust"].dtype == "Int64"
    assert scored["cust"].tolist() == [1, pd.NA, BIG]
    assert list(scored.index) == [7, 7, 8]
    assert again["error"].notna().tolist() == [False, True, False]
    assert again["version"].dtype == "Int64"
    assert again["cust"].tolist() == [1, pd.NA, BIG]


def test_whole_numbers_of_results_keep_their_digits():
    rows = [
        {"a": BIG, "b": BIG, "c": 1, "d": True, "e": 2**64, "f": "x", "g": 1.5},
        {"a": None, "b": 0.5, "c": 2, "d": None, "e": None, "f": None, "g": None},
    ]
    frame = frame_of(["k", 7], rows)
    assert frame.columns.tolist() == list("abcdefg")
    assert (frame["a"].tolist(), frame["b"].tolist(), frame["e"].tolist()) == ([BIG, pd.NA], [BIG, 0.5], [2**64, None])
    assert (frame["c"].dtype, frame["g"].dtype) == ("int64", "float64")
    assert frame["d"].tolist() == [True, None]
    assert list(frame.index) == ["k", 7]
    assert frame_of([], []).empty


def test_keys_are_those_that_the_job_asks_for():
    assert keys(CUSTOMERS.rename(columns={"id": "cust"}), "lookups.c") == [1, BIG]
    assert keys(CUSTOMERS, "lookups.c", "id") == [1, BIG]
    with pytest.raises(UsageError, match="whose key has other parts: `cust`"):
        keys(CUSTOMERS, "lookups.c", ["id", "limit"])
    with pytest.raises(UsageError, match="Give --lookup c instead"):
        _target(JOB, "lookups.c", None, ["id"])

    frame = pd.DataFrame({"user": [7, 8], "cust": 1, "amount": 1.0, "at": pd.Timestamp("2026-01-01T00:00:00Z")})
    assert keys(frame.set_index("user", drop=False), "events.s") == [7, 8]  # a RangeIndex to pandas, but with a name
    assert keys(frame.iloc[[0, 1, 0]].set_index(pd.Index([7, 9, 4])), "events.s") == [7, 9, 4]
    with pytest.raises(UsageError, match="only counts them"):
        keys(frame, "events.s")


def test_keys_that_no_job_explains_come_with_a_warning():
    with pytest.warns(UserWarning, match="No job reads `lookups.c` yet, so `id` makes keys that are strings"):
        assert keys(CUSTOMERS, "lookups.c", "id", jobs=()) == ["1", str(BIG)]
    assert keys(CUSTOMERS.astype({"id": str}), "lookups.c", "id", jobs=()) == ["1", str(BIG)]


def test_arrays_of_numpy_are_arrays_also_without_a_job():
    frame = pd.DataFrame({"id": ["a"], "items": [np.array([0.5, np.nan])]})
    assert list(entries_of(frame, "events.x", "id", [])) == [("a", b'{"id":"a","items":[0.5,null]}')]
