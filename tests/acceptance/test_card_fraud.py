"""The example with the till: the commands of its README one after the other, from nothing to a receipt."""

import json
import os
import re

import httpx
import pytest
from readme_shell import ROOT, Shell, commands_of, free_port, shell_in
from servers import not_here

from gridscore.testing.mqtt import MqttBroker, available

EXAMPLE = ROOT / "jobs/card-fraud"


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
    with shell_in(folder) as shell:
        yield shell, *follow_the_readme(shell)


def follow_the_readme(shell):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    receipts = []
    for line in commands_of(EXAMPLE / "README.md", "From nothing to a receipt"):
        if line == "gridscore up &":
            shell.start_cluster()
        elif line.endswith("&"):
            name = line.split()[1]
            shell.start(name, line.removesuffix("&") + (f" --port {port}" if name == "source" else ""))
            if name == "source":
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
    with MqttBroker.start(tmp_path) as broker:
        lines = commands_of(EXAMPLE / "README.md", "By MQTT")
        source, till = (line.replace("mqtt://localhost:1883", broker.url) for line in lines)
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
