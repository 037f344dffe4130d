"""`python -m benchmarks.group` as a person runs it: the form of what it says, not the figures; nothing is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUP = [sys.executable, "-m", "benchmarks.group"]


@pytest.mark.timeout(600)
def test_a_small_run(unique):
    done = subprocess.run(
        [*GROUP, "--events", "2000", "--rounds", "1", "--rate", "300", "--seconds", "1", "--heap", "512m", "--json"],
        cwd=ROOT,
        env={**os.environ, "BENCH_MARK": unique},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["partitions"] == 271
    assert set(report["throughput"]) == set(report["idle_percent_of_a_core"]) == {"1", "2"}
    assert all(each["events_per_s"]["median"] > 0 for each in report["throughput"].values())
    assert report["throughput_ratio"]["median"] > 0
    assert report["coordination"]["percent"] > 0
    rebalance = report["rebalance"]
    assert rebalance["moved"] == {"median": 135, "min": 135, "max": 135}
    assert rebalance["not_moved"] == {"median": 136, "min": 136, "max": 136}
    assert rebalance["not_moved_epoch_changed"] == rebalance["results_repeated"] == 0
    for name in ("before a join", "join, not moved", "join, moved", "before a leave", "leave, not moved"):
        phase = rebalance["phases"][name]
        assert phase["seconds"]["median"] > 0
        assert phase["p50_ms"]["median"] <= phase["max_ms"]["median"]
    assert not [process for process in psutil.process_iter() if mark_of(process) == unique]


def mark_of(process):
    """What the test wrote into the environment that its processes have inherited."""
    try:
        return process.environ().get("BENCH_MARK")
    except psutil.Error:
        return None


def test_unlikely_numbers_are_refused():
    done = subprocess.run([*GROUP, "--events", "5"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--events" in done.stderr
