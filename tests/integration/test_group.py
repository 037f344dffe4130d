"""Worker groups: partitions spread, move no more than they must, and move without a duplicate or a gap."""

import asyncio
import collections
from contextlib import AsyncExitStack, asynccontextmanager

import scoring

from gridscore.client import connect
from gridscore.group.lease_records import read_records
from gridscore.scoring import Worker


@asynccontextmanager
async def another(cluster, name, **options):
    """A worker on a connection of its own."""
    settings = {"members": cluster.addresses, "cluster_name": cluster.cluster_name}
    async with connect(**settings) as client, Worker(client.grid, [name], **options) as worker:
        yield worker


async def owners(client, name):
    """Owner by partition, once every partition has one."""

    async def all_owned():
        records = await read_records(client.grid, name)
        found = {partition: record.owner for partition, record in records.items() if record.owner}
        return found if len(found) == client.grid.partition_count else None

    return await scoring.until(all_owned)


async def spread(client, name, workers):
    """Owner by partition, once these workers hold their shares."""
    floor, more = divmod(client.grid.partition_count, workers)

    async def balanced():
        found = await owners(client, name)
        counts = sorted(collections.Counter(found.values()).values())
        return found if counts == [floor] * (workers - more) + [floor + 1] * more else None

    return await scoring.until(balanced)


@asynccontextmanager
async def seen_results(client, name):
    """How often each result was seen, by key and sequence."""
    seen = collections.Counter()
    stream = await client.results(f"results.{name}")

    async def watch():
        async for result in stream:
            seen[result.key, result.value["sequence"]] += 1

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        await stream.close()
        await task


async def test_partitions_spread_over_workers_and_no_more_of_them_move_than_must(cluster, unique):
    name = f"job-{unique}"
    async with AsyncExitStack() as workers:
        client, first = await workers.enter_async_context(scoring.scoring(cluster, name))
        alone = await owners(client, name)
        assert set(alone.values()) == {first.id}

        group = first.runners[name].group
        await scoring.until(lambda: len(group._reader.partitions) == client.grid.partition_count)
        read_by = {partition: group._reader.cursor(partition) for partition in group.held}
        second = await workers.enter_async_context(another(cluster, name))
        two = await spread(client, name, 2)
        # What stays was not touched: read on by the very same cursor, under the same epoch.
        assert len(group.held) > 100
        assert all(group._reader.cursor(partition) is read_by[partition] for partition in group.held)
        assert {p for p in two if two[p] != alone[p]} == {p for p in two if two[p] == second.id}

        async with another(cluster, name) as third:
            three = await spread(client, name, 3)
            moved = {p for p in three if three[p] != two[p]}
            assert moved == {p for p in three if three[p] == third.id}
            assert len(moved) <= client.grid.partition_count // 3 + 1

        again = await spread(client, name, 2)
        assert {p for p in again if again[p] != three[p]} == {p for p in three if three[p] == third.id}


async def test_workers_that_come_and_go_under_load_lose_nothing_and_show_nothing_twice(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _), seen_results(client, name) as seen:
        await owners(client, name)
        count, going = 0, True

        async def load():
            nonlocal count
            while going:
                await client.put_events(f"events.{name}", scoring.events(100, begin=count))
                count += 100

        loading = asyncio.create_task(load())
        for _ in range(2):
            async with another(cluster, name) as worker:
                await spread(client, name, 2)
                await scoring.until(lambda: worker.runners[name].stats.events > 100)
            assert await spread(client, name, 1)
        going = False
        await loading
        await scoring.all_results(client, name, count)
        await scoring.until(lambda: len(seen) >= count)
        assert len(seen) == count
        assert set(seen.values()) == {1}
        records = await read_records(client.grid, name)
        assert sum(record.lost for record in records.values()) == 0
