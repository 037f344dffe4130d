"""Backtests: the worker's bits, whatever the file; metrics as scikit-learn has them; what would change."""

import json

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn import metrics
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import TableError, UsageError
from gridscore.features import offline_matrix
from gridscore.features.tables import rows_as_json
from gridscore.group.reader import Cursor
from gridscore.job import load_job, parse_job
from gridscore.models import loaded_from
from gridscore.operations import backtest as operation
from gridscore.operations.backtest import backtest
from gridscore.operations.subject import Side
from gridscore.scoring.rehearsal import Given, Rehearsal, page_of_texts
from gridscore.scoring.window_states import HistoryStates

pytestmark = pytest.mark.usefixtures("small_chunks")

JOB = """
job: cards
events: events.cards
order_by: time
schema: {card: string, shop: string, amount: float, time: timestamp}
windows: {card: card, shop: shop}
features:
  amount: amount
  card: category(card)
  spent: sum(amount, card, "1d")
  visits: count(shop, "7d")
model: cards
results: results.cards
decisions:
  - {decision: decline, at_least: 0.7}
  - {decision: review, at_least: 0.4}
  - {decision: approve}
"""
ROWS = 600


def history():
    draw = np.random.default_rng(5)
    amount = draw.gamma(2, 30, ROWS).round(2)
    return pd.DataFrame(
        {
            "card": [f"c{number}" for number in draw.integers(0, 9, ROWS)],
            "shop": [f"s{number}" for number in draw.integers(0, 5, ROWS)],
            "amount": amount,
            "time": pd.date_range("2026-01-01", periods=ROWS, freq="2h", tz="UTC"),
            "fraud": (amount + draw.normal(0, 30, ROWS) > 90).astype(int),
        }
    )


HISTORY = history()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backtest")
    (folder / "job.yaml").write_text(JOB)
    HISTORY.to_csv(folder / "history.csv", index=False)
    HISTORY.to_parquet(folder / "history.parquet")
    HISTORY.to_json(folder / "history.jsonl", orient="records", lines=True, date_format="iso")
    matrix = offline_matrix(parse_job(JOB, "test"), HISTORY)
    data = xgb.DMatrix(np.asarray(matrix.values), HISTORY["fraud"])
    for name, depth in (("old", 1), ("new", 4)):
        booster = xgb.train({"objective": "binary:logistic", "max_depth": depth, "nthread": 1}, data, 12)
        matrix.attach(booster)
        booster.save_model(folder / f"{name}.ubj")
    return folder


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(operation, "_CHUNK", 57)


def side(folder, name):
    return Side(name, loaded_from(folder / f"{name}.ubj", "cards")[1])


async def test_scores_and_decisions_are_the_workers_whatever_the_file_and_its_chunks(folder, monkeypatch):
    job, model = load_job(folder / "job.yaml"), side(folder, "new")
    rehearsal = Rehearsal(job, model.model, Given({}, {}), HistoryStates(job))
    texts, _ = await rehearsal.score(page_of_texts(list(rows_as_json(HISTORY, job.schema_)), 0), Cursor(0, 0))
    expected = [json.loads(text) for text in texts]
    scores = np.array([result["score"] for result in expected], np.float32)
    assert scores.tobytes() == model.model.predict(np.asarray(offline_matrix(job, HISTORY).values)).tobytes()
    seen = []
    judge = operation.judged
    monkeypatch.setattr(operation, "judged", lambda *given: seen.append(given) or judge(*given))
    for suffix in ("csv", "parquet", "jsonl"):
        report = await backtest(job, [model], Given({}, {}), folder / f"history.{suffix}", label="fraud")
        found, decisions, names, _ = seen.pop()
        assert found.tobytes() == scores.tobytes()
        assert [names[number] for number in decisions] == [result["decision"] for result in expected]
        assert (report["rows"], report["from"], report["labels"]) == (ROWS, "2026-01-01T00:00:00Z", ROWS)
        assert not seen


@pytest.mark.usefixtures("small_chunks")
async def test_a_field_that_lines_have_late_or_never_is_missing_until_then(folder, tmp_path):
    job = parse_job(JOB.replace("schema: {", "schema: {note: string?, none: string?, "), "test")
    lines = (folder / "history.jsonl").read_text().splitlines()
    (tmp_path / "h.jsonl").write_text("\n".join([*lines[:-1], lines[-1].replace("{", '{"note":"x",', 1)]))
    report = await backtest(job, [side(folder, "new")], Given({}, {}), tmp_path / "h.jsonl", label="fraud")
    assert report["versions"][0]["scored"] == ROWS


async def test_metrics_are_those_of_scikit_learn_and_add_up(folder):
    job, model = load_job(folder / "job.yaml"), side(folder, "old")
    report = await backtest(job, [model], Given({}, {}), folder / "history.csv", label="fraud", value="amount")
    scores = model.model.predict(np.asarray(offline_matrix(job, HISTORY).values)).astype(np.float64)
    (found,) = report["versions"]
    assert found["metrics"] == {
        "auc": metrics.roc_auc_score(HISTORY["fraud"], scores),
        "log_loss": metrics.log_loss(HISTORY["fraud"], scores),
        "brier": metrics.brier_score_loss(HISTORY["fraud"], scores),
    }
    decline = found["decisions"][0]
    these = scores >= np.float32(0.7)
    assert decline["events"] == these.sum()
    assert decline["value"] == pytest.approx(HISTORY["amount"][these].sum())
    assert decline["precision"] == metrics.precision_score(HISTORY["fraud"], these)
    assert decline["recall"] == metrics.recall_score(HISTORY["fraud"], these)
    assert sum(each["events"] for each in found["periods"]) == ROWS
    assert sum(each["events"] for each in found["calibration"]) == ROWS
    assert len(found["periods"]) > 5


async def test_labels_that_are_not_known_yet_do_not_count(folder):
    job, model = load_job(folder / "job.yaml"), side(folder, "old")
    report = await backtest(
        job, [model], Given({}, {}), folder / "history.csv", label="fraud", label_delay=10 * 86_400.0
    )
    assert report["labels"] == ROWS - 120  # twelve a day
    assert report["versions"][0]["periods"][-1]["labels"] == 0


async def test_what_would_change_between_two_versions(folder):
    job, sides = load_job(folder / "job.yaml"), [side(folder, "new"), side(folder, "old")]
    report = await backtest(job, sides, Given({}, {}), folder / "history.csv", label="fraud", value="amount")
    matrix = np.asarray(offline_matrix(job, HISTORY).values)
    new, old = (np.searchsorted(np.float32([0.4, 0.7]), each.model.predict(matrix), side="right") for each in sides)
    changes = report["changes"]
    assert changes["changed"] == (new != old).sum() > 0
    assert sum(each["events"] for each in changes["decisions"]) == ROWS
    names = ["approve", "review", "decline"]
    for each in changes["decisions"]:
        these = (old == names.index(each["from"])) & (new == names.index(each["to"]))
        assert each["events"] == these.sum()
        assert each["value"] == pytest.approx(HISTORY["amount"][these].sum())


async def test_bad_rows_are_told_and_harm_no_other(folder, tmp_path):
    job, model = load_job(folder / "job.yaml"), side(folder, "old")
    lines = (folder / "history.jsonl").read_text().splitlines()
    bad = '{"card": "c1", "shop": "s1", "amount": "much", "time": "2026-01-01T00:00:00Z"}'
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:3], bad, *lines[3:]]))
    report = await backtest(job, [model], Given({}, {}), tmp_path / "rows.jsonl", label="fraud")
    (found,) = report["versions"]
    assert found["rejected"] == {"decode": 1}
    assert found["first_rejected"] == "row 4: decode: field `amount`: expected a number, got a string"
    assert (found["scored"], report["labels"]) == (ROWS, ROWS)
    whole = await backtest(job, [model], Given({}, {}), folder / "history.csv", label="fraud")
    assert found["metrics"] == whole["versions"][0]["metrics"]


async def test_what_cannot_be_is_said(folder, tmp_path):
    job, model = load_job(folder / "job.yaml"), side(folder, "old")
    HISTORY[::-1].to_csv(tmp_path / "late.csv", index=False)
    with pytest.raises(TableError, match="older than a row of its entity"):
        await backtest(job, [model], Given({}, {}), tmp_path / "late.csv")
    for labels, row in ((["good", "bad"] * 300, 1), ([1] * 100 + ["?"] + [0] * 499, 101), ([0] * 599 + ["inf"], 600)):
        HISTORY.assign(fraud=labels).to_csv(tmp_path / "texts.csv", index=False)
        with pytest.raises(TableError, match=rf"texts.csv, row {row}: `[a-z?]+` in `fraud` is not a number"):
            await backtest(job, [model], Given({}, {}), tmp_path / "texts.csv", label="fraud")
    HISTORY.assign(fraud=["yes", "", "NA", "0"] * 150).to_csv(tmp_path / "some.csv", index=False)
    assert (await backtest(job, [model], Given({}, {}), tmp_path / "some.csv", label="fraud"))["labels"] == 300
    with pytest.raises(TableError, match="no column `what`"):
        await backtest(job, [model], Given({}, {}), folder / "history.csv", label="what")
    plain = parse_job(
        JOB[: JOB.index("order_by")] + "schema: {amount: float}\nfeatures: [amount]\nmodel: m\nresults: r\n", "t"
    )
    with pytest.raises(UsageError, match="needs the time of each event"):
        await backtest(plain, [model], Given({}, {}), folder / "history.csv", label="fraud", label_delay=1.0)


def run(*words):
    return CliRunner(env={"COLUMNS": "80"}).invoke(_commands("backtest"), ["backtest", *map(str, words)])


def test_the_command_prints_tables_and_writes_a_page_that_needs_nothing_else(folder, tmp_path):
    hostile = tmp_path / "<b>.csv"
    HISTORY.to_csv(hostile, index=False)
    words = (folder / "job.yaml", hostile, "--model", folder / "new.ubj", "--against", folder / "old.ubj")
    words = (*words, "--label", "fraud", "--label-delay", "7d", "--value", "amount", "--html", tmp_path / "page.html")

    ended = run(*words)

    assert ended.exit_code == 0, ended.output
    for title in ("Metrics", "What would change", "Over time", "Calibration of", "decline → decline"):
        assert title in ended.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "<b>" not in page
    assert "&lt;b&gt;.csv" in page
    assert "src=" not in page
    assert 'href="http' not in page
    report = json.loads(run(*words[:-2], "--json").stdout)
    assert report["changes"]["changed"] > 0
    assert report["label_delay"] == 7 * 86_400


def test_the_command_refuses_what_makes_no_sense(folder):
    ended = run(folder / "job.yaml", folder / "history.csv", "--model", folder / "new.ubj", "--label-delay", "7d")
    assert "--label COLUMN" in ended.exception.hint
    ended = run(
        folder / "job.yaml", folder / "history.csv", "--model", folder / "new.ubj", "--html", folder / "no/x.html"
    )
    assert "cannot be written" in ended.exception.message
