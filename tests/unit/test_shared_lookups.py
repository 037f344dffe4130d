"""Copies of lookup maps are a process's, and not a job's: jobs that want the same of a map share one."""

import asyncio

from gridscore.job import parse_job
from gridscore.testing import StubCluster

JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float, user: string}}
lookups:
  customer: {{map: lookups.people, key: user, fields: {{limit: {kind}}}}}
features: {{amount: amount, limit: customer.limit}}
model: none
results: results.{name}
"""
PARTITIONS = 8


async def copied(worker, count):
    async with asyncio.timeout(10):
        while len(shared := [c for r in worker.runners.values() for c in r._copies.values() if c.copy.loads]) < count:
            await asyncio.sleep(0.01)
    return shared


async def test_jobs_that_want_the_same_of_a_map_share_its_copy_and_others_have_their_own():
    async with StubCluster(partitions=PARTITIONS) as cluster:
        client = await cluster.client()
        await client.put_events("lookups.people", {f"u{number}": {"limit": 5} for number in range(20)})
        for name, kind in (("one", "float"), ("two", "float"), ("three", "float"), ("other", "int")):
            await client.jobs.submit(parse_job(JOB.format(name=name, kind=kind), "test"))
        before = cluster.requests["Map.FetchEntries"]
        async with cluster.worker() as worker:
            shared = await copied(worker, 4)
            assert len(set(shared)) == 2
            assert sorted(each.users for each in set(shared)) == [1, 3]
            assert all(len(each.table) == 20 for each in shared)
            assert cluster.requests["Map.FetchEntries"] - before == 2 * PARTITIONS

            (stays,) = {each for each in shared if each.users == 3}
            # Who goes takes no copy away from those who stay; the last one ends it.
            await client.put_events("lookups.people", {"new": {"limit": 6}})
            for name in ("one", "two"):
                await client.jobs.suspend(name)
            async with asyncio.timeout(10):
                while stays.users > 1 or len(stays.table) < 21:
                    await asyncio.sleep(0.01)
            await client.jobs.suspend("three")
            async with asyncio.timeout(10):
                while stays.users or stays.copy._task is not None:
                    await asyncio.sleep(0.01)
