"""The figures of a group's cost: longest gaps by partition, results of a strange epoch, what coordination costs."""

import json

import numpy as np
import pytest

from benchmarks.group import Phase, Report, Run
from benchmarks.sights import Sights

SIGHTS = Sights(
    due=np.array([1.0, 1.1, 2.0, 2.1, 2.2, 4.0]),
    seen=np.array([1.01, 1.4, 2.05, 2.11, 3.2, 4.01]),
    partition=np.array([0, 1, 0, 0, 3, 3]),
    epoch=np.array([1, 1, 1, 1, 7, 8]),
)


def test_the_longest_gap_is_of_what_waited_within_the_window():
    assert SIGHTS.longest({0, 1, 3}, 2.0, 3.0).tolist() == pytest.approx([50, 1000])
    assert SIGHTS.longest({0, 1, 3}, 1.2, 1.3).tolist() == pytest.approx([300])
    assert SIGHTS.longest({0}, 1.0, 3.0).tolist() == pytest.approx([50])
    assert SIGHTS.longest({2}, 0.0, 9.0).tolist() == []


def test_strangers_are_partitions_whose_results_are_of_another_epoch():
    assert SIGHTS.strangers({0: 1, 3: 7}, 0.0, 9.0) == {3}
    assert SIGHTS.strangers({0: 1, 3: 7}, 0.0, 4.0) == set()
    assert SIGHTS.strangers({0: 1, 2: 5}, 0.0, 9.0) == set()


def test_coordination_is_commits_and_idling_less_renewals():
    report = Report(members=1, partitions=100, events=1000, rounds=1, rate=10.0)
    report.commits.extend([0.004, 0.005, 0.009])
    report.idle[1].append(1.5)
    report.renewals.append(60.0)
    for workers, seconds in ((1, 2.0), (2, 1.6)):
        report.runs[workers].append(Run(1000, seconds, worker_cpu=1.0, member_cpu=0.5, others=0.0))
    report.phases["join"] = [Phase(1.0, np.array([1.0, 3.0])), Phase(1.0, np.array([]))]
    figures = json.loads(json.dumps(report.to_json()))
    # A round of 5 ms and 15 ms of idling, less 60 renewals of 0.05 ms, of 0.5 s that it used a second
    assert figures["coordination"]["cpu_ms_per_s"] == pytest.approx(17)
    assert figures["coordination"]["percent"] == pytest.approx(3.4)
    assert figures["throughput_ratio"]["median"] == 1.25
    assert figures["rebalance"]["phases"]["join"]["max_ms"] == {"median": 3.0, "min": 3.0, "max": 3.0}
