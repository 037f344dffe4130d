"""`gridscore load` with rows: files and queries into any map, resumed, limited, and with errors that name the row."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import postgres_server
import pytest

from gridscore.grid import connect

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(cluster):
    def run(*arguments, code=0, **environment):
        env = {
            **os.environ,
            "GRIDSCORE_MEMBERS": ",".join(cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
            **environment,
        }
        command = [sys.executable, "-m", "gridscore.cli", "load", *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    return run


@pytest.fixture
def entries(grid_settings):
    def look(name):
        async def read():
            async with await connect(grid_settings) as grid:
                found = await (await grid.map(name)).entry_set()
                return {key: json.loads(value.to_string()) for key, value in found}

        return asyncio.run(read())

    return look


def test_a_file_is_loaded_on_from_where_a_bad_line_stopped_it(load, entries, tmp_path, unique):
    path, name = tmp_path / "clicks.jsonl", f"events.{unique}"
    lines = [json.dumps({"id": number, "page": f"/{number}"}) for number in range(5_000)]
    path.write_text("\n".join([*lines[:3_000], "{broken", *lines[3_000:]]))

    said = load("--from", path, "--to", name, "--key", "id", code=2)
    assert "row 3001 cannot be read" in said
    assert len(entries(name)) == 3_000

    path.write_text("\n".join([*lines[:3_000], "", *lines[3_000:]]))
    said = load("--from", path, "--to", name, "--key", "id", "--resume", "--limit", 1_500, "--json")
    assert json.loads(said) == {name: {"rows": 1_500, "passed": 3_000, "skipped": 0}}
    said = load("--from", path, "--to", name, "--key", "id", "--resume")
    assert said == f"{name}: 500 entries, 4,500 skipped as loaded before\n"
    assert entries(name) == {number: {"id": number, "page": f"/{number}"} for number in range(5_000)}

    path.write_text('{"id": "another"}\n' * 5_000)
    assert "not what was loaded before" in load("--from", path, "--to", name, "--key", "id", "--resume", code=2)


def test_bad_rows_can_be_left_out(load, entries, tmp_path, unique):
    (tmp_path / "a.csv").write_text("id,n\nx,1\ny\nz,3\n")
    said = load("--from", tmp_path / "a.csv", "--to", f"m.{unique}", "--key", "id", "--skip-bad", "--types", "n=float")
    assert said == f"m.{unique}: 2 entries, 1 left out that cannot be read\n"
    assert entries(f"m.{unique}") == {"x": {"id": "x", "n": 1.0}, "z": {"id": "z", "n": 3.0}}


def test_rows_of_a_job_have_the_types_of_its_schema(load, entries, tmp_path, unique):
    job = tmp_path / "job.yaml"
    text = (ROOT / "jobs/payments/job.yaml").read_text()
    job.write_text(
        text.replace("events.payments", f"events.{unique}").replace("lookups.customers", f"lookups.{unique}")
    )
    history = pd.read_csv(ROOT / "jobs/payments/history.csv").head(50).assign(id=range(50))
    history.to_json(tmp_path / "history.jsonl", orient="records", lines=True)
    customers = ROOT / "jobs/payments/lookups/customer_record.csv"

    assert "50 entries" in load(job, "--events", tmp_path / "history.jsonl", "--key", "customer", "--key", "id")
    assert "60 entries" in load(job, "--from", customers, "--lookup", "customer_record")

    row = history.iloc[3]
    assert entries(f"events.{unique}")[f"{row.customer}|3"]["amount"] == row.amount
    assert entries(f"lookups.{unique}")["ann"]["limit"] == 500.0
    assert "no column `amount`" in load(job, "--from", customers, "--key", "customer", code=2)


def test_a_query_is_loaded_and_resumed(load, entries, tmp_path, unique):
    name = f"events.{unique}"
    with postgres_server.start(tmp_path) as postgres:
        postgres.execute("CREATE TABLE orders AS SELECT n AS id, n * 1.5 AS amount FROM generate_series(1, 5000) n")
        url = postgres.url().replace(postgres.url().split(":")[2].split("@")[0], "${THE_PASSWORD}")
        secret = postgres.url().split(":")[2].split("@")[0]
        query = ("--query", "SELECT * FROM orders ORDER BY id", "--database", url, "--to", name, "--key", "id")
        assert "5,000 entries" in load(*query, THE_PASSWORD=secret)
        postgres.execute("INSERT INTO orders VALUES (5001, 0.25)")
        said = load(*query, "--resume", THE_PASSWORD=secret)
        assert said == f"{name}: 1 entries, 5,000 skipped as loaded before\n"
        assert entries(name)[5001] == {"id": 5001, "amount": 0.25}

        assert "THE_PASSWORD is not set" in load(*query, code=2)
        wrong = "wrong-secret"
        said = load(*query, code=3, THE_PASSWORD=wrong)
        assert "refuses the user or the password" in said
        assert wrong not in said
        unordered = ("--query", "SELECT * FROM orders", *query[2:])
        assert "ORDER BY" in load(*unordered, "--resume", code=2, THE_PASSWORD=secret)
        unknown = ("--query", "SELECT * FROM order_s", *query[2:])
        assert 'relation "order_s" does not exist' in load(*unknown, code=3, THE_PASSWORD=secret)


TYPED = """\
job: typed
events: events.NAME
schema: {code: string, count: int, amount: "float?", at: {type: timestamp, unit: ms}, seen: {type: string, json: last}}
lookups:
  item: {map: lookups.NAME, key: code, columns: [id], fields: {price: "float?", kind: string}}
features: {amount: amount}
model: typed
results: results.NAME
"""


def test_rows_of_a_query_have_the_types_of_the_job_as_those_of_files_have(load, entries, tmp_path, unique):
    job = tmp_path / "job.yaml"
    job.write_text(TYPED.replace("NAME", unique))
    at = pd.to_datetime(["2020-01-01T05:00:00.5Z", "2020-01-02T00:00:00Z"], format="ISO8601")
    rows = pd.DataFrame(
        {"id": [1, 2], "code": [7, 8], "count": [3.0, 4.0], "amount": [0.1, None], "at": at, "last": at}
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    load(job, "--from", tmp_path / "rows.parquet", "--key", "id")
    expected = entries(f"events.{unique}")
    assert [type(expected[1][name]) for name in ("code", "count", "at", "last")] == [str, int, int, str]
    with postgres_server.start(tmp_path) as postgres:
        postgres.execute(
            "CREATE TABLE rows AS SELECT n AS id, n + 6 AS code, (n + 2)::numeric(9, 2) AS count, "
            "CASE n WHEN 1 THEN 0.1 END AS amount, "
            "CASE n WHEN 1 THEN '2020-01-01T05:00:00.5Z' ELSE '2020-01-02T00:00:00Z' END::timestamptz AS at "
            "FROM generate_series(1, 2) n"
        )
        to = ("--database", postgres.url(), job)
        query = "SELECT id, code, count, amount, at, at AS last FROM rows ORDER BY id"
        assert "2 entries" in load(*to, "--query", query, "--key", "id")
        assert entries(f"events.{unique}") == expected
        assert "The query has no column `count`" in load(
            *to, "--query", "SELECT id, code FROM rows", "--key", "id", code=2
        )
        naive = query.replace("at,", "at::timestamp,", 1)
        assert "row 1 cannot be read: `at`: it is a time without" in load(*to, "--query", naive, "--key", "id", code=2)
        items = "SELECT code::numeric AS id, amount AS price, code AS kind FROM rows"
        assert "2 entries" in load(*to, "--query", items, "--lookup", "item")
        assert entries(f"lookups.{unique}") == {
            "7": {"id": 7, "price": 0.1, "kind": "7"},
            "8": {"id": 8, "price": None, "kind": "8"},
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to load"),
        (("--from", "a.csv", "--key", "id"), "Where should the rows go"),
        (("--from", "a.csv", "--to", "m"), "Rows need a key"),
        (("--from", "none.csv", "--to", "m", "--key", "id"), "no file"),
        (("--to", "m", "--key", "id"), "needs rows"),
        (("--query", "SELECT 1", "--to", "m", "--key", "id"), "belong together"),
        (("--from", "a.csv", "--to", "gridscore.jobs", "--key", "id"), "kept for Gridscore"),
        (("--from", "a.csv", "--to", "m", "--key", "id", "--types", "n=number"), "not COLUMN=TYPE"),
        (("--from", "a.csv", "--to", "m", "--key", "id", "--max-wait", "60"), "--max-wait: `60` is not a time span"),
    ],
)
def test_what_does_not_go_together(arguments, message, tmp_path, monkeypatch, capfd):
    from gridscore.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gridscore", "load", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message in capfd.readouterr().err
