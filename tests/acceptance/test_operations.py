"""What somebody who runs workers does: start them, watch them, ask how they are, restart jobs, bring back events."""

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import scoring

from pipeline.client import connect

GRIDSCORE = [sys.executable, "-m", "pipeline.cli"]


@pytest.fixture
def environment(cluster):
    return {
        **os.environ,
        "GRIDSCORE_MEMBERS": json.dumps(cluster.addresses),
        "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
        "TERM": "xterm-256color",
    }


@pytest.fixture
def gridscore(environment):
    """Runs the command; returns what it printed once its exit code is the expected one."""

    def run(*arguments, code=0):
        done = subprocess.run(
            [*GRIDSCORE, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def workers(environment, tmp_path):
    """Starts `gridscore worker`; its output goes to a file."""
    started = []

    def start(*arguments):
        log = tmp_path / f"worker-{len(started)}.log"
        with log.open("w") as file:
            process = subprocess.Popen([*GRIDSCORE, "worker", *arguments], env=environment, stdout=file, stderr=file)
        started.append(process)
        return process, log

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def job(cluster, unique):
    """A submitted job without a worker, and its client's verbs."""
    name = f"job-{unique}"

    async def prepare(client):
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(scoring.booster(), name, alias="champion")
        await client.submit(scoring.job(name))

    with_client(cluster, prepare)
    return name


def with_client(cluster, use):
    async def main():
        async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
            return await use(client)

    return asyncio.run(main())


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("nothing came of it")


def test_an_operators_day(gridscore, workers, job, cluster):
    asked = gridscore("status", job, "--for", "0", code=10)
    assert "not well, NOT_RUNNING" in asked.stdout
    assert "No worker is running." in asked.stdout or "No worker scores for it" in asked.stdout

    crew, log = workers("--processes", "2", "--jobs", job)

    def status():
        value = json.loads(gridscore("status", job, "--for", "0", "--json", code=None).stdout)
        return value["jobs"][0] if value["jobs"][0]["workers"] == 2 and value["healthy"] else None

    assert until(status)["state"] == "RUNNING"
    assert f"{job}: well, RUNNING" in gridscore("status", job).stdout

    with_client(cluster, lambda client: client.put_events(f"events.{job}", {**scoring.events(200), "bad": {"x": 1}}))
    until(lambda: status()["dead_letters"] == 1 and status()["lag"] == 0)
    top = json.loads(gridscore("top", job, "--once", "--json").stdout)
    mine = [worker["jobs"][job] for worker in top["workers"] if job in worker["jobs"]]
    assert sum(figures["events"] for figures in mine) == top["jobs"][0]["events"] == 200
    assert sum(figures["partitions"] for figures in mine) == top["jobs"][0]["partitions"]
    printed = gridscore("top", "--once").stdout
    assert "EVENTS/S" in printed
    assert job in printed

    # A worker that is killed is there again, and all are well.
    children = psutil.Process(crew.pid).children()
    children[0].kill()
    until(lambda: "was ended by signal 9; it is started again in 0.5 s" in log.read_text())
    until(lambda: len(psutil.Process(crew.pid).children()) == 2 and status())

    back = gridscore("dead-letters", "replay", job, "--all")
    assert back.stdout == "1 of 1 events are in the event map again.\n"
    again = json.loads(until(lambda: has_letter(gridscore, job)))
    assert again[0]["key"] == "bad"
    refused = gridscore("dead-letters", "replay", job, "1-2-3", "--json", code=1)
    assert json.loads(refused.stdout)["refused"][0]["reason"] == f"The job `{job}` has no dead letter `1-2-3`."
    assert "Say which dead letters" in gridscore("dead-letters", "replay", job, code=2).stderr

    restarted = gridscore("restart", job, "--from", "oldest").stdout
    assert f"Job {job} restarted from oldest: NOT_RUNNING, revision 2." in restarted
    assert "About 202 events are read from there, 202 of them scored before." in restarted
    until(lambda: status() and status()["lag"] == 0)
    assert "is no place to begin" in gridscore("jobs", "restart", job, "--from", "yesterday", code=6).stderr

    gridscore("suspend", job)
    assert "Suspended by a user." in gridscore("status", job, "--for", "0").stdout

    children = psutil.Process(crew.pid).children()
    crew.send_signal(signal.SIGTERM)
    assert crew.wait(60) == 0
    assert not any(child.is_running() for child in children)
    text = log.read_text()
    assert "All workers stopped." in text
    assert "Traceback" not in text


def has_letter(gridscore, job):
    listed = gridscore("dead-letters", "list", job, "--json").stdout
    return listed if json.loads(listed) else None


def test_what_is_wrong_is_said_once(workers, unused_tcp_port, environment):
    environment["GRIDSCORE_MEMBERS"] = f"127.0.0.1:{unused_tcp_port}"
    environment["GRIDSCORE_CONNECT_TIMEOUT"] = "1"
    crew, log = workers("--processes", "4")
    assert crew.wait(60) == 4
    assert log.read_text().count("No connection to the cluster") == 1


def test_a_number_of_processes_that_is_none(gridscore):
    assert "`many` is not a number from 1" in gridscore("worker", "--processes", "many", code=2).stderr


def test_status_of_nothing(gridscore, unique):
    assert "There is no job" in gridscore("status", f"no-{unique}", code=6).stderr
    assert "There is no job" in gridscore("top", f"no-{unique}", code=6).stderr
    assert "--acknowledge is for one job" in gridscore("status", "--acknowledge", code=2).stderr


IN_TERMINAL = "import os, sys; os.login_tty(os.dup(0)); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_top_in_a_terminal_leaves_it_as_it_was(environment, job, end):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, *GRIDSCORE, "top", job],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        deadline, asked = time.monotonic() + 60, False
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            with contextlib.suppress(OSError):  # the terminal's other side is closed
                if not (data := os.read(ours, 65_536)):
                    break
                shown += data
                if not asked and b"NOT_RUNNING" in shown:
                    os.write(ours, end)
                    asked = True
                continue
            break
    finally:
        process.kill()
        os.close(ours)
    assert process.wait(30) == 0
    assert b"No worker" in shown
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1
    assert shown.rstrip().endswith(b"\x1b[?1049l")
