"""The member's jars: downloaded once, plain errors without a network."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import MemberError
from pipeline.grid import artifacts
from pipeline.grid.artifacts import member_jars


@pytest.fixture
def empty_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "cache_folder", lambda: tmp_path / "ours")
    monkeypatch.setenv("JGO_CACHE_DIR", str(tmp_path / "jgo"))
    monkeypatch.setenv("M2_REPO", str(tmp_path / "maven"))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("empty_caches", "no_network")
def test_no_network_and_an_empty_cache_are_said_plainly():
    with pytest.raises(MemberError, match="not on this machine yet, and Maven Central cannot be reached") as caught:
        member_jars()
    assert "--members" in caught.value.hint


@pytest.mark.usefixtures("cluster", "no_network")
def test_a_second_start_needs_no_network_and_no_resolving(monkeypatch):
    monkeypatch.setattr(artifacts, "_download", pytest.fail)
    assert any(jar.name.startswith("hazelcast-sql-") for jar in member_jars())


def test_jars_that_were_deleted_are_fetched_again(monkeypatch, empty_caches):
    jar = empty_caches / "hazelcast-5.6.0.jar"
    jar.touch()
    known = empty_caches / "ours" / "member-jars-5.6.0.json"
    known.parent.mkdir()
    known.write_text(json.dumps([str(jar), str(empty_caches / "gone.jar")]), encoding="utf-8")
    monkeypatch.setattr(artifacts, "_download", lambda *_: [jar])
    assert member_jars() == [jar]
    assert json.loads(known.read_text(encoding="utf-8")) == [str(jar)]
