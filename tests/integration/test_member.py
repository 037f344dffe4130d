"""The embedded member: start, stop, errors, and what becomes of members whose parent dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import hazelcast
import psutil
import pytest

from gridscore.errors import MemberError
from gridscore.grid import GridSettings, ports
from gridscore.grid import member as member_module
from gridscore.grid.connection import or_local_cluster
from gridscore.grid.member import Cluster, running_cluster

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"port": 0, "heap": "256m", "register": False}


@contextmanager
def connected(cluster, address=0):
    client = hazelcast.HazelcastClient(
        cluster_name=cluster.cluster_name, cluster_members=[cluster.addresses[address]], cluster_connect_timeout=10
    )
    try:
        yield client
    finally:
        client.shutdown()


@contextmanager
def connected_to(environment):
    """A client where the environment variables that `up` prints lead."""
    client = hazelcast.HazelcastClient(
        cluster_name=environment["GRIDSCORE_CLUSTER_NAME"],
        cluster_members=environment["GRIDSCORE_MEMBERS"].split(","),
        cluster_connect_timeout=10,
    )
    try:
        yield client
    finally:
        client.shutdown()


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # dead, not yet collected by whoever inherited it
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


@contextmanager
def child(*arguments, **popen):
    """A process of ours in its own session, killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True, **popen
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin:
            process.stdin.close()


def test_a_client_can_use_the_member(cluster, unique):
    with connected(cluster) as client:
        numbers = client.get_map(f"numbers-{unique}").blocking()
        numbers.put("one", 1)
        assert numbers.get("one") == 1
        assert len(client.cluster_service.get_members()) == 1


def test_the_member_listens_on_this_machine_only(cluster):
    addresses = {c.laddr.ip for c in psutil.Process(cluster.pids[0]).net_connections("tcp") if c.status == "LISTEN"}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_stop_leaves_no_process_and_no_file():
    with Cluster.start(**SMALL) as cluster:
        processes = [*cluster.pids, cluster._launch.guard_pid]
        assert cluster.log_files[0].exists()
        assert cluster.alive == [True]
    wait_until_gone(processes, 1)
    assert not cluster.log_files[0].parent.exists()
    cluster.stop()  # a second time does nothing


def test_two_members_survive_the_loss_of_one():
    with Cluster.start(2, **SMALL) as cluster:
        with connected(cluster, 1) as client:
            assert len(client.cluster_service.get_members()) == 2
            entries = client.get_map("events.kept").blocking()
            entries.put_all({f"key-{i}": i for i in range(1000)})
            # Without this the backups of a cluster that was made a moment ago may still be on their way.
            assert entries.size() == 1000
            cluster.kill(0)
            assert cluster.alive == [False, True]
            assert "signal 9" in str(cluster.death(0))
            assert cluster.death(1) is None
            assert entries.size() == 1000
        cluster.restart(0)
        assert cluster.alive == [True, True]
        with connected(cluster, 0) as client:
            assert len(client.cluster_service.get_members()) == 2
            assert client.get_map("events.kept").blocking().size() == 1000


def test_a_port_in_use_is_named_with_its_user():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MemberError, match=rf"Port {port} is in use by .* \(process {os.getpid()}\)"):
            Cluster.start(port=port, heap="256m", register=False)


def test_a_port_taken_between_look_and_bind_is_named_too(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "is_free", lambda _: True)
        with pytest.raises(MemberError, match=rf"Port {port} is in use"):
            Cluster.start(port=port, heap="256m", register=False)


def test_another_port_is_chosen_when_ours_was_taken_meanwhile(monkeypatch):
    choose = ports.choose_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = iter([[taken.getsockname()[1]]])
        monkeypatch.setattr(member_module, "choose_ports", lambda *given: next(answers, None) or choose(*given))
        with Cluster.start(**SMALL) as cluster, connected(cluster) as client:
            assert len(client.cluster_service.get_members()) == 1


def test_a_member_that_dies_while_starting_shows_its_last_lines(tmp_path):
    config = tmp_path / "wrong.yaml"
    config.write_text("hazelcast:\n  map:\n    events:\n      backup-count: 99\n", encoding="utf-8")
    with pytest.raises(MemberError, match="backup") as caught:
        Cluster.start(**SMALL, config=config)
    assert "Its last lines" in str(caught.value)
    log = Path(caught.value.hint.removeprefix("Its log: "))
    assert "backup" in log.read_text(encoding="utf-8")


def test_a_heap_that_the_jvm_cannot_have_is_said_plainly(monkeypatch):
    monkeypatch.setattr(member_module, "_check_memory", lambda *_: None)
    with pytest.raises(MemberError, match="not enough memory for a member with a heap of 900000g"):
        Cluster.start(heap="900000g", port=0, register=False)


def test_more_memory_than_is_free_is_refused_before_the_start():
    with pytest.raises(MemberError, match=r"3 members with a heap of \d+ MB need about .* GB, but only"):
        Cluster.start(3, heap="9000g", register=False)


def test_a_config_of_the_users_own_is_used(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "hazelcast:\n  properties:\n    hazelcast.partition.count: 31\n"
        "  map: {protected: {split-brain-protection-ref: two}}\n"
        "  split-brain-protection:\n    two:\n      enabled: true\n      minimum-cluster-size: 2\n"
        "      recently-active-split-brain-protection: {heartbeat-tolerance-millis: 20000}\n",
        encoding="utf-8",
    )
    with Cluster.start(**SMALL, config=config) as cluster, connected(cluster) as client:
        assert client.partition_service.get_partition_count() == 31
        client.get_map("protected").blocking().put("key", "one member is not a majority of two")


STARTS_AND_WAITS = """
import json, os, sys
from gridscore.grid.member import Cluster
cluster = Cluster.start(port=0, heap="256m", register=False)
if "fork" in sys.argv and os.fork() == 0:
    sys.stdin.read()  # holds the guard's pipe open after its parent's death, until the test ends
    os._exit(0)
print(json.dumps({"members": cluster.pids, "guard": cluster._launch.guard_pid}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "how", ["alone", pytest.param("fork", marks=pytest.mark.skipif(os.name != "posix", reason=""))]
)
def test_members_end_when_their_parent_is_killed(how):
    with child("-c", STARTS_AND_WAITS, how, stdin=subprocess.PIPE) as parent:
        pids = json.loads(parent.stdout.readline())
        parent.kill()
        parent.wait()
        wait_until_gone([*pids["members"], pids["guard"]])


def test_members_end_when_their_parent_ends_without_stopping_them():
    with child("-c", STARTS_AND_WAITS, stdin=subprocess.PIPE) as parent:
        pids = json.loads(parent.stdout.readline())
        parent.stdin.close()
        parent.wait(10)
        wait_until_gone([*pids["members"], pids["guard"]])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_members_end_when_the_guard_is_killed_and_we_notice():
    with Cluster.start(**SMALL) as cluster:
        psutil.Process(cluster._launch.guard_pid).kill()
        wait_until_gone(cluster.pids)
        cluster._launch._listener.join(5)
        assert cluster.alive == [False]


UP = """
import sys, typer
from gridscore.cli.up import up
from gridscore.errors import GridscoreError
app = typer.Typer()
app.command()(up)
try:
    app()
except GridscoreError as error:
    sys.exit(f"error: {error}")
"""


@contextmanager
def started_up(*options):
    with child("-c", UP, "--heap", "256m", "--json", *options) as process:
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, f"it ended: {text}"
            text += line
        yield process, json.loads(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_runs_until_ctrl_c_and_a_second_finds_the_first(number):
    with started_up("--cluster-name", "first") as (process, state):
        assert state["already_running"] is False
        assert state["cluster_name"] == "first"
        assert running_cluster()["members"] == state["members"]
        with started_up() as (second, found):
            assert found["already_running"] is True
            assert found["pids"] == state["pids"]
            assert second.wait(10) == 0
        with pytest.raises(MemberError, match="Cluster `first` already runs here"):
            Cluster.start(heap="256m", register=True)
        process.send_signal(number)
        assert process.wait(20) == 0
    wait_until_gone(state["pids"], 1)
    assert running_cluster() is None
    assert Path(state["log_files"][0]).exists()


def test_up_beside_another_cluster_starts_one_or_says_why_not(unused_tcp_port):
    with started_up("--cluster-name", "first") as (_, first):
        with started_up("--cluster-name", "second", "--port", str(unused_tcp_port)) as (_, second):
            assert second["already_running"] is False
            assert second["environment"] == {
                "GRIDSCORE_MEMBERS": f"127.0.0.1:{unused_tcp_port}",
                "GRIDSCORE_CLUSTER_NAME": "second",
            }
            with connected_to(second["environment"]) as client:
                assert len(client.cluster_service.get_members()) == 1
            assert running_cluster()["pids"] == first["pids"]
            # It is found by its name, by the same command and by all others
            with started_up("--cluster-name", "second", "--port", str(unused_tcp_port)) as (again, found):
                assert (found["already_running"], found["pids"]) == (True, second["pids"])
                assert again.wait(10) == 0
            found = or_local_cluster(GridSettings(cluster_name="second"))
            assert (found.members, found.cluster_name) == (second["members"], "second")
        wait_until_gone([*second["pids"], second["guard"]["pid"]])
        assert running_cluster("second") is None
        for other in (["--port", str(unused_tcp_port)], ["--members", "2"], ["--version", "5.7.0"]):
            with child("-c", UP, *other, stderr=subprocess.PIPE) as process:
                _, said = process.communicate(timeout=30)
                assert process.returncode == 1
                assert f"Cluster `first` already runs here, at {first['members'][0]}; {other[0]} cannot" in said


def test_up_with_the_same_configuration_finds_what_it_started(tmp_path):
    config = tmp_path / "hazelcast.yaml"
    config.write_text("hazelcast:\n  cluster-name: mine\n")
    with started_up("--config", str(config)) as (_, first):
        with started_up("--config", str(config)) as (second, found):
            assert (found["already_running"], found["pids"]) == (True, first["pids"])
            assert second.wait(10) == 0
        config.write_text("hazelcast:\n  cluster-name: mine\n  properties: {}\n")
        with child("-c", UP, "--config", str(config), stderr=subprocess.PIPE) as process:
            _, said = process.communicate(timeout=30)
        assert "--config cannot change that" in said


def test_up_that_was_killed_is_not_found_and_does_not_hinder_the_next():
    with started_up() as (process, state):
        process.kill()
        process.wait()
        wait_until_gone([*state["pids"], state["guard"]["pid"]])
        assert running_cluster() is None
    with Cluster.start(heap="256m", port=0, register=True) as cluster:
        assert running_cluster()["pids"] == cluster.pids


def test_up_ends_with_the_reason_when_its_last_member_dies():
    with started_up() as (process, state):
        psutil.Process(state["pids"][0]).kill()
        assert process.wait(20) == 1
    assert running_cluster() is None


def test_ctrl_c_during_the_start_leaves_nothing():
    with child("-c", UP, "--heap", "256m", "--members", "2", stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while len(descendants := psutil.Process(process.pid).children(recursive=True)) < 2:  # the guard and a member
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    wait_until_gone([each.pid for each in descendants], 1)
