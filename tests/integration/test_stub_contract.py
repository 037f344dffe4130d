"""What the stub cluster answers is what a real member answers: each test runs on both."""

import asyncio
import struct

import pytest
import pytest_asyncio
import yaml
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import UnsupportedOperationError
from hazelcast.internal.asyncio_invocation import Invocation
from hazelcast.protocol.codec import client_ping_codec, client_statistics_codec
from scoring import until

from gridscore.errors import JournalMissingError
from gridscore.grid import GridSettings, Records, connect, transport, wire
from gridscore.grid.copies import Fetcher
from gridscore.grid.heap import look_at_heaps
from gridscore.grid.journal import Journal
from gridscore.grid.member import Cluster
from gridscore.grid.template import template_file
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.testing import StubCluster
from gridscore.testing.messages import NAMES

PARTITIONS = 271
RING = 4

ADDED, REMOVED, UPDATED, CLEAR_ALL = 1, 2, 4, 64


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """A member whose `events.tiny-*` maps have journals of four events a partition."""
    config = yaml.safe_load(template_file().read_text())
    maps = config["hazelcast"]["map"]
    maps["events.tiny-*"] = {
        **maps["events.*"],
        "event-journal": {**maps["events.*"]["event-journal"], "capacity": PARTITIONS * RING},
    }
    path = tmp_path_factory.mktemp("contract") / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(1, port=0, heap="256m", config=path, register=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stub():
    return StubCluster(PARTITIONS, journals={"events.tiny-*": RING, "events.*": 1000})


@pytest_asyncio.fixture(params=["stub", "member"])
async def grid(request):
    if request.param == "stub":
        grid = await request.getfixturevalue("stub").connect()
    else:
        member = request.getfixturevalue("member")
        grid = await connect(GridSettings.load(members=member.addresses, cluster_name=member.cluster_name))
    async with grid:
        yield grid


def json(value):
    return HazelcastJsonValue(value)


async def text(awaitable):
    found = await awaitable
    return None if found is None else found.to_string()


def place(grid, key):
    data = transport.key_data(grid.client, key)
    return data, partition_of(data, grid.partition_count)


def ask(grid, message, partition, decode=lambda message: message):
    """Sends a request at once; the answer comes by the future."""
    return transport.invoke(grid.client, message, partition, decode)


def raw_page(message):
    """Count and next sequence as they are, and the items."""
    body = message.body
    (first,) = struct.unpack_from("<i", body, 0)
    count, following = struct.unpack_from("<iq", body, 6 + 13)
    items, at = [], first + 6
    for _ in range(count):
        (length,) = struct.unpack_from("<i", body, at)
        items.append(body[at + 6 : at + length])
        at += length
    return count, following, items


# ---------------------------------------------------------------------- maps


async def test_entries_are_put_and_got(grid, unique):
    proxy = await grid.map(f"lookups.{unique}")

    assert await proxy.put("a", json("1")) is None
    assert await text(proxy.put("a", json("2"))) == "1"
    await proxy.set("b", json("3"))
    assert await text(proxy.get("b")) == "3"
    assert await proxy.get("missing") is None
    assert await proxy.contains_key("a")
    assert not await proxy.contains_key("missing")
    assert await proxy.size() == 2
    assert not await proxy.is_empty()
    assert {k: v.to_string() for k, v in await proxy.entry_set()} == {"a": "2", "b": "3"}
    assert sorted(await proxy.key_set()) == ["a", "b"]
    assert sorted(v.to_string() for v in await proxy.values()) == ["2", "3"]


async def test_entries_are_removed_and_replaced(grid, unique):
    proxy = await grid.map(f"lookups.{unique}")
    await proxy.set("a", json("1"))

    assert await text(proxy.replace("a", json("2"))) == "1"
    assert await proxy.replace("missing", json("2")) is None
    assert not await proxy.contains_key("missing")
    assert await proxy.replace_if_same("a", json("2"), json("3"))
    assert not await proxy.replace_if_same("a", json("2"), json("4"))
    assert not await proxy.replace_if_same("missing", json("2"), json("4"))
    assert not await proxy.remove_if_same("a", json("2"))
    assert await proxy.remove_if_same("a", json("3"))
    assert await proxy.put_if_absent("a", json("5")) is None
    assert await text(proxy.put_if_absent("a", json("6"))) == "5"
    assert await text(proxy.remove("a")) == "5"
    assert await proxy.remove("a") is None
    await proxy.set("a", json("7"))
    await proxy.delete("a")
    await proxy.delete("missing")
    assert await proxy.is_empty()


async def test_keys_differ_by_more_than_their_partition_hash(grid, unique):
    """A key may carry its partition in its first four bytes; to the map it is the same key."""
    name = f"lookups.{unique}"
    data, partition = place(grid, "key")
    hashed = struct.pack(">i", partition + PARTITIONS) + data[4:]
    writer = MapWriter(grid, name)
    await writer.put_partition(partition, [hashed], [b"1"])
    await writer.put_partition(partition, [data], [b"2"])

    assert await (await grid.map(name)).size() == 1
    found = await ask(grid, wire.encode_get_all(name, [data, hashed]), partition, wire.decode_get_all)
    assert [wire.json_data(b"2")] * len(found) == [value for _, value in found]


async def test_many_entries_are_put_fetched_and_walked(grid, unique):
    name = f"lookups.{unique}"
    entries = {f"k{i}": b"%d" % i for i in range(3000)}
    assert await MapWriter(grid, name).put(entries.items()) == 3000

    assert dict(await Fetcher(grid, name).fetch(["k1", "k2999", "missing"])) == {"k1": b"1", "k2999": b"2999"}
    walked = []
    for partition in range(grid.partition_count):
        pointers = [wire.FIRST_ENTRY]
        while pointers[-1][0] >= 0:
            message = wire.encode_fetch_entries(name, pointers, 3)
            pointers, found = await ask(grid, message, partition, wire.decode_fetch_entries)
            walked += [(transport.to_object(grid.client, key), value[12:]) for key, value in found]
    assert len(walked) == 3000
    assert dict(walked) == entries


async def test_maps_have_names_until_they_are_destroyed(grid, unique):
    name = f"lookups.{unique}"
    assert not await grid.has_map(name)
    await MapWriter(grid, name).put_partition(0, [place(grid, "x")[0]], [b"1"])
    assert name not in await transport.map_names(grid.client) or await transport.map_size(grid.client, name) == 1
    proxy = await grid.map(name)
    assert name in await transport.map_names(grid.client)
    assert await proxy.destroy()
    assert name not in await transport.map_names(grid.client)
    assert await transport.map_size(grid.client, name) == 0


async def test_records_are_changed_by_one_of_two_only(grid, unique):
    records = Records(grid, f"gridscore.test-{unique}")
    first = await records.create("a", {"n": 1})
    second = await records.replace(first, {"n": 2})
    assert (await records.get("a")) == second
    assert (await records.all()) == {"a": second}


# ---------------------------------------------------------------------- listeners


async def listened(grid, name, *, include_value):
    proxy = await grid.map(name)
    events = []

    def note(event):
        events.append((event.event_type, event.key, _text(event.value), _text(event.old_value)))

    def all_gone(event):
        events.append((event.event_type, event.number_of_affected_entries))

    registration = await proxy.add_entry_listener(
        include_value=include_value,
        added_func=note,
        updated_func=note,
        removed_func=note,
        clear_all_func=all_gone,
    )
    return proxy, events, registration


def _text(value):
    return None if value is None else value.to_string()


@pytest.mark.parametrize("include_value", [True, False])
async def test_listeners_hear_of_every_change_in_order(grid, unique, include_value):
    proxy, events, _ = await listened(grid, f"lookups.{unique}", include_value=include_value)
    await proxy.put("a", json("1"))
    await proxy.set("a", json("2"))
    await MapWriter(grid, proxy.name).put([("a", b"3")])
    await proxy.replace_if_same("a", json("3"), json("4"))
    await proxy.replace("a", json("5"))
    await proxy.remove("a")
    await proxy.put_if_absent("a", json("6"))
    await proxy.put_if_absent("a", json("7"))
    await proxy.delete("a")
    await proxy.delete("a")
    await proxy.put("a", json("8"))

    kinds = [ADDED, UPDATED, UPDATED, UPDATED, UPDATED, REMOVED, ADDED, REMOVED, ADDED]
    # A removal tells what was there; a deletion does not.
    values = [("1", None), ("2", "1"), ("3", "2"), ("4", "3"), ("5", "4"), (None, "5"), ("6", None), (None, None)]
    values.append(("8", None))
    await until(lambda: len(events) >= len(kinds))
    expected = [(k, "a", *(v if include_value else (None, None))) for k, v in zip(kinds, values, strict=True)]
    assert events == expected


async def test_listeners_hear_once_that_a_map_was_cleared(grid, unique):
    proxy, events, _ = await listened(grid, f"lookups.{unique}", include_value=True)
    await proxy.clear()
    await MapWriter(grid, proxy.name).put([("a", b"1"), ("b", b"2")])
    await until(lambda: len(events) == 2)
    await proxy.clear()
    await proxy.put("last", json("3"))

    await until(lambda: len(events) >= 4)
    # A member orders the events of a key, and those of the map as a whole, but not the ones with the others: it hands
    # them to threads by the hashes of the key and of the map's name.
    assert set(events[2:]) == {(CLEAR_ALL, 2), (ADDED, "last", "3", None)}
    assert len(events) == 4


async def test_listeners_hear_only_what_they_asked_for_until_they_leave(grid, unique):
    proxy = await grid.map(f"lookups.{unique}")
    added, removed = [], []
    registration = await proxy.add_entry_listener(added_func=added.append)
    await proxy.add_entry_listener(removed_func=removed.append)
    await proxy.put("a", json("1"))
    await proxy.put("a", json("2"))
    await proxy.remove("a")
    await until(lambda: removed)
    assert len(added) == 1

    assert await proxy.remove_entry_listener(registration)
    await proxy.put("b", json("1"))
    await proxy.remove("b")
    await until(lambda: len(removed) == 2)
    assert len(added) == 1


async def test_listeners_hear_that_a_map_was_destroyed_until_they_leave(grid, unique):
    names, heard = [f"lookups.{each}-{unique}" for each in ("first", "second", "third")], []

    def note(event):
        if unique in event.name and event.event_type == "DESTROYED":
            heard.append(event.name)

    registration = await grid.client.add_distributed_object_listener(note)
    for name in names[:2]:
        await (await grid.map(name)).destroy()
        await until(lambda name=name: name in heard)
    assert await grid.client.remove_distributed_object_listener(registration)
    await (await grid.map(names[2])).destroy()
    assert heard == names[:2]


# ---------------------------------------------------------------------- journals


async def test_an_empty_journal_has_bounds_and_a_read_at_once_is_told_zero(grid, unique):
    name = f"events.{unique}"
    assert await Journal(grid, name).bounds(0) == (0, -1)
    assert raw_page(await ask(grid, wire.encode_read(name, 0, 0, 10), 0)) == (0, 0, [])


async def test_a_read_at_the_end_is_told_that_zero_follows(grid, unique):
    name = f"events.{unique}"
    key, partition = place(grid, "a")
    await MapWriter(grid, name).put_partition(partition, [key], [b"1"])
    assert raw_page(await ask(grid, wire.encode_read(name, 1, 0, 10), partition)) == (0, 0, [])


async def test_every_change_is_in_the_journal(grid, unique):
    name = f"events.{unique}"
    proxy = await grid.map(name)
    key, partition = place(grid, "a")
    await proxy.put("a", json("1"))
    await proxy.set("a", json("2"))
    await MapWriter(grid, name).put_partition(partition, [key], [b"3"])
    await proxy.replace("a", json("4"))
    await proxy.replace_if_same("a", json("4"), json("5"))
    await proxy.remove("a")
    await proxy.put_if_absent("a", json("6"))
    await proxy.remove_if_same("a", json("6"))
    await proxy.put("a", json("7"))
    await proxy.clear()
    await proxy.put("a", json("8"))
    await proxy.delete("a")
    await proxy.delete("a")

    def field(value):
        data = b"" if value is None else wire.json_data(value)
        return struct.pack(">i", -1 if value is None else len(data)) + data

    values = [(b"1", None), (b"2", b"1"), (b"3", b"2"), (b"4", b"3"), (b"5", b"4"), (None, b"5"), (b"6", None)]
    values += [(None, b"6"), (b"7", None), (None, b"7"), (b"8", None), (None, b"8")]
    kinds = [ADDED, UPDATED, UPDATED, UPDATED, UPDATED, REMOVED, ADDED, REMOVED, ADDED, REMOVED, ADDED, REMOVED]
    assert await Journal(grid, name).bounds(partition) == (0, len(kinds) - 1)
    count, following, items = raw_page(await ask(grid, wire.encode_read(name, 0, 1, 100), partition))
    assert (count, following) == (12, 12)
    for item, kind, (new, old) in zip(items, kinds, values, strict=True):
        event = item[8:]  # behind hash and type
        assert event[:13] == struct.pack(">biii", 1, -4, 132, kind)[:13]
        body = struct.pack(">i", len(key)) + key + field(new) + field(old)
        assert event[13 : 13 + len(body)] == body
    page = wire.decode_read(await ask(grid, wire.encode_read(name, 0, 1, 100), partition))
    assert page.sequences == [0, 1, 2, 3, 4, 6, 8, 10]
    assert page.values == [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]


async def fill(grid, name, count):
    """Puts events into one partition of a map, until it has had so many."""
    key, partition = place(grid, "a")
    for i in range(count):
        await MapWriter(grid, name).put_partition(partition, [key], [b"%d" % i])
    return key, partition


async def test_a_ring_keeps_the_newest_and_moves_reads_to_what_there_is(grid, unique):
    name = f"events.tiny-{unique}"
    _, partition = await fill(grid, name, 10)
    journal = Journal(grid, name)
    assert await journal.bounds(partition) == (6, 9)

    async def read(start, minimum=1, maximum=100):
        page = wire.decode_read(await ask(grid, wire.encode_read(name, start, minimum, maximum), partition))
        return page.first, page.next, page.values

    assert await read(0) == (6, 10, [b"6", b"7", b"8", b"9"])
    assert await read(-5) == (6, 10, [b"6", b"7", b"8", b"9"])
    assert await read(8) == (8, 10, [b"8", b"9"])
    assert await read(7, 1, 2) == (7, 9, [b"7", b"8"])
    assert await read(7, 0, 2) == (7, 9, [b"7", b"8"])


async def test_a_read_waits_for_its_minimum(grid, unique):
    name = f"events.{unique}"
    key, partition = await fill(grid, name, 1)
    waiting = ask(grid, wire.encode_read(name, 1, 2, 10), partition)

    await MapWriter(grid, name).put_partition(partition, [key], [b"one"])
    assert await Journal(grid, name).bounds(partition) == (0, 1)
    assert not waiting.done()
    await MapWriter(grid, name).put_partition(partition, [key], [b"two"])
    page = wire.decode_read(await waiting)
    assert (page.first, page.next, page.values) == (1, 3, [b"one", b"two"])


async def test_a_read_too_far_ahead_is_moved_back_and_waits(grid, unique):
    name = f"events.{unique}"
    key, partition = await fill(grid, name, 1)
    waiting = ask(grid, wire.encode_read(name, 50, 1, 10), partition)

    await MapWriter(grid, name).put_partition(partition, [key], [b"one"])
    page = wire.decode_read(await waiting)
    assert (page.first, page.next, page.values) == (1, 2, [b"one"])


async def test_a_read_that_waits_holds_up_those_behind_it(grid, unique):
    """The member wakes waiting reads in their order, and stops at the first that must go on waiting."""
    name = f"events.{unique}"
    key, partition = await fill(grid, name, 1)
    modest = ask(grid, wire.encode_read(name, 1, 1, 10), partition)
    greedy = ask(grid, wire.encode_read(name, 1, 2, 10), partition)
    behind = ask(grid, wire.encode_read(name, 1, 1, 10), partition)

    await MapWriter(grid, name).put_partition(partition, [key], [b"one"])
    assert await Journal(grid, name).bounds(partition) == (0, 1)
    assert wire.decode_read(await modest).values == [b"one"]
    assert not greedy.done()
    assert not behind.done()
    await MapWriter(grid, name).put_partition(partition, [key], [b"two"])
    assert wire.decode_read(await greedy).values == [b"one", b"two"]
    assert wire.decode_read(await behind).values == [b"one", b"two"]


async def test_waiting_reads_are_woken_by_removals_and_by_a_cleared_map(grid, unique):
    name = f"events.{unique}"
    _, partition = await fill(grid, name, 1)
    proxy = await grid.map(name)

    for start, change in [(1, proxy.delete("a")), (2, proxy.put("a", json("1"))), (3, proxy.clear())]:
        waiting = ask(grid, wire.encode_read(name, start, 1, 10), partition)
        await change
        page = wire.decode_read(await waiting)
        assert (page.first, page.next) == (start, start + 1)


async def test_a_map_without_a_journal_says_so(grid, unique):
    name = f"lookups.{unique}"
    with pytest.raises(JournalMissingError):
        await Journal(grid, name).bounds(0)
    with pytest.raises(UnsupportedOperationError):
        await ask(grid, wire.encode_read(name, 0, 1, 1), 0)


async def test_a_journal_begins_again_with_its_map(grid, unique):
    name = f"events.{unique}"
    _, partition = await fill(grid, name, 3)
    await (await grid.map(name)).destroy()
    assert await Journal(grid, name).bounds(partition) == (0, -1)


# ---------------------------------------------------------------------- the client's own


async def test_clients_say_that_they_live_and_how_they_do(grid):
    connection = next(iter(transport.member_connections(grid.client).values()))
    for message in (client_ping_codec.encode_request(), client_statistics_codec.encode_request(0, "", b"")):
        invocation = Invocation(message, connection=connection)
        await grid.client._invocation_service.ainvoke(invocation)


async def test_every_partition_has_an_owner_that_is_a_member(grid):
    members = {member.uuid for member in grid.members}
    await until(lambda: grid.client.partition_service.get_partition_owner(0))
    owners = {grid.client.partition_service.get_partition_owner(p) for p in range(grid.partition_count)}
    assert grid.partition_count == PARTITIONS
    assert owners == members


async def test_a_client_comes_back_after_its_connection_broke_and_hears_again(grid, unique):
    proxy, events, _ = await listened(grid, f"lookups.{unique}", include_value=True)
    back = asyncio.Event()
    grid.on_reconnect(back.set)
    for connection in list(transport.member_connections(grid.client).values()):
        await connection.close_connection("test", None)
    async with asyncio.timeout(20):
        await back.wait()

    await until(lambda: _put_and_look(proxy, events))


async def _put_and_look(proxy, events):
    await proxy.put("a", json("1"))
    return events


async def test_a_member_tells_its_heap(grid, request):
    if request.node.callspec.params["grid"] == "stub":
        (member,) = request.getfixturevalue("stub").members
        member.measure(100 << 20, 256 << 20)
    async with asyncio.timeout(30):
        while not (heap := (await look_at_heaps(grid))[0]).most:  # a member measures for the first time after a moment
            await asyncio.sleep(0.05)
    assert 0 < heap.used <= heap.most <= 256 << 20


def test_the_stub_was_compared_in_all_that_it_knows(stub, request):
    ran = {item.originalname for item in request.session.items if item.path == request.path}
    everything = {name for name in globals() if name.startswith("test_")}
    if ran != everything:
        pytest.skip("only some of the comparisons were asked for")
    # What else is asked it refuses, as members do that trust no Management Center from here.
    assert set(NAMES.values()) == {name for name in stub.requests if not name.startswith("0x")}
