"""The member's jars: downloaded once, plain errors without a network."""

from __future__ import annotations

import json
import zipfile

import pytest

from gridscore.errors import MemberError
from gridscore.grid import artifacts
from gridscore.grid.artifacts import member_jars


@pytest.fixture
def empty_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "cache_folder", lambda: tmp_path / "ours")
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
    there, gone = empty_caches / "hazelcast-5.6.0.jar", empty_caches / "hazelcast-sql-5.6.0.jar"
    there.touch()
    known = empty_caches / "ours" / "member-jars-5.6.0.json"
    known.parent.mkdir()
    known.write_text(json.dumps([str(there), str(gone)]), encoding="utf-8")
    anew = [empty_caches / "anew" / jar.name for jar in (there, gone)]
    monkeypatch.setattr(artifacts, "_download", lambda *_, **__: anew)
    assert member_jars() == anew
    assert json.loads(known.read_text(encoding="utf-8")) == list(map(str, anew))


def test_a_list_of_other_jars_than_are_wanted_now_is_not_believed(monkeypatch, empty_caches):
    other = empty_caches / "hazelcast-5.6.0.jar"
    other.touch()
    known = empty_caches / "ours" / "member-jars-5.6.0.json"
    known.parent.mkdir()
    known.write_text(json.dumps([str(other)]), encoding="utf-8")
    monkeypatch.setattr(artifacts, "_download", lambda *_, **__: [])
    assert member_jars() == []


@pytest.fixture
def maven_repository(empty_caches):
    """A Java developer's own cache, with whole jars."""
    for group, name, version in artifacts._artifacts("5.6.0", kafka=True):
        jar = empty_caches.joinpath("maven", *group.split("."), name, version, f"{name}-{version}.jar")
        jar.parent.mkdir(parents=True)
        with zipfile.ZipFile(jar, "w") as file:
            file.writestr("content", name)
    return empty_caches / "maven"


@pytest.mark.usefixtures("no_network")
def test_jars_of_a_maven_repository_are_used(maven_repository):
    said = []
    jars = member_jars("5.6.0", said.append)
    assert [jar.name for jar in jars] == ["hazelcast-5.6.0.jar", "hazelcast-sql-5.6.0.jar"]
    jars = member_jars("5.6.0", said.append, kafka=True)
    assert len(jars) == 8
    assert all(jar.is_relative_to(maven_repository) for jar in jars)
    assert said == []


@pytest.mark.usefixtures("no_network")
def test_a_truncated_jar_is_not_used(maven_repository):
    jar = next(maven_repository.rglob("kafka-clients-*.jar"))
    jar.write_bytes(jar.read_bytes()[:-10])
    with pytest.raises(MemberError, match="cannot be reached"):
        member_jars("5.6.0", kafka=True)
