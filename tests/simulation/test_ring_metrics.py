"""When unread events will be overwritten, as the metrics of a worker say it, in virtual time."""

import math
from itertools import pairwise

import pytest
from promtool import samples
from world import World

from gridscore.operations.metrics import Metrics
from gridscore.testing import Fault

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def world():
    world = World(partitions=4, ring=64)
    yield world
    world.close()


def test_a_ring_that_fills_is_seen_and_one_that_is_worked_off_is_not(world):
    process = world.workers[world.start()]
    assert world.time.run_until(world.is_balanced, seconds=60)
    world.advance(3)
    metrics = Metrics(process.worker._grid, worker=process.worker)

    def look():
        found = samples(world.time.run(metrics.text(), process.loop).decode())
        names = ("lag_events", "journal_full_ratio", "journal_left_seconds")
        return [found.get((f"gridscore_worker_{name}", "sim")) for name in names]

    assert look() == [0, None, None]  # members of a stub do not tell how large a ring is
    world.flood(2, 1.0, 70)  # so it has to go round once
    world.advance(90)
    assert look() == [0, 0, math.inf]
    # Given a member that takes no results of one partition
    stuck = Fault("silence", applied=False, request="Map.PutAll", map="results.sim", partition=2, times=10_000)
    world.cluster.faults.append(stuck)
    seen = []
    for _ in range(5):
        world.flood(2, 1.0, 8)
        world.advance(5)
        seen.append(look())
    # Then its ring is seen to fill, and when it is full is known before it is
    assert [lag for lag, _, _ in seen] == [8, 16, 24, 32, 40]
    assert [full for _, full, _ in seen] == [8 / 64, 16 / 64, 24 / 64, 32 / 64, 40 / 64]
    assert seen[0][2] == math.inf  # far from full
    for (lag, _, left), later in pairwise(seen[2:]):
        assert left == pytest.approx((64 - lag) / (8 / 5), rel=0.35)
        assert later[2] < left
    # And when it is worked off, nothing is in sight
    world.cluster.faults.remove(stuck)
    world.cluster.cut(process.name)
    world.cluster.heal()
    world.advance(60)
    assert look() == [0, 0, math.inf]
    world.check()
