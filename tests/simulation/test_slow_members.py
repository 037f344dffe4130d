"""Members that answer few requests a second, when many leases are free at once."""

from collections import Counter

from test_scale import more_jobs
from world import World

from gridscore.testing.network import Link


def test_slow_members_are_not_flooded_by_workers_that_all_start_at_once(monkeypatch):
    world, jobs, due, receive = World(121, members=3), 6, Counter(), Link._received

    def received(link, body):
        # Each answers two hundred requests a second, one after the other.
        loop = link._cluster.loop
        due[link.member] = max(due[link.member], loop.time()) + 0.005
        loop.call_at(due[link.member], receive, link, body)

    try:
        more_jobs(world, jobs)
        monkeypatch.setattr(Link, "_received", received)
        names, began = [world.start() for _ in range(3)], world.time.now

        def groups():
            workers = [getattr(world.workers[name], "worker", None) for name in names]
            return [runner.group for worker in workers if worker is not None for runner in worker.runners.values()]

        def read():
            return sum(len(group._reader.partitions) for group in groups())

        while read() < jobs * 121:
            assert world.time.now - began < 60.0
            world.time.advance(0.5)
    finally:
        world.close()
