"""The figures of a spike: when events are due, what counts as normal again, percentiles over time."""

import numpy as np
import pytest

from benchmarks import spike


def test_events_are_due_at_the_rate_and_ten_times_as_often_during_the_spike():
    due = spike._schedule(10 * 100 + 2 * 1000 + 5 * 100, 100.0, 10.0, 12.0)
    counts, _ = np.histogram(due, bins=np.arange(18.0))
    assert counts.tolist() == [100] * 10 + [1000] * 2 + [100] * 5
    assert (np.diff(due) > 0).all()


def test_well_is_what_stays_well():
    times = np.arange(100) * spike.BIN_SECONDS
    well = np.ones(100, dtype=bool)
    assert spike._well_after(times, well, 0.0) == 0.0
    well[:20] = False
    well[25] = False  # half a second was not long enough
    assert spike._well_after(times, well, 0.0) == pytest.approx(2.6)
    well[50::20] = False
    assert spike._well_after(times, well[:60], 0.0) is None


def test_percentiles_are_of_what_was_due_in_the_second_before():
    due = np.arange(0, 3, 0.01)
    latency = np.where(due < 1, 1.0, np.where(due < 2, 5.0, np.nan))
    p50, p99 = spike._percentiles(due, latency, np.array([1.0, 2.0, 3.0]))
    assert p50[:2].tolist() == [1.0, 5.0]
    assert p99[:2].tolist() == [1.0, 5.0]
    assert np.isnan(p50[2])
