"""What tests of scoring share: a small job, its model, its data, and a client with a worker."""

import asyncio
import sys
from contextlib import asynccontextmanager

import numpy as np
import xgboost as xgb
from typer.testing import CliRunner

from gridscore.cli import _commands
from gridscore.client import connect
from gridscore.job import parse_job

JOB = """\
job: {name}
events: events.{name}
schema:
  amount: float
  user: string
  country: string?
lookups:
  customer:
    map: lookups.{name}
    key: user
    mode: {mode}
    fields: {{age: float?, limit: float?}}
features:
  amount: amount
  log_amount: log1p(amount)
  age: customer.age
  share: amount / customer.limit
  home: country == "DE"
model: {{name: {name}, alias: champion}}
results: results.{name}
result: {{include: [user, country]}}
"""


def job(name, mode="copy"):
    return parse_job(JOB.format(name=name, mode=mode), "test")


def booster(names=("amount", "log_amount", "age", "share", "home"), seed=0, trees=10):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(500, len(names))).astype(np.float32) * 50
    labels = (rows[:, 0] + rows[:, 2] + draw.normal(size=500) > 0).astype(int)
    matrix = xgb.DMatrix(rows, labels, feature_names=list(names))
    return xgb.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, matrix, trees)


def customers(count=50):
    return {f"u{i}": {"age": 20.0 + i, "limit": 100.0 * (i + 1)} for i in range(count)}


def events(count, begin=0):
    countries = ["DE", "FR", None]
    return {
        f"e{i}": {"amount": float(i % 97) + 0.25, "user": f"u{i % 60}", "country": countries[i % 3]}
        for i in range(begin, begin + count)
    }


def expected_rows(items):
    """The features of events, computed by hand."""
    people = customers()
    rows = []
    for event in items:
        person = people.get(event["user"], {"age": np.nan, "limit": np.nan})
        amount = event["amount"]
        rows.append(
            [amount, np.log1p(amount), person["age"], amount / person["limit"], float(event["country"] == "DE")]
        )
    return np.array(rows, dtype=np.float64).astype(np.float32)


def predict(model, rows):
    return model.predict(xgb.DMatrix(rows, feature_names=model.feature_names))


@asynccontextmanager
async def scoring(cluster, name, *, mode="copy", model=None, file=None, **worker):
    """A client, with the job submitted and a worker that scores for it; another job file, if it is given."""
    from gridscore.scoring import Worker

    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        await client.put_events(f"lookups.{name}", customers())
        await client.push_model(model or booster(), name, alias="champion")
        await client.submit(job(name, mode) if file is None else parse_job(file, "test"))
        async with Worker(client.grid, [name], **worker) as scorer:
            yield client, scorer


async def start_worker(cluster, name):
    """A worker process of one job, whose partitions are soon taken over when it is killed."""
    words = ("-m", "gridscore.cli", "worker", "--jobs", name, "--lease", "2", "--members", cluster.addresses[0])
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, "--cluster-name", cluster.cluster_name, stderr=asyncio.subprocess.DEVNULL
    )


async def all_results(client, name, count, seconds=90.0):
    """The result map, once it has as many entries as expected."""
    proxy = await client.grid.map(f"results.{name}")
    async with asyncio.timeout(seconds):
        while await proxy.size() < count:
            await asyncio.sleep(0.02)
    return {key: value.loads() for key, value in await proxy.entry_set()}


async def until(condition, seconds=90.0):
    """Wait for a condition, asynchronous or not, by looking at it."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)


async def command(cluster, *words):
    """What a command does and says, in this process."""
    arguments = [*words, "--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
    return await asyncio.to_thread(CliRunner().invoke, _commands(), arguments)
