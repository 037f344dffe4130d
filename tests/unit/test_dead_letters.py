"""Dead letters on a cluster in this process: their limits, what pauses, how they come back, and how they go."""

import asyncio
import base64
import json
import time

import msgspec
import pytest
from hazelcast.core import HazelcastJsonValue
from test_bad_records import put_raw

from gridscore.dead_letters import writer as letter_writer
from gridscore.dead_letters.letters import DeadLetter, encode, list_letters, map_of, walk_letters
from gridscore.dead_letters.writer import LetterWriter, Limits
from gridscore.grid import transport
from gridscore.grid.wire import json_data
from gridscore.grid.writer import MapWriter
from gridscore.group.lease_records import LEASES_MAP, NOBODY, lease_key
from gridscore.group.lease_records import encode as encode_lease
from gridscore.job import Jobs, parse_job
from gridscore.job.plugs.base import SinkSettings
from gridscore.operations import replay
from gridscore.operations.removal import Choice, Removed, remove
from gridscore.operations.status import job_status
from gridscore.sinks import runner as sink_runner
from gridscore.sinks.runner import SinkRunner
from gridscore.sources import runner as source_runner
from gridscore.sources.base import Poison
from gridscore.sources.runner import SourceRunner
from gridscore.testing import Fault, StubCluster
from gridscore.testing.sinks import ListSink, Received
from gridscore.testing.sources import Script

MANY = Limits(10_000, 64 << 20)
ALL = Choice()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    for module in (letter_writer, source_runner, sink_runner):
        monkeypatch.setattr(module, "COUNT_SECONDS", 0.02)


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def dead(grid, number, *, key=None, raw=b'{"v": 1}', **more):
    data = transport.key_data(grid.client, key or f"k{number}")
    return DeadLetter(
        **{
            "job": "test",
            "map": "events.x",
            "partition": 1,
            "sequence": number,
            "key": key or f"k{number}",
            "key_data": base64.b64encode(data).decode(),
            "stage": "decode",
            "error": "it is bad",
            "raw": base64.b64encode(raw).decode(),
            "size": len(raw),
            "at": f"2026-01-01T00:00:{number % 60:02}.000Z",
            **more,
        }
    )


def source_letter(grid, number, key, raw):
    return dead(grid, number, key=key, raw=raw, job="s", partition=-1, stage="source", origin=f"topic/0@{number}")


async def write(grid, letters, name="test"):
    await MapWriter(grid, map_of(name)).put((each.id, encode(each)) for each in letters)


async def size(grid, name="test"):
    return await transport.map_size(grid.client, map_of(name))


async def test_what_is_rejected_is_said_though_nothing_more_comes(caplog, monkeypatch):
    monkeypatch.setattr(letter_writer, "SAY_SECONDS", 0.05)
    async with StubCluster() as cluster, asyncio.timeout(30):
        writer = LetterWriter(await cluster.connect("user"), "test", MANY)
        writer.say(1, "sequence 0", "too long")
        writer.say(0, "sequence 1", "too short", unkept=2)
        while "2 more could not be scored, and have no dead letter" not in caplog.text:
            await asyncio.sleep(0.01)
    assert [record.action for record in caplog.records] == ["dead_letter", "dead_letter_unkept"]


async def test_what_is_rejected_last_is_said_when_its_writer_ends(caplog):
    async with StubCluster() as cluster:
        writer = LetterWriter(await cluster.connect("user"), "test", MANY)
        writer.say(1, "sequence 0", "too long")
        writer.say(0, "sequence 1", "too short", unkept=2)
        writer.say(1, "sequence 2", "too wide")
        writer.close()
        writer.close()
    assert [record.action for record in caplog.records] == ["dead_letter", "dead_letter", "dead_letter_unkept"]
    assert "sequence 2: too wide" in caplog.messages[1]
    assert "sequence 1: too short" in caplog.messages[2]


async def test_several_processes_together_keep_as_many_as_there_may_be_and_seldom_count_them():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        writers = [LetterWriter(grid, "test", Limits(1_000, 64 << 20), share=lambda: 1 / 8) for _ in range(8)]
        left = 0
        for begin in range(0, 4_000, 400):
            batches = [[dead(grid, begin + n + at * 10_000) for n in range(50)] for at in range(8)]
            done = await asyncio.gather(*(w.put(batch) for w, batch in zip(writers, batches, strict=True)))
            left += sum(len(each.left) for each in done)
        kept = await size(grid)
        assert 1_000 <= kept <= 1_100  # a look does not see what is just being written
        assert kept + left == 4_000
        assert all("max_dead_letters" in writer.full for writer in writers)
        assert cluster.requests["Map.Size"] < 300


async def test_their_bytes_are_bounded_whatever_was_small_before():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        writer = LetterWriter(grid, "test", Limits(10_000, 4 << 20))
        assert not (await writer.put([dead(grid, n) for n in range(2_000)])).left
        await purged(grid)
        big = [dead(grid, n, raw=bytes(1 << 18)) for n in range(40)]
        left = [each for n in range(0, 40, 4) for each in (await writer.put(big[n : n + 4])).left]
        kept = sum([len(each.raw) async for _, each in walk_letters(grid, "test")])
        assert 3 << 20 < kept < 5 << 20
        assert len(left) == 40 - await size(grid)
        assert "max_dead_letter_bytes" in writer.full


async def purged(grid, name="test", choice=ALL, **options):
    """What a removal has done when it is done."""
    done = Removed()
    async for done in remove(grid, name, choice, **options):  # noqa: B007 -- the last one counts
        pass
    return done


async def test_what_the_grid_has_already_is_not_written_again_and_takes_no_room():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        writer = LetterWriter(grid, "test", Limits(3, 64 << 20))
        first = [dead(grid, n) for n in range(3)]
        assert await writer.put(first) == (3, [])
        again = [msgspec.structs.replace(each, at="2027-01-01T00:00:00.000Z") for each in first]
        assert await writer.put(again) == (0, [])
        assert {each.at async for _, each in walk_letters(grid, "test")} == {each.at for each in first}
        # The same event, put once more; another error; and one that is being put back: it would be removed otherwise.
        later = msgspec.structs.replace(again[0], sequence=70)
        other = msgspec.structs.replace(again[1], error="it is worse")
        await write(grid, [msgspec.structs.replace(first[2], claim="1-x")])
        writer = LetterWriter(grid, "test", MANY)
        assert await writer.put([later, other, again[2]]) == (3, [])
        found = {found: each async for found, each in walk_letters(grid, "test")}
        assert found == {each.id: each for each in (later, other, again[2])}


async def test_what_the_grid_has_is_found_whatever_waits_for_a_member_that_does_not_answer():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        writer = LetterWriter(grid, "test", Limits(10_000, 4 << 20))
        stand = [dead(grid, n, raw=bytes(1 << 18)) for n in range(10)]
        assert await writer.put(stand) == (10, [])
        silence = Fault("silence", applied=False, request="Map.GetAll", map="dead-letters.*")
        cluster.faults.append(silence)
        waiting = asyncio.create_task(writer.put([dead(grid, 100, raw=bytes(1 << 20))]))
        await until(lambda: not silence.times)
        assert await writer.put(stand) == (0, [])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_those_of_a_batch_share_few_requests_in_a_cluster_with_the_usual_number_of_partitions():
    async with StubCluster(271) as cluster:
        grid = await cluster.connect("user")
        writer, before = LetterWriter(grid, "test", MANY), cluster.requests.copy()
        assert await writer.put([dead(grid, n, partition=n % 271) for n in range(400)]) == (400, [])
        requests = cluster.requests - before
        assert requests["Map.PutAll"] <= 36
        assert requests["Map.GetAll"] <= 36
        assert await size(grid) == 400


async def test_a_list_goes_on_behind_the_last_of_another():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        await write(grid, [dead(grid, n) for n in range(500)])
        seen, last = [], None
        while True:
            total, some = await list_letters(grid, "test", 120, last)
            assert total == 500
            if not some:
                break
            seen += some
            last = some[-1]
        assert len({each.id for each in seen}) == len(seen) == 500
        assert [each.at for _, each in seen] == sorted((each.at for _, each in seen), reverse=True)


async def test_a_list_has_no_more_bytes_than_it_may_and_leaves_none_out_between():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        # A large one among small ones: those behind it that are met later must not take its place.
        letters = [dead(grid, n, raw=b"x" * (3_000 if n % 7 == 0 else 100)) for n in range(100)]
        await write(grid, letters)
        seen, last = [], None
        while some := (await list_letters(grid, "test", 40, last, 2_000))[1]:
            assert len(some) == 1 or sum(len(each.dead.raw) for each in some) <= 2_000
            seen += some
            last = some[-1]
        assert [each.dead for each in seen] == sorted(letters, key=lambda each: (each.at, each.id), reverse=True)


def poison(count, begin=0):
    return [Poison(f"a:{n}", f"k{n}", b"bad", "it is not an event") for n in range(begin, begin + count)]


def runner_of(client, script, limits=MANY, **options):
    return SourceRunner(client.grid, "s", script.source, kind="script", to="events.x", limits=limits, **options)


async def test_a_source_pauses_when_it_has_as_many_dead_letters_as_it_may_and_goes_on_when_some_are_gone(caplog):
    script = Script([*poison(40), ("good", b"1")], size=8)
    async with StubCluster() as cluster:
        client = await cluster.client()
        runner = runner_of(client, script, Limits(20, 64 << 20))
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.stats.state == "paused")
        await asyncio.sleep(0.1)
        assert await size(client.grid, "s") == 20
        assert script.acknowledged <= 20
        assert runner.stats.waiting == "there are 20 dead letters, and the limit is 20 (max_dead_letters)"
        assert "gridscore dead-letters list s" in caplog.text
        # It goes on as soon as the first are gone, so some of the next may go with them.
        gone = (await purged(client.grid, "s", Choice(reason="not an event"))).letters
        await asyncio.wait_for(running, 20)
        assert script.acknowledged == 41
        assert await size(client.grid, "s") == 40 - gone <= 20
        assert (runner.stats.poison, runner.stats.waiting) == (40, "")


async def test_a_source_whose_events_are_nearly_all_rejected_pauses_and_can_be_stopped(monkeypatch):
    monkeypatch.setattr(source_runner, "RECENT", 100)
    monkeypatch.setattr(source_runner, "SETTLE_SECONDS", 0.1)
    some = [each for n in range(0, 2_000, 10) for each in (*poison(8, n), (f"a{n}", b"1"), (f"b{n}", b"1"))]
    script = Script([*some, *poison(5_000, 10_000), ("good", b"1")], size=10)
    async with StubCluster() as cluster:
        client = await cluster.client()
        runner = runner_of(client, script)
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.stats.state == "paused")
        # 80 % was not too much; the wrong ones were noticed within a few batches.
        assert 1_600 < await size(client.grid, "s") < 1_600 + 200
        assert "of the last 100 that it read are not events (max_rejected)" in runner.stats.waiting
        await asyncio.sleep(0.1)
        assert runner.stats.state == "paused"
        runner.stop()
        await asyncio.wait_for(running, 20)

        never = runner_of(client, script, max_rejected=100)
        await asyncio.wait_for(never.run(), 60)
        assert script.acknowledged == len(script.items)


async def test_a_sink_pauses_when_it_has_as_many_dead_letters_as_it_may_and_goes_on_when_some_are_gone():
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received(refuses={f"k{n}" for n in range(60)})
        await MapWriter(grid, "results.x").put((f"k{n}", json.dumps({"score": n}).encode()) for n in range(100))
        settings = SinkSettings(results="results.x", max_dead_letters=10)
        sink = SinkRunner(grid, "s", "list", settings, lambda: ListSink(received, "one", max_results=5))
        running = asyncio.create_task(sink.run())
        await until(lambda: sink.stats.state == "paused")
        assert 10 <= await size(grid, "s") <= 15
        before = sink.stats.deliveries
        await asyncio.sleep(0.05)
        assert sink.stats.deliveries == before < 20
        assert "max_dead_letters" in sink.stats.error
        async with asyncio.timeout(60):
            while sink.stats.events < 100:
                await purged(grid, "s")
        assert (sink.stats.dead, len(received.results)) == (60, 40)
        assert sink.stats.interruptions == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def replayed(grid, ids, **options):
    found = replay.replay(grid, "s", ids, **options)
    return {each.id: each.refusal async for each in found}


async def test_those_of_a_key_come_back_in_order_and_once_however_many_replay_them():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        letters = [source_letter(grid, n, f"k{n % 5}", json.dumps({"v": n}).encode()) for n in range(60)]
        await write(grid, letters[::-1], "s")
        puts = []
        cluster.on_change = lambda name, _partition, change: name == "events.x" and puts.append(change)
        ids = [each.id for each in letters]
        cluster.faults.append(Fault("indeterminate", request="Map.ReplaceIfSame", times=5))
        grids = [await cluster.connect(f"user{n}") for n in range(3)]
        done = await asyncio.gather(*(replayed(each, ids) for each in grids))
        by_key = {}
        for change in puts:
            by_key.setdefault(bytes(change.key), []).append(json.loads(change.value[12:])["v"])
        assert all(values == sorted(values) for values in by_key.values())
        # An answer that is lost makes an event be put twice at worst: the same again.
        once = {value for values in by_key.values() for value in values}
        assert once == {n for n, letter in enumerate(letters) if any(one[letter.id] == "" for one in done)}
        assert len(puts) <= len(once) + 5
        while await size(grid, "s"):
            await replayed(grid, [each.id async for each in walk_letters(grid, "s")])
        events = await grid.map("events.x")
        assert {key: value.loads()["v"] for key, value in await events.entry_set()} == {
            f"k{n}": 55 + n for n in range(5)
        }


async def test_what_a_dead_operator_has_begun_is_free_after_a_while(monkeypatch):
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        older, newer = (source_letter(grid, n, "k", json.dumps({"v": n}).encode()) for n in (1, 2))
        await write(grid, [older, newer], "s")

        async def die(*_, **__):
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(replay, "_put", die)
            with pytest.raises(asyncio.CancelledError):
                await replayed(grid, [older.id])
        refused = await replayed(grid, [newer.id, older.id])
        assert "somebody else is replaying it" in refused[older.id]
        assert "comes first" in refused[newer.id]
        assert await size(grid, "s") == 2
        monkeypatch.setattr(replay, "CLAIM_SECONDS", -1.0)
        assert await replayed(grid, [newer.id, older.id]) == {older.id: "", newer.id: ""}
        assert (await (await grid.map("events.x")).get("k")).loads() == {"v": 2}


async def test_one_large_letter_says_nothing_of_the_small_ones_of_others():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        await write(grid, [dead(grid, number) for number in range(100)])
        writer = LetterWriter(grid, "test", Limits(10_000, 64 << 20))
        for number in range(3):
            put = await writer.put([dead(grid, 1_000 + number, raw=bytes(1 << 20))])
            assert (len(put.left), writer.full) == (0, "")


async def test_a_rescued_event_that_was_rejected_later_comes_back_later_whatever_its_sequence():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        older = dead(grid, 10, key="k", raw=b'{"v":1}', at="2026-01-01T00:00:01.000Z")
        newer = dead(grid, -1, key="k", raw=b'{"v":2}', at="2026-01-01T00:00:02.000Z")
        await write(grid, [older, newer])
        await MapWriter(grid, "events.x").put([("k", b'{"v":2}')])
        done = {each.id: each.refusal async for each in replay.replay(grid, "test", [older.id, newer.id], of_job=False)}
        assert "a newer event has its key" in done[older.id]
        assert done[newer.id] == ""
        assert (await (await grid.map("events.x")).get("k")).loads() == {"v": 2}


async def test_who_was_held_up_longer_than_a_claim_lasts_puts_nothing(monkeypatch):
    async with StubCluster() as cluster:
        slow, quick = await cluster.connect("slow"), await cluster.connect("quick")
        letter = source_letter(slow, 1, "k", b'{"v":1}')
        await write(slow, [letter], "s")
        puts, held, go_on, put = [], asyncio.Event(), asyncio.Event(), replay._put
        cluster.on_change = lambda name, _partition, change: name == "events.x" and puts.append(change)

        async def paused(grid, *arguments, **options):
            if grid is slow:
                held.set()
                await go_on.wait()
                options["until"] = time.monotonic() - 1.0  # as if it had been stopped for a minute
            return await put(grid, *arguments, **options)

        monkeypatch.setattr(replay, "_put", paused)
        first = asyncio.create_task(replayed(slow, [letter.id]))
        await held.wait()
        monkeypatch.setattr(replay, "CLAIM_SECONDS", -1.0)
        assert await replayed(quick, [letter.id]) == {letter.id: ""}
        go_on.set()
        assert "held up" in (await first)[letter.id]
        assert len(puts) == 1


async def test_an_event_that_fails_again_before_its_dead_letter_is_removed_keeps_it(monkeypatch):
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        letter = dead(grid, 5)
        await write(grid, [letter])
        writer = LetterWriter(grid, "test", MANY)
        again = msgspec.structs.replace(letter, sequence=9, at="2027-01-01T00:00:00.000Z")
        real = replay._put

        async def put_and_fail(*arguments, **options):
            refusal = await real(*arguments, **options)
            assert await writer.put([again]) == (1, [])
            return refusal

        monkeypatch.setattr(replay, "_put", put_and_fail)
        found = replay.replay(grid, "test", [letter.id], of_job=False)
        assert [each.refusal async for each in found] == [""]
        assert [each async for _, each in walk_letters(grid, "test")] == [again]


async def test_what_is_chosen_is_removed():
    async with StubCluster() as cluster:
        grid = await cluster.connect("user")
        old = [dead(grid, n) for n in range(10)]
        young = [dead(grid, n, at="2999-01-01T00:00:00.000Z", error=f"Error {n}") for n in range(10, 20)]
        await write(grid, old + young)
        await MapWriter(grid, map_of("test")).put([("foreign", b"[1]")])
        events = await grid.map("events.x")
        await events.put("k3", HazelcastJsonValue('{"v": 1}'))
        await events.put("k4", HazelcastJsonValue('{"v": 2}'))

        async def removed(choice, **options):
            found = await purged(grid, choice=choice, **options)
            return found.letters, found.events

        assert await removed(Choice(older_than=86_400.0), dry_run=True) == (10, 0)
        assert await removed(Choice(reason="error 1", older_than=86_400.0)) == (0, 0)
        assert await size(grid) == 21
        assert await removed(Choice(older_than=86_400.0), with_events=True) == (10, 1)
        assert (await events.get("k3"), (await events.get("k4")).loads()) == (None, {"v": 2})
        found = await purged(grid, choice=Choice(ids=frozenset((young[0].id, "1-nothing"))))
        assert (found.letters, found.left) == (1, {"1-nothing"})
        assert await removed(Choice(reason="error 1")) == (9, 0)
        assert await removed(Choice()) == (1, 0)  # also what is not a dead letter
        assert await size(grid) == 0


JOB = """\
job: payments
events: events.payments
schema: {amount: float}
features: {amount: amount}
model: payments
results: results.payments
"""


async def test_a_purge_does_not_acknowledge_events_that_have_no_dead_letter():
    async with StubCluster(partitions=5) as cluster:
        grid = await cluster.connect("user")
        await Jobs(grid).submit(parse_job(JOB, "test"))
        lease = msgspec.structs.replace(NOBODY, epoch=1, offset=9, renewals=1, unkept=7)
        await put_raw(grid, LEASES_MAP, lease_key("payments", 2, 5), json_data(encode_lease(lease)))
        job = parse_job(JOB, "test")
        for with_events in (False, True):
            async for _ in remove(grid, "payments", ALL, job=job, with_events=with_events):
                pass
            # They are in the event map still: until an audit has found them, it is nobody's place to say so.
            assert (await job_status(grid, await Jobs(grid).get("payments"))).acknowledged == {}
