"""The grid room against a real member: journal, writes, records, live copies."""

import asyncio
import pickle
import struct

import pytest
import pytest_asyncio
from hazelcast.core import HazelcastJsonValue
from hazelcast.errors import HazelcastError

from gridscore.errors import (
    ConflictError,
    ConnectionFailedError,
    JournalMissingError,
    LookupTooLargeError,
    MapNotFoundError,
)
from gridscore.grid import GridSettings, Records, connect, transport
from gridscore.grid.copies import Fetcher, LiveCopy
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter, partition_of


@pytest_asyncio.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


class DictTable:
    """A table as the copies want it."""

    def __init__(self):
        self.entries = {}

    def put(self, key, payload):
        self.entries[key] = payload

    def remove(self, key):
        self.entries.pop(key, None)

    def keys(self):
        return list(self.entries)

    def __len__(self):
        return len(self.entries)


async def until(condition, seconds=10.0):
    """Wait for a condition by looking at it, not for a time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def drain(grid, name):
    """Everything in the journal of a map, by partition."""
    journal, pages = Journal(grid, name), {}
    for partition in range(grid.partition_count):
        oldest, newest = await journal.bounds(partition)
        while oldest <= newest:
            page = await journal.read(partition, oldest, 100)
            pages.setdefault(partition, []).append(page)
            oldest = page.next
    return pages


async def test_partition_is_computed_as_the_client_does(grid):
    for key in ["a", "flight/1", "ключ", "x" * 1000, 1, 1.5, True]:
        data = transport.key_data(grid.client, key)

        assert data == transport.to_data(grid.client, key)
        assert partition_of(data, grid.partition_count) == await grid.client.partition_service.get_partition_id(key)


async def test_journal_gives_what_was_put_in_order(grid, unique):
    name = f"events.journal-{unique}"
    expected = {f"k{i}": f'{{"n": {i}}}'.encode() for i in range(500)}

    assert await MapWriter(grid, name).put(expected.items()) == 500
    pages = await drain(grid, name)

    got = {}
    for partition, several in pages.items():
        for page in several:
            assert page.sequences == list(range(page.first, page.next))
            assert not page.foreign
            for key, value in zip(page.keys, page.values, strict=True):
                assert partition_of(key, grid.partition_count) == partition
                got[transport.to_object(grid.client, key)] = value
    assert got == expected


async def test_journal_leaves_out_removals_but_counts_them(grid, unique):
    name = f"events.removals-{unique}"
    proxy = await grid.map(name)
    await proxy.put("a", HazelcastJsonValue('{"n": 1}'))
    await proxy.remove("a")
    await proxy.put("a", HazelcastJsonValue('{"n": 2}'))

    ((page,),) = (await drain(grid, name)).values()

    assert (page.first, page.next) == (0, 3)
    assert page.sequences == [0, 2]
    assert page.values == [b'{"n": 1}', b'{"n": 2}']


async def test_journal_marks_values_that_are_not_json(grid, unique):
    name = f"events.foreign-{unique}"
    proxy = await grid.map(name)
    await proxy.put("a", "text")
    await proxy.put("a", 42)
    await proxy.put("a", HazelcastJsonValue("{}"))

    ((page,),) = (await drain(grid, name)).values()

    assert page.values[0] == b"text"
    assert list(page.foreign) == [1]
    assert page.values[2] == b"{}"


async def test_parked_read_returns_when_something_is_put(grid, unique):
    name = f"events.parked-{unique}"
    writer, journal = MapWriter(grid, name), Journal(grid, name)
    partition = partition_of(transport.key_data(grid.client, "a"), grid.partition_count)

    read = journal.read(partition, 0, 10)
    await writer.put([("other", b"1")])
    assert not read.done()
    await writer.put([("a", b"2")])

    assert (await read).values == [b"2"]


async def test_map_without_a_journal_says_so(grid, unique):
    with pytest.raises(JournalMissingError, match=f"plain-{unique}` has no event journal"):
        await Journal(grid, f"plain-{unique}").bounds(0)


async def test_written_keys_and_values_are_what_any_client_reads(grid, unique):
    name = f"results.readable-{unique}"
    await MapWriter(grid, name).put([("s", b'{"score": 0.5}'), (7, b"[1, 2]")])

    proxy = await grid.map(name)

    assert (await proxy.get("s")).loads() == {"score": 0.5}
    assert (await proxy.get(7)).loads() == [1, 2]


async def test_large_values_come_back_whole(grid, unique):
    name = f"events.large-{unique}"
    big = b'"' + b"x" * 5_000_000 + b'"'
    await MapWriter(grid, name).put([("a", big), ("b", b"1")])

    assert (await (await grid.map(name)).get("a")).to_string().encode() == big
    assert sum(len(page.keys) for pages in (await drain(grid, name)).values() for page in pages) == 2


async def test_records_change_only_by_compare_and_set(grid, unique):
    records = Records(grid, f"gridscore.test-{unique}")
    first = await records.create("a", {"n": 1})
    second = await records.replace(first, {"n": 2})

    with pytest.raises(ConflictError, match="changed by somebody else"):
        await records.replace(first, {"n": 3})
    with pytest.raises(ConflictError, match="exists already"):
        await records.create("a", {"n": 9})

    assert (await records.get("a")) == second
    assert (await records.get("missing")) is None


async def test_concurrent_updates_of_a_record_all_count(grid, unique):
    records = Records(grid, f"gridscore.test-{unique}")

    def increment(value):
        return {"n": (value or {"n": 0})["n"] + 1}

    await asyncio.gather(*(records.update("a", increment) for _ in range(20)))

    assert (await records.get("a")).value == {"n": 20}


async def test_watching_records_calls_back(grid, unique):
    records, changed = Records(grid, f"gridscore.test-{unique}"), asyncio.Event()
    stop = await records.watch(changed.set)
    await records.create("a", {"n": 1})
    async with asyncio.timeout(10):
        await changed.wait()
    await stop()


async def test_copy_loads_and_follows_a_map(grid, unique):
    name, table = f"lookups.copy-{unique}", DictTable()
    await MapWriter(grid, name).put((f"k{i}", b'{"n": %d}' % i) for i in range(3000))
    copy = LiveCopy(grid, name, table, max_entries=10_000)
    await copy.start()
    assert len(table) == 3000
    assert table.entries["k7"] == b'{"n": 7}'

    proxy = await grid.map(name)
    await proxy.put("k7", HazelcastJsonValue("1"))
    await proxy.put("new", HazelcastJsonValue("2"))
    await proxy.remove("k8")

    entries = table.entries
    await until(lambda: entries.get("k7") == b"1" and entries.get("new") == b"2" and "k8" not in entries)
    assert copy.age < 10
    await copy.close()


async def test_copy_that_differs_is_loaded_again(grid, unique):
    name, table = f"lookups.differs-{unique}", DictTable()
    await MapWriter(grid, name).put([("a", b"1"), ("b", b"2")])
    copy = LiveCopy(grid, name, table, max_entries=10, verify_seconds=0.05)
    await copy.start()

    del table.entries["a"]  # as if a listener event had been missed
    table.entries["ghost"] = b"3"
    table.entries["ghost2"] = b"3"

    await until(lambda: table.entries == {"a": b"1", "b": b"2"})
    await copy.close()


async def test_equal_sizes_do_not_make_a_copy_younger(grid, unique):
    name, table = f"lookups.age-{unique}", DictTable()
    await MapWriter(grid, name).put([("a", b"1")])
    copy = LiveCopy(grid, name, table, max_entries=10, verify_seconds=0.05, reload_seconds=1.0)
    await copy.start()
    table.entries["a"] = b"missed"  # as if a listener event had been missed
    loads, oldest = copy.loads, 0.0
    while copy.loads == loads:
        oldest = max(oldest, copy.age)
        await asyncio.sleep(0.01)
    assert oldest > 0.9
    assert table.entries == {"a": b"1"}
    assert copy.age < 0.5
    await copy.close()


async def test_copy_is_loaded_again_after_a_reconnect(grid, unique):
    name, table = f"lookups.reconnect-{unique}", DictTable()
    await MapWriter(grid, name).put([("a", b"1")])
    copy = LiveCopy(grid, name, table, max_entries=10, verify_seconds=60)
    await copy.start()

    for connection in list(grid.client._connection_manager.active_connections.values()):
        await connection.close_connection("test", None)
    table.entries["a"] = b"stale"

    await until(lambda: copy.loads == 2 and table.entries == {"a": b"1"}, 20)
    await MapWriter(grid, name).put([("b", b"2")])
    await until(lambda: table.entries.get("b") == b"2")
    await copy.close()


async def test_copy_of_a_cleared_map_becomes_empty(grid, unique):
    name, table = f"lookups.cleared-{unique}", DictTable()
    await MapWriter(grid, name).put((f"k{i}", b"1") for i in range(50))
    copy = LiveCopy(grid, name, table, max_entries=100)
    await copy.start()

    await (await grid.map(name)).clear()

    await until(lambda: len(table) == 0)
    await copy.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_copy_follows_a_map_that_was_destroyed_and_filled_again(grid, unique, at_once):
    name, table = f"lookups.destroyed-{unique}", DictTable()
    await MapWriter(grid, name).put([("a", b"1")])
    copy = LiveCopy(grid, name, table, max_entries=10, verify_seconds=600.0 if at_once else 0.2)
    await copy.start()

    await (await grid.client.get_map(name)).destroy()
    if not at_once:
        await until(lambda: len(table) == 0)
    await MapWriter(grid, name).put([("a", b"2")])
    await until(lambda: table.entries == {"a": b"2"})
    await MapWriter(grid, name).put([("a", b"3")])  # the sizes say nothing of it

    await until(lambda: table.entries == {"a": b"3"})
    await copy.close()


async def test_copy_refuses_a_map_that_is_too_large(grid, unique):
    name = f"lookups.large-{unique}"
    await MapWriter(grid, name).put((f"k{i}", b"1") for i in range(20))

    with pytest.raises(LookupTooLargeError, match="has 20 entries, more than the 10"):
        await LiveCopy(grid, name, DictTable(), max_entries=10).start()


async def test_copy_of_a_missing_map_says_so(grid, unique):
    with pytest.raises(MapNotFoundError, match=f"lookups.none-{unique}` does not exist"):
        await LiveCopy(grid, f"lookups.none-{unique}", DictTable(), max_entries=10).start()


async def test_fetcher_gives_the_entries_that_exist(grid, unique):
    name = f"lookups.fetch-{unique}"
    await MapWriter(grid, name).put([("a", b"1"), ("b", b"2"), (3, b"3")])

    assert dict(await Fetcher(grid, name).fetch(["a", "missing", 3])) == {"a": b"1", 3: b"3"}


async def test_dead_cluster_and_wrong_name_have_their_own_messages(cluster, unused_tcp_port):
    with pytest.raises(ConnectionFailedError, match=r"No connection to the cluster `dev` at 127.0.0.1:"):
        await connect(GridSettings.load(members=[f"127.0.0.1:{unused_tcp_port}"], connect_timeout=0.5))
    with pytest.raises(ConnectionFailedError, match=r"`wrong` at .* refused this client"):
        await connect(GridSettings.load(members=cluster.addresses, cluster_name="wrong", connect_timeout=0.5))


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


async def test_nothing_is_unpickled(grid, unique, capsys):
    name = f"lookups.pickle-{unique}"
    text = pickle.dumps(Runs(), 0)
    data = struct.pack(">iii", 0, -120, len(text)) + text
    (partition,) = {partition_of(data, grid.partition_count)}
    await grid.map(name)
    await MapWriter(grid, name).put_partition(partition, [data], [b"{}"])

    with pytest.raises(HazelcastError, match="pickled Python object"):
        transport.to_object(grid.client, data)
    table = DictTable()
    copy = LiveCopy(grid, name, table, max_entries=10)
    await copy.start()
    assert table.entries == {data: b"{}"}
    await copy.close()
    with pytest.raises(HazelcastError, match="has no form that every client reads"):
        await (await grid.map(name)).put("a", Runs())
    assert capsys.readouterr().out == ""


async def test_a_map_exists_by_name_or_by_its_entries(grid, unique):
    name = f"lookups.exists-{unique}"
    assert not await grid.has_map(name)
    writer = MapWriter(grid, name)
    await writer.put([("a", b"1")])
    assert await grid.has_map(name)
    await (await grid.map(name)).destroy()
    assert not await grid.has_map(name)
    await writer.put([("a", b"1")])
    assert await grid.has_map(name)


async def test_who_is_cancelled_while_a_map_is_made_known_takes_nobody_along(grid, unique):
    first, second = (asyncio.create_task(grid.map(f"events.{unique}")) for _ in range(2))
    await asyncio.sleep(0)  # both have asked
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == f"events.{unique}"
