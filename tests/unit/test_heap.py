"""How full a member's heap is, as it tells: on a stub cluster, and from what it packs."""

import asyncio
import zlib

import pytest

from gridscore.cli.status import _show_members
from gridscore.errors import GridError
from gridscore.grid.heap import MemberHeap, heaps_of, look_at_heaps
from gridscore.grid.metrics import heap_of
from gridscore.operations.flow import _examine_heaps
from gridscore.operations.health import Level
from gridscore.testing import StubCluster
from gridscore.testing.member import heap_blob


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def seen_by(watch):
    (marks,) = watch._marks.values()
    return marks.last.sample.used, marks.last.sample.collections


async def test_a_heap_is_what_the_member_measured_last_or_it_is_said_why_it_is_not_known():
    async with StubCluster(4) as cluster:
        client = await cluster.client()
        (heap,) = await look_at_heaps(client.grid)
        assert "measured" in heap.refusal
        (member,) = cluster.members
        member.measure(500 << 20, 1000 << 20)
        member.measure(950 << 20, 1000 << 20)
        (heap,) = await look_at_heaps(client.grid)
        assert f"{heap}".endswith("uses 95% of its 1.0 GB of heap")


def test_a_heap_is_a_problem_when_it_was_full_at_every_look():
    full, still, high, low = (
        [MemberHeap("a:1", used, 100, collections=count)] for used, count in ((95, 1), (96, 2), (85, 2), (50, 2))
    )
    (problem,) = _examine_heaps([full, still])
    assert problem.level is Level.PROBLEM
    assert "uses 95% of its 0 MB of heap, after garbage collection" in problem.text
    (note,) = _examine_heaps([full, full])  # nothing was collected: it may be garbage, and is not a problem then
    assert note.level is Level.NOTE
    assert "garbage included: nothing was collected meanwhile" in note.text
    assert [each.level for each in _examine_heaps([full, high])] == [Level.NOTE]
    assert not _examine_heaps([full, low])


@pytest.mark.parametrize(
    ("used", "collections", "verdict"),
    [(30, 1, "well, 1,"), (95, 1, "1,"), (85, 2, "1,"), (95, 2, "not well, 1,")],
)
def test_members_are_called_well_only_if_it_is_known_that_they_have_room(used, collections, verdict, capsys):
    looks = [[MemberHeap("a:1", used, 100, collections=count)] for count in (1, collections)]
    _show_members(looks[-1], _examine_heaps(looks))
    assert capsys.readouterr().out.startswith(f"members: {verdict} {used}% of 0 MB of heap used")


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0\1",
        b"\0\2" + bytes(20),
        heap_blob(1, 2)[:40],
        heap_blob(1, 0),
        b"\0\1\0\0\0\0" + bytes(4),
        b"\0\1" + len(zlib.compress(bytes(1 << 26))).to_bytes(4, "big") + zlib.compress(bytes(1 << 26)) + bytes(9),
    ],
)
def test_what_a_member_tells_in_other_ways_is_refused(blob):
    with pytest.raises(GridError, match="heap"):
        heap_of(blob)


def test_a_heap_is_read_as_it_was_packed():
    sample = heap_of(heap_blob(123, 456, 7))
    assert (sample.used, sample.most, sample.collections) == (123, 456, 7)


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("garbage", [0.0, 2.0])
async def test_processes_that_know_nothing_of_each_other_do_not_overrun_a_heap(count, garbage):
    """Each puts whatever it may at once; what is put makes garbage, which is collected now and then."""
    most, piece = 256 << 20, 1 << 16
    async with StubCluster(4) as cluster:
        (member,) = cluster.members
        kept, dirt, collections = most // 10, 0, 1
        watches = [heaps_of((await cluster.client()).grid) for _ in range(count)]
        member.measure(kept, most)
        for watch in watches:
            await watch.start()
        for number in range(200):
            before = kept
            for watch in watches:
                while watch.has_room:
                    watch.spend(0, piece)
                    kept, dirt = kept + piece, dirt + int(garbage * piece)
                    assert kept < most, "the member is out of memory"
            if kept + dirt > 0.98 * most or number % 3 == 0:
                dirt, collections = 0, collections + 1
            now = min(kept + dirt, most), collections
            member.measure(now[0], most, collections)
            await until(lambda now=now: all(seen_by(watch) == now for watch in watches))
            if kept == before and all(watch.stops for watch in watches):
                break
        assert all(watch.stops for watch in watches)
        assert kept <= 0.97 * most
