"""Features offline: the same bits as live, from CSV and Parquet; categories; and tables that do not fit."""

# ruff: noqa: E501 -- messages are compared as a person reads them, in one line
# ruff: noqa: PD011 -- these `.values` are those of a matrix, not of pandas

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import ExpressionError, ModelError, TableError, UsageError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable, OfflineMatrix, offline_matrix
from gridscore.features.tables import lookup_entries, read_chunks, read_lookup, read_table, rows_as_json
from gridscore.features.times import to_local
from gridscore.job import Job, parse_job
from gridscore.models.inputs import read_categories

JOB = Job.model_validate(
    {
        "job": "test",
        "events": "e",
        "results": "r",
        "model": "m",
        "schema": {
            "code": "string",
            "amount": "float?",
            "count": "int",
            "new": "bool?",
            "at": "timestamp",
            "ms": {"type": "timestamp", "unit": "ms", "optional": True, "json": "sent-at"},
        },
        "lookups": {
            "shop": {"map": "l1", "key": "code", "fields": {"size": "float?", "kind": "string?"}},
            "weather": {"map": "l2", "key": ["code", "at"], "fields": {"temp": "float"}},
            "item": {"map": "l3", "key": "count", "columns": ["id"], "fields": {"price": "float"}},
        },
        "features": {
            "amount": "amount",
            "code": "category(code)",
            "kind": "category(shop.kind)",
            "hour": "hour(at)",
            "new": "new",
            "late": "ms - at",
            "temp": "weather.temp",
            "price": {"expression": "item.price", "default": -1},
            "share": "amount / shop.size",
        },
    }
)
HISTORY = pd.DataFrame(
    {
        "code": ["007", "8", "007", "9"],
        "amount": [1.25, np.nan, 3.1, 0.1],
        "count": [1, 2, 3, 1],
        "new": [True, None, False, True],
        "at": ["2020-01-01T05:00:00Z", "2020-01-01T06:00:00.5Z", "2020-01-01T07:00:00+01:00", "2020-01-02T00:00:00Z"],
        "sent-at": [1_577_854_800_250, np.nan, 1_577_858_400_000, 1_577_923_200_000],
        "label": [0, 1, 1, 0],
    }
)
LOOKUPS = {
    "shop": pd.DataFrame({"code": ["007", "8", None], "size": [10.0, np.nan, 3.0], "kind": ["big", "small", "none"]}),
    "weather": pd.DataFrame(
        {"code": ["007", "007"], "at": ["2020-01-01T05:00:00Z", "2020-01-01T06:00:00+00:00"], "temp": [20.5, 21]}
    ),
    "item": pd.DataFrame({"id": [1, 2], "price": [9.99, 5.5]}),
}
EXPECTED = np.array(
    [
        [1.25, 0, 0, 5, 1, 0.25, 20.5, 9.99, 0.125],
        [np.nan, 1, 1, 6, np.nan, np.nan, np.nan, 5.5, np.nan],
        [3.1, 0, 0, 6, 0, 0, 21, -1, 0.31],
        [0.1, 2, np.nan, 0, 1, 0, np.nan, 9.99, np.nan],
    ],
    np.float32,
)


@pytest.fixture
def directory(tmp_path):
    for name, frame in LOOKUPS.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    HISTORY.to_csv(tmp_path / "history.csv", index=False)
    (tmp_path / "job.yaml").write_text(json.dumps(JOB.to_json()))
    return tmp_path


def live(job: Job, matrix: OfflineMatrix) -> np.ndarray:
    """What the stream would see: entries in tables, events as JSON, one at a time."""
    tables = {name: LookupTable(lookup) for name, lookup in job.lookups.items()}
    for name, table in tables.items():
        for key, payload in lookup_entries(LOOKUPS[name], job, name):
            table.put(key, payload)
    plan, decoder = FeaturePlan(job, tables, matrix.categories), EventDecoder(job)
    return np.concatenate([plan.matrix([decoder.decode(raw)]) for raw in rows_as_json(HISTORY, job.schema_)])


def test_a_history_gives_what_the_stream_sees_bit_for_bit():
    matrix = offline_matrix(JOB, HISTORY, LOOKUPS, keep=["label"])
    assert matrix.names == JOB.feature_names
    np.testing.assert_array_equal(matrix.values, EXPECTED)
    assert np.array_equal(matrix.values.view(np.uint32), live(JOB, matrix).view(np.uint32))
    assert matrix.categories == {"code": ("007", "8", "9"), "kind": ("big", "small")}
    assert matrix.kept["label"].tolist() == [0, 1, 1, 0]
    assert matrix.looked_up["shop"] == {"entries": 2, "bad": 0, "events": 4, "missed": 1}


def test_csv_and_parquet_give_the_same(directory):
    typed = HISTORY.assign(
        at=pd.to_datetime(HISTORY["at"], format="ISO8601", utc=True),
        **{"sent-at": pd.to_datetime(HISTORY["sent-at"], unit="ms", utc=True)},
        new=HISTORY["new"].astype("boolean"),
        amount=HISTORY["amount"].astype("Float64"),
        code=HISTORY["code"].astype("category"),
    )
    typed.to_parquet(directory / "history.parquet")
    LOOKUPS["weather"].assign(at=pd.to_datetime(LOOKUPS["weather"]["at"], utc=True)).to_parquet(
        directory / "weather.parquet"
    )
    (directory / "weather.csv").unlink()
    for history in ("history.csv", "history.parquet"):
        matrix = offline_matrix(JOB, directory / history, directory)
        np.testing.assert_array_equal(matrix.values, EXPECTED)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_nested_objects_of_a_history_give_what_the_stream_sees(tmp_path, kind):
    job = parse_job(
        "job: n\nevents: e\nresults: r\nmodel: m\n"
        "schema: {id: int, ram: {type: 'int?', json: $.device.ram}, os: {type: 'string?', json: $.device.os}}\n"
        "features: {id: id, ram: ram, linux: 1 if os == 'linux' else 0}\n",
        "n.yaml",
    )
    events = [
        {"id": 2**53 + 1, "device": {"ram": 8, "os": "linux"}},
        {"id": 2, "device": {"ram": None, "os": "mac"}},
        {"id": 3, "device": None},
    ]
    path, frame = tmp_path / f"history.{kind}", pd.DataFrame(events)
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    live = FeaturePlan(job, {}, {}).matrix(EventDecoder(job).decode_all(json.dumps(event).encode() for event in events))
    np.testing.assert_array_equal(offline_matrix(job, path).values, live)
    if kind == "jsonl":
        path.write_text(path.read_text() + "[1]\n")
        with pytest.raises(TableError, match=r"line 4: expected an object, got a list"):
            offline_matrix(job, path)


def test_lines_of_json_are_the_events_that_they_would_be_live(tmp_path):
    job = parse_job(
        "job: n\nevents: e\nresults: r\nmodel: m\nschema: {a: int, b: bool, c: string, d: float?, e: string?}\n"
        "lookups: {l: {map: l, key: c, fields: {v: float}}}\nfeatures: {a: a, b: b, d: d, e: category(e), v: l.v}\n",
        "n.yaml",
    )
    good = {"a": 7, "b": True, "c": "x", "d": 1.5}
    bad = [{"a": 7.0}, {"a": "7"}, {"b": 1}, {"b": "yes"}, {"c": 5}, {"d": "1.5"}]
    rows = [good, *(good | each for each in bad), good | {"a": 2**53 + 1}, good | {"a": 2**70}]
    live = EventDecoder(job).decode_good([json.dumps(row).encode() for row in rows])[1]
    assert len(live) == 7
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "l.jsonl").write_text('{"c": "x", "v": 2.5}\n')
    matrix = offline_matrix(job, path, tmp_path, skip_bad=True)
    assert sorted(set(range(len(rows))) - set(matrix.rows.tolist())) == sorted(live)
    assert matrix.values[:, 4].tolist() == [2.5, 2.5]
    assert np.isnan(matrix.values[:, 3]).all()  # no line has `e`, which is optional
    with pytest.raises(TableError, match="row 2: field `a`"):
        offline_matrix(job, path, tmp_path)
    path.write_text('{"a": 1, "b": true}\n')
    with pytest.raises(TableError, match="has no column `c`"):
        offline_matrix(job, path, tmp_path)


def test_objects_whose_names_are_values_are_not_made_columns(tmp_path):
    job = parse_job(
        "job: n\nevents: e\nresults: r\nmodel: m\nschema: {id: int, last: 'int?'}\nfeatures: {id: id, last: last}\n",
        "n.yaml",
    )
    path = tmp_path / "history.jsonl"
    rows = [{"seen": {f"ip-{n}": 1, f"at-{n}": 2}, "id": n} for n in range(1_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 1_000, "last": 7, "label": 3}]))
    assert len(read_table(path, {"id": "int", "last": "int"}).columns) < 40
    matrix = offline_matrix(job, path, keep=["label"])
    assert matrix.values[:, 0].tolist() == list(range(1_001))
    assert np.isnan(matrix.values[:-1, 1]).all()
    assert matrix.values[-1, 1] == 7
    assert matrix.kept["label"].tolist()[-1] == 3
    with pytest.raises(TableError, match=r"line 500: there are more than 1,000 fields by now"):
        read_table(path)
    with read_chunks(path, None, 400) as (count, frames):
        assert (count, next(frames).shape) == (1_001, (400, 801))
    with read_chunks(path, {"id": "int"}, 400) as (_, frames):
        assert [len(frame.columns) for frame in frames] == [31, 31, 31]


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path):
    path = tmp_path / "history.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"id": 1}\n{"id": "' + b"a" * (17 << 20))
    with pytest.raises(TableError, match=r"line 2: it is longer than 16,777,216 bytes"):
        read_table(path)


def test_rows_become_the_json_of_a_producer():
    first, second, *_ = rows_as_json(HISTORY, JOB.schema_)
    assert json.loads(first) == {"code": "007", "amount": 1.25, "count": 1, "new": True, "at": "2020-01-01T05:00:00Z", "sent-at": 1577854800250}  # fmt: skip
    assert json.loads(second)["amount"] is None
    assert list(lookup_entries(LOOKUPS["item"], JOB, "item")) == [(1, b'{"price":9.99}'), (2, b'{"price":5.5}')]
    assert [key for key, _ in lookup_entries(LOOKUPS["shop"], JOB, "shop")] == ["007", "8"]
    assert [key for key, _ in lookup_entries(LOOKUPS["weather"], JOB, "weather")] == [
        "007|2020-01-01T05:00:00Z",
        "007|2020-01-01T06:00:00Z",
    ]


def test_categories_of_training_are_used_again():
    matrix = offline_matrix(JOB, HISTORY, LOOKUPS, {"code": ["9", "8"], "kind": []})
    np.testing.assert_array_equal(matrix.values[:, 1], [np.nan, 1, np.nan, 0])
    assert matrix.categories == {"code": ("9", "8"), "kind": ()}


def test_categories_of_numbers_are_in_their_order():
    job = Job.from_json({**JOB.to_json(), "lookups": {}, "features": {"c": {"expression": "category(count)"}}})
    history = pd.concat([HISTORY.assign(count=n) for n in (10, 9, -2, 100)])
    assert offline_matrix(job, history).categories == {"c": ("-2", "9", "10", "100")}
    close = range(2**53, 2**53 + 8)  # pairs of which are one float
    history = pd.concat([HISTORY.assign(count=n) for n in close])
    assert offline_matrix(job, history).categories == {"c": tuple(map(str, close))}


def test_a_category_can_be_made_of_a_long_chain_of_features():
    chain = {f"f{i}": {"expression": f"f{i - 1} + 1"} for i in range(1, 990)}
    features = {"f0": {"expression": "count"}, **chain, "c": {"expression": "category(string(f989))"}}
    job = Job.from_json({**JOB.to_json(), "lookups": {}, "features": features})
    history = pd.concat([HISTORY.assign(count=n) for n in (1, 2)])
    assert offline_matrix(job, history).categories == {"c": ("990", "991")}


def test_a_matrix_survives_its_file(tmp_path):
    matrix = offline_matrix(JOB, HISTORY, LOOKUPS, keep=["label", "code"][:1])
    matrix.to_parquet(tmp_path / "m.parquet")
    again = OfflineMatrix.from_parquet(tmp_path / "m.parquet")
    assert (again.names, again.categories) == (matrix.names, matrix.categories)
    assert np.array_equal(again.values.view(np.uint32), matrix.values.view(np.uint32))
    assert again.kept["label"].tolist() == [0, 1, 1, 0]
    assert list(pd.read_parquet(tmp_path / "m.parquet").columns) == [*JOB.feature_names, "label"]
    assert read_categories(tmp_path / "m.parquet") == matrix.categories


def test_categories_travel_with_the_model(tmp_path):
    matrix = offline_matrix(JOB, HISTORY, LOOKUPS)
    booster = xgb.train({"max_depth": 2}, xgb.DMatrix(matrix.values, [0, 1, 1, 0]), 2)
    matrix.attach(booster)
    for name in ("m.ubj", "m.json"):
        booster.save_model(tmp_path / name)
        loaded = xgb.Booster(model_file=tmp_path / name)
        assert loaded.feature_names == list(matrix.names)
        assert json.loads(loaded.attr("gridscore"))["categories"]["code"] == ["007", "8", "9"]
        assert read_categories(tmp_path / name) == matrix.categories


def test_categories_are_taken_of_a_model_that_a_data_frame_gave_them(tmp_path):
    frame = pd.DataFrame({"code": pd.Categorical(["b", "a", "b", "c"], ["c", "b", "a"]), "amount": [1.0, 2, 3, 4]})
    booster = xgb.train({"max_depth": 2}, xgb.DMatrix(frame, [0, 1, 1, 0], enable_categorical=True), 2)
    booster.save_model(tmp_path / "m.ubj")
    assert read_categories(tmp_path / "m.ubj") == {"code": ("c", "b", "a")}
    booster = xgb.train({}, xgb.DMatrix(frame[["amount"]], [0, 1, 1, 0]), 2)
    booster.save_model(tmp_path / "m.ubj")
    with pytest.raises(UsageError, match="has no categories"):
        read_categories(tmp_path / "m.ubj")


def test_bad_rows_are_named_or_skipped_and_counted():
    history = HISTORY.assign(count=[1, 2.5, 3, np.nan], code=["007", "8", "007", "9"])
    with pytest.raises(TableError) as caught:
        offline_matrix(JOB, history, LOOKUPS)
    assert caught.value.message == "the history, row 2: field `count`: expected a whole number, got a number."
    assert "--skip-bad" in caught.value.hint
    matrix = offline_matrix(JOB, history, LOOKUPS, keep=["label"], skip_bad=True)
    assert (len(matrix), matrix.skipped, matrix.rows.tolist()) == (2, 2, [0, 2])
    assert matrix.kept["label"].tolist() == [0, 1]
    assert matrix.categories["code"] == ("007",)


def test_one_bad_cell_of_a_csv_makes_one_bad_row(directory):
    lines = (directory / "history.csv").read_text().splitlines()
    assert lines[3].startswith("007,3.1,3,")
    lines[3] = lines[3].replace("3.1,3,", "3.1,three,")
    lines[2] = lines[2].replace("8,,2,", "8,much,2,")
    (directory / "history.csv").write_text("\n".join(lines))
    with pytest.raises(TableError, match=re.escape("row 2: field `amount`: expected a number or null, got a string")):
        offline_matrix(JOB, directory / "history.csv", directory)
    matrix = offline_matrix(JOB, directory / "history.csv", directory, skip_bad=True)
    assert (matrix.rows.tolist(), matrix.skipped) == ([0, 3], 2)
    np.testing.assert_array_equal(matrix.values[:, [0, 3, 5, 7]], EXPECTED[[0, 3]][:, [0, 3, 5, 7]])


def test_one_bad_cell_of_a_lookup_leaves_the_other_entries(directory):
    (directory / "item.csv").write_text("id,price\n1,9.99\nx,7\n,8\n2,5.5\n")
    with pytest.raises(TableError, match=r"item\.csv: the column `id`, row 2: `x` cannot be a key of the lookup"):
        offline_matrix(JOB, directory / "history.csv", directory)
    matrix = offline_matrix(JOB, directory / "history.csv", directory, skip_bad=True)
    np.testing.assert_array_equal(matrix.values, EXPECTED)
    (directory / "item.csv").write_text("id,price\n1,9.99\n2,cheap\n")
    matrix = offline_matrix(JOB, directory / "history.csv", directory)
    np.testing.assert_array_equal(matrix.values[:, 7], np.float32([9.99, -1, -1, 9.99]))
    assert matrix.looked_up["item"]["bad"] == 1


def test_a_file_without_rows_is_told(directory):
    (directory / "history.csv").write_text("code,amount\n")
    with pytest.raises(TableError, match="has no rows"):
        offline_matrix(JOB, directory / "history.csv", directory)


def test_zones_that_differ_from_machine_to_machine_are_none():
    for zone in ("localtime", "Factory"):
        with pytest.raises(ExpressionError, match=f"there is no time zone `{zone}`"):
            to_local(zone)
    assert to_local("Europe/Berlin")(np.array([0.0])) == [3600.0]


def test_long_histories_are_read_in_parts_and_progress_is_told():
    history = pd.concat([HISTORY] * 5_000, ignore_index=True)
    told = []
    matrix = offline_matrix(JOB, history, LOOKUPS, on_progress=lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(matrix.values, np.tile(EXPECTED, (5_000, 1)))
    assert told[-1] == (40_000, 40_000)
    assert told == sorted(told)


def test_an_empty_history_gives_an_empty_matrix():
    assert offline_matrix(JOB, HISTORY[:0], LOOKUPS).values.shape == (0, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, d: (h.drop(columns="amount"), d), "the history has no column `amount`.\nDid you mean `count`?"),
        (lambda h, d: (h.drop(columns="sent-at"), d), "the history has no column `sent-at`."),
        (lambda h, d: (h.assign(at=pd.to_datetime(h["at"], utc=True, format="ISO8601").dt.tz_localize(None)), d), "the history: the column `at` has times without a time zone."),
        (lambda h, _: (h, {}), "There is no table for the lookup `shop`.\nGiven are: none."),
        (lambda h, _: (h, None), "The job has a lookup `shop`, but no tables of lookups are given."),
        (lambda h, d: (h, {**d, "item": d["item"].drop(columns="id")}), "the table of the lookup `item` has no column `id`, which is the key of the lookup `item`."),
        (lambda h, d: (h, {**d, "item": d["item"].drop(columns="price")}), "the table of the lookup `item` has no column `price`."),
        (lambda h, d: (pd.concat([h, h[["amount"]] * 2], axis=1), d), "the history has two columns `amount`."),
        (lambda h, d: (h, {**d, "item": pd.concat([d["item"]] * 2, axis=1)}), "the table of the lookup `item` has two columns `id`."),
        (lambda h, d: (h.assign(at="2020-01-01 05:00:00"), d), "the history, row 1: field `at`: expected `datetime` with a timezone component."),
        (lambda h, d: (h.assign(amount="1"), d), "the history, row 1: field `amount`: expected a number or null, got a string."),
        (lambda h, d: (h.assign(code=[None, *h["code"][1:]]), d), "the history, row 1: field `code`: expected a string, got null."),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(change, message):
    history, lookups = change(HISTORY, LOOKUPS)
    with pytest.raises(TableError, match=re.escape(message)):
        offline_matrix(JOB, history, lookups)


@pytest.mark.parametrize(
    ("rows", "line", "cells"),
    [
        ("1,2,\n4,5,\n", 2, 3),
        ("0,1,2\n1,4,5\n", 2, 3),
        ("x,1,2\n3,4\n", 2, 3),
        ("3,4\n0,1,2\n", 3, 3),
        ("1,2\n\n   \n3\n", 5, 1),
        ('"1\n2",2\n"3\n4"\n', 4, 1),
        ("1,2\n3", 3, 1),
    ],
)
def test_rows_that_are_longer_or_shorter_than_the_header_are_refused(tmp_path, rows, line, cells):
    """pandas would take surplus cells for the index, and those that are cut off for missing."""
    (tmp_path / "x.csv").write_text("a,b\n" + rows)
    reason = f"line {line}: it has {cells} cells?, and the header has 2"
    for kinds in (None, {"a": "int", "b": "float"}):
        with pytest.raises(TableError, match=reason):
            read_table(tmp_path / "x.csv", kinds)


def test_a_text_that_is_none_is_a_bad_row(tmp_path):
    code, note = (pd.Series(each, dtype=object) for each in (["007", "\ud800", "007", "9"], ["\ud800", "", "", ""]))
    history = HISTORY.assign(code=code, note=note)
    with pytest.raises(TableError, match=r"the history, row 2: .*surrogate"):
        offline_matrix(JOB, history, LOOKUPS)
    matrix = offline_matrix(JOB, history, LOOKUPS, keep=["note"], skip_bad=True)
    assert matrix.rows.tolist() == [0, 2, 3]
    with pytest.raises(TableError, match="The column `note` cannot be kept"):
        matrix.to_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("code,amount,code\n1,2,3\n", "has two columns `code`"),
        ("\ufeffcode;amount\n1;2,5\n", "is separated by `;`"),
        ('"code";"amount"\n"1";"2"\n', "is separated by `;`"),
        ("code\tamount\n1\t2\n", "is separated by tabs"),
    ],
)
def test_a_csv_file_whose_header_misleads_is_refused(tmp_path, text, reason):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(TableError, match=rf"x\.csv` {reason}"):
        read_table(tmp_path / "x.csv", {"code": "string"})


def test_files_that_do_not_fit(directory):
    with pytest.raises(TableError, match="There is no file"):
        read_table(directory / "none.csv")
    (directory / "x.txt").write_text("")
    with pytest.raises(TableError, match="is not CSV, Parquet or JSON lines"):
        read_table(directory / "x.txt")
    (directory / "empty.csv").write_text("")
    with pytest.raises(TableError, match=r"empty\.csv` cannot be read: No columns to parse from file"):
        read_table(directory / "empty.csv")
    (directory / "bad.parquet").write_text("no")
    with pytest.raises(TableError, match=r"bad\.parquet` cannot be read"):
        read_table(directory / "bad.parquet")
    with pytest.raises(TableError, match=r"bad\.parquet` cannot be read"):
        read_categories(directory / "bad.parquet")
    HISTORY.drop(columns="at").to_parquet(directory / "plain.parquet")
    with pytest.raises(TableError, match="is not a matrix that `gridscore features` made"):
        read_categories(directory / "plain.parquet")
    with pytest.raises(ModelError, match="save_model"):
        read_categories(directory / "job.yaml")
    (directory / "bad.json").write_text('{"code": 1}')
    with pytest.raises(ModelError):
        read_categories(directory / "bad.json")
    (directory / "good.json").write_text('{"code": ["a", "b"]}')
    assert read_categories(directory / "good.json") == {"code": ("a", "b")}
    (directory / "shop.csv").unlink()
    with pytest.raises(TableError, match="There is no table for the lookup `shop`"):
        offline_matrix(JOB, directory / "history.csv", directory)
    with pytest.raises(TableError, match="a feature has that name"):
        offline_matrix(JOB, HISTORY, LOOKUPS, keep=["amount"])
    with pytest.raises(TableError, match="has no column `lable` to keep"):
        offline_matrix(JOB, HISTORY, LOOKUPS, keep=["lable"])


def test_a_key_that_is_an_expression_needs_its_column_named(directory):
    job = JOB.to_json()
    job["lookups"]["shop"]["key"] = ["upper(code)"]
    with pytest.raises(TableError, match=re.escape("Name the columns of the key with `columns` in the lookup.")):
        offline_matrix(Job.from_json(job), HISTORY, LOOKUPS)
    job["lookups"]["shop"]["columns"] = ["code"]
    assert read_lookup(directory / "shop.csv", Job.from_json(job), "shop")["code"].tolist()[0] == "007"
    assert offline_matrix(Job.from_json(job), HISTORY, LOOKUPS).looked_up["shop"]["missed"] == 1


# ---------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def run():
    app = _commands()
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_makes_the_matrix(run, directory):
    output = directory / "m.parquet"
    done = run(
        "features",
        directory / "job.yaml",
        directory / "history.csv",
        "--lookups",
        directory,
        "--keep",
        "label",
        "-o",
        output,
    )
    assert done.exit_code == 0, done.output
    assert "4 rows of 9 features" in done.output
    assert "lookup shop: 2 entries; 1 of 4 events had none" in done.output
    np.testing.assert_array_equal(OfflineMatrix.from_parquet(output).values, EXPECTED)
    again = run("features", directory / "job.yaml", directory / "history.csv", "--lookups", directory, "--categories-from", output, "--json", "-o", directory / "n.parquet")  # fmt: skip
    summary = json.loads(again.stdout)
    assert (summary["rows"], summary["skipped"]) == (4, 0)
    assert summary["features"][1] == {
        "name": "code",
        "missing": 0,
        "min": 0.0,
        "mean": 0.75,
        "max": 2.0,
        "categories": 3,
    }
    assert summary["lookups"]["item"] == {"entries": 2, "bad": 0, "events": 4, "missed": 1}
    refused = run("features", directory / "job.yaml", directory / "history.csv", "--lookups", directory, "-o", "m.csv")
    assert "must end in .parquet" in str(refused.exception)


def test_the_command_says_what_to_do_about_files(run, directory):
    def refusal(history, output, *more):
        done = run("features", directory / "job.yaml", history, "--lookups", directory, "-o", output, *more)
        assert isinstance(done.exception, TableError)
        return str(done.exception)

    history, output = directory / "history.csv", directory / "m.parquet"
    assert "There is no file" in refusal(directory / "nofile", output)
    assert "is a folder" in refusal(directory, output)
    assert "--output" in refusal(history, directory / "nowhere" / "m.parquet")
    (directory / "bad.parquet").write_text("no")
    assert "Save it again" in refusal(directory / "bad.parquet", output)
    lines = history.read_text().splitlines()
    history.write_text("\n".join([lines[0], lines[1].replace(",1,", ",one,", 1)]))
    assert "all 1 were left out" in refusal(history, output, "--skip-bad")
    assert not output.exists()


def test_the_command_checks_a_job_file(run, directory):
    done = run("job", "check", directory / "job.yaml")
    assert done.exit_code == 0
    assert "is valid" in done.output
    assert "category(shop.kind)" in done.output
    assert json.loads(run("job", "check", "--json", directory / "job.yaml").stdout)["valid"] is True
    (directory / "bad.yaml").write_text("job: x\nevnts: y\n")
    refused = run("job", "check", "--json", directory / "bad.yaml")
    assert refused.exit_code == 2
    found = json.loads(refused.stdout)
    assert found["valid"] is False
    assert any(
        problem.endswith("bad.yaml line 2: unknown key `evnts`, did you mean `events`?")
        for problem in found["problems"]
    )
    assert "did you mean `events`?" in str(run("job", "check", directory / "bad.yaml").exception)


def test_the_command_prints_the_json_schema(run):
    assert json.loads(run("job", "schema").stdout)["title"] == "Gridscore job file"
