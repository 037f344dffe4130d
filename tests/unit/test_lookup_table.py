"""The local table of a lookup: entries come, change and go; a bad one harms no other."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridscore.features import LookupTable
from gridscore.job import Lookup

FIELDS = {
    "year": "float?",
    "seats": {"type": "int", "default": 3},
    "name": "string?",
    "kind": {"type": "string", "default": "?"},
    "big": "bool?",
    "since": "timestamp?",
    "seen": {"type": "timestamp", "unit": "ms", "optional": True, "json": "last-seen"},
}


def table_of(**fields: object) -> LookupTable:
    return LookupTable(Lookup.model_validate({"map": "lookups.l", "key": "k", "fields": fields or FIELDS}))


def values(table: LookupTable, key: object) -> dict[str, object]:
    rows = table.rows([key])
    return {name: table.gather(name, rows)[0] for name in FIELDS}


def test_an_entry_is_found_by_its_key_with_its_types():
    table = table_of()
    table.put(
        "k",
        b'{"year": 2004, "seats": 5, "name": "n", "kind": "x", "big": true, "since": "1970-01-02T00:00:00Z", '
        b'"last-seen": 1500, "more": []}',
    )
    table.put(17, '{"year": 1.5}')
    assert values(table, "k") == {
        "year": 2004.0,
        "seats": 5.0,
        "name": "n",
        "kind": "x",
        "big": 1.0,
        "since": 86400.0,
        "seen": 1.5,
    }
    assert values(table, 17)["year"] == 1.5
    assert values(table, "17")["name"] is None
    assert len(table) == 2
    assert sorted(table.keys(), key=str) == [17, "k"]
    assert "k" in table
    assert "x" not in table


def test_what_is_missing_has_the_defaults():
    table = table_of()
    table.put("empty", "{}")
    for key in ("none", None, "empty"):
        found = values(table, key)
        assert math.isnan(found.pop("year"))
        assert math.isnan(found.pop("big"))
        assert math.isnan(found.pop("since"))
        assert math.isnan(found.pop("seen"))
        assert found == {"seats": 3.0, "name": None, "kind": "?"}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1]", "expected an object, got a list"),
        (b"\xac\xed\x00\x05", "not JSON"),
        (b'{"v": "x"}', "field `v`: expected a number, got a string"),
        (b"{}", "the field `v` is missing"),
        (b'{"v": null}', "field `v`: expected a number, got null"),
        (b'{"zz":' * 100_000, "nested too deeply"),
        (None, ""),
    ],
)
def test_a_bad_entry_is_missing_and_counted_and_harms_no_other(payload, reason):
    table = table_of(v="float")
    table.put("good", '{"v": 1}')
    table.put("bad", payload)
    assert (len(table), table.bad) == (2, 1)
    assert reason in table.last_error
    assert "the entry of 'bad'" in table.last_error
    assert np.array_equal(table.gather("v", table.rows(["good", "bad", "none"])), [1, np.nan, np.nan], equal_nan=True)
    assert "bad" not in table
    assert "bad" in table.keys()  # noqa: SIM118 -- held, but not found
    table.put("bad", '{"v": 2}')
    assert (len(table), table.bad) == (2, 0)
    table.put("good", payload)
    assert (len(table), table.bad) == (2, 1)
    assert np.array_equal(table.gather("v", table.rows(["good", "bad"])), [np.nan, 2], equal_nan=True)
    table.remove("good")
    assert (len(table), table.bad) == (1, 0)


def test_a_key_that_cannot_be_one_is_held_and_never_found():
    table = table_of(v="float")
    table.put(["list"], '{"v": 1}')
    assert len(table) == 1
    table.remove(["list"])
    assert len(table) == 0


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "bad", "remove", "clear"]), st.integers(0, 40), st.integers(0, 9)
        ),
        max_size=200,
    )
)
def test_a_table_is_a_dictionary(operations):
    table, expected = table_of(v="float", s="string"), {}
    for operation, key, value in operations:
        if operation == "put":
            table.put(key, json.dumps({"v": value, "s": str(value)}))
            expected[key] = value
        elif operation == "bad":
            table.put(key, "{")
            expected[key] = None
        elif operation == "remove":
            table.remove(key)
            expected.pop(key, None)
        elif value == 0:
            table.clear()
            expected.clear()
    keys = list(range(41))
    rows = table.rows(keys)
    wanted = [expected.get(key) for key in keys]
    assert [None if math.isnan(v) else v for v in table.gather("v", rows).tolist()] == wanted
    assert table.gather("s", rows) == [None if value is None else str(value) for value in wanted]
    assert len(table) == len(expected)
    assert table.bad == sum(value is None for value in expected.values())
    assert set(table.keys()) == set(expected)


def test_a_table_grows_and_uses_freed_rows_again():
    table = table_of(v="float", s="string")
    for key in range(5_000):
        table.put(key, json.dumps({"v": key, "s": str(key)}))
    size = len(table.column("v"))
    for turn in range(3):
        for key in range(5_000):
            table.remove(key)
        for key in range(5_000):
            table.put(key, json.dumps({"v": key + turn, "s": str(key)}))
    assert len(table.column("v")) == len(table.column("s")) == size
    assert table.gather("v", table.rows([0, 4_999])).tolist() == [2, 5_001]
