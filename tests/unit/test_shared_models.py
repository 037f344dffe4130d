"""A loaded model is a process's, and not a job's: jobs that score with the same version share one."""

import asyncio
import gc
import weakref

import numpy as np
import xgboost as xgb

from gridscore.job import parse_job
from gridscore.models import LoadedModel
from gridscore.testing import StubCluster

JOB = """\
job: {name}
events: events.{name}
schema: {{amount: float}}
features: {{amount: amount}}
model: {{name: payments, {which}}}
results: results.{name}
"""


def booster(rounds):
    rows = np.linspace(0, 2, 200, dtype=np.float32).reshape(-1, 1)
    matrix = xgb.DMatrix(rows, (rows[:, 0] > 1).astype(int), feature_names=["amount"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, rounds)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_jobs_that_score_with_the_same_version_share_one_that_goes_with_the_last_of_them(monkeypatch):
    loads, load = [], LoadedModel.load
    monkeypatch.setattr(
        LoadedModel, "load", lambda version, payload: loads.append(str(version)) or load(version, payload)
    )
    async with StubCluster(partitions=8) as cluster:
        client = await cluster.client()
        await client.push_model(booster(3), "payments")
        await client.push_model(booster(5), "payments", alias="champion")
        jobs = {"one": "alias: champion", "two": "alias: champion", "pinned": "version: 2", "other": "version: 1"}
        for name, which in jobs.items():
            await client.jobs.submit(parse_job(JOB.format(name=name, which=which), "test"))
        async with cluster.worker() as worker:
            await until(lambda: [r.is_scoring for r in worker.runners.values()] == [True] * 4)
            assert sorted(loads) == ["payments v1", "payments v2"]
            active = {name: runner._model.active.model for name, runner in worker.runners.items()}
            assert active["one"] is active["two"] is active["pinned"] is not active["other"]

            gone = weakref.ref(active["other"])
            del active
            await client.jobs.suspend("other")
            await until(lambda: "other" not in worker.runners)
            await until(lambda: gc.collect() >= 0 and gone() is None)
            # It is loaded again for whoever comes next, and what others still score with is not.
            for name in ("one", "other"):
                await client.jobs.suspend(name)
                await client.jobs.resume(name)
            await until(lambda: [r.is_scoring for r in worker.runners.values()] == [True] * 4)
            assert sorted(loads) == ["payments v1", "payments v1", "payments v2"]


async def test_a_version_that_could_not_be_loaded_is_tried_again_for_whoever_asks_next(monkeypatch):
    load, failures = LoadedModel.load, [MemoryError("not now")]

    def fail_once(version, payload):
        if failures:
            raise failures.pop()
        return load(version, payload)

    monkeypatch.setattr(LoadedModel, "load", fail_once)
    async with StubCluster(partitions=8) as cluster:
        client = await cluster.client()
        await client.push_model(booster(3), "payments", alias="champion")
        await client.jobs.submit(parse_job(JOB.format(name="one", which="alias: champion"), "test"))
        async with cluster.worker() as worker:
            await until(lambda: [r.is_scoring for r in worker.runners.values()] == [True])
