"""The README's Python runs as it stands there, and so do its shortest job file and the commands for it."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from commands import with_client
from sklearn.datasets import load_breast_cancer
from xgboost import XGBClassifier

from gridscore import load_job

ROOT = Path(__file__).parents[2]


def test_the_twenty_lines_score_an_event():
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"test_readme\.py runs this -->\n```python\n(.*?)```", text, re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    key, score, decision = done.stdout.split()
    assert (key, decision) == ("p1", "approve")
    assert 0 < float(score) < 1
    assert done.stderr == ""


def test_a_job_file_of_four_lines_scores_a_model_of_scikit_learn(cluster, run, start, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text().partition("## Four lines of YAML")[2]
    job, code, commands = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("yaml", "python", "sh"))
    assert len(job.splitlines()) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tumours.yaml").write_text(job)

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    for line in commands.splitlines():
        words = line.removeprefix("gridscore ").removesuffix(" &").split()
        if words[0] != "watch":
            (start if line.endswith("&") else run)(*words)

    async def all_results(client):
        found = {}
        stream = await client.results("results.tumours", start="oldest")
        async with asyncio.timeout(60):
            async for result in stream:
                found[int(result.key)] = result.score
                if len(found) == 569:
                    break
        return found

    found = with_client(cluster, all_results)
    frame, target = load_breast_cancer(return_X_y=True, as_frame=True)
    expected = XGBClassifier().fit(frame, target).predict_proba(frame)[:, 1]
    scores = np.array([found[row] for row in frame.index], np.float32)
    assert scores.tobytes() == expected.astype(np.float32).tobytes()
    job_check = run("job", "check", "tumours.yaml").stdout
    assert "Its features are the model's own, read from the event as they are" in job_check
    assert "category" not in run("job", "check", "tumours.yaml", "--model", "tumours.ubj").stdout
    run("features", "tumours.yaml", "tumours.jsonl", "-o", "m.parquet", code=2)
    frame.to_csv("history.csv", index=False)
    run("features", "tumours.yaml", "history.csv", "--model", "tumours.ubj", "-o", "m.parquet")
    run("features", "tumours.yaml", "history.csv", "--model", "tumours.ubj", "--score", "-o", "m.parquet")
    assert pd.read_parquet("m.parquet")["score"].to_numpy().tobytes() == scores.tobytes()
    run("job", "init", "made.yaml", "--from-map", "events.tumours")
    made = load_job("made.yaml")
    assert (made.name, made.events, made.schema_["id"].type) == ("tumours", "events.tumours", "int")
    assert set(made.feature_names) == {*frame.columns, "id"}
    run("status", "tumours")
    assert "RUNNING" in run("jobs").stdout
