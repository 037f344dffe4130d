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
from servers import not_here

from gridscore.testing.mqtt import MqttBroker, available

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "jobs/card-fraud"
COMMANDS = {"gridscore": [sys.executable, "-m", "gridscore.cli"], "python": [sys.executable]}


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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def number_of(receipt):
    return re.search(r"m00-\w+", receipt.stdout)[0]


def states(shell, kind):
    sources = json.loads(shell.run("gridscore source list --json").stdout)
    return [each["state"] for each in sources if each["kind"] == kind]


def answers(address):
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def shop(cluster, tmp_path_factory):  # noqa: ARG001 -- the cluster tells whether a member can be had here
    """What stands after the commands of the README: the shell, the address of the source, and what the till printed."""
    folder = tmp_path_factory.mktemp("card-fraud")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GRIDSCORE_") or name == "GRIDSCORE_HAZELCAST"
    }
    shell = Shell(folder, {**environment, "COLUMNS": "100", "GRIDSCORE_HOME": str(folder / "home")})
    try:
        yield shell, *follow_the_readme(shell)
    finally:
        for name in reversed(list(shell.running)):
            shell.stop(name)


def follow_the_readme(shell):
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

    return address, receipts


def test_a_receipt_says_what_was_decided(shop):
    _, _, (approved, declined) = shop
    assert approved.returncode == 0, approved.stderr
    assert "APPROVED" in approved.stdout
    assert re.search(r"Amount +24\.90 EUR", approved.stdout)
    assert re.search(r"Decided +online in [\d,]+ ms", approved.stdout)
    assert {len(each) for each in approved.stdout.splitlines()} == {44}
    assert declined.returncode == 1
    assert "DECLINED" in declined.stdout
    assert "890.00 EUR" in declined.stdout


def test_without_an_answer_the_till_decides_by_itself_and_says_so(shop):
    shell, address, _ = shop
    assert shell.stop("worker") == 0
    till = f"python jobs/card-fraud/till.py c0012 {{}} --via {address} --timeout {{}}"
    below, above = shell.run(till.format("20.00", 3)), shell.run(till.format("60.00", 3))
    assert (below.returncode, above.returncode) == (0, 1)
    for receipt in (below, above):
        assert "OFFLINE by the till" in receipt.stdout
        assert re.search(r"Offline limit +50\.00 EUR", receipt.stdout)
    assert "no decision in 3 s" in below.stdout
    nobody = shell.run(f"python jobs/card-fraud/till.py c0012 5 --via http://127.0.0.1:{free_port()} --timeout 0.5")
    assert nobody.returncode == 0
    assert "not sent in 0.5 s" in nobody.stdout
    journal = shell.folder / "till-offline.ndjson"
    [kept] = [json.loads(line)["purchase"] for line in journal.read_text().splitlines()]
    assert kept == number_of(nobody)

    # A worker is there again: what could not be sent goes along with the next, and all of them are scored.
    shell.start("worker", "gridscore worker")
    again = shell.run(till.format("24.90", 30))
    assert "online in" in again.stdout
    assert not journal.exists()
    for receipt in (below, above, nobody):
        result = httpx.get(f"{address}/results/results.purchases/{number_of(receipt)}?wait=20s", timeout=30).json()
        assert result["card"] == "c0012"


def test_purchases_go_by_mqtt_too(shop, tmp_path):
    shell, address, _ = shop
    if not available():
        not_here("no MQTT broker: install mosquitto")
    text = (EXAMPLE / "README.md").read_text()
    block = re.findall(r"## By MQTT.*?```sh\n(.*?)```", text, re.DOTALL)[0]
    with MqttBroker.start(tmp_path) as broker:
        _, source, till = block.replace("mqtt://localhost:1883", broker.url).splitlines()
        shell.start("mqtt", source.removesuffix("&"))
        try:
            # A broker forgets what nobody has subscribed to.
            shell.until(lambda: "running" in states(shell, "mqtt"), "mqtt")
            receipt = shell.run(f"{till.replace('http://127.0.0.1:8080', address)} --timeout 30")
        finally:
            code = shell.stop("mqtt")
    assert "online in" in receipt.stdout, (receipt.stderr, shell.log("mqtt"))
    assert (receipt.returncode, code) == (0, 0), shell.log("mqtt")


def test_the_source_and_the_sink_of_the_job_file_run(shop):
    shell, _, (_, declined) = shop
    port = free_port()
    job = shell.folder / "job.yaml"
    job.write_text((EXAMPLE / "job.yaml").read_text().replace("kind: http", f"kind: http\n    port: {port}"))
    shell.start("tills", f"gridscore source run {job}")
    shell.start("declined", "gridscore sink run jobs/card-fraud/job.yaml")
    shell.until(lambda: answers(f"http://127.0.0.1:{port}"), "tills")
    shell.until(lambda: list(shell.folder.glob("declined/*.jsonl")), "declined")
    files = shell.folder.glob("declined/*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert number_of(declined) in [line["key"] for line in lines]
    assert {line["decision"] for line in lines} == {"decline"}
    assert shell.stop("tills") == 0, shell.log("tills")
    assert shell.stop("declined") == 0, shell.log("declined")
    assert "card-fraud-tills: http to events.purchases" in shell.log("tills")
    [sink] = json.loads(shell.run("gridscore sink list --json").stdout)
    assert (sink["name"], sink["kind"]) == ("card-fraud-declined", "files")


def test_the_source_says_where_it_listens_and_stops_when_told(shop):
    shell, address, _ = shop
    assert f"{address}/events/events.purchases" in shell.log("source")
    assert shell.stop("source") == 0, shell.log("source")


def test_the_till_wants_a_real_amount(tmp_path):
    done = Shell(tmp_path, dict(os.environ)).run("python jobs/card-fraud/till.py c0012 24.905")
    assert done.returncode == 2
    assert "is not an amount" in done.stderr
