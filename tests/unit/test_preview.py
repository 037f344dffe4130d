"""A preview of the rows of a file: each stage of what a worker would make of them."""

import json

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.features import LookupTable, filled_tables, offline_matrix
from gridscore.job import load_job, parse_job
from gridscore.models import loaded_from
from gridscore.operations.preview import of_file
from gridscore.scoring.rehearsal import Given

JOB = """
job: cards
events: events.cards
event_key: card
order_by: time
schema: {card: string, amount: float, time: {type: timestamp, unit: s}}
windows: {card: card}
lookups:
  limit: {map: lookups.limits, key: card, fields: {most: float?}}
features:
  amount: amount
  spent: sum(amount, card, "1h")
  share: amount / limit.most
model: cards
results: results.cards
decisions:
  - {decision: decline, at_least: 0.5}
  - {decision: approve}
"""
HISTORY = pd.DataFrame(
    {
        "card": ["a", "b", "a", "a", "b"],
        "amount": [1.0, 20.0, 300.0, 4.5, 5.0],
        "time": [1000.0, 1010.0, 1020.0, 9000.0, 1030.0],
    }
)
LIMITS = pd.DataFrame({"card": ["a"], "most": [1000.0]})
MATRIX = offline_matrix(parse_job(JOB, "test"), HISTORY, {"limit": LIMITS})
ROWS = np.asarray(MATRIX.values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preview")
    (folder / "job.yaml").write_text(JOB)
    HISTORY.to_csv(folder / "history.csv", index=False)
    LIMITS.to_csv(folder / "limit.csv", index=False)
    data = xgb.DMatrix(ROWS, np.arange(len(HISTORY)) % 2)
    booster = xgb.train({"objective": "binary:logistic", "min_child_weight": 0, "nthread": 1}, data, 4)
    MATRIX.attach(booster)
    booster.save_model(folder / "model.ubj")
    return folder


async def test_each_row_passes_all_stages_as_it_would_live(folder):
    job = load_job(folder / "job.yaml")
    _, model = loaded_from(folder / "model.ubj", "cards")
    limits = LookupTable(job.lookups["limit"])
    limits.put("a", b'{"most": 1000}')

    passed = [each async for each in of_file(job, model, Given({"limit": limits}, {}), folder / "history.csv")]

    features = np.array([[np.nan if v is None else v for v in each.features.values()] for each in passed], np.float32)
    assert features.tobytes() == ROWS.tobytes()
    scores = model.predict(ROWS)
    assert np.array([each.result["score"] for each in passed], np.float32).tobytes() == scores.tobytes()
    third, last = passed[2], passed[4]
    assert (third.key, third.sequence, third.decoded["amount"]) == ("a", 3, 300.0)
    assert json.loads(third.raw)["card"] == "a"
    assert third.lookups == {"limit": {"key": "a", "entry": {"most": 1000.0}}}
    assert last.lookups == {"limit": {"key": "b", "entry": None}}
    assert third.windows == {"sum(amount, card, '1h')": 1.0}
    assert all(set(each.micros) == {"decode", "windows", "features", "predict", "encode"} for each in passed)


async def test_with_a_key_the_other_events_are_only_counted(folder):
    job = load_job(folder / "job.yaml")
    _, model = loaded_from(folder / "model.ubj", "cards")
    given = Given({"limit": LookupTable(job.lookups["limit"])}, {})
    passed = [each async for each in of_file(job, model, given, folder / "history.csv", "b")]
    assert [(each.sequence, each.features["spent"]) for each in passed] == [(2, 0.0), (5, 20.0)]


async def test_a_lookup_is_shown_as_it_was_found(folder):
    lines = "map: lookups.limits, key: card, fields: {most: float?, at: {type: timestamp, unit: s}}, valid_from: at"
    job = parse_job(JOB.replace("map: lookups.limits, key: card, fields: {most: float?}", lines), "test")
    _, model = loaded_from(folder / "model.ubj", "cards")
    dated = pd.DataFrame({"card": ["a", "a", "b"], "most": [10.0, 20.0, 30.0], "at": [0.0, 1015.0, 5000.0]})
    given = Given(filled_tables(job, {"limit": dated}), {})
    passed = [each async for each in of_file(job, model, given, folder / "history.csv")]
    entries = [each.lookups["limit"]["entry"] for each in passed]
    assert [entry and entry["most"] for entry in entries] == [10.0, None, 20.0, 20.0, None]
    assert [each.features["share"] for each in passed[:3]] == [np.float32(0.1), None, 15.0]


def run(*words):
    return CliRunner().invoke(_commands("job"), ["job", "preview", *map(str, words)])


def test_the_command_needs_no_cluster_for_files(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"card": "a", "amount": "much", "time": 1}\n{"card": "a\\u001b[2J", "amount": 2, "time": 2}\n')
    words = (folder / "job.yaml", "--input", rows, "--model", folder / "model.ubj", "--lookups", folder)

    lines = run(*words, "--json").stdout.splitlines()
    bad, good = map(json.loads, lines)
    assert bad["rejected"] == {"stage": "decode", "error": "field `amount`: expected a number, got a string"}
    assert (bad["decoded"], bad["result"]) == (None, None)
    assert good["rejected"] is None
    assert good["result"]["decision"] in ("approve", "decline")

    shown = run(*words, "-n", "2").stdout
    assert "rejected" in shown
    assert "\x1b" not in shown
    assert [line.split()[0] for line in shown.splitlines() if "µs" in line] == [
        "1",
        "a\\x1b[2J",
        *("decoded", "windows", "features", "score", "decision"),
    ]


def test_a_job_file_alone_has_no_events(folder):
    ended = run(folder / "job.yaml")
    assert ended.exception.exit_code == 2
    assert "--input FILE" in ended.exception.hint
