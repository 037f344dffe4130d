"""What unit tests of the server share: one that listens, over a cluster in this process, with jobs and models."""

import asyncio
import functools
from contextlib import asynccontextmanager

import httpx
import numpy as np
import xgboost as xgb

from gridscore.job import parse_job
from gridscore.serve.server import Server
from gridscore.serve.settings import ServeSettings

SECONDS = 60
FEATURES = ("amount", "ratio", "age", "risk")
JOB = """\
job: cards
events: events.cards
schema: {amount: float, customer: string, merchant: string}
lookups:
  customer: {map: customers, key: customer, fields: {age: int, mean: float}}
  merchant: {map: merchants, key: merchant, fields: {risk: float}, mode: fetch}
features:
  amount: amount
  ratio: amount / customer.mean
  age: customer.age
  risk: merchant.risk
model: cards
decisions:
  - {decision: decline, at_least: 0.6}
  - {decision: approve}
results: results.cards
result: {include: [customer]}
"""
PLAIN = """\
job: plain
events: events.plain
schema: {amount: float}
features: {amount: amount}
model: plain
results: results.plain
"""


@functools.cache
def booster(rounds=5, features=FEATURES):
    random = np.random.default_rng(7)
    rows = random.uniform(0, 100, (300, len(features))).astype(np.float32)
    labels = (rows[:, 0] > 50).astype(int)
    matrix = xgb.DMatrix(rows, labels, feature_names=list(features))
    return xgb.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 3}, matrix, rounds)


async def prepared(cluster, *jobs):
    """A client of a cluster with lookups, models and submitted jobs."""
    gridscore = await cluster.client()
    await gridscore.put_events("customers", {f"c{n}": {"age": 20 + n, "mean": 10.0 + n} for n in range(20)})
    await gridscore.put_events("merchants", {f"m{n}": {"risk": n / 7} for n in range(20)})
    await gridscore.push_model(booster(), "cards", alias="champion")
    await gridscore.push_model(booster(features=("amount",)), "plain", alias="champion")
    for job in jobs:
        await gridscore.submit(parse_job(job, "test"))
    return gridscore


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(cluster, *ready, **settings):
    """A server that listens on a free port, once the named jobs score."""
    server = Server(await cluster.connect("server"), ServeSettings(port=0, **settings))
    task = asyncio.create_task(server.run())
    try:
        await until(lambda: task.done() or server.opened.is_set())
        if task.done():
            task.result()
        await until(lambda: server.jobs.is_known and not any(map(server.jobs.problem, ready)))
        yield server
    finally:
        server.stop()
        await task


def client(server, **options):
    return httpx.AsyncClient(base_url=server.http.address, timeout=SECONDS, **options)


def same(result):
    """What a result says of its event, without where and when it was made."""
    return {name: value for name, value in result.items() if name not in ("sequence", "epoch", "scored_at", "key")}
