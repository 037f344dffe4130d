"""The leash: a child that ends when its parent lets go of it, or dies."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil

from gridscore.leash import LeashedProcess

# Says when it runs, then sleeps until it is told to end.
CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), sys.exit(0)))
print("runs", *sys.argv[1:], flush=True)
while True:
    time.sleep(0.01)
"""


def write_child(folder, monkeypatch):
    (folder / "leashed_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path.cwd())]))
    return folder / "child.log"


def wait_for_text(log, text, process):
    while text not in log.read_text():
        assert process.exit_code is None, log.read_text()


def test_child_runs_the_module_with_its_arguments_and_ends_in_order(tmp_path, monkeypatch):
    # Given a module that runs as a child
    log = write_child(tmp_path, monkeypatch)
    with LeashedProcess("leashed_child", ["one", "two"], log) as child:
        wait_for_text(log, "runs one two", child)
        process = psutil.Process(child.pid)
    # When the parent lets go, then it has been told to end, and is gone
    assert not process.is_running()
    assert child.exit_code == 0
    assert "told to end" in log.read_text()


def test_stop_twice_is_stop_once(tmp_path, monkeypatch):
    log = write_child(tmp_path, monkeypatch)
    child = LeashedProcess("leashed_child", [], log)
    wait_for_text(log, "runs", child)
    child.stop()
    child.stop()
    assert child.exit_code == 0


def test_last_lines_are_what_the_child_said(tmp_path, monkeypatch):
    log = write_child(tmp_path, monkeypatch)
    with LeashedProcess("no_such_module", [], log) as child:
        while child.exit_code is None:
            pass
        assert child.exit_code != 0
        assert "no_such_module" in child.last_lines()


def test_child_ends_when_the_parent_is_killed(tmp_path, monkeypatch):
    # Given a parent with a child
    log = write_child(tmp_path, monkeypatch)
    parent_code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from gridscore.leash import LeashedProcess
        child = LeashedProcess("leashed_child", [], Path({str(log)!r}))
        print(child.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        while "runs" not in log.read_text():
            assert parent.poll() is None
        # When the parent is killed, with no chance to clean up
        parent.send_signal(signal.SIGKILL)
    # Then the child ends by itself
    child.wait(timeout=10)
    assert "told to end" in log.read_text()
