"""The configuration of embedded members, and the choices made before one starts."""

from __future__ import annotations

import json
import os
import socket

import psutil
import pytest
import yaml

from gridscore.cli.up import _refuse_another
from gridscore.errors import MemberError, UsageError
from gridscore.grid import member, ports
from gridscore.grid.launch import death
from gridscore.grid.member import Cluster, parse_heap, running_cluster
from gridscore.grid.template import load_template, member_config, template_cluster_name


def config_of(members, index=0, template=None):
    text = member_config(
        template or load_template(),
        ports=[7000 + i for i in range(members)],
        index=index,
        cluster_name="test",
        instance_name=f"test-{index}",
    )
    return yaml.safe_load(text)["hazelcast"]


def test_our_template_has_what_jobs_need():
    template = load_template()
    for name in ("events.*", "results.*"):
        assert template["map"][name]["event-journal"] == {
            "enabled": True,
            "capacity": 1_000_000,
            "time-to-live-seconds": 0,
        }
        assert template["map"][name]["backup-count"] == 1
    # What the smaller side of a split cluster has is old, and incomplete: nobody must score with it, nor get it back.
    for name in ("events.*", "results.*", "lookups.*", "gridscore.*", "dead-letters.*"):
        assert template["map"][name]["split-brain-protection-ref"] in template["split-brain-protection"]
        assert template["map"][name]["merge-policy"] == {"class-name": "DiscardMergePolicy"}
    assert "event-journal" not in template["map"]["lookups.*"]
    assert template["jet"]["enabled"] is True
    assert template_cluster_name(template) == "dev"


def test_members_list_each_other_and_search_nobody():
    network = config_of(3, index=1)["network"]
    assert network["port"] == {"port": 7001, "auto-increment": False}
    assert network["join"]["tcp-ip"]["member-list"] == ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"]
    assert network["join"]["multicast"]["enabled"] is False
    assert network["interfaces"]["interfaces"] == ["127.0.0.1"]


def test_members_behind_proxies_announce_those_and_are_known_by_where_they_connect_from():
    text = member_config(
        load_template(),
        ports=[7000, 7001],
        index=1,
        cluster_name="test",
        instance_name="test-1",
        announced=[8000, 8005],
        outbound=[range(9000, 9100), range(9100, 9200)],
    )
    network = yaml.safe_load(text)["hazelcast"]["network"]
    assert network["port"]["port"] == 7001
    assert network["public-address"] == "127.0.0.1:8005"
    assert network["outbound-ports"] == ["9100-9199"]
    assert network["join"]["tcp-ip"]["member-list"] == ["127.0.0.1:8000", "127.0.0.1:8005"]


@pytest.mark.parametrize(("members", "expected"), [(3, 2), (4, 3), (5, 3)])
def test_protection_asks_for_a_majority(members, expected):
    protection = config_of(members)["split-brain-protection"]["gridscore-majority"]
    assert protection["enabled"] is True
    assert protection["minimum-cluster-size"] == expected


@pytest.mark.parametrize("members", [1, 2])
def test_protection_is_left_out_where_it_would_only_stop_the_cluster(members):
    assert "split-brain-protection" not in config_of(members)


def test_the_template_itself_is_not_changed():
    template = load_template()
    before = json.dumps(template)
    config_of(1, template=template)
    assert json.dumps(template) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("<hazelcast/>", "no section `hazelcast:`"),
        ("hazelcast:", "no section `hazelcast:`"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MemberError, match=message):
        load_template(file)
    with pytest.raises(MemberError, match="cannot be read: No such file"):
        load_template(tmp_path / "none.yaml")


@pytest.mark.parametrize(("text", "size"), [("512m", 512 << 20), ("2G", 2 << 30), (" 1g ", 1 << 30)])
def test_heap_sizes(text, size):
    assert parse_heap(text) == size


@pytest.mark.parametrize("text", ["", "1", "1t", "-1g", "1.5g", "64m"])
def test_wrong_heap_sizes(text):
    with pytest.raises(UsageError):
        parse_heap(text)


@pytest.mark.parametrize("members", [0, 17])
def test_wrong_numbers_of_members(members):
    with pytest.raises(UsageError):
        Cluster.start(members)


def test_first_free_ports_are_taken(monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda port: port not in (5701, 5703))
    assert ports.choose_ports(3, None) == [5702, 5704, 5705]


def test_a_wrong_port_is_refused():
    with pytest.raises(UsageError):
        ports.choose_ports(2, 65535)


def test_a_port_that_someone_listens_on_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not ports.is_free(taken.getsockname()[1])


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json"])
def test_a_broken_state_file_does_not_count_as_a_cluster(content):
    member._home().mkdir(exist_ok=True)
    member._state_file().write_text(content, encoding="utf-8")
    assert running_cluster() is None


def test_a_state_whose_process_number_was_reused_does_not_count_as_a_cluster():
    member._home().mkdir(exist_ok=True)
    create_time = psutil.Process().create_time()
    state = {
        "members": ["127.0.0.1:1"],
        "cluster_name": "dev",
        "owner": {},
        "pids": [os.getpid()],
        "log_files": [],
    }
    for created, found in ((create_time, True), (create_time - 100, False)):
        text = json.dumps(state | {"guard": {"pid": os.getpid(), "create_time": created}})
        member._state_file().write_text(text, encoding="utf-8")
        assert (running_cluster() is not None) is found
    member._state_file().unlink()


def test_up_beside_a_cluster_of_the_same_kind_finds_it(tmp_path):
    config = tmp_path / "hazelcast.yaml"
    config.write_text("hazelcast: {}")
    identity = member.config_identity(config)
    runs = {"members": ["127.0.0.1:5701"], "heap": "1g", "version": "5.6.0", "cluster_name": "dev", "owner": {"pid": 1}}
    _refuse_another({**runs, "kafka": True, "config": identity}, {"kafka": True, "config": identity})
    for state in ({}, {"kafka": False, "config": None}):
        with pytest.raises(UsageError, match="--kafka, --config cannot change that"):
            _refuse_another({**runs, **state}, {"kafka": True, "config": identity})


def test_a_home_that_is_a_file_is_told(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("x")
    monkeypatch.setenv("GRIDSCORE_HOME", str(tmp_path / "home"))
    assert running_cluster() is None
    with pytest.raises(MemberError, match="home` cannot be the folder") as caught, member._registration():
        pass
    assert "GRIDSCORE_HOME" in caught.value.hint


def test_an_invalid_port_is_reported():
    with pytest.raises(UsageError, match="70000 is not a port"):
        member.Cluster.start(port=70_000)


@pytest.mark.parametrize(
    ("log", "code", "message"),
    [
        ("java.lang.OutOfMemoryError: Java heap space", 3, "ran out of its heap of 1g"),
        (
            "Error: Could not reserve enough space for object heap",
            1,
            "not enough memory for a member with a heap of 1g",
        ),
        ("java.net.BindException: Address already in use", 1, r"Port 7000 is in use"),
        ("first\n\nlast words\n\tat com.hazelcast.X", 1, r"ended with code 1\. Its last lines:\n  first\n  last words"),
        ("", -9, "signal 9 .by hand, or by the system because memory ran out"),
    ],
)
def test_why_a_member_died(log, code, message):
    class Launch:
        ports = (7000,)
        heap = "1g"

        def log_since_start(self, _):
            return log

        def log_file(self, _):
            return "member-0.log"

    error = death(Launch(), 0, code)
    with pytest.raises(MemberError, match=message):
        raise error
    assert "member-0.log" in error.hint
