"""Training on a history, and a worker that scores the same events, compute the same bits, from file to score.

The worker is a real one, on a stub cluster in this process.
"""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost as xgb
from pyarrow import parquet

from gridscore.cli.load import _lookup_target
from gridscore.errors import TableError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, OfflineMatrix, offline_matrix
from gridscore.features.cells import READERS
from gridscore.features.tables import event_keys, lookup_entries, read_history, read_lookup, read_table, rows_as_json
from gridscore.job import FieldType, parse_job
from gridscore.sources.logfile.formats import format_of
from gridscore.sources.logfile.settings import LogfileSourceSettings
from gridscore.sources.tables import BadRow, Row, TableFile
from gridscore.testing import StubCluster


async def scores_of(job, booster, history, lookups, wanted):
    """The results by row of a history that is put into the grid as a producer would, and the dead letters."""
    async with StubCluster(partitions=3) as cluster:
        client = await cluster.client()
        await client.push_model(booster, job.model.name, alias="champion")
        for name, frame in lookups.items():
            await client.put_events(job.lookups[name].map, dict(lookup_entries(frame, job, name)))
        await client.submit(job)
        await client.put_events(job.events, dict(enumerate(rows_as_json(history, job.schema_))))
        async with cluster.worker():
            results = await cluster.results(job.results, wanted)
            letters = await cluster.results(f"dead-letters.{job.name}", len(history) - wanted)
    return results, letters


MARGIN = parse_job(
    """\
job: prices
events: events.prices
schema: {area: float, rate: float?}
lookups:
  district: {map: lookups.districts, key: area, fields: {level: float?}}
features: {area: area, rate: rate}
margin: coalesce(district.level, rate) * 0.1 + area
model: prices
results: results.prices
""",
    "test",
)


async def test_a_margin_is_added_as_training_added_it(tmp_path):
    draw = np.random.default_rng(1)
    history = pd.DataFrame({"area": draw.integers(0, 9, 200) * 1.0, "rate": draw.normal(size=200)})
    history.loc[draw.integers(0, 200, 40), "rate"] = np.nan
    history.loc[0] = (5.0, np.inf)
    districts = pd.DataFrame({"area": [1, 2, 3], "level": [0.5, -1.5, 2.5]})
    matrix = offline_matrix(MARGIN, history, {"district": districts}, skip_bad=True)
    assert matrix.skipped == len(history) - len(matrix) > 0
    matrix.to_parquet(tmp_path / "m.parquet")
    matrix = OfflineMatrix.from_parquet(tmp_path / "m.parquet")
    data = xgb.DMatrix(matrix.values, draw.integers(0, 2, len(matrix)), base_margin=matrix.margins)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 3}, data, 10)
    matrix.attach(booster)
    data.feature_names = list(matrix.names)
    expected = booster.predict(data)
    assert (expected != booster.predict(xgb.DMatrix(matrix.values, feature_names=list(matrix.names)))).all()

    lacking = history["rate"].isna() & ~history["area"].isin([1, 2, 3])
    lacking[0] = True
    results, letters = await scores_of(MARGIN, booster, history, {"district": districts}, len(matrix))
    scores = np.float32([results[row]["score"] for row in range(len(history)) if row in results])
    assert scores.tobytes() == expected.tobytes()
    assert sorted(results) == np.flatnonzero(~lacking).tolist()
    assert {letter["error"] for letter in letters.values()} == {
        "the job's `margin` gives no number, and has no default"
    }


NASTY = parse_job(
    """\
job: cards
events: events.cards
schema: {id: int?, country: string?, at: timestamp, amount: float?, paid: bool?}
lookups:
  card:
    map: lookups.cards
    key: [id, country]
    fields: {limit: int?, kind: {type: string, default: none}}
  holder: {map: lookups.holders, key: id, fields: {since: timestamp?}}
features:
  amount: amount
  inverse: 1 / amount
  unknown: isnull(1 / amount) + 2 * isnull(id) + 4 * isnull(country)
  id: category(id)
  country: category(country)
  limit: card.limit
  limit_text: category(string(card.limit) + card.kind)
  hour: hour(at, "America/St_Johns")
  minute: minute(at, "Australia/Lord_Howe")
  fraction: epoch(at) % 1
  known_for: at - holder.since
  power: {expression: floor(exp(log(amount) * 3) ** (1 / 3) * 1e15), default: -1}
  huge: {expression: amount * amount, default: -2}
  paid: paid
  digits: hash(id, 16777216)
  limit_digits: hash(card.limit, 16777216)
  begins: category(substring(replace(country, "N", "é"), 0, 1))
  ends: category(split(country, "A", -1))
  cell: {expression: "category(geohash(amount, amount * 60, 7))", default: -3}
  far: haversine(amount, minute(at), hour(at), amount * 60) % 0.001
  step: bucket(amount, [0, 0.1, 2.675, 1e300])
model: cards
results: results.cards
""",
    "test",
)
HISTORY = """\
id,country,at,amount,paid,label
4111111111111111,NA,2010-03-14T03:30:59.9999995Z,0.1,true,0
9007199254740993,null,2010-03-14T03:31:00Z,1e300,false,1
,DE,2024-04-06T15:00:00.123456789Z,0,,0
-9223372036854775808,None,2024-04-06T14:59:59.999999499Z,2.675,1,1
9223372036854775807,nan,1969-12-31T23:59:59.1234565Z,8.442185152504812e-05,0,0
7,,2010-11-07T02:30:59.9+00:00,,TRUE,1
8,"é ""quoted"" ж",2010-11-07T02:31:00Z,-1e-320,False,0
9007199254740992,N/A,2200-02-28T23:59:59.9999994Z,123456.789012345678901,NA,1
"""
EVENTS = [
    (4111111111111111, "NA", "2010-03-14T03:30:59.9999995Z", "0.1", True),
    (9007199254740993, "null", "2010-03-14T03:31:00Z", "1e300", False),
    (None, "DE", "2024-04-06T15:00:00.123456789Z", "0", None),
    (-(2**63), "None", "2024-04-06T14:59:59.999999499Z", "2.675", True),
    (2**63 - 1, "nan", "1969-12-31T23:59:59.1234565Z", "8.442185152504812e-05", False),
    (7, None, "2010-11-07T02:30:59.9+00:00", "null", True),
    (8, 'é "quoted" ж', "2010-11-07T02:31:00Z", "-1e-320", False),
    (9007199254740992, "N/A", "2200-02-28T23:59:59.9999994Z", "123456.789012345678901", None),
]
"""What a producer sends: the same rows."""
CARDS = """\
id,country,limit,kind
4111111111111111,NA,9007199254740993,NA
9007199254740993,null,,b
,DE,1,none
-9223372036854775808,None,-9223372036854775808,None
9223372036854775807,nan,5,
9007199254740992,N/A,9007199254740992,null
"""
HOLDERS = """\
id,since
4111111111111111,2010-03-14T03:30:59.0000005Z
9007199254740993,2010-03-14T03:31:00Z
9223372036854775807,1969-12-31T23:59:59Z
"""
UNNAMED = ('{"items": [{"n": [1, 2.5e-3]}], "😀": null}', '"\\"escaped\\" \\\\ \\ud83d\\ude00"', '"ключ é"', "1e999")
"""Fields that the schema does not name."""


def nasty_frames():
    """The same tables with types, as Parquet has them: whole numbers with gaps, and nanoseconds."""
    ids = pa.array([event[0] for event in EVENTS], pa.int64())
    nanoseconds = pd.to_datetime([event[2] for event in EVENTS], utc=True, format="ISO8601").as_unit("ns")
    yield (
        "history",
        pa.table(
            {
                "id": ids,
                "country": [event[1] for event in EVENTS],
                "at": pa.array(nanoseconds, pa.timestamp("ns", "UTC")),
                "amount": [None if event[3] == "null" else float(event[3]) for event in EVENTS],
                "paid": [event[4] for event in EVENTS],
                "label": [0, 1] * 4,
            }
        ),
    )
    rows = [line.split(",") for line in CARDS.splitlines()[1:]]
    yield (
        "card",
        pa.table(
            {
                "id": pa.array([int(row[0]) if row[0] else None for row in rows], pa.int64()),
                "country": [row[1] for row in rows],
                "limit": pa.array([int(row[2]) if row[2] else None for row in rows], pa.int64()),
                "kind": [row[3] or None for row in rows],
            }
        ),
    )
    since = pd.to_datetime(["2010-03-14T03:30:59.0000005Z", "2010-03-14T03:31:00Z", "1969-12-31T23:59:59Z"], utc=True, format="ISO8601")  # fmt: skip  # noqa: E501
    holders = [4111111111111111, 9007199254740993, 2**63 - 1]
    yield "holder", pa.table({"id": holders, "since": pa.array(since.as_unit("ns"), pa.timestamp("ns", "UTC"))})


@pytest.fixture
def nasty(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "parquet").mkdir()
    for name, text in (("history", HISTORY), ("card", CARDS), ("holder", HOLDERS)):
        (tmp_path / "csv" / f"{name}.csv").write_text(text)
    for name, table in nasty_frames():
        parquet.write_table(table, tmp_path / "parquet" / f"{name}.parquet")
    return tmp_path


def bits(matrix, row=slice(None)):
    return np.array(matrix.values)[row].tobytes()


async def test_nasty_tables_give_the_bits_of_the_stream(nasty):
    matrices = [
        offline_matrix(NASTY, nasty / form / f"history.{form}", nasty / form, keep=["label"])
        for form in ("csv", "parquet")
    ]
    first, second = matrices
    assert bits(first) == bits(second)
    assert first.categories == second.categories
    assert first.categories["country"] == tuple(sorted(event[1] for event in EVENTS if event[1]))
    assert set(first.categories["id"]) == {str(event[0]) for event in EVENTS if event[0] is not None}
    texts = {"9007199254740993NA", f"-{2**63}None", "5none", "9007199254740992null"}
    assert set(first.categories["limit_text"]) == texts
    hours = np.array(first.values)[:, first.names.index("hour")]
    assert hours.tolist() == [1, 1, 12, 12, 20, 0, 23, 20]

    grid = {name: entries_of(nasty, name) for name in ("card", "holder")}
    texts = []
    for row, (number, country, at, amount, paid) in enumerate(EVENTS):
        known = json.dumps({"id": number, "country": country, "at": at, "paid": paid}, ensure_ascii=bool(row % 2))
        text = f'{{"x": {UNNAMED[row % 4]}, "ж": {UNNAMED[-row % 4]}, "amount": {amount}, {known[1:]}'
        texts.append(text.encode())
    tables = {name: LookupTable(NASTY.lookups[name]) for name in grid}
    for name, table in tables.items():
        for key, entry in grid[name]:
            table.put(key, entry)
    plan, decoder = FeaturePlan(NASTY, tables, first.categories), EventDecoder(NASTY)
    assert plan.matrix(decoder.decode_all(texts)).tobytes() == bits(first)
    for row, text in enumerate(texts):
        assert plan.matrix(decoder.decode_all([text])).tobytes() == bits(first, row)

    data = xgb.DMatrix(first.values, first.kept["label"], feature_names=list(first.names))
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 3, "min_child_weight": 0}, data, 20)
    first.attach(booster)
    async with StubCluster(partitions=3) as cluster:
        client = await cluster.client()
        await client.push_model(booster, "cards", alias="champion")
        for name, entries in grid.items():
            await client.put_events(NASTY.lookups[name].map, entries)
        await client.submit(NASTY)
        await client.put_events(NASTY.events, list(enumerate(texts)))
        async with cluster.worker():
            results = await cluster.results(NASTY.results, len(texts))
    scores = np.float32([results[row]["score"] for row in range(len(texts))])
    assert scores.tobytes() == booster.predict(data).tobytes()


def entries_of(folder, name):
    """The entries of a lookup as all of `gridscore load --lookups`, `load --lookup` and Parquet put them."""
    frames = [read_lookup(folder / form / f"{name}.{form}", NASTY, name) for form in ("csv", "parquet")]
    found, typed = (dict(lookup_entries(frame, NASTY, name)) for frame in frames)
    assert found.keys() == typed.keys()
    target = _lookup_target(NASTY, name)
    for form in ("csv", "parquet"):
        path = folder / form / f"{name}.{form}"
        file = TableFile(path, target.key, separator=target.separator, kinds=target.kinds, parts=target.parts)
        rows = {row.key: row for row in file.rows() if isinstance(row, Row)}
        assert rows.keys() == found.keys(), form
        if form == "csv":
            assert {key: json.loads(row.text).get("limit") for key, row in rows.items()} == {
                key: json.loads(entry).get("limit") for key, entry in found.items()
            }
    if name == "card":
        assert "4111111111111111|NA" in found
        assert "9007199254740993|null" in found
        assert len(found) == 5
    return list(found.items())


def test_keys_of_events_keep_their_digits_and_are_there(nasty):
    history = read_history(nasty / "csv" / "history.csv", NASTY, ["label"])
    with pytest.raises(TableError, match="row 3: it has no `id`, which belongs to the key"):
        event_keys(history, ["id"], "the history")
    keys = event_keys(history.drop(index=[2, 5]), ["country", "id", "label"], "the history")
    assert keys[:2] == ["NA|4111111111111111|0", "null|9007199254740993|1"]


def test_whole_numbers_that_have_lost_digits_already_are_refused(nasty):
    history = read_history(nasty / "csv" / "history.csv", NASTY).astype({"id": "float64"})
    with pytest.raises(TableError, match=r"`id` holds whole numbers beyond 2\^53 as floats"):
        list(rows_as_json(history, NASTY.schema_, "the history"))


@pytest.mark.parametrize(
    ("column", "dtype"),
    [("id", "float64"), ("id", "float32"), ("id", "Float32"), ("country", "float64"), ("country", "float32")],
)
def test_a_float_column_that_may_have_lost_digits_is_neither_numbers_nor_texts_nor_keys(column, dtype):
    history = pd.DataFrame({"id": [1, None], "country": "x", "at": "2020-01-01T00:00:00Z", "amount": 1.0, "paid": True})
    number = 2.0**24 if dtype.lower() == "float32" else 2.0**53
    entries = pd.DataFrame({"id": [1, 2], "country": "x", "limit": 1, "kind": "x"})
    for good in (True, False):
        values = pd.Series([number - good, None], dtype=dtype)
        calls = [
            lambda given: list(rows_as_json(history.assign(**{column: given}), NASTY.schema_)),
            lambda given: list(lookup_entries(entries.assign(**{column: given}), NASTY, "card")),
            lambda given: event_keys(history.assign(**{column: given})[:1], [column], "the history"),
        ]
        for call in calls:
            if good:
                assert str(int(number) - 1) in str(call(values))
            else:
                power = 24 if dtype.lower() == "float32" else 53
                with pytest.raises(TableError, match=rf"`{column}` holds whole numbers beyond 2\^{power} as floats"):
                    call(values)


def test_a_string_of_something_else_is_refused_and_not_spelled():
    history = pd.DataFrame({"id": [1, 2], "at": "2020-01-01T00:00:00Z", "amount": 1.0, "paid": True})
    cards = pd.DataFrame({"id": [1, 2], "limit": 1, "kind": "x"})
    grid = {"card": cards.assign(country="x"), "holder": pd.DataFrame({"id": [1], "since": "2020-01-01T00:00:00Z"})}
    for value, what in (([True, False], "true or false"), ([["a"], ["b"]], "a list"), ([{"a": 1}, {}], "an object")):
        with pytest.raises(TableError, match=f"row 1: field `country`: expected a string or null, got {what}"):
            offline_matrix(NASTY, history.assign(country=value), grid)
        with pytest.raises(TableError, match=r"`country`, row 1: .* cannot be a key of the lookup"):
            lookup_entries(cards.assign(country=value), NASTY, "card")
    for call in (
        lambda: list(rows_as_json(history.assign(country=[b"DE", None]), NASTY.schema_)),
        lambda: lookup_entries(cards.assign(country=[b"DE", None]), NASTY, "card"),
    ):
        with pytest.raises(TableError, match="`country` holds bytes, and not texts"):
            call()


def test_a_date_is_a_text_and_not_a_moment():
    dates = pd.Series(["2020-01-31", None], dtype=pd.ArrowDtype(pa.date32()))
    history = pd.DataFrame({"id": 1, "country": dates, "at": "2020-01-01T00:00:00Z", "amount": 1.0, "paid": True})
    assert [json.loads(row)["country"] for row in rows_as_json(history, NASTY.schema_)] == ["2020-01-31", None]
    with pytest.raises(TableError, match="row 1: field `at`: invalid RFC3339 encoded datetime"):
        offline_matrix(PLAIN, history.assign(country="x", at=dates)[:1])


PLAIN = parse_job(
    """\
job: plain
events: e
schema: {id: int, country: string, at: timestamp, amount: float}
features: {hour: hour(at), country: category(country), amount: amount}
model: m
results: r
""",
    "test",
)
TIMES = ["2010-03-14T03:30:59.9999995Z", "2010-03-14T04:31:00+01:00", None]


@pytest.mark.parametrize(
    "how",
    [
        lambda times: pd.Series(times, dtype=pd.ArrowDtype(pa.timestamp("ns", "UTC"))),
        lambda times: pd.Series(times, dtype=object),
        lambda times: pd.Series(times, dtype="category"),
        lambda times: pd.Series([None if pd.isna(t) else t.tz_convert("Asia/Kolkata") for t in times], dtype=object),
    ],
    ids=["arrow", "object", "category", "zone"],
)
def test_times_are_the_same_however_a_table_holds_them(how):
    times = list(pd.to_datetime(pd.Series(TIMES), utc=True, format="ISO8601").dt.as_unit("ns"))
    holders = pd.DataFrame({"id": [1, 2, 3], "since": TIMES})
    plain = [json.loads(entry)["since"] for _, entry in lookup_entries(holders, NASTY, "holder")]
    typed = [
        json.loads(entry)["since"] for _, entry in lookup_entries(holders.assign(since=how(times)), NASTY, "holder")
    ]
    table = LookupTable(NASTY.lookups["holder"])
    for key, since in enumerate([*plain, *typed]):
        table.put(key, json.dumps({"since": since}))
    found = table.gather("since", table.rows(range(6)))
    assert found[:3].tobytes() == found[3:].tobytes()
    assert not table.bad


@pytest.mark.parametrize("value", [pd.Timestamp("2020-01-01"), pd.Period("2020-01-01", "D"), pd.Timedelta(1, "s")])
def test_what_is_not_a_moment_is_refused_by_its_row(value):
    history = pd.DataFrame({"id": 1, "country": "x", "at": pd.Series(["2020-01-01T00:00:00Z", value], dtype=object)})
    matrix = offline_matrix(PLAIN, history.assign(amount=1.0), skip_bad=True)
    assert (len(matrix), matrix.skipped) == (1, 1)
    with pytest.raises(TableError, match="row 2: field `at`: "):
        offline_matrix(PLAIN, history.assign(amount=1.0))


@pytest.mark.parametrize("value", ["1.5", "1E+50", "Infinity", "NaN", "9223372036854775808"])
def test_a_decimal_number_that_is_not_an_int_is_refused_by_its_row(value):
    history = pd.DataFrame({"id": pd.Series([Decimal("7.00"), Decimal(value)], dtype=object), "country": "x"})
    history = history.assign(at="2020-01-01T00:00:00Z", amount=1.0)
    assert offline_matrix(PLAIN, history, skip_bad=True).rows.tolist() == [0]


def test_numbers_of_numpy_in_a_column_of_objects_are_numbers():
    values = pd.Series([np.float32(0.1), np.int64(2**53 + 1)], dtype=object)
    history = pd.DataFrame({"id": values[[1, 1]].tolist(), "country": np.str_("x"), "at": TIMES[:2], "amount": values})
    assert [json.loads(row) for row in rows_as_json(history.astype(object), PLAIN.schema_)] == [
        {"id": 2**53 + 1, "country": "x", "at": TIMES[row], "amount": (float(np.float32(0.1)), 2**53 + 1)[row]}
        for row in range(2)
    ]


KEYED = parse_job(
    """\
job: keyed
events: e
schema: {i: int, d: float}
lookups:
  one: {map: one, key: i, fields: {x: int}}
  real: {map: real, key: d, fields: {x: int}}
  both: {map: both, key: [i, d], fields: {x: int}}
features: {one: one.x, real: real.x, both: both.x}
model: m
results: r
""",
    "test",
)
KEYS = [(1, "2"), (2, "1.50"), (2**53 + 1, "9007199254740993"), (3, "100000000000000000000"), (4, "-0")]


def keyed_tables(how):
    for name, columns in (("one", "i"), ("real", "d"), ("both", "id")):
        # A single key is a whole number of 64 bits.
        rows = [row for row in KEYS if name != "real" or row[1] not in ("1.50", KEYS[3][1])]
        made = {"i": [how(str(row[0])) for row in rows], "d": [how(row[1]) for row in rows]}
        frame = pd.DataFrame({column: pd.Series(made[column], dtype=object) for column in columns})
        yield name, frame.assign(x=[KEYS.index(row) for row in rows])


@pytest.mark.parametrize(
    "how",
    [str, Decimal, lambda text: np.int64(text) if text.isdecimal() and len(text) < 20 else float(text)],
    ids=["csv", "decimal", "numpy"],
)
def test_keys_are_the_same_numbers_however_a_table_holds_them(tmp_path, how):
    for name, frame in keyed_tables(how):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    lookups = tmp_path if how is str else dict(keyed_tables(how))
    history = pd.DataFrame({"i": [row[0] for row in KEYS], "d": [float(row[1]) for row in KEYS]})

    matrix = offline_matrix(KEYED, history, lookups)

    every = np.arange(5.0)
    wanted = np.stack([every, np.where(np.isin(every, [1, 3]), np.nan, every), every], axis=1)
    np.testing.assert_array_equal(matrix.values, wanted)
    frames = {name: read_lookup(tmp_path / f"{name}.csv", KEYED, name) for name in KEYED.lookups}
    for name, frame in frames.items():
        target = _lookup_target(KEYED, name)
        file = TableFile(
            tmp_path / f"{name}.csv", target.key, separator=target.separator, kinds=target.kinds, parts=target.parts
        )
        assert [row.key for row in file.rows()] == [key for key, _ in lookup_entries(frame, KEYED, name)]


TYPED = parse_job(
    """\
job: typed
events: e
schema: {k: string}
lookups:
  l:
    map: l
    key: k
    fields:
      i: int?
      s: string?
      b: bool?
      ms: {type: timestamp, unit: ms, optional: true}
      sec: {type: timestamp, unit: s, optional: true, json: "in seconds"}
features: {i: l.i}
model: m
results: r
""",
    "test",
)
MOMENTS = pa.array([1_577_836_800_123_456_500, None, -1_500], pa.timestamp("ns", "America/New_York"))


def loaded(path):
    target = _lookup_target(TYPED, "l")
    file = TableFile(path, target.key, kinds=target.kinds, parts=target.parts, values=target.values)
    return list(file.rows())


@pytest.mark.parametrize(
    "typed",
    [
        {"i": [1.0, None, 2.0**53 - 1]},  # what pandas saves of whole numbers with gaps
        {"i": pa.array([Decimal(1), None, Decimal(-7)])},
        {"s": [1, None, 2**53 + 1]},
        {"s": [1.0, None, 2.5]},
        {"s": pa.array(["a", None, "c"]).dictionary_encode()},
        {"b": [1, None, 0]},
        {"ms": MOMENTS, "in seconds": MOMENTS},
        {"ms": MOMENTS.cast(pa.timestamp("s", "UTC"), safe=False), "in seconds": [1.5, None, 7.0]},
        {"k": MOMENTS[::2].take([0, 1, 1])},
        {"k": pa.array([1, 2, 3])},
    ],
    ids=" ".join,
)
def test_a_typed_table_is_loaded_as_training_reads_it(tmp_path, typed):
    """By `gridscore load --from`, and into the map that the stream looks into."""
    texts = {"k": ["a", "b", "c"], "i": [1, None, 3], "s": ["x", None, "NA"], "b": [True, None, False]}
    path = tmp_path / "l.parquet"
    parquet.write_table(pa.table(texts | {"ms": [1, None, 3], "in seconds": [1, None, 3]} | typed), path)
    entries = dict(lookup_entries(read_lookup(path, TYPED, "l"), TYPED, "l"))
    rows = {row.key: row.text for row in loaded(path)}

    assert rows.keys() == entries.keys()
    tables = [LookupTable(TYPED.lookups["l"]) for _ in range(2)]
    for table, given in zip(tables, (entries, rows), strict=True):
        for key, text in given.items():
            table.put(key, text)
        assert not table.bad, table.last_error
    for name in TYPED.lookups["l"].fields:
        first, second = (table.gather(name, table.rows(list(rows))) for table in tables)
        assert first == second if name == "s" else first.tobytes() == second.tobytes()


def test_a_column_may_have_the_name_of_its_field_and_the_entry_has_that_in_json(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("k,i,s,b,ms,sec\na,1,x,true,1,1.5\n")
    ((_, entry),) = lookup_entries(read_lookup(path, TYPED, "l"), TYPED, "l")
    (row,) = loaded(path)
    assert json.loads(row.text) == {"k": "a", **json.loads(entry)}
    path.write_text("k,sec,in seconds\na,1,2\n")
    (row,) = loaded(path)
    assert json.loads(row.text) == {"k": "a", "sec": 1, "in seconds": 2}


@pytest.mark.parametrize(
    "typed",
    [{"s": [b"x"]}, {"k": [b"a"]}, {"i": [2.0**53]}, {"s": [2.0**53]}, {"ms": pa.array([1], pa.timestamp("ms"))}],
    ids=" ".join,
)
def test_what_training_refuses_is_not_loaded(tmp_path, typed):
    path = tmp_path / "l.parquet"
    plain = {"k": ["a"], "i": [1], "s": ["x"], "b": [True], "ms": [1], "in seconds": [1]}
    parquet.write_table(pa.table(plain | typed), path)
    with pytest.raises(TableError, match=f"`{min(typed)}` (holds|has)"):
        list(lookup_entries(read_lookup(path, TYPED, "l"), TYPED, "l"))
    (row,) = loaded(path)
    assert isinstance(row, BadRow)
    assert f"`{min(typed)}`" in row.error


def test_a_log_of_csv_has_the_events_that_training_reads(tmp_path):
    cells = [
        "",
        "NA",
        "nan",
        "null",
        " 7 ",
        "7.0",
        "1e3",
        "true",
        "Yes",
        "0",
        "-inf",
        "x",
        "9007199254740993",
        "1_0",
        "١٢",
    ]
    schema = TYPED.lookups["l"].fields | {"f": FieldType(type="float", optional=True)}
    kinds = {"i": "int", "s": "string", "b": "bool", "f": "float"}
    for name, kind in kinds.items():
        make = format_of(
            LogfileSourceSettings(
                to="events.x", path=["x.log"], format="csv", types={name: kind} if kind != "string" else {}
            )
        )(f"{name},more".encode())
        for cell in cells:
            (tmp_path / "h.csv").write_text(f'{name},more\n"{cell}",x\n')
            (row,) = rows_as_json(read_table(tmp_path / "h.csv", kinds), {name: schema[name]})
            offline = json.loads(row)[name]
            try:
                live = make.parse(f'"{cell}",x'.encode()).fields[name]
            except ValueError:
                live = cell  # what is of another kind is refused here, and left to the decoder there
            assert (live, type(live)) == (offline, type(offline)), (name, cell)


@pytest.mark.parametrize("value", ["x", "1.5", True, Decimal("1.5"), 2**63, b"1"])
def test_what_cannot_be_a_key_is_refused_and_not_dropped(value):
    frame = pd.DataFrame({"i": pd.Series([1, None, value], dtype=object), "x": 0})
    with pytest.raises(TableError, match=r"`i`, row 3: `.*` cannot be a key of the lookup"):
        lookup_entries(frame, KEYED, "one")
    assert [key for key, _ in lookup_entries(frame, KEYED, "one", skip_bad=True)] == [1]


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("int", "007", 7),
        ("int", " 5 ", 5),
        ("int", "9007199254740993.0", 9007199254740993),
        ("int", "1e3", 1000),
        ("int", "NA", None),
        ("int", "1e999999999", ValueError),
        ("int", "1.5", ValueError),
        ("int", "1_000", ValueError),
        ("int", "١٢", ValueError),
        ("float", "١٢", ValueError),
        ("float", "1_0", ValueError),
        ("float", "-inf", None),
        ("float", "0.30000000000000004", 0.1 + 0.2),
        ("float", "nan", None),
        ("string", "nan", "nan"),
        ("string", "", None),
        ("string", " ", " "),
        ("bool", "TRUE", True),
        ("bool", "0.0", False),
        ("bool", "yes", True),
        ("bool", "maybe", ValueError),
        ("number", "1577854800250", 1577854800250),
        ("number", "1.5", 1.5),
    ],
)
def test_a_cell_is_read_by_one_rule(kind, cell, value):
    if value is ValueError:
        with pytest.raises(ValueError, match="is n"):
            READERS[kind](cell)
    else:
        assert (READERS[kind](cell), type(READERS[kind](cell))) == (value, type(value))
