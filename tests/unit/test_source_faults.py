"""Sources while the cluster fails: whatever it does with puts and removals, keys stay in order and nothing is lost."""

import asyncio
import json
import random
from types import SimpleNamespace

import pytest

from gridscore.dead_letters.letters import SOURCES_MAP, list_letters
from gridscore.errors import RefusedError
from gridscore.grid import Records, transport
from gridscore.grid.journal import Journal
from gridscore.grid.writer import partition_of
from gridscore.job.plugs.base import SinkSettings
from gridscore.job.plugs.patience import PATIENCE_SECONDS, Patience
from gridscore.operations.flow import FlowObserver, History
from gridscore.producer import producer
from gridscore.sinks.records import register
from gridscore.sources import runner as runners
from gridscore.sources.base import Poison, SourceInterruptedError
from gridscore.sources.runner import SourceRunner
from gridscore.sources.status import FAILED, Publisher, SourceStats, source_statuses
from gridscore.testing import Fault, StubCluster
from gridscore.testing.sources import AbortedError, Script, ScriptedSource

EVENTS = "events.x"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(runners, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(producer, "_RETRY_SECONDS", 0.01)


def faults(draw):
    for _ in range(12):
        yield Fault(
            draw.choice(("timeout", "indeterminate", "disconnect", "delay")),
            applied=draw.random() < 0.5,
            request=draw.choice(("Map.PutAll", "Map.Delete")),
            map=EVENTS,
            times=draw.randrange(1, 4),
            seconds=0.01,
        )


async def put_under(client, key):
    data = transport.key_data(client.grid.client, key)
    partition = partition_of(data, client.grid.partition_count)
    oldest, newest = await Journal(client.grid, EVENTS).bounds(partition)
    found = []
    while oldest <= newest:
        page = await Journal(client.grid, EVENTS).read(partition, oldest, 500)
        pairs = zip(page.keys, page.values, strict=True)
        found += [json.loads(value)["v"] for each, value in pairs if bytes(each) == data]
        oldest = page.next
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_keys_stay_in_order_and_nothing_is_lost(seed):
    draw = random.Random(seed)
    expected, items = {}, []
    for n in range(300):
        key = f"k{draw.randrange(6)}"
        if draw.random() < 0.2:
            items.append((key, None))
            expected.pop(key, None)
        else:
            items.append((key, json.dumps({"v": n}).encode()))
            expected[key] = n
        if draw.random() < 0.02:
            items.append(draw.choice((Script.INTERRUPT, Script.ABORT)))
    script = Script(items, size=draw.choice((1, 7, 40)))
    async with StubCluster() as cluster:
        client = await cluster.client()
        cluster.faults.extend(faults(draw))
        while script.acknowledged < sum(1 for _ in items):
            try:
                await SourceRunner(client.grid, "test", script.source, kind="script", to=EVENTS).run()
                break
            except AbortedError:
                continue

        grid_map = await client.grid.map(EVENTS)
        found = {key: json.loads(value.to_string())["v"] for key, value in await grid_map.entry_set()}
        assert found == expected
        assert script.in_order
        for key in {key for key, text in (item for item in items if isinstance(item, tuple)) if text is not None}:
            mine = [json.loads(i[1])["v"] for i in items if isinstance(i, tuple) and i[0] == key and i[1] is not None]
            seen = await put_under(client, key)
            # Each at least once, and the first time in order.
            assert list(dict.fromkeys(seen)) == mine


async def test_dead_letters_that_could_not_be_written_are_written_before_anything_is_acknowledged():
    script = Script([Poison("a:1", "k", b"bad", "it is not an event"), ("a", b"1")])
    async with StubCluster() as cluster:
        client = await cluster.client()
        cluster.faults.append(
            Fault("indeterminate", applied=False, request="Map.PutAll", map="dead-letters.*", times=1)
        )
        runner = SourceRunner(client.grid, "test", script.source, kind="script", to=EVENTS)
        await runner.run()
        assert (await list_letters(client.grid, "test", 10))[0] == 1
        assert script.positions == [1, 2]
        assert runner.stats.interruptions == 1


async def test_a_source_that_pauses_has_no_failure_any_more():
    async with StubCluster() as cluster:
        grid = (await cluster.client()).grid
        stats = SourceStats("test", "script", EVENTS, state=FAILED, error="no such topic")
        await Publisher(grid, stats).close()
        assert (await source_statuses(grid))[0].failure
        stats.state = "paused"
        publishing = asyncio.create_task(Publisher(grid, stats).run())
        async with asyncio.timeout(20):
            while not (shown := (await source_statuses(grid))[0]).processes or shown.failure:
                await asyncio.sleep(0.01)
        publishing.cancel()
        await asyncio.wait({publishing})


@pytest.mark.parametrize("ends", ["stopped", FAILED])
async def test_a_killed_source_is_forgotten_once_its_successor_has_ended(ends):
    async with StubCluster() as cluster:
        grid = (await cluster.client()).grid
        killed, successor = (Publisher(grid, SourceStats("test", "script", EVENTS, state="running")) for _ in range(2))
        await killed._publish()
        await successor._publish()
        if ends == FAILED:
            successor._stats.state, successor._stats.error = FAILED, "no such topic"
        await successor.close()
        found = await source_statuses(grid)
        assert [each.error for each in found] == (["no such topic"] if ends == FAILED else [])
        assert len(await Records(grid, SOURCES_MAP).all()) == len(found)


async def test_a_source_that_runs_beside_one_that_stops_stays():
    async with StubCluster() as cluster:
        grid = (await cluster.client()).grid
        stays, stops = (Publisher(grid, SourceStats("test", "script", EVENTS, state="running")) for _ in range(2))
        await stays._publish()
        await stops._publish()
        stays._stats.events += 1
        await stays._publish()
        await stops.close()
        (found,) = await source_statuses(grid)
        assert (found.state, len(found.processes)) == ("running", 1)


class Refusing:
    """Another side that refuses so many times, once it has taken the first batch."""

    def __init__(self, times, error=None):
        self.left, self.taken = times, 0
        self.error = error or RefusedError("The other side refuses the password.", "Look at it.")

    async def __call__(self, _batch):
        if self.taken and self.left:
            self.left -= 1
            raise self.error
        self.taken += 1


async def test_a_refusal_of_what_was_allowed_before_is_waited_out():
    refusing = Refusing(3)
    script = Script([("a", b"1"), ("b", b"2")], acknowledging=refusing)
    async with StubCluster() as cluster:
        client = await cluster.client()
        runner = SourceRunner(client.grid, "test", script.source, kind="script", to=EVENTS)
        await runner.run()
        assert (runner.stats.interruptions, runner.stats.waits_for) == (3, "")
        assert "refuses the password" in runner.stats.error
        assert script.acknowledged == 2


@pytest.mark.parametrize(("patience", "opens"), [(0.0, True), (600.0, False)])
async def test_a_refusal_for_good_or_from_the_beginning_ends_a_source(monkeypatch, patience, opens):
    monkeypatch.setattr("gridscore.job.plugs.patience.PATIENCE_SECONDS", patience)
    script = Script([("a", b"1"), ("b", b"2")], acknowledging=Refusing(3))

    class Closed(ScriptedSource):
        async def open(self):
            raise RefusedError("The other side refuses the password.", "Look at it.")

    make = script.source if opens else lambda: Closed(script)
    async with StubCluster() as cluster:
        client = await cluster.client()
        with pytest.raises(RefusedError):
            await SourceRunner(client.grid, "test", make, kind="script", to=EVENTS).run()


def test_patience_begins_again_after_a_calm_time():
    now = 0.0
    patience = Patience(SimpleNamespace(clock=lambda: now), SourceInterruptedError)
    assert not patience.lasts()
    patience.opened()
    assert patience.lasts()
    while now < PATIENCE_SECONDS - 30:
        now += 30
        assert patience.lasts()
    now += 30
    assert not patience.lasts()
    now += 200
    assert patience.lasts()
    patience.succeeded()
    now += 30
    assert patience.lasts()


async def test_what_the_cluster_does_not_confirm_is_said_of_the_cluster():
    script = Script([("a", b"1"), Script.PAUSE])
    async with StubCluster() as cluster:
        client = await cluster.client()
        fault = Fault("indeterminate", applied=False, request="Map.PutAll", map="dead-letters.*", times=10_000)
        cluster.faults.append(fault)
        script.items.insert(0, Poison("a:1", "k", b"bad", "it is not an event"))
        runner = SourceRunner(client.grid, "test", script.source, kind="script", to=EVENTS)
        running = asyncio.create_task(runner.run())
        async with asyncio.timeout(20):
            while runner.stats.state != "interrupted":
                await asyncio.sleep(0.01)
        assert runner.stats.waits_for == "the cluster"
        fault.times = 0
        runner.stop()
        await running


async def test_what_the_other_side_removed_is_counted_once_it_is_acknowledged():
    script = Script([("a", b"1"), Script.INTERRUPT, ("b", b"2")])

    class Lossy(ScriptedSource):
        async def batches(self):
            async for batch in super().batches():
                batch.lost = 3
                yield batch

    async with StubCluster() as cluster:
        client = await cluster.client()
        runner = SourceRunner(client.grid, "test", lambda: Lossy(script), kind="script", to=EVENTS)
        await runner.run()
        assert (runner.stats.lost, runner.stats.lost_at > 0) == (6, True)


async def test_a_map_with_a_journal_that_nobody_reads_is_told():
    async with StubCluster() as cluster:
        client = await cluster.client()
        maps = {"one": EVENTS, "two": "lookups.x"}
        publishers = [
            asyncio.create_task(Publisher(client.grid, SourceStats(name, "script", to, state="running")).run())
            for name, to in maps.items()
        ]
        observer, history = FlowObserver(client.grid), History()
        async with asyncio.timeout(20):
            while len((flow := await observer.look()).sources) < 2:
                await asyncio.sleep(0.01)
        history.add(flow)
        found = history.findings()
        assert [each.code for each in found.sources["one"]] == ["no_job"]
        assert found.sources["two"] == []
        await register(client.grid, "archive", "files", SinkSettings(results=EVENTS))
        history.add(await observer.look())
        assert history.findings().sources["one"] == []
        for each in publishers:
            each.cancel()
        await asyncio.wait(publishers)


async def test_a_flood_of_poison_is_read_only_as_fast_as_it_is_buried():
    script = Script([Poison(f"a:{n}", f"k{n}", b"bad", "it is not an event") for n in range(50)], size=1)
    async with StubCluster() as cluster:
        client = await cluster.client()
        cluster.faults.append(Fault("delay", request="Map.PutAll", map="dead-letters.*", times=1_000, seconds=0.01))
        runner = SourceRunner(client.grid, "test", script.source, kind="script", to=EVENTS)
        most = 0

        async def bury(*arguments, real=runner._bury):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await real(*arguments)
            finally:
                under_way -= 1

        under_way = 0
        runner._bury = bury
        await runner.run()
        assert runner.stats.poison == 50
        assert most == runners.BURIALS
