"""A shell that follows the README of an example, as somebody would who has just cloned the project."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"


class Shell:
    """Runs commands in a folder, in which `jobs/` is the project's; ends what goes on running.

    What a line sets, activates or goes into stays so for the next.
    """

    def __init__(self, folder, environment):
        self.folder, self.running = folder, {}
        commands = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self.environment = {**environment, "PATH": commands, "PYTHONUNBUFFERED": "1"}
        self._state = folder / ".state"
        self.forget()
        if not (folder / "jobs").exists():
            (folder / "jobs").symlink_to(ROOT / "jobs")

    def forget(self):
        """Be as a new one is, in the folder."""
        self._state.write_text("")

    def run(self, line, timeout=120, given=""):
        """Run it to its end; what `given` says goes to it as typed."""
        after = f'code=$?; {{ export -p; printf "cd %q\\n" "$PWD"; }} > {self._state}; exit $code'
        return subprocess.run(
            [BASH, "-c", f". {self._state}; set -a; {line}\n{after}"],
            cwd=self.folder,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, name, line):
        """Start it, and go on."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [BASH, "-c", f". {self._state}; exec env {line}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, name, number=signal.SIGTERM):
        process = self.running.pop(name)
        process.send_signal(number)
        return _end_of(process)

    def close(self):
        """Stop everything: side by side, but for what was started first, which may be the cluster of the others."""
        first, *others = self.running.values() or [None]
        self.running.clear()
        for process in others:
            process.send_signal(signal.SIGTERM)
        for process in others:
            _end_of(process)
        if first is not None:
            first.send_signal(signal.SIGTERM)
            _end_of(first)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def until(self, condition, name):
        deadline = time.monotonic() + 120
        while not condition():
            assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.1)

    def start_cluster(self):
        self.start("up", "gridscore up --heap 512m")
        self.until(lambda: self.run("gridscore jobs").returncode == 0, "up")


def _end_of(process):
    """Its exit code, once it has ended."""
    try:
        return process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextmanager
def shell_in(folder, **more):
    """A shell in a folder, with a home of its own; of Gridscore's settings, where its artifacts are, and `more`."""
    kept = "GRIDSCORE_HAZELCAST"
    environment = {n: value for n, value in os.environ.items() if not n.startswith("GRIDSCORE_") or n == kept}
    shell = Shell(folder, {**environment, "COLUMNS": "100", "GRIDSCORE_HOME": str(folder / "home"), **more})
    try:
        yield shell
    finally:
        shell.close()


def commands_of(readme, title):
    """The lines of the first block of commands after a heading, but for those that install."""
    block = re.findall(rf"## {title}.*?```sh\n(.*?)```", readme.read_text(), re.DOTALL)[0]
    return [line for line in block.splitlines() if not line.startswith("pip install")]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
