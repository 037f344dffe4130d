"""`python -m benchmarks` as `make bench` runs it: the form of what it says, not the figures; nothing is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.limits import NAMES
from benchmarks.outcome import Outcome, Status

BENCH = [sys.executable, "-m", "benchmarks", "--quick", "--systems", "gridscore,by-hand", "--members", "1"]
SMALL = ["--events", "150000", "--rounds", "1", "--heap", "512m"]


@pytest.mark.timeout(300)
def test_a_small_run(tmp_path, unique):
    done = subprocess.run(
        [*BENCH, *SMALL, "--only", "throughput,limits", "--out", str(tmp_path)],
        env={**os.environ, "BENCH_MARK": unique},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = Outcome.load(tmp_path / "latest.json")
    assert outcome.complete
    assert outcome.versions["hazelcast"]
    assert [each.system for each in outcome.throughput] == ["gridscore", "by-hand", *NAMES]
    for each in outcome.throughput:
        assert each.status == Status.MEASURED, each.reason
        (run,) = each.runs
        assert 0 < run.events <= 150_000
        assert run.seconds > 0
        assert each.is_limit == (each.checked_scores == 0)
    assert set(outcome.throughput_of("card", "gridscore").stage_us_per_event) > {"decode", "predict", "write"}
    assert "by-hand" in done.stdout
    assert not left(unique)


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_who_ends_it_ends_all(tmp_path, unique):
    running = subprocess.Popen(
        # More rounds than there is time for: however late it is ended, it is in the middle of one.
        [*BENCH, *SMALL, "--rounds", "50", "--only", "throughput", "--out", str(tmp_path)],
        env={**os.environ, "BENCH_MARK": unique},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        deadline = time.monotonic() + 90
        while len(left(unique)) < 4 and time.monotonic() < deadline:  # the harness, a guard, a member, a worker
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "Traceback" not in said, said
    assert not left(unique)
    assert not Outcome.load(next(tmp_path.glob("*.json"))).complete


def test_a_system_that_nobody_knows(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--systems", "gridscore,jetty", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "jetty" in done.stderr
    assert not list(tmp_path.iterdir())


def left(mark):
    """The processes that have inherited the environment of a test."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BENCH_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found
