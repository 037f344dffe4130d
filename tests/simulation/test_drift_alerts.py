"""Alerts of drift in virtual time: they begin and end once, whoever is killed meanwhile."""

import asyncio
import json
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
from world import BOOSTER, JOB, World, _text

from gridscore.errors import GridError
from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.models.drift import DRIFT_MAP, drift_of
from gridscore.operations.drift import drift
from gridscore.operations.status import Observer
from gridscore.scoring import drift as watch
from gridscore.testing import Fault

DRIFT = JOB + "drift: {every: 1m, events: 100}\n"

pytestmark = pytest.mark.usefixtures("quiet")


class Drifting(World):
    """A world that notes what applications hear of alerts."""

    def __init__(self, job=DRIFT):
        self.heard = []
        super().__init__(8, ring=1_024, job=job)
        before = self.ledger.changed
        self.cluster.on_change = lambda *change: (self._hear(*change), before(*change))

    async def _prepare(self):
        amounts = np.random.default_rng(1).uniform(0, 1000, 5_000)
        model = BOOSTER.copy()
        offline_matrix(parse_job(DRIFT, "test"), pd.DataFrame({"amount": amounts})).attach(model)
        await self.client.push_model(model, "sim", alias="champion")
        await self.client.submit(parse_job(self.job, "simulation"))

    def draw_skew(self):
        return self.random.uniform(-10.0, 10.0)

    def _hear(self, map_name, _partition, change):
        if map_name == "alerts.sim":
            value = json.loads(_text(change.value))
            self.heard.append((value["feature"], value["measure"], value["state"]))

    def look(self):
        """At the job, twice: clocks differ, and records that change show who lives."""
        observer = Observer(self.grid, "sim")
        self.ask(observer.look())
        self.advance(3.0)
        return self.ask(observer.look()).jobs[0]

    def send(self, name, low, high, seconds):
        """Events for a time, in between."""
        for number in range(seconds // 10):
            amounts = self.random.uniform
            self.put({f"{name}-{number}-{n}": amounts(low, high) for n in range(40)})
            self.advance(10.0)


@pytest.fixture
def world():
    world = Drifting()
    yield world
    world.close()


KILLED = ["before it tells", "before it notes that it has told"]


@pytest.mark.parametrize("moment", [*KILLED, "paused before it tells"])
def test_alerts_begin_and_end_once_though_the_worker_that_tells_is_killed_or_paused(world, monkeypatch, moment):
    world.start(), world.start()
    world.settle()
    world.send("well", 0, 1000, 100)
    assert world.heard == []
    victims, look = [], watch.drift_of

    async def waits(*given):
        found = await look(*given)
        if not victims:
            victims.append(asyncio.get_running_loop().name)
            await asyncio.sleep(180.0)
        return found

    def dies(*_):
        victims.append(asyncio.get_running_loop().name)
        raise GridError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(
            watch, *{"before it tells": ("_tell", dies), KILLED[1]: ("_told", dies)}.get(moment, ("drift_of", waits))
        )
        for number in range(60):
            world.send(f"moved{number}", 900, 1000, 10)
            if victims:
                break
        if moment in KILLED:
            world.kill(victims[0])
    world.send("more", 900, 1000, 220)
    expected = {("amount", "psi"), ("log_amount", "psi"), ("<score>", "psi")}
    assert sorted(world.heard) == sorted((*each, "started") for each in expected)
    status = world.look()
    assert {(alert.feature, alert.measure) for alert in status.drift.active} == expected
    assert status.farthest[1] > 1.0
    found = world.ask(drift(world.grid, "sim"))
    (amount,) = [each for each in found["versions"][0]["window"]["features"] if each["feature"] == "amount"]
    assert sum(amount["live"][-3:]) > 0.9  # those from 850 on
    assert sum(amount["training"]) == pytest.approx(1.0, abs=1e-5)

    world.heard.clear()
    world.send("healed", 0, 1000, 220)
    assert sorted(world.heard) == sorted((*each, "ended") for each in expected)
    assert world.ask(drift(world.grid, "sim"))["alerts"] == []
    world.check()
    world.check_unhandled()


def test_a_model_without_a_baseline_says_so(world):
    world.ask(world.client.push_model(BOOSTER, "sim", alias="champion"))
    world.start()
    world.send("any", 0, 10, 60)
    status = world.look()
    assert status.drift_errors == ["version 2 has no baseline of its training"]
    assert status.drift is None


READ, WRITE = {"request": "Map.GetAll", "map": DRIFT_MAP}, {"request": "Map.ReplaceIfSame", "map": DRIFT_MAP}


class Then(Fault):
    """A fault that begins when another is over."""

    def __init__(self, before, *given, **more):
        super().__init__(*given, **more)
        self.before = before

    def matches(self, *request):
        return not self.before.times and super().matches(*request)


FAULTS = {
    "the record cannot be read": lambda: [Fault("timeout", **READ, times=3)],
    "it is written, and nobody knows": lambda: [
        written := Fault("timeout", **WRITE),
        Then(written, "timeout", **READ),
    ],
    "it is not written, and nobody knows": lambda: [
        lost := Fault("timeout", applied=False, **WRITE),
        Then(lost, "timeout", **READ),
    ],
    "it is written, and others write before that is known": lambda: [Fault("unacknowledged", **WRITE, times=8)],
}


@pytest.mark.parametrize("what", FAULTS)
def test_each_event_is_counted_once_whatever_becomes_of_the_requests_that_add_it(what):
    with closing(Drifting(DRIFT.replace("1m", "12h"))) as world:
        for _ in range(4):
            world.start()
        world.settle()
        world.send("before", 0, 1000, 40)
        faults = FAULTS[what]()
        world.cluster.faults += faults
        world.send("during", 0, 1000, 100)
        assert not any(fault.times for fault in faults)
        world.send("after", 0, 1000, 40)
        world.settle()
        world.advance(40.0)
        (watched,) = world.ask(drift_of(world.grid, "sim")).versions.values()
        assert watched.open.rows == len(world.acknowledged)
        world.check()
        world.check_unhandled()
