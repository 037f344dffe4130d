"""Python functions of features on a real member: workers that may call them and one that may not, and proof."""

import asyncio
import json
import os
import re
import signal

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
import xgboost as xgb
from commands import until, with_client

import gridscore
from gridscore.features import functions, offline_matrix
from gridscore.job import parse_job

MODULE = """
import os
from pathlib import Path

import numpy as np


def fragile(amount):
    if Path(__file__).with_name("broken").exists():
        os.abort()
    return amount * 2


def risk(amount, country, tries):
    if (amount == -1).any():
        raise ValueError("no amount")
    if (amount == -2).any():
        while True:
            pass
    return np.log1p(np.abs(amount)) * np.where(country == "DE", 1.25, 1 / 3) + np.nan_to_num(tries)


def parts(frame):
    return frame.assign(share=frame["amount"] / (1 + frame["risk"]), foreign=frame["country"] != "DE")
"""
JOB = """\
job: {name}
events: events.{name}
event_key: card
order_by: at
schema: {{card: string, amount: float, country: string, at: {{type: timestamp, unit: s}}}}
{windows}
features:
  amount: amount
  risk: {{python: "acme_{name}.live:risk", of: [amount, country, {tries}]}}
  share: {{python: "acme_{name}.live:parts", of: {{amount: amount, risk: risk, country: country}}, column: share}}
  foreign: {{python: "acme_{name}.live:parts", of: {{amount: amount, risk: risk, country: country}}, column: foreign}}
model: {name}
results: results.{name}
"""
COUNT = 3_000


def history_of(count):
    rows = np.arange(count)
    return pd.DataFrame(
        {
            "card": [f"c{n}" for n in rows],
            "amount": np.round(rows * 0.37 % 500, 2),
            "country": np.where(rows % 3 == 0, "DE", "FR"),
            "at": 1_700_000_000.0 + rows,
        }
    )


@pytest.fixture
def module(tmp_path, monkeypatch, environment, unique):
    """A module that processes of ours can import, and this one."""
    site = tmp_path / "site"
    (site / f"acme_{unique}").mkdir(parents=True)
    (site / f"acme_{unique}/__init__.py").touch()
    (site / f"acme_{unique}/live.py").write_text(MODULE)
    environment["PYTHONPATH"] = str(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(functions, "_allowed", set())
    gridscore.allow_python(f"acme_{unique}")
    return f"acme_{unique}"


def trained(job, history):
    matrix = offline_matrix(job, history)
    share = np.asarray(matrix.values)[:, 2]
    labels = (share > np.median(share)).astype(int)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 4}, matrix.dmatrix(labels), 10)
    matrix.attach(booster)
    return booster, booster.predict(matrix.dmatrix())


async def scores(client, job, count):
    """Of so many events, by key."""
    stream = await client.results(job.results, start="oldest")
    found = {}
    async with asyncio.timeout(180):
        while len(found) < count:
            result = await anext(stream)
            found[result.key] = result.score
    return found


def is_there(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def children_of(pid):
    return [
        each.pid
        for each in psutil.Process(pid).children(recursive=True)
        if "function_calls" in " ".join(each.cmdline())
    ]


class Scene:
    """A job with functions on a cluster, its history, and what the model gives for that offline."""

    def __init__(self, cluster, name, windows):
        tries = "'count(card, \"1h\")'" if windows else "0"
        self.cluster, self.text = cluster, JOB.format(name=name, windows=windows, tries=tries)
        self.job, self.history = parse_job(self.text, "test"), history_of(COUNT)
        self.booster, self.expected = trained(self.job, self.history)

        async def prepare(client):
            await client.push_model(self.booster, name, alias="champion")
            await client.submit(self.job)

        with_client(cluster, prepare)

    def put(self, rows):
        job = self.job
        with_client(self.cluster, lambda client: client.put_events(job.events, rows, key="card", job=job))

    def scores(self, count):
        """Of the first so many, held against those offline, bit for bit."""
        found = with_client(self.cluster, lambda client: scores(client, self.job, count))
        scored = np.array([found[f"c{n}"] for n in range(count)], np.float32)
        assert scored.tobytes() == self.expected[:count].tobytes()
        return found


def ended(worker):
    (child,) = map(psutil.Process, children_of(worker.pid))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    until(lambda: not is_there(child))


def test_functions_over_windows_give_the_same_bits_live_and_offline(cluster, run, start, unique, module, tmp_path):
    scene = Scene(cluster, unique, "windows: {card: card}")
    worker, _ = start("worker", "--jobs", unique, "--allow-python", module)
    scene.put(scene.history[: COUNT // 2])
    (child,) = until(lambda: children_of(worker.pid))
    os.kill(child, signal.SIGKILL)
    scene.put(scene.history[COUNT // 2 :])
    found = scene.scores(COUNT)

    proof = json.loads(run("parity", unique, "--allow-python", module, "--json", "--wait", "1").stdout)
    assert proof["different"] == 0
    (tmp_path / "job.yaml").write_text(scene.text)
    scene.booster.save_model(tmp_path / "model.ubj")
    scene.history.to_csv(tmp_path / "history.csv", index=False)
    job, history, model = (str(tmp_path / each) for each in ("job.yaml", "history.csv", "model.ubj"))
    more = ("--model", model, "--allow-python", module, "--json")
    assert json.loads(run("backtest", job, history, *more).stdout)["versions"][0]["scored"] == COUNT
    passed = run("job", "preview", job, "--input", history, "-n", "3", *more).stdout
    shown = [json.loads(line) for line in passed.splitlines()]
    assert [each["result"]["score"] for each in shown] == [found[f"c{n}"] for n in range(3)]
    ended(worker)


def test_events_that_a_function_cannot_take_are_dead_letters_and_requests_get_scores(
    cluster, run, start, unique, module
):
    scene = Scene(cluster, unique, "")
    _, told = start("worker", "--jobs", unique)
    until(lambda: "are not allowed here" in told.read_text())
    status = json.loads(run("status", unique, "--json", code=None).stdout)
    assert "functions" in [each["code"] for each in status["jobs"][0]["findings"]]
    assert '"FAILED"' not in json.dumps(status)

    worker, _ = start("worker", "--jobs", unique, "--allow-python", module)
    scene.put(scene.history[: COUNT // 2])
    scene.scores(COUNT // 2)
    bad = {"card": ["raises", "hangs"], "amount": [-1.0, -2.0], "country": "DE", "at": 1_700_000_000.0 + COUNT}
    scene.put(pd.DataFrame(bad))
    scene.put(scene.history[COUNT // 2 :])
    found = scene.scores(COUNT)
    letters = until(lambda: len(got := json.loads(run("dead-letters", "list", unique, "--json").stdout)) == 2 and got)
    errors = {each["key"]: each["error"] for each in letters}
    assert {each["stage"] for each in letters} == {"functions"}
    assert "raised ValueError: no amount" in errors["raises"]
    assert "in risk" in errors["raises"]
    assert "used more than 1 s of processor time" in errors["hangs"]
    assert "are not allowed here" in run("parity", unique, "--wait", "1", code=None).stderr

    _, serving = start("serve", "--port", "0", "--jobs", unique, "--allow-python", module)
    address = until(lambda: re.search(r"Serving at (\S+)", serving.read_text()))[1]
    events = scene.history[:20].to_dict("records")
    url = f"{address}/score/{unique}"
    until(lambda: httpx.post(url, json=events[0], timeout=60).status_code == 200)
    answers = httpx.post(url, json=[*events, {**events[0], "amount": -1}], timeout=60).json()
    assert [each["score"] for each in answers[:20]] == [found[f"c{n}"] for n in range(20)]
    assert "no amount" in json.dumps(answers[20])
    ended(worker)


def test_a_function_that_breaks_and_is_mended_costs_no_event(cluster, run, start, unique, module, tmp_path):
    text = f"""
job: {unique}
events: events.{unique}
schema: {{amount: float}}
features:
  twice: {{python: "{module}.live:fragile", of: [amount]}}
model: {unique}
results: results.{unique}
"""
    job = parse_job(text, "test")
    values = pd.DataFrame({"key": [str(n) for n in range(200)], "amount": np.arange(200.0)})
    booster = xgb.train(
        {"objective": "reg:squarederror", "nthread": 1},
        xgb.DMatrix(2 * values[["amount"]].to_numpy(), values["amount"], feature_names=["twice"]),
        4,
    )

    async def prepare(client):
        await client.push_model(booster, unique, alias="champion")
        await client.submit(job)

    async def put(client, rows):
        await client.put_events(job.events, rows, key="key", job=job)

    with_client(cluster, prepare)
    worker, _ = start("worker", "--jobs", unique, "--allow-python", module)
    with_client(cluster, lambda client: put(client, values[:100]))
    with_client(cluster, lambda client: scores(client, job, 100))

    (mark := tmp_path / "site" / module / "broken").touch()
    with_client(cluster, lambda client: put(client, values[100:]))
    told = until(
        lambda: "functions" in (shown := run("status", unique, "--json", code=None)).stdout and json.loads(shown.stdout)
    )
    assert '"FAILED"' not in json.dumps(told)
    mark.unlink()
    found = with_client(cluster, lambda client: scores(client, job, 200))
    expected = booster.predict(xgb.DMatrix(2 * values[["amount"]].to_numpy(), feature_names=["twice"]))
    assert [found[key] for key in values["key"]] == expected.tolist()
    assert json.loads(run("dead-letters", "list", unique, "--json").stdout) == []
    until(lambda: run("status", unique, code=None).returncode == 0)

    children = [psutil.Process(pid) for pid in children_of(worker.pid)]
    worker.kill()
    until(lambda: children and not any(map(is_there, children)))
