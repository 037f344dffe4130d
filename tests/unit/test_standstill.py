"""Whatever goes wrong, and be it a mistake of ours: nothing is held, or waited for, for ever and without a word."""

import asyncio

import pytest

from gridscore.errors import GridError
from gridscore.grid.writer import MapWriter
from gridscore.group.group import Group
from gridscore.group.members import Members
from gridscore.group.reader import JournalReader
from gridscore.group.subscription import GroupStats, Subscription
from gridscore.job import Jobs, parse_job
from gridscore.producer.producer import Producer
from gridscore.scoring.prior_results import ResultOrigin, origins_of
from gridscore.testing import StubCluster

EVENTS = "events.x"
JOB = f"""\
job: slow
events: {EVENTS}
schema: {{amount: float}}
features: {{amount: amount}}
model: {{name: none, alias: champion}}
results: results.x
"""


class Reading:
    """Takes partitions over, but for the first, of which it does not know what to make."""

    def __init__(self):
        self.failures = 1

    async def offset_at(self, _partition, _oldest, newest):
        return newest + 1

    async def take_over(self, _lease, offset):
        if self.failures:
            self.failures -= 1
            raise ValueError("something that nobody thought of")
        return offset

    def dropped(self, partition):
        pass

    async def look_over(self, _partition, page, _origin):
        return page


async def test_a_partition_that_could_not_be_begun_is_let_go_and_taken_again():
    async with StubCluster(partitions=3) as cluster:
        grid = await cluster.connect("worker")
        subscription = Subscription("group", EVENTS, "oldest", "continue")
        group = Group(grid, subscription, Reading(), Members(grid, "worker"), GroupStats(), seconds=5.0)
        running = asyncio.create_task(group.run())
        try:
            async with asyncio.timeout(15):
                while not group._reader.partitions >= set(range(3)):
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await group.leave()


async def test_a_page_that_could_not_be_looked_into_is_read_again():
    looks = 0

    async def look_into(_cursor, page, _gap):
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ValueError("something that nobody thought of")
        return page

    async with StubCluster(partitions=1) as cluster:
        grid = await cluster.connect("worker")
        await MapWriter(grid, EVENTS).put([("a", b"1"), ("b", b"2")])
        reader = JournalReader(grid, EVENTS, lambda _partition, _oldest: None, look_into)
        reader.start(0, 0, doubt=2)
        async with asyncio.timeout(10):
            await reader.wait()
        assert [arrival.page.values for arrival in reader.take(10)] == [[b"1", b"2"]]
        reader.close()


@pytest.mark.parametrize("text", [b'{"deep":' * 100_000, b'{"sequence":"\xff"}', b"[]"])
async def test_what_others_put_among_the_results_stands_whatever_it_is(text):
    async with StubCluster(partitions=1) as cluster:
        grid = await cluster.connect("worker")
        writer = MapWriter(grid, "results.x")
        await writer.put([("a", text)])
        key = writer.serialize_key("a")
        assert await origins_of(grid, "results.x", 0, [key]) == {key: ResultOrigin()}


async def test_whoever_waits_for_room_is_told_that_nobody_can_see_it():
    async with StubCluster(partitions=1) as cluster:
        grid = await cluster.connect("source")
        await Jobs(grid).submit(parse_job(JOB, "test"))
        await MapWriter(grid, EVENTS).put((f"k{n}", b"{}") for n in range(2_000))
        producer = Producer(grid, EVENTS)

        async def unread(_partitions, _enough):
            raise ValueError("something that nobody thought of")

        producer._readers.unread = unread
        async with asyncio.timeout(60):
            with pytest.raises(GridError, match="is unknown"):
                await producer.put([("one more", b"{}")])
