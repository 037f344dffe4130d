"""A worker and its jobs: several that end at the same moment, whatever else happens meanwhile."""

import asyncio

import pytest
from hazelcast.errors import HazelcastError
from test_bad_records import JOB
from test_stub_grid import booster

from gridscore.job import parse_job
from gridscore.scoring.runner import JobRunner
from gridscore.testing import StubCluster


@pytest.mark.parametrize("meanwhile", ["replaced", "interrupted"])
async def test_jobs_that_end_together_do_not_end_the_worker(monkeypatch, meanwhile):
    leaving, go_on, stop = asyncio.Event(), asyncio.Event(), JobRunner._stop

    async def slowly(self):
        if self._job.name == "a":
            leaving.set()
            await go_on.wait()
        await stop(self)

    monkeypatch.setattr(JobRunner, "_stop", slowly)
    async with StubCluster(partitions=5) as cluster, asyncio.timeout(30):
        client = await cluster.client()
        await client.push_model(booster(), "payments", alias="champion")
        for name in ("a", "b"):
            text = JOB.replace("results.payments", f"results.{name}").replace("job: payments", f"job: {name}")
            await client.submit(parse_job(text, "test"))
        async with cluster.worker("w") as worker:
            while len(worker.runners) < 2 or not all(each.is_scoring for each in worker.runners.values()):
                await asyncio.sleep(0.01)
            # Given two jobs that are cancelled before the worker looks, of which one takes its time to leave
            look, gate = worker._jobs.all, asyncio.Event()

            async def all_jobs():
                await gate.wait()
                return await look()

            monkeypatch.setattr(worker._jobs, "all", all_jobs)
            await client.jobs.cancel("a")
            await client.jobs.cancel("b")
            runner = worker.runners["b"]
            gate.set()
            await leaving.wait()
            # When something befalls the other
            if meanwhile == "replaced":
                worker._replaced()
            else:
                runner.group._reader.fail(HazelcastError("as if a member had gone"))
            go_on.set()
            # Then both are gone, and the worker goes on
            while worker._ending or worker.runners:
                await asyncio.sleep(0.01)
            assert not worker._main.done()
