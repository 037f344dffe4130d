"""Producers stop before a member runs out of heap, say so, and go on when there is room: on a small, real member."""

import asyncio
import json
from contextlib import ExitStack

import httpx
import pytest
import scoring
from http_serving import serving

from gridscore.client import connect
from gridscore.grid.heap import STOP, look_at_heaps
from gridscore.grid.member import Cluster
from gridscore.grid.writer import MapWriter
from gridscore.leash import LeashedProcess

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


async def test_senders_at_full_speed_are_told_of_the_heap_before_the_member_is_out_of_it(small_member, unique):
    """One post and two producers, each of more than the heap, and none knows of the others."""
    events, address = f"events.{unique}", {"members": small_member.addresses, "cluster_name": small_member.cluster_name}

    async def lines():
        for number in range(300):
            yield TEXT[:-1] + b',"id":"k%d"}\n' % number

    async with connect(**address) as client, connect(**address) as one, connect(**address) as other:
        said = []
        putting = [
            asyncio.create_task(
                each.producer(f"lookups.{unique}", on_wait=said.append).put(
                    (f"{place}-{number}", TEXT) for number in range(300)
                )
            )
            for place, each in enumerate((one, other))
        ]
        async with (
            serving(client.grid, to=events, key=("id",), patience="5s", max_event=2 << 20) as source,
            httpx.AsyncClient(base_url=source.address, timeout=120) as http,
        ):
            answer = await http.post(
                f"/events/{events}", content=lines(), headers={"content-type": "application/x-ndjson"}
            )
            assert answer.status_code == 429, answer.text
            # It waits for memory, or is slowed down for lack of memory: there may be garbage of the test before.
            assert "memory: member" in answer.json()["error"]
            assert answer.json()["accepted"] <= await source.size(events) < 300
            assert any("memory: member" in str(each) for each in said)
            assert not any(each.done() for each in putting)
            assert small_member.alive == [True]
            for each in putting:
                each.cancel()
            await asyncio.gather(*putting, return_exceptions=True)
            for name in (events, f"lookups.{unique}"):
                await (await client.grid.map(name)).destroy()

            async def taken():
                return (await http.post(f"/events/{events}", json={"id": "small"})).status_code == 202

            await scoring.until(taken, seconds=90)


async def test_processes_at_full_speed_stop_before_the_member_is_out_of_heap(small_member, unique, tmp_path):
    """Four processes, of which none knows of the others, load each as much as the heap holds."""
    table = tmp_path / "rows.jsonl"
    table.write_bytes(b"".join(b'{"id":%d,"text":"%s"}\n' % (number, b"x" * 100_000) for number in range(2_500)))
    maps = [f"lookups.{unique}-{place}" for place in range(4)]
    where = ["--cluster-name", small_member.cluster_name, *(f"--members={each}" for each in small_member.addresses)]
    with ExitStack() as stack:
        loads = [
            stack.enter_context(
                LeashedProcess(
                    "gridscore.cli",
                    ["load", "--from", str(table), "--to", name, "--key", "id", *where],
                    tmp_path / f"{name}.log",
                )
            )
            for name in maps
        ]

        async def all_wait():
            assert [each.exit_code for each in loads] == [None] * 4, [each.last_lines() for each in loads]
            return all("waiting for memory: member" in each.log_file.read_text() for each in loads)

        await scoring.until(all_wait, seconds=90)
        assert small_member.alive == [True]
        async with connect(members=small_member.addresses, cluster_name=small_member.cluster_name) as client:
            (heap,) = await look_at_heaps(client.grid)
            assert heap.share > 0.8
            for each in loads:
                each.stop()
            for name in maps:
                await (await client.grid.map(name)).destroy()
    assert small_member.alive == [True]
