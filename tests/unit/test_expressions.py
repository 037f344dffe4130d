"""Expressions: what they compute, compared with pandas and with plain Python; what they refuse, and how they say so."""

# ruff: noqa: E501 -- messages are compared as a person reads them, in one line

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import re
import time
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gridscore.errors import ExpressionError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, maths
from gridscore.job import Job, zones
from gridscore.job.expressions import Scope, compile_expression
from gridscore.job.functions import FUNCTIONS, NAMES, SPECIAL, WINDOWED
from gridscore.job.types import FieldType, LookupField

SCHEMA = {
    "a": "float?",
    "b": "float?",
    "n": "int",
    "i": "int?",
    "s": "string?",
    "r": "string",
    "f": "bool?",
    "g": "bool",
    "t": "timestamp?",
    "u": {"type": "timestamp", "unit": "ms", "optional": True},
}
BASE = {
    "a": 1.5,
    "b": -2.0,
    "n": 7,
    "i": None,
    "s": "Ab c",
    "r": "x",
    "f": None,
    "g": True,
    "t": "2013-03-10T07:30:15.25Z",
    "u": None,
}
LOOKUP = {
    "map": "lookups.l",
    "key": "r",
    "fields": {
        "x": "float?",
        "name": "string?",
        "d": {"type": "float", "default": 5},
        "id": "int?",
        "big": {"type": "int", "default": 2**63 - 1},
    },
}


def job_of(features: dict[str, object]) -> Job:
    return Job.model_validate(
        {
            "job": "test",
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": SCHEMA,
            "lookups": {"l": LOOKUP},
            "features": features,
        }
    )


def columns_of(features: dict[str, object], events: list[dict[str, object]], **categories: list[str]) -> np.ndarray:
    job = job_of(features)
    decoder = EventDecoder(job)
    table = LookupTable(job.lookups["l"])
    table.put("x", '{"x": 2.5, "name": "first"}')
    plan = FeaturePlan(job, {"l": table}, categories)
    return plan.matrix(decoder.decode_all([json.dumps({**BASE, **event}).encode() for event in events]))


def value_of(expression: str, **event: object) -> float | None:
    """The value of an expression for one event; None if it is missing."""
    value = float(columns_of({"v": expression}, [event])[0, 0])
    return None if math.isnan(value) else value


def test_whole_numbers_of_lookups_keep_their_digits_in_texts():
    job = job_of({"v": "category(string(l.id) + '/' + string(l.big))"})
    table = LookupTable(job.lookups["l"])
    entries = {f"k{number}": (2**53 + number, -(2**63) + number) for number in range(3_000)}
    for key, (own, big) in entries.items():
        table.put(key, json.dumps({"id": own, "big": big}))
    table.put("k5", '{"id": null}')
    table.remove("k7")
    names = [f"{own}/{big}" for own, big in entries.values()]
    names[5] = names[7] = None
    plan = FeaturePlan(job, {"l": table}, {"v": [name for name in names if name]})
    events = EventDecoder(job).decode_all([json.dumps({**BASE, "r": key}).encode() for key in entries])
    codes = iter(range(3_000))
    expected = [math.nan if name is None else next(codes) for name in names]
    np.testing.assert_array_equal(plan.matrix(events)[:, 0], expected)
    found = columns_of({"v": "category(string(l.big))"}, [{"r": "no entry"}], v=["a", str(2**63 - 1)])
    assert found[0, 0] == 1


def wrong(expression: str, **more: object) -> list[str]:
    fields = {name: FieldType.model_validate(kind) for name, kind in SCHEMA.items()}
    lookups = {"l": {name: LookupField.model_validate(kind) for name, kind in LOOKUP["fields"].items()}}
    scope = Scope(fields, lookups, ("earlier", "coded"), ("coded",), later=("later",))
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, scope, category="v", **more)
    return caught.value.message.splitlines()


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + b * 2", -2.5),
        ("a - -b", -0.5),
        ("7 // 2 + 7 % -2", 2),
        ("round(125, -1) + round(135, -1)", 260),
        ("-7 // 2", -4),
        ("2 ** 3 ** 2", 512),
        ("a / 0", None),  # infinite: the model gets a missing value
        ("a / 0 > 5", 1),
        ("isnull(a / 0) + (a / 0 is None) + isnull(exp(a)) + isnull(10 ** 308 * 10 * a)", 3),
        ("coalesce(a / 0, -a / 0, b / 0, 3)", 3),
        ("len(string(a / 0))", None),
        ("isnull(a * 1e300)", 0),  # only the model has no room for it
        ("number('\u0661\u0662')", None),
        ("number('\u00a05')", None),
        ("number(' -5e1 ')", -50),
        ("number('1_000')", None),
        ("1 if number('inf') > 5 else 0", 0),
        ("1 if number(' Infinity ') > 5 else 0", 0),
        ("1 if number('1e999') > 5 else 0", 1),
        ("-0.0", 0),
        ("n / 2", 3.5),
        ("i", None),
        ("i + 1", None),
        ("i > 1", 0),
        ("i != 1", 1),
        ("i == i", 0),
        ("not i > 1", 1),
        ("0 < a < 2", 1),
        ("0 < a < 1 < n", 0),
        ("a > 1 and b > 1 or n == 7", 1),
        ("(a > 1) & ~(b > 1) | (n == 0)", 1),
        ("a if b < 0 else 9", 1.5),
        ("a if i > 0 else None", None),
        ("where(g, 1, 2)", 1),
        ("f", None),
        ("g", 1),
        ("f is None", 1),
        ("g is None", 0),
        ("not f", 1),
        ("1 if f else 2", 2),
        ("f == True", 0),
        ("f != True", 1),
        ("g + g", 2),
        ("coalesce(f, g)", 1),
        ("coalesce(f, True) and g", 1),
        ("(f if g else g) is None", 1),
        ("coalesce(i, b, 3)", -2),
        ("coalesce(i, None, 3)", 3),
        ("isnull(i) + (a is not None)", 2),
        ("n in (1, 7, -2)", 1),
        ("b in [1, -2]", 1),
        ("b not in [1, -2]", 0),
        ("n in []", 0),
        ("n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)", 1),
        ("i not in [1]", 1),
        ("g in [1]", 1),
        ('s == "Ab c"', 1),
        ('"Ab c" != s', 0),
        ('s < "B" and s <= s', 1),
        ('s > r or s >= "Z"', 0),
        ('s in ("x", "Ab c")', 1),
        ("len(s) + len(string(n))", 5),
        ('lower(s) == "ab c" and upper(s) == "AB C"', 1),
        ('strip("  x ") == r', 1),
        ('startswith(s, "A") + endswith(s, "c") + contains(s, "b ")', 3),
        ('s + "-" + r == "Ab c-x"', 1),
        ('number("12.5") + number(" 3 ")', 15.5),
        ('number("1_000")', None),
        ('number("many")', None),
        ('string(a) == "1.5" and string(n) == "7" and string(2.0) == "2"', 1),
        ('string(g) == "true"', 1),
        ("string(f) is None", 1),
        ('string(t) == "2013-03-10T07:30:15.250000Z"', 1),
        ("string(i) is None", 1),
        ('coalesce(string(i), "none") == "none"', 1),
        ('("y" if g else s) == "y"', 1),
        ("(s if a > 5 else None) is None", 1),
        ("year(t) * 10000 + month(t) * 100 + day(t)", 20130310),
        ("hour(t) * 10000 + minute(t) * 100 + second(t)", 73015),
        ("dayofweek(t)", 6),
        ("dayofyear(t)", 69),
        ('hour(t, "America/New_York")', 3),  # half an hour after the clocks went forward
        ('hour(t, "Asia/Kolkata") * 100 + minute(t, "Asia/Kolkata")', 1300),
        ("year(u)", None),
        ('hour(u, "Asia/Tokyo")', None),
        ("t > u", 0),
        ("t - u", None),
        ('t - timestamp("2013-03-10T00:00:00-07:30")', 15.25),
        ('t >= timestamp("2013-03-10T07:30:00Z")', 1),
        ("epoch(t) - 1362900615", 0.25),
        ("abs(b) + sqrt(4) + floor(a) + ceil(a) + sign(b)", 6),
        ("round(a) + round(2.5) + round(1.25, 1)", 5.2),
        ("clip(n, 0, 5) + clip(b, 0, 5)", 5),
        ("min(a, b, n) + max(a, b, n)", 5),
        ("min(a, i)", None),
        ("log(exp(1)) + log2(8) + log10(100) + log1p(0) + expm1(0)", 6),
        ("log(-1)", None),
        ("log(0)", None),
        ("hypot(3, 4) + degrees(radians(90))", 95),
        ("sin(0) + cos(0) + tan(0) + asin(0) + acos(1) + atan(0) + atan2(0, 1)", 1),
        ("l.x + l.d", 7.5),
        ('l.name == "first"', 1),
        ("a +\n  b", -0.5),
        ("(a\n + b  # both\n)", -0.5),
        ("1e308 * 10", None),
        ("1e39", None),  # more than float32 holds
    ],
)
def test_an_expression_gives(expression, expected):
    found = value_of(expression)
    assert found == (None if expected is None else pytest.approx(np.float32(expected)))


def test_an_event_without_an_entry_gets_what_is_missing():
    assert value_of("l.x", r="none") is None
    assert value_of("l.d", r="none") == 5
    assert value_of('l.name == "first"', r="none") == 0
    assert value_of('l.name != "first"', r="none") == 1
    assert value_of("l.name is None", r="none") == 1


def test_missing_strings_are_missing_everywhere():
    for expression in ("len(s)", "number(s)"):
        assert value_of(expression, s=None) is None
    for expression in (
        's == "x"',
        "s == s",
        "s < r",
        "s <= r",
        "s > r",
        "s >= r",
        'contains(s, "")',
        's in ("x", "")',
        "lower(s) == r",
        "s + r == r",
    ):
        assert value_of(expression, s=None) == 0
    for expression in ("s is None", 's != "x"', "s != s", 's not in ["x"]', "upper(s + r) is None"):
        assert value_of(expression, s=None) == 1


def test_features_see_earlier_ones_with_their_defaults():
    found = columns_of({"x": {"expression": "i", "default": 4}, "y": "x + 1", "a": "a * 2", "z": "a"}, [{}])
    assert found.tolist() == [[4, 5, 3, 1.5]]  # a field goes before a feature of its name


@pytest.mark.parametrize("number", [1e39, -1e39, 3.4028236e38, 1e300])
def test_a_default_is_for_what_a_float32_cannot_hold(number):
    features = {"v": {"expression": "a * 1", "default": 5}, "w": "v + 1", "x": {"expression": "a", "default": -1}}
    np.testing.assert_array_equal(columns_of(features, [{"a": number}, {"a": 3.4e38}]), np.float32([[5, 6, -1], [3.4e38, 3.4e38, 3.4e38]]))  # fmt: skip


def test_a_default_is_for_what_is_infinite_too():
    assert columns_of({"v": {"expression": "a / 0", "default": 9}}, [{}])[0, 0] == 9
    assert columns_of({"v": {"expression": "f", "default": 9}}, [{}])[0, 0] == 9
    assert columns_of({"v": {"expression": "g", "default": 9}}, [{}])[0, 0] == 1
    assert columns_of({"v": {"expression": "log(-1)", "default": 2}}, [{}, {}])[:, 0].tolist() == [2, 2]


def test_categories_are_codes_of_training_and_unseen_ones_are_missing():
    events = [{"s": "q"}, {"s": "p"}, {"s": "z"}, {"s": None}]
    found = columns_of(
        {"c": "category(s)", "d": {"expression": "category(s)", "default": -1}}, events, c=["p", "q"], d=["q"]
    )
    assert np.array_equal(found, [[1, 0], [0, -1], [np.nan, -1], [np.nan, -1]], equal_nan=True)


def test_categories_of_numbers_go_by_their_text():
    events = [{"n": 2**53 + 1, "a": 2.0}, {"n": 5, "a": 2.5}]
    found = columns_of({"c": "category(n)", "d": "category(a)"}, events, c=["5", str(2**53 + 1)], d=["2", "2.5"])
    assert found.tolist() == [[1, 0], [0, 1]]


def test_constants_alone_make_a_column():
    found = columns_of(
        {
            "one": 1,
            "text": 'len("abc")',
            "flag": True,
            "in": '"a" in ["a"]',
            "hour": 'hour(timestamp("2013-01-01T05:00:00Z"))',
        },
        [{}] * 3,
    )
    assert found.tolist() == [[1, 3, 1, 1, 5]] * 3


# ---------------------------------------------------------------------- against pandas and Python

numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.5, 1e300, -1e300]))
# pandas computes constants alone as Python does, which fails for 1 / 0: there, the constants are columns.
constants = {"one": "1", "half": "0.5", "zero": "0"}
atoms = st.sampled_from(["a", "b", "c", *constants])


def _number_text(inner):
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner),
        st.builds("(-{})".format, inner),
        st.builds("{}({})".format, st.sampled_from(["sin", "exp", "log", "sqrt", "abs", "floor", "log1p"]), inner),
    )


number_texts = st.recursive(atoms, _number_text, max_leaves=8)
comparisons = st.builds(
    "({} {} {})".format, number_texts, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), number_texts
)
bool_texts = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", "&", "|"]), inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=4,
)
rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12)


# The last bits of numpy's own are not those of the C library everywhere, and `%` makes any number of a last bit.
def of_the_c_library(name):
    compute = maths.function(name)
    return lambda column: pd.Series(compute(column.to_numpy(np.float64)))


functions = {name: of_the_c_library(name) for name in ("sin", "exp", "log", "log1p")}


@settings(max_examples=300)
@given(text=st.one_of(number_texts, bool_texts), values=rows)
@example(text="(b % log1p(a))", values=[(2.0, 1e300, None)])
@patch.multiple(np, **functions)
def test_numbers_are_those_of_pandas_eval(text, values):
    assume("**" not in text or not re.search("%|//|floor|[<>=]", text))
    frame = pd.DataFrame(values, columns=["a", "b", "c"], dtype=np.float64)
    with np.errstate(all="ignore"):
        columns = frame.assign(**{name: float(value) for name, value in constants.items()})
        expected = columns.eval(text, engine="python").to_numpy(np.float64).astype(np.float32)
        expected = np.where(np.isfinite(expected), expected, np.float32("nan"))
    for name, value in constants.items():
        text = re.sub(rf"\b{name}\b", value, text)
    job = Job.model_validate(
        {
            "job": "t",
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": dict.fromkeys("abc", "float?"),
            "features": {"v": text},
        }
    )
    payloads = [json.dumps(dict(zip("abc", row, strict=True))).encode() for row in values]
    found = FeaturePlan(job, {}, {}).matrix(EventDecoder(job).decode_all(payloads))[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


zone_names = st.sampled_from(
    ["America/New_York", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"]
)
moments = st.datetimes(dt.datetime(1975, 1, 1), dt.datetime(2037, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001


@settings(max_examples=200)
@given(moment=moments, zone=zone_names)
def test_parts_of_times_are_those_of_datetime(moment, zone):
    parts = ("year", "month", "day", "hour", "minute", "second", "dayofweek", "dayofyear")
    found = columns_of(
        {**{part: f'{part}(t, "{zone}")' for part in parts}, **{f"utc_{part}": f"{part}(t)" for part in parts}},
        [{"t": moment.isoformat()}],
    )[0].tolist()
    for local, got in ((moment.astimezone(zones.zone(zone)), found[:8]), (moment, found[8:])):
        assert got == [
            local.year, local.month, local.day, local.hour, local.minute, local.second, local.weekday(), local.timetuple().tm_yday,
        ]  # fmt: skip


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", "the expression is empty"),
        ("a +", "not an expression: invalid syntax"),
        ("1) + (2", "not an expression: unmatched `)`"),
        ("a b", "not an expression: invalid syntax, at `a b`"),
        ("aa + b", "there is no event field or earlier feature `aa`, did you mean `a`?"),
        ("later + 1", "`later` is a feature defined further down: move it up"),
        ("l + 1", "`l` is a lookup: name one of its fields, as in `l.field` (x, name, d, id, big)"),
        ("year + 1", '`year` is a function: call it, as in `year(time, "America/New_York")`'),
        ("l.nam", "the lookup `l` has no field `nam`, did you mean `name`?"),
        ("k.x", "there is no lookup `k`"),
        ("s.upper", "`s.upper`: `s` is a string of the event, and has no fields"),
        ("s.upper()", "`s.upper()`: only functions can be called; write `upper(s)`"),
        ("s.contains('N')", "`s.contains('N')`: only functions can be called; write `contains(s, 'N')`"),
        ("np.log(a)", "`np.log(a)`: only functions can be called; write `log(a)`"),
        ("numpy.random.min(a, b)", "`numpy.random.min(a, b)`: only functions can be called; write `min(a, b)`"),
        ("squrt(a)", "there is no function `squrt`, did you mean `sqrt`?"),
        ("sqrt(a, b)", "`sqrt` takes 1 argument, as in `sqrt(x)`, not 2"),
        ("clip(a)", "`clip` takes 3 arguments, as in `clip(x, 0, 100)`, not 1"),
        ("min(a)", "`min` takes 2 to 16 arguments, as in `min(x, y)`, not 1"),
        ("round(a, digits=2)", "`round` takes no named arguments"),
        ("round(a, b)", "`round`: argument 2 must be a number that is written out, as in `round(x, 2)`"),
        ("round(a, 0.5)", "`round`: the number of digits must be a whole number from -15 to 15"),
        ("round(a, -16)", "`round`: the number of digits must be a whole number from -15 to 15"),
        ("hash(s)", "`hash` takes 2 arguments, as in `hash(x, 1000)`, not 1"),
        ("hash(s, 1)", "`hash`: the number of values must be a whole number from 2 to 16,777,216"),
        ("hash(s, 16777217)", "`hash`: the number of values must be a whole number from 2 to 16,777,216"),
        ("hash(s, n)", "`hash`: argument 2 must be a number that is written out, as in `hash(x, 1000)`"),
        ("hash(t, 9)", "`t` is a timestamp: `hash` needs a string or a number"),
        ("hash(None, 9)", "`None`: `hash` needs a string or a number"),
        ("bucket(a, 1)", "`bucket`: argument 2 must be a list of 1 to 1,000 rising numbers, as in `bucket(x, [10, 100])`"),
        ("bucket(a, [])", "`bucket`: argument 2 must be a list of 1 to 1,000 rising numbers, as in `bucket(x, [10, 100])`"),
        ("bucket(a, [1, 1.0])", "`bucket`: argument 2 must be a list of 1 to 1,000 rising numbers, as in `bucket(x, [10, 100])`"),
        ("bucket(a, [1, n])", "`bucket`: argument 2 must be a list of 1 to 1,000 rising numbers, as in `bucket(x, [10, 100])`"),
        ("bucket(a, [True])", "`bucket`: argument 2 must be a list of 1 to 1,000 rising numbers, as in `bucket(x, [10, 100])`"),
        ("bucket(a, [" + ",".join(map(str, range(1001))) + "])", "`bucket`: argument 2 must be a list of 1 to 1,000 rising"),
        ("bucket(s, [1])", "`s` is a string: `bucket` needs a number"),
        ("replace(s, '', 'x')", "`replace`: the text to look for is empty"),
        ("replace(s, r, 'x')", '`replace`: argument 2 must be a text in quotes, as in `replace(text, "-", "")`'),
        ("split(s, '', 0)", "`split`: the separator is empty"),
        ("regex(s, '(')", "`regex`: `(` is not a pattern of RE2: missing ): ("),
        ("regex(s, '(?=a)')", "not a pattern of RE2: invalid perl operator: (?=; RE2 looks neither around nor back"),
        ("regex(s, 'x{1001}')", "not a pattern of RE2: too large (invalid repetition size: {1001})"),
        (r"regex(s, '\ud800')", r"`regex`: `\ud800` is not a pattern of RE2: 'utf-8' codec"),
        (f"regex(s, '{'x' * 1001}')", "`regex`: the pattern has 1,001 characters, more than 1,000"),
        ("regex(s, r)", '`regex`: argument 2 must be a text in quotes, as in `regex(text, "^N[0-9]+")`'),
        ("regex(s, '(a)', 2)", "`regex`: the number of the group must be a whole number from 0 to 1"),
        ("regex(n, 'a')", "`n` is a number: `regex` needs a string; `string(x)` makes one"),
        ("case(n > 1, 1, n > 2, 'a')", "`case` needs values of one type, but `1` is a number, `'a'` is a string"),
        ("len(None)", "`None` cannot be used so; `x is None` asks whether a value is missing"),
        ("hour(None)", "`None` cannot be used so"),
        ("regex(None, 'a')", "`None` cannot be used so"),
        ("None + s == r", "`None` cannot be used so"),
        ("t - None", "`None` cannot be used so"),
        ("case(n, 1, 2)", "`n` is a number: `case` needs true or false; write `!= 0`"),
        ("split(s, '-', 1001)", "`split`: the index must be a whole number from -1,000 to 1,000"),
        ("split(s, '-')", '`split` takes 3 arguments, as in `split(text, "-", 0)`, not 2'),
        ("substring(s, 0.5)", "`substring`: the beginning must be a whole number from -1,000,000 to 1,000,000"),
        ("substring(s, 0, 0)", "`substring`: the length must be a whole number from 1 to 1,000,000"),
        ("substring(s, 0, -1)", "`substring`: the length must be a whole number from 1 to 1,000,000"),
        ("substring(a, 0)", "`a` is a number: `substring` needs a string; `string(x)` makes a string"),
        ("substring(s, None)", "`substring`: argument 2 must be a number that is written out, as in `substring(text, 0, 3)`"),
        ("geohash(a, b, 13)", "`geohash`: the length must be a whole number from 1 to 12"),
        ("geohash(a, b, n)", "`geohash`: argument 3 must be a number that is written out, as in `geohash(lat, lon, 6)`"),
        ("contains(s, r)", '`contains`: argument 2 must be a text in quotes, as in `contains(text, "N1")`'),
        ("len(a)", "`a` is a number: `len` needs a string; `string(x)` makes a string"),
        ("hour(a)", "`a` is a number: `hour` needs a timestamp"),
        ('hour(t, "Amerika/New_York")', "`hour`: there is no time zone `Amerika/New_York`, did you mean `America/New_York`?"),
        ('hour(t, "../../etc/passwd")', "`hour`: there is no time zone `../../etc/passwd`"),
        ('timestamp("today")', "`timestamp`: `today` is not a time like 2026-01-31T00:00:00Z"),
        ('timestamp("2013-01-01")', "`timestamp`: `2013-01-01` has no offset from UTC; put `Z` at its end if it is UTC"),
        ("a + s", "`a + s`: `+` needs two numbers or two strings; `string(a)` makes a string of the other"),
        ("s * 3", "`s` is a string: `*` needs a number; `number(x)` reads a number from a string"),
        ("t + 5", "`t + 5`: of two timestamps only the difference, in seconds, can be taken; `epoch(x)` makes a number of one"),
        ("-s", "`s` is a string: `-` needs a number; `number(x)` reads a number from a string"),
        ("not a", "`a` is a number: `not` needs true or false; write `!= 0`"),
        ("s and g", "`s` is a string: `and` needs true or false; write `is not None`, or compare it"),
        ("1 if a else 2", "`a` is a number: `if` needs true or false; write `!= 0`"),
        ("a > 1 & b > 1", "`1` is a number: `&` needs true or false; put comparisons in parentheses, or write `and`"),
        ("s == 1", "`s == 1` compares a string with a number"),
        ('t > "2013-01-01"', '`t > \'2013-01-01\'` compares a timestamp with a string; write a timestamp as `timestamp("2026-01-31T00:00:00Z")`'),
        ("a == None", "`a == None`: write `is None` or `is not None`"),
        ("a is 1", "`a is 1`: `is` can only be followed by `None`; write `==`"),
        ("a is b", "`a is b`: `is` can only be followed by `None`; write `==`"),
        ("a + None", "`+` cannot be used with `None`; `x is None` asks whether a value is missing"),
        ("None", "the whole expression is `None`"),
        ("None if g else None", "`if`: all values are `None`"),
        ("coalesce(a, s)", "`coalesce` needs values of one type, but `a` is a number, `s` is a string"),
        ("1 if g else s", "`if` needs values of one type, but `1` is a number, `s` is a string"),
        ("a in b", "`b`: `in` needs a list that is written out, as in `x in [1, 2]`"),
        ('"b" in s', "`s`: `in` needs a list that is written out, as in `x in [1, 2]`; `contains(text, part)` looks inside a string"),
        ("a in [1, 'x']", "`[1, 'x']`: a list after `in` holds either numbers or strings"),
        ("a in ['x']", "`a` is a number, the list after `in` holds strings"),
        ("a in [b]", "`b`: a list after `in` can only hold numbers or strings"),
        ("t in [1]", "`t` is a timestamp, the list after `in` holds numbers"),
        ("1 < a in [1]", "`1 < a in [1]`: `in` cannot be chained with another comparison"),
        ("[1, 2]", "`[1, 2]`: a list can only stand after `in`"),
        ("category(t)", "`t` is a timestamp: `category` needs a string or a number"),
        ("category(s) + category(r)", "`category` can be used once in a feature: its categories are kept under the feature's name"),
        ("category(coded + 1)", "`category` cannot be made of the code of another category: it is known after training only"),
        ("target(t)", "`t` is a timestamp: `target` needs a string or a number"),
        ("target(s) + frequency(s)", "`frequency` learns under the feature's name, which has learnt something already: make two features"),
        ("frequency(coded + 1)", "`frequency` cannot be made of what is learnt itself: it is known after training only"),
        ("target(s, smoothing=-1)", "`target`: `smoothing` must be 0 to 1,000,000,000"),
        ("target(s, smoothing=a)", "`target`: argument 2 must be a number that is written out, as in `target(merchant, smoothing=20)`"),
        ("target(s, folds=3)", "`target` takes no named arguments"),
        ("onehot(s, 0)", "`onehot`: the place among the most frequent must be a whole number from 1 to 1,000"),
        ("a @ b", "`a @ b`: this operator cannot be used in an expression"),
        ("a << 2", "`a << 2`: this operator cannot be used in an expression"),
        ("lambda: 1", "`lambda: 1`: `lambda` cannot be used in an expression"),
        ("[x for x in s]", "`[x for x in s]`: a comprehension cannot be used in an expression"),
        ("s[0]", "`s[0]`: `[...]` is for arrays, and `s` is not one"),
        ("f'{a}'", "`f'{a}'`: an f-string cannot be used in an expression"),
        ("(y := 5)", "`(y := 5)`: an assignment cannot be used in an expression"),
        ("{1: 2}", "`{1: 2}`: a dictionary cannot be used in an expression"),
        ("min(*[1, 2])", "`min(*[1, 2])`: `*` before a value cannot be used in an expression"),
        ("1j", "`1j`: only numbers, strings, True, False and None can be written out"),
        ("b'x'", "`b'x'`: only numbers, strings, True, False and None can be written out"),
        ("...", "`...`: only numbers, strings, True, False and None can be written out"),
        ("1e999", "the number is too large"),
        ("__import__('os').system('true')", "only functions can be called"),
        ("a.__class__", "`a.__class__`: `a` is a float of the event, and has no fields"),
        ("l.__class__", "the lookup `l` has no field `__class__`"),
        ("().__class__", "`().__class__`: a `.` can only stand between a lookup or an object and its field, and `[0]` behind an array"),
        ("open('/etc/passwd')", "there is no function `open`"),
        ("eval('1')", "there is no function `eval`"),
        ("a; b", "not an expression"),
        ("import os", "not an expression"),
        ("'\\d' == s", "not an expression"),
    ],
)  # fmt: skip
def test_a_wrong_expression_is_told(expression, expected):
    assert any(expected in line for line in wrong(expression)), wrong(expression)


def test_all_that_is_wrong_in_an_expression_is_told_once():
    assert wrong("aa + squrt(b) + aa + (s > 1)") == [
        "there is no event field or earlier feature `aa`, did you mean `a`?",
        "there is no function `squrt`, did you mean `sqrt`?",
        "`s > 1` compares a string with a number",
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + " * 2000 + "a", "more than 4000"),
        ("(" * 1900 + "a" + ")" * 1900, "not an expression"),
        ("-" * 3000 + "a", "deep"),
        ("not " * 900 + "g", "deep"),
        ("sqrt(" * 150 + "a" + ")" * 150, "deep"),
        ("+".join(["a"] * 200), "nested more than 100 levels deep"),
        ("+".join(["s"] * 40) + " == s", "more than 16 strings put together"),
        (
            "replace(" * 17 + "s" + ", 'a', 'b')" * 17 + " == s",
            "more than 16 strings put together with `+` or `replace`",
        ),
        ("9" * 3990, "too large"),
        ("9**9**9**9**9 + s", "`+` needs two numbers or two strings"),
        ("a in [" + "1," * 1500 + "]", "more than 1000 items"),
        ("a\0b", "not an expression"),
        ("\ud800", "not an expression"),
        ("min(" * 90 + "a" + ",1,2,3)" * 90, "operations are nested more than 150 levels deep"),
        # Each level means its middle twice: 12 characters more, and twice the work.
        ("1<(" * 60 + "a" + ")<1" * 60, "more than 4,000 operations"),
        ("string(" + "1<(" * 60 + "a" + ")<1" * 60 + ") == s", "more than 4,000 operations"),
    ],
)
def test_nothing_in_an_expression_can_hang_or_crash(expression, expected):
    began = time.process_time()
    assert any(expected in line for line in wrong(expression))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "expression",
    [
        "a" + "<1" * 900,  # 325 of them killed every worker
        " and ".join(["g"] * 480),
        " or ".join(["a<1"] * 480),
        "-" * 98 + "a",
        "1 if g else " * 90 + "0",
        "coalesce(" * 9 + "a" + ",a,a,a,a,a,a,a,a,a,a,a,a,a,a,a)" * 9,
        "where(g, " * 90 + "'x'" + ",'y')" * 90 + " == s",
    ],
)
def test_what_is_accepted_can_be_computed_from_a_stack_that_is_deep_already(expression):
    def deep(levels):
        return value_of(expression) if levels == 0 else deep(levels - 1)

    deep(150)


def test_a_power_tower_takes_no_time():
    began = time.process_time()
    assert value_of("9**9**9**9**9") is None
    assert time.process_time() - began < 1


@settings(max_examples=300)
@given(st.text(st.sampled_from("abst(),.'\"+-*/<>=!&|~ \n#0123456789[]{}:@\\lxifelsnotandrNone"), max_size=60))
def test_any_text_is_compiled_or_refused(text):
    fields = {name: FieldType.model_validate(kind) for name, kind in SCHEMA.items()}
    with contextlib.suppress(ExpressionError):
        compile_expression(text, Scope(fields, {}), category="v")


def test_the_documentation_names_every_function():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "expressions.md").read_text()
    missing = [name for name in NAMES if f"`{name}(" not in text]
    assert not missing
    assert set(NAMES) == {*FUNCTIONS, *SPECIAL, *WINDOWED}
