import asyncio

import pytest

from gridscore.grid import transport
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter
from gridscore.results.sequences import READ_BYTES, sequences_of
from gridscore.sources.http.results import ResultFinder
from gridscore.testing import StubCluster

LARGE = b'{"v":"' + b"x" * 100_000 + b'"}'


@pytest.fixture
def reads(monkeypatch):
    """What is read: entries, bytes, and the reads that were under way at once."""
    figures = {"reads": 0, "bytes": 0, "now": 0, "most": 0}
    real = Journal.read

    def read(journal, partition, start, count):
        figures["now"] += 1
        figures["most"] = max(figures["most"], figures["now"])
        future = real(journal, partition, start, count)

        def done(it):
            figures["now"] -= 1
            figures["reads"] += 1
            figures["bytes"] += it.result().size

        future.add_done_callback(done)
        return future

    monkeypatch.setattr(Journal, "read", read)
    return figures


async def put(grid, *entries):
    writer = MapWriter(grid, "events.x")
    await writer.prepare()
    for entry in entries:  # one by one: their order in the journal is that in time
        await writer.put([entry])


async def test_one_question_reads_no_more_than_its_budget(reads):
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        await put(grid, *[("k", LARGE)] * 100)
        data = transport.key_data(grid.client, "k")
        assert await sequences_of(grid, "events.x", [(data, b"{}")], READ_BYTES) == [None]
        assert reads["bytes"] < 2 * READ_BYTES


async def test_a_request_of_many_events_reads_each_partition_once(reads):
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        events = [("k", b'{"a":%d}' % n) for n in range(100)]
        await put(grid, *[("k", LARGE)] * 30, *events)
        found = await ResultFinder(grid).sequences_before("events.x", events)
        assert found == list(range(29, 129))
        assert reads["reads"] < 15
        assert reads["bytes"] < 100 * READ_BYTES // 50

        reads["bytes"] = 0
        unknown = [("k", b'{"b":%d}' % n) for n in range(100)]
        assert await ResultFinder(grid).sequences_before("events.x", unknown) == [None] * 100
        assert reads["bytes"] < 2 * READ_BYTES


async def test_the_newest_of_equal_events_is_found_however_far_back_the_others_are():
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        await put(grid, ("k", b"{}"), ("k", b'{"a":1}'), ("k", b"{}"), *[("k", b'{"n":1}')] * 40)
        data = transport.key_data(grid.client, "k")
        assert await sequences_of(grid, "events.x", [(data, b"{}"), (data, b'{"a":1}')]) == [2, 1]


async def test_all_who_look_share_a_few_reads(reads):
    async with StubCluster() as cluster:
        grid = await cluster.connect()
        entries = [(f"k{n}", b'{"a":%d}' % n) for n in range(60)]
        await put(grid, *entries)
        finder = ResultFinder(grid)
        answers = await asyncio.gather(*(finder.sequences_before("events.x", entries) for _ in range(5)))
        assert all(None not in places for places in answers)
        assert reads["most"] <= 4
