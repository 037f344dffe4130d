"""Reports of a model at work: results joined with late labels, and each figure as scikit-learn and numpy have it."""

import asyncio
import json
import re
import time

import numpy as np
import pytest
from hazelcast.core import HazelcastJsonValue
from sklearn import metrics
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.cli import model_report as command
from gridscore.client import Client
from gridscore.errors import JobError, JobFileError, UsageError
from gridscore.job import parse_job
from gridscore.job.monitoring import Labels
from gridscore.operations import model_report as operation
from gridscore.operations.model_report import model_report
from gridscore.scoring.labels import label_of
from gridscore.testing import StubCluster

JOB = """
job: cards
events: events.cards
results: results.cards
schema: {amount: float, order: string}
features: {amount: amount}
model: cards
result: {include: [order]}
decisions:
  - {decision: decline, at_least: 0.7}
  - {decision: approve}
"""
LABELS = "labels: {map: labels.cards, positive: [fraud], cost: {approve: [0, 100], decline: [5, 0]}}\n"
COUNT = 400


def scored(seed=0):
    """Results by key, and what came of each."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, COUNT)
    scores = np.clip(labels * 0.3 + draw.random(COUNT) * 0.7, 0.01, 0.99).astype(np.float32)
    now = int(time.time() * 1000)
    return {
        f"k{n}": {
            "score": float(scores[n]),
            "decision": "decline" if scores[n] >= 0.7 else "approve",
            "model": "cards",
            "version": 1 if n < 250 else 2,
            **({"variant": "canary"} if n >= 320 else {}),
            "scored_at": now - 3_600_000 * (COUNT - n),
            "order": f"order {n}",
            "truth": int(labels[n]),
        }
        for n in range(COUNT)
    }


def label(row):
    return "fraud" if row["truth"] else "good"


async def put(client, name, entries):
    proxy = await client.grid.map(name)
    for key, value in entries.items():
        await proxy.set(key, value if isinstance(value, int | str) else HazelcastJsonValue(json.dumps(value)))


async def report(job, results, labels, **options):
    async with StubCluster(5) as cluster:
        client = Client(await cluster.connect())
        await client.jobs.submit(parse_job(job, "test"))
        await put(client, "results.cards", results)
        await put(client, "labels.cards", labels)
        return await model_report(client.grid, "cards", **options)


async def test_each_figure_is_that_of_scikit_learn_and_numpy(monkeypatch):
    monkeypatch.setattr(operation, "PAGE", 7)
    results = scored()
    known = {key: row for n, (key, row) in enumerate(results.items()) if n % 3}
    labels = {key: {"label": label(row)} for key, row in known.items()} | {"nobody": {"label": "good"}}
    found = await report(JOB + LABELS, results, labels)
    assert (found["results"], found["labels_without_result"], found["labels_invalid"]) == (COUNT, 1, 0)
    assert [each["name"] for each in found["versions"]] == ["v2 canary", "v2", "v1"]
    of = {"v1": slice(0, 250), "v2": slice(250, 320), "v2 canary": slice(320, None)}
    for each in found["versions"]:
        rows = dict(list(results.items())[of[each["name"]]])
        truth = np.array([row["truth"] for key, row in rows.items() if key in known])
        scores = np.array([row["score"] for key, row in rows.items() if key in known])
        assert (each["scored"], each["labels"], each["unlabelled"]) == (len(rows), len(truth), len(rows) - len(truth))
        ours = each["metrics"]
        assert ours["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
        assert ours["log_loss"] == pytest.approx(metrics.log_loss(truth, scores))
        assert ours["brier"] == pytest.approx(np.mean((scores - truth) ** 2))
        declined = scores >= np.float32(0.7)
        decline, approve = each["decisions"]
        assert decline["precision"] == pytest.approx(metrics.precision_score(truth, declined))
        assert decline["recall"] == pytest.approx(metrics.recall_score(truth, declined))
        assert approve["recall"] == pytest.approx(metrics.recall_score(truth, ~declined))
        costs = np.where(declined, np.where(truth, 0, 5), np.where(truth, 100, 0))
        assert ours["cost"] == pytest.approx(costs.mean())
        assert decline["value"] == pytest.approx(costs[declined].sum())
        for bin_ in each["calibration"]:
            within = (np.float32(scores) * 10).astype(int) == round(bin_["from"] * 10)
            assert bin_["label_mean"] == pytest.approx(truth[within].mean())
        assert sum(period["labels"] for period in each["periods"]) == len(truth)
        assert len(each["periods"]) > 2
    last = await report(JOB + LABELS, results, labels, last=3_600 * 50.5)
    assert (last["results"], [each["name"] for each in last["versions"]]) == (50, ["v2 canary"])
    assert last["labels_without_result"] == 1


async def test_numbers_have_rmse_and_mae():
    results = scored()
    draw = np.random.default_rng(1)
    truth = {key: float(draw.normal(10, 3)) for key in results}
    found = await report(
        JOB + "labels: {map: labels.cards, field: minutes}\n", results, {k: {"minutes": v} for k, v in truth.items()}
    )
    errors = {
        each["name"]: np.array([row["score"] - truth[key] for key, row in results.items() if row["version"] == 1])
        for each in found["versions"]
    }["v1"]
    (first,) = [each for each in found["versions"] if each["name"] == "v1"]
    assert first["metrics"] == pytest.approx({"rmse": np.sqrt(np.mean(errors**2)), "mae": np.abs(errors).mean()})
    assert first["decisions"][0]["precision"] is None


async def test_labels_with_keys_of_their_own_find_their_results():
    results = scored()
    spec = LABELS.replace("{map", "{key: order, map")
    labels = {row["order"]: {"label": label(row)} for row in results.values()}
    found = await report(JOB + spec, results, labels | {"order of nobody": {"label": "good"}, 7: {"label": "good"}})
    assert sum(each["labels"] for each in found["versions"]) == COUNT
    assert found["labels_without_result"] == 2


async def test_what_is_not_a_label_or_a_result_harms_no_other():
    good = {"score": 0.5, "version": 1, "scored_at": 1}
    bad = [{"score": "high"}, {"version": 1}, [1, 2], good | {"score": 10**400}, good | {"scored_at": 10**400}]
    results = scored() | {f"x{n}": value for n, value in enumerate(bad)}
    keys = [key for key in results if key.startswith("k")]
    labels = dict.fromkeys(keys, "good") | {keys[0]: {"label": [1]}, keys[1]: {}, keys[2]: {"label": None}}
    found = await report(JOB + LABELS, results, labels)
    assert (found["results"], found["labels_invalid"]) == (COUNT, 1)
    assert "is not a number" in found["first_invalid"]
    assert sum(each["labels"] for each in found["versions"]) == COUNT - 3
    assert all(each["metrics"]["auc"] is None for each in found["versions"])  # all labels are the same


@pytest.mark.parametrize(
    ("text", "positive", "expected"),
    [
        (b"1", (), 1.0),
        (b"true", (), 1.0),
        (b"2.5", (), 2.5),
        (b'{"label": 0}', (), 0.0),
        (b"true", ("true",), 1.0),
        (b"3", ("3",), 1.0),
        (b'"fraud"', ("fraud",), 1.0),
        (b"fraud", ("fraud",), 1.0),
        (b'{"label": "good"}', ("fraud",), 0.0),
    ],
)
def test_a_label_is_a_number_or_a_text_that_counts_as_one(text, positive, expected):
    assert label_of(text, Labels(map="labels.x", positive=positive)) == expected


@pytest.mark.parametrize(
    "text", [b"fraud", b"[]", b"\xff", b'{"label": {}}', b"1e999", b"1" + b"0" * 400, b"[" * 9_000, b""]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a number|out of range"):
        label_of(text, Labels(map="labels.x"))


async def test_what_cannot_be_reported_is_said(monkeypatch):
    with pytest.raises(JobError, match="says nothing of labels"):
        await report(JOB, {}, {})
    with pytest.raises(UsageError, match="the model gives several"):
        await report(JOB + LABELS, {"k": {"score": [0.1, 0.9], "version": 1, "scored_at": 1}}, {})
    monkeypatch.setattr(operation, "MOST_ROWS", 100)
    with pytest.raises(UsageError, match="more than 100 results"):
        await report(JOB + LABELS, scored(), {})
    for wrong in (
        "map: results.cards",
        "map: l, key: amount",
        "map: l, cost: {other: [1, 2]}",
        "map: l, cost: {approve: [1]}",
    ):
        with pytest.raises(JobFileError):
            parse_job(JOB + f"labels: {{{wrong}}}\n", "test")


def test_the_command_prints_tables_and_writes_a_page(tmp_path, monkeypatch):
    results = scored()
    for row in results.values():
        if "variant" in row:
            row["variant"] = "<b>$x^2$</b>"

    def on_stub(_connection, _work):
        return asyncio.run(report(JOB + LABELS, results, {key: label(row) for key, row in results.items()}))

    monkeypatch.setattr(command, "run_on", on_stub)
    page = tmp_path / "report.html"
    done = CliRunner().invoke(_commands("model"), ["model", "report", "cards", "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "400 results, 400 with a label in labels.cards" in " ".join(done.output.split())
    assert {"Metrics", "AUC", "COST", "PRECISION"} <= set(re.findall(r"\w+", done.output))
    text = page.read_text()
    assert "<svg" in text
    assert "<b>$" not in text
    done = CliRunner().invoke(_commands("model"), ["model", "report", "cards", "--json"])
    assert json.loads(done.stdout)["results"] == COUNT
