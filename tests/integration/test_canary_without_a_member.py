"""A canary whose steps wait for labels, on real members of which one is killed: all stays right."""

import asyncio
import json

import numpy as np
import pytest
import scoring
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from gridscore.grid.member import Cluster
from gridscore.models import outcomes as looks

LABELS = "labels: {{map: labels.{name}}}\nexperiment: {{steps: [30, 100], every: 1s, least: 20, least_labels: 100}}\n"


@pytest.fixture(scope="module")
def two_members():
    with Cluster.start(2, port=0, heap="512m", register=False) as started:
        yield started


async def test_a_step_waits_for_labels_and_a_member_that_is_killed_in_it_changes_nothing(
    two_members, unique, monkeypatch
):
    monkeypatch.setattr(looks, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(looks, "_RARE", 1)
    name, models = f"job-{unique}", {1: scoring.booster(), 2: scoring.booster(seed=1)}
    file = (scoring.JOB + LABELS).format(name=name, mode="copy")
    async with scoring.scoring(two_members, name, model=models[1], file=file) as (client, _):
        await client.push_model(models[2], name)
        bound = {"name": "log_loss", "at_most": 50.0}
        found = await client.start_experiment(name, 2, outcomes=[bound], wait=True)
        assert (found.steps, found.every, found.limits.least_labels) == ((30.0, 100.0), 1.0, 100)

        async def put(begin, count):
            events = scoring.events(count, begin)
            await client.put_events(f"events.{name}", events)
            return events

        async def label(events):
            labels = await client.grid.map(f"labels.{name}")
            for key in events:
                while True:
                    try:
                        await labels.set(key, HazelcastJsonValue(json.dumps({"label": len(key) % 2})))
                        break
                    except HazelcastError:  # so it may come twice
                        await asyncio.sleep(0.1)

        def theirs(events, step):
            whose = found.variants(found.draws([key.encode() for key in events]))
            return dict(zip(events, whose.tolist(), strict=True)) if step == 0 else dict.fromkeys(events, 1)

        async def are_right(events, step):
            made = await scoring.all_results(client, name, len(events))
            return all(
                made.get(key, {}).get("variant") == ("challenger" if one else "champion")
                for key, one in theirs(events, step).items()
            )

        before = await put(0, 1_500)
        await scoring.until(lambda: are_right(before, 0))
        await scoring.until(lambda: looked(client, name, 2))
        standing = (await client.experiment(name)).experiment
        assert (standing.step, standing.outcomes.labelled("challenger").all) == (0, 0)  # time and events, and no labels

        labelling = asyncio.create_task(label(before))
        await scoring.until(lambda: is_labelled(client, name, 20))
        await asyncio.to_thread(two_members.kill, 1)
        await labelling
        await scoring.until(lambda: has_step(client, name), seconds=180)
        after = await put(1_500, 500)
        await scoring.until(lambda: are_right(after, 1), seconds=180)
        number = (await client.experiment(name)).experiment.outcomes.number
        await scoring.until(lambda: looked(client, name, number + 2), seconds=180)

        labels = (await client.experiment(name)).experiment.outcomes
        whose = theirs(before, 0)
        assert labels.labelled("challenger").all == sum(whose.values())
        assert labels.labelled("champion").all == len(whose) - sum(whose.values())
        made = await scoring.all_results(client, name, 2_000)
        for version in (1, 2):
            keys = [key for key in made if made[key]["version"] == version]
            right = scoring.predict(models[version], scoring.expected_rows([(before | after)[key] for key in keys]))
            assert np.array([made[key]["score"] for key in keys], np.float32).tobytes() == right.tobytes()
        assert len(made) == 2_000
        await client.stop_experiment(name)


async def looked(client, name, number):
    return (await client.experiment(name)).experiment.outcomes.number >= number


async def is_labelled(client, name, count):
    return (await (await client.grid.map(f"labels.{name}")).size()) >= count


async def has_step(client, name):
    return (await client.experiment(name)).experiment.step == 1
