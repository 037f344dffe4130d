"""What goes wrong on the way of a batch: unanswered writes, heavy events, odd keys, a cluster that goes away."""

import asyncio
import os
import signal
import struct

import numpy as np
import pytest
import scoring
from hazelcast.errors import TargetDisconnectedError

from gridscore import grid as grids
from gridscore.cli import options
from gridscore.client import connect
from gridscore.errors import ConnectionFailedError, GridError
from gridscore.grid import GridSettings
from gridscore.grid.member import Cluster
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import read_records
from gridscore.group.reader import JournalReader
from gridscore.job import parse_job
from gridscore.operations.flow import FlowObserver
from gridscore.scoring import Worker


@pytest.mark.parametrize("mode", ["copy", "fetch"])
async def test_a_write_of_unknown_fate_is_made_again(cluster, unique, mode, monkeypatch):
    name, model = f"job-{unique}", scoring.booster()
    put, calls = MapWriter.put_partition, 0

    def sometimes(self, partition, keys, texts, **how):
        nonlocal calls
        if not self.map_name.startswith("results."):
            return put(self, partition, keys, texts, **how)
        calls += 1
        if calls % 5 == 1:  # half of these have happened, half have not
            if calls % 2:
                put(self, partition, keys, texts, **how).add_done_callback(lambda done: done.exception())
            future = asyncio.get_running_loop().create_future()
            future.set_exception(TargetDisconnectedError("as if the connection had been lost"))
            return future
        return put(self, partition, keys, texts, **how)

    monkeypatch.setattr(MapWriter, "put_partition", sometimes)
    async with scoring.scoring(cluster, name, mode=mode, model=model) as (client, worker):
        events = scoring.events(600)
        for begin in range(0, 600, 100):
            await client.put_events(f"events.{name}", scoring.events(100, begin=begin))
        results = await scoring.all_results(client, name, 600)

        async def committed():
            records = await read_records(client.grid, name)
            return sum(max(record.offset, 0) for record in records.values()) == 600

        await scoring.until(committed)
        assert len(worker.runners[name].group.held) == client.grid.partition_count
    assert calls > 5
    expected = scoring.predict(model, scoring.expected_rows(events.values()))
    got = np.array([results[key]["score"] for key in events], dtype=np.float32)
    assert got.tobytes() == expected.tobytes()


async def test_a_partition_that_could_not_be_begun_is_claimed_again(cluster, unique, monkeypatch):
    name, bounds, failed = f"job-{unique}", JournalReader.bounds, set()

    async def fails_once(self, partition):
        if partition and partition not in failed:
            failed.add(partition)
            raise TargetDisconnectedError("as if the member had gone")
        return await bounds(self, partition)

    monkeypatch.setattr(JournalReader, "bounds", fails_once)
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(300))
        assert len(await scoring.all_results(client, name, 300)) == 300
    assert len(failed) > 200


async def test_heavy_events_are_read_a_few_at_a_time(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        await scoring.until(lambda: worker.runners)
        heavy = {f"h{i}": {"amount": 1.0, "user": "u1", "country": "DE", "padding": "x" * 300_000} for i in range(60)}
        await client.put_events(f"events.{name}", heavy)
        assert (await scoring.all_results(client, name, 60)).keys() == heavy.keys()


async def test_whole_number_keys_are_found_as_integer_and_long_and_beyond(cluster, unique):
    name = f"job-{unique}"
    text = scoring.JOB.format(name=name, mode="fetch").replace("user: string", "user: int")
    numbers = {"integer": 7, "long": 8, "large": 2**40, "missing": 9}
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        writer = MapWriter(client.grid, f"lookups.{name}")
        await writer.put([(7, b'{"age": 30.0, "limit": 100.0}')])
        for number in (8, 2**40):
            key = struct.pack(">iiq", 0, -8, number)
            partition = partition_of(key, client.grid.partition_count)
            await writer.put_partition(partition, [key], [b'{"age": 30.0, "limit": 100.0}'])
        model = scoring.booster()
        await client.push_model(model, name, alias="champion")
        await client.submit(parse_job(text, "test"))
        async with Worker(client.grid, [name]):
            events = {key: {"amount": 10.0, "user": number} for key, number in numbers.items()}
            await client.put_events(f"events.{name}", events)
            results = await scoring.all_results(client, name, len(events))
    found = np.array([[10.0, np.log1p(10.0), 30.0, 0.1, 0.0]], dtype=np.float32)
    missing = np.array([[10.0, np.log1p(10.0), np.nan, np.nan, 0.0]], dtype=np.float32)
    for key in ("integer", "long", "large"):
        assert np.float32(results[key]["score"]) == scoring.predict(model, found)[0]
    assert np.float32(results["missing"]["score"]) == scoring.predict(model, missing)[0]


async def test_a_worker_stops_though_its_cluster_is_gone(unique):
    name = f"job-{unique}"
    with Cluster.start(1, port=0, heap="256m") as cluster:
        async with asyncio.timeout(90):
            async with scoring.scoring(cluster, name) as (client, _):
                await client.put_events(f"events.{name}", scoring.events(10))
                await scoring.all_results(client, name, 10)
                await asyncio.to_thread(cluster.stop)
                began = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - began < 30


async def test_the_member_that_is_stopped_is_named(monkeypatch):
    monkeypatch.setattr(options, "_ANSWER_SECONDS", 3.0)
    with Cluster.start(3, port=0, heap="256m", register=False) as cluster:
        settings = GridSettings.load(members=cluster.addresses, cluster_name=cluster.cluster_name, connect_timeout=4.5)
        async with await grids.connect(settings) as grid:
            await FlowObserver(grid).look()  # which makes the maps
        stopped = cluster.addresses[1]
        os.kill(cluster.pids[1], signal.SIGSTOP)
        try:
            with pytest.raises(ConnectionFailedError, match=f"{stopped} took a connection, but did not answer"):
                await grids.connect(settings.model_copy(update={"members": [stopped]}))
            async with await grids.connect(settings) as grid:  # the others are there
                with pytest.raises(GridError) as told:
                    await options.answered(grid, FlowObserver(grid).look())
        finally:
            os.kill(cluster.pids[1], signal.SIGCONT)
    assert told.value.message == f"The cluster did not answer in 3 seconds: there is no answer from {stopped}."
