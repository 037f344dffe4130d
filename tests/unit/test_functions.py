"""Functions of places, texts and ranges: against oracles that share no code, and the same bits however events come."""

from __future__ import annotations

import json
import math
import re
import zlib
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gridscore.features import EventDecoder, FeaturePlan, LookupTable, maths, offline_matrix
from gridscore.features.definitions import definitions_of
from gridscore.job import Job
from gridscore.job.functions import FUNCTIONS
from gridscore.job.types import Type

SCHEMA = {**dict.fromkeys("abcd", "float?"), "s": "string?", "i": "int?", "g": "bool?"}
VALUES = {"job": "j", "events": "e", "results": "r", "model": "m", "schema": SCHEMA}


def job_of(expression: str) -> Job:
    return Job.model_validate(VALUES | {"features": {"v": expression}})


def computed(expression: str, rows: list[dict[str, object]]) -> list[float | str | None]:
    """A feature of each event, or the text that it is a category of; the same from a history, in a batch, and alone."""
    job = job_of(expression)
    matrix = offline_matrix(job, pd.DataFrame(rows, columns=list(SCHEMA), dtype=object))
    plan, decoder = FeaturePlan(job, {}, matrix.categories), EventDecoder(job)
    payloads = [json.dumps(row).encode() for row in rows]
    found = plan.matrix(decoder.decode_all(payloads))
    assert found.tobytes() == np.asarray(matrix.values).tobytes()
    assert found.tobytes() == b"".join(plan.matrix(decoder.decode_all([each])).tobytes() for each in payloads)
    texts = matrix.categories.get("v")
    values = [None if math.isnan(value) else value for value in found[:, 0].tolist()]
    return values if texts is None else [None if value is None else texts[int(value)] for value in values]


def one(expression: str, **event: object) -> float | str | None:
    return computed(expression, [event])[0]


# ---------------------------------------------------------------------- texts

texts = st.lists(st.none() | st.text("ab-ß😀 \0", max_size=12) | st.text(max_size=6), min_size=1, max_size=12)
parts = st.text("ab-ß😀", min_size=1, max_size=2)


def of_pandas(values: list[str | None], compute) -> list[str | None]:
    found = compute(pd.Series(values, dtype=object).str)
    return [value if isinstance(value, str) else None for value in found]


def changed(call: str, values: list[str | None]) -> list[float | str | None]:
    return computed(f"category({call})", [{"s": value} for value in values])


@given(texts, parts, st.text("ab-ß😀'\"", max_size=3))
@example(["aaa", "aaaa", "", None], "aa", "a")
@example(["-", "--"], "-", "")
def test_texts_are_replaced_as_by_pandas(values, old, new):
    expected = of_pandas(values, lambda column: column.replace(old, new, regex=False))
    assert changed(f"replace(s, {old!r}, {new!r})", values) == expected


@given(texts, parts, st.integers(-4, 4))
@example(["aaa", "aaaa", "", None], "aa", -1)
@example(["a-b", "a", "-", "--", ""], "-", 1)
def test_texts_are_split_as_by_pandas(values, separator, index):
    expected = of_pandas(values, lambda column: column.split(separator, regex=False).str[index])
    assert changed(f"split(s, {separator!r}, {index})", values) == expected


@given(texts, st.integers(-6, 6), st.none() | st.integers(1, 6))
@example(["abcdef", "ab", "", None], -3, 2)
@example(["abcdef", "ab", ""], -9, 4)
def test_substrings_are_the_slices_of_pandas(values, begin, length):
    expected = of_pandas(values, lambda column: column[begin:].str[:length])
    more = "" if length is None else f", {length}"
    assert changed(f"substring(s, {begin}{more})", values) == expected


def test_a_text_that_replacing_makes_too_long_is_missing():
    at_most = 65_536
    event = {"s": "a" * (at_most // 4) + "b"}
    assert one('len(replace(s, "a", "1234"))', **event) is None
    assert one('len(replace(s, "b", ""))', **event) == at_most // 4
    assert one('len(replace(replace(s, "b", ""), "a", "1234"))', **event) == at_most
    assert one('len(replace(s, "b", "B"))', s="b" * (at_most + 1)) == at_most + 1
    doubled = "s"
    for _ in range(16):
        doubled = f'replace({doubled}, "a", "{"a" * 200}")'
    assert one(f"len({doubled})", s="a" * 1_000) is None


patterns = st.sampled_from(["a+", "^-", "ß|😀", "(a)(b)?", "", "[^a]$", r"\w-", "(?s).{3}", "(?i)A*B"])


@given(texts, patterns, st.integers(0, 2))
@example(["ab", "a", "", None, "x"], "(a)(b)?", 2)
def test_patterns_find_what_python_finds(values, pattern, group):
    search = re.compile(pattern.replace("$", r"\Z"), re.ASCII).search
    matches = [None if value is None else search(value) for value in values]
    found = computed(f"regex(s, {pattern!r})", [{"s": value} for value in values])
    assert found == [match is not None for match in matches]
    if group <= re.compile(pattern).groups:
        assert changed(f"regex(s, {pattern!r}, {group})", values) == [match and match[group] for match in matches]


def test_a_pattern_is_found_in_linear_time_and_not_in_what_is_too_long():
    """The first takes Python's `re` longer than the universe is old."""
    assert one('regex(s, "(a+)+$")', s="a" * 65_535 + "b") == 0
    assert one('regex(s, "b")', s="a" * 65_535 + "b") == 1
    assert one('regex(s, "b")', s="a" * 65_536 + "b") == 0
    large = f'regex(s, "{"[ab]" * 200}")'
    assert one(large, s="a" * 40_000) == 1
    assert one(large, s="a" * 60_000) == 0
    assert one(r'len(regex(s + "\ud800", ".$", 0))', s="a") == 3  # which is no text of an event


def test_patterns_are_bounded_together():
    with pytest.raises(ValidationError, match="it comes to more than 4,000 operations"):
        job_of(" or ".join(f"regex(s, 'a{n}')" for n in range(40)))


def test_the_first_case_whose_condition_is_true_is_taken():
    rows = [{"a": value} for value in (1.0, 5.0, 10.0, None)]
    assert computed("case(a < 2, 1, a < 7, b, a < 11, 3)", rows) == [1, None, 3, None]
    found = computed('category(case(a < 2, "x", a < 7, s, "z"))', [*rows, {"a": 3, "s": "y"}])
    assert found == ["x", None, "z", "z", "y"]
    assert computed("case(a < 2, g, True)", [{"a": 1.0}, {"a": 1.0, "g": True}, {}]) == [None, 1, 1]
    many = ", ".join(f"a == {n}, {n} * 2" for n in range(16))
    assert computed(f"case({many}, -1)", [{"a": 15.0}, {"a": 16.0}]) == [30, -1]


# ---------------------------------------------------------------------- hashes


def crc_32(text: str) -> int:
    """CRC-32 as ISO 3309 and zlib have it, bit after bit."""
    found = 0xFFFFFFFF
    for byte in text.encode():
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0xEDB88320 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


@given(texts, st.integers(2, 2**24))
@example(["123456789", "", None, "é", "😀"], 2**24)
def test_a_hash_is_the_crc_32_of_the_text(values, count):
    expected = [None if value is None else crc_32(value) % count for value in values]
    assert computed(f"hash(s, {count})", [{"s": value} for value in values]) == expected


def test_hashes_stay_as_they_are():
    assert crc_32("123456789") == 0xCBF43926  # the check value by which the algorithm is told
    assert one("hash(s, 1000)", s="123456789") == 0xCBF43926 % 1000 == 262
    assert computed("hash(s, 1000)", [{"s": name} for name in ("UA", "AA", "", "Zürich")]) == [520, 573, 0, 798]


def test_a_number_is_hashed_by_its_text():
    big = 2**53 + 1
    assert one("hash(i, 16777216)", i=big) == crc_32(str(big)) % 2**24
    assert one("hash(i, 99)", i=-7) == one("hash(a, 99)", a=-7.0) == one("hash(s, 99)", s="-7") == crc_32("-7") % 99
    assert one("hash(a, 99)", a=0.1) == crc_32("0.1") % 99
    assert one("hash(a, 99)", a=-0.0) == crc_32("0") % 99
    assert one("hash(a, 99)", a=None) is None
    assert one("hash(1 / a, 99)", a=0) is None


def test_half_of_a_surrogate_pair_has_a_hash():
    assert one(r"hash(s + '\ud800', 99)", s="x") == zlib.crc32(b"x\xed\xa0\x80") % 99


# ---------------------------------------------------------------------- buckets

edges = st.lists(st.floats(-1e300, 1e300) | st.integers(-9, 9).map(float), min_size=1, max_size=9, unique=True)


@given(edges.map(sorted), st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=8))
def test_buckets_are_those_of_numpy_digitize(edges, values):
    near = [float(np.nextafter(edge, to)) for edge in edges for to in (-math.inf, edge, math.inf)]
    values = [*values, *near]
    found = computed(f"bucket(a, {edges!r})", [{"a": value} for value in values])
    digitized = np.digitize(np.array(values, np.float64), edges).tolist()
    assert found == [None if value is None else each for value, each in zip(values, digitized, strict=True)]


def test_what_is_infinite_is_in_the_first_or_last_bucket_and_what_is_missing_in_none():
    assert computed("bucket(b / a, [-5, 0, 5])", [{"a": 0, "b": b} for b in (-1, 1, 0, None)]) == [0, 3, None, None]
    assert computed("bucket(i, (1,)) + 10 * bucket(g, (1,))", [{"i": 1, "g": True}, {"i": 0, "g": False}]) == [11, 0]
    assert computed("bucket(3, [1, 2])", [{}, {}]) == [2, 2]


# ---------------------------------------------------------------------- places

degrees = st.one_of(
    st.none(), st.floats(-200, 200), st.sampled_from([-180.0, -90.0, -0.0, 0.0, 90.0, 180.0, 180.0000001, 1e300])
)
places = st.lists(st.fixed_dictionaries(dict.fromkeys("abcd", degrees)), min_size=1, max_size=12)


def is_place(latitude, longitude):
    return None not in (latitude, longitude) and abs(latitude) <= 90 and abs(longitude) <= 180


@pytest.mark.parametrize(
    ("first", "second", "kilometres"),
    [
        # The quarter and the half of a great circle, and a degree of it.
        ((0, 0), (0, 90), 6371.0088 * math.pi / 2),
        ((90, 0), (-90, 123), 6371.0088 * math.pi),
        ((0, 0), (0, 180), 6371.0088 * math.pi),
        ((-0.5, 7), (0.5, 7), 6371.0088 * math.pi / 180),
        ((0, 179.5), (0, -179.5), 6371.0088 * math.pi / 180),
        # As published with the Python package `haversine`: Lyon and Paris.
        ((45.7597, 4.8422), (48.8567, 2.3508), 392.2172595594006),
        ((52.1, 5.2), (52.1, 5.2), 0),
    ],
)
def test_distances_are_those_that_are_known(first, second, kilometres):
    names = dict(zip("abcd", (*first, *second), strict=True))
    assert one("haversine(a, b, c, d)", **names) == pytest.approx(kilometres, rel=1e-6)
    written = ", ".join(map(str, (*first, *second)))
    assert one(f"haversine({written})") == pytest.approx(kilometres, rel=1e-6)
    assert one("haversine(a, b, c, d)", **names) == one(f"haversine({written})")


@given(places)
def test_a_distance_is_that_of_vectors_and_missing_where_there_is_no_place(rows):
    found = computed("haversine(a, b, c, d)", rows)
    for row, distance in zip(rows, found, strict=True):
        a, b, c, d = (row[name] for name in "abcd")
        if not (is_place(a, b) and is_place(c, d)):
            assert distance is None
            continue
        x, y = (
            np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
            for lat, lon in ((math.radians(a), math.radians(b)), (math.radians(c), math.radians(d)))
        )
        angle = math.atan2(float(np.linalg.norm(np.cross(x, y))), float(x @ y))
        assert distance == pytest.approx(6371.0088 * angle, rel=1e-6, abs=0.001)


def test_a_distance_has_the_same_bits_without_compiled_loops_and_its_model_records_the_maths_library(monkeypatch):
    draw = np.random.default_rng(3)
    rows = [
        dict(zip("abcd", draw.uniform((-90, -180, -90, -180), (90, 180, 90, 180)).tolist(), strict=True))
        for _ in range(500)
    ]
    expression = "haversine(a, b, c, d) % 0.001"
    found = computed(expression, rows)
    monkeypatch.setattr(maths, "_fast", None)
    assert computed(expression, rows) == found
    assert "maths library" in definitions_of(job_of(expression)).machine


def bisected(latitude: float, longitude: float, length: int) -> str:
    """A geohash as its inventor describes it, bit after bit, in exact fractions."""
    ranges = [[Fraction(-180), Fraction(180)], [Fraction(-90), Fraction(90)]]
    bits = ""
    for bit in range(5 * length):
        value, within = Fraction((longitude, latitude)[bit % 2]), ranges[bit % 2]
        middle = sum(within) / 2
        bits += str(int(value >= middle))
        within[value < middle] = middle
    alphabet = "0123456789bcdefghjkmnpqrstuvwxyz"
    return "".join(alphabet[int(bits[at : at + 5], 2)] for at in range(0, len(bits), 5))


@pytest.mark.parametrize(
    ("latitude", "longitude", "published"),
    [
        (57.64911, 10.40744, "u4pruydqqvj"),  # of Wikipedia, as the next
        (42.605, -5.603, "ezs42"),
        (45.37, -121.7, "c216ne"),  # of the tests of `pr_geohash`, as the others
        (47.6062095, -122.3320708, "c23nb62w20st"),
        (35.6894875, 139.6917064, "xn774c06kdtv"),
        (-33.8671390, 151.2071140, "r3gx2f9tt5sn"),
        (51.5001524, -0.1262362, "gcpuvpk44kpr"),
    ],
)
def test_geohashes_are_those_that_are_published(latitude, longitude, published):
    for length in range(1, len(published) + 1):
        assert one(f"category(geohash(a, b, {length}))", a=latitude, b=longitude) == published[:length]
    assert one(f"geohash({latitude}, {longitude}, {length}) == {published!r}") == 1


borders = st.builds(
    lambda cell, bits, step: float(np.nextafter((cell % 2**bits) * 180 / 2**bits - 90, step)),
    st.integers(0, 2**30),
    st.integers(1, 30),
    st.sampled_from([-1e3, 1e3]),
)


@given(
    st.lists(st.fixed_dictionaries({"a": degrees | borders, "b": degrees | borders}), min_size=1, max_size=12),
    st.integers(1, 12),
)
@example([{"a": -5e-324, "b": 5e-324}, {"a": float(np.nextafter(45, 0)), "b": -90.0}], 12)
@example([{"a": None, "b": 1.0}], 3)
def test_geohashes_are_those_of_bisection_and_missing_where_there_is_no_place(rows, length):
    expected = [bisected(row["a"], row["b"], length) if is_place(row["a"], row["b"]) else None for row in rows]
    assert computed(f"category(geohash(a, b, {length}))", rows) == expected


def test_a_geohash_or_a_part_of_a_text_can_be_the_key_of_a_lookup():
    fields = {"x": "float?"}
    lookups = {
        "cell": {"map": "m", "key": "geohash(a, b, 5)", "fields": fields},
        "part": {"map": "n", "key": ['split(s, "-", 1)', "hash(s, 9)"], "fields": fields},
    }
    given_job = Job.model_validate(VALUES | {"lookups": lookups, "features": {"v": "cell.x * 10 + part.x"}})
    tables = {name: LookupTable(lookup) for name, lookup in given_job.lookups.items()}
    tables["cell"].put("ezs42", '{"x": 4}')
    tables["part"].put(f"UA|{crc_32('EWR-UA') % 9}", '{"x": 2}')
    events = [{"a": 42.605, "b": -5.603, "s": "EWR-UA"}, {"a": 42.605, "b": -5.603, "s": "EWR"}]
    decoded = EventDecoder(given_job).decode_all([json.dumps(event).encode() for event in events])
    np.testing.assert_array_equal(FeaturePlan(given_job, tables, {}).matrix(decoded)[:, 0], [42, np.nan])


def test_what_is_infinite_is_no_place():
    assert one("haversine(1 / a, b, b, b)", a=0, b=1) is None
    assert one("haversine(b, b, b, -1 / a)", a=0, b=1) is None
    assert one("geohash(1 / a, b, 5) is None", a=0, b=1) == 1


# ---------------------------------------------------------------------- calls of all with all


def call_of(name: str):
    function = FUNCTIONS[name]
    written = {Type.NUMBER: st.sampled_from(["0", "1", "-1", "2.5", "7"]), Type.STRING: st.sampled_from(["'a'", "'-'"])}
    args = [
        written[kind] if position in function.constant else {Type.NUMBER: some_numbers, Type.STRING: some_texts}[kind]
        for position, kind in enumerate(function.takes)
    ]
    return st.tuples(*args).map(lambda given: f"{name}({', '.join(given)})")


def calls_giving(*kinds: Type):
    names = [name for name, each in FUNCTIONS.items() if each.gives in kinds and Type.TIMESTAMP not in each.takes]
    return st.sampled_from([name for name in names if name != "timestamp"]).flatmap(call_of)


some_numbers = st.deferred(
    lambda: (
        st.sampled_from(["a", "b", "i", "g", "0", "-91", "12.5", "1e300", "(1 / b)"])
        | calls_giving(Type.NUMBER, Type.BOOL)
        | st.builds("hash({}, 7)".format, some_numbers | some_texts)
        | st.builds("bucket({}, [-1, 0.5, 7])".format, some_numbers)
    )
)
some_texts = st.deferred(
    lambda: st.sampled_from(["s", "'a-b'", "''", "string(i)", "string(1 / a)"]) | calls_giving(Type.STRING)
)


@settings(max_examples=200)
@given(some_numbers)
@example("haversine(1, 2, a, -1 / b)")
@example("len(geohash(0.5, 12, 3))")
def test_a_call_is_refused_or_computed_alike_however_events_come(call):
    try:
        job_of(call)
    except ValidationError:
        reject()
    computed(call, [{"a": 0.5, "b": -120.25, "s": "a-b", "i": 2**53 + 1, "g": True}, {}, {"a": 1e300, "b": 0, "s": ""}])
