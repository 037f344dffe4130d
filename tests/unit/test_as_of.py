"""Lookups as of the time of an event: a history sees what was valid then, and live the newest entry."""

# ruff: noqa: E501 -- messages are compared as a person reads them, in one line

from __future__ import annotations

import datetime as dt
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.cli.load import _tables
from gridscore.errors import JobFileError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, definitions_of, offline_matrix
from gridscore.job import Job, parse_job

TEXT = """\
job: shop
events: events.shop
model: shop
results: results.shop
order_by: at
schema: {who: string, at: timestamp}
lookups:
  customer:
    map: customers
    key: who
    fields: {limit: float, since: timestamp, until: {type: timestamp, unit: s, optional: true}}
    valid_from: since
    valid_to: until
features:
  limit: {expression: customer.limit, default: -1}
  known_for: epoch(at) - epoch(customer.since)
"""
JOB = parse_job(TEXT, "job.yaml")
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def at(second):
    return (EPOCH + dt.timedelta(seconds=second)).isoformat()


def table(rows):
    """Rows of (who, limit, since, until)."""
    frame = pd.DataFrame(rows, columns=["who", "limit", "since", "until"], dtype=object)
    base = EPOCH.timestamp()
    return frame.assign(since=frame["since"].map(at), until=[None if u is None else base + u for u in frame["until"]])


def history(events):
    return pd.DataFrame([(who, at(second)) for who, second in events], columns=["who", "at"], dtype=object)


def limits(events, rows, job=JOB):
    return offline_matrix(job, history(events), {"customer": table(rows)})


whos = st.sampled_from("ab")
seconds = st.integers(0, 12)


@given(
    st.lists(st.tuples(whos, seconds), min_size=1, max_size=10),
    st.lists(st.tuples(whos, st.integers(0, 99), seconds, st.none() | seconds), max_size=10),
)
def test_an_event_gets_what_was_valid_at_its_time(events, rows):
    expected = []
    for who, second in events:
        # Sorting keeps the order of rows of the same time, so the last of them is the newest.
        known = sorted((row for row in rows if row[0] == who and row[2] <= second), key=lambda row: row[2])
        _, limit, since, until = known[-1] if known else (None, -1, math.nan, None)
        is_over = until is not None and until <= second
        expected.append([-1, math.nan] if is_over else [limit, second - since])
    matrix = limits(events, rows)
    np.testing.assert_array_equal(np.asarray(matrix.values), np.array(expected, np.float32))
    missed = sum(math.isnan(age) for _, age in expected)
    assert matrix.looked_up["customer"] == {"entries": len(rows), "bad": 0, "events": len(events), "missed": missed}


@given(
    st.lists(st.tuples(whos, seconds), min_size=1, max_size=10),
    st.lists(st.tuples(whos, st.integers(0, 99), seconds), max_size=10, unique_by=lambda row: (row[0], row[2])),
)
def test_it_is_what_merge_asof_of_pandas_gives(events, rows):
    left = history(events).assign(at=lambda f: pd.to_datetime(f["at"], format="ISO8601"), n=range(len(events)))
    right = table([(*row, None) for row in rows]).drop(columns="until")
    right = right.assign(
        since=pd.to_datetime(right["since"], format="ISO8601", utc=True), limit=right["limit"].astype(float)
    )
    left, right = (
        frame.assign(**{key: frame[key].astype("datetime64[us, UTC]")}).sort_values(key, kind="stable")
        for frame, key in ((left, "at"), (right, "since"))
    )
    joined = pd.merge_asof(left, right, left_on="at", right_on="since", by="who").sort_values("n")
    found = np.asarray(limits(events, [(*row, None) for row in rows]).values)[:, 0]
    np.testing.assert_array_equal(found, joined["limit"].fillna(-1).to_numpy(np.float32))


def test_live_the_newest_entry_is_used_until_it_ends():
    entries = LookupTable(JOB.lookups["customer"])
    newest = {"limit": 5, "since": at(10), "until": EPOCH.timestamp() + 20}
    entries.put("a", json.dumps(newest))
    plan, decoder = FeaturePlan(JOB, {"customer": entries}, {}), EventDecoder(JOB)
    events = [("a", 5), ("a", 15), ("a", 19.999), ("a", 20), ("b", 15)]
    payloads = [json.dumps({"who": who, "at": at(second)}).encode() for who, second in events]
    found = plan.matrix(decoder.decode_all(payloads))
    assert found[:, 0].tolist() == [5, 5, 5, -1, -1]
    assert plan.missed == {"customer": 2}
    entries.put("a", json.dumps({**newest, "until": None}))
    assert plan.matrix(decoder.decode_all(payloads))[:, 0].tolist() == [5, 5, 5, 5, -1]
    # From the newest entry on, a history gives the same bits.
    rows = [("a", 9, 0, None), ("a", 5, 10, 20)]
    assert np.asarray(limits(events[1:], rows).values).tobytes() == found[1:].tobytes()


def test_bad_rows_are_counted_and_harm_no_other():
    rows = table([("a", 1, 0, None), ("a", 2, 5, None), ("a", 3, 6, None)])
    rows.loc[1, "limit"] = "much"
    rows.loc[2, "since"] = None
    found = offline_matrix(JOB, history([("a", 7)]), {"customer": rows})
    assert np.asarray(found.values)[0, 0] == 1
    assert found.looked_up["customer"]["bad"] == 2


def test_what_is_in_force_now_is_loaded(tmp_path):
    (tmp_path / "job.yaml").write_text(TEXT)
    year = 365 * 86_400
    rows = [("a", 1, 5, None), ("a", 2, 9, 12), ("a", 3, 7, None), ("b", 4, 0, None), ("c", 5, 900 * year, None)]
    table([*rows, ("a", 6, 900 * year, None)]).to_csv(tmp_path / "customer.csv", index=False)
    ((name, total, entries),) = _tables(JOB, tmp_path, None, None)
    assert (name, total) == ("customers", 6)
    assert {key: json.loads(row)["limit"] for key, row in entries} == {"a": 2, "b": 4}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("order_by: at\n", "", "lookup `customer`: valid_from: it needs the time of an event: name its field with `order_by`"),
        ("since: timestamp", "since: timestamp?", "`valid_from: since` must be one of the `fields`, a timestamp, without `?`"),
        ("valid_from: since", "valid_from: sinse", "`valid_from: sinse` must be one of the `fields`, a timestamp, without `?`"),
        ("valid_to: until", "valid_to: limit", "`valid_to: limit` must be one of the `fields`, a timestamp"),
        ("    valid_from: since\n", "", "`valid_to` needs `valid_from`"),
    ],
)  # fmt: skip
def test_what_as_of_needs(old, new, said):
    with pytest.raises(JobFileError) as caught:
        parse_job(TEXT.replace(old, new), "job.yaml")
    assert said in caught.value.message


def test_a_model_knows_when_entries_end_and_not_from_when_they_are_valid():
    assert definitions_of(JOB).lookups == {"customer": "who, until until"}
    assert definitions_of(JOB).fields["customer.until"] == "timestamp, unit s"
    without = parse_job(TEXT.replace("    valid_to: until\n", ""), "job.yaml")
    undated = parse_job(
        TEXT.replace("    valid_to: until\n", "").replace("    valid_from: since\n", "").replace("order_by: at\n", ""),
        "job.yaml",
    )
    assert definitions_of(without) == definitions_of(undated)
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB


def test_lookups_that_may_leak_are_named(tmp_path):
    undated = TEXT.replace("    valid_to: until\n", "").replace("    valid_from: since\n", "")
    history([("a", 7)]).to_csv(tmp_path / "history.csv", index=False)
    table([("a", 1, 0, None)]).to_csv(tmp_path / "customer.csv", index=False)
    file, out = tmp_path / "job.yaml", tmp_path / "matrix.parquet"
    make = ["features", str(file), str(tmp_path / "history.csv"), "--lookups", str(tmp_path), "-o", str(out)]
    for text, leaking in ((TEXT, []), (undated, ["customer"])):
        file.write_text(text)
        for words in (["job", "check", str(file)], make):
            done = CliRunner().invoke(_commands(), words)
            assert done.exit_code == 0, done.output
            said = "Training joins the lookup `customer` as of today" in " ".join(done.stderr.split())
            assert said == bool(leaking)
            as_json = CliRunner().invoke(_commands(), [*words, "--json"])
            assert json.loads(as_json.stdout)["may_leak"] == leaking
