"""The example with the till: the commands of its README one after the other, from nothing to a receipt."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "jobs/card-fraud"
COMMANDS = {"gridscore": [sys.executable, "-m", "pipeline.cli"], "python": [sys.executable]}


class Shell:
    """Runs commands in a folder, as somebody would who follows the README; ends what goes on running."""

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


@pytest.fixture
def shell(tmp_path):
    environment = {**os.environ, "COLUMNS": "100", "GRIDSCORE_HOME": str(tmp_path / "home")}
    shell = Shell(tmp_path, environment)
    yield shell
    for name in reversed(list(shell.running)):
        shell.stop(name)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def number_of(receipt):
    return re.search(r"m00-\w+", receipt.stdout)[0]


def answers(address):
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.usefixtures("cluster")  # tells whether a member can be had here
def test_from_nothing_to_a_receipt(shell, tmp_path):
    text = (EXAMPLE / "README.md").read_text()
    block = re.findall(r"## From nothing to a receipt.*?```sh\n(.*?)```", text, re.DOTALL)[0]
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    receipts = []
    for line in block.splitlines():
        if line.startswith("pip install"):
            continue
        if line.endswith("&"):
            name = line.split()[1]
            extra = {"up": " --heap 512m", "source": f" --port {port}", "worker": ""}[name]
            shell.start(name, line.removesuffix("&") + extra)
            if name == "up":
                shell.until(lambda: shell.run("gridscore jobs").returncode == 0, "up")
            elif name == "source":
                shell.until(lambda: answers(address), "source")
        elif "till.py" in line:
            receipts.append(shell.run(f"{line} --via {address} --timeout 30"))
        else:
            done = shell.run(line)
            assert done.returncode == 0, (line, done.stderr)

    approved, declined = receipts
    assert approved.returncode == 0, approved.stderr
    assert "APPROVED" in approved.stdout
    assert re.search(r"Amount +24\.90 EUR", approved.stdout)
    assert re.search(r"Decided +online in [\d,]+ ms", approved.stdout)
    assert {len(each) for each in approved.stdout.splitlines()} == {44}
    assert declined.returncode == 1
    assert "DECLINED" in declined.stdout
    assert "890.00 EUR" in declined.stdout

    # Nobody scores: the till decides by itself, and says so.
    assert shell.stop("worker") == 0
    till = f"python jobs/card-fraud/till.py c0012 {{}} --via {address} --timeout 0.5"
    below, above = shell.run(till.format("20.00")), shell.run(till.format("60.00"))
    assert (below.returncode, above.returncode) == (0, 1)
    for receipt in (below, above):
        assert "OFFLINE by the till" in receipt.stdout
        assert re.search(r"Offline limit +50\.00 EUR", receipt.stdout)
    assert "no decision in 0.5 s" in below.stdout
    nobody = shell.run(f"python jobs/card-fraud/till.py c0012 5 --via http://127.0.0.1:{free_port()} --timeout 0.5")
    assert nobody.returncode == 0
    assert "not sent in 0.5 s" in nobody.stdout

    # Somebody does again: what could not be sent goes along, and all of them are scored.
    journal = tmp_path / "till-offline.ndjson"
    [kept] = [json.loads(line)["purchase"] for line in journal.read_text().splitlines()]
    assert kept == number_of(nobody)
    shell.start("worker", "gridscore worker")
    again = shell.run(till.format("24.90").replace("--timeout 0.5", "--timeout 30"))
    assert "online in" in again.stdout
    assert not journal.exists()
    for receipt in (below, above, nobody):
        result = httpx.get(f"{address}/results/results.purchases/{number_of(receipt)}?wait=20s", timeout=30).json()
        assert result["card"] == "c0012"

    assert shell.stop("source") == 0, shell.log("source")


def test_the_till_wants_a_real_amount(shell):
    done = shell.run("python jobs/card-fraud/till.py c0012 24.905")
    assert done.returncode == 2
    assert "is no amount" in done.stderr
