"""The command line as a person meets it: plain errors, exit codes, JSON, and a whole story by hand."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from commands import with_client

from gridscore import OfflineMatrix

ROOT = Path(__file__).parents[2]
JOB = (ROOT / "jobs/payments/job.yaml").read_text()


@pytest.fixture
def gridscore(cluster, tmp_path):
    """Runs the command against the cluster; returns exit code, output, errors."""

    def run(*arguments, members=None, code=0):
        env = {
            **os.environ,
            "GRIDSCORE_MEMBERS": json.dumps(members or cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
            "GRIDSCORE_CONNECT_TIMEOUT": "3",
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [sys.executable, "-m", "gridscore.cli", *map(str, arguments)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def job_file(tmp_path, unique):
    """The payments job, under names of its own."""
    text = JOB.replace("payments", f"pay-{unique}").replace("lookups.customers", f"lookups.{unique}")
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def train(matrix_file, label, path, names=None):
    matrix = pd.read_parquet(matrix_file)
    features = [column for column in matrix.columns if column != label]
    rows = xgb.DMatrix(matrix[features].to_numpy(np.float32), matrix[label], feature_names=names or features)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, rows, 5)
    if names is None:
        OfflineMatrix.from_parquet(matrix_file).attach(booster)
    booster.save_model(path)


def test_a_dead_cluster(gridscore, unused_tcp_port):
    done = gridscore("jobs", members=[f"127.0.0.1:{unused_tcp_port}"], code=4)
    assert "No connection to the cluster" in done.stderr
    assert "gridscore up" in done.stderr


def test_a_typo_in_a_job_file_is_located(gridscore, job_file):
    job_file.write_text(job_file.read_text().replace("features:", "featuers:"))
    done = gridscore("job", "check", job_file, code=2)
    line = next(i for i, text in enumerate(job_file.read_text().splitlines(), 1) if "featuers" in text)
    assert f"line {line}: unknown key `featuers`, did you mean `features`?" in done.stderr


def test_a_job_without_its_lookup_map_or_model_is_refused(gridscore, job_file, unique):
    done = gridscore("submit", job_file, code=3)
    assert f"The lookup map `lookups.{unique}` does not exist" in done.stderr


def test_an_event_map_without_a_journal_is_refused(gridscore, job_file, unique):
    job_file.write_text(job_file.read_text().replace(f"events.pay-{unique}", f"plain-{unique}"))
    done = gridscore("submit", job_file, "--no-prepare", code=3)
    assert f"The map `plain-{unique}` has no event journal" in done.stderr


def test_unknown_names_suggest_the_right_one(gridscore, unique):
    done = gridscore("suspend", f"nothing-{unique}", code=6)
    assert f"There is no job `nothing-{unique}`" in done.stderr
    done = gridscore("dead-letters", "list", f"nothing-{unique}", code=6)
    assert f"There is no job `nothing-{unique}`" in done.stderr


def test_wrong_settings(gridscore, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('memebers = ["a"]')
    done = gridscore("jobs", "--settings", file, code=2)
    assert "unknown key memebers" in done.stderr
    done = gridscore("jobs", "--settings", tmp_path / "missing.toml", code=2)
    assert "there is no file" in done.stderr


def test_promote_wants_one_of_two(gridscore):
    done = gridscore("model", "promote", "late", code=2)
    assert "Give either --version N or --previous." in done.stderr


def test_an_invalid_address(gridscore):
    done = gridscore("jobs", members=["127.0.0.1:70000"], code=2)
    assert "`70000` is not a port" in done.stderr


def test_a_file_that_is_not_a_model(gridscore, tmp_path):
    wrong = tmp_path / "model.pkl"
    wrong.write_bytes(b"\x80\x04\x95" + b"x" * 100)
    done = gridscore("model", "push", wrong, "--name", "wrong", code=7)
    assert "save_model" in done.stderr


def test_the_whole_story_by_hand(gridscore, cluster, job_file, tmp_path, unique):
    payments = ROOT / "jobs/payments"
    matrix = tmp_path / "matrix.parquet"
    gridscore(
        "features",
        job_file,
        payments / "history.csv",
        "--lookups",
        payments / "lookups",
        "--keep",
        "fraud",
        "-o",
        matrix,
    )
    model = tmp_path / "model.ubj"
    train(matrix, "fraud", model)
    put(cluster, f"lookups.{unique}", {"ann": {"age": 34, "limit": 500}})
    name = f"pay-{unique}"

    gridscore("model", "push", model, "--name", name, "--alias", "champion")
    gridscore("submit", job_file)
    again = gridscore("submit", job_file).stdout
    assert f"Job {name} is submitted already, unchanged: " in again
    assert ", revision 1." in again
    assert json.loads(gridscore("jobs", "--json").stdout)
    other = tmp_path / "other.ubj"
    train(matrix, "fraud", other, names=["amount", "log_amount", "age", "share_of_limit", "is_abroad", "land"])
    refused = gridscore("model", "push", other, "--name", name, "--alias", "champion", code=7)
    assert "land" in refused.stderr
    assert "country" in refused.stderr

    worker = subprocess.Popen(
        [sys.executable, "-m", "gridscore.cli", "worker", "--jobs", name],
        env={
            **os.environ,
            "GRIDSCORE_MEMBERS": json.dumps(cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        put(cluster, f"events.{name}", {"p1": {"customer": "ann", "amount": 10.0, "country": "DE"}, "bad": {"x": 1}})
        result = wait_for_result(cluster, f"results.{name}", "p1")
        assert result["version"] == 1
        assert result["decision"] in ("approve", "decline")
        (letter,) = wait_for(lambda: json.loads(gridscore("dead-letters", "list", name, "--json").stdout))
        assert letter["key"] == "bad"
        shown = gridscore("dead-letters", "show", name, letter["id"]).stdout
        assert '{"x":1}' in shown
        assert "customer" in shown
        wait_for(lambda: standing(gridscore, name) == ("RUNNING", 1, 0))  # offsets are committed once a second
        assert "suspended: SUSPENDED" in gridscore("jobs", "suspend", name).stdout
        assert "is suspended already, unchanged: SUSPENDED" in gridscore("suspend", name).stdout
        assert "resumed: " in gridscore("resume", name).stdout
        assert json.loads(gridscore("resume", name, "--json").stdout)["changed"] is False
        assert "cancelled: CANCELLED" in gridscore("cancel", name).stdout
    finally:
        worker.send_signal(signal.SIGINT)
        _, stderr = worker.communicate(timeout=30)
    assert worker.returncode == 0
    assert "Worker stopped." in stderr
    assert "Traceback" not in stderr


def standing(gridscore, name):
    (job,) = [job for job in json.loads(gridscore("jobs", "--json").stdout) if job["name"] == name]
    return job["state"], job["workers"], job["lag"]


def put(cluster, map_name, events):
    with_client(cluster, lambda client: client.put_events(map_name, events))


def wait_for_result(cluster, map_name, key):
    async def wait(client):
        async with asyncio.timeout(30):
            while (result := await client.result(map_name, key)) is None:
                await asyncio.sleep(0.05)
            return result

    return with_client(cluster, wait)


def wait_for(look):
    for _ in range(30):
        if found := look():
            return found
    raise AssertionError("nothing came")
