"""The life of a model in docs/models.md: its lines run as they stand there, on fewer flights."""

import json
import re
import shlex
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.errors import GateError
from gridscore.grid.member import Cluster
from gridscore.proving.demo import dataset
from gridscore.proving.demo.training import script_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    """One of its own: on that of the session another test may run a job of this name."""
    with Cluster.start(1, port=0, heap="1g", register=False) as started:
        yield started


@pytest.fixture
def train(monkeypatch):
    """The main function of the training script, with fewer flights."""
    module = script_of(ROOT / "jobs/flights/train.py")
    whole = dataset.load_flights().frame
    few = [whole[whole["month"] == 1].head(4_000), whole[whole["month"] == 4].head(1_500)]
    flights = dataset.Flights(pd.concat(few, ignore_index=True), "few")
    monkeypatch.setattr(module, "load_flights", lambda: flights)
    monkeypatch.setattr(module, "TREES", 30)
    return module.main


def test_the_life_of_a_model_on_the_flights(cluster, train, start, tmp_path, monkeypatch):
    text = (ROOT / "docs/models.md").read_text().partition("## A model's life")[2]
    gates, lines = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("yaml", "sh"))
    monkeypatch.chdir(tmp_path)
    Path("gated.yaml").write_text((ROOT / "jobs/flights/job.yaml").read_text() + gates)
    monkeypatch.setenv("GRIDSCORE_MEMBERS", json.dumps(cluster.addresses))
    monkeypatch.setenv("GRIDSCORE_CLUSTER_NAME", cluster.cluster_name)
    told = {}

    for line in filter(None, lines.splitlines()):
        command, _, comment = line.partition("#")
        program, *words = shlex.split(command)
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            train()
        elif words[-1] == "&":
            start(*words[:-1])
        else:
            done = CliRunner().invoke(_commands(words[0]), words)
            over = time.monotonic() + 240
            while "until" in comment and "ended:" not in done.output and time.monotonic() < over:
                time.sleep(1.0)
                done = CliRunner().invoke(_commands(words[0]), words)
            if "exit code" in comment:
                assert isinstance(done.exception, GateError), (line, done.output)
                assert done.exception.exit_code == int(comment.split()[-1])
                told["refused"] = str(done.exception)
            else:
                assert done.exit_code == 0, (line, done.output, done.exception)
                told[line] = done.output

    assert re.findall(r"^  For the job `flights`: (\w+)", told["refused"], re.MULTILINE) == [
        "metric",
        "champion",
        "shift",
    ]
    (log,) = [output for line, output in told.items() if line == "gridscore model log flights"]
    assert [word for word in log.split() if word in ("push", "sample", "promote", "rollback")] == [
        *("push", "promote", "sample", "push", "promote", "rollback", "push", "promote", "rollback")
    ]
    assert "gates overridden: a drill" in log
    (shown,) = [output for line, output in told.items() if line.startswith("gridscore experiment status")]
    assert re.search(
        r"ended: challenger v3: auc: 0\.\d+ by [\d,]+ labels, the champion's 0\.\d+", " ".join(shown.split())
    )
    assert re.search(r"challenger-2 +v2 ", shown)
    assert re.search(r"1,500 results, 1,\d{3} with a label in labels.flights", told["gridscore model report flights"])
