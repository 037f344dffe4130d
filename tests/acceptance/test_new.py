"""`gridscore new`: a project's own tests pass at once, whatever it was made of."""

import json
import os
import re
import subprocess
import sys
import tomllib
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


def check(folder, tests, **environment):
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", folder]
    there = os.environ | environment
    done = subprocess.run(words, cwd=folder, env=there, capture_output=True, text=True, timeout=240, check=False)
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


@pytest.mark.parametrize("side", ["source", "sink"])
def test_a_distribution_for_a_plug_passes_its_tests_and_brings_the_kind(tmp_path, side):
    folder = tmp_path / "my-queue"
    assert "pip install" in new(folder, "--plug", side)
    check(folder, 3, PYTHONPATH=str(folder))
    # As an installation would.
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    [[group, kinds]] = project["entry-points"].items()
    info = folder / "gridscore_my_queue-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{kind} = {it}\n" for kind, it in kinds.items()))
    words = [sys.executable, "-m", "gridscore.cli", side, "my-queue", "--help"]
    there = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, env=there, capture_output=True, text=True, timeout=60, check=True)
    assert "--table" in done.stdout
    other = {"source": "sink", "sink": "source"}[side]
    written = [
        file for file in folder.rglob("*") if file.is_file() and "info" not in str(file) and file.suffix != ".pyc"
    ]
    everything = [file.read_text() for file in written]
    assert not any(re.search(rf"{other}|(?<!\w)sqlite(?!\w)", text) for text in everything if "[project]" not in text)


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
        (["x", "--plug", "sink", "--key", "id"], "--plug makes no job"),
        (["X y", "--plug", "sink"], "cannot be called `X y`"),
    ):
        with pytest.raises(UsageError, match=message):
            new(tmp_path / words[0], *words[1:])
    assert not (tmp_path / "x").exists()
