"""A shell that follows the README of an example, as somebody would who has just cloned the project."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {"gridscore": [sys.executable, "-m", "gridscore.cli"], "python": [sys.executable]}


class Shell:
    """Runs commands in a folder; ends what goes on running."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.running = {}

    def command(self, line):
        name, *arguments = shlex.split(line)
        arguments = [str(ROOT / each) if each.startswith("jobs/") else each for each in arguments]
        return [*COMMANDS[name], *arguments]

    def run(self, line):
        return subprocess.run(
            self.command(line),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, name, line):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.command(line), cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def stop(self, name):
        process = self.running.pop(name)
        process.terminate()
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def until(self, condition, name):
        deadline = time.monotonic() + 60
        while not condition():
            assert self.running[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.1)

    def start_cluster(self):
        self.start("up", "gridscore up --heap 512m")
        self.until(lambda: self.run("gridscore jobs").returncode == 0, "up")


@contextmanager
def shell_in(folder):
    """A shell in a folder, with a home of its own and no settings of Gridscore but where its artifacts are."""
    kept = "GRIDSCORE_HAZELCAST"
    environment = {n: value for n, value in os.environ.items() if not n.startswith("GRIDSCORE_") or n == kept}
    shell = Shell(folder, {**environment, "COLUMNS": "100", "GRIDSCORE_HOME": str(folder / "home")})
    try:
        yield shell
    finally:
        for name in reversed(list(shell.running)):
            shell.stop(name)


def commands_of(readme, title):
    """The lines of the first block of commands after a heading, but for those that install."""
    block = re.findall(rf"## {title}.*?```sh\n(.*?)```", readme.read_text(), re.DOTALL)[0]
    return [line for line in block.splitlines() if not line.startswith("pip install")]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
