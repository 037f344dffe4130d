"""When events are due, and what is made of when they were seen."""

import asyncio

import msgspec
import numpy as np
import pytest

from benchmarks import latency
from benchmarks.latency import bins_of, histogram_of, seconds_until_normal
from benchmarks.load import closed_loop, open_loop, schedule
from benchmarks.outcome import Latency, SpikeBin
from gridscore.errors import GridscoreError


class Echo:
    """Sees every result a moment after its event was sent; `lost` events never."""

    name = "echo"

    def __init__(self, lost=()):
        self.sent = []
        self._lost = set(lost)

    async def watch(self, seen):
        self._seen = seen

    def send(self, number, text):
        self.sent.append((number, text))
        if number not in self._lost:
            asyncio.get_running_loop().call_later(0.001, self._seen, number)

    async def check(self):
        pass

    async def start(self, *, backlog):
        assert not backlog

    stop = check

    def pids(self):
        return []

    service_pids = pids


def test_a_schedule_goes_from_rate_to_rate():
    due = schedule((10.0, 1.0), (100.0, 0.5), (10.0, 1.0))
    assert len(due) == 10 + 50 + 10
    assert due[0] == 0.0
    assert due[10] == pytest.approx(1.0)
    assert due[60] == pytest.approx(1.5)
    assert np.diff(due[10:60]) == pytest.approx(0.01)
    assert (np.diff(due) > 0).all()


def test_a_schedule_may_pause():
    due = schedule((10.0, 1.0), (0.0, 2.0), (10.0, 1.0))
    assert len(due) == 20
    assert due[10] == pytest.approx(3.0)


async def test_every_event_is_sent_once_and_never_early():
    echo, due = Echo(), schedule((1_000.0, 0.3))
    sights = await open_loop(echo, [b"a", b"b"], due, [0.05, 0.2])
    assert echo.sent == [(number, b"ab"[number % 2 : number % 2 + 1]) for number in range(300)]
    assert (sights.sent >= sights.due).all()
    assert (sights.seen > sights.sent).all()
    assert (sights.latency_ms > 0).all()
    assert len(sights.usages) == 2
    assert not sights.behind


async def test_a_system_that_falls_behind_is_given_up():
    echo = Echo(lost=range(10, 10_000))
    sights = await open_loop(echo, [b"a"], schedule((1_000.0, 10.0)), [], behind_seconds=0.2)
    assert sights.behind
    assert len(echo.sent) < 10_000
    assert np.isnan(sights.latency_ms[10:]).all()


async def test_a_closed_loop_sends_all_and_no_more():
    echo = Echo()
    closed = await closed_loop(echo, [b"a"], count=5_000)
    assert len(echo.sent) == 5_000
    assert 3_000 <= closed.events <= 4_500
    assert closed.usage.seconds > 0


async def test_a_closed_loop_of_which_nothing_comes_back_says_so():
    with pytest.raises(GridscoreError, match="No results"):
        await closed_loop(Echo(lost=range(10_000)), [b"a"], warm_up=0.1, seconds=0.1)


def test_percentiles_are_exact_to_three_digits():
    histogram = histogram_of(np.arange(1, 1_001) / 10.0)  # 0.1 ms to 100 ms
    assert histogram.get_total_count() == 1_000
    assert histogram.get_value_at_percentile(50) == pytest.approx(50_000, rel=2e-3)
    assert histogram.get_value_at_percentile(99) == pytest.approx(99_000, rel=2e-3)


def test_bins_leave_the_warm_up_out_and_count_what_was_not_seen():
    due = np.array([-0.2, 0.0, 0.4, 0.5, 0.9, 1.2])
    bins = bins_of(due, np.array([9.0, 1.0, 3.0, np.nan, np.nan, 5.0]))
    assert [(each.begin_s, each.due, each.seen) for each in bins] == [(0.0, 2, 2), (0.5, 2, 0), (1.0, 1, 1)]
    assert bins[0].p50_ms == pytest.approx(2.0)
    assert bins[1].p99_ms is None


def bins(*p99, begin=0.0):
    return [SpikeBin(begin + n / 2, 10, 10, p99_ms=value, p50_ms=value) for n, value in enumerate(p99)]


def test_normal_is_what_stays_normal():
    assert seconds_until_normal(bins(50.0, 5.0, 50.0, 5.0, 5.0, 5.0), 0.0, 6.0) == 1.5
    assert seconds_until_normal(bins(5.0, 5.0, 5.0), 0.0, 6.0) == 0.0
    assert seconds_until_normal(bins(50.0, 5.0, 5.0), 0.0, 6.0) is None
    assert seconds_until_normal(bins(5.0, 5.0, None, 5.0), 0.0, 6.0) is None


@pytest.mark.parametrize("lost", [range(0), range(900, 10_000)])
async def test_a_rate_that_is_too_much_is_marked_and_what_comes_after_it_is_not_measured(lost, monkeypatch):
    # Given
    for name in ("PAUSE_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(latency, name, 0.3)
    rates = [latency.Rate(1_000.0, 0.5), latency.Rate(2_000.0, 0.5)]

    # When
    found = await latency.steady(Echo(lost=lost), "card", [b"a"], rates, warm_up=0.2, most=1_000.0)

    # Then
    assert [each.status for each in found] == ["measured", "measured"]
    assert [each.rate_per_s for each in found] == [1_000.0, 2_000.0]
    assert found[-1].saturated is bool(lost)
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[Latency]) == found
