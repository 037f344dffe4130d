"""What every source gets from the runner: at least once, once per key, in order, acknowledged when the grid has it."""

import asyncio
import json

import pytest
import scoring

from gridscore.client import connect
from gridscore.dead_letters.letters import SOURCES_MAP, list_letters, map_of, owner_of
from gridscore.errors import BackPressureError, JobError, UsageError
from gridscore.grid.journal import Journal
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job.plugs.environment import Hidden
from gridscore.operations.replay import letter_ids, replay
from gridscore.sinks.files.settings import FilesSinkSettings
from gridscore.sinks.records import register
from gridscore.sources import runner as runners
from gridscore.sources.base import Poison, SourceInterruptedError
from gridscore.sources.position import Positions, PositionTakenError
from gridscore.sources.runner import SourceRunner
from gridscore.sources.status import (
    forget,
    running_sources,
    source_records,
    source_statuses,
)
from gridscore.testing.sources import AbortedError, Script, UnhealableError


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(runners, "FIRST_PAUSE", 0.01)


@pytest.fixture
async def client(cluster):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as connected:
        yield connected


@pytest.fixture
def make(client, unique):
    """A runner of a script, into a map with a journal."""

    def made(script, **more):
        more.setdefault("to", f"events.{unique}")
        return SourceRunner(client.grid, f"source-{unique}", script.source, kind="script", **more)

    return made


def entry(key, value):
    return key, json.dumps({"v": value}).encode()


async def value_of(client, name, key):
    found = await (await client.grid.map(name)).get(key)
    return None if found is None else json.loads(found.to_string())["v"]


async def versions(client, name, key):
    """What was put under a key, as the journal has it."""
    data = MapWriter(client.grid, name).serialize_key(key)
    partition = partition_of(data, client.grid.partition_count)
    oldest, newest = await Journal(client.grid, name).bounds(partition)
    found = []
    while oldest <= newest:
        page = await Journal(client.grid, name).read(partition, oldest, 500)
        pairs = zip(page.keys, page.values, strict=True)
        found += [json.loads(value)["v"] for each, value in pairs if bytes(each) == data]
        oldest = page.next
    return found


async def test_everything_arrives_once_under_its_key_and_is_acknowledged_in_order(client, make, unique):
    name = f"events.{unique}"
    grid_map = await client.grid.map(name)

    async def has_everything(batch):
        found = await asyncio.gather(*(grid_map.get(key) for key, _ in batch.entries))
        assert None not in found

    script = Script([entry(f"k{n}", n) for n in range(5_000)], size=70, acknowledging=has_everything)
    runner = make(script)
    await runner.run()

    assert await grid_map.size() == 5_000
    assert await value_of(client, name, "k4999") == 4_999
    assert script.acknowledged == 5_000
    assert script.in_order
    assert len(script.positions) == -(-5_000 // 70)
    assert (runner.stats.events, runner.stats.poison, script.opened, script.closed) == (5_000, 0, 1, 1)


async def test_entries_of_a_key_never_change_places_nor_overtake_its_tombstones(client, make, unique):
    items = []
    for n in range(1_000):
        items += [entry("same", n), entry(f"other-{n}", n)]
        if n % 3 == 0:
            items.append(("same", None))
        items.append((f"other-{n - 5}", None))
    script = Script([*items, ("same", None), ("gone", None)], size=11)
    await make(script).run()

    assert await versions(client, f"events.{unique}", "same") == list(range(1_000))
    assert await value_of(client, f"events.{unique}", "same") is None
    assert await (await client.grid.map(f"events.{unique}")).size() == 5  # the last of the others


async def test_after_a_crash_the_next_process_goes_on_where_it_was_acknowledged(client, make, unique):
    first = [entry(f"k{n}", n) for n in range(500)]
    again = [entry(f"k{n}", n + 1) for n in range(500)]
    script = Script([*first, Script.ABORT, *again, Script.ABORT, *first, Script.EOF, entry("last", 1)], size=50)
    deaths = 0
    while not deaths or script.acknowledged < len(script.items):
        try:
            await make(script).run()
        except AbortedError:
            deaths += 1

    assert deaths == 2
    assert script.in_order
    assert script.opened == script.closed == 4  # two deaths, an end, and what came behind it
    assert await (await client.grid.map(f"events.{unique}")).size() == 501
    seen = await versions(client, f"events.{unique}", "k7")
    # What was read twice may be there twice, and then all of it in order.
    assert seen[-1] == 7
    assert set(seen) == {7, 8}


async def test_what_the_grid_does_not_have_is_never_acknowledged(client, make, unique, monkeypatch):
    script = Script([entry(f"k{n}", n) for n in range(100)] + [Script.ABORT], size=10)
    held = asyncio.Event()
    put = MapWriter.put_partition

    def hold(self, *arguments, **more):
        if self.map_name != f"events.{unique}":
            return put(self, *arguments, **more)

        async def later():
            await held.wait()
            await put(self, *arguments, **more)

        return asyncio.ensure_future(later())

    monkeypatch.setattr(MapWriter, "put_partition", hold)
    with pytest.raises(AbortedError):
        await make(script).run()
    assert script.positions == []
    held.set()

    await make(script).run()
    assert script.positions[-1] == 100
    assert await (await client.grid.map(f"events.{unique}")).size() == 100


async def test_an_interruption_is_healed_by_beginning_again(client, make, unique, caplog):
    items = [entry(f"k{n}", n) for n in range(50)]
    script = Script([*items, Script.INTERRUPT, Script.INTERRUPT, entry("last", 1)], size=10)
    runner = make(script)
    with caplog.at_level("INFO", logger="gridscore.sources"):
        await runner.run()

    assert await (await client.grid.map(f"events.{unique}")).size() == 51
    # What was under way was acknowledged before beginning again, so nothing was put twice.
    assert await versions(client, f"events.{unique}", "k1") == [1]
    assert (runner.stats.interruptions, script.opened) == (2, 3)
    said = [record.message for record in caplog.records if record.name == "gridscore.sources.runner"]
    assert [line.partition(": ")[2][:11] for line in said] == ["interrupted", "going on"] * 2


async def test_an_acknowledgement_that_fails_begins_again_from_the_last(make):
    failures = iter([False, True])

    async def fails_once(_batch):
        if next(failures, False):
            raise SourceInterruptedError("It is away.")

    script = Script([entry(f"k{n}", n) for n in range(30)], size=10, acknowledging=fails_once)
    await make(script).run()
    assert script.positions == [10, 20, 30]
    assert script.opened == 2


async def test_what_cannot_be_healed_ends_it_with_one_message(make):
    script = Script([entry("a", 1), Script.FAIL])
    with pytest.raises(UnhealableError, match="cannot be healed"):
        await make(script).run()
    assert (script.opened, script.closed, script.acknowledged) == (1, 1, 1)


async def test_a_source_that_failed_is_seen_until_it_runs_again_or_is_forgotten(client, make, unique):
    name = f"source-{unique}"

    async def failed():
        return [each for each in await source_records(client.grid) if each.name == name]

    for _ in range(2):  # however often it is tried, there is one of it
        with pytest.raises(UnhealableError):
            await make(Script([entry("a", 1), Script.FAIL])).run()
        (record,) = await failed()
        assert (record.state, record.kind, record.map, record.events) == ("failed", "script", f"events.{unique}", 1)
        assert "cannot be healed" in record.error
    assert name not in {each.name for each in await running_sources(client.grid)}
    status = next(each for each in await source_statuses(client.grid) if each.name == name)
    assert (status.state, status.processes, status.rate) == ("failed", [], 0)
    assert "cannot be healed" in status.error
    assert await forget(client.grid, name) == (0, True)
    assert await failed() == []
    assert await forget(client.grid, name) == (0, False)

    with pytest.raises(AbortedError):  # a bug is no better
        await make(Script([Script.ABORT])).run()
    assert [each.error for each in await failed()] == ["AbortedError"]
    script = Script([Script.PAUSE])
    runner = make(script)
    running = asyncio.create_task(runner.run())

    async def heals():
        return [each.state for each in await failed()] == ["running"]

    await scoring.until(heals)
    runner.stop()
    await running
    assert await failed() == []


async def test_a_key_that_the_grid_cannot_store_is_a_dead_letter(client, make, unique):
    name = f"source-{unique}"
    items = [entry("a", 1), entry("half \ud800", 2), entry(2**63, 3), (f"{'x' * 9}\udfff", None), entry("b", 4)]
    items += [entry(number, 5) for number in (2**31 - 1, 2**31, -(2**63))]
    runner = make(Script([*items, *(entry(f"k{n}", n) for n in range(4_000)), entry("\udc00", 9)], size=5_000))
    await runner.run()
    events = await client.grid.map(f"events.{unique}")
    assert await events.size() == 4_005
    assert {key for key in await events.key_set() if type(key) is int} == {2**31 - 1, 2**31, -(2**63)}
    assert await value_of(client, f"events.{unique}", "b") == 4
    assert (runner.stats.events, runner.stats.poison) == (4_005, 4)
    total, letters = await list_letters(client.grid, name, 10)
    assert total == 4
    assert {each.raw_bytes for _, each in letters} == {b'{"v": 2}', b'{"v": 3}', b"", b'{"v": 9}'}
    assert all("cannot store its key" in each.error for _, each in letters)


async def test_stopping_acknowledges_what_is_confirmed(client, make, unique):
    script = Script([entry(f"k{n}", n) for n in range(2_000)] + [Script.PAUSE, entry("never", 1)], size=100)
    runner = make(script)
    running = asyncio.create_task(runner.run())
    await script.paused.wait()
    await scoring.until(lambda: running_sources(client.grid))
    found = {each.name: each for each in await running_sources(client.grid)}[f"source-{unique}"]
    assert (found.kind, found.map) == ("script", f"events.{unique}")
    assert await owner_of(client.grid, f"source-{unique}") == "source"
    runner.stop()
    await running

    assert (script.acknowledged, script.closed) == (2_000, 1)
    assert await value_of(client, f"events.{unique}", "never") is None
    records = await (await client.grid.map(SOURCES_MAP)).values()
    assert not [each for each in records if unique in each.to_string()]


async def test_poison_goes_to_the_dead_letters_before_it_is_acknowledged_and_comes_back(client, make, unique):
    name = f"source-{unique}"
    bad = [
        Poison("file:1", "p1", b'{"v": 41', "not JSON"),
        Poison("file:2", "p2", b'{"v": 42}', "no field `x`"),
        Poison("file:3", None, b"\xff\x00", "not text \ud800"),
    ]

    async def is_there(batch):
        if batch.poison:
            total, _ = await list_letters(client.grid, name, 1)
            assert total == 3

    items = [entry("a", 1), *bad, Script.INTERRUPT, entry("b", 2)]
    await make(Script([*items, *bad], size=4, acknowledging=is_there)).run()  # the same again: no further letters

    total, letters = await list_letters(client.grid, name, 10)
    assert total == 3
    assert {(each.origin, each.raw_bytes) for _, each in letters} == {(each.origin, each.raw) for each in bad}
    assert await owner_of(client.grid, name) == "source"
    done = {each.key: each.refusal async for each in replay(client.grid, name, await letter_ids(client.grid, name))}
    assert done["p2"] == ""
    assert "not JSON" in done["p1"]
    assert "no key" in done["None"]
    assert await value_of(client, f"events.{unique}", "p2") == 42
    assert len(await letter_ids(client.grid, name)) == 2


async def test_a_job_that_does_not_score_ends_a_source_that_waits_no_longer(client, make, unique):
    name = f"job-{unique}"
    await client.put_events(f"lookups.{name}", scoring.customers())
    await client.push_model(scoring.booster(), name, alias="champion")
    await client.submit(scoring.job(name))
    # One key, so one partition; far more than its ring holds.
    script = Script([entry("same", n) for n in range(20_000)], size=500)
    runner = make(script, to=f"events.{name}", max_wait=0.5)
    with pytest.raises(BackPressureError, match=name):
        await runner.run()
    assert runner.stats.waiting
    assert runner.stats.state == "failed"
    assert 0 < script.acknowledged < 20_000
    assert script.in_order


async def test_errors_do_not_show_what_came_from_the_environment(make):
    async def refuse(_batch):
        raise UnhealableError("refused: user=me password=secret-word", "secret-word is wrong")

    runner = make(Script([entry("a", 1)], acknowledging=refuse), hidden=Hidden((("secret-word", "${PASSWORD}"),)))
    with pytest.raises(UnhealableError) as caught:
        await runner.run()
    assert str(caught.value) == "refused: user=me password=${PASSWORD}\n${PASSWORD} is wrong"
    assert "secret-word" not in runner.stats.error


async def test_positions_are_moved_by_one_process_only(client, unique):
    name = f"source-{unique}"
    one = Positions(client.grid, name)
    assert await one.get("a.log") is None
    await one.move("a.log", {"offset": 10})
    await one.move("b.log", {"offset": 5})
    await one.move("a.log", {"offset": 20})

    other = Positions(client.grid, name)
    assert await other.load() == {"a.log": {"offset": 20}, "b.log": {"offset": 5}}
    await other.move("a.log", {"offset": 30})
    with pytest.raises(PositionTakenError, match="moved by another process, by"):
        await one.move("a.log", {"offset": 30})
    with pytest.raises(PositionTakenError):
        await Positions(client.grid, name).move("a.log", {"offset": 0})
    await one.forget("b.log")
    assert await Positions(client.grid, name).load() == {"a.log": {"offset": 30}}
    assert await owner_of(client.grid, name) == "source"
    assert await forget(client.grid, name) == (1, False)
    assert await Positions(client.grid, name).load() == {}


async def test_a_source_that_runs_is_not_forgotten(client, make, unique):
    positions = Positions(client.grid, f"source-{unique}")
    running = asyncio.Event()

    async def moved(batch):
        await positions.move("x", {"n": batch.position})
        running.set()

    runner = make(Script([entry("a", 1), Script.PAUSE], acknowledging=moved))
    task = asyncio.create_task(runner.run())
    await running.wait()
    while not any(each.name == runner.name for each in await running_sources(client.grid)):
        await asyncio.sleep(0.01)
    with pytest.raises(JobError, match=r"is running: .*, process \d+"):
        await forget(client.grid, runner.name)
    assert await Positions(client.grid, runner.name).load() == {"x": {"n": 1}}
    runner.stop()
    await task
    assert await forget(client.grid, runner.name) == (1, False)


async def test_sources_sinks_and_jobs_do_not_share_a_name(client, make, unique, tmp_path):
    settings = FilesSinkSettings(results=f"results.{unique}", folder=str(tmp_path))
    poison = Poison("x", None, b"no event", "no event")
    source = make(Script([poison]))
    await source.run()  # is over, and has left a dead letter only
    with pytest.raises(UsageError, match="is a source: a sink of that name would share its dead letters"):
        await register(client.grid, source.name, "files", settings)
    await (await client.grid.map(map_of(source.name))).destroy()
    await register(client.grid, source.name, "files", settings)
    with pytest.raises(UsageError, match="is a sink: a source of that name would share its dead letters"):
        await source.run()


async def test_a_position_that_another_process_moves_stops_a_source(client, make, unique):
    positions = Positions(client.grid, f"source-{unique}")

    async def moved(batch):
        if batch.position == 2:
            await Positions(client.grid, f"source-{unique}").get("x")
            thief = Positions(client.grid, f"source-{unique}")
            await thief.load()
            await thief.move("x", {"n": 99})
        await positions.move("x", {"n": batch.position})

    with pytest.raises(PositionTakenError):
        await make(Script([entry(f"k{n}", n) for n in range(5)], acknowledging=moved)).run()
