"""Labels end an experiment in virtual time, and it is told once, whoever is killed meanwhile."""

import asyncio
import json
from contextlib import closing

import numpy as np
import pytest
from hazelcast.core import HazelcastJsonValue
from test_canary import boosters, right
from world import JOB, World, _data, _entries, _text

from gridscore.grid.records import Records
from gridscore.models.variants import VARIANTS
from gridscore.scoring import outcomes
from gridscore.scoring.live_experiment import LiveExperiment

LABELLED = JOB + "labels: {map: labels.sim}\n"
WORSE = {"outcomes": [{"name": "rmse", "worse_by": 50.0}], "least_labels": 60, "least": 5}

pytestmark = pytest.mark.usefixtures("quiet")


class Labelled(World):
    """A world with three versions, whose labels are what the first one says, and come late."""

    def __init__(self):
        self.alerts = []
        self.put_so_far = 0
        super().__init__(8, ring=4_096, job=LABELLED)
        before = self.ledger.changed
        self.cluster.on_change = lambda *change: (self._hear(*change), before(*change))

    def _hear(self, map_name, _partition, change):
        if map_name == "alerts.sim" and change.value is not None:
            self.alerts.append(json.loads(_text(change.value)))

    async def _prepare(self):
        await super()._prepare()
        for version in (2, 3):
            await self.client.push_model(boosters()[version], "sim")

    def some(self, count, *, labelled=True):
        """Events for a second, and the labels of those of twenty seconds ago, some of them twice."""
        names = [f"e{self.put_so_far + n}" for n in range(count)]
        self.put_so_far += count
        self.put({name: float(int(name[1:]) % 997) for name in names})
        old = [name for name in self.acknowledged if int(name[1:]) < self.put_so_far - 20 * count]
        if labelled:
            for name in (*old[-count:], *old[-2:]):
                self.ask(self._label(name))
        self.advance(1.0)

    async def _label(self, name):
        await (await self.grid.map("labels.sim")).set(name, HazelcastJsonValue(str(right(1, self.acknowledged[name]))))

    def standing(self):
        return self.ask(self.client.experiment("sim"))

    def results(self):
        found = dict(_entries(self.cluster, "results.sim"))
        return {name: json.loads(_text(found[_data(name)])) for name in self.acknowledged if _data(name) in found}


def test_the_worker_that_looks_and_the_one_that_ends_it_are_killed_and_it_is_told_once(monkeypatch):
    hung, tell = [], LiveExperiment._tell

    async def hang_once(self, found, members):
        if any(not each.told for each in found.challengers) and not hung:
            hung.append(members.worker)
            await asyncio.Event().wait()  # killed right after its compare-and-set
        await tell(self, found, members)

    monkeypatch.setattr(LiveExperiment, "_tell", hang_once)
    monkeypatch.setattr(
        outcomes, "moment_seconds", lambda _text: 0.0
    )  # records have the machine's time, results virtual
    with closing(Labelled()) as world:
        first, _, _ = world.start(), world.start(), world.start()
        world.advance(10.0)
        found = world.ask(world.client.start_experiment("sim", 2, steps=[40, 100], every=5.0, **WORSE))
        killed = False
        for _ in range(150):
            world.some(20)
            if not killed and world.standing().experiment.outcomes.number == 1:
                world.kill(first)  # whose name is the first: it looks at labels
                killed = True
            if hung and hung[0] in world.workers:
                world.kill(hung[0])
            if world.standing().experiment.challengers[0].told is True and hung:
                break
        else:
            pytest.fail(f"not told: {world.standing().text} {world.standing().experiment}")
        assert killed
        standing = world.standing().experiment
        assert (standing.state, standing.step) == (
            "ended",
            0,
        )  # no labels, no step
        assert "the bound is at most 50 worse than the champion's" in standing.why
        log = [each for each in world.ask(world.client.models.log("sim")) if each.action == "experiment end"]
        assert [(each.version, each.why) for each in log] == [(2, standing.why)]
        assert [(each["state"], each["why"]) for each in world.alerts] == [("started", standing.why)]
        world.some(20, labelled=False)
        world.advance(10.0)
        made = world.results()
        assert len(made) == world.put_so_far  # nothing is lost
        for name, result in made.items():
            assert np.float32(result["score"]) == right(result["version"], world.acknowledged[name])
        last = [made[f"e{world.put_so_far - 1 - n}"] for n in range(20)]
        assert {(each["version"], each.get("variant")) for each in last} == {(1, None)}
        world.ask(world.client.stop_experiment("sim"))
        assert [each["state"] for each in world.alerts] == ["started", "ended"]
        assert found.id == standing.id
        world.check()
        world.check_unhandled()


async def vanish(world, version):
    """Somebody deletes the bytes of a version."""
    record = (await Records(world.grid, "gridscore.models").get("sim")).value
    upload = record["versions"][str(version)]["upload"]
    chunks = await world.grid.map("gridscore.model-chunks")
    for key in await chunks.key_set():
        if str(key).startswith(f"sim/{upload}/"):
            await chunks.delete(key)


def test_of_two_challengers_the_one_whose_model_is_gone_is_the_champions_and_the_other_goes_on():
    with closing(Labelled()) as world:
        first = world.start()
        world.advance(10.0)
        found = world.ask(world.client.start_experiment("sim", 2, 3, split=30, least=5, max_psi=500.0))
        for _ in range(5):
            world.some(40)

        world.ask(vanish(world, 3))
        world.kill(first)
        world.start()
        world.advance(30.0)
        begun = world.put_so_far
        for _ in range(5):
            world.some(40)
        world.advance(5.0)
        made = world.results()
        draws = found.variants(found.draws([name.encode() for name in made])).tolist()
        for (name, result), number in zip(made.items(), draws, strict=True):
            if int(name[1:]) < begun:
                continue
            who = 0 if number == 2 else number
            assert (result["variant"], result["version"]) == (VARIANTS[who], who + 1)
            assert np.float32(result["score"]) == right(result["version"], world.acknowledged[name])
        counts = world.standing().counts
        assert counts.of("challenger-2").behind > 0
        assert counts.of("challenger-2").error
        assert not counts.of("challenger").error
        assert world.standing().experiment.state == "running"
        world.check()
        world.check_unhandled()
