"""Sessions: what hangs on them stands while they are renewed, and is taken only after they are closed."""

import asyncio

import pytest
from msgspec.structs import replace
from world import World

from gridscore.group.lease_records import LeaseRecord, LeaseWriter, read_records
from gridscore.group.leases import Leases, Progress
from gridscore.group.sessions import SESSIONS_MAP
from gridscore.testing import Fault, StubCluster
from gridscore.testing.virtual_time import VirtualTime

PARTITIONS = 8
JOB = "job"

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def virtual():
    """Runs a test's coroutine, which gets a stub cluster of two members, in virtual time."""
    time = VirtualTime()
    with time.patched():

        def run(test):
            loop = time.loop("worker")
            cluster = StubCluster(PARTITIONS, loop=time.loop("members"), members=2, latency=lambda: 0.001)
            time.run(test(cluster), loop, seconds=300.0)

        yield run
        time.close()


async def claim_all(leases):
    await leases.look(range(PARTITIONS))
    return await leases.claim([*leases.free(), *leases.expired()])


async def watch(leases, seconds):
    """Look as a group does, so that no time passes unwatched."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await leases.look(range(PARTITIONS))
        await asyncio.sleep(0.1)


def test_one_session_a_member_is_renewed_and_no_lease(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("first"), JOB, "first")
        await claim_all(leases)
        texts = {partition: lease.text for partition, lease in leases.held.items()}
        before = cluster.requests["Map.ReplaceIfSame"]
        for _ in range(100):
            await leases.commit({})
            await asyncio.sleep(0.1)
        assert cluster.requests["Map.ReplaceIfSame"] - before <= 2 * 10 / 1.6
        assert {partition: lease.text for partition, lease in leases.held.items()} == texts
        assert all(leases.sessions._grid.clock() < leases.until(partition) for partition in range(PARTITIONS))

    virtual(test)


def test_whoever_renews_before_its_session_is_closed_keeps_its_leases(virtual):
    async def test(cluster):
        first = Leases(await cluster.connect("first"), JOB, "first")
        second = Leases(await cluster.connect("second"), JOB, "second")
        await claim_all(first)
        watching = asyncio.create_task(watch(second, 5.2))
        await asyncio.sleep(4.9)
        # The last renewal takes so long that the session seems to have run out, and still is the quicker one.
        cluster.faults.append(Fault("move", request="Map.ReplaceIfSame", map=SESSIONS_MAP, seconds=0.4, times=2))
        await first.commit({})
        await watching
        assert len(second.expired()) == PARTITIONS
        assert await second.claim(second.expired()) == []
        assert all(first.sessions._grid.clock() < first.until(partition) for partition in first.held)
        assert {record.owner for record in (await read_records(first.sessions._grid, JOB)).values()} == {"first"}

    virtual(test)


def test_nobody_renews_a_session_that_it_let_grow_older_than_the_lease(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("first"), JOB, "first")
        await claim_all(leases)
        # Somebody may have closed it, and that went with a member.
        await asyncio.sleep(5.1)
        before = cluster.requests["Map.ReplaceIfSame"]
        await leases.commit({})
        await asyncio.sleep(0.1)
        assert cluster.requests["Map.ReplaceIfSame"] == before
        assert leases.until(0) == float("-inf")

    virtual(test)


@pytest.mark.parametrize("own", [True, False])
def test_a_session_counts_as_closed_only_if_that_is_acknowledged(virtual, own):
    async def test(cluster):
        first = Leases(await cluster.connect("first"), JOB, "first")
        heirs = [Leases(await cluster.connect(name), JOB, name) for name in ("second", "third")]
        await claim_all(first)
        await asyncio.gather(*(watch(each, 5.2) for each in heirs))
        heir = heirs[not own]
        fault = Fault("unacknowledged", request="Map.ReplaceIfSame", map=SESSIONS_MAP, times=1000)
        cluster.faults.append(fault)
        assert await heirs[0].claim(heirs[0].expired()) == []
        await watch(heir, 1.2)
        assert len(heir.expired()) == PARTITIONS
        assert await heir.claim(heir.expired()) == []
        fault.times = 0
        await watch(heir, 0.2)
        assert len(await heir.claim(heir.expired())) == PARTITIONS

    virtual(test)


def test_a_renewal_that_nobody_acknowledged_does_not_count(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("first"), JOB, "first")
        await claim_all(leases)
        until = leases.until(0)
        fault = Fault("unacknowledged", request="Map.ReplaceIfSame", map=SESSIONS_MAP, times=1000)
        cluster.faults.append(fault)
        for _ in range(34):
            await leases.commit({})
            await asyncio.sleep(0.1)
        assert fault.times < 1000
        assert leases.until(0) == until
        fault.times = 0
        for _ in range(6):
            await leases.commit({})
            await asyncio.sleep(0.1)
        assert leases.until(0) > until

    virtual(test)


def test_whoever_comes_too_late_finds_its_session_closed_and_stands_no_longer(virtual):
    async def test(cluster):
        first = Leases(await cluster.connect("first"), JOB, "first")
        second = Leases(await cluster.connect("second"), JOB, "second")
        await claim_all(first)
        await watch(second, 6.0)
        assert len(await second.claim(second.expired())) == PARTITIONS
        await first.commit({})
        await asyncio.sleep(0.1)
        assert first.until(0) == float("-inf")
        assert sorted(await first.commit(dict.fromkeys(range(PARTITIONS), Progress(1, 0)))) == list(range(PARTITIONS))

    virtual(test)


def test_a_restart_in_the_same_process_waits_for_the_lease_of_before_like_anybody(virtual):
    async def test(cluster):
        grid = await cluster.connect("worker")
        before = Leases(grid, JOB, "worker")
        await claim_all(before)
        # Given one that has ended without giving back, as after an error: its writes may be under way still
        after = Leases(grid, JOB, "worker", sessions=before.sessions)
        began = grid.clock()
        while len(after.held) < PARTITIONS:
            after.sessions.renew()
            await claim_all(after)
            await asyncio.sleep(0.1)
            for partition in list(before.held):
                before.drop(partition)
        assert before.sessions.seconds <= grid.clock() - began < 10.0
        assert sum(session.leases for session in after.sessions._own.values()) == PARTITIONS

    virtual(test)


def test_what_was_let_go_here_is_taken_again_after_it_has_settled(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("worker"), JOB, "worker")
        await claim_all(leases)
        began = leases.sessions._grid.clock()
        leases.drop(3)
        assert [lease.partition for lease in await claim_all(leases)] == [3]
        assert 1.0 <= leases.sessions._grid.clock() - began < 1.1

    virtual(test)


def test_a_lease_that_is_let_go_while_it_is_hung_on_another_session_leaves_nothing_behind(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("worker"), JOB, "worker")
        await claim_all(leases)
        for partition in range(1, PARTITIONS):
            leases.drop(partition)  # retires the sessions of all
        await leases.commit({})
        await asyncio.sleep(0.01)  # the new session is there
        assert len(leases.sessions._own) > 1
        commit = asyncio.create_task(leases.commit({}))
        await asyncio.sleep(0.0005)  # the lease is being hung on it
        assert leases.held[0].changing.locked()
        leases.drop(0)
        await commit
        assert not leases.sessions._own
        other = Leases(await cluster.connect("other"), JOB, "other")
        await watch(other, 6.0)
        assert len(await other.claim(other.expired())) == PARTITIONS

    virtual(test)


def test_a_lease_whose_partition_has_moved_hangs_on_a_session_of_the_member_that_has_it(virtual):
    async def test(cluster):
        grid = await cluster.connect("worker")
        leases = Leases(grid, JOB, "worker")
        await claim_all(leases)
        cluster.start_member()
        for _ in range(40):
            await leases.commit({})
            await asyncio.sleep(0.1)
        owner_of = grid.client.partition_service.get_partition_owner
        assert all(owner_of(p) == owner_of(lease.session.partition) for p, lease in leases.held.items())
        assert len({lease.session for lease in leases.held.values()}) == 3
        assert all(grid.clock() < leases.until(partition) for partition in range(PARTITIONS))

    virtual(test)


def test_a_session_on_which_nothing_hangs_ends_with_its_member(virtual):
    async def test(cluster):
        leases = Leases(await cluster.connect("worker"), JOB, "worker")
        await claim_all(leases)
        for _ in range(3):
            cluster.start_member()
            for _ in range(40):
                await leases.commit({})
                await asyncio.sleep(0.1)
            cluster.kill_member(0)
            for _ in range(40):
                await leases.commit({})
                await asyncio.sleep(0.1)
        assert len(leases.held) == PARTITIONS
        assert len(leases.sessions._own) <= len(cluster.members)

    virtual(test)


def test_every_process_forgets_the_sessions_of_others_at_which_it_no_longer_looks():
    world = World(12)
    try:
        names = [world.start() for _ in range(3)]
        world.settle()
        world.kill(names.pop(1))
        world.advance(30.0)
        sessions = [world.workers[name].worker._members.sessions for name in names]
        assert all(each._sights for each in sessions)
        world.advance(130.0)
        assert not any(each._sights for each in sessions)
        world.check()
    finally:
        world.close()


def test_a_lease_without_a_session_is_taken_only_after_its_record_has_not_changed_for_its_lease_time(virtual):
    async def test(cluster):
        grid = await cluster.connect("old")
        old, other = LeaseWriter(grid, JOB, 5.0), Leases(await cluster.connect("other"), JOB, "other")
        record, texts = LeaseRecord("old", 1, 0, lease=5000), dict.fromkeys(range(PARTITIONS))
        for renewal in range(8):
            record = replace(record, renewals=renewal)
            for partition, text in texts.items():
                texts[partition] = (await old.write(partition, text, record)).text
            await watch(other, 1.0)
            assert other.expired() == []
            # A lease of the same kind that has run out says nothing about the others.
            if renewal == 6:
                del texts[3]
        await watch(other, 3.2)
        assert other.expired() == [3]
        assert len(await other.claim([3])) == 1
        assert other.expired() == []
        await watch(other, 5.1)
        assert len(await other.claim(other.expired())) == PARTITIONS - 1

    virtual(test)


def test_a_worker_is_not_believed_to_hold_what_it_held_before_its_heartbeat():
    world = World(12)
    try:
        first, second = world.start(), world.start()
        world.settle()
        fault = Fault("timeout", request="Map.GetAll", map="gridscore.holdings", client=first, times=99)
        world.cluster.faults.append(fault)
        world.start()  # to whom the second gives a part of what it holds
        group = world.workers[first].worker.runners["sim"].group
        assert world.time.run_until(lambda: second in group._leases.others(), seconds=5.0)
        assert group._members.is_fresh(second)
        fault.times = 0
        world.settle()
        world.check()
    finally:
        world.close()


def test_a_session_that_cannot_be_opened_holds_up_no_commit(virtual):
    async def test(cluster):
        grid = await cluster.connect("worker")
        leases = Leases(grid, JOB, "worker")
        await claim_all(leases)
        cluster.faults.append(Fault("silence", request="Map.PutIfAbsent", map=SESSIONS_MAP, times=1000))
        cluster.start_member()
        for offset in range(20):
            began = grid.clock()
            await leases.commit(dict.fromkeys(range(PARTITIONS), Progress(offset, 0)))
            assert grid.clock() - began < 0.1
            await asyncio.sleep(0.5)
        staying = [p for p, lease in leases.held.items() if leases.sessions.homes[p] == lease.session.partition]
        assert 0 < len(staying) < PARTITIONS
        assert all(grid.clock() < leases.until(partition) for partition in staying)

    virtual(test)


def test_a_lease_that_cannot_be_committed_holds_up_no_other():
    world = World(20)
    try:
        world.start()
        world.settle()
        silent, other = 0, 10  # both are committed at the same time
        world.cluster.faults.append(
            Fault("silence", request="Map.ReplaceIfSame", map="gridscore.leases", partition=silent, times=1000)
        )
        for _ in range(8):
            before = world.ledger.leases[other]["offset"]
            world.flood(silent, 1.0, 1)
            world.flood(other, 1.0, 1)
            world.advance(1.2)
            assert world.ledger.leases[other]["offset"] > before
        world.check()
    finally:
        world.close()


def test_nobody_falls_silent_while_heartbeats_cannot_be_read():
    world = World(12)
    try:
        first, second = world.start(), world.start()
        world.settle()
        members = world.workers[first].worker._members
        # All members are asked at once: one that hangs keeps the answer of all back.
        fault = Fault("silence", request="Map.EntrySet", map="gridscore.heartbeats", times=1000)
        world.cluster.faults.append(fault)
        for _ in range(80):
            world.advance(0.1)
            assert members.group("sim") == {first, second}
            assert members.is_fresh(second)
        # Nor does a look whose answer is lost wait for ever.
        fault.times = 0
        world.kill(second)
        assert world.time.run_until(lambda: members.group("sim") == {first}, seconds=15.0)
        world.settle()
        world.check()
    finally:
        world.close()


def test_somebody_who_has_marked_a_lease_is_not_made_to_begin_again(virtual):
    async def test(cluster):
        first = Leases(await cluster.connect("first"), JOB, "first")
        heirs = [Leases(await cluster.connect(f"heir{number}"), JOB, f"heir{number}") for number in range(2)]
        await claim_all(first)
        await asyncio.gather(*(watch(each, 6.0) for each in heirs))
        claim = asyncio.create_task(heirs[0].claim(range(PARTITIONS)))
        await asyncio.sleep(0.1)
        await heirs[1].look(range(PARTITIONS))
        assert heirs[1].expired() == []
        assert len(await claim) == PARTITIONS

    virtual(test)
