"""What is measured on what, which systems there are, and when scores are wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.session import PARTS, QUICK_EVENTS, QUICK_PARTS, Options
from benchmarks.systems import SYSTEMS, NotAvailableError, system_class
from benchmarks.throughput import worked_off, wrong_scores
from benchmarks.work import WORKS
from gridscore.errors import GridscoreError


def options(**changes):
    usual = {"quick": False, "works": tuple(WORKS), "systems": tuple(SYSTEMS), "all_systems": True, "rounds": 5,
             "parts": PARTS, "members": 2, "heap": "3g"}  # fmt: skip
    return Options(**{**usual, **changes})


def test_it_takes_an_hour_and_ten_minutes_if_quick():
    assert options().seconds() < 3_600
    assert options(quick=True, works=("card",), rounds=3, parts=QUICK_PARTS, events=QUICK_EVENTS).seconds() < 600


def test_only_the_first_work_has_all_systems_and_live_events():
    assert options().systems_on("card") == list(SYSTEMS)
    assert set(options().systems_on("wide")) < set(SYSTEMS)
    assert options().live_parts("card") == ["latency", "spike"]
    assert options().live_parts("wide") == []


def test_what_the_floors_compare_is_measured_for_longer():
    def seconds(system, **changes):
        return [rate.seconds for rate in options(**changes).steady_rates(system)]

    assert seconds("gridscore") == seconds("jet-dictionary") == [20.0, 60.0, 10.0]
    assert seconds("fastapi") == [10.0, 10.0, 10.0]
    assert seconds("gridscore", quick=True) == [6.0, 6.0]
    assert [rate.per_s for rate in options().floor_rates("gridscore")] == [500.0, 2_000.0]


def test_who_names_systems_gets_them():
    named = options(systems=("entry-listener", "fastapi"), all_systems=False, quick=True)
    assert named.systems_on("wide") == ["entry-listener", "fastapi"]
    assert named.live_systems("latency", ["entry-listener", "fastapi"]) == ["entry-listener", "fastapi"]


def test_a_missing_package_makes_one_system_unavailable(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "strange", ("benchmarks.systems.strange", "Strange"))
    with pytest.raises(NotAvailableError, match="not installed"):
        system_class("strange")
    assert system_class("by-hand").name == "by-hand"


def test_scores_are_compared_bit_by_bit():
    ground = SimpleNamespace(expected=np.array([0.1, 0.2, 0.3], np.float32))
    right = {0: float(np.float32(0.1)), 2: 0.3}
    assert not wrong_scores(ground, [0, 2], right)
    assert "1 of 2" in wrong_scores(ground, [0, 2], {**right, 2: float(np.nextafter(np.float32(0.3), np.float32(1)))})
    assert "have no score" in wrong_scores(ground, [0, 1, 2], right)


class Backlog:
    """Has so many results at each look."""

    def __init__(self, *sizes):
        self._sizes = iter(sizes)

    async def results(self):
        return next(self._sizes)

    async def check(self):
        pass

    def pids(self):
        return []

    service_pids = pids


async def test_the_window_goes_from_the_first_tenth_to_the_last():
    looks = []
    events, usage = await worked_off(Backlog(0, 50, 120, 600, 930, 990, 1_000), 1_000, lambda: looks.append(1))
    assert events == 930 - 120
    assert usage.seconds > 0
    assert len(looks) == 5


async def test_what_is_done_at_once_cannot_be_measured():
    with pytest.raises(GridscoreError, match="between two looks"):
        await worked_off(Backlog(0, 1_000, 1_000), 1_000)
