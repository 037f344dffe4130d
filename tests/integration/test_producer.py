"""Back-pressure: producers wait before they overrun the ring of a partition, and say so."""

import asyncio
import json

import pytest
import scoring
from hazelcast.errors import TargetDisconnectedError
from small_ring import PARTITIONS, RING

from gridscore.client import connect
from gridscore.errors import BackPressureError, GridError
from gridscore.grid import capacity
from gridscore.grid.capacity import Capacity, Source, journal_capacity
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.scoring import Worker
from gridscore.scoring.preparation import warnings


@pytest.fixture
async def submitted(small_ring, unique):
    """A client and a job that nobody scores for yet."""
    name = f"job-{unique}"
    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.push_model(scoring.booster(), name, alias="champion")
        await client.submit(scoring.job(name))
        yield client, name


def texts(count, begin=0):
    return [(key, json.dumps(value).encode()) for key, value in scoring.events(count, begin).items()]


async def bounds(client, name, partition):
    return await Journal(client.grid, f"events.{name}").bounds(partition)


async def test_a_producer_waits_for_a_worker_that_starts_late_and_nothing_is_lost(submitted, caplog):
    client, name = submitted
    said = []
    producer = client.producer(f"events.{name}", on_wait=said.append)
    count = 10_000  # more than twice what the rings hold
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(producer.put(texts(count)))
        await scoring.until(lambda: said)
        assert not putting.done()
        # No partition has more than the ring holds, less the reserve.
        sizes = [newest - oldest + 1 for oldest, newest in [await bounds(client, name, p) for p in range(PARTITIONS)]]
        assert max(sizes) <= RING * 3 // 4
        async with Worker(client.grid, [name]) as worker:
            assert await putting == count
            assert len(await scoring.all_results(client, name, count)) == count
            assert worker.runners[name].stats.lost == 0
    assert producer.acknowledged == count
    assert producer.waited > 0
    waiting = said[0]
    assert (waiting.job, waiting.capacity, waiting.owned) == (name, RING, False)
    assert "gridscore worker" in waiting.hint
    assert said[-1] is None
    assert f"waiting for job {name}" in caplog.text
    assert f"unread events of {RING} that the journal holds" in caplog.text


async def test_two_producers_share_a_ring_that_is_much_too_small_for_them(submitted):
    client, name = submitted
    count = 6_000
    async with Worker(client.grid, [name]) as worker, asyncio.TaskGroup() as group:
        for half in range(2):
            group.create_task(client.producer(f"events.{name}").put(texts(count, half * count)))
        await scoring.all_results(client, name, 2 * count)
        assert worker.runners[name].stats.lost == 0


async def test_a_suspended_job_is_waited_for_until_the_caller_will_not(submitted):
    client, name = submitted
    async with Worker(client.grid, [name]) as worker:
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        with pytest.raises(BackPressureError) as raised:
            await client.put_events(f"events.{name}", scoring.events(8_000, 50), max_wait=0.3)
        assert f"waiting for job {name} (SUSPENDED)" in raised.value.message
        assert f"gridscore resume {name}" in raised.value.hint
        await client.jobs.resume(name)
        # The same again does no harm, and this time everything is put.
        await client.put_events(f"events.{name}", scoring.events(8_000, 50), max_wait=30)
        await scoring.all_results(client, name, 8_050)
        assert worker.runners[name].stats.lost == 0


async def test_a_job_that_was_cancelled_is_not_waited_for(submitted):
    client, name = submitted
    await client.cancel(name)
    assert await client.put_events(f"events.{name}", scoring.events(8_000), max_wait=0.0) == 8_000


async def test_a_job_that_begins_at_the_latest_event_is_not_waited_for_before_it_begins(small_ring, unique):
    name = f"job-{unique}"
    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        await client.push_model(scoring.booster(), name, alias="champion")
        await client.put_events(f"lookups.{name}", scoring.customers())
        await client.submit(scoring.job(name).model_copy(update={"start": "latest"}))
        assert await client.put_events(f"events.{name}", scoring.events(8_000), max_wait=0.0) == 8_000


async def test_a_put_of_unknown_fate_is_made_again_before_what_comes_after_it(small_ring, unique, monkeypatch):
    real, failures = MapWriter.put_partition, {}

    def unreliable(self, partition, keys, values, **options):
        put = real(self, partition, keys, values, **options)
        failures[partition] = failures.get(partition, 0) + 1
        if failures[partition] > 1:
            return put
        broken = asyncio.get_running_loop().create_future()
        put.add_done_callback(lambda _: broken.set_exception(TargetDisconnectedError("the member has gone")))
        return broken

    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        producer = client.producer(f"events.{unique}")
        monkeypatch.setattr(MapWriter, "put_partition", unreliable)
        await producer.send([("key", b"1"), ("another", b"1")])
        await producer.send([("key", b"2")])
        await producer.flush()
        monkeypatch.undo()
        assert producer.acknowledged == 3
        assert producer.repeated == 2
        assert (await client.result(f"events.{unique}", "key")) == 2


async def test_a_put_that_is_never_confirmed_is_an_error_that_says_so(small_ring, unique, monkeypatch):
    def broken(*_arguments, **_options):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(TargetDisconnectedError("the member has gone"))
        return future

    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        producer = client.producer(f"events.{unique}")
        producer._retry_seconds = 0.3
        monkeypatch.setattr(MapWriter, "put_partition", broken)
        with pytest.raises(GridError, match=r"did not confirm 1 events for partition \d+"):
            await producer.put([("key", b"1")])


async def test_a_put_that_is_cancelled_leaves_nothing_waiting(submitted):
    client, name = submitted
    said = []
    producer = client.producer(f"events.{name}", on_wait=said.append)
    putting = asyncio.create_task(producer.put(texts(8_000)))
    await scoring.until(lambda: said)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    await client.cancel(name)
    await scoring.until(lambda: producer._events == 0)
    assert producer.acknowledged < 8_000


async def test_capacity_is_as_configured_or_what_can_be_seen(small_ring, unique, monkeypatch):
    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        name = f"events.{unique}"
        configured = await journal_capacity(client.grid, name)
        assert configured == Capacity(RING, PARTITIONS, Source.CONFIGURED)
        assert await journal_capacity(client.grid, f"lookups.{unique}") is None

        async def silent(_grid):
            return None

        monkeypatch.setattr(capacity, "first_config", silent)
        await client.put_events(name, scoring.events(10))
        assumed = await journal_capacity(client.grid, name)
        assert assumed == Capacity(capacity.DEFAULT_CAPACITY // PARTITIONS, PARTITIONS, Source.ASSUMED)
        for number in range(RING + 5):
            await client.put_events(name, {"key": {"amount": number}})
        assert await journal_capacity(client.grid, name) == Capacity(RING, PARTITIONS, Source.SEEN)
        assert await journal_capacity(client.grid, f"lookups.{unique}") is None


async def test_whoever_submits_a_job_is_warned_of_a_ring_that_is_too_small(small_ring, unique):
    async with connect(members=small_ring.addresses, cluster_name=small_ring.cluster_name) as client:
        job = scoring.job(unique).model_copy(update={"peak_rate": 1_000.0})
        (warning,) = await warnings(client.grid, job)
        assert "4.3 s at the peak of 1,000 events/s" in warning
        assert "capacity: 31000" in warning
