"""Producers stop before a member runs out of heap, say so, and go on when there is room: on a small, real member."""

import asyncio
import json

import pytest
import scoring

from pipeline.client import connect
from pipeline.grid.heap import STOP, look_at_heaps
from pipeline.grid.member import Cluster
from pipeline.grid.writer import MapWriter

HEAP = 256 << 20
TEXT = json.dumps({"text": "x" * ((1 << 20) - 100)}).encode()


@pytest.fixture(scope="module")
def small_member():
    """A cluster of one member of 256 MB."""
    with Cluster.start(1, port=0, heap="256m", register=False) as cluster:
        yield cluster


async def test_a_heap_that_is_nearly_full_stops_producers_and_nobody_dies(small_member, unique, caplog):
    members, name = small_member.addresses, small_member.cluster_name
    async with connect(members=members, cluster_name=name) as client:
        (heap,) = await look_at_heaps(client.grid)
        assert 0.8 * HEAP <= heap.most <= HEAP
        ballast = await client.grid.map(f"lookups.{unique}")
        await MapWriter(client.grid, ballast.name).put((f"b{number}", TEXT) for number in range(100))
        said = []
        producer = client.producer(f"events.{unique}", on_wait=said.append)
        putting = asyncio.create_task(producer.put((f"k{number}", TEXT) for number in range(170)))
        await scoring.until(lambda: any("nothing is put" in str(each) for each in said), seconds=60)
        assert not putting.done()
        waiting = said[-1]
        assert "waiting for memory: member" in caplog.text
        assert waiting.job == ""
        assert waiting.heap.share >= STOP
        assert "more heap" in waiting.hint
        await ballast.destroy()
        assert await putting == 170  # by itself: nobody but us would have the member collect its garbage
        assert said[-1] is None
        assert small_member.alive == [True]
        assert await (await client.grid.map(f"events.{unique}")).size() == 170
