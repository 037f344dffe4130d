"""Leases on a real member: claim, commit, expire, fence."""

import asyncio

import pytest_asyncio
import scoring

from pipeline.grid import connect
from pipeline.worker.leases import Leases, delete_records, read_records


@pytest_asyncio.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


async def test_a_lease_is_claimed_once_and_goes_on_where_it_was_committed(grid, unique):
    first, second = Leases(grid, unique, "first"), Leases(grid, unique, "second")

    taken = await first.claim()
    assert len(taken) == grid.partition_count
    assert {lease.offset for lease in taken} == {-1}
    assert await second.claim() == []

    assert await first.commit({3: 17}) == []
    await first.release({3: 18, 4: 5})
    taken = {lease.partition: lease for lease in await second.claim()}
    assert (taken[3].offset, taken[4].offset, taken[5].offset) == (18, 5, -1)
    assert taken[3].record.epoch == 2


async def test_a_silent_owner_loses_its_leases_after_the_lease_time_and_cannot_commit(grid, unique):
    first, second = Leases(grid, unique, "first", seconds=0.5), Leases(grid, unique, "second", seconds=0.5)
    await first.claim()
    await first.commit(dict.fromkeys(range(grid.partition_count), 10))

    async def taken_over():
        await second.claim()
        return len(second.held) == grid.partition_count

    began = asyncio.get_running_loop().time()
    await scoring.until(taken_over)
    assert asyncio.get_running_loop().time() - began >= 0.5

    now = asyncio.get_running_loop().time()
    assert not any(first.stands(partition, now) for partition in range(grid.partition_count))
    lost = await first.commit(dict.fromkeys(range(grid.partition_count), 11))
    assert sorted(lost) == list(range(grid.partition_count))
    assert not first.held
    records = await read_records(grid, unique)
    assert {(r.owner, r.epoch, r.offset) for r in records.values()} == {("second", 2, 10)}


async def test_an_owner_that_renews_keeps_its_leases(grid, unique):
    first, second = Leases(grid, unique, "first", seconds=0.6), Leases(grid, unique, "second", seconds=0.6)
    await first.claim()
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.0
    while loop.time() < end:
        assert await first.commit({}) == []
        assert await second.claim() == []
    assert len(first.held) == grid.partition_count


async def test_an_offset_never_goes_back(grid, unique, caplog):
    leases = Leases(grid, unique, "one")
    await leases.claim()
    await leases.commit({0: 10})

    assert await leases.commit({0: 9}) == [0]

    assert 0 not in leases.held
    assert (await read_records(grid, unique))[0].offset == 10
    assert "would go back from 10 to 9" in caplog.text


async def test_forgotten_records_begin_anew(grid, unique):
    leases = Leases(grid, unique, "one")
    await leases.claim()
    await leases.release({0: 10})
    await delete_records(grid, unique)

    assert await read_records(grid, unique) == {}
