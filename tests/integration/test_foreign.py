"""What others put into the grid: entries of types that cannot be read, records that are none of ours."""

import asyncio
import struct

import pytest_asyncio
import scoring
from hazelcast.core import HazelcastJsonValue

from gridscore.client import connect
from gridscore.dead_letters.letters import list_letters, map_of
from gridscore.grid import Records, transport
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.members import WORKERS_MAP
from gridscore.job import Jobs
from gridscore.operations.status import job_status, living_workers

UNKNOWN_TYPE = struct.pack(">ii", 0, 1234) + b"whatever"


@pytest_asyncio.fixture
async def client(cluster):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        yield client


async def put_raw(grid, name, key, text=b"{}"):
    await grid.map(name)
    await MapWriter(grid, name).put_partition(partition_of(key, grid.partition_count), [key], [text])


async def test_keys_that_cannot_be_read_cost_neither_connection_nor_neighbours(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        grid = client.grid
        before = set(transport.member_connections(grid.client).values())
        await put_raw(grid, f"lookups.{name}", UNKNOWN_TYPE)
        await put_raw(grid, f"events.{name}", UNKNOWN_TYPE, b'{"amount": 1.0, "user": "u1"}')
        await client.put_events(f"events.{name}", scoring.events(100))
        proxy = await grid.map(f"results.{name}")
        await scoring.until(lambda: _size(proxy, 101))
        assert set(transport.member_connections(grid.client).values()) == before
        assert worker.runners[name].stats.dead == 0


async def _size(proxy, wanted):
    return await proxy.size() == wanted


async def test_a_result_stream_skips_entries_that_are_not_results(client, unique):
    name = f"results.{unique}"
    async with await client.results(name) as stream:
        proxy = await client.grid.map(name)
        await proxy.put("a", "text")
        await proxy.put("b", HazelcastJsonValue("[1]"))
        await put_raw(client.grid, name, UNKNOWN_TYPE)
        await client.put_events(name, {"c": {"score": 0.5, "version": 1}})
        async with asyncio.timeout(10):
            result = await anext(stream)
        assert (result.key, result.score) == ("c", 0.5)
        other = asyncio.create_task(anext(stream))  # they may lie in partitions that are read after this one
        await scoring.until(lambda: stream.skipped == 3)
        other.cancel()


async def test_records_of_others_are_left_out(client, unique):
    records = Records(client.grid, f"gridscore.{unique}")
    await records.create("ours", {"n": 1})
    proxy = await client.grid.map(records.map_name)
    await proxy.put("list", HazelcastJsonValue("[1]"))
    await proxy.put("text", "text")
    await proxy.put(7, HazelcastJsonValue("{}"))
    assert list(await records.all()) == ["ours"]


async def test_a_strange_worker_or_dead_letter_does_not_hinder_the_status(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        workers = await client.grid.map(WORKERS_MAP)
        await workers.put(f"strange-{unique}", HazelcastJsonValue('{"seen_at": "x"}'))
        await workers.put(f"empty-{unique}", HazelcastJsonValue("{}"))
        await (await client.grid.map(map_of(name))).put("strange", HazelcastJsonValue("{}"))

        async def seen():
            return [w for w in await living_workers(client.grid) if w.id == worker.id and name in w.jobs]

        await scoring.until(seen)
        status = await job_status(client.grid, await Jobs(client.grid).get(name))
        assert status.workers == 1
        assert (await list_letters(client.grid, name, 10))[1] == []
        await workers.delete(f"strange-{unique}")
        await workers.delete(f"empty-{unique}")
