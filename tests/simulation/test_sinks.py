"""What sinks promise, in virtual time: processes killed, frozen and cut off, and a destination that goes away."""

import json
import random
import struct

import pytest

from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job.plugs.base import SinkSettings
from gridscore.sinks.records import all_sinks
from gridscore.sinks.runner import SinkRunner
from gridscore.testing import StubCluster, VirtualTime
from gridscore.testing.sinks import ABORT, ListSink, Received

PARTITIONS = 8
MAP = "results.sim"

pytestmark = pytest.mark.usefixtures("quiet")


class Sinks:
    """A cluster, a destination, and processes of one sink, each with a clock and a connection of its own."""

    def __init__(self, ring=10_000, seed=0):
        self.time = VirtualTime()
        self._patch = self.time.patched()
        self._patch.__enter__()
        self.cluster = StubCluster(
            PARTITIONS,
            journals={"results.*": ring},
            loop=self.time.loop("members"),
            latency=lambda: 0.001,
            seed=seed,
        )
        self.random = random.Random(seed)
        self.received = Received()
        self.user = self.time.loop("user")
        self.grid = self.time.run(self.cluster.connect("user"), self.user)
        self.there = {}
        self.processes = {}
        self.stopping = {}
        self.started = 0

    def put(self, count, keys=40):
        entries = {
            f"k{self.random.randrange(keys)}": {"n": len(self.there), "r": self.random.random()} for _ in range(count)
        }
        self.write(entries)

    def write(self, entries):
        self.there |= entries
        texts = [(key, json.dumps(value).encode()) for key, value in entries.items()]
        self.time.run(MapWriter(self.grid, MAP).put(texts), self.user)

    def start(self):
        self.started += 1
        name = f"s{self.started}"
        loop = self.time.loop(name, skew=self.random.uniform(-30, 30))

        async def run():
            grid = await self.cluster.connect(name)
            settings = SinkSettings(results=MAP)
            runner = SinkRunner(grid, "sim", "list", settings, lambda: ListSink(self.received, name, max_results=20))
            try:
                await runner.run()
            finally:
                await grid.close()

        self.processes[name] = (loop, loop.create_task(run()))
        return name

    def stop(self, name):
        loop, task = self.processes.pop(name)
        self.stopping[name] = task
        loop.call_soon(task.cancel)

    def kill(self, name):
        loop, _ = self.processes.pop(name)
        self.time.abandon(loop)
        self.cluster.kill_client(name)

    def paused(self, name, paused):
        self.processes[name][0].paused = paused

    def settle(self, seconds=120.0):
        """Let time pass until the destination has what the map has."""
        for _, task in self.processes.values():
            assert not task.done(), task
        self.time.run_until(lambda: self.delivered() == self.there, seconds=seconds)
        assert self.delivered() == self.there
        self.check()

    def delivered(self):
        return {key: result.value for key, result in self.received.newest().items()}

    def check(self):
        """No process delivered after another had taken its partition, and each delivered in order."""
        epochs, sequences = {}, {}
        for result in self.received.results:
            assert result.epoch >= epochs.get(result.partition, 0)
            epochs[result.partition] = result.epoch
            # Only what comes again goes back.
            line = (result.partition, result.epoch)
            seen = sequences.setdefault(line, [])
            assert result.sequence in seen or result.sequence >= max(seen, default=-1)
            seen.append(result.sequence)

    def close(self):
        try:
            self.time.run(self.grid.close(), self.user)
            self.time.close()
        finally:
            self._patch.__exit__(None, None, None)


@pytest.fixture
def sinks():
    sinks = Sinks()
    yield sinks
    sinks.close()


def test_a_killed_process_is_taken_over_within_seconds(sinks):
    one, two = sinks.start(), sinks.start()
    sinks.put(100)
    sinks.settle()
    sinks.time.advance(5)
    held = set(sinks.received.held[one])
    assert 0 < len(held) < PARTITIONS
    sinks.kill(one)
    sinks.put(100)
    sinks.settle(15)
    # Whoever takes over is told from whom.
    assert {sinks.received.held[two][partition] for partition in held} != {""}


def test_a_process_that_was_frozen_delivers_nothing_more_of_what_was_taken_over(sinks):
    one, _ = sinks.start(), sinks.start()
    sinks.put(100)
    sinks.settle()
    sinks.paused(one, True)
    sinks.put(200)
    sinks.settle(30)
    sinks.paused(one, False)
    sinks.put(100)
    sinks.settle(30)


def test_a_process_that_is_cut_off_comes_back(sinks):
    one, _ = sinks.start(), sinks.start()
    sinks.put(100)
    sinks.settle()
    sinks.cluster.hang(one)
    sinks.put(200)
    sinks.settle(60)
    sinks.cluster.heal()
    sinks.put(100)
    sinks.time.advance(30)
    sinks.settle(30)


def test_a_destination_that_is_away_for_long_keeps_the_partitions_where_they_are(sinks):
    sinks.start()
    sinks.put(100)
    sinks.settle()
    before = len(sinks.received.results)
    sinks.received.then(*[ABORT()] * 8)
    sinks.put(40)
    sinks.time.advance(20)
    assert len(sinks.received.results) == before
    sinks.settle(120)
    assert len({(r.partition, r.epoch) for r in sinks.received.results}) == PARTITIONS


def test_a_destination_that_is_too_slow_for_the_leases_gets_less_at_once(sinks):
    sinks.start()
    sinks.put(100)
    sinks.settle()
    before = len(sinks.received.deliveries)
    sinks.received.seconds_each = 0.5  # twenty results would take ten seconds, twice what a lease is
    sinks.put(100, keys=1_000)
    sinks.settle(200)
    assert len({(r.partition, r.epoch) for r in sinks.received.results}) == PARTITIONS
    slow = sinks.received.deliveries[before:]
    assert max(slow) <= 8
    # Nothing that was delivered comes again.
    assert sum(sinks.received.deliveries) == len({(r.partition, r.sequence) for r in sinks.received.results})
    sinks.received.seconds_each = 0.0
    sinks.put(500, keys=1_000)
    sinks.settle()
    assert max(sinks.received.deliveries[before + len(slow) :]) == 20


def keys_of(partition, count):
    keys, number = [], 0
    while len(keys) < count:
        number += 1
        data = f"x{number}".encode()
        if partition_of(struct.pack(">iii", 0, -11, len(data)) + data, PARTITIONS) == partition:
            keys.append(f"x{number}")
    return keys


@pytest.mark.parametrize("seen", [True, False])
def test_when_a_member_dies_with_results_that_no_backup_had_only_those_come_again(sinks, seen):
    one = sinks.start()
    sinks.put(200, keys=1_000)
    keys = keys_of(3, 8)
    sinks.write({key: {"n": 1} for key in keys[:5]})
    sinks.settle()
    before = len(sinks.received.results)
    # What is not seen is covered by other results before anybody looks.
    sinks.paused(one, not seen)
    sinks.cluster.regress(MAP, 3, 2)
    sinks.time.advance(1.0 if seen else 0.0)
    sinks.write({keys[5]: {"n": 2}, keys[3]: {"n": 3}, keys[4]: {"n": 4}, keys[6]: {"n": 5}, keys[7]: {"n": 6}})
    sinks.paused(one, False)
    sinks.settle()
    # Three of them may have been read before.
    assert len(sinks.received.results) - before in (5, 8)
    assert len({(r.partition, r.epoch) for r in sinks.received.results}) == PARTITIONS + 1


def test_what_comes_after_a_cluster_has_lost_everything_is_newer_than_what_came_before(sinks):
    one, _ = sinks.start(), sinks.start()
    sinks.put(100)
    sinks.settle()
    sinks.kill(one)
    sinks.put(100)
    sinks.settle(30)
    sinks.time.advance(100)
    for partition in range(PARTITIONS):
        for name in ("gridscore.leases", "gridscore.sinks", MAP):
            sinks.cluster.regress(name, partition)
    sinks.time.advance(10)
    sinks.put(2_000)
    sinks.settle(60)
    # Who asks finds the sink again.
    assert [sink.name for sink in sinks.time.run(all_sinks(sinks.grid), sinks.user)] == ["sim"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_destination_comes_to_have_what_the_map_has(seed):
    # With a small ring, results are overwritten before they are read, and found in the map.
    sinks = Sinks(ring=10_000 if seed % 2 else 40, seed=seed)
    draw = sinks.random
    try:
        sinks.start()
        for _ in range(25):
            names = list(sinks.processes)
            act = draw.choice(["put", "put", "start", "stop", "kill", "pause", "hang", "abort", "wait"])
            if act == "put":
                sinks.put(draw.randrange(1, 120))
            elif act == "start" and len(names) < 4:
                sinks.start()
            elif act == "stop" and names:
                sinks.stop(draw.choice(names))
            elif act == "kill" and names:
                sinks.kill(draw.choice(names))
            elif act == "pause" and names:
                sinks.paused(draw.choice(names), True)
            elif act == "hang" and names:
                sinks.cluster.hang(draw.choice(names))
            elif act == "abort":
                sinks.received.then(None, ABORT(after=draw.randrange(5)))
            sinks.time.advance(draw.choice([0.0, 0.01, 0.5, 3.0, 12.0]))
            if draw.random() < 0.5:
                for name in sinks.processes:
                    sinks.paused(name, False)
                sinks.cluster.heal()
        for name in sinks.processes:
            sinks.paused(name, False)
        sinks.cluster.heal()
        sinks.received.faults.clear()
        sinks.start()
        sinks.settle(200)
    finally:
        sinks.close()
