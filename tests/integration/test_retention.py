"""Retention: what is scored and old is removed, and nothing else, whatever is put meanwhile."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import scoring
from hazelcast.errors import HazelcastError

from gridscore.grid.writer import MapWriter
from gridscore.scoring import retention
from gridscore.scoring.retention import Retention


def keeping(name, retain):
    return scoring.job(name).model_copy(update={"retain": retain})


def of_worker(client, worker, job):
    group = worker.runners[job.name].group
    return Retention(client.grid, job, lambda: group.held, group.acknowledged_to, group.until)


@asynccontextmanager
async def scored(cluster, name, count=200, retain="1s"):
    """A worker that has scored some events, and its retention."""
    async with scoring.scoring(cluster, name) as (client, worker):
        await client.put_events(f"events.{name}", scoring.events(count))
        await scoring.all_results(client, name, count)
        await scoring.until(lambda: name in worker.runners)
        yield client, worker, of_worker(client, worker, keeping(name, retain))


async def keys_of(client, map_name):
    return set(await (await client.grid.map(map_name)).key_set())


async def test_what_is_scored_and_old_is_removed_and_dead_letters_stay(cluster, unique):
    name = f"job-{unique}"
    async with scored(cluster, name) as (client, worker, old):
        await client.put_events(f"events.{name}", {"bad": {"amount": "much", "user": "u1"}})

        async def only_the_letter_is_left():
            await old.round()
            return await keys_of(client, f"events.{name}") == {"bad"}

        await scoring.until(only_the_letter_is_left)
        assert old.removed == 200
        assert await keys_of(client, f"results.{name}") == set()
        # The journal has gone on, and so has the worker: what comes now is scored, and nothing was lost.
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        assert worker.runners[name].stats.lost == 0


async def test_what_is_not_old_stays(cluster, unique):
    async with scored(cluster, f"job-{unique}", 20, "1h") as (_, _, old):
        assert await old.round() == 0


async def test_a_job_that_retains_all_has_nothing_to_do(cluster, unique):
    async with scored(cluster, f"job-{unique}", 1, "all") as (_, _, old):
        await old.run()


async def test_partitions_that_are_not_held_are_left_alone(cluster, unique):
    name = f"job-{unique}"
    async with scored(cluster, name, 20) as (client, _, _):
        other = Retention(client.grid, keeping(name, "1s"), set, lambda _: None, lambda _: float("-inf"))
        assert await other.round() == 0


@pytest.fixture
def always_old(monkeypatch):
    """Every result counts as old."""
    monkeypatch.setattr(retention, "_is_old", lambda _value, _cutoff: True)


@pytest.mark.usefixtures("always_old")
@pytest.mark.parametrize("when", ["_scored_past", "_rejected", "_remove_same"])
async def test_an_event_that_is_put_meanwhile_is_not_removed(cluster, unique, monkeypatch, when):
    name = f"job-{unique}"
    async with scored(cluster, name, 1, "1h") as (client, _, old):
        real = getattr(old, when)
        newer = {"e0": {"amount": 5.5, "user": "u7", "country": "FR"}}

        async def with_a_put(*arguments):
            monkeypatch.setattr(old, when, real)
            await client.put_events(f"events.{name}", newer)
            return await real(*arguments)

        monkeypatch.setattr(old, when, with_a_put)
        await old.round()
        assert await client.result(f"events.{name}", "e0") == newer["e0"]

        async def scored_again():
            result = await client.result(f"results.{name}", "e0")
            return result is not None and result["user"] == "u7"

        await scoring.until(scored_again)


@pytest.mark.usefixtures("always_old")
async def test_a_newer_version_that_became_a_dead_letter_stays(cluster, unique, monkeypatch):
    name = f"job-{unique}"
    async with scored(cluster, name, 3, "1h") as (client, _, old):
        real = retention.values_of
        bad = {"e1": {"amount": "much", "user": "u1"}}

        async def with_a_bad_put(grid, map_name, *arguments):
            if map_name == f"events.{name}":
                monkeypatch.setattr(retention, "values_of", real)
                await client.put_events(f"events.{name}", bad)
            return await real(grid, map_name, *arguments)

        monkeypatch.setattr(retention, "values_of", with_a_bad_put)
        await old.round()
        assert await client.result(f"events.{name}", "e1") == bad["e1"]


@pytest.mark.usefixtures("always_old")
async def test_events_stay_while_another_job_wants_them(cluster, unique):
    name, second = f"job-{unique}", f"second-{unique}"
    async with scored(cluster, name, 20, "1h") as (client, _, old):
        other = scoring.job(name).model_copy(update={"name": second, "results": f"results.{second}"})
        await client.submit(other)
        assert await old.round() == 0  # it retains all
        await client.submit(other.model_copy(update={"retain": "1h"}), update=True)
        assert await old.round() == 0  # it has not scored them
        await client.cancel(second)
        assert await old.round() == 20


@pytest.mark.usefixtures("always_old")
async def test_a_result_without_its_event_is_removed(cluster, unique):
    name = f"job-{unique}"
    async with scored(cluster, name, 5, "1h") as (client, _, old):
        await (await client.grid.map(f"events.{name}")).delete("e2")
        assert await old.round() == 4
        assert await keys_of(client, f"results.{name}") == set()


async def test_it_goes_on_after_the_cluster_did_not_answer(cluster, unique, monkeypatch, caplog):
    name = f"job-{unique}"
    async with scored(cluster, name, 5, "1s") as (client, _, old):
        real = old.round

        async def fails():
            monkeypatch.setattr(old, "round", real)
            raise HazelcastError("no answer")

        monkeypatch.setattr(old, "round", fails)
        task = asyncio.create_task(old.run())
        events = await client.grid.map(f"events.{name}")
        await scoring.until(lambda: _is_empty(events))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "removing old events failed, trying again: no answer" in caplog.text


async def _is_empty(proxy):
    return await proxy.size() == 0


@pytest.mark.usefixtures("always_old")
async def test_nothing_is_removed_once_the_lease_no_longer_stands(cluster, unique, monkeypatch):
    name = f"job-{unique}"
    async with scored(cluster, name, 20, "1h") as (client, worker, old):
        # The loop comes too late: what is held by name is not held any more by the clock.
        monkeypatch.setattr(old, "_until", lambda partition: worker.runners[name].group.until(partition) - 60.0)
        assert await old.round() == 0
        assert len(await keys_of(client, f"events.{name}")) == len(await keys_of(client, f"results.{name}")) == 20


async def test_what_is_none_of_our_results_stays(cluster, unique):
    name = f"job-{unique}"
    async with scored(cluster, name, 0) as (client, _, old):
        await MapWriter(client.grid, f"results.{name}").put([("foreign", json.dumps({"score": 1}).encode())])
        assert await old.round() == 0
        assert await keys_of(client, f"results.{name}") == {"foreign"}


def test_it_takes_more_time_while_it_does_not_keep_up(caplog):
    class Nothing:
        clock = client = parked_reads = None

    old = Retention(Nothing(), scoring.job("job"), set, lambda _: None, lambda _: 0.0)
    shares = []
    for behind in (True, True, True, False, False, False):
        old._keep_up(behind)
        shares.append(old._share)
    assert shares == [0.4, 0.8, 0.8, 0.4, 0.2, 0.2]
    assert "start more workers" in caplog.text
