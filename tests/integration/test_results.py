"""Results as applications see them: filtered, from a place on, without a hole; and events scored on demand."""

import asyncio
import gc
import json
import types
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
import scoring
import yaml
from hazelcast.internal.asyncio_connection import DefaultAsyncioAddressProvider

from gridscore import EventRejectedError, NoResultError
from gridscore.client import connect
from gridscore.dead_letters.letters import get_letter
from gridscore.errors import GridError, JournalMissingError, UsageError
from gridscore.grid.member import Cluster
from gridscore.grid.template import template_file
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.group import reader
from gridscore.proving.soak.detour import divert
from gridscore.proving.soak.proxy import Network


def connected(cluster):
    return connect(members=cluster.addresses, cluster_name=cluster.cluster_name)


@pytest_asyncio.fixture
async def client(cluster):
    async with connected(cluster) as client:
        yield client


def results(count, begin=0, **more):
    return {
        f"k{number}": {
            "score": number / 2,
            "version": 1,
            "decision": "decline" if number % 3 == 0 else "approve",
            **more,
        }
        for number in range(begin, begin + count)
    }


async def take(stream, count, seconds=30):
    taken = []
    async with asyncio.timeout(seconds):
        while len(taken) < count:
            taken.append(await anext(stream))
    return taken


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize(
    "where", [{"decision": "decline", "customer": "c1"}, lambda result: result.decision == "decline"]
)
async def test_only_what_is_wanted_comes(client, unique, journal, where):
    name = f"results.{unique}"
    await client.put_events(name, results(10, customer="c1"))
    async with await client.results(name, where=where, journal=journal) as stream:
        await client.put_events(name, results(30, begin=100, customer="c1"))
        taken = await take(stream, 10)
    assert {result.key for result in taken} == {f"k{number}" for number in range(102, 130, 3)}
    assert stream.lost == 0


async def test_a_stream_goes_on_where_another_ended_with_none_twice_and_none_left_out(client, unique):
    name = f"results.{unique}"
    expected = results(3_000)
    await client.put_events(name, expected)
    seen, position = [], "oldest"
    for count in (1, 10, 700, 1_289, 1_000):
        async with await client.results(name, start=position) as stream:
            seen += await take(stream, count)
            position = json.loads(json.dumps(stream.position))
    assert len(seen) == 3_000
    assert {result.key: result.value for result in seen} == expected
    async with await client.results(name, start=position) as stream:
        await client.put_events(name, {"next": {"score": 1.0, "version": 2}})
        assert [result.key for result in await take(stream, 1)] == ["next"]
        assert stream.position != position
        assert (stream.lost, stream.regressions, stream.skipped) == (0, 0, 0)


async def test_results_of_a_key_come_in_order(client, unique):
    name = f"results.{unique}"
    async with await client.results(name) as stream:
        for version in range(50):
            await client.put_events(
                name, {"a": {"score": 0.5, "version": version}, 7: {"score": 0.1, "version": version}}
            )
        taken = await take(stream, 100)
    for key in ("a", 7):
        assert [result.version for result in taken if result.key == key] == list(range(50))


async def test_positions_of_others_are_refused(client, unique):
    async with await client.results(f"results.{unique}") as stream:
        position = stream.position
    for wrong, message in [
        ({**position, "map": "results.other"}, "not a position of"),
        ({"map": position["map"]}, "not a position of"),
        ({**position, "sequences": [0] * 7}, "another cluster"),
        ({**position, "sequences": [-1] * 271}, "another cluster"),
        ("yesterday", "cannot start at"),
    ]:
        with pytest.raises(UsageError, match=message):
            await client.results(f"results.{unique}", start=wrong)


async def test_a_position_that_the_journal_has_not_reached_is_a_regression(client, unique, caplog):
    name = f"results.{unique}"
    await client.put_events(name, results(100))
    async with await client.results(name) as stream:
        position = stream.position
    position["sequences"] = [sequence + 1_000 for sequence in position["sequences"]]
    async with await client.results(name, start=position) as stream:
        assert {result.key for result in await take(stream, 100)} == set(results(100))
        assert stream.regressions == 271
    assert "begins again" in caplog.text


async def test_a_journal_that_is_a_little_behind_is_read_on_and_one_that_begins_again_from_its_beginning(
    client, unique
):
    """As after a kill: what was read before the backup had it is not there, and is put once more."""
    name, key = f"results.{unique}", "key"
    async with await client.results(name) as stream:
        for number in range(5):
            await client.put_events(name, {key: {"score": number}})
        assert [result.score for result in await take(stream, 5)] == [0, 1, 2, 3, 4]
        follower = stream._journal.follower
        partition = partition_of(MapWriter(client.grid, name).serialize_key(key), 271)
        position = stream.position
        # The journal is said to be behind, and its last entry is what was taken last.
        follower._reader._begin_again(partition, 7, 0)
        await client.put_events(name, {key: {"score": 5}})
        assert [result.score for result in await take(stream, 1)] == [5]
        assert (stream.lost, stream.regressions) == (0, 0)
        assert stream.position["sequences"][partition] == position["sequences"][partition] + 1 == 6
        # What stands there now is not what was taken.
        follower._seen[partition] = {5: 0}
        follower._reader._begin_again(partition, 7, 0)
        assert [result.score for result in await take(stream, 6)] == [0, 1, 2, 3, 4, 5]
        assert (stream.lost, stream.regressions) == (0, 1)
        assert stream.position["sequences"][partition] == 6


async def test_a_map_without_a_journal_is_listened_to_only_if_that_is_asked_for(client, unique):
    name = f"lookups.{unique}"
    with pytest.raises(JournalMissingError):
        await client.results(name)
    async with await client.results(name, journal=False) as stream:
        await client.put_events(name, results(1))
        assert (await take(stream, 1))[0].key == "k0"
        with pytest.raises(UsageError, match="no position"):
            _ = stream.position
    with pytest.raises(UsageError, match="can only begin"):
        await client.results(name, journal=False, start="oldest")


@pytest.mark.parametrize("journal", [True, False])
async def test_callbacks_get_one_result_at_a_time(client, unique, journal):
    name, seen, busy = f"results.{unique}", [], 0

    async def decide(result):
        nonlocal busy
        busy += 1
        assert busy == 1
        await asyncio.sleep(0)
        busy -= 1
        seen.append(result.key)

    async with await client.results(name, on_result=decide, where={"decision": "decline"}, journal=journal) as stream:
        await client.put_events(name, results(30))
        await scoring.until(lambda: len(seen) == 10)
    await stream.finished()
    assert set(seen) == {f"k{number}" for number in range(0, 30, 3)}


async def test_a_callback_that_fails_ends_its_stream_loudly(client, unique, caplog):
    name = f"results.{unique}"

    def fail(result):
        raise ValueError(f"no customer for {result.key}")

    async with await client.results(name, on_result=fail) as stream:
        await client.put_events(name, results(1))
        with pytest.raises(ValueError, match="no customer for k0"):
            await stream.finished()
    assert "no longer listened to" in caplog.text
    assert sum(stream.position["sequences"]) == 1


async def test_what_is_not_taken_stays_in_the_cluster(client, unique, monkeypatch):
    monkeypatch.setattr(reader, "READ_AHEAD_EVENTS", 2_000)
    monkeypatch.setattr(reader, "PAGE_EVENTS", 10)
    name = f"results.{unique}"
    async with await client.results(name) as stream:
        inbox = stream._journal.follower._reader
        await client.put_events(name, results(40_000))
        await scoring.until(lambda: inbox._inbox_events >= 2_000)
        await asyncio.sleep(0.2)  # to see that no more comes; a machine that is slow makes this true more easily
        assert inbox._inbox_events <= 2_000 + 271 * 10
        assert len({result.key for result in await take(stream, 40_000)}) == 40_000
        assert stream.lost == 0


async def test_closing_ends_the_iteration_and_a_lost_client_is_an_error(cluster, unique):
    async with connected(cluster) as client:
        stream = await client.results(f"results.{unique}")
        waiting = asyncio.create_task(anext(stream, "ended"))
        await asyncio.sleep(0)
        await stream.close()
        assert await waiting == "ended"
        stream = await client.results(f"results.{unique}")
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
    with pytest.raises(GridError, match="is closed"):
        await waiting
    await stream.close()


# ---------------------------------------------------------------------- losses


async def test_what_was_overwritten_is_counted(tmp_path, unique, caplog):
    config = yaml.safe_load(template_file().read_text())
    config["hazelcast"]["map"]["results.*"]["event-journal"]["capacity"] = 271 * 4
    path = tmp_path / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(1, port=0, heap="256m", config=path) as small:
        async with connected(small) as client:
            name = f"results.{unique}"
            async with await client.results(name) as stream:
                position = stream.position
            writer = MapWriter(client.grid, name)
            for number in range(10):
                await writer.put([("key", b'{"score": %d, "version": 1}' % number)])
            async with await client.results(name, start=position) as stream:
                assert [result.score for result in await take(stream, 4)] == [6, 7, 8, 9]
                assert stream.lost == 6
    assert "6 entries" in caplog.text


# ---------------------------------------------------------------------- no hole


@pytest.fixture(scope="module")
def pair():
    with Cluster.start(2, port=0, heap="256m", register=False) as cluster:
        yield cluster


@pytest.fixture
def swept():
    """What the client has not closed of connections that were broken off is found in the test that broke them."""
    yield
    gc.collect()


broken_off = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <(socket|function _SelectorTransport):pytest.PytestUnraisableExceptionWarning"
)


async def putting(client, name, done):
    """Put results until told to stop; gives what the cluster has confirmed."""
    confirmed, number = {}, 0
    while not done.is_set():
        some = results(20, begin=number)
        await client.put_events(name, some)
        confirmed |= some
        number += 20
        await asyncio.sleep(0.002)
    return confirmed


@broken_off
@pytest.mark.usefixtures("swept")
async def test_no_hole_when_a_member_is_killed_and_comes_back(pair, unique):
    name, done = f"results.{unique}", asyncio.Event()
    async with connected(pair) as writer, connected(pair) as client, await client.results(name) as stream:
        work, seen = asyncio.create_task(putting(writer, name, done)), {}
        begun = await take(stream, 200)
        seen |= {result.key: result.value for result in begun}
        await asyncio.to_thread(pair.kill, 1)
        seen |= {result.key: result.value for result in await take(stream, 500)}
        await asyncio.to_thread(pair.restart, 1)
        seen |= {result.key: result.value for result in await take(stream, 500)}
        done.set()
        confirmed = await work
        missing = confirmed.keys() - seen.keys()
        async with asyncio.timeout(30):
            while missing:
                result = await anext(stream)
                seen[result.key] = result.value
                missing.discard(result.key)
        assert {key: seen[key] for key in confirmed} == confirmed
        assert (stream.lost, stream.regressions) == (0, 0)


@asynccontextmanager
async def behind_a_proxy(cluster):
    """A client of which all connections go through proxies, and these."""
    async with Network(cluster.addresses) as network:
        detours = {}
        for address, port in network.detours.items():
            host, _, announced = address.rpartition(":")
            detours[host, int(announced)] = port
        straight = DefaultAsyncioAddressProvider.translate
        try:
            divert(detours)
            detour = DefaultAsyncioAddressProvider.translate
            async with connected(cluster) as client:
                provider = client.grid.client._connection_manager._address_provider
                provider.translate = types.MethodType(detour, provider)
                DefaultAsyncioAddressProvider.translate = straight
                yield client, network
        finally:
            DefaultAsyncioAddressProvider.translate = straight


@broken_off
@pytest.mark.usefixtures("swept")
async def test_no_hole_when_the_connections_are_cut(pair, unique):
    name, done = f"results.{unique}", asyncio.Event()
    async with (
        behind_a_proxy(pair) as (client, network),
        connected(pair) as writer,
        await client.results(name) as stream,
    ):
        work = asyncio.create_task(putting(writer, name, done))
        seen = {result.key for result in await take(stream, 200)}
        for _ in range(2):
            await network.cut(0.5)
            seen |= {result.key for result in await take(stream, 200)}
        done.set()
        confirmed = await work
        missing = confirmed.keys() - seen
        async with asyncio.timeout(30):
            while missing:
                missing.discard((await anext(stream)).key)
        assert (stream.lost, stream.regressions) == (0, 0)


# ---------------------------------------------------------------------- scored on demand


async def test_every_event_gets_its_own_result(cluster, unique):
    name, model = f"job-{unique}", scoring.booster()
    async with scoring.scoring(cluster, name, model=model) as (client, _):
        events = scoring.events(300)
        got = await asyncio.gather(
            *(client.score(f"events.{name}", key, event, timeout=20) for key, event in events.items())
        )
        expected = scoring.predict(model, scoring.expected_rows(events.values()))
        assert [result.key for result in got] == list(events)
        assert [result.score for result in got] == pytest.approx(expected.tolist())
        assert len(client._answers) == 1

        # The same key again and again: an older result stands there each time.
        amounts = [5.25, 90.25, 5.25, 40.25]
        for amount in amounts:
            event = {"amount": amount, "user": "u7", "country": "DE"}
            result = await client.score(f"events.{name}", "e1", event, results=f"results.{name}", timeout=20)
            want = scoring.predict(model, scoring.expected_rows([event]))
            assert result.score == pytest.approx(float(want[0]))
        assert all(answers.result().is_idle for answers in client._answers.values())


async def test_an_older_result_is_not_an_answer_and_the_error_says_what_to_do(cluster, unique):
    name = f"job-{unique}"
    event = {"amount": 1.25, "user": "u1", "country": "DE"}
    async with scoring.scoring(cluster, name) as (client, worker):
        first = await client.score(f"events.{name}", "e1", event, timeout=20)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        # An older result of the same event comes once more while we wait.
        waiting = asyncio.create_task(client.score(f"events.{name}", "e1", event, results=f"results.{name}", timeout=1))
        answers = await scoring.until(
            lambda: next((a.result() for a in client._answers.values() if a.done() and not a.result().is_idle), None)
        )
        await client.put_events(f"results.{name}", {"e1": first.value})
        with pytest.raises(NoResultError, match=r"did not come to `results\..*within 1 s") as failure:
            await waiting
        assert failure.value.put
        assert f"the job {name} (SUSPENDED) has 1 event of its partition to go" in failure.value.message
        assert f"gridscore resume {name}" in failure.value.hint
        assert answers.is_idle
        await client.jobs.resume(name)
        assert (await client.score(f"events.{name}", "e1", event, timeout=20)).value["sequence"] > first.value[
            "sequence"
        ]


async def test_an_event_that_cannot_be_scored_is_rejected_at_once_with_the_reason(cluster, unique):
    name = f"job-{unique}"
    bad, good = {"amount": "much", "user": "u1"}, {"amount": 1.25, "user": "u1", "country": "DE"}
    async with scoring.scoring(cluster, name) as (client, _), asyncio.timeout(30):  # far less than we say we would wait
        first = await client.score(f"events.{name}", "e1", good, timeout=60)
        for text in (bad, b"no JSON"):
            with pytest.raises(
                EventRejectedError, match=rf"The job {name} cannot score the event `e1` \(decode\)"
            ) as failure:
                await client.score(f"events.{name}", "e1", text, timeout=60)
            assert failure.value.put
            letter = await get_letter(client.grid, name, failure.value.letter)
            assert letter.error == failure.value.reason
        # The same event, whose letter was written and missed: the last look finds it.
        answers = next(iter(client._answers.values())).result()
        answers._outcomes._look_into = lambda *_: asyncio.sleep(0)
        with pytest.raises(EventRejectedError):
            await client.score(f"events.{name}", "e1", bad, timeout=1)
        second = await client.score(f"events.{name}", "e1", good, timeout=60)
        assert second.value["sequence"] > first.value["sequence"]


async def test_where_results_are_is_said_by_the_job(client, unique):
    with pytest.raises(UsageError, match="No job reads"):
        await client.score(f"events.{unique}", "k", {})
    with pytest.raises(JournalMissingError):
        await client.score(f"lookups.{unique}", "k", {}, results=f"results.{unique}")
    with pytest.raises(NoResultError):
        await client.score(f"events.{unique}", "k", {}, results=f"results.{unique}", timeout=0.05)
    partition = partition_of(MapWriter(client.grid, "x").serialize_key("k"), 271)
    assert (await client.results(f"events.{unique}", start="oldest")).position["sequences"][partition] == 0


async def test_those_who_wait_are_told_when_the_connection_is_closed(cluster, unique):
    async with connected(cluster) as client:
        waiting = asyncio.create_task(
            client.score(f"events.{unique}", "k", {}, results=f"results.{unique}", timeout=60)
        )
        assert await scoring.until((await client.grid.map(f"events.{unique}")).size) == 1
    with pytest.raises(GridError):
        await waiting
