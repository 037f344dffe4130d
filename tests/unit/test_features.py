"""Features: decoding events, keys of lookups, and a matrix that does not depend on how events are cut into batches."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore.errors import ModelMismatchError
from gridscore.features import DecodeError, EventDecoder, FeaturePlan, LookupTable, quality
from gridscore.job import Job

JOB = Job.model_validate(
    {
        "job": "test",
        "events": "e",
        "results": "r",
        "model": "m",
        "schema": {
            "a": "float",
            "b": "float?",
            "n": "int",
            "i": "int?",
            "s": "string",
            "q": "string?",
            "f": "bool",
            "g": "bool?",
            "t": "timestamp",
            "u": {"type": "timestamp", "unit": "ms", "optional": True},
            "w": {"type": "timestamp", "unit": "s", "optional": True, "json": "@when"},
        },
        "lookups": {
            "one": {"map": "l1", "key": "s", "fields": {"x": "float?", "name": "string?"}},
            "two": {
                "map": "l2",
                "key": ["q", "t", "n"],
                "separator": "-",
                "fields": {"y": {"type": "float", "default": 7}},
            },
            "three": {"map": "l3", "key": "n", "fields": {"z": "float"}},
            "four": {"map": "l4", "key": "a * 2", "fields": {"z": "float"}},
            "five": {"map": "l5", "key": "lower(s)", "fields": {"z": "float"}},
        },
        "features": {
            "exp": "exp(a)",
            "log": "log(abs(a)) + log1p(abs(b)) + log10(abs(a) + 1)",
            "power": "a ** b",
            "square": "a ** 2 + abs(b) ** 0.5",
            "tower": "a ** (n % 5)",
            "angles": "sin(a) + cos(b) + tan(a) + atan2(a, b)",
            "back": "asin(a / 100) + acos(b / 100) + atan(a) + hypot(a, b)",
            "rest": "a // 3 + b % 7 + expm1(b / 10) + log2(abs(b))",
            "flags": "f and g or a > b",
            "g": "g",
            "i": {"expression": "i", "default": -1},
            "text": 'len(s + coalesce(q, "")) + (lower(s) == "ab")',
            "c": "category(s)",
            "d": "category(i)",
            "hour": 'hour(t, "America/New_York") + minute(u)',
            "age": "t - w",
            "x": "one.x",
            "y": "two.y",
            "z": "three.z + four.z + five.z",
            "name": 'one.name == "n"',
        },
    }
)
CATEGORIES = {"c": ["ab", "AB", "x"], "d": ["1", "2"]}


def tables() -> dict[str, LookupTable]:
    found = {name: LookupTable(lookup) for name, lookup in JOB.lookups.items()}
    found["one"].put("ab", '{"x": 2.5, "name": "n"}')
    found["two"].put("q-2020-01-01T00:00:00Z-3", '{"y": 1}')
    for key in range(5):
        found["three"].put(key, json.dumps({"z": key}))
        found["four"].put(key, json.dumps({"z": key}))
    found["five"].put("ab", '{"z": 100}')
    return found


EVENT = {
    "a": 1.5,
    "b": -2.0,
    "n": 3,
    "i": None,
    "s": "AB",
    "q": "q",
    "f": True,
    "g": None,
    "t": "2020-01-01T00:00:00Z",
    "u": 1_577_836_800_000,
    "@when": 1_577_836_799,
}
floats = st.floats(-1e3, 1e3) | st.sampled_from([0.0, -0.0, 1.0, 2.0, 1e300])
events = st.fixed_dictionaries(
    {
        "a": floats,
        "b": st.none() | floats,
        "n": st.integers(0, 6),
        "i": st.none() | st.integers(-3, 3),
        "s": st.sampled_from(["ab", "AB", "x", "é", ""]),
        "q": st.none() | st.sampled_from(["q", "r"]),
        "f": st.booleans(),
        "g": st.none() | st.booleans(),
        "t": st.datetimes(dt.datetime(2019, 1, 1), dt.datetime(2021, 1, 1)).map(lambda t: t.isoformat() + "Z"),  # noqa: DTZ001
        "u": st.none() | st.integers(0, 2**41),
        "@when": st.none() | st.integers(0, 2**31),
    }
)


def decoded(values: list[dict[str, object]]) -> list[object]:
    return EventDecoder(JOB).decode_all([json.dumps(value).encode() for value in values])


def bits(matrix: np.ndarray) -> np.ndarray:
    return matrix.view(np.uint32)


# ---------------------------------------------------------------------- decoding


def test_an_event_is_typed_and_unknown_fields_are_ignored():
    event = EventDecoder(JOB).decode(json.dumps({**EVENT, "more": {"x": [1]}}).encode())
    assert (event.a, event.i, event.s, event.w) == (1.5, None, "AB", 1_577_836_799)
    assert event.t == dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def test_an_int_is_a_float_but_a_float_no_int():
    assert EventDecoder(JOB).decode(json.dumps({**EVENT, "a": 1}).encode()).a == 1.0
    with pytest.raises(DecodeError, match="field `n`: expected a whole number, got a number"):
        EventDecoder(JOB).decode(json.dumps({**EVENT, "n": 1.0}).encode())


def test_what_may_be_absent_may_be_absent():
    event = EventDecoder(JOB).decode(json.dumps({k: v for k, v in EVENT.items() if k not in {"b", "i", "g"}}).encode())
    assert (event.b, event.i, event.g) == (None, None, None)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not JSON: input data was truncated"),
        (b"hello", "not JSON: invalid character (byte 0)"),
        (b"\xff\xfe", "not JSON: invalid character (byte 0)"),
        (b"[]", "expected an object, got a list"),
        (b"null", "expected an object, got null"),
        (b"{}", "the field `a` is missing"),
        (b'{"a":' * 100_000, "field `a`: expected a number, got an object"),
        (b'{"zz":' * 100_000, "not JSON that can be read: nested too deeply"),
        ({"a": "1"}, "field `a`: expected a number, got a string"),
        ({"a": True}, "field `a`: expected a number, got true or false"),
        ({"b": []}, "field `b`: expected a number or null, got a list"),
        ({"n": 2**63}, "field `n`: expected `int` <= 9223372036854775807"),
        ({"s": None}, "field `s`: expected a string, got null"),
        ({"t": "2020-01-01T00:00:00"}, "field `t`: expected `datetime` with a timezone component"),
        ({"t": "yesterday"}, "field `t`: invalid RFC3339 encoded datetime"),
        ({"t": 5}, "field `t`: expected a time (RFC 3339), got a whole number"),
        ({"@when": "x"}, "field `@when`: expected a number or null, got a string"),
        (json.dumps(EVENT).encode() + b"x", "not JSON: trailing characters"),
        (json.dumps(EVENT).encode().replace(b"AB", b"A\xff"), "not UTF-8 text"),
    ],
)
def test_an_event_that_breaks_the_schema_says_why(payload, reason):
    if isinstance(payload, dict):
        payload = json.dumps({**EVENT, **payload}).encode()
    with pytest.raises(DecodeError) as caught:
        EventDecoder(JOB).decode(payload)
    assert reason in caught.value.message
    with pytest.raises(DecodeError):
        EventDecoder(JOB).decode_all([json.dumps(EVENT).encode(), payload])


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_can_break_the_decoder(payload):
    with contextlib.suppress(DecodeError):
        EventDecoder(JOB).decode(payload)


# ---------------------------------------------------------------------- matrix


def test_keys_are_what_the_grid_has():
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    found = plan.keys(decoded([EVENT, {**EVENT, "q": None, "a": 0.3}]))
    assert found == {
        "one": ["AB", "AB"],
        "two": ["q-2020-01-01T00:00:00Z-3", None],
        "three": [3, 3],
        "four": [3, None],
        "five": ["ab", "ab"],
    }
    assert [type(found[name][0]) for name in found] == [str, str, int, int, str]
    assert plan.keys([]) == {name: [] for name in JOB.lookups}


def test_a_key_keeps_whole_numbers_that_no_float_holds():
    assert FeaturePlan(JOB, tables(), CATEGORIES).keys(decoded([{**EVENT, "n": 2**53 + 1}]))["three"] == [2**53 + 1]


def test_a_lookup_that_no_feature_uses_needs_no_entries():
    job = Job.from_json({**JOB.to_json(), "features": {"a": {"expression": "a"}}})
    assert FeaturePlan(job, tables(), {}).keys(decoded([EVENT]))["one"] == [None]


def test_the_matrix_is_float32_in_c_order():
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    for count in (0, 1, 2, 5):
        matrix = plan.matrix(decoded([EVENT] * count))
        assert matrix.shape == (count, len(JOB.features))
        assert matrix.dtype == np.float32
        assert matrix.flags.c_contiguous
    row = dict(zip(plan.names, plan.matrix(decoded([EVENT]))[0].tolist(), strict=True))
    assert row["y"] == 1
    assert row["z"] == 106
    assert row["age"] == 1
    assert row["c"] == 1
    assert row["text"] == 4
    # XGBoost refuses to train on infinity, and takes a NaN as missing.
    assert np.isnan(plan.matrix(decoded([{**EVENT, "a": 1e300}]))[0, [0, 3]]).all()


def test_missed_look_ups_are_counted_by_event():
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    plan.matrix(decoded([EVENT]))
    plan.matrix(decoded([EVENT, {**EVENT, "s": "ab"}]))
    assert plan.looked_up["one"] == 3
    assert plan.missed["one"] == 2


def test_entries_that_come_later_are_seen():
    filled = tables()
    plan = FeaturePlan(JOB, filled, CATEGORIES)
    for key in range(3_000):
        filled["one"].put(f"k{key}", json.dumps({"x": key}))
    assert plan.matrix(decoded([{**EVENT, "s": "k2999"}]))[0, plan.names.index("x")] == 2999


def test_a_model_without_the_categories_is_refused():
    with pytest.raises(ModelMismatchError, match="no categories for the feature `d`"):
        FeaturePlan(JOB, tables(), {"c": []})


@settings(max_examples=150)
@given(values=st.lists(events, min_size=1, max_size=40), data=st.data())
def test_an_event_gets_the_same_bits_in_any_batch(values, data):
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    whole = plan.matrix(decoded(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    edges = [0, *cuts, len(values)]
    parts = [plan.matrix(decoded(values[a:b])) for a, b in pairwise(edges)]
    assert np.array_equal(bits(np.concatenate(parts)), bits(whole))
    alone = np.concatenate([plan.matrix(decoded([value])) for value in values])
    assert np.array_equal(bits(alone), bits(whole))
    assert not np.isinf(whole).any()
    assert set(bits(whole)[np.isnan(whole)].tolist()) <= {0x7FC00000}


def test_large_batches_have_the_same_bits_too():
    random = np.random.default_rng(5)
    a, b, n = random.normal(0, 40, 9_001).tolist(), random.normal(0, 40, 9_001).tolist(), random.integers(0, 9, 9_001)
    values = [
        {**EVENT, "a": x, "b": y, "n": z, "s": "ab" if z % 2 else "x"} for x, y, z in zip(a, b, n.tolist(), strict=True)
    ]
    plan, all_events = FeaturePlan(JOB, tables(), CATEGORIES), decoded(values)
    whole = plan.matrix(all_events)
    for size in (1, 7, 1_024, 8_192):
        parts = [plan.matrix(all_events[start : start + size]) for start in range(0, len(all_events), size)]
        assert np.array_equal(bits(np.concatenate(parts)), bits(whole)), size


def test_a_worker_does_without_pandas():
    script = (
        "import sys, gridscore.features, gridscore.job; sys.exit('pandas' in sys.modules or 'pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False).returncode == 0


def test_what_events_lack_is_counted():
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    plan.matrix(decoded([{**EVENT, "s": "new", "i": 3}]))
    plan.matrix(decoded([EVENT, {**EVENT, "s": "ab", "i": 1}, {**EVENT, "b": None}]))

    counted = plan.quality.to_json()
    assert counted["events"] == 4
    assert counted["unseen"] == {"c": 1, "d": 1}
    assert counted["misses"]["one"] == 3
    assert "three" not in counted["misses"]
    assert counted["missing"]["log"] == 1
    assert counted["missing"]["g"] == 4
    assert counted["missing"]["d"] == 3  # unseen, or not there
    assert "i" not in counted["missing"]  # it has a default


def test_what_events_lack_is_of_a_sample_and_of_the_last_events():
    plan = FeaturePlan(JOB, tables(), CATEGORIES)
    one, many = decoded([{**EVENT, "s": "new"}]), decoded([EVENT] * 400)
    for _ in range(1_000):
        plan.matrix(one)
    assert plan.quality.to_json()["events"] == quality.FIRST + (1_000 - quality.FIRST) // quality.EVERY
    for _ in range(100 * quality.EVERY):
        plan.matrix(many)
    counted = plan.quality.to_json()
    assert quality.WINDOW < counted["events"] <= 2 * quality.WINDOW + 400
    assert counted["unseen"]["c"] < 0.01 * counted["events"], "what was before has faded"
