"""The way of an event, from the event map to the result map, on a real member."""

import asyncio
import base64

import numpy as np
import pandas as pd
import pytest
import scoring
import xgboost as xgb
from hazelcast.core import HazelcastJsonValue

from gridscore.client import connect
from gridscore.dead_letters.letters import list_letters
from gridscore.errors import JobError, ModelMismatchError
from gridscore.features import offline_matrix
from gridscore.group.lease_records import read_records
from gridscore.job import JobState, parse_job
from gridscore.models import loaded_from
from gridscore.operations.status import job_status
from gridscore.scoring import Worker


@pytest.mark.parametrize("mode", ["copy", "fetch"])
async def test_every_event_has_one_result_with_the_score_of_the_model(cluster, unique, mode):
    name, model = f"job-{unique}", scoring.booster()
    async with scoring.scoring(cluster, name, mode=mode, model=model) as (client, _):
        events = scoring.events(3000)
        await client.put_events(f"events.{name}", events)
        results = await scoring.all_results(client, name, 3000)

        async def quality():
            found = (await job_status(client.grid, await client.jobs.get(name))).quality
            return found if found.events else None

        shares = (await scoring.until(quality)).shares()

    assert results.keys() == events.keys()
    # Ten users of sixty have no entry.
    assert 0.1 < shares["lookup_misses"]["customer"] < 0.25
    assert shares["missing_values"].keys() == {"age", "share"}
    expected = scoring.predict(model, scoring.expected_rows(events.values()))
    got = np.array([results[key]["score"] for key in events], dtype=np.float32)
    assert got.tobytes() == expected.astype(np.float32).tobytes()
    one = results["e7"]
    assert (one["user"], one["country"], one["version"], one["model"], one["revision"]) == ("u7", "FR", 1, name, 1)


@pytest.mark.parametrize("mode", ["copy", "fetch"])
async def test_decisions_by_conditions_are_those_of_the_history(cluster, unique, mode):
    name, model = f"job-{unique}", scoring.booster()
    text = scoring.JOB.format(name=name, mode=mode).replace(
        "  age: customer.age\n  share: amount / customer.limit\n", ""
    )
    model = scoring.booster(("amount", "log_amount", "home"))
    text += "decisions:\n  - {decision: call, when: score > 0.5 and (customer.age > 60 or home == 1)}\n"
    text += "  - {decision: wait, when: customer.limit is None}\n  - {decision: none}\n"
    events = scoring.events(1000)
    async with scoring.scoring(cluster, name, mode=mode, model=model, file=text) as (client, _):
        await client.put_events(f"events.{name}", events)
        results = await scoring.all_results(client, name, 1000)

    people = pd.DataFrame.from_dict(scoring.customers(), orient="index").reset_index(names="user")
    version, loaded = loaded_from(model, name)
    history = pd.DataFrame(list(events.values()))
    offline = offline_matrix(
        parse_job(text, "test"), history, {"customer": people}, version.categories, score=loaded.predict
    ).kept
    assert [results[key]["decision"] for key in events] == offline["decision"].tolist()
    assert set(offline["decision"]) == {"call", "wait", "none"}
    got = np.array([results[key]["score"] for key in events], dtype=np.float32)
    assert got.tobytes() == offline["score"].to_numpy().tobytes()


SHOP = """\
job: {name}
events: events.{name}
order_by: at
schema:
  at: timestamp
  user: string
  device.os: string?
  order.items: [{{price: float?, sku: string}}]
lookups:
  customer: {{map: lookups.{name}, key: user, fields: {{limit: float, since: timestamp}}, valid_from: since}}
features:
  os: case(device.os == "linux", 2, regex(device.os, "(?i)^win"), 1)
  total: sum(order.items.price)
  items: len(order.items)
  first: hash(order.items[0].sku, 100)
  share: sum(order.items.price) / customer.limit
model: {{name: {name}, alias: champion}}
classes: [0, 1, 2]
results: results.{name}
result: {{features: all}}
"""


async def test_what_was_served_is_what_a_history_gives(cluster, unique):
    """Nested fields, arrays, patterns, a lookup as of the event's time, classes by name, and features in results."""
    name, draw = f"job-{unique}", np.random.default_rng(3)
    rows = [
        {
            "at": "2026-01-31T12:00:00Z",
            "user": f"u{n % 7}",
            "device": [{"os": "linux"}, {"os": "Windows 11"}, None][n % 3],
            "order": {
                "items": [
                    {"price": None if price > 9 else round(price, 2), "sku": f"s{price:.0f}"}
                    for price in draw.uniform(0, 10, n % 4).tolist()
                ]
            },
        }
        for n in range(300)
    ]
    job = parse_job(SHOP.format(name=name), "test")
    people = pd.DataFrame(
        [(f"u{n}", limit, since) for n in range(6) for limit, since in ((1.5 + n, "2026-01-01"), (7.0, "2025-01-01"))],
        columns=["user", "limit", "since"],
    ).assign(since=lambda frame: frame["since"] + "T00:00:00Z")
    offline = offline_matrix(job, pd.json_normalize(rows, max_level=1), {"customer": people})
    data = xgb.DMatrix(np.asarray(offline.values), np.arange(300) % 3, feature_names=list(job.feature_names))
    model = xgb.train({"objective": "multi:softmax", "num_class": 3, "nthread": 1}, data, 5)
    offline.attach(model)
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        now = people[people["since"] > "2026"].to_dict("records")
        await client.put_events(f"lookups.{name}", {row.pop("user"): row for row in now})
        await client.push_model(model, name, alias="champion")
        await client.submit(job)
        async with Worker(client.grid, [name]):
            await client.put_events(f"events.{name}", {f"e{n}": row for n, row in enumerate(rows)})
            results = await scoring.all_results(client, name, 300)

    served = [[results[f"e{n}"]["features"][feature] for feature in job.feature_names] for n in range(300)]
    assert np.array(served, np.float32).tobytes() == np.asarray(offline.values).tobytes()
    labels = [str(int(score)) for score in model.predict(data)]
    assert [results[f"e{n}"]["label"] for n in range(300)] == labels
    assert set(labels) == {"0", "1", "2"}


async def test_results_are_seen_by_a_listener(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        async with await client.results(f"results.{name}") as stream:
            await client.put_events(f"events.{name}", scoring.events(200))
            seen = {}
            async with asyncio.timeout(30):
                async for result in stream:
                    assert result.key not in seen
                    seen[result.key] = result.score
                    if len(seen) == 200:
                        break
        assert all(0 <= score <= 1 for score in seen.values())


async def test_bad_events_become_dead_letters_and_harm_nobody(cluster, unique):
    name, model = f"job-{unique}", scoring.booster()
    async with scoring.scoring(cluster, name, model=model) as (client, _):
        proxy = await client.grid.map(f"events.{name}")
        good = scoring.events(300)
        bad = {
            "not-json": HazelcastJsonValue("{oops"),
            "wrong-type": HazelcastJsonValue('{"amount": "ten", "user": "u1"}'),
            "missing": HazelcastJsonValue('{"amount": 1}'),
            "list": HazelcastJsonValue("[1, 2]"),
            "number": 42,
        }
        async with asyncio.TaskGroup() as group:
            for key, value in bad.items():
                group.create_task(proxy.put(key, value))
            group.create_task(client.put_events(f"events.{name}", good))
        results = await scoring.all_results(client, name, 300)

        async def letters():
            found = await list_letters(client.grid, name, 100)
            return found if found[0] == len(bad) else None

        _, found = await scoring.until(letters)

    assert results.keys() == good.keys()
    expected = scoring.predict(model, scoring.expected_rows(good.values()))
    assert np.array([results[key]["score"] for key in good], dtype=np.float32).tobytes() == expected.tobytes()
    by_key = {dead.key: dead for _, dead in found}
    assert by_key.keys() == bad.keys()
    assert base64.b64decode(by_key["not-json"].raw) == b"{oops"
    assert "amount" in by_key["wrong-type"].error
    assert "user" in by_key["missing"].error
    assert "of Hazelcast type" in by_key["number"].error
    assert all(dead.stage == "decode" for _, dead in found)


async def test_a_worker_goes_on_from_the_committed_offsets(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(500))
        await scoring.all_results(client, name, 500)

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        records = await read_records(client.grid, name)
        assert sum(record.offset for record in records.values()) == 500
        assert all(record.owner == "" for record in records.values())
        proxy = await client.grid.map(f"results.{name}")
        await proxy.clear()
        await client.put_events(f"events.{name}", scoring.events(100, begin=500))
        async with Worker(client.grid, [name]):
            results = await scoring.all_results(client, name, 100)
    assert results.keys() == scoring.events(100, begin=500).keys()


async def test_a_promoted_version_is_live_without_losing_an_event(cluster, unique):
    name = f"job-{unique}"
    first, second = scoring.booster(seed=1), scoring.booster(seed=2)
    async with scoring.scoring(cluster, name, model=first) as (client, _):
        total, done = 4000, asyncio.Event()

        async def produce():
            for begin in range(0, total, 100):
                await client.put_events(f"events.{name}", scoring.events(100, begin=begin))
            done.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            await client.push_model(second, name)
            await client.promote_model(name, 2)
        began = asyncio.get_running_loop().time()

        async def live():
            await client.put_events(f"events.{name}", {"probe": {"amount": 1.0, "user": "u1"}})
            result = await client.result(f"results.{name}", "probe")
            return result is not None and result["version"] == 2

        await scoring.until(live, 5)
        assert asyncio.get_running_loop().time() - began < 5
        results = await scoring.all_results(client, name, total + 1)

    events = scoring.events(total)
    rows = scoring.expected_rows(events.values())
    scores = {1: scoring.predict(first, rows), 2: scoring.predict(second, rows)}
    for i, key in enumerate(events):
        result = results[key]
        assert np.float32(result["score"]) == scores[result["version"]][i]


async def test_a_model_for_other_features_is_refused_everywhere(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        other = scoring.booster(names=("amount", "log_amount", "age", "share", "abroad"))
        with pytest.raises(ModelMismatchError, match="abroad"):
            await client.push_model(other, name, alias="champion")
        version = await client.push_model(other, name)
        with pytest.raises(ModelMismatchError, match="home"):
            await client.promote_model(name, version.version)


async def test_lookups_are_kept_current(cluster, unique):
    name, model = f"job-{unique}", scoring.booster()
    async with scoring.scoring(cluster, name, model=model) as (client, _):
        event = {"amount": 10.0, "user": "fresh", "country": "DE"}
        await client.put_events(f"events.{name}", {"before": event})
        results = await scoring.all_results(client, name, 1)
        rows = np.array([[10.0, np.log1p(10.0), np.nan, np.nan, 1.0]], dtype=np.float32)
        assert np.float32(results["before"]["score"]) == scoring.predict(model, rows)[0]

        await client.put_events(f"lookups.{name}", {"fresh": {"age": 44.0, "limit": 20.0}})
        rows = np.array([[10.0, np.log1p(10.0), 44.0, 0.5, 1.0]], dtype=np.float32)
        wanted = scoring.predict(model, rows)[0]

        async def current():
            await client.put_events(f"events.{name}", {"after": event})
            result = await client.result(f"results.{name}", "after")
            return result is not None and np.float32(result["score"]) == wanted

        await scoring.until(current)


async def test_suspend_keeps_the_place_and_resume_goes_on(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        await client.put_events(f"events.{name}", scoring.events(50, begin=50))
        assert await (await client.grid.map(f"results.{name}")).size() == 50

        await client.jobs.resume(name)
        await scoring.all_results(client, name, 100)
        await client.cancel(name)
        await scoring.until(lambda: not worker.runners)
        with pytest.raises(JobError, match=r"CANCELLED: it cannot resume"):
            await client.jobs.resume(name)


async def test_a_job_that_cannot_run_says_why(cluster, unique):
    name = f"job-{unique}"
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(scoring.booster(), name, alias="champion")
        await client.submit(scoring.job(name))
        await (await client.grid.map(f"lookups.{name}")).destroy()

        async def failed():
            record = await client.jobs.get(name)
            return record if record.state == JobState.FAILED else None

        async with Worker(client.grid, [name]):
            record = await scoring.until(failed)
    assert f"lookup map `lookups.{name}` does not exist" in record.error


async def test_two_workers_do_not_score_the_same_partition(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, first):
        everything = client.grid.partition_count
        await scoring.until(lambda: first.runners and len(first.runners[name].group.held) == everything)
        async with Worker(client.grid, [name]) as second:
            await scoring.until(lambda: second.runners)
            await client.put_events(f"events.{name}", scoring.events(300))
            await scoring.all_results(client, name, 300)
            assert second.runners[name].stats.events == 0
            await client.jobs.suspend(name)
            await scoring.until(lambda: not first.runners and not second.runners)
            await client.jobs.resume(name)
            await client.put_events(f"events.{name}", scoring.events(300, begin=300))
            await scoring.all_results(client, name, 600)
