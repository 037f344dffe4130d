"""`gridscore new`: a project's own tests pass at once, whatever it was made of."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import UsageError

DOCS_JOB = """\
job: fraud
events: events.fraud
schema: {customer: string, amount: float}
lookups: {customer: {map: lookups.customers, key: customer, fields: {limit: float}}}
features: {amount: amount, share: amount / customer.limit}
model: fraud
results: results.fraud
decisions: [{decision: decline, at_least: 0.5}, {decision: approve}]
"""


def new(*words):
    done = CliRunner().invoke(_commands("new"), ["new", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def check(folder, tests):
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", folder]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert f"{tests} passed" in done.stdout


@pytest.fixture
def history(tmp_path):
    """With everything that a first history has: a zip code, gaps, a time, classes as texts."""
    rows = range(120)
    table = {
        "id": [f"f{row}" for row in rows],
        "zip": [f"0{row % 7}123" for row in rows],
        "weight": [None if row % 11 == 0 else row * 0.5 for row in rows],
        "seen": ["2026-01-31T12:00:00Z" for _ in rows],
        "species": [("setosa", "versicolor", "virginica")[row % 3] for row in rows],
    }
    file = tmp_path / "iris.csv"
    pd.DataFrame(table).to_csv(file, index=False)
    return file


def test_the_example_passes_its_tests(tmp_path):
    assert "cd" in new(tmp_path / "fraud")
    check(tmp_path / "fraud", 4)


def test_a_project_of_a_history_trains_for_its_label_and_then_goes_on_with_the_model(tmp_path, history):
    one, two = tmp_path / "iris-kinds", tmp_path / "iris-live"
    new(one, "--history", history, "--label", "species")
    check(one, 4)
    text = (one / "job.yaml").read_text()
    assert "species" not in text
    assert "--events iris.csv --key id" in (one / "README.md").read_text()
    model = tmp_path / "m.ubj"
    subprocess.run([sys.executable, one / "train.py", "-o", model], check=True, capture_output=True)
    new(two, "--model", model)
    assert not (two / "train.py").exists()
    check(two, 3)
    assert json.loads((two / "tests/events.jsonl").read_text())


def test_the_lab_of_the_docs_does_what_they_say(tmp_path):
    text = (Path(__file__).parents[2] / "docs/testing.md").read_text()
    block = next(each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "gridscore_lab" in each)
    (tmp_path / "test_docs.py").write_text(block)
    (tmp_path / "jobs/fraud").mkdir(parents=True)
    (tmp_path / "jobs/fraud/job.yaml").write_text(DOCS_JOB)
    rows = np.array([[1.0, 0.1], [5000.0, 50.0]] * 20, np.float32)
    data = xgb.DMatrix(rows, [0, 1] * 20, feature_names=["amount", "share"])
    xgb.train({"objective": "binary:logistic", "nthread": 1}, data, 5).save_model(tmp_path / "fraud.ubj")
    check(tmp_path, 3)


def test_what_a_project_cannot_be_made_of_is_said(tmp_path, history):
    (tmp_path / "there").mkdir()
    for words, message in (
        (["there"], "exists already"),
        (["x", "--history", history], "Nothing says what the model is to learn"),
        (["x", "--history", history, "--label", "specis"], "no column `specis`"),
        (["x", "--history", history, "--label", "species", "--key", "no"], "no column `no`"),
        (["x", "--label", "species"], "--label is for a history"),
    ):
        with pytest.raises(UsageError, match=message):
            new(tmp_path / words[0], *words[1:])
    assert not (tmp_path / "x").exists()
