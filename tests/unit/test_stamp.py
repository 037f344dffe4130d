"""The stamp of sources: a time in each event, so that windows have one though events bring none."""

import asyncio
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from test_stub_grid import place

from gridscore.features import offline_matrix
from gridscore.job import parse_job
from gridscore.sources.runner import SourceRunner
from gridscore.sources.stamp import Stamp
from gridscore.testing import StubCluster
from gridscore.testing.sources import Script

NOW = 1_700_000_000_123_456_789

JOB = """\
job: readings
events: events.readings
event_key: machine
order_by: received_at
lateness: none
schema: {machine: string, value: float, received_at: {type: timestamp, unit: ms}}
windows: {machine: machine}
features: {before: 'count(machine, last=100)', last: 'coalesce(last(value, machine), -1)'}
model: {name: readings, alias: champion}
results: results.readings
result: {features: all, include: [received_at]}
"""


@pytest.mark.parametrize("clock", [lambda: NOW, itertools.count(NOW, -1_000_000_000).__next__])
def test_each_event_has_a_later_time_though_the_clock_stands_or_goes_back(clock):
    stamp = Stamp("at", clock)
    first = stamp.on([("a", b'{"x": 1e400, "at": 3}'), ("gone", None), ("b", b"{}")])
    (last,) = stamp.on([("a", b'{"y":[1]}\n')])
    assert first[:2] == [("a", b'{"x":1e400,"at":1700000000123.456}'), ("gone", None)]
    assert [json.loads(text)["at"] for _, text in (first[2], last)] == [1700000000123.457, 1700000000123.458]


@pytest.mark.parametrize("text", [b"[1]", b"no JSON", b'{"a":', b"", b'{"a":' * 30_000])
def test_what_is_not_an_object_stays_as_it_is(text):
    assert Stamp("at").on([("k", text)]) == [("k", text)]


async def test_windows_of_events_without_a_time_have_them_in_the_order_of_arrival_and_offline_agrees():
    async with StubCluster(partitions=5) as cluster, asyncio.timeout(60):
        client = await cluster.client()
        rows = np.arange(80.0, dtype=np.float32).reshape(-1, 2)
        matrix = xgb.DMatrix(rows, rows[:, 0], feature_names=["before", "last"])
        await client.push_model(xgb.train({"nthread": 1}, matrix, 2), "readings", alias="champion")
        job = (await client.submit(parse_job(JOB, "test"))).job
        script = Script([*[("m", b'{"machine": "m", "value": %d}' % number) for number in range(40)], Script.EOF])
        found = []
        async with cluster.worker(), await client.results("results.readings") as stream:
            grid, stamp = await cluster.connect("source"), Stamp("received_at")
            await SourceRunner(grid, "s", script.source, kind="script", to=job.events, stamp=stamp).run()
            while len(found) < 40:
                found.append((await anext(stream)).value)
        assert [each["features"] for each in found] == [{"before": n, "last": n - 1} for n in range(40)]
        partition = place(grid, "m")[1]
        put = [json.loads(change.value[12:]) for change in cluster.partition(job.events, partition).ring.read(0, 100)]
    assert [each["received_at"] for each in found] == sorted({each["received_at"] for each in put})
    offline = offline_matrix(job, pd.DataFrame(put)).values  # noqa: PD011
    assert offline.tolist() == [[n, n - 1] for n in range(40)]
