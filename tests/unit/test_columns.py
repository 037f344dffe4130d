"""Events in columns: the compiled decoder and its twin in Python read the same from any bytes."""

from __future__ import annotations

import datetime as dt
import gc
import json
import random

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import not_here

from gridscore.compiled import compiled
from gridscore.features import EventColumns, EventDecoder, FeaturePlan, LookupTable, events
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
            "n": "int?",
            "s": "string",
            "q": {"type": "string?", "json": "ключ"},
            "f": "bool?",
            "t": "timestamp?",
            "u": {"type": "timestamp?", "unit": "ms"},
            "w": {"type": "timestamp?", "unit": "s", "json": "@when"},
        },
        "lookups": {
            "one": {"map": "l1", "key": "s", "fields": {"x": "float?"}},
            "two": {"map": "l2", "key": "n", "fields": {"x": "float?"}},
        },
        "features": {
            "a": "a + b",
            "f": "f",
            "t": "epoch(t) - epoch(u) + epoch(w)",
            "s": "len(s) + len(q)",
            "x": "one.x + two.x",
        },
    }
)
INDEX = {"ab": 1, "": 2, "é": 3, 5: 4, 2**53 + 1: 5, None: 6}

KEYS = [
    "a",
    "b",
    "n",
    "s",
    "q",
    "ключ",
    "f",
    "t",
    "u",
    "@when",
    'a\\"b',
    'a"b',
    "other",
    "",
    "\\u0061",
    "é",
    "a\tb",
    "\\u043a\\u043b\\u044e\\u0447",
    "\\u0040when",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\x",
    "\\/",
    "x" * 1030 + "\\n",
]
WRITTEN_NUMBERS = """
0 -0 1 -1 5 01 00 -01 0.0 -0.0 0.5 .5 5. - +1 1e5 1E5 1e+5 1e-5 1e 1e+ 1.e5 0e0 -0e0 0e99999 0.0e-400 1e22 1e23 1e-22
1e-23 123456789012345678 1234567890123456789 9007199254740993 9007199254740993.0 9223372036854775807
9223372036854775808 -9223372036854775808 -9223372036854775809 18446744073709551615 18446744073709551616
99999999999999999999999999999 1e308 1e309 1e400 -1e400 1e-400 5e-324 2.2250738585072011e-308 1.7976931348623157e308
1.7976931348623159e308 0.1 3.14159265358979 123456.789012345678901 8.442185152504812e-05 1700000000000 1700000000.5
0.000000000000000000000000000000000000000001
179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910
NaN Infinity -Infinity nan 1_000 0x10 1a 9007199254740992 9007199254740993e0 1e0001 1e00022 72057594037927945 -1.5 2.0
"""
STRINGS = [
    *[
        '""',
        '"ab"',
        '"AB"',
        '"é"',
        '"\\u00e9"',
        '"a\\nb"',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"😀"',
        '"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u00E9\\u0436\\u4e2d\\uD83D\\uDE00 é中😀"',
        '"a\tb"',
        '"a\x00"',
    ],
    *['"' + "x" * 40 + '"', '"abcdefg"', '"abcdefgh"', '"abcdefghi\x1f"', '"\x7f"', '"unended', '"\\x"', '"5"', "'ab'"],
    '"' + "y" * 200 + 'é"',
]
WRITTEN_TIMES = """
2020-01-01T00:00:00Z 2020-02-29T23:59:59.123456Z 2021-02-29T00:00:00Z 1969-12-31T23:59:59.999999Z
2020-01-01T00:00:00.1Z 2020-01-01T00:00:00.Z 2020-01-01T00:00:00.1234567Z 2020-01-01T00:00:00+02:00
2020-13-01T00:00:00Z 2020-01-01t00:00:00z 2020-01-01T24:00:00Z 2020-01-01T23:59:60Z 2020-01-01T00:00:00
0001-01-01T00:00:00Z 1900-02-29T00:00:00Z 1700-01-01T00:00:00.5Z 1699-12-31T23:59:59Z 2250-12-31T23:59:59.999999Z
9999-12-31T23:59:59.999999Z 0001-01-01T00:00:00+14:00 2000-02-29T12:00:00-00:00 2020-00-01T00:00:00Z
2020-01-01T00:00:00+00:00 2020-01-01T00:00:00.5+00:00 2020-02-28T23:59:59.9999995Z 1969-12-31T23:59:59.999999499+00:00
2020-01-01T00:00:00.+00:00 2020-01-01T00:00:00.123456789Z 2020-01-01T00:00:00.123456489123456789+00:00 2020-01-01+00:00
2020-01-01T00:00+00:00 2020-01-01T00:00:00.12345650Z 2020-01-01T00:00:00.1234567x9Z 2250-12-31T23:59:59.9999999Z
2020-01-01T00:00:00-00:00 2020-01-01T00:00:00.25+05:53 2020-12-31T23:59:59.9999999-00:01 2020-01-01T00:00:00+23:59
2020-01-01T00:00:00-23:60 2020-01-01T00:00:00+24:00 2020-01-01T00:00:00+0200 2020-01-01T00:00:00+02
1700-01-01T00:00:00+14:00 2250-12-31T23:59:59.9999999-12:00 2020-01-01T00:00:00*02:00
2020-01-01T00:00:00.5+2:000 2020-01-01T00:00:00.+02:00
2020-01-00T00:00:00Z 2020-1-01T00:00:00ZZ 2020-01-01T00:00:00.12x45Z 2100-02-29T00:00:00Z
"""
NUMBERS = WRITTEN_NUMBERS.split()
TIMES = [f'"{time}"' for time in [*WRITTEN_TIMES.split(), "2020-01-01 00:00:00Z"]]
OTHER = [
    "null",
    "true",
    "false",
    "nul",
    "nulll",
    "tru",
    "fals",
    "True",
    "[]",
    "{}",
    "[1,2]",
    '{"a":1}',
    "",
    " ",
    "[" * 2000,
]
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r ", "\x0b", "\xa0"])
doubles = st.floats(allow_nan=False, allow_infinity=False)
numbers = (
    st.sampled_from(NUMBERS)
    | doubles.map(repr)
    | st.integers(-(2**70), 2**70).map(str)
    | st.decimals(allow_nan=False, allow_infinity=False).map(str)
)
times = st.sampled_from(TIMES) | st.builds(
    lambda time, zone: f'"{time.isoformat()}{zone}"',
    st.datetimes(),
    st.just("Z") | st.from_regex(r"[+-]([01][0-9]|2[0-4]):[0-6][0-9]", fullmatch=True),
)
strings = (
    st.sampled_from(STRINGS)
    | st.text(max_size=12).map(json.dumps)
    | st.text(max_size=12).map(lambda s: json.dumps(s, ensure_ascii=False))
)
nested = st.recursive(
    st.sampled_from(
        ["null", "true", "[]", "{}", "[ ]", "{ }", "nul", "01", "1.", "-", '"', "[,]", "{,}", '{"a"}', "\\"]
    )
    | strings
    | numbers,
    lambda each: (
        st.lists(each, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(strings, each), max_size=3).map(
            lambda items: f"{{{' ,'.join(f'{key}: {value}' for key, value in items)}}}"
        )
    ),
    max_leaves=4,
)
values = numbers | strings | times | st.sampled_from(OTHER) | nested
RIGHT = {
    "a": numbers, "b": numbers, "n": numbers, "s": strings, "ключ": strings, "f": st.sampled_from(OTHER), "t": times,
    "u": numbers, "@when": numbers,
}  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """An event, mostly with what its schema wants, and mostly well-formed."""
    kinds = draw(st.lists(st.sampled_from(list(RIGHT)), unique=True) | st.lists(st.sampled_from(KEYS)))
    kinds += [key for key in ("s", "a") if key not in kinds and draw(st.integers(0, 9))]
    space = draw(SPACES)
    items = []
    for key in kinds:
        value = draw(RIGHT[key] if key in RIGHT and draw(st.integers(0, 4)) else values)
        items.append(f'{space}"{key}"{space}:{space}{value}{space}')
    text = f"{space}{{{','.join(items)}}}{space}".encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 11)):
        case 0:
            return text[: draw(st.integers(0, len(text)))]
        case 1:
            at = draw(st.integers(0, len(text)))
            return text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 2)) :]
        case 2:
            return text + draw(st.sampled_from([b"x", b"\0", b",", b"}", b"{}", b" "]))
    return text


@pytest.fixture(scope="module")
def twins() -> tuple[EventDecoder, EventDecoder]:
    """Two decoders: compiled, and in Python."""
    if compiled("gridscore.features._columns") is None:
        not_here("the inner loops are not compiled")
    fast = EventDecoder(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "compiled", lambda _: None)
        return fast, EventDecoder(JOB)


def exactly(column: EventColumns) -> list[object]:
    """All that can be asked of events, bit for bit."""
    found: list[object] = [len(column)]
    for name, kind in JOB.schema_.items():
        found.append([(type(value), repr(value)) for value in column.objects(name)])
        if kind.type in {"string", "int"}:
            found.append(column.rows(name, INDEX, 1).tolist())
        if kind.type != "string":
            numbers = column.column(name)
            found.append((numbers.dtype, numbers.tobytes()))
    return found


def assert_same(twins: tuple[EventDecoder, EventDecoder], payloads: list[bytes]) -> None:
    (fast, fast_bad), (pure, pure_bad) = (decoder.decode_good(payloads) for decoder in twins)
    assert fast_bad == pure_bad
    assert exactly(fast) == exactly(pure)
    rows = [*range(0, len(fast), 2), *range(min(2, len(fast)))]
    assert exactly(fast.take(rows)) == exactly(pure.take(rows))
    assert exactly(fast.without({0})) == exactly(pure[1:])


@settings(max_examples=200)
@given(payloads=st.lists(texts() | st.binary(max_size=20), max_size=8))
def test_the_compiled_decoder_reads_what_its_twin_reads(twins, payloads):
    assert_same(twins, payloads)


def test_every_value_is_read_as_the_twin_reads_it_in_every_field(twins):
    for key in RIGHT:
        required = '"s":"x","a":1' if key not in {"s", "a"} else '"s":"x"' if key == "a" else '"a":1'
        for value in [*NUMBERS, *STRINGS, *TIMES, *OTHER]:
            assert_same(twins, [f'{{{required},"{key}":{value}}}'.encode()])
        assert_same(twins, [f'{{{required},"other":{value}}}'.encode() for value in [*NUMBERS, *STRINGS, *OTHER]])


UNNAMED = [
    '{"id": [1, -2.5e-3, {"deep": [[[]], {}]}], "\u0444": null}',
    '"\\"quoted\\" \\\\ \\/ \\b\\f\\n\\r\\t \\u00e9 \\uD83D\\uDE00"',
    '"é ж 中 😀 and then plain text again"',
    '[true, false, null, "\u0436\\n", 1e999, 123456789012345678901234567890]',
    "[" * 64 + "]" * 64,
    '{"a":' * 64 + "0" + "}" * 64,
]


BROKEN = """[1} {"a":1] [1,] {"a":1,} {a:1} {"a":} [ { {"a":[ 1.5.2 1e --1 - +1 .5 tru truth ж " '1'"""
BROKEN_ESCAPES = r"\a \ \u \u12 \u12g4 \ud800 \ud800x \ud800\n \ud800\ud800 \udc00 \ud800\udc0 \U0041"


def test_what_the_schema_does_not_name_is_passed_over_without_a_call():
    module = compiled("gridscore.features._columns")
    if module is None:
        pytest.skip("the inner loops are not compiled")

    def fall_back(position):
        raise AssertionError(UNNAMED[position])

    texts = [f'{{"x": {value}, "ключ": {value}, "a": 1.5, "y":{value}}}'.encode() for value in UNNAMED]
    cells = module.Decoder((("a", b"a", 0, False),)).decode(texts, fall_back)
    assert np.frombuffer(cells.numbers(0)).tolist() == [1.5] * len(UNNAMED)


def test_escaped_texts_and_the_times_of_other_languages_are_read_without_a_call():
    """As json.dumps and isoformat of Python write them, Instant of Java and time.Time of Go."""
    module = compiled("gridscore.features._columns")
    if module is None:
        pytest.skip("the inner loops are not compiled")

    def fall_back(position):
        raise AssertionError(texts[position])

    moment = dt.datetime(2020, 1, 1, 0, 0, 0, 123457, dt.UTC)
    cities = ["São Paulo", 'the "Big" Apple\n', "Москва", "😀"]
    times = [
        "2020-01-01T00:00:00.1234567Z",
        "2020-01-01T00:00:00.123456789Z",
        moment.isoformat(),
        moment.astimezone(dt.timezone(dt.timedelta(hours=-3, minutes=-7))).isoformat(),
    ]
    texts = [json.dumps({"город": city, "t": time}).encode() for city, time in zip(cities, times, strict=True)]
    cells = module.Decoder((("s", "город".encode(), 2, False), ("t", b"t", 4, False))).decode(texts, fall_back)
    assert cells.objects(0) == cities
    assert cells.objects(1) == [moment] * 4
    assert cells.objects(1)[3].isoformat() == times[3]
    assert np.frombuffer(cells.numbers(1)).tolist() == [moment.timestamp()] * 4


def test_what_is_passed_over_is_read_as_the_twin_reads_it(twins):
    def both(value):
        return [b'{"s":"x","a":1,"other":%b}' % value, b'{"s":"x","other":{"k":[0,%b]},"a":1}' % value]

    for value in [*UNNAMED, "[" * 65 + "]" * 65, "[1 2]", '{"a" 1}', *BROKEN.split()]:
        assert_same(twins, both(value.encode()))
    for escape in BROKEN_ESCAPES.split():
        for text in (f'"{escape}"', f'"{escape}', f'"{escape}1234"', f'"12345678{escape}"'):
            assert_same(twins, [*both(text.encode()), b'{"s":%b,"a":1}' % text.encode()])
    draw = random.Random(5)
    right = "aéж中\U00010348\U0010ffff".encode()
    for _ in range(3_000):  # damaged UTF-8
        text = bytearray(right * draw.randint(1, 2))
        for _ in range(draw.randint(0, 2)):
            text[draw.randrange(len(text))] = draw.choice(b"\x7f\x80\xbf\xc0\xc1\xc2\xe0\xed\xef\xf0\xf4\xf5\xffA'\"")
        at = draw.randint(0, len(text))
        assert_same(twins, both(b'"%b"' % text[:at]))


def test_decimal_numbers_are_rounded_as_the_twin_rounds_them(twins):
    draw = random.Random(1)
    payloads = []
    for _ in range(20_000):
        digits = str(draw.randrange(10 ** draw.randint(1, 20)))
        point = draw.randint(0, len(digits))
        number = f"{digits[:point].lstrip('0') or '0'}.{digits[point:] or '0'}"
        if draw.random() < 0.5:
            number += f"e{draw.randint(-40, 40)}"
        payloads.append(f'{{"s":"","a":{number},"b":-{draw.random()!r}}}'.encode())
    assert_same(twins, payloads)


def test_what_is_cut_anywhere_is_refused(twins):
    whole = (
        '{"a":1.5,"b":null,"n":3,"s":"AB","ключ":"q","f":true,"t":"2020-01-01T00:00:00Z","u":1,"other":"x"}'.encode()
    )
    _, bad = twins[0].decode_good([whole[:end] for end in range(len(whole) + 1)])
    assert list(bad) == list(range(len(whole)))
    assert_same(twins, [whole[:end] for end in range(len(whole) + 1)])


def test_features_have_the_same_bits(twins):
    tables = {name: LookupTable(lookup) for name, lookup in JOB.lookups.items()}
    tables["one"].put("ab", '{"x": 2.5}')
    tables["two"].put(5, '{"x": 0.5}')
    plan = FeaturePlan(JOB, tables, {})
    draw = random.Random(2)
    payloads = [
        json.dumps(
            {
                "a": draw.gauss(0, 10),
                "b": draw.choice([None, 1, 0.1]),
                "n": draw.choice([None, 5, 6]),
                "s": draw.choice(["ab", "a", "é", "\n"]),
                "f": draw.choice([None, True, False]),
                "t": draw.choice([None, "2020-01-01T00:00:00.25Z", "2020-01-01T00:00:00+01:00"]),
                "u": draw.choice([None, 1, 2.5]),
                "@when": draw.choice([None, 1, 2.5]),
            }
        ).encode()
        for _ in range(500)
    ]
    fast, pure = (plan.matrix(decoder.decode_all(payloads)).tobytes() for decoder in twins)
    structs = plan.matrix([twins[1].decode(payload) for payload in payloads]).tobytes()
    assert fast == pure == structs


def test_rows_that_are_remembered_are_forgotten_when_their_table_changes(twins):
    draw = random.Random(4)
    keys = ["", "x", "é", "ab", "k" * 31, "k" * 32, *(f"k{number}" for number in range(30))]
    payloads = [json.dumps({"a": 1, "s": key}, ensure_ascii=False).encode() for key in keys * 2]
    columns = [decoder.decode_all(payloads) for decoder in twins]
    held = [LookupTable(JOB.lookups["one"]) for _ in range(2)]
    for number in range(1_000):
        table, key = draw.choice(held), draw.choice(keys)
        match draw.randrange(12):
            case 0 | 1 | 2:
                table.remove(key)
            case 3:
                table.put(key, "bad")
            case 4 if number % 10 == 0:
                table.clear()
            case _:
                table.put(key, f'{{"x": {number}}}')
        for table in held:
            expected = table.rows(keys * 2).tolist()
            assert [table.rows_of(column, "s").tolist() for column in columns] == [expected, expected]


def test_keys_that_come_in_another_order_or_twice_are_found(twins):
    draw = random.Random(3)
    items = ['"a":1', '"s":"x"', '"n":2', '"x1":1', '"x2":"y"', '"b":2.5']
    payloads = [f"{{{','.join(draw.sample(items, len(items)))}}}".encode() for _ in range(200)]
    assert_same(twins, [*payloads, b'{"a":1,"s":"x","a":2}', b'{"a":1,"s":"x","n":null,"n":1.5}'])


def test_other_types_than_bytes_are_read_too(twins):
    assert_same(twins, [bytearray(b'{"a":1,"s":"x"}'), memoryview(b'{"a":1,"s":"x"}'), '{"a":1,"s":"é"}', b""])
    with pytest.raises(TypeError):
        twins[0].decode_good([5])


def test_nothing_is_leaked(twins):
    payloads = [
        b'{"a":1.5,"s":"ab","n":5,"t":"2020-01-01T00:00:00Z"}',
        '{"a":1.5,"s":"é","ключ":"я","n":12345678901}'.encode(),
        b'{"a":1.5,"s":"\\u00e9","t":"2020-01-01T00:00:00+01:00"}',
        '{"a":1.5,"s":"éé","b":"x"}'.encode(),
        b'{"a":',
    ]

    def work(times: int) -> int:
        for number in range(times):
            more = [b'{"a":%d,"s":"k%d"}' % (number, number)]
            column, _ = twins[0].decode_good(payloads * 20 + more)
            exactly(column.take(range(0, len(column), 3)))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = work(100)
    assert work(200) - before < 2_000_000


def test_names_and_texts_of_any_length_are_told_apart():
    module = compiled("gridscore.features._columns")
    if module is None:
        pytest.skip("the inner loops are not compiled")
    for length in range(1, 40):
        name = b"abcdefgh" * 5
        name = name[:length]
        others = [name[:at] + b"_" + name[at + 1 :] for at in range(length)] + [name[:-1], name + b"i"]
        decode = module.Decoder((("a", name, 2, True),)).decode
        texts = [b'{"%b":"%b"}' % pair for other in others for pair in [(name, name), (other, name), (name, other)]]
        cells = decode(texts, lambda _: None)
        expected = [text.decode() for other in others for text in (name, b"", other)]
        assert [text or "" for text in cells.objects(0)] == expected
        index = {text: row for row, text in enumerate(expected, 1)}
        rows = np.frombuffer(cells.rows(0, index, length), np.intp).tolist()
        assert rows == [index.get(text, 0) for text in cells.objects(0)]


def test_what_is_asked_for_wrongly_is_an_error_and_no_crash():
    module = compiled("gridscore.features._columns")
    if module is None:
        pytest.skip("the inner loops are not compiled")
    cells = module.Decoder((("a", b"a", 0, False), ("s", b"s", 2, False))).decode([b'{"a":1,"s":"x"}'], lambda _: None)
    for call in (
        lambda: cells.objects(2),
        lambda: cells.objects(-1),
        lambda: cells.take([1]),
        lambda: cells.take([-1]),
    ):
        with pytest.raises(IndexError):
            call()
    for call in (
        lambda: cells.numbers(1),
        lambda: cells.rows(0, [], 1),
        lambda: cells.rows(1, {"x": "y"}, 1),
        type(cells),
        lambda: module.Decoder((1,)),
        lambda: module.Decoder([("a", b"a", 0, False)]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="kind"):
        module.Decoder((("a", b"a", 9, False),))
    with pytest.raises(ValueError, match="name"):
        module.Decoder((("a", b"", 0, False),))
    with pytest.raises(AttributeError):
        module.Decoder((("a", b"a", 0, False),)).decode([b""], lambda _: 5)
    assert np.frombuffer(cells.numbers(0)).tolist() == [1.0]
