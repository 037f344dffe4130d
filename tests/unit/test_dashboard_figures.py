"""What the dashboard makes of figures: who is slow, why lag grows, how scores are spread."""

import pytest
from test_health import position, status

from gridscore.features.baseline import Column
from gridscore.grid.writer import MapWriter
from gridscore.operations.explain import Explanation
from gridscore.operations.status import JobFigures, Overview, WorkerRecord
from gridscore.serve.dashboard import figures
from gridscore.serve.observation import _KEPT, Observation, Point, Recent, _decode
from gridscore.testing import StubCluster


def worked(**of_worker):
    """The workers of a job of four partitions: of each the partitions' unread events, its rate and its p99."""
    positions, found = [], {}
    for worker, (unread, rate, p99) in of_worker.items():
        positions += [position(owner=worker, unread=each) for each in unread]
        found[worker] = JobFigures(rate=rate, latency_ms={"p99": p99}, stage_us_per_event={"decode": 1.0, "predict": 2})
    job = status(positions, workers=tuple(of_worker), figures=found)
    records = [WorkerRecord(worker, 1, {"flights": each}) for worker, each in found.items()]
    records.append(WorkerRecord("other", 1, {}))
    return figures.workers_of(Overview(1.0, [job], records), job)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"a": ([5_000, 5_000, 5_000, 5_000], 1_000.0, 10)}, {"a": ""}),  # of one, nothing can be said
        ({"a": ([10, 0], 500.0, 10), "b": ([20, 30], 500.0, 12)}, {"a": "", "b": ""}),
        (
            {"a": ([100, 0], 900.0, 10), "b": ([2_000, 1_900], 500.0, 20)},
            {"a": "", "b": "behind: 98% of what waits, in 50% of the partitions"},
        ),
        (
            {"a": ([10], 500.0, 10), "b": ([10], 500.0, 30), "c": ([0, 0], 500.0, 10)},
            {"a": "", "b": "slow: its p99 is 3 times that of the others", "c": ""},
        ),
        ({"a": ([], 0.0, None), "b": ([0, 0, 0, 0], 500.0, None)}, {"a": "", "b": ""}),
    ],
)
def test_a_worker_that_is_behind_or_slow_is_told_from_the_others(given, expected):
    rows = worked(**given)
    assert {row.record.id: row.remark for row in rows} == expected
    assert rows[0].remark == max(expected.values())
    assert (rows[0].cost, rows[0].stage) == (3.0, "predict")


def test_partitions_are_told_in_ranges():
    assert figures.ranges_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert figures.ranges_text([]) == ""


def points(*moments):
    return [Point(2.0 * n, *each) for n, each in enumerate(moments)]


CALM = [(0, 500.0, 500.0, 9.0, 2)] * 9


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        (CALM, []),
        ([*CALM[:3], (900, 900.0, 500.0, 9.0, 2)], []),  # too short to say
        ([*CALM, (500, 1_000.0, 500.0, 9.0, 2), (1_500, 1_000.0, 500.0, 9.0, 2), (2_500, 1_000.0, 500.0, 9.0, 2)],
         ["1,000 events a second come, and 500 are scored", "More events come than before: 500"]),
        ([*CALM, (500, 500.0, 250.0, 9.0, 1), (1_000, 500.0, 250.0, 9.0, 1), (1_500, 500.0, 250.0, 9.0, 1)],
         ["fewer workers: 1, before 2", "Fewer are scored than before: 500"]),
        ([*CALM, (900, 500.0, 700.0, 9.0, 2), (500, 500.0, 700.0, 9.0, 2), (100, 500.0, 700.0, 9.0, 2)], []),
    ],
)  # fmt: skip
def test_why_lag_grows_is_said_only_where_it_grows(moments, said):
    text = figures.why_lag_grows(points(*moments))
    assert bool(text) is bool(said)
    assert all(each in text for each in said), text


def test_a_chart_begins_at_zero_and_leaves_gaps_out():
    drawn = figures.chart("Lag", ("waiting", [0, None, 50, 100]), unit=" ms")
    assert drawn["lines"] == [("waiting", "0.0,62.0 213.3,32.0 320.0,2.0")]
    assert drawn["text"] == "Lag: waiting 100 ms now, at most 100 ms"
    empty = figures.chart("Latency", ("p99", [None, None]))
    assert (empty["lines"], empty["now"]) == ([("p99", "")], "p99 unknown")


def recent(*scores):
    return [Recent("k", _decode(f'{{"score": {score}, "version": 1}}')) for score in scores]


def test_scores_are_spread_over_bins():
    found = figures.scores_of(recent(0.0, 0.01, 0.99, 1.0, 0.5))
    assert [round(x / 16) for x, _, _ in found["bars"]] == [0, 10, 19]
    assert max(height for _, height, _ in found["bars"]) == 62
    assert (found["low"], found["high"]) == (0.0, 1.0)
    assert figures.scores_of(recent(-3.0, 9.0))["low"] == -3.0
    assert figures.scores_of(recent(7.0))["bars"] == [(0.0, 62.0, 15.0)]
    assert figures.scores_of(recent([0.1, 0.9])) is None
    assert figures.scores_of([]) is None


def test_scores_are_compared_in_the_bins_of_the_training():
    training = Column(edges=(0.0, 0.5, 1.0), shares=(0.0, 0.5, 0.5, 0.0))
    found = figures.scores_against(training, [0.1, 0.2, 0.3, 0.9])
    assert found["text"].startswith("4 recent scores against the training: PSI 0.2")
    assert [round(height / 62, 2) for _, height, _ in found["bars"]] == [0, 1.0, 0.33, 0]
    assert found["line"].startswith("0.0,64.0 80.0,64.0 80.0,22.7 160.0,22.7")
    assert figures.scores_against(training, []) is None
    assert figures.scores_against(Column(missing=1.0), [0.5]) is None
    assert figures.scores_against(None, [0.5]) is None


def test_the_largest_contributions_come_first_and_the_rest_together():
    found = Explanation({}, features={f"f{n}": 1.0 for n in range(20)})
    found.contributions = {f"f{n}": (-1) ** n * float(n) for n in range(20)}
    rows = figures.contributions_of(found)
    assert (rows[0]["name"], rows[0]["adds"], rows[0]["bar"]) == ("f19", -19.0, 100)
    assert (rows[-1]["name"], rows[-1]["adds"]) == ("5 others", 2.0)
    assert figures.contributions_of(Explanation({})) == []


async def test_a_look_at_results_costs_the_same_however_many_are_written():
    async with StubCluster(partitions=64) as cluster:
        grid = await cluster.connect("writer")
        observation = Observation(grid)
        write = MapWriter(grid, "results.x")
        await write.put([(f"k{n}", b'{"score": 0.5, "version": 1, "scored_at": %d}' % n) for n in range(20_000)])
        reads = cluster.requests["Map.EventJournalRead"]
        found = await observation.results("results.x")
        assert cluster.requests["Map.EventJournalRead"] - reads == 48
        assert len(found) == 48 * 8
        assert [each.result.scored_at for each in found] == sorted((e.result.scored_at for e in found), reverse=True)
        # Where little is written, none is missed; and what others write is left out.
        tail = observation._tails["results.x"]
        tail.read_at = 0.0
        await write.put([("new", b'{"score": 0.5, "version": 1, "scored_at": 99999}'), ("odd", b'["other"]')])
        found = await observation.results("results.x")
        assert found[0].key == "new"
        assert "odd" not in {each.key for each in found}
        assert len(found) <= _KEPT
