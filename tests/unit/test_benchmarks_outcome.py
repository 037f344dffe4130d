"""What the benchmark makes of its runs: ratios with their spread, and a file that can be read again."""

import msgspec
import pytest

from benchmarks.outcome import FORMAT, Machine, Outcome, Run, Spread, Status, Throughput


def throughput(system, rates, first=1):
    runs = [Run(number, events=900, seconds=900 / rate, scorer_cpu_seconds=0.009, service_cpu_seconds=0.018)
            for number, rate in enumerate(rates, start=first)]  # fmt: skip
    return Throughput("card", system, Status.MEASURED, expected_events=1_000, runs=runs)


def test_a_spread_is_of_something():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([]) is None


def test_ratios_are_of_the_same_round():
    ours, theirs = throughput("ours", [100.0, 200.0, 300.0]), throughput("theirs", [50.0, 100.0, 100.0])
    ratio = ours.ratio(theirs)
    assert ratio.median == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(3.0)


def test_rounds_that_only_one_has_do_not_count():
    ours, theirs = throughput("ours", [100.0, 200.0]), throughput("theirs", [100.0, 400.0], first=2)
    ratio = ours.ratio(theirs)
    assert (ratio.low, ratio.high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert ours.ratio(throughput("theirs", [1.0], first=9)) is None


def test_microseconds_are_per_event_of_the_window():
    run = throughput("ours", [100.0]).runs[0]
    assert run.scorer_cpu_us_per_event == pytest.approx(10.0)
    assert run.service_cpu_us_per_event == pytest.approx(20.0)
    assert run.cpu_us_per_event == pytest.approx(30.0)


def test_cpu_has_a_ratio_too():
    assert throughput("a", [1.0]).ratio(throughput("b", [2.0]), "cpu_us_per_event").median == pytest.approx(1.0)


def test_stages_are_medians_of_the_rounds():
    runs = [Run(n, 10, 1.0, 0.0, 0.0, stage_us_per_event={"decode": float(n)}) for n in (1, 2, 4)]
    assert Throughput("card", "ours", Status.MEASURED, runs=runs).stage_us_per_event == {"decode": 2.0}


def test_an_outcome_is_read_as_it_was_written(tmp_path):
    outcome = Outcome(
        FORMAT, "2026-01-31T12:00:00Z", 1.5, ["--quick"], "abc+", Machine("cpu", 2, 1 << 30, "Linux", "CPython"),
        {"numpy": "2"}, {"quick": True, "heap": "3g"}, throughput=[throughput("ours", [1.0, 2.0])],
    )  # fmt: skip
    outcome.save(tmp_path / "results" / "a.json")
    assert Outcome.load(tmp_path / "results" / "a.json") == outcome
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a.json"]


def test_something_else_is_not_an_outcome(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(msgspec.ValidationError):
        Outcome.load(tmp_path / "a.json")
