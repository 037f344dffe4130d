"""Files with tables, row by row: what becomes of cells, and which row a problem is in."""

import datetime as dt
import gzip
import json

import pandas as pd
import pytest

from gridscore.errors import TableError
from gridscore.sources.tables import BadRow, Row, TableFile


def read(path, *key, **more):
    return [(row.key, json.loads(row.text)) for row in TableFile(path, key or ("id",), **more).rows()]


def bad(path, **more):
    return [(row.number, row.error) for row in TableFile(path, ("id",), **more).rows() if isinstance(row, BadRow)]


class TestCsv:
    def test_cells_are_what_they_look_like_and_keys_are_texts(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text(
            '\ufeffid,n,x,zip,word,flag,none\n007,12,1.5e3,01234,"a, ""b""\nc",true,\n8,-3,inf,0,nan,False,\n'
        )
        assert read(path) == [
            (
                "007",
                {"id": "007", "n": 12, "x": 1500.0, "zip": "01234", "word": 'a, "b"\nc', "flag": True, "none": None},
            ),
            ("8", {"id": "8", "n": -3, "x": "inf", "zip": 0, "word": "nan", "flag": False, "none": None}),
        ]

    def test_kinds_are_obeyed(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("id,zip,x,flag\n7.0,0,nan,1\n8,12345678901234567890,3,0\n")
        kinds = {"id": "int", "zip": "string", "x": "float", "flag": "bool"}
        assert read(path, kinds=kinds) == [
            (7, {"id": 7, "zip": "0", "x": None, "flag": True}),
            (8, {"id": 8, "zip": "12345678901234567890", "x": 3.0, "flag": False}),
        ]

    def test_a_bad_row_is_named_by_its_line(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes(b'id,n\n1,"two\nlines"\n2\n\n3,x\n,4\n5,6\n7,\xff\n')
        assert bad(path, kinds={"n": "string"}) == [
            (4, "it has 1 cells, and the header has 2"),
            (7, "it has no `id`, which belongs to the key"),
            (9, "it cannot be written as JSON: " + bad(path)[-1][1].partition(": ")[2]),
        ]
        assert (6, "`x` is not a whole number") in bad(path, kinds={"n": "int"})

    def test_a_wrong_column_is_named(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("idd,n\n1,2\n")
        with pytest.raises(TableError, match="no column `id`, which belongs to the key") as caught:
            read(path)
        assert caught.value.hint == "Did you mean `idd`?"
        with pytest.raises(TableError, match="no column `amount`"):
            read(path, "n", required=["amount"])

    def test_a_quote_that_does_not_end(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('id,n\n1,2\n3,"4\n')
        with pytest.raises(TableError, match="line 3"):
            read(path)


class TestJsonLines:
    def test_lines_go_as_they_are(self, tmp_path):
        path = tmp_path / "a.jsonl.gz"
        with gzip.open(path, "wb") as file:
            file.write(b'{"id": 1,  "b": [1.50]}\n\n{"id":"x"}')
        rows = list(TableFile(path, ("id",)).rows())
        assert rows == [Row(1, 1, b'{"id": 1,  "b": [1.50]}'), Row(3, "x", b'{"id":"x"}')]

    def test_a_bad_line_is_named_by_its_number(self, tmp_path):
        path = tmp_path / "a.ndjson"
        long = b'{"id": 1, "t": "' + b"x" * 300 + b'"}'
        path.write_bytes(b"\n".join([b'{"id": 1}', b"{", b"[1]", long, b'{"n": 1}', b'{"id": 1.5}', b'{"id": 7}']))
        assert [number for number, _ in bad(path, max_event=200)] == [2, 3, 4, 5, 6]
        assert [row.key for row in TableFile(path, ("id",), max_event=200).rows() if isinstance(row, Row)] == [1, 7]

    def test_keys_of_several_fields(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": "x", "b": 7}\n')
        assert [key for key, _ in read(path, "a", "b", separator="/")] == ["x/7"]


class TestParquet:
    def test_types_become_json(self, tmp_path):
        path = tmp_path / "a.parquet"
        at = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
        pd.DataFrame({"id": [1, 2], "x": [1.5, float("nan")], "at": [at, at], "raw": [b"\xff", None]}).to_parquet(path)
        table = TableFile(path, ("id",))
        rows = [(row.key, json.loads(row.text)) for row in table.rows()]
        assert rows[0] == (1, {"id": 1, "x": 1.5, "at": "2026-01-31T00:00:00Z", "raw": "/w=="})
        assert rows[1][1]["x"] is None
        assert (table.done, table.size) == (2, 2)

    def test_a_file_that_is_not_what_its_name_says(self, tmp_path):
        path = tmp_path / "a.parquet"
        path.write_text("id\n1\n")
        with pytest.raises(TableError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("name", ["none.csv", "folder", "a.txt"])
def test_what_is_no_table(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TableError):
        TableFile(tmp_path / name, ("id",))
