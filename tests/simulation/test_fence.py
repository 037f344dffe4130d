"""The fence: whoever has lost a lease changes nothing any more, however faults combine on one worker."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World, _data

from gridscore.errors import UsageError
from gridscore.grid.transport import HOLD_SECONDS
from gridscore.group.fence import LONGEST_SECONDS, SHORTEST_SECONDS, Fence
from gridscore.job.plugs.base import SinkSettings
from gridscore.scoring import Worker
from gridscore.sinks.runner import SinkRunner
from gridscore.testing import Fault, StubCluster
from gridscore.testing.member import Member
from gridscore.testing.messages import Request

PARTITIONS = 8

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def fenced():
    worlds = []

    def make(lease):
        worlds.append(World(PARTITIONS, lease=lease))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def renewed_one(world):
    """Two workers, a partition of the first, and when it renewed that lease: just now, as the second has seen."""
    first, second = world.start(), world.start()
    world.settle()
    groups = [world.workers[name].worker.runners["sim"].group for name in (first, second)]
    (own, others) = (group._leases for group in groups)

    partition = max(own.held)
    assert partition != own.held[partition].session.partition  # where it is closed, before the lease is marked
    session, watching = own.held[partition].session, others.sessions
    before = session.renewed_at
    assert world.time.run_until(lambda: session.renewed_at != before, seconds=world.lease)
    # The other one sees it almost when it happened, and goes on watching: the worst moment.
    loop = world.workers[second].loop

    async def watch():
        while session.name not in watching._sights or not watching.is_over(session.name):
            if session.name in watching._sights:
                watching._sights[session.name].asked = float("-inf")
            await watching.look([own.held[partition].record])
            await asyncio.sleep(0.05)

    loop.call_soon(lambda: tasks.append(loop.create_task(watch())))
    tasks = []
    assert world.time.run_until(
        lambda: session.name in watching._sights and watching._sights[session.name].text == session.text, seconds=0.1
    )
    return first, second, partition, session.renewed_at


def pause_and_hold(world, pause, hold):
    """Pause a worker that has renewed, with an event in hand, then hold what it sends; the epoch that stands then."""
    first, second, partition, renewed = renewed_one(world)
    world.pause(first)
    (key,) = world.keys_of(partition, 1)
    world.put({key: 1.0})
    world.time.advance(renewed + pause - world.time.now)
    world.cluster.hang(first)
    world.resume(first)
    until = renewed + pause + hold
    if world.time.run_until(lambda: world.owners()[partition] == second, seconds=until - world.time.now):
        world.time.advance(0.1)
        world.put({key: 2.0})  # and what is late must not stand in its place
        world.time.advance(max(0.0, until - world.time.now))
    world.cluster.heal()
    world.time.advance(0.01)
    result = world.cluster.partition("results.sim", partition).get(_data(key))
    world.advance(60.0)
    world.settle()
    world.check()
    return None if result is None else json.loads(result[12:])["epoch"]


def test_a_pause_and_then_a_hold_of_the_same_worker_let_nothing_late_through(fenced):
    assert pause_and_hold(fenced(5.0), 3.95, 2.48) == 2


@pytest.mark.parametrize("lease", [2.0, 5.0, 60.0])
def test_what_is_sent_and_held_for_as_long_as_can_be_is_not_too_late(fenced, lease):
    fence = Fence.of(lease)
    assert pause_and_hold(fenced(lease), fence.send - 0.02, fence.hold - 0.02) == 1


@pytest.mark.parametrize("lease", [2.0, 5.0, 60.0])
def test_what_is_held_for_longer_never_comes(fenced, lease):
    fence = Fence.of(lease)
    assert pause_and_hold(fenced(lease), fence.send - 0.02, lease + 6.0 - fence.send) == 2


@pytest.mark.parametrize("lease", [5.0, 60.0])
@pytest.mark.parametrize("late", [-0.05, 30.0])
def test_nothing_is_sent_when_the_lease_ends_or_later(fenced, lease, late):
    assert pause_and_hold(fenced(lease), lease + late, Fence.of(lease).hold - 0.02) != 1


@pytest.mark.parametrize("seconds", [eighths / 8 for eighths in range(14, 40)])
def test_what_a_member_holds_while_a_partition_moves_comes_before_the_successor_writes(fenced, seconds):
    world = fenced(5.0)
    first, second, partition, renewed = renewed_one(world)
    world.pause(first)
    (key,) = world.keys_of(partition, 1)
    world.put({key: 1.0})
    world.time.advance(renewed + Fence.of(5.0).send - 0.05 - world.time.now)
    # Its last act is a result, not another renewal
    silence = Fault("silence", applied=False, request="Map.ReplaceIfSame", client=first, times=100)
    move = Fault("move", request="Map.PutAll", map="results.*", client=first, seconds=seconds)
    world.cluster.faults += [silence, move]
    world.resume(first)
    world.time.advance(0.02)
    world.pause(first)
    assert not move.times
    assert world.time.run_until(lambda: world.owners()[partition] == second, seconds=20.0)
    world.advance(5.0)
    world.check()


def test_a_renewal_of_unknown_fate_that_did_not_happen_is_not_taken_for_one(fenced):
    world = fenced(5.0)
    first, _, partition, _ = renewed_one(world)
    held = world.workers[first].worker.runners["sim"].group._leases.held
    session = held[partition].session
    before = session.renewed_at
    fault = Fault("timeout", applied=False, request="Map.ReplaceIfSame", client=first, map="gridscore.sessions")
    world.cluster.faults.append(fault)
    assert world.time.run_until(lambda: not fault.times, seconds=5.0)
    world.time.advance(0.1)
    assert session.renewed_at == before
    # It is tried again while the lease stands.
    world.time.advance(1.0)
    assert session.renewed_at > before
    assert held[partition].session is session
    world.settle()
    world.check()


@given(lease=st.floats(SHORTEST_SECONDS, 60.0) | st.floats(60.0, LONGEST_SECONDS))
def test_all_that_an_owner_sends_comes_before_its_successor_writes_whatever_the_lease(lease):
    fence = Fence.of(lease)
    assert fence.send + fence.hold + fence.slack == pytest.approx(lease)
    assert fence.latest_arrival < fence.first_write
    assert fence.send >= 0.69 * lease  # or owners would lose what they can keep
    assert 0.2 <= fence.hold <= HOLD_SECONDS


@pytest.mark.parametrize("lease", [float("nan"), -5.0, 0.0, 0.9, 100_000.0])
async def test_no_worker_and_no_sink_begins_with_a_lease_that_cannot_be_kept(lease):
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        with pytest.raises(UsageError, match="not between 1 s and a day"):
            Worker(grid, lease_seconds=lease)
        with pytest.raises(UsageError, match="not between 1 s and a day"):
            SinkRunner(grid, "x", "list", SinkSettings(results="results.x"), list, lease_seconds=lease)


@pytest.mark.parametrize("times", [(5.0, 4.0, 2.5, 0.25), (5.0, 3.0, 2.0, 0.0), (5.0, 0.0, 1.0, 1.0)])
def test_times_that_leave_no_room_are_refused(times):
    with pytest.raises(ValueError, match="may arrive after"):
        Fence(*times)


def test_a_write_that_has_a_bound_never_takes_the_way_through_another_member():
    world = World(PARTITIONS, members=2)
    through_others = []
    receive = Member.receive

    def watch(member, link, body):
        request = Request(body)
        if request.name == "Map.PutAll" and link.client.startswith("w") and request.partition >= 0:
            owner = world.cluster.owner(request.partition)
            if request.text() == "results.sim" and owner is not member:
                through_others.append(request.partition)
        receive(member, link, body)

    Member.receive = watch
    try:
        first = world.start()
        world.settle()
        far = world.cluster.members[1]
        world.cluster.cut(first, far)
        world.put({f"cut{i}": float(i) for i in range(64)})
        world.advance(3.0)
        # Those of the other member go on.
        assert {world.cluster.owner(p) for p, *_ in world.wrong()} == {far}
        assert not through_others
        # Whoever cannot write lets go, and whoever can takes it.
        world.start()
        for _ in range(30):
            world.advance(1.0)
            if not world.wrong():
                break
        assert not world.wrong()
        world.cluster.heal()
        world.settle()
        world.check()
        assert not through_others
    finally:
        Member.receive = receive
        world.close()
