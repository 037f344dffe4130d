"""The report: what is missing, unequal or strange is found, and judged against what happened."""

import numpy as np
import pytest

from gridscore.proving.demo.plot import save_plot
from gridscore.proving.demo.report import Report, check_results, judge, latency_percentiles

KEYS = ["a", "b", "c"]
SCORES = np.array([0.1, 0.2, 0.7], dtype=np.float32)


def check(written, **changes):
    arguments = {"map_size": len(written), "repeated": 0, "version": 3, **changes}
    heard = np.array([written[key][0] if key in written else np.nan for key in KEYS])
    return check_results(KEYS, written, SCORES, arguments.pop("heard", heard), **arguments)


def all_written():
    return {key: (float(score), 3) for key, score in zip(KEYS, SCORES, strict=True)}


def test_equal_results_have_no_problems():
    assert check(all_written()).problems == []


def test_scores_written_as_short_decimals_are_equal():
    assert check({"a": (0.1, 3), "b": (0.2, 3), "c": (0.7, 3)}).problems == []


def test_one_bit_is_a_difference():
    written = all_written() | {"b": (float(np.nextafter(SCORES[1], np.float32(1))), 3)}
    found = check(written)
    assert found.unequal == 1
    assert "`b`" in found.problems[0]


def test_missing_strange_unseen_repeated_and_foreign_are_counted():
    written = all_written()
    del written["c"]
    written["a"] = (written["a"][0], 2)
    found = check(written, map_size=4, repeated=5, heard=np.array([0.1, np.nan, np.nan]))
    assert (found.missing, found.strange, found.unseen, found.repeated, found.other_version) == (1, 2, 1, 5, 1)
    assert len(found.problems) == 5


def test_quality_is_over_the_flights_that_arrived():
    # Given scores that are right on average in each half, and a flight that never arrived
    scores = np.array([0.2] * 50 + [0.8] * 50 + [0.99])
    delays = np.array(([20.0] + [0.0] * 4) * 10 + ([0.0] + [20.0] * 4) * 10 + [np.nan])
    # When they are judged
    quality = judge(scores, delays, 15)
    # Then
    assert quality.arrived == 100
    assert quality.late == pytest.approx(0.5)
    assert quality.auc == pytest.approx(0.8)
    assert quality.brier == pytest.approx(0.16)
    assert quality.calibration_error == pytest.approx(0.0, abs=1e-9)


def test_one_outcome_only_has_no_auc():
    assert judge(np.array([0.2, 0.4]), np.array([0.0, 1.0]), 15).auc is None


def test_percentiles_leave_out_what_was_not_seen():
    found = latency_percentiles(np.array([0.001, 0.002, 0.003, np.nan]))
    assert found["p50"] == pytest.approx(2.0)
    assert found["max"] == pytest.approx(3.0)
    assert latency_percentiles(np.array([np.nan])) == {}


@pytest.mark.parametrize("arrived", [True, False])
def test_plot_is_drawn_whatever_there_is(tmp_path, arrived):
    scores = SCORES.astype(np.float64)
    delays = np.array([0.0, 20.0, np.nan]) if arrived else np.full(3, np.nan)
    latency = np.array([0.001, 0.001, np.nan]) if arrived else np.full(3, np.nan)
    report = Report(
        check=check(all_written()),
        quality=judge(scores, delays, 15) if arrived else None,
        latency_ms=latency_percentiles(latency),
        seconds=1.0,
        rate=0,
        decisions={},
        model={},
        dead_letters=0,
        lost=0,
        waited_seconds=0,
        problems=[],
    )
    save_plot(tmp_path / "plot.png", report, scores, delays, latency, 15)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert report.to_json()["ok"] is True
