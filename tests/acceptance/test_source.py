"""`gridscore source`: log files into a map, watched, stopped and begun anew."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from commands import GRIDSCORE, until

from gridscore.client import connect

ROOT = Path(__file__).parents[2]


def size(cluster, name):
    async def look():
        async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
            return await (await client.grid.map(name)).size()

    return asyncio.run(look())


def test_a_source_is_run_watched_stopped_and_started_over(cluster, run, start, tmp_path, unique):
    path, name = tmp_path / "app.log", f"log-{unique}"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(100)) + "this is not JSON\n")
    options = ("logfile", "--to", f"events.{unique}", "--path", str(path), "--name", name)
    process, log = start("source", *options)

    def listed():
        found = [each for each in json.loads(run("source", "list", "--json").stdout) if each["name"] == name]
        return found[0] if found and (found[0]["events"], found[0]["poison"]) == (100, 1) else None

    found = until(listed)
    assert (found["kind"], found["map"], found["pid"]) == ("logfile", f"events.{unique}", process.pid)
    assert name in run("source", "list").stdout
    letters = json.loads(run("dead-letters", "list", name, "--json").stdout)
    assert letters[0]["text"] == "this is not JSON"
    shown = run("dead-letters", "show", name, letters[0]["id"]).stdout
    assert "origin" in shown
    assert "sequence" not in shown
    assert "not JSON" in run("dead-letters", "replay", name, "--all", code=1).stdout

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert f"{name}: 100 events, 1 to the dead letters." in log.read_text()
    assert name not in run("source", "list").stdout

    with path.open("a") as file:
        file.write('{"n": 100}\n')
    process, log = start("source", *options)
    until(lambda: size(cluster, f"events.{unique}") == 101)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert f"{name}: 1 events." in log.read_text()

    assert "positions forgotten" in run("source", "forget", name).stdout
    again = run("source", *options, "--until-end")
    assert f"{name}: 101 events, 1 to the dead letters." in again.stderr
    assert size(cluster, f"events.{unique}") == 101


def test_sources_of_a_job_file_are_run_together(cluster, run, environment, tmp_path, unique):
    job = tmp_path / "job.yaml"
    text = (ROOT / "jobs/payments/job.yaml").read_text().replace("events.payments", f"events.{unique}")
    job.write_text(
        text
        + "\nsources:\n"
        + "".join(
            f"  {name}-{unique}: {{kind: logfile, path: ['${{LOGS}}/{name}.log'], until_end: true, key: [n]}}\n"
            for name in ("one", "two")
        )
    )
    for name, first in (("one", 0), ("two", 100)):
        (tmp_path / f"{name}.log").write_text("".join(f'{{"n": "{n}"}}\n' for n in range(first, first + 50)))
    environment["LOGS"] = str(tmp_path)
    only = run("source", "run", str(job), f"two-{unique}")
    assert f"payments-two-{unique}: 50 events." in only.stderr
    both = run("source", "run", str(job))
    assert f"payments-one-{unique}: 50 events." in both.stderr
    assert f"payments-two-{unique}: 0 events." in both.stderr
    assert size(cluster, f"events.{unique}") == 100
    assert "has no source `three`" in run("source", "run", str(job), "three", code=2).stderr


def test_a_source_that_failed_is_listed_with_its_error(run, tmp_path, unique):
    name = f"log-{unique}"
    options = ("--to", f"events.{unique}", "--path", str(tmp_path / "none.log"), "--name", name, "--until-end")
    assert "There is nothing to read" in run("source", "logfile", *options, code=2).stderr

    def listed():
        return [each for each in json.loads(run("source", "list", "--json").stdout) if each["name"] == name]

    assert [(each["state"], each["kind"]) for each in listed()] == [("failed", "logfile")]
    assert "There is nothing to read" in listed()[0]["error"]
    assert any(name in line and "failed" in line for line in run("jobs").stdout.splitlines())
    assert "and its last error forgotten" in run("source", "forget", name).stdout
    assert listed() == []


def test_an_end_is_shown_as_a_bar_with_the_time_left(environment, tmp_path, unique):
    path = tmp_path / "history.log"
    path.write_text("".join(f'{{"n": {n}, "at": {n}}}\n' for n in range(3_000)))
    options = ("--path", str(path), "--to", f"events.{unique}", "--until-end", "--time-field", "at")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*GRIDSCORE, "source", "logfile", *options, "--replay-speed", "300"],
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "160"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, wanted = b"", re.compile(rb" [1-9][0-9]?%.*[0-9]:[0-9]{2}")
    try:
        deadline = time.monotonic() + 60
        while not wanted.search(shown):
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65_536)
            else:
                assert process.poll() is None, shown
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)
    assert b" events, " in shown
    assert "\u2501".encode() in shown  # of the bar


def test_what_is_wrong_is_said_before_anything_is_read(run):
    missing = run("source", "logfile", "--to", "events.x", "--path", "${NOT_THERE}/x", code=2)
    assert "the environment variable NOT_THERE is not set" in missing.stderr
    assert "--path: it must be given." in run("source", "logfile", "--to", "events.x", code=2).stderr
    assert "No such command" in run("source", "tape", code=2).stderr
    assert "There is no job `nobody`" in run("dead-letters", "list", "nobody", code=6).stderr
