"""The replay: every event is put once, what is not scored stays below the ring, and every result is seen once."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gridscore.errors import GridError, GridscoreError
from gridscore.proving.demo import replay as module
from gridscore.proving.demo.replay import MAX_UNSCORED, Replay

PARTITIONS = 4


class Stage:
    """A cluster that keeps events until the test lets a worker score some of them."""

    def __init__(self, monkeypatch):
        self.partition_count = PARTITIONS
        self.is_running = True
        self.waiting = {partition: [] for partition in range(PARTITIONS)}
        self.most_waiting = 0
        self.put = []
        self.fails = False
        self.arrived = None
        monkeypatch.setattr(module, "MapWriter", lambda *_: self)
        monkeypatch.setattr(module, "listen", self.listen)
        monkeypatch.setattr(module, "partition_of", lambda data, count: int(data) % count)
        self.map_name = "events.test"

    async def map(self, _name):
        return self

    async def listen(self, _grid, _name, arrived):
        self.arrived = arrived
        return "registration"

    async def remove_entry_listener(self, _registration):
        return True

    def serialize_key(self, key):
        return key.encode()

    def put_partition(self, partition, keys, _texts):
        future = asyncio.get_running_loop().create_future()
        if self.fails:
            future.set_exception(module.HazelcastError("refused"))
            return future
        future.set_result(None)
        self.put += keys
        self.waiting[partition] += keys
        self.most_waiting = max(self.most_waiting, len(self.waiting[partition]))
        return future

    def score(self):
        """What a worker does: everything that waits gets its result."""
        for keys in self.waiting.values():
            for key in keys:
                self.result(key.decode())
            keys.clear()

    def result(self, key):
        text = json.dumps({"score": 0.5, "version": 7, "decision": "late", "more": key})
        self.arrived(SimpleNamespace(key=key, value=SimpleNamespace(to_string=lambda: text)))


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


def events(count):
    keys = [str(number) for number in range(count)]
    return keys, iter([(key, b"{}") for key in keys])


def test_every_event_is_put_once_in_order_and_scored(stage):
    async def main():
        keys, stream = events(5_000)
        replay = Replay(stage, "events.test", "results.test", keys, ring=10_000)
        await replay.run(stream, 0, stage.score)
        return replay

    replay = asyncio.run(main())
    assert sorted(stage.put, key=int) == [str(number).encode() for number in range(5_000)]
    assert replay.progress.put == replay.progress.scored == 5_000
    assert replay.progress.decisions == {"late": 5_000}
    assert replay.progress.repeated == 0
    assert (replay.scores == 0.5).all()
    assert (replay.latency >= 0).all()


def test_a_small_ring_is_never_more_than_half_full(stage):
    # Given rings of 40 events a partition, and a worker that scores only when somebody waits for it
    async def main():
        keys, stream = events(3_000)
        replay = Replay(stage, "events.test", "results.test", keys, ring=40)
        waited = set()

        def alive():
            if replay.progress.waiting:
                waited.add(replay.progress.waiting.split(":")[0])
            stage.score()

        await replay.run(stream, 0, alive)
        return replay, waited

    # When more is replayed than fits
    replay, waited = asyncio.run(main())
    # Then it has waited, and said so
    assert stage.most_waiting <= 20
    assert waited == {"waiting for the worker"}
    assert replay.progress.waited_seconds > 0
    assert replay.progress.scored == 3_000


def test_a_large_ring_is_not_filled_either(stage):
    async def main():
        keys, stream = events(3 * MAX_UNSCORED)
        replay = Replay(stage, "events.test", "results.test", keys, ring=10**9)
        most = 0

        def alive():
            nonlocal most
            most = max(most, replay.progress.lag)
            if replay.progress.waiting or replay.progress.put == len(keys):
                stage.score()

        await replay.run(stream, 0, alive)
        return most

    assert asyncio.run(main()) <= MAX_UNSCORED


def test_results_that_do_not_come_end_the_replay(stage, monkeypatch):
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)

    async def main():
        keys, stream = events(100)
        replay = Replay(stage, "events.test", "results.test", keys, ring=40)
        await replay.run(stream, 0, lambda: None)
        return replay

    replay = asyncio.run(main())
    assert replay.progress.scored == 0
    assert np.isnan(replay.scores).all()
    assert stage.most_waiting <= 20


def test_a_result_that_comes_again_is_counted_and_a_strange_one_is_not(stage):
    async def main():
        keys, stream = events(10)
        replay = Replay(stage, "events.test", "results.test", keys, ring=1_000)

        def alive():
            stage.score()
            if replay.progress.scored == 9:
                return
            if replay.progress.scored == 10:
                stage.result("3")
                stage.result("somebody else's")

        await replay.run(stream, 0, alive)
        stage.result("3")
        return replay

    replay = asyncio.run(main())
    assert replay.progress.scored == 10
    assert replay.progress.repeated >= 1


def test_a_put_that_fails_is_an_error_for_people(stage):
    stage.fails = True

    async def main():
        keys, stream = events(10)
        await Replay(stage, "events.test", "results.test", keys, ring=1_000).run(stream, 0, lambda: None)

    with pytest.raises(GridError, match=r"events\.test.*refused"):
        asyncio.run(main())


def test_a_worker_that_dies_ends_the_replay(stage):
    async def main():
        keys, stream = events(10)

        def alive():
            raise GridscoreError("The worker ended.")

        await Replay(stage, "events.test", "results.test", keys, ring=1_000).run(stream, 0, alive)

    with pytest.raises(GridscoreError, match="The worker ended"):
        asyncio.run(main())
