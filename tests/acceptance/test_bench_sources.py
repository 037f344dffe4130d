"""`python -m benchmarks.sources`, with a few events: what it says, not how fast it is."""

import json
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks import sources

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks.sources", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_sources_are_measured_on_a_cluster_of_its_own():
    done = bench("memory", "logfile", "http", "--events", "5000", "--rounds", "1", "--heap", "256m", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["events"], report["members"], report["unavailable"]) == (5_000, 1, {})
    assert set(report["sources"]) == {"memory", "logfile", "http"}
    assert all(figures["events_per_s"] > 0 for figures in report["sources"].values())


def test_an_unknown_kind_is_refused_before_anything_is_started():
    app = typer.Typer()
    app.command()(sources.main)
    done = CliRunner().invoke(app, ["tape"])
    assert done.exit_code == 2
    assert "There are: memory" in done.stderr
