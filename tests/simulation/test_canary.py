"""A canary in virtual time: steps, swaps of the champion and a worker that is killed, and every result is right."""

import functools
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import xgboost as xgb
from world import BOOSTER, World, _data, _entries, _text

from gridscore.models.experiment import shadow_map

STEPS, EVERY = (5.0, 25.0, 50.0, 100.0), 10.0

pytestmark = pytest.mark.usefixtures("quiet")


def trained(seed):
    rows = np.random.default_rng(seed).uniform(0, 1000, size=(400, 2)).astype(np.float32)
    matrix = xgb.DMatrix(rows, rows[:, 0] * seed + rows[:, 1], feature_names=["amount", "log_amount"])
    return xgb.train({"objective": "reg:squarederror", "max_depth": 4, "eta": 1.0, "nthread": 1}, matrix, 3)


@functools.cache
def boosters():
    return {1: BOOSTER, 2: trained(5), 3: trained(7)}


@functools.cache
def right(version, amount):
    row = np.array([[amount, np.log1p(amount)]], np.float32)
    return boosters()[version].predict(xgb.DMatrix(row, feature_names=["amount", "log_amount"]))[0]


class Book:
    """Every result that was written, with the step of the experiment at that moment."""

    def __init__(self, world):
        self._world, self._ledger = world, world.ledger.changed
        self.step, self.stepped_at, self.steps = -1, 0.0, []
        self.wrong, self.made = [], Counter()
        self.found = None
        world.cluster.on_change = self.changed

    def changed(self, map_name, partition, change):
        self._ledger(map_name, partition, change)
        if map_name == "gridscore.experiments" and change.value is not None:
            step = json.loads(_text(change.value))["step"]
            if step != self.step:
                self.step, self.stepped_at = step, self._world.time.now
                self.steps.append(self._world.time.now)
        if map_name == "results.sim" and change.value is not None and self.found is not None:
            self._check(_text(change.key), json.loads(_text(change.value)))

    def _check(self, key, result):
        (draw,) = self.found.draws([key.encode()]).tolist()
        share = draw * 10_000 // 2**32 / 100
        variant, version = result.get("variant"), result["version"]
        self.made[variant, version, self.step] += 1
        theirs = share < STEPS[self.step]
        before = self.step and share < STEPS[self.step - 1]
        is_settled = self._world.time.now - self.stepped_at > 1.0
        allowed = {"challenger" if theirs else "champion"} | (set() if is_settled or before else {"champion"})
        if variant not in allowed or (version == 2) is not (variant == "challenger"):
            self.wrong.append((key, result, self.step, share))


def test_steps_swaps_and_a_kill_while_every_result_is_what_its_version_gives():
    world = World(8, ring=4_096)
    try:
        for version in (2, 3):
            world.ask(world.client.push_model(boosters()[version], "sim"))
        first, _ = world.start(), world.start()
        world.advance(10.0)
        book = Book(world)
        started = world.ask(world.client.start_experiment("sim", 2, steps=STEPS, every=EVERY, least=5))
        world.advance(2.0)
        book.found = started
        put, champions, done = 0, (3, 1), defaultdict(int)
        while book.step < len(STEPS) - 1 or world.time.now - book.stepped_at < 5.0:
            world.put({f"e{put + n}": float((put + n) % 997) for n in range(40)})
            put += 40
            world.advance(1.0)
            if done[book.step] < 2 and world.time.now - book.stepped_at > 3.0 * (1 + done[book.step]):
                world.ask(world.client.promote_model("sim", champions[done[book.step]]))
                done[book.step] += 1
            if book.step == 1 and first in world.workers:
                world.kill(first)
                world.start()
            assert put < 20_000, f"the canary stays at step {book.step}"
        world.advance(20.0)
        results = dict(_entries(world.cluster, "results.sim"))
        found = {key: json.loads(_text(results[_data(key)])) for key in world.acknowledged if _data(key) in results}
        assert len(found) == put  # nothing is lost
        for key, result in found.items():
            assert np.float32(result["score"]) == right(result["version"], world.acknowledged[key]), (key, result)
        assert not book.wrong, book.wrong[:3]
        assert {(variant, version) for variant, version, _ in book.made} == {
            ("champion", 1),
            ("champion", 3),
            ("challenger", 2),
        }
        assert all(
            EVERY <= after - before < EVERY + 10 for before, after in zip(book.steps, book.steps[1:], strict=False)
        )
        assert {variant for variant, _, step in book.made if step == 3} >= {"challenger"}
        world.check()
        world.check_unhandled()

        book.found = None
        standing = world.ask(world.client.promote_experiment("sim", why="all steps were well"))
        assert (standing.counts.of("challenger").behind, standing.counts.of("challenger").errors) == (0, 0)
        world.put({"last": 5.0})
        world.advance(5.0)
        last = json.loads(_text(dict(_entries(world.cluster, "results.sim"))[_data("last")]))
        assert (last["version"], "variant" in last) == (2, False)
        for name in ("gridscore.experiments", "gridscore.experiment-counts", shadow_map("results.sim")):
            assert _entries(world.cluster, name) == [], name
    finally:
        world.close()
