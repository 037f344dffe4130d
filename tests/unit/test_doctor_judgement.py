"""The doctor's judgement, on configurations as members give them."""

from __future__ import annotations

import pytest

from gridscore.grid import doctor
from gridscore.grid.doctor import Level
from gridscore.grid.management import MapConfig, MemberConfig, MemberReport, Protection

XML = """<?xml version="1.0" encoding="UTF-8"?>
<hazelcast xmlns="http://www.hazelcast.com/schema/config">
  <map name="events.*">
    <backup-count>2</backup-count>
    <time-to-live-seconds>60</time-to-live-seconds>
    <eviction size="10" max-size-policy="PER_NODE" eviction-policy="LRU"/>
    <event-journal enabled="true"><capacity>271000</capacity></event-journal>
  </map>
  <map name="events.plain"><event-journal enabled="false"><capacity>10000</capacity></event-journal></map>
  <map name="gridscore.*"><split-brain-protection-ref>two</split-brain-protection-ref></map>
  <split-brain-protection name="two" enabled="true">
    <minimum-cluster-size>2</minimum-cluster-size><protect-on>READ_WRITE</protect-on>
  </split-brain-protection>
</hazelcast>"""


def test_the_configuration_of_a_member_is_read():
    config = MemberConfig.parse(XML)
    assert config.map("events.flights") == MapConfig("events.*", 2, 0, 271_000, 60, 0, "LRU", None)
    assert config.map("gridscore.jobs").protection == "two"
    assert config.protections == {"two": Protection(enabled=True, minimum_members=2, protect_on="READ_WRITE")}


def test_the_most_specific_pattern_wins_as_in_hazelcast():
    config = MemberConfig.parse(XML)
    assert config.map("events.plain").journal_capacity is None
    assert config.map("other") == MapConfig()
    assert config.map("events") == MapConfig()


@pytest.mark.parametrize(
    ("config", "level"),
    [
        (MapConfig(journal_capacity=1_000_000), Level.OK),
        (MapConfig(journal_capacity=10_000), Level.WARN),
        (MapConfig(), Level.FAIL),
    ],
)
def test_journals(config, level):
    finding = doctor._journal("map", config, 271, 2, needed=True)
    assert finding.level is level
    assert bool(finding.advice) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("backups", "members", "level"),
    [(1, 2, Level.OK), (1, 1, Level.OK), (2, 2, Level.WARN), (0, 1, Level.WARN), (0, 2, Level.FAIL)],
)
def test_backups(backups, members, level):
    assert doctor._backups("map", MapConfig(backups=backups), members).level is level


@pytest.mark.parametrize("policy", ["", "<metadata-policy>CREATE_ON_UPDATE</metadata-policy>"])
def test_members_that_parse_every_value_are_slow(policy):
    config = MemberConfig.parse(f'<hazelcast><map name="events.*">{policy}</map></hazelcast>').map("events.a")

    (finding,) = doctor._parsing("map", config)

    assert finding.level is Level.WARN
    assert "metadata-policy" in finding.advice


def test_members_that_leave_values_alone_are_as_they_should_be():
    off = "<metadata-policy>OFF</metadata-policy>"
    config = MemberConfig.parse(f'<hazelcast><map name="events.*">{off}</map></hazelcast>').map("events.a")

    assert doctor._parsing("map", config) == []


def test_expiry_on_a_journalled_map_fails():
    assert doctor._expiry("map", MapConfig()) == []
    (finding,) = doctor._expiry("map", MapConfig(time_to_live=60, eviction="LRU"))
    assert finding.level is Level.FAIL
    assert finding.detail == "time-to-live-seconds 60 and eviction LRU"


@pytest.mark.parametrize(
    ("minimum", "members", "level"),
    [
        (2, 3, Level.OK),
        (3, 5, Level.OK),
        (2, 5, Level.WARN),
        (3, 2, Level.FAIL),
        (None, 3, Level.WARN),
        (None, 1, Level.OK),
    ],
)
def test_split_brain_protection(minimum, members, level):
    protection = None if minimum is None else Protection(enabled=True, minimum_members=minimum, protect_on="READ_WRITE")
    assert doctor._protection("maps", protection, members).level is level


@pytest.mark.parametrize(
    ("offset", "uncertainty", "level"),
    [(0.01, 0.01, Level.OK), (1.0, 0.9, Level.OK), (-1.0, 0.01, Level.WARN), (60, 0.01, Level.FAIL)],
)
def test_clocks(offset, uncertainty, level):
    finding = doctor._clock(
        [MemberReport("a:1", MemberConfig(), 0.0), MemberReport("b:1", MemberConfig(), offset, uncertainty)]
    )
    assert finding.level is level
    assert ("behind" if offset < 0 else "ahead of") in finding.detail


def test_members_that_are_configured_differently_fail():
    reports = [MemberReport("a:1", MemberConfig()), MemberReport("b:1", MemberConfig.parse(XML))]
    (finding,) = doctor._agreement(reports)
    assert finding.level is Level.FAIL
    assert doctor._agreement(reports[:1] * 2) == []


def test_members_that_do_not_tell_are_named():
    (finding,) = doctor._agreement([MemberReport("a:1", refusal="no answer")])
    assert finding.level is Level.WARN
    assert "a:1 does not tell its configuration: no answer" in finding.detail


@pytest.mark.parametrize(
    ("said", "detail", "advice"),
    [
        (
            "Cannot execute SQL query because hazelcast-sql is not in the classpath.",
            "not available",
            "Put hazelcast-sql",
        ),
        ("The Jet engine is disabled.", "not available", "Set `jet: {enabled: true}`"),
        ("com.hazelcast.jet.JetException: java.lang.OutOfMemoryError: Java heap space", "failed", "see its log"),
    ],
)
def test_sql_is_blamed_only_for_what_it_says(said, detail, advice):
    found = doctor._without_sql(said)
    assert found.detail == f"{detail}: {said}"
    assert advice in found.advice
    assert ("queries do not" in found.advice) == (detail == "not available")
