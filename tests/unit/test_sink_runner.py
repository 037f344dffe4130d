"""What the runner of sinks promises, on a cluster in this process."""

import asyncio
import itertools
import json
import time
from contextlib import asynccontextmanager

import pytest

from gridscore.dead_letters.letters import list_letters
from gridscore.errors import EventsLostError, GridscoreError, JournalMissingError, RefusedError, UsageError
from gridscore.grid.records import Records
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group.lease_records import read_records
from gridscore.job.plugs.base import SinkSettings
from gridscore.sinks import runner as runner_module
from gridscore.sinks.base import SinkInterruptedError
from gridscore.sinks.records import all_sinks
from gridscore.sinks.runner import SinkRunner
from gridscore.testing import Fault, StubCluster
from gridscore.testing.sinks import ABORT, PAUSE, ListSink, Received

MAP = "results.x"


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def runner_of(cluster, received, *, name="list", process="one", settings=None, **options):
    """A process of a sink, on a connection of its own."""
    grid = await cluster.connect(process)
    settings = settings or SinkSettings(results=MAP)
    return SinkRunner(grid, name, "list", settings, lambda: ListSink(received, process, **options))


async def failure_of(cluster, received, **options):
    """Run a process of a sink until it ends by itself."""
    async with asyncio.timeout(20):
        await (await runner_of(cluster, received, **options)).run()


@asynccontextmanager
async def sinking(cluster, received, **options):
    """Run a process of a sink meanwhile."""
    runner = await runner_of(cluster, received, **options)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended


async def put(grid, entries, name=MAP):
    await MapWriter(grid, name).put((key, json.dumps(value).encode()) for key, value in entries.items())


def scores(count, begin=0, **more):
    return {
        f"k{i}": {"score": i / 10, "decision": "decline" if i % 3 else "approve", **more}
        for i in range(begin, begin + count)
    }


def in_order(received):
    """Whether no older result of a partition came after a newer one, but for those that came again."""
    seen = {}
    for result in received.results:
        if result.sequence > seen.get((result.partition, result.epoch), -1) + 1:
            return False
        seen[result.partition, result.epoch] = max(seen.get((result.partition, result.epoch), -1), result.sequence)
    return True


async def offsets(grid, name="list"):
    return {p: record.offset for p, record in (await read_records(grid, f"sink:{name}")).items()}


async def test_everything_is_delivered_once_and_committed():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(500))
        async with sinking(cluster, received) as runner:
            await until(lambda: len(received.results) == 500)
            await put(grid, scores(100, 500))
            await until(lambda: len(received.results) == 600)
            await until(lambda: runner.stats.events == 600)
        assert {r.key: r.value for r in received.results} == scores(600)
        assert all(json.loads(r.text) == r.value for r in received.results)
        assert in_order(received)
        assert sum((await offsets(grid)).values()) == 600
        assert {record.owner for record in (await read_records(grid, "sink:list")).values()} == {""}
        assert received.held == {"one": {}}
        async with sinking(cluster, received, process="two"):
            await put(grid, {"late": {"score": 1}})
            await until(lambda: len(received.results) > 600)
        assert [r.key for r in received.results[600:]] == ["late"]


async def test_a_delivery_is_never_larger_than_the_sink_wants():
    async with StubCluster(partitions=2) as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(1000))
        async with sinking(cluster, received, max_results=70):
            await until(lambda: len(received.results) == 1000)
        assert max(received.deliveries) == 70
        assert len(received.newest()) == 1000
        assert sum((await offsets(grid)).values()) == 1000


async def test_results_are_collected_for_a_sink_that_wants_many_at_once():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        async with sinking(cluster, received, max_results=300, linger=60.0):
            for begin in range(0, 600, 50):
                await put(grid, scores(50, begin))
            await until(lambda: len(received.results) == 600)
        assert received.deliveries == [300, 300]


async def test_what_is_filtered_out_moves_the_offsets_too():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(90, version=3) | {"other": {"decision": "decline", "version": 4}})
        only = {"decision": "decline", "version": "3"}
        async with sinking(cluster, received, settings=SinkSettings(results=MAP, only=only)) as runner:
            await until(lambda: runner.stats.filtered + runner.stats.events == 91)
        assert len(received.results) == runner.stats.events == 60
        assert {(r.value["decision"], r.value["version"]) for r in received.results} == {("decline", 3)}
        assert sum((await offsets(grid)).values()) == 91


async def test_keys_of_other_types_are_numbers_or_hexadecimal():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, {7: {"score": 1}, 2.5: {"score": 2}, True: {"score": 3}})
        async with sinking(cluster, received):
            await until(lambda: len(received.results) == 3)
        keys = sorted((r.key for r in received.results), key=str)
        assert keys[1:] == [2.5, 7]
        assert isinstance(keys[0], str)
        bytes.fromhex(keys[0])


async def test_a_destination_that_is_away_gets_the_same_again():
    async with StubCluster(partitions=3) as cluster:
        grid, received = await cluster.connect("user"), Received()
        received.then(ABORT(after=5), ABORT(after=2))
        await put(grid, scores(50))
        async with sinking(cluster, received) as runner:
            await until(lambda: runner.stats.state == "waiting")
            assert "away" in runner.stats.error
            assert runner.stats.events == 0
            await until(lambda: runner.stats.events == 50)
            assert (runner.stats.state, runner.stats.error, runner.stats.interruptions) == ("delivering", "", 2)
        assert len(received.results) == 57
        assert len(received.newest()) == 50


async def test_nothing_is_committed_before_it_is_delivered():
    async with StubCluster(partitions=3) as cluster:
        grid, received, resume = await cluster.connect("user"), Received(), asyncio.Event()
        received.then(PAUSE(resume))
        await put(grid, scores(30))
        async with sinking(cluster, received) as runner:
            await until(lambda: not received.faults)
            paused_at = time.time() * 1000
            await until(lambda: runner.stats.committed_at > paused_at)
            assert not any(offset > 0 for offset in (await offsets(grid)).values())
            resume.set()
            await until(lambda: len(received.results) == 30)
        assert sum((await offsets(grid)).values()) == 30


async def test_a_delivery_under_way_is_finished_when_the_sink_is_stopped():
    async with StubCluster(partitions=3) as cluster:
        grid, received, resume = await cluster.connect("user"), Received(), asyncio.Event()
        received.then(PAUSE(resume))
        await put(grid, scores(30))
        async with sinking(cluster, received):
            await until(lambda: not received.faults)
            asyncio.get_running_loop().call_later(0.2, resume.set)
        delivered = len(received.results)
        assert delivered == received.deliveries[0] > 0
        assert sum(max(0, offset) for offset in (await offsets(grid)).values()) == delivered


async def test_a_sink_that_waits_for_its_destination_gives_its_partitions_back_at_once():
    async with StubCluster(partitions=4) as cluster:
        grid, received = await cluster.connect("user"), Received()
        received.then(*[ABORT()] * 1000)
        await put(grid, scores(30))
        async with sinking(cluster, received) as runner:
            await until(lambda: runner.stats.interruptions > 1)
        assert {record.owner for record in (await read_records(grid, "sink:list")).values()} == {""}
        received.faults.clear()
        async with sinking(cluster, received, process="two"):
            await until(lambda: len(received.newest()) == 30)


async def test_a_destination_that_does_not_answer_is_told_and_when_it_does(monkeypatch, caplog):
    monkeypatch.setattr(runner_module, "SILENT_SECONDS", 0.05)
    async with StubCluster() as cluster:
        received, resume = Received(), asyncio.Event()
        received.then(PAUSE(resume))
        async with sinking(cluster, received) as runner:
            await put(await cluster.connect("user"), scores(1))
            await until(
                lambda: "list: its destination has not answered for 0 s, with 1 result under way" in caplog.text
            )
            assert "answers again" not in caplog.text
            resume.set()
            await until(lambda: "list: its destination answers again" in caplog.text)
            runner._say_silent(1)  # a slow one is not told each time
    assert len(received.results) == 1
    assert caplog.text.count("has not answered") == caplog.text.count("answers again") == 1


async def test_what_cannot_heal_stops_the_sink_with_its_message():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        received.then(ABORT(for_good=True))
        await put(grid, scores(30))
        with pytest.raises(GridscoreError, match="takes nothing any more"):
            await failure_of(cluster, received)
        assert sum((await offsets(grid)).values()) == 0


async def test_a_refusal_of_what_was_allowed_before_is_waited_out_and_then_ends_the_sink(monkeypatch):
    monkeypatch.setattr(runner_module, "FIRST_PAUSE_SECONDS", 0.01)
    refusal = RefusedError("The destination refuses the password.", "Look at it.")

    class Refusing(ListSink):
        async def deliver(self, delivery):
            if len(received.results) and refusals:
                raise refusals.pop()
            return await super().deliver(delivery)

    async with StubCluster() as cluster:
        grid, received, refusals = await cluster.connect("user"), Received(), [refusal] * 3
        runner = SinkRunner(grid, "list", "list", SinkSettings(results=MAP), lambda: Refusing(received, "one"))
        running = asyncio.create_task(runner.run())
        await put(grid, scores(1))
        await until(lambda: len(received.results) == 1)
        await put(grid, scores(1, 1))
        await until(lambda: len(received.results) == 2)
        assert (runner.stats.interruptions, runner.stats.waits_for) == (3, "its destination")
        monkeypatch.setattr("gridscore.job.plugs.patience.PATIENCE_SECONDS", 0.0)
        refusals.append(refusal)
        await put(grid, scores(1, 2))
        with pytest.raises(RefusedError):
            await asyncio.wait_for(running, 20)


async def test_what_is_refused_or_no_result_goes_to_the_dead_letters_and_its_neighbours_are_delivered():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received(refuses={"k3"})
        await put(grid, scores(30))
        await MapWriter(grid, MAP).put([("list", b"[1]"), ("text", b'{"x":"\xff"}')])
        async with sinking(cluster, received) as runner:
            await until(lambda: runner.stats.dead == 3 and len(received.results) == 29)
        assert sum((await offsets(grid)).values()) == 32
        total, letters = await list_letters(grid, "list", 10)
        assert total == 3
        assert {(dead.key, dead.stage) for _, dead in letters} == {
            ("k3", "deliver"),
            ("list", "decode"),
            ("text", "decode"),
        }
        assert {(dead.job, dead.map) for _, dead in letters} == {("list", MAP)}


async def test_two_processes_share_the_partitions():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        async with sinking(cluster, received, process="one") as one:
            await put(grid, scores(100))
            await until(lambda: len(received.results) == 100)
            async with sinking(cluster, received, process="two") as two:
                await until(lambda: sorted((len(one.group.held), len(two.group.held))) == [6, 7])
                await until(lambda: received.held["one"].keys() == set(one.group.held))
                await put(grid, scores(100, 100))
                await until(lambda: len(received.results) == 200)
                assert two.stats.events > 0
                assert one.id != two.id
                assert {one.id, two.id} == received.identities
            await put(grid, scores(100, 200))
            await until(lambda: len(received.results) == 300)
        assert len(received.newest()) == 300


async def test_a_destination_may_know_better_where_to_go_on():
    async with StubCluster(partitions=1) as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(20))
        async with sinking(cluster, received, positions={0: 15}):
            await until(lambda: len(received.results) == 5)
        assert await offsets(grid) == {0: 20}


async def test_lost_results_are_delivered_from_the_map_as_new_as_they_are():
    async with StubCluster(partitions=2, journals={"results.*": 16}) as cluster:
        grid, received = await cluster.connect("user"), Received()
        async with sinking(cluster, received) as runner:
            await put(grid, scores(10))
            await until(lambda: len(received.results) == 10)
        await put(grid, scores(10, again=True))
        await put(grid, scores(100, 10))
        async with sinking(cluster, received, process="two") as runner:
            await until(lambda: runner.stats.lost > 0)
            await until(
                lambda: len(received.newest()) == 110 and runner.stats.rescans == 0 and runner.stats.rescued > 0
            )
        expected = scores(10, again=True) | scores(100, 10)
        assert {key: result.value for key, result in received.newest().items()} == expected
        assert {key: result.value for key, result in {r.key: r for r in received.results}.items()} == expected


async def test_with_halt_a_sink_stops_at_a_loss_and_goes_on_behind_it():
    settings = SinkSettings(results=MAP, on_loss="halt")
    async with StubCluster(partitions=1, journals={"results.*": 16}) as cluster:
        grid, received = await cluster.connect("user"), Received()
        async with sinking(cluster, received, settings=settings):
            await put(grid, scores(5))
            await until(lambda: len(received.results) == 5)
        await put(grid, scores(50, 5))
        with pytest.raises(EventsLostError, match=r"sink:list|given again"):
            await failure_of(cluster, received, process="two", settings=settings)
        async with sinking(cluster, received, process="three", settings=settings):
            await until(lambda: received.results[-1].key == "k54")


async def test_a_sink_from_now_on_delivers_nothing_of_before():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(50))
        async with sinking(cluster, received, settings=SinkSettings(results=MAP, start="latest")) as runner:
            await until(lambda: runner.stats.partitions == 13)
            await put(grid, scores(5, 50))
            await until(lambda: len(received.results) == 5)
        assert {r.key for r in received.results} == set(scores(5, 50))


async def test_a_name_is_of_one_sink_and_of_no_job():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        async with sinking(cluster, received) as runner:
            await until(lambda: runner.stats.partitions == 13)
        assert [(sink.name, sink.kind, sink.map) for sink in await all_sinks(grid)] == [("list", "list", MAP)]
        with pytest.raises(UsageError, match="already"):
            await failure_of(cluster, received, settings=SinkSettings(results="results.other"))
        with pytest.raises(JournalMissingError):
            await failure_of(cluster, received, name="none", settings=SinkSettings(results="without"))


class Listed(SinkSettings):
    """Settings of a list that has a name."""

    into: str

    @property
    def destination(self):
        return f"the list {self.into}"


async def test_a_name_is_of_one_destination():
    async with StubCluster() as cluster:
        received = Received()
        for into in ("mine", "mine"):
            async with sinking(cluster, received, settings=Listed(results=MAP, into=into)) as runner:
                await until(lambda runner=runner: runner.stats.partitions == 13)
        with pytest.raises(UsageError, match=r"delivers to the list mine.*nothing for the list yours"):
            await failure_of(cluster, received, settings=Listed(results=MAP, into="yours"))


async def test_the_same_partition_is_that_of_the_event():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await put(grid, scores(20))
        async with sinking(cluster, received):
            await until(lambda: len(received.results) == 20)
        writer = MapWriter(grid, MAP)
        assert all(r.partition == partition_of(writer.serialize_key(r.key), 13) for r in received.results)


async def test_with_halt_what_was_read_before_a_loss_is_delivered_all_the_same():
    settings = SinkSettings(results=MAP, on_loss="halt")
    async with StubCluster(partitions=1, journals={"results.*": 40}) as cluster:
        grid, received = await cluster.connect("user"), Received()
        first, second = asyncio.Event(), asyncio.Event()
        received.then(PAUSE(first), PAUSE(second))
        runner = await runner_of(cluster, received, settings=settings, max_results=1)
        running, reader = asyncio.create_task(runner.run()), runner.group._reader
        await until(lambda: 0 in reader.partitions)
        await put(grid, scores(30))
        await until(lambda: reader.cursor(0).offset == 30)
        await put(grid, scores(200, 30))
        await until(lambda: runner.stats.lost > 0)
        first.set()
        await until(lambda: not received.faults)
        committed_at = runner.stats.committed_at
        await until(lambda: runner.stats.committed_at > committed_at)
        second.set()
        async with asyncio.timeout(20):
            with pytest.raises(EventsLostError):
                await running
        async with sinking(cluster, received, process="two", settings=settings):
            await until(lambda: received.results[-1].key == "k229")
        assert set(scores(30)) <= {result.key for result in received.results}


class AskingSink(ListSink):
    """A sink that reads something in the cluster before it opens, and when it gets partitions."""

    def __init__(self, grid, received):
        super().__init__(received)
        self._records = Records(grid, "gridscore.asked")

    async def open(self):
        await self._records.get("open")
        await super().open()

    async def taken(self, partitions):
        await self._records.get("taken")
        return await super().taken(partitions)


async def test_a_cluster_that_does_not_answer_a_sink_is_asked_again():
    async with StubCluster(partitions=3) as cluster:
        user, received = await cluster.connect("user"), Received()
        await put(user, scores(50))
        grid = await cluster.connect("sink")
        cluster.faults.append(Fault("timeout", request="Map.GetAll", map="gridscore.asked", times=3))
        settings = SinkSettings(results=MAP)
        runner = SinkRunner(grid, "list", "list", settings, lambda: AskingSink(grid, received))
        running = asyncio.create_task(runner.run())
        try:
            await until(lambda: running.done() or len(received.results) == 50)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait({running})
        assert not cluster.faults


async def test_a_destination_that_is_away_is_said_though_all_that_comes_is_filtered_out(monkeypatch):
    monkeypatch.setattr(runner_module, "LOOK_SECONDS", 0.05)
    away = [False]

    class Looking(ListSink):
        async def look(self):
            if away[0]:
                raise SinkInterruptedError("the broker is down")

    async with StubCluster(partitions=2) as cluster:
        grid, received = await cluster.connect("one"), Received()
        settings = SinkSettings(results=MAP, only={"decision": "decline"})
        runner = SinkRunner(grid, "list", "list", settings, lambda: Looking(received, "one"))
        said, keys = runner.stats, (f"approved{i}" for i in itertools.count())

        async def until_it_is(*expected):
            async with asyncio.timeout(20):
                while (said.state, said.error) != expected:
                    await put(grid, {next(keys): {"decision": "approve"}})
                    await asyncio.sleep(0.001)

        task = asyncio.create_task(runner.run())
        try:
            await put(grid, {next(keys): {"decision": "approve"}})
            await until(lambda: said.filtered)
            assert (said.state, said.error) == ("delivering", "")
            # When it goes away while results keep coming, none of them for it
            away[0] = True
            # Then that is said, and stays said while they are passed over
            await until_it_is("waiting", "the broker is down")
            filtered = said.filtered
            while said.filtered < filtered + 20:
                await put(grid, {next(keys): {"decision": "approve"}})
                await asyncio.sleep(0.001)
                assert (said.state, said.error) == ("waiting", "the broker is down")
            # until it is back
            away[0] = False
            await until_it_is("delivering", "")
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_destination_that_is_away_is_said_though_there_is_nothing_to_deliver(monkeypatch):
    monkeypatch.setattr(runner_module, "LOOK_SECONDS", 0.01)
    away = [True]

    class Looking(ListSink):
        async def look(self):
            if away[0]:
                raise SinkInterruptedError("the broker is down")

    async with StubCluster(partitions=2) as cluster:
        grid, received = await cluster.connect("one"), Received()
        runner = SinkRunner(grid, "list", "list", SinkSettings(results=MAP), lambda: Looking(received, "one"))
        task = asyncio.create_task(runner.run())
        await until(lambda: (runner.stats.state, runner.stats.error) == ("waiting", "the broker is down"))
        await put(grid, scores(1))
        away[0] = False
        await until(lambda: (runner.stats.state, runner.stats.error, runner.stats.events) == ("delivering", "", 1))
        task.cancel()
        await asyncio.wait({task})
