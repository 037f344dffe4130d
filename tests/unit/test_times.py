"""Times in zones: right to the second on both sides of every switch, from the zones of the package `tzdata`."""

from __future__ import annotations

import datetime as dt
import json
import struct
import zoneinfo
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.features import EventDecoder, FeaturePlan
from gridscore.features.times import to_local
from gridscore.job import Job, zones

RULES = ("America/St_Johns", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "America/Santiago")


def switches(body: bytes) -> tuple[int, ...]:
    """The seconds at which the offset changes that a zone's file writes out (RFC 8536)."""
    header = struct.Struct(">20x6l")
    isut, isstd, leap, times, types, chars = header.unpack_from(body)
    second = header.size + times * 5 + types * 6 + chars + leap * 8 + isstd + isut
    times = header.unpack_from(body, second)[3]
    return struct.unpack_from(f">{times}q", body, second + header.size)


def later_switches(zone: zoneinfo.ZoneInfo) -> list[int]:
    """Those that follow from a rule, found by trying."""
    found = []
    begin = int(dt.datetime(2050, 1, 1, tzinfo=dt.UTC).timestamp())
    for day in range(400):
        low, high = begin + day * 86_400, begin + (day + 1) * 86_400
        before = offset(zone, low)
        if before != offset(zone, high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(zone, middle) == before else (low, middle)
            found.append(high)
    return found


def offset(zone: zoneinfo.ZoneInfo, seconds: float) -> float:
    return dt.datetime.fromtimestamp(seconds, zone).utcoffset().total_seconds()


def test_local_time_is_right_around_every_switch_of_every_zone():
    folder = resources.files("tzdata").joinpath("zoneinfo")
    files = {folder.joinpath(*name.split("/")).read_bytes(): name for name in sorted(zones.zone_names())}
    assert len(files) > 300
    tried = 0
    for body, name in files.items():
        zone = zones.zone(name)
        known = [each for each in switches(body) if each > -(1 << 35)]
        if name in RULES:
            known += later_switches(zone)
        times = [switch + second for switch in known for second in (-1, -0.25, 0, 1)]
        expected = [time + offset(zone, np.floor(time)) for time in times]
        assert to_local(name)(np.array(times, np.float64)).tolist() == expected, name
        tried += len(times)
    assert tried > 50_000


def computed(expression: str, times: list[object], unit: str = "iso") -> list[float | None]:
    job = Job.model_validate(
        {
            "job": "j",
            "events": "e",
            "results": "r",
            "model": "m",
            "schema": {"t": {"type": "timestamp?", "unit": unit}},
            "features": {"v": expression},
        }
    )
    events = EventDecoder(job).decode_all([json.dumps({"t": time}).encode() for time in times])
    return [None if np.isnan(value) else value for value in FeaturePlan(job, {}, {}).matrix(events)[:, 0].tolist()]


def test_the_hour_is_right_where_clocks_are_changed_at_one_minute_past():
    spring = ["2010-03-14T03:30:59Z", "2010-03-14T03:31:00Z", "2010-03-14T03:35:00Z"]
    autumn = ["2010-11-07T02:30:59.9Z", "2010-11-07T02:31:00Z"]
    clock = 'hour(t, "America/St_Johns") * 100 + minute(t, "America/St_Johns")'
    assert computed(clock, spring + autumn) == [0, 101, 105, 0, 2301]
    assert computed('minute(t, "Australia/Lord_Howe")', ["2024-04-06T14:59:59Z", "2024-04-06T15:00:00Z"]) == [59, 30]


@pytest.mark.parametrize("zone", ["", ', "Asia/Tokyo"', ', "America/St_Johns"'])
def test_a_time_outside_of_years_1_to_9999_has_no_parts(zone):
    far = [1e300, -1e300, 1e18, 253402300800.0 + 86_400, -62135596800.1 - 86_400, 1e11 * 9, None]
    for part in ("year", "month", "day", "hour", "minute", "second", "dayofweek", "dayofyear", "week", "quarter"):
        assert computed(f"{part}(t{zone})", far, "s") == [None] * len(far)
    assert computed(f"is_weekend(t{zone})", far, "s") == [0] * len(far)
    # Within a day of either end, the clock of the zone decides.
    ends = [253402300799.0, -62135596800.0, 253402300799.0 - 86_400, -62135596800.0 + 86_400]
    years = {
        "": [9999, 1, 9999, 1],
        ', "Asia/Tokyo"': [None, 1, 9999, 1],
        ', "America/St_Johns"': [9999, None, 9999, 1],
    }
    assert computed(f"year(t{zone})", ends, "s") == years[zone]
    assert computed("len(string(t))", [*far, 253402300799.0], "s") == [None] * len(far) + [20]
    assert computed("epoch(t)", [1e300, 2.0**40], "s") == [None, 2.0**40]


@given(
    st.lists(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)), min_size=1, max_size=20),  # noqa: DTZ001
    st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin"]),
)
def test_weeks_quarters_and_weekends_are_those_of_pandas(moments, zone):
    times = pd.Series(pd.to_datetime(moments, utc=True))
    local = times.dt.tz_convert(zones.zone(zone)).dt
    texts = [moment.isoformat() + "Z" for moment in moments]
    assert computed(f'week(t, "{zone}")', texts) == local.isocalendar()["week"].tolist()
    assert computed(f'quarter(t, "{zone}")', texts) == local.quarter.tolist()
    assert computed(f'is_weekend(t, "{zone}")', texts) == (local.day_of_week >= 5).astype(float).tolist()
    if zone == "UTC":
        assert (
            computed("week(t) * 10 + quarter(t)", texts)
            == (times.dt.isocalendar()["week"] * 10 + times.dt.quarter).tolist()
        )


def test_the_system_may_have_other_zones_and_nobody_asks_it(tmp_path):
    (tmp_path / "Europe").mkdir()
    tokyo = resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").read_bytes()
    (tmp_path / "Europe" / "Berlin").write_bytes(tokyo)
    zones.zone.cache_clear()
    zoneinfo.reset_tzpath(to=[str(tmp_path)])
    try:
        assert zoneinfo.ZoneInfo.no_cache("Europe/Berlin").utcoffset(dt.datetime(2020, 1, 1)) == dt.timedelta(hours=9)  # noqa: DTZ001
        assert computed('hour(t, "Europe/Berlin")', ["2020-01-01T00:00:00Z"]) == [1]
    finally:
        zoneinfo.reset_tzpath()


def test_the_release_of_the_time_zones_is_told():
    assert f"time zones {zones.release()}" in CliRunner().invoke(_commands(), ["--version"]).output
