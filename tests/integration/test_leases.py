"""Leases on a real member: claim, commit, expire, fence, release, reset."""

import asyncio
import contextlib

import pytest_asyncio
import scoring
from hazelcast.errors import HazelcastError

from gridscore.grid import connect
from gridscore.grid.writer import partition_of
from gridscore.group.lease_records import lease_key, read_records
from gridscore.group.leases import Leases, Progress, start_over


@pytest_asyncio.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


async def look(leases, grid):
    """Look at all: on a busy machine no member may answer in time."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(HazelcastError):
                return await leases.look(range(grid.partition_count))


async def claim_all(leases, grid):
    """Look, and take whatever can be taken."""
    await look(leases, grid)
    await asyncio.sleep(0.01)  # a session is looked at only every so often
    return await leases.claim([*leases.free(), *leases.expired()])


async def claim_each(leases, grid):
    """Take all of them: a member is not waited for beyond a part of the lease, if the machine is busy."""
    while len(leases.held) < grid.partition_count:
        await claim_all(leases, grid)
        leases.sessions.renew()
    return leases.held.values()


async def commit_all(leases, progress):
    """Commit until the fate of each is known, and return what was lost: a busy machine may answer too late."""
    lost = set()

    async def known():
        lost.update(await leases.commit(progress))
        return all(
            partition in lost or leases.held[partition].record.offset == there.offset
            for partition, there in progress.items()
        )

    await scoring.until(known)
    return sorted(lost)


def everywhere(grid, offset):
    return dict.fromkeys(range(grid.partition_count), Progress(offset, 0))


async def test_a_record_lies_in_the_partition_that_it_is_of(grid, unique):
    for partition in (0, 1, 17, grid.partition_count - 1):
        key = lease_key(unique, partition, grid.partition_count)
        assert partition_of(key, grid.partition_count) == partition
    leases = Leases(grid, unique, "one")
    assert len(await claim_each(leases, grid)) == grid.partition_count
    assert len(await read_records(grid, unique)) == grid.partition_count
    assert (await read_records(grid, unique, [3, 9])).keys() == {3, 9}


async def test_a_lease_is_claimed_once_and_goes_on_where_it_was_committed(grid, unique):
    first, second = Leases(grid, unique, "first"), Leases(grid, unique, "second")

    taken = await claim_each(first, grid)
    assert {lease.record.offset for lease in taken} == {-1}
    assert not any(lease.before for lease in taken)
    assert await claim_all(second, grid) == []

    assert await first.commit({3: Progress(17, 2)}) == []
    first.held[4].doubt = 9
    await first.release({3: Progress(18, 2), 4: Progress(5, 0)})
    taken = {lease.partition: lease for lease in await claim_all(second, grid)}
    assert taken.keys() == {3, 4}
    assert [(taken[p].record.offset, taken[p].record.lost, taken[p].doubt) for p in (3, 4)] == [(18, 2, 0), (5, 0, 9)]
    assert taken[3].record.epoch == 2
    assert not taken[3].before


async def test_a_reset_under_way_is_not_undone_by_a_release(grid, unique):
    leases = Leases(grid, unique, "one")
    await claim_each(leases, grid)
    assert await leases.commit({3: Progress(17, 0)}) == []

    reset = asyncio.create_task(leases.reset(3, 5))
    await asyncio.sleep(0)  # its write is on its way
    await leases.release({3: Progress(20, 0)})

    assert await reset
    record = (await read_records(grid, unique, [3]))[3]
    assert (record.owner, record.offset) == ("", 5)


async def test_of_two_that_claim_at_once_one_gets_each_partition(grid, unique):
    workers = [Leases(grid, unique, f"worker{n}") for n in range(3)]
    for worker in workers:
        await look(worker, grid)
    await asyncio.gather(*(worker.claim(worker.free()) for worker in workers))
    held = [partition for worker in workers for partition in worker.held]
    assert sorted(held) == list(range(grid.partition_count))


async def test_a_silent_owner_loses_its_leases_after_the_lease_time_and_cannot_commit(grid, unique):
    first, second = Leases(grid, unique, "first", seconds=1.0), Leases(grid, unique, "second", seconds=5.0)
    await claim_each(first, grid)
    assert await commit_all(first, everywhere(grid, 10)) == []

    async def taken_over():
        await claim_all(second, grid)
        return len(second.held) == grid.partition_count

    began = grid.clock()
    await scoring.until(taken_over)
    # It is the owner's lease time that counts, not that of the one who waits for it.
    assert 1.0 <= grid.clock() - began < 5.0
    assert all(lease.before == "first" for lease in second.held.values())

    assert not any(grid.clock() < first.until(partition) for partition in range(grid.partition_count))
    assert await commit_all(first, everywhere(grid, 11)) == list(range(grid.partition_count))
    assert not first.held
    records = await read_records(grid, unique)
    assert {(r.owner, r.epoch, r.offset) for r in records.values()} == {("second", 2, 10)}


async def test_a_lease_that_nobody_watched_has_not_run_out(grid, unique):
    first, second = Leases(grid, unique, "first", seconds=1.0), Leases(grid, unique, "second", seconds=1.0)
    await claim_all(first, grid)
    await look(second, grid)
    await asyncio.sleep(0.6)  # as long as a pause of the watcher, or a member that did not answer
    await look(second, grid)
    assert second.expired() == []


async def test_an_owner_that_renews_keeps_its_leases(grid, unique):
    first, second = Leases(grid, unique, "first", seconds=1.0), Leases(grid, unique, "second", seconds=1.0)
    await claim_each(first, grid)
    end = grid.clock() + 2.5
    while grid.clock() < end:
        assert await first.commit({}) == []
        assert await claim_all(second, grid) == []
    assert len(first.held) == grid.partition_count


async def test_an_offset_never_goes_back_but_by_a_reset(grid, unique, caplog):
    leases = Leases(grid, unique, "one")
    await claim_each(leases, grid)
    assert await commit_all(leases, {0: Progress(10, 0), 1: Progress(10, 3)}) == []

    assert await leases.commit({0: Progress(9, 0)}) == [0]

    assert 0 not in leases.held
    assert (await read_records(grid, unique))[0].offset == 10
    assert "would go back from 10 to 9" in caplog.text

    assert await leases.reset(1, 4, regressed=True)
    record = (await read_records(grid, unique))[1]
    assert (record.offset, record.epoch, record.origin, record.lost, record.regressions) == (4, 2, 2, 3, 1)
    assert not await leases.reset(0, 4)


async def test_a_job_that_starts_over_goes_on_counting_epochs_and_former_owners_find_out(grid, unique):
    leases = Leases(grid, unique, "one")
    await claim_each(leases, grid)
    assert await commit_all(leases, {0: Progress(10, 1)}) == []
    await start_over(grid, unique)

    record = (await read_records(grid, unique))[0]
    assert (record.offset, record.lost, record.epoch, record.origin) == (-1, 0, 2, 2)
    assert await commit_all(leases, everywhere(grid, 12)) == list(range(grid.partition_count))
