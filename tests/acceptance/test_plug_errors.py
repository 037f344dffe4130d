"""What people do wrong with sources and sinks: one clear message each, the right exit code, no traceback."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridscore.cli import main
from gridscore.grid.ports import choose_ports

ROOT = Path(__file__).parents[2]
GRIDSCORE = [sys.executable, "-m", "gridscore.cli"]
NOBODY = "127.0.0.1:1"

KAFKA = ("kafka", "--topic", "t", "--brokers", NOBODY)
REDIS = ("redis", "--stream", "s", "--server", f"redis://{NOBODY}")
MQTT = ("mqtt", "--topic", "t", "--broker", f"mqtt://{NOBODY}")
WEBHOOK = ("webhook", "--url", f"http://{NOBODY}/", "--secret", "${HOOK_SECRET}")
POSTGRES = ("postgres", "--table", "t", "--database", f"postgresql://u:hunter2@{NOBODY}/d")


@pytest.fixture(autouse=True)
def _environment(cluster, monkeypatch):
    monkeypatch.setenv("GRIDSCORE_MEMBERS", ",".join(cluster.addresses))
    monkeypatch.setenv("GRIDSCORE_CLUSTER_NAME", cluster.cluster_name)
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "A" * 32)


@pytest.fixture
def gridscore(monkeypatch, capfd):
    """Runs a command here, and gives its exit code and what it prints: a process for each would take long."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gridscore", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("source kafka --to events.x --topic t", 2, "--brokers: it must be given."),
        ("source kafka --to events.x --topic t --brokers kafka", 2, "--brokers: `kafka` is not a broker"),
        ("source kafka --to events.x --topic t --brokers k:1 --set group.id=x", 2, "use `--group`"),
        ("source kafka --to events.x --topic t --brokers k:1 --key a --message-key", 2, "not from both"),
        ("source kafka --to gridscore.jobs --topic t --brokers k:1", 2, "--to: `gridscore.jobs`: maps called"),
        ("source mqtt --to events.x", 2, "--topic: it must be given."),
        ("source mqtt --to events.x --topic a/#/b", 2, "`#` can only be the last level"),
        ("source mqtt --to events.x --topic a --password ${P}", 2, "`--password` needs a `--username`"),
        ("source logfile --to events.x --path none-*.log --until-end", 2, "There is nothing to read in none-*.log"),
        ("source logfile --to events.x --path x --format regex", 2, "`--pattern` and the format `regex` belong"),
        ("source http --to events.x --certificate c.pem", 2, "`--certificate` and `--private-key` belong together"),
        ("source http --to events.x --certificate c.pem --private-key k.pem", 2, "there is no file c.pem"),
        ("source http --to events.x --token ${NOT_SET}", 2, "the environment variable NOT_SET is not set"),
        (
            "source postgres --to lookups.x --key id --database postgresql://h/d",
            2,
            "give either `--table` or `--query`",
        ),
        ("source postgres --to lookups.x --key id --table t --database nonsense", 2, "not an address of a PostgreSQL"),
        ("source redis --to events.x", 2, "--stream: it must be given."),
        ("source redis --to events.x --stream s --server redis://u:p@h", 2, "the address names no user"),
        ("source tape --to events.x", 2, "No such command 'tape'"),
        ("source run none.yaml", 2, "There is no job file `none.yaml`."),
        ("source run job.yaml", 2, "Its section `sources` is empty, or missing."),
        ("sink run job.yaml alerts", 2, "has no sink `alerts`"),
        ("sink files --folder out", 2, "--from: it must be given."),
        ("sink files --from results.x --folder out --gzip", 2, "is for `--format jsonl`"),
        ("sink files --from results.x --folder out --max-age 5", 2, "--max-age: `5` is not a time span"),
        ("sink files --from results.x --folder job.yaml", 2, "`job.yaml` cannot be written"),
        ("sink files --from no-journal --folder out", 3, "The map `no-journal` has no event journal"),
        ("sink files --from results.x --folder out --only decline", 2, "--only: `decline` is not KEY=VALUE."),
        ("sink postgres --from results.x --table a.b.c --database d", 2, "--table: `a.b.c` is not the name of a table"),
        ("sink webhook --from results.x --url ftp://x --secret ${HOOK_SECRET}", 2, "not the address of a web hook"),
        ("sink webhook --from results.x --url https://x --secret whsec_x", 2, "--secret: do not write the secret here"),
        ("sink forget nobody", 6, "There is no sink `nobody`"),
        ("load --query x --database nonsense --to lookups.x --key id", 2, "not an address of a PostgreSQL"),
    ],
)
def test_one_message_says_what_is_wrong(command, code, said, gridscore, monkeypatch, tmp_path, unique):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text((ROOT / "jobs/payments/job.yaml").read_text())
    words = [*command.split(), *(("--name", unique) if command.startswith(("source ", "sink ")) else ())]
    if words[1] in ("run", "forget"):
        words = words[:-2]
    ended, out, error = gridscore(*words)
    assert said in error
    assert "Traceback" not in error
    assert error.count("error:") <= 1
    assert (ended, out) == (code, ""), error


def test_a_port_that_is_taken_is_named(gridscore, unique):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = gridscore("source", "http", "--to", f"events.{unique}", "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port}" in error
    assert "--port names another port" in error
    assert code == 2


def test_nobody_there_is_said_and_tried_again_until_ctrl_c(tmp_path, unique):
    commands = {
        "kafka-source": (("source", *KAFKA, "--to", f"events.{unique}"), "No broker of Kafka can be reached"),
        "mqtt": (("source", *MQTT, "--to", f"events.{unique}"), "cannot be reached"),
        "postgres-source": (("source", *POSTGRES, "--key", "id", "--to", f"lookups.{unique}"), "cannot be reached"),
        "redis": (("source", *REDIS, "--to", f"events.{unique}"), "connecting to 127.0.0.1:1."),
        "kafka-sink": (("sink", *KAFKA, "--from", f"results.{unique}"), "No broker of Kafka can be reached"),
        "postgres-sink": (("sink", *POSTGRES, "--from", f"results.{unique}"), "cannot be reached"),
        "webhook": (("sink", *WEBHOOK, "--from", f"results.{unique}"), NOBODY),
    }
    started = {}
    try:
        for name, (command, _) in commands.items():
            with (tmp_path / name).open("w") as log:
                started[name] = subprocess.Popen(
                    [*GRIDSCORE, *command, "--name", f"{name}-{unique}"], stdout=log, stderr=log
                )
        for name, (_, said) in commands.items():
            until(lambda name=name, said=said: said in (tmp_path / name).read_text(), tmp_path / name)
            assert started[name].poll() is None, (tmp_path / name).read_text()
            started[name].send_signal(signal.SIGINT)
        for name, process in started.items():
            assert process.wait(30) == 130, (tmp_path / name).read_text()
            text = (tmp_path / name).read_text()
            assert "Traceback" not in text
            assert "hunter2" not in text
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_without_a_cluster_nothing_is_read(gridscore, monkeypatch, tmp_path):
    (port,) = choose_ports(1, 0)
    monkeypatch.setenv("GRIDSCORE_MEMBERS", f"127.0.0.1:{port}")
    monkeypatch.setenv("GRIDSCORE_CONNECT_TIMEOUT", "1")
    code, _, error = gridscore("sink", "files", "--from", "results.x", "--folder", str(tmp_path / "out"))
    assert code == 4
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def until(condition, log):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
