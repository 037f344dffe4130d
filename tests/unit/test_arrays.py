"""Arrays and nested objects in events: by an oracle in plain Python, and the same bits from a history in any format."""

# ruff: noqa: E501, PD011 -- messages are compared as a person reads them, in one line

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gridscore.errors import ExpressionError, JobFileError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, definitions_of, offline_matrix
from gridscore.features.tables import read_history
from gridscore.job import Job, parse_job
from gridscore.job.expressions import Scope, compile_expression
from gridscore.models.version import ModelVersion
from gridscore.scoring import results

TEXT = """\
job: shop
events: events.shop
model: shop
results: results.shop
schema:
  amount: float
  device.os: string?
  order.items: [{price: float?, sku: string, id: int, gift: bool?, at: timestamp?}]
  tags: [string?]
  temps: {type: [float], optional: true}
lookups:
  sku: {map: skus, key: "order.items[0].sku", fields: {weight: float?}}
  id: {map: ids, key: "order.items[-1].id", fields: {weight: float?}}
features:
  amount: amount
  os: category(device.os)
  count: len(order.items)
  priced: count(order.items.price)
  total: sum(order.items.price)
  mean: mean(order.items.price)
  least: min(order.items.price)
  most: max(order.items.price)
  gifts: sum(order.items.gift)
  latest: hour(max(order.items.at))
  first: order.items[0].price
  last_gift: order.items[-1].gift
  second_id: category(string(order.items[1].id))
  tag: category(tags[0])
  tags: count(tags)
  hot: max(temps) > 30 and temps[-1] < 30
  weight: sku.weight
  weight_of_last: id.weight
"""
JOB = parse_job(TEXT, "job.yaml")
BIG = 2**53 + 1
CATEGORIES = {"os": ("linux",), "second_id": ("7", str(BIG)), "tag": ("new",)}


def tables():
    found = {name: LookupTable(JOB.lookups[name]) for name in JOB.lookups}
    found["sku"].put("a", b'{"weight": 1.5}')
    found["id"].put(BIG, b'{"weight": 2.5}')
    return found


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.1, 0.2, 0.3, 1e16, -1e16])
items = st.fixed_dictionaries(
    {"sku": st.sampled_from("ab"), "id": st.sampled_from([7, BIG])},
    optional={
        "price": st.none() | numbers,
        "gift": st.none() | st.booleans(),
        "at": st.sampled_from([None, "2026-01-31T12:00:00Z", "2026-01-31T15:00:00+02:00"]),
        "unknown": st.just([{}]),
    },
)
events = st.fixed_dictionaries(
    {
        "amount": st.just(1.5),
        "order": st.fixed_dictionaries({"items": st.lists(items, max_size=5)}),
        "tags": st.lists(st.sampled_from(["new", "old", None]), max_size=3),
    },
    optional={
        "device": st.sampled_from([None, {}, {"os": "linux"}, {"os": None}]),
        "temps": st.none() | st.lists(st.sampled_from([20.5, 31.0]), max_size=3),
    },
)


def exactly(values):
    """Their sum, rounded once."""
    total = sum(map(Fraction, values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def plainly(event):
    """What the features are, in plain Python; None is missing."""
    things, tags, temps = event["order"]["items"], event["tags"], event.get("temps")
    prices = [thing["price"] for thing in things if thing.get("price") is not None]
    hours = [{"12": 12, "15": 13}[thing["at"][11:13]] for thing in things if thing.get("at")]
    return [
        1.5,
        0.0 if (event.get("device") or {}).get("os") else None,
        len(things),
        len(prices),
        exactly(prices),
        exactly(prices) / len(prices) if prices else None,
        min(prices, default=None),
        max(prices, default=None),
        sum(bool(thing.get("gift")) for thing in things),
        max(hours, default=None),
        things[0].get("price") if things else None,
        things[-1].get("gift") if things else None,
        {7: 0, BIG: 1}[things[1]["id"]] if len(things) > 1 else None,
        0 if tags and tags[0] == "new" else None,
        sum(tag is not None for tag in tags),
        bool(temps) and max(temps) > 30 and temps[-1] < 30,
        1.5 if things and things[0]["sku"] == "a" else None,
        2.5 if things and things[-1]["id"] == BIG else None,
    ]


def live(rows):
    decoder, plan = EventDecoder(JOB), FeaturePlan(JOB, tables(), CATEGORIES)
    texts = [json.dumps(row).encode() for row in rows]
    found = plan.matrix(decoder.decode_all(texts))
    assert found.tobytes() == b"".join(plan.matrix(decoder.decode_all([text])).tobytes() for text in texts)
    return found


@given(st.lists(events, min_size=1, max_size=6))
@example([{"amount": 1.5, "order": {"items": [{"sku": "a", "id": 7, "price": p} for p in (1e308, 1e308)]}, "tags": []}])
def test_they_are_what_plain_python_makes_of_them(rows):
    with np.errstate(over="ignore"):
        expected = np.array([[math.nan if v is None else v for v in plainly(row)] for row in rows], np.float32)
    expected[~np.isfinite(expected)] = np.nan
    np.testing.assert_array_equal(live(rows), expected)


def test_a_sum_is_rounded_once():
    prices = [0.1] * 10 + [1e16, 1.0, -1e16]
    job = parse_job(TEXT.partition("lookups")[0] + "features: {s: sum(temps), m: mean(temps) * 1e9}\n", "job.yaml")
    text = json.dumps({"amount": 1, "order": {"items": []}, "tags": [], "temps": prices}).encode()
    found = FeaturePlan(job, {}, {}).matrix(EventDecoder(job).decode_all([text]))
    assert found[0].tolist() == [np.float32(2.0), np.float32(statistics.fmean([2.0] + [0.0] * 12) * 1e9)]


ROWS = [
    {
        "amount": 1.5,
        "device": {"os": "linux"},
        "order": {"items": [{"sku": "a", "id": 7, "price": 2.5, "gift": True, "at": "2026-01-31T12:00:00Z"}] * 2},
        "tags": ["new", None],
        "temps": [31.5, 20.25],
    },
    {
        "amount": 2,
        "device": None,
        "order": {"items": [{"sku": "b", "id": 1, "price": None}, {"sku": "b", "id": BIG, "price": 0.1}]},
        "tags": [],
        "temps": None,
    },
    {"amount": 3, "order": {"items": []}, "tags": ["old"], "temps": []},
]
LOOKUPS = {
    "sku": pd.DataFrame({"order.items[0].sku": ["a"], "weight": [1.5]}),
    "id": pd.DataFrame({"order.items[-1].id": [BIG], "weight": [2.5]}),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "flat.parquet", "csv"])
def test_a_history_in_any_format_gives_the_bits_of_the_stream(tmp_path, kind):
    path = tmp_path / f"history.{kind}"
    nested = pd.DataFrame(ROWS)
    flat = pd.DataFrame({"amount": nested["amount"], "tags": nested["tags"], "temps": nested["temps"]})
    flat["device.os"] = ["linux", None, None]
    flat["order.items"] = [row["order"]["items"] for row in ROWS]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        nested.to_parquet(path)
    elif kind == "flat.parquet":
        flat.to_parquet(path)
    else:
        for name in ("tags", "temps", "order.items"):
            flat[name] = ["" if value is None else json.dumps(value) for value in flat[name]]
        flat.to_csv(path, index=False)
    offline = offline_matrix(JOB, path, LOOKUPS, CATEGORIES)
    assert offline.values.tobytes() == live(ROWS).tobytes()
    if kind != "csv":
        assert offline_matrix(JOB, flat, LOOKUPS, CATEGORIES).values.tobytes() == live(ROWS).tobytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tags": None}, "field `tags`: expected a list, got null"),
        ({"tags": "new"}, "field `tags`: expected a list, got a string"),
        ({"tags": [1]}, "field `tags[0]`: expected a string or null, got a whole number"),
        ({"temps": [1, None]}, "field `temps[1]`: expected a number, got null"),
        ({"temps": [1] * 10_001}, "field `temps`: expected `array` of length <= 10000"),
        ({"order": {"items": [{"id": 1}]}}, "the field `order.items[0].sku` is missing"),
        ({"order": {"items": [{"id": 1.5, "sku": "a"}]}}, "field `order.items[0].id`: expected a whole number, got a number"),
        ({"order": {}}, "the field `order.items` is missing"),
        ({"order": []}, "field `order`: expected an object or null, got a list"),
    ],
)  # fmt: skip
def test_what_breaks_the_schema_is_told_and_harms_no_other(change, reason):
    texts = [json.dumps(row).encode() for row in (ROWS[0], {**ROWS[0], **change}, ROWS[2])]
    good, bad = EventDecoder(JOB).decode_good(texts)
    assert bad == {1: reason}
    assert len(good) == 2
    assert len(EventDecoder(JOB).decode_all([json.dumps({**ROWS[2], "temps": [1] * 10_000}).encode()])) == 1


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("order.items", "`order.items` is an array: take `len(order.items)`, `order.items[0].price` or `max(order.items.price)`"),
        ("tags == 'x'", "`tags` is an array: take `len(tags)`, `tags[0]` or `max(tags)`"),
        ("sum(tags)", "`tags` is a string in each item: `sum` needs numbers"),
        ("mean(order.items.at)", "`order.items.at` is a timestamp in each item: `mean` needs numbers"),
        ("len(order.items.price)", "`len` takes the array, as in `len(order.items)`; `count(order.items.price)` leaves out what is missing"),
        ("count(order.items)", "the items of `order.items` are objects: name one of their fields (price, sku, id, gift, at)"),
        ("order.items[0].prise", "the items of `order.items` have no field `prise`, did you mean `price`?"),
        ("tags[0].x", "the items of `tags` are values, and have no field `x`"),
        ("amount[0]", "`amount[0]`: `[...]` is for arrays, and `amount` is not one"),
        ("temps[amount]", "`temps[amount]`: the index must be a whole number, written out, to 1,000"),
        ("temps[1:2]", "`temps[1:2]`: the index must be a whole number, written out, to 1,000"),
        ("temps[1001]", "`temps[1001]`: the index must be a whole number, written out, to 1,000"),
        ("temps[True]", "`temps[True]`: the index must be a whole number, written out, to 1,000"),
        ("temps[0][0]", "`temps[0][0]`: a `.` can only stand between a lookup or an object and its field, and `[0]` behind an array"),
        ("device.so", "there is no event field `device.so`, did you mean `device.os`?"),
        ("amount.x", "`amount.x`: `amount` is a float of the event, and has no fields"),
        ("temps.x", "`temps` is an array: take `len(temps)`, `temps[0]` or `max(temps)`"),
        ("min(temps, 3)", "`temps` is an array: take `len(temps)`, `temps[0]` or `max(temps)`"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_of_an_array(expression, said):
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, Scope(JOB.schema_, {}, windows=()))
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("[]", "an array is a list with the type of its items, as `[float]`, or with a mapping of their fields"),
        ("[float, int]", "an array is a list with the type of its items"),
        ("[[float]]", "an array is a list with the type of its items"),
        ("array", "an array is a list with the type of its items"),
        ("{type: float, of: float}", "an array is a list with the type of its items"),
        ("[{a: [float]}]", "`a`: an item of an array is a value, or an object of values"),
        ("[{a: {type: float, json: $.b.c}}]", "`a`: an item of an array is a value, or an object of values"),
        ("[{a b: float}]", "`a b` cannot be a name in expressions"),
        ("[flaot]", "`flaot` is not one of `float`, "),
    ],
)
def test_an_array_that_cannot_be_declared(kind, said):
    with pytest.raises(JobFileError, match="line 9: schema field `tags`: ") as caught:
        parse_job(TEXT.replace("tags: [string?]", f"tags: {kind}"), "job.yaml")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("device_os: string", "line 7: schema field `device.os`: there is a field `device_os` as well"),
        ("a.b: {type: float, json: x}", "line 9: schema field `a.b`: its name is its place, leave out `json`"),
        ("a..b: float", "is not the place of a field"),
        ("device: string", "it lies within what `device` reads as string"),
    ],
)
def test_a_nested_field_that_cannot_be_declared(line, said):
    with pytest.raises(JobFileError) as caught:
        parse_job(TEXT.replace("tags: [string?]", line), "job.yaml")
    assert said in caught.value.message


def test_lookups_have_no_arrays():
    with pytest.raises(JobFileError, match="an array cannot be a field of a lookup"):
        parse_job(TEXT.replace("{weight: float?}", "{weight: [float]}", 1), "job.yaml")


def test_a_listed_feature_can_be_nested():
    text = TEXT.partition("lookups")[0] + "features: [device.os, amount]\n"
    job = parse_job(text, "job.yaml")
    assert job.features["device.os"].expression == "category(device_os)"


def test_a_job_with_arrays_survives_the_grid():
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB
    assert str(JOB.schema_["order_items"]) == "[{price: float?, sku: string, id: int, gift: bool?, at: timestamp?}]"


def test_windows_hold_what_is_made_of_arrays():
    text = TEXT.partition("lookups")[0] + "order_by: at\nwindows: {card: card}\nfeatures:\n"
    text = text.replace("  amount: float\n", "  amount: float\n  at: timestamp\n  card: string\n")
    job = parse_job(text + '  s: sum(sum(order.items.price), card, "1h", where=len(tags) > 0)\n', "job.yaml")
    rows = [{**row, "at": f"2026-01-31T12:0{n}:00Z", "card": "c"} for n, row in enumerate([*ROWS, ROWS[0]])]
    found = offline_matrix(job, pd.json_normalize(rows, max_level=1))
    assert found.values[:, 0].tolist() == [0, 5, 5, 5]


def test_definitions_name_the_parts_that_are_used():
    job = parse_job(
        TEXT.partition("lookups")[0] + "features: {a: sum(order.items.price), b: len(tags), c: 'temps[0]'}\n",
        "job.yaml",
    )
    assert definitions_of(job).fields == {
        "order_items.price": "array, json '$.order.items' of float",
        "tags": "array of string",
        "temps": "array of float",
    }


@pytest.mark.parametrize("fast", [True, False])
def test_a_result_can_repeat_an_array(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(results, "_fast", None)
    job = parse_job(TEXT + "result: {include: [order_items, temps]}\n", "job.yaml")
    decoded = EventDecoder(job).decode_all([json.dumps(row).encode() for row in ROWS])
    version = ModelVersion(
        name="shop",
        version=1,
        sha256="0" * 64,
        size=1,
        chunks=1,
        features=("a",),
        objective="reg:squarederror",
        trees=1,
        rounds=1,
        xgboost_version="3.2.0",
        created_at="",
    )
    texts = results.ResultEncoder(job, 1).encode(decoded, np.zeros(3, np.float32), [0] * 3, [0] * 3, version)
    found = [json.loads(text) for text in texts]
    assert [each["temps"] for each in found] == [[31.5, 20.25], None, []]
    assert found[1]["order_items"][1] == {"price": 0.1, "sku": "b", "id": BIG, "gift": None, "at": None}


def test_only_jobs_with_arrays_go_the_slower_way():
    plain = parse_job(TEXT.partition("schema")[0] + "schema: {a: float}\nfeatures: {a: a}\n", "job.yaml")
    assert EventDecoder(plain)._cells is not None
    assert EventDecoder(JOB)._cells is None


def test_an_array_of_csv_that_is_not_json_is_told(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text('amount,device.os,order.items,tags,temps\n1,linux,"[]","[new]",\n')
    assert read_history(path, JOB)["tags"].tolist() == ["[new]"]
    with pytest.raises(Exception, match="row 1: field `tags`: expected a list, got a string"):
        offline_matrix(JOB, path, LOOKUPS, CATEGORIES)
