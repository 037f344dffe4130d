"""Maps that somebody destroys while the cluster goes on: what then is submitted, or still runs, has its results."""

from contextlib import asynccontextmanager

import pytest
from scoring import JOB, all_results, booster, customers, events, job, scoring, until

from gridscore.client import connect
from gridscore.grid import transport
from gridscore.grid.member import Cluster
from gridscore.grid.records import Records
from gridscore.group.lease_records import LEASES_MAP, read_records
from gridscore.scoring import Worker

SOON = 20.0
"""Seconds, less than those after which control maps are read though nothing was heard of a change."""


@pytest.fixture(scope="module")
def own():
    with Cluster.start(1, port=0, heap="512m", register=False) as cluster:
        yield cluster


@asynccontextmanager
async def connected(own):
    async with connect(members=own.addresses, cluster_name=own.cluster_name) as client:
        yield client


async def put_all(client, name, count=100):
    """All that a job needs, and its events, before any worker begins."""
    await client.put_events(f"lookups.{name}", customers())
    await client.push_model(booster(), name, alias="champion")
    await client.submit(job(name))
    await client.put_events(f"events.{name}", events(count))


async def destroy_all(own):
    """Destroy all maps that have a name, as somebody else's client does."""
    async with connected(own) as other:
        for name in await transport.map_names(other.grid.client):
            await (await other.grid.client.get_map(name)).destroy()


async def destroy(own, name):
    async with connected(own) as other:
        await (await other.grid.client.get_map(name)).destroy()


def is_scoring(worker, name):
    return name in worker.runners and worker.runners[name].is_scoring


async def committed(client, name, count):
    """Whether offsets cover so many events."""
    return sum(max(0, each.offset) for each in (await read_records(client.grid, name)).values()) >= count


async def test_a_job_that_is_submitted_again_after_all_maps_were_destroyed_scores_the_same_events(own, unique):
    """Its lease records outlive that, for their map has no name: their offsets say that all is done."""
    name = f"job-{unique}"
    for _ in range(2):
        async with connected(own) as client:
            await put_all(client, name)
            async with Worker(client.grid, [name]):
                await all_results(client, name, 100, SOON)
                await until(lambda client=client: committed(client, name, 100))
        await destroy_all(own)


async def test_a_worker_that_goes_on_takes_a_job_that_is_submitted_again_at_once(own, unique):
    name = f"job-{unique}"
    async with connected(own) as client, Worker(client.grid, [name]):
        for _ in range(3):
            await put_all(client, name)
            await all_results(client, name, 100, SOON)
            await destroy_all(own)


async def test_events_that_were_put_again_while_nobody_scored_have_results(own, unique):
    """The job's record, and its offsets, are those of before."""
    name = f"job-{unique}"
    async with connected(own) as client:
        await put_all(client, name)
        for _ in range(2):
            async with Worker(client.grid, [name]):
                await all_results(client, name, 100, SOON)
                await until(lambda: committed(client, name, 100))
            for map_name in (f"events.{name}", f"results.{name}"):
                await destroy(own, map_name)
            await client.put_events(f"events.{name}", events(100))


async def test_results_that_are_destroyed_come_back(own, unique):
    name = f"job-{unique}"
    async with scoring(own, name) as (client, worker):
        await client.put_events(f"events.{name}", events(100))
        before = await all_results(client, name, 100)
        for _ in range(2):
            await until(lambda: worker.runners[name].stats.rescans == 0)
            await destroy(own, f"results.{name}")
            after = await all_results(client, name, 100)
            assert {key: each["score"] for key, each in after.items()} == {
                key: each["score"] for key, each in before.items()
            }


async def test_events_that_are_destroyed_and_put_again_at_once_are_scored_again(own, unique):
    """Their journal is as long as before, with the same entries: nothing in it says that it is another one."""
    name = f"job-{unique}"
    async with scoring(own, name) as (client, worker):
        await client.put_events(f"events.{name}", events(100))
        await all_results(client, name, 100)
        stats = worker.runners[name].stats
        await until(lambda: stats.events >= 100)
        async with connected(own) as other:
            await (await other.grid.client.get_map(f"events.{name}")).destroy()
            await other.put_events(f"events.{name}", events(100))
        await until(lambda: stats.events >= 200, SOON)
        assert stats.regressions


async def test_a_job_that_began_at_the_latest_event_goes_on_after_its_leases_were_destroyed(own, unique):
    name = f"job-{unique}"
    file = JOB.format(name=name, mode="copy") + "start: latest\n"
    async with scoring(own, name, file=file) as (client, worker):
        await until(lambda: is_scoring(worker, name))
        await client.jobs.suspend(name)
        await until(lambda: not worker.runners)
        await client.jobs.resume(name)  # so that its epochs are not those of a beginner
        await until(lambda: is_scoring(worker, name))
        group = worker.runners[name].group
        await until(lambda: len(group.held) == client.grid.partition_count)
        await until(lambda: all(group.acknowledged_to(p) is not None for p in group.held))
        await client.put_events(f"events.{name}", events(100))
        await all_results(client, name, 100)
        await until(lambda: committed(client, name, 100))
        before = await read_records(client.grid, name)
        await destroy(own, LEASES_MAP)

        async def restored():
            there = await read_records(client.grid, name)
            return there if len(there) == client.grid.partition_count else None

        after = await until(restored, SOON)
        assert {p: (each.epoch, each.offset) for p, each in after.items()} == {
            p: (each.epoch, each.offset) for p, each in before.items()
        }
        await client.put_events(f"events.{name}", events(100, begin=100))
        assert len(await all_results(client, name, 200, SOON)) == 200
        assert worker.runners[name].stats.events == 200


async def test_who_watches_a_control_map_hears_of_changes_after_it_was_destroyed(own, unique):
    async with connected(own) as client:
        records, heard = Records(client.grid, f"gridscore.test-{unique}"), []
        stop = await records.watch(lambda: heard.append(1))
        await records.put("a", {})
        for _ in range(2):
            await until(lambda: heard)
            await destroy(own, records.map_name)
            heard.clear()
            await until(lambda: heard, SOON)  # that it is gone
            heard.clear()
            await records.put("a", {"b": 1})
        await until(lambda: heard, SOON)
        await stop()
        heard.clear()
        await records.put("a", {"b": 2})
        assert not heard


async def test_one_client_wipes_a_job_as_often_as_it_is_there(own, unique):
    name = f"job-{unique}"
    async with connected(own) as client:
        for _ in range(2):
            await put_all(client, name)
            async with Worker(client.grid, [name]):
                await all_results(client, name, 100, SOON)
                await client.cancel(name)
            await client.wipe(name, results=True, events=True, model=True)
            sizes = [await transport.map_size(client.grid.client, f"{each}.{name}") for each in ("events", "results")]
            assert sizes == [0, 0]
