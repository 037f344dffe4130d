"""The stub cluster as users meet it: a job tested end to end, and what it can make go wrong; and virtual time."""

import asyncio
import logging
import struct

import numpy as np
import pytest
import xgboost as xgb
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import (
    HazelcastError,
    IndeterminateOperationStateError,
    OperationTimeoutError,
    TargetDisconnectedError,
    UnsupportedOperationError,
)

from gridscore.cli.options import answered
from gridscore.errors import GridError
from gridscore.grid import transport, wire
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job import parse_job
from gridscore.testing import Fault, StubCluster, VirtualTime
from gridscore.testing.virtual_time import NothingLeftError

JOB = """\
job: payments
events: events.payments
schema: {amount: float, customer: string}
lookups:
  customer: {map: lookups.customers, key: customer, fields: {limit: float}}
features: {share: amount / customer.limit}
model: {name: payments, alias: champion}
results: results.payments
"""


def booster(rounds=5):
    rows = np.linspace(0, 2, 200, dtype=np.float32).reshape(-1, 1)
    matrix = xgb.DMatrix(rows, (rows[:, 0] > 1).astype(int), feature_names=["share"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, rounds)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def place(grid, key):
    data = transport.key_data(grid.client, key)
    return data, partition_of(data, grid.partition_count)


async def test_a_job_is_tested_from_its_events_to_its_results():
    async with StubCluster() as cluster:
        client = await cluster.client()
        await client.push_model(booster(), "payments", alias="champion")
        await client.put_events("lookups.customers", {"c1": {"limit": 100.0}})
        await client.submit(parse_job(JOB, "test"))
        await client.put_events(
            "events.payments", {"p1": {"customer": "c1", "amount": 500.0}, "p2": {"customer": "c1", "amount": 5.0}}
        )
        async with cluster.worker():
            results = await cluster.results("results.payments", 2)
    assert results["p1"]["score"] > 0.5 > results["p2"]["score"]


async def test_results_that_do_not_come_are_not_waited_for_for_ever():
    async with StubCluster() as cluster:
        with pytest.raises(TimeoutError):
            await cluster.results("results.none", 1, seconds=0.05)


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("timeout", OperationTimeoutError),
        ("indeterminate", IndeterminateOperationStateError),
        ("disconnect", TargetDisconnectedError),
    ],
)
async def test_a_write_may_silently_be_lost_or_applied(outcome, error, applied):
    async with StubCluster() as cluster:
        proxy = await (await cluster.connect()).map("lookups.x")
        cluster.faults.append(Fault(outcome, applied=applied, request="Map.Set", map="lookups.*"))
        with pytest.raises(error):
            await proxy.set("a", HazelcastJsonValue("1"))
        assert await proxy.contains_key("a") == applied
        await proxy.set("a", HazelcastJsonValue("1"))
        assert cluster.faults == []


async def test_a_backup_that_never_answers_makes_a_write_indeterminate():
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        grid.client._invocation_service._backup_timeout = 0.01
        proxy = await grid.map("lookups.x")
        cluster.faults.append(Fault("unacknowledged", request="Map.Set"))
        with pytest.raises(IndeterminateOperationStateError, match="backup acks are missed"):
            await proxy.set("a", HazelcastJsonValue("1"))
        assert await proxy.contains_key("a")


async def test_a_fault_meets_only_what_it_names():
    async with StubCluster() as cluster:
        one, other = await cluster.connect("one"), await cluster.connect("other")
        fault = Fault("timeout", request="Map.Get", map="a.*", client="one", partition=place(one, "k")[1], times=2)
        cluster.faults.append(fault)
        await (await one.map("b.x")).get("k")
        await (await other.map("a.x")).get("k")
        for _ in range(2):
            with pytest.raises(OperationTimeoutError):
                await (await one.map("a.x")).get("k")
        await (await one.map("a.x")).get("k")


async def test_a_partition_that_stands_still_keeps_its_order():
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        key, partition = place(grid, "k")
        writer = MapWriter(grid, "events.x")
        cluster.faults.append(Fault("delay", seconds=0.05, partition=partition))
        first = writer.put_partition(partition, [key], [b"1"])
        second = writer.put_partition(partition, [key], [b"2"])
        elsewhere = writer.put_partition((partition + 1) % 13, [key], [b"3"])
        await elsewhere
        assert not first.done()
        await second
        assert first.done()
        assert (await Journal(grid, "events.x").read(partition, 0, 10)).values == [b"1", b"2"]


async def test_what_comes_while_a_partition_moves_may_be_done_after_what_came_later():
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        key, partition = place(grid, "k")
        writer = MapWriter(grid, "events.x")
        cluster.faults.append(Fault("move", seconds=0.05, partition=partition))
        first = writer.put_partition(partition, [key], [b"1"])
        await asyncio.sleep(0.1)
        await writer.put_partition(partition, [key], [b"2"])
        assert not first.done()
        await first
        assert (await Journal(grid, "events.x").read(partition, 0, 10)).values == [b"2", b"1"]


async def test_a_cut_client_waits_for_the_network_and_comes_back_by_itself():
    async with StubCluster() as cluster:
        grid = await cluster.connect("cut-off")
        proxy = await grid.map("lookups.x")
        cluster.cut("cut-*")
        waiting = asyncio.ensure_future(proxy.get("a"))
        await asyncio.wait((waiting,), timeout=0.05)
        assert not waiting.done()
        cluster.heal()
        assert await waiting is None


async def test_what_hangs_in_the_network_arrives_late_or_never():
    async with StubCluster() as cluster:
        grid = await cluster.connect("slow")
        proxy = await grid.map("lookups.x")
        cluster.hang("slow")
        late = asyncio.ensure_future(proxy.set("a", HazelcastJsonValue("1")))
        await asyncio.wait((late,), timeout=0.05)
        assert len(cluster.partition("lookups.x", place(grid, "a")[1])) == 0
        cluster.heal()
        await late

        transport.hold_at_most(grid.client, 0.05)
        cluster.hang("slow")
        with pytest.raises(TargetDisconnectedError):
            await proxy.set("b", HazelcastJsonValue("1"))
        cluster.heal()
        assert not await proxy.contains_key("b")


async def test_what_a_killed_client_had_sent_arrives():
    async with StubCluster() as cluster:
        dying, other = await cluster.connect("dying"), await cluster.connect("other")
        key, partition = place(dying, "a")
        answer = MapWriter(dying, "lookups.x").put_partition(partition, [key], [b"1"])
        cluster.kill_client("dying")
        proxy = await other.map("lookups.x")
        assert await proxy.contains_key("a")
        assert not answer.done()


@pytest.mark.parametrize(("changes", "bounds", "there"), [(None, (0, -1), None), (1, (0, 1), b"2"), (2, (0, 0), b"1")])
async def test_a_partition_whose_owner_died_has_forgotten_its_newest_changes(changes, bounds, there):
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        key, partition = place(grid, "k")
        for text in (b"1", b"2", b"3"):
            await MapWriter(grid, "events.x").put_partition(partition, [key], [text])
        waiting = Journal(grid, "events.x").read(partition, 3, 10)

        cluster.regress("events.x", partition, changes)

        assert await Journal(grid, "events.x").bounds(partition) == bounds
        value = cluster.partition("events.x", partition).get(key)
        assert (None if value is None else value[12:]) == there
        grid.client._invocation_service._invocation_retry_pause = 0.01
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


async def test_a_killed_member_takes_the_unsafe_maps_along_and_no_others():
    async with StubCluster(members=2, unsafe=("events.*",)) as cluster:
        grid = await cluster.connect()
        for name in ("events.x", "lookups.x"):
            await MapWriter(grid, name).put((f"k{i}", b"1") for i in range(100))
        lost = [p for p in range(13) if cluster.owner(p) is cluster.members[0]]

        cluster.kill_member(0)
        await until(lambda: len(grid.members) == 1)

        proxies = {name: await grid.map(name) for name in ("events.x", "lookups.x")}
        assert await proxies["lookups.x"].size() == 100
        assert 0 < await proxies["events.x"].size() < 100
        bounds = [await Journal(grid, "events.x").bounds(p) for p in range(13)]
        assert [p for p, found in enumerate(bounds) if found == (0, -1)] == lost

        cluster.start_member()
        await until(lambda: len(grid.members) == 2)
        await until(lambda: len(transport.member_connections(grid.client)) == 2)
        assert await proxies["lookups.x"].size() == 100


async def test_what_a_killed_member_had_not_done_is_not_done():
    async with StubCluster(members=2) as cluster:
        grid = await cluster.connect()
        partition = next(p for p in range(13) if cluster.owner(p) is cluster.members[0])
        key = next(data for data, at in (place(grid, f"k{i}") for i in range(100)) if at == partition)
        cluster.faults.append(Fault("delay", seconds=0.5, partition=partition, request="Map.PutAll"))
        put = MapWriter(grid, "events.x").put_partition(partition, [key], [b"1"])
        await until(lambda: not cluster.faults)
        cluster.kill_member(0)
        with pytest.raises(HazelcastError):
            await put
        await asyncio.sleep(0.6)
        assert await Journal(grid, "events.x").bounds(partition) == (0, -1)


async def test_a_read_that_waits_at_another_member_than_the_owner_is_woken(monkeypatch):
    async with StubCluster(members=2) as cluster:
        grid = await cluster.connect()
        await until(lambda: len(transport.member_connections(grid.client)) == 2)
        key, partition = place(grid, "k")
        (other,) = {member.uuid for member in cluster.members} - {cluster.owner(partition).uuid}
        with monkeypatch.context() as wrong:
            wrong.setattr(type(grid.client._partition_service), "get_partition_owner", lambda *_: other)
            read = Journal(grid, "events.x").read(partition, 0, 10)
            await until(lambda: cluster.parked.get(("events.x", partition)))
        await MapWriter(grid, "events.x").put_partition(partition, [key], [b"1"])
        async with asyncio.timeout(10):
            assert (await read).values == [b"1"]


async def test_a_request_that_the_stub_does_not_know_is_refused():
    async with StubCluster() as cluster:
        proxy = await (await cluster.connect()).map("lookups.x")
        with pytest.raises(UnsupportedOperationError, match="the stub does not know 0x012e00"):
            await proxy.execute_on_key("a", HazelcastJsonValue("1"))


async def test_a_page_may_be_answered_twice(caplog):
    caplog.set_level(logging.WARNING, logger="hazelcast")  # commands that ran before in this process turn it down
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        key, partition = place(grid, "k")
        await MapWriter(grid, "events.x").put_partition(partition, [key], [b"1"])
        cluster.faults.append(Fault("duplicate", request="Map.EventJournalRead"))
        assert (await Journal(grid, "events.x").read(partition, 0, 10)).values == [b"1"]
        await until(lambda: "unknown correlation id" in caplog.text)


async def test_every_change_can_be_watched():
    seen = []
    async with StubCluster() as cluster:
        cluster.on_change = lambda map_name, _partition, change: seen.append((map_name, change.value))
        await (await (await cluster.connect()).map("lookups.x")).set("a", HazelcastJsonValue("1"))
        assert cluster.requests["Map.Set"] == 1
    assert seen == [("lookups.x", wire.json_data(b"1"))]
    assert struct.unpack(">iii", seen[0][1][:12]) == (0, -130, 1)


# ---------------------------------------------------------------------- virtual time


@pytest.fixture
def time():
    clock = VirtualTime()
    yield clock
    clock.close()


def test_time_jumps_to_the_next_timer(time):
    loop, began = time.loop("one"), time.now
    time.run(asyncio.sleep(3600), loop, seconds=4000)
    assert time.now == pytest.approx(began + 3600)


def test_loops_share_the_time_and_take_turns(time):
    heard = []

    async def say(name, every):
        for _ in range(3):
            await asyncio.sleep(every)
            heard.append((name, round(time.now - began)))

    began = time.now
    tasks = [time.loop(name).create_task(say(name, every)) for name, every in (("a", 1), ("b", 2))]
    assert time.run_until(lambda: all(task.done() for task in tasks), seconds=10)
    assert heard == [("a", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 4), ("b", 6)]


def test_requests_under_way_are_looked_through_once_a_second_and_at_once_when_a_connection_has_closed(time):
    looks = []

    class Pending(dict):
        def values(self):
            looks.append(time.now)
            return super().values()

    async def work():
        async with StubCluster(loop=asyncio.get_running_loop()) as cluster:
            grid = await cluster.connect("one")
            service = grid.client._invocation_service
            service._pending = Pending(service._pending)
            proxy = await grid.map("lookups.x")
            cluster.faults.append(Fault("silence", request="Map.Set"))
            write = asyncio.ensure_future(proxy.set("a", HazelcastJsonValue("1")))
            await asyncio.sleep(10)
            assert 9 <= len(looks) <= 11
            cluster.cut("one")
            cut = time.now
            with pytest.raises(TargetDisconnectedError):
                await write
            assert time.now < cut + 0.25

    with time.patched():
        time.run(work(), time.loop("one"))


def test_the_member_that_is_silent_is_named_when_the_cluster_does_not_answer(time):
    async def look(grid):
        proxy = await grid.map("lookups.x")
        await asyncio.gather(*(proxy.get(f"k{number}") for number in range(50)))

    async def work():
        async with StubCluster(members=2, loop=asyncio.get_running_loop()) as cluster:
            grid = await cluster.connect("one")
            await look(grid)
            cluster.hang("one", cluster.members[1])
            began, address = time.now, str(cluster.members[1].address.port)
            with pytest.raises(GridError, match="15 seconds: there is no answer from .*:" + address) as told:
                await answered(grid, look(grid))
            assert str(cluster.members[0].address.port) not in told.value.message
            assert "let it go on, or end it" in told.value.hint
            assert time.now < began + 20

    with time.patched():
        time.run(work(), time.loop("one"))


def test_a_paused_process_does_nothing_while_time_goes_on(time):
    done = []
    loop = time.loop("paused")
    loop.call_later(1, done.append, "timer")
    loop.paused = True
    time.advance(10)
    assert not done
    loop.paused = False
    time.advance(0)
    assert done == ["timer"]


def test_an_abandoned_process_never_does_anything_again(time):
    done = []
    loop = time.loop("gone")
    loop.call_later(1, done.append, "timer")
    time.abandon(loop)
    time.advance(10)
    assert not done


def test_threads_do_their_work_on_the_spot(time):
    async def work():
        assert await asyncio.to_thread(sum, [1, 2]) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    began = time.now
    time.run(work(), time.loop("one"))
    assert time.now == began


def test_waiting_for_nothing_is_an_error(time):
    async def never():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NothingLeftError):
        time.run(never(), time.loop("one"))


def test_what_takes_too_long_and_what_spins_are_errors(time):
    with pytest.raises(TimeoutError):
        time.run(asyncio.sleep(100), time.loop("one"), seconds=1)

    async def spin():
        while True:
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="these go on and on: two"):
        time.run(spin(), time.loop("two"))


def test_clocks_of_processes_may_differ_and_the_machines_clock_comes_back(time):
    import time as machine

    from gridscore.group import subscription

    async def now():
        return subscription.time.time()

    with time.patched():
        ahead, behind = time.loop("ahead", skew=5.0), time.loop("behind", skew=-5.0)
        assert time.run(now(), ahead) - time.run(now(), behind) == pytest.approx(10)
        assert subscription.time.monotonic() == time.now
        assert subscription.time.perf_counter() > 0
    assert subscription.time is machine
