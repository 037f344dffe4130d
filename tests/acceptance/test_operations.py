"""What somebody who runs workers does: start them, watch them, ask how they are, restart jobs, bring back events."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import GRIDSCORE, until, with_client
from hazelcast.core import HazelcastJsonValue

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import scoring


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


def test_an_operators_day(run, start, job, cluster):
    asked = run("status", job, "--for", "0", code=10)
    assert "not well, WAITING" in asked.stdout
    assert "No worker is running." in asked.stdout or "No worker scores for it" in asked.stdout

    crew, log = start("worker", "--processes", "2", "--jobs", job)

    def status():
        value = json.loads(run("status", job, "--for", "0", "--json", code=None).stdout)
        return value["jobs"][0] if value["jobs"][0]["workers"] == 2 and value["healthy"] else None

    assert until(status)["state"] == "RUNNING"
    assert f"{job}: well, RUNNING" in run("status", job).stdout

    with_client(cluster, lambda client: client.put_events(f"events.{job}", {**scoring.events(200), "bad": {"x": 1}}))
    until(lambda: (now := status()) and (now["dead_letters"], now["lag"]) == (1, 0))

    def top_of_all():  # workers publish their figures once a second, offsets apart from them
        top = json.loads(run("top", job, "--once", "--json").stdout)
        return top if top["jobs"][0]["events"] == 200 else None

    top = until(top_of_all)
    mine = [worker["jobs"][job] for worker in top["workers"] if job in worker["jobs"]]
    assert sum(figures["events"] for figures in mine) == 200
    assert sum(figures["partitions"] for figures in mine) == top["jobs"][0]["partitions"]
    printed = run("top", "--once").stdout
    assert "EVENTS/S" in printed
    assert job in printed

    children = psutil.Process(crew.pid).children()
    for child in children:
        check_it_is_lean(child)
    assert (
        len(re.findall(r"holds its first partitions, \d+\.\d s after the start of this process", log.read_text())) == 2
    )

    # A worker that is killed is there again, and all are well.
    children[0].kill()
    until(lambda: "was ended by signal 9; it is restarted in 0.5 s" in log.read_text())
    until(lambda: len(psutil.Process(crew.pid).children()) == 2 and status())

    back = run("dead-letters", "replay", job, "--all")
    assert back.stdout == "1 of 1 events are in the event map again.\n"
    again = json.loads(until(lambda: has_letter(run, job)))
    assert again[0]["key"] == "bad"
    refused = run("dead-letters", "replay", job, "1-2-3", "--json", code=1)
    assert json.loads(refused.stdout)["refused"][0]["reason"] == f"`{job}` has no dead letter `1-2-3`"
    assert "Say which dead letters" in run("dead-letters", "replay", job, code=2).stderr

    restarted = run("restart", job, "--from", "oldest").stdout
    assert f"Job {job} restarted from oldest: WAITING, revision 2." in restarted
    assert "About 202 events are read from there, 202 of them scored before." in restarted
    until(lambda: (now := status()) and now["lag"] == 0)
    assert "is not a place to begin" in run("jobs", "restart", job, "--from", "yesterday", code=6).stderr

    run("suspend", job)
    assert "Suspended by a user." in run("status", job, "--for", "0").stdout

    children = psutil.Process(crew.pid).children()
    crew.send_signal(signal.SIGTERM)
    assert crew.wait(60) == 0
    assert not any(child.is_running() for child in children)
    text = log.read_text()
    assert "All workers stopped." in text
    assert "Traceback" not in text


def check_it_is_lean(worker):
    """A worker that has scored has loaded nothing that only tables, training and plots need."""
    libraries = {part for mapped in worker.memory_maps() for part in Path(mapped.path).parts}
    assert "xgboost" in libraries
    assert not libraries & {"pandas", "pyarrow", "scipy", "sklearn", "matplotlib"}
    assert worker.memory_info().rss < 150 << 20


def has_letter(run, job):
    listed = run("dead-letters", "list", job, "--json").stdout
    return listed if json.loads(listed) else None


def test_what_is_wrong_is_said_once(start, unused_tcp_port, environment):
    environment["GRIDSCORE_MEMBERS"] = f"127.0.0.1:{unused_tcp_port}"
    environment["GRIDSCORE_CONNECT_TIMEOUT"] = "1"
    crew, log = start("worker", "--processes", "4")
    assert crew.wait(60) == 4
    assert log.read_text().count("No connection to the cluster") == 1


def test_an_invalid_number_of_processes(run):
    assert "`many` is not a number from 1" in run("worker", "--processes", "many", code=2).stderr


def test_status_of_nothing(run, unique):
    assert "There is no job" in run("status", f"no-{unique}", code=6).stderr
    assert "There is no job" in run("top", f"no-{unique}", code=6).stderr
    assert "--acknowledge is for one job" in run("status", "--acknowledge", code=2).stderr


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
                if not asked and b"WAITING" in shown:
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


def test_a_bad_control_record_is_named_and_repaired(run, cluster, unique):
    async def spoil(client):
        await (await client.grid.map("gridscore.jobs")).put(f"bad-{unique}", HazelcastJsonValue('{"spec": {}}'))

    with_client(cluster, spoil)
    jobs = json.loads(run("jobs", "--json").stdout)
    (shown,) = [each for each in jobs if each["name"] == f"bad-{unique}"]
    assert shown["state"] == "INVALID"
    asked = run("status", "--for", "0", code=10).stdout
    assert f"record gridscore.jobs bad-{unique}: not well, INVALID" in asked
    assert f"control record bad-{unique} in gridscore.jobs" in run("doctor", code=1).stdout
    assert f"gridscore.jobs bad-{unique}: Object missing required field `state`" in run("repair", "--dry-run").stdout
    assert "Give --yes" in run("repair", code=2).stderr
    done = [each for each in json.loads(run("repair", "--yes", "--json").stdout) if each["key"] == f"bad-{unique}"]
    assert [(each["action"], each["done"]) for each in done] == [("remove", True)]
    assert "All control records can be used." in run("repair").stdout
