"""`python -m benchmarks.sinks`, with a few results: what it says, not how fast it is."""

import json
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks import sinks

ROOT = Path(__file__).resolve().parents[2]

KINDS = ("nowhere", "files", "files-jsonl", "postgres", "postgres-typed", "webhook", "webhook-batches")


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks.sinks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_sinks_are_measured_on_a_cluster_of_its_own():
    done = bench(*KINDS, "--results", "3000", "--rounds", "1", "--heap", "256m", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["results"], report["members"], report["unavailable"]) == (3_000, 1, {})
    assert set(report["sinks"]) == set(KINDS)
    assert all(figures["results_per_s"] > 0 for figures in report["sinks"].values())


def test_an_unknown_kind_is_refused_before_anything_is_started():
    app = typer.Typer()
    app.command()(sinks.main)
    done = CliRunner().invoke(app, ["tape"])
    assert done.exit_code == 2
    assert "There are: nowhere" in done.stderr
