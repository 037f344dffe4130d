"""The Redis source against a real server, driven as the runner drives it, and by the runner against a real member."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from contextlib import aclosing

import pytest
import redis
import redis_server as servers
import source_reading
from pydantic import ValidationError
from source_reading import SECONDS, read

from gridscore.client import connect
from gridscore.dead_letters.letters import list_letters
from gridscore.errors import UsageError
from gridscore.leash import LeashedProcess
from gridscore.sources import runner as runners
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.redis.settings import RedisSourceSettings
from gridscore.sources.redis.source import RedisSource
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(runners, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(runners, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def client(redis_server):
    with redis_server.client() as made:
        yield made


@pytest.fixture
def settings(redis_server, unique):
    def make(**more):
        more = {"server": redis_server.url, "stream": f"s-{unique}", "number": ["n"], **more}
        return RedisSourceSettings(to="events.payments", **more)

    return make


def add(client, stream, numbers, **fields):
    """IDs of the new entries."""
    with client.pipeline(transaction=False) as pipeline:
        for n in numbers:
            pipeline.xadd(stream, {"n": n, **fields})
        return [identity.decode() for identity in pipeline.execute()]


def pending(client, stream, group="s"):
    return client.xpending(stream, group)["pending"]


def numbers(entries):
    return [json.loads(text)["n"] for _, text in entries]


@pytest.fixture
async def grid():
    """Where a source that begins at the latest keeps that it has begun."""
    async with StubCluster() as cluster:
        yield await cluster.connect()


def opened(settings, grid=None):
    return source_reading.opened(RedisSource(grid, "s", settings))


async def test_entries_come_in_order_under_their_place_or_under_fields(settings, client, unique):
    stream = f"s-{unique}"
    identities = add(client, stream, range(5_000), who="ann")
    async with opened(settings()) as source:
        entries, poison = await read(source, 5_000)
    assert not poison
    assert [key for key, _ in entries] == [f"{stream}/{each}" for each in identities]
    assert entries[7][1] == b'{"n":7,"who":"ann"}'
    assert pending(client, stream) == 0
    async with opened(settings(group="other", key=["who", "n"])) as source:
        entries, _ = await read(source, 5_000)
    assert [key for key, _ in entries] == [f"ann|{n}" for n in range(5_000)]


async def test_a_new_group_begins_where_it_is_told_to(settings, client, unique, grid):
    add(client, f"s-{unique}", range(3))
    async with opened(settings(start="latest"), grid) as source:
        add(client, f"s-{unique}", [3])
        entries, _ = await read(source, 1)
    assert numbers(entries) == [3]
    async with opened(settings(start="oldest")) as source:  # the group is there already
        add(client, f"s-{unique}", [4])
        entries, _ = await read(source, 1)
    assert numbers(entries) == [4]


@pytest.mark.parametrize("field", [None, "payload"])
async def test_a_huge_entry_is_not_copied_for_its_dead_letter_and_the_next_is_read_alone(settings, field):
    source = RedisSource(None, "s", settings(field=field, number=[], max_event=1_000))
    source._count = 500
    fields = {b"first": b"1", b"payload": b"x" * (32 << 20), b"last": b"2"}
    tracemalloc.start()
    try:
        batch = source._batch([(b"7-0", fields)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await source.close()
    (poison,) = batch.poison
    assert not batch.entries
    assert poison.error.startswith("It has 33,554,")
    assert poison.raw.startswith(b"xxx" if field else b'{"first":"1","payload":"xxx')
    assert len(poison.raw) == 1_000
    assert peak < 1 << 20
    assert source._count == 1


async def test_a_server_can_bound_its_fields(tmp_path):
    with servers.start(tmp_path, "--proto-max-bulk-len", "1mb") as server, server.client() as client:
        client.xadd("s", {"n": "1" * 1_000_000})
        with pytest.raises(redis.RedisError):
            client.xadd("s", {"n": "1" * 1_100_000})


@pytest.mark.parametrize("start", ["oldest", "latest"])
async def test_a_stream_that_redis_has_lost_with_its_group_is_read_from_its_beginning(
    settings, client, unique, grid, start, caplog
):
    stream = f"s-{unique}"
    async with opened(settings(start=start), grid) as source:
        add(client, stream, [1])
        await read(source, 1)
        client.delete(stream)  # as FLUSHALL, or a restart without persistence, does
        add(client, stream, [2, 3])
        with pytest.raises(SourceInterruptedError):
            await read(source, 1)
    async with opened(settings(start=start), grid) as source:
        add(client, stream, [4])
        entries, _ = await read(source, 3)
    assert numbers(entries) == [2, 3, 4]
    assert ("Redis has lost the group `s`" in caplog.text) == (start == "latest")


async def test_what_is_not_acknowledged_comes_again_first_under_the_same_keys(settings, client, unique):
    add(client, f"s-{unique}", range(200))
    async with opened(settings()) as source:
        first, _ = await read(source, 100)
    async with opened(settings()) as source:
        second, _ = await read(source, 200 - len(first), acknowledge=False)
    assert pending(client, f"s-{unique}") == len(second) > 0
    add(client, f"s-{unique}", range(200, 300))
    async with opened(settings()) as source:
        third, _ = await read(source, 300 - len(first))
    assert numbers(first + third) == list(range(300))
    assert dict(second).items() <= dict(third).items()
    assert pending(client, f"s-{unique}") == 0


async def test_an_object_in_a_field_is_the_event_and_what_is_not_one_is_poison(settings, client, unique):
    stream = f"s-{unique}"
    texts = [b'{"n": 1}', b"[1]", b"{broken", b'{"n":"\xff"}', b"[" * 20_000, b'{"n":2,"pad":"%b"}' % (b"x" * 900)]
    identities = [client.xadd(stream, {"payload": text, "more": "x"}).decode() for text in [*texts, b'{"n":3}']]
    identities.append(client.xadd(stream, {"other": "{}"}).decode())
    async with opened(settings(field="payload", number=[], key=["n"], max_event=900)) as source:
        entries, poison = await read(source, 8)
    assert entries == [(1, b'{"n": 1}'), (3, b'{"n":3}')]
    wrong = [1, 2, 3, 4, 5, 7]
    assert [each.origin for each in poison] == [f"{stream}@{identities[n]}" for n in wrong]
    assert [each.key for each in poison] == [f"{stream}/{identities[n]}" for n in wrong]
    assert [each.raw for each in poison] == [*(text[:900] for text in texts[1:]), b'{"other":"{}"}']
    assert "not an object" in poison[0].error
    assert "the limit is 900" in poison[3].error
    assert poison[5].error == "It has no field `payload`."
    assert pending(client, stream) == 0


async def test_a_field_that_is_not_a_number_a_text_or_a_key_is_poison(settings, client, unique):
    for fields in ({"n": "1.5"}, {"n": "one"}, {"n": "NaN"}, {"n": 1, "who": b"\xff"}, {"who": "ann"}):
        client.xadd(f"s-{unique}", fields)
    async with opened(settings()) as source:
        entries, poison = await read(source, 5)
    assert [text for _, text in entries] == [b'{"n":1.5}', b'{"who":"ann"}']
    assert [each.error for each in poison[:2]] == ["Its field `n` is not a number."] * 2
    assert poison[0].raw == b'{"n":"one"}'
    async with opened(settings(group="other", key=["who"])) as source:
        entries, poison = await read(source, 5)
    assert [key for key, _ in entries] == ["ann"]


async def test_what_was_deleted_while_it_was_pending_is_passed_over(settings, client, unique, caplog):
    identities = add(client, f"s-{unique}", range(10))
    async with opened(settings()) as source:
        await read(source, 10, acknowledge=False)
    client.xdel(f"s-{unique}", *identities[:4])
    async with opened(settings()) as source:
        entries, _ = await read(source, 6)
    assert numbers(entries) == [4, 5, 6, 7, 8, 9]
    assert pending(client, f"s-{unique}") == 0
    assert sum(map(int, re.findall(r"([0-9]+) entries were deleted", caplog.text))) == 4


async def test_two_consumers_share_a_stream(settings, client, unique):
    found = {}

    async def follow(name, source):
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                found.setdefault(name, []).extend(batch.entries)
                await source.acknowledge(batch)

    async with opened(settings(consumer="one")) as one, opened(settings(consumer="other")) as other:
        tasks = [asyncio.create_task(follow(*each)) for each in (("one", one), ("other", other))]
        async with asyncio.timeout(SECONDS):
            while len(found) < 2:
                add(client, f"s-{unique}", range(50))
                await asyncio.sleep(0.01)
            count = client.xlen(f"s-{unique}")
            while sum(map(len, found.values())) < count:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert len(dict(found["one"] + found["other"])) == count == sum(map(len, found.values()))


async def test_entries_of_a_dead_consumer_are_claimed_and_those_of_a_slow_one_are_not(settings, client, unique):
    add(client, f"s-{unique}", range(100))
    slow_one = settings(consumer="slow", claim_after="1s", batch=10)
    async with opened(slow_one) as slow, aclosing(slow.batches()) as batches:
        waiting = await anext(batches)  # for the grid to have room, for longer than the dead one is dead
        async with opened(settings(consumer="dead", batch=10)) as source:
            dead, _ = await read(source, 50, acknowledge=False)
        async with opened(settings(consumer="other", claim_after="2s")) as other:
            entries, _ = await read(other, 99)
        assert dict(dead).items() <= dict(entries).items()
        assert not dict(waiting.entries).keys() & dict(entries).keys()
        assert pending(client, f"s-{unique}") == len(waiting.entries) == 1
        await slow.acknowledge(waiting)
    assert pending(client, f"s-{unique}") == 0


async def test_a_source_ends_whenever_it_is_told_to(settings, client, unique):
    async def follow(source):
        async for batch in source.batches():
            await source.acknowledge(batch)

    for steps in range(200):
        async with opened(settings(stream=f"s-{unique}-{steps}")) as source:
            following = asyncio.create_task(follow(source))
            add(client, f"s-{unique}-{steps}", range(3))
            for _ in range(steps % 40):
                await asyncio.sleep(0)
            following.cancel()
            done, _ = await asyncio.wait({following}, timeout=SECONDS)
            assert done


async def test_large_entries_are_read_few_at_a_time(settings, client, unique):
    for n in range(60):
        client.xadd(f"s-{unique}", {"n": n, "pad": "x" * 1_000_000})
    sizes = []
    async with asyncio.timeout(SECONDS), opened(settings()) as source, aclosing(source.batches()) as batches:
        while sum(sizes) < 60:
            batch = await anext(batches)
            sizes.append(len(batch.entries))
            await source.acknowledge(batch)
    assert sizes[0] == 1  # after a crash for lack of memory, what was too much comes again
    assert max(sizes) <= 16


# ---------------------------------------------------------------------- what people get wrong


async def test_obstacles_are_reported(settings, client, redis_server, unique, tmp_path):
    client.set(f"s-{unique}", "a text")
    with pytest.raises(UsageError, match="has no stream"):
        async with opened(settings()):
            pass
    with pytest.raises(UsageError, match="has no such database"):
        async with opened(settings(server=f"{redis_server.url}/999", stream="other")):
            pass
    with pytest.raises(UsageError) as raised:
        async with opened(settings(server="rediss://127.0.0.1:1", ca_file=str(tmp_path / "none.pem"))):
            pass
    assert "ca_file" in raised.value.hint
    with pytest.raises(SourceInterruptedError, match="connecting to 127"):
        async with opened(settings(server="redis://127.0.0.1:1")):
            pass


async def test_users_come_in_by_tls_and_may_do_what_they_are_allowed_to(tmp_path, certificates, settings, unique):
    certificate, key = map(str, certificates)
    more = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    more += ["--tls-auth-clients", "no", "--requirepass", "admin"]
    tls = {"ssl": True, "ssl_ca_certs": certificate, "password": "admin"}
    with servers.start(tmp_path, *more, **tls) as server:
        with server.client() as client:
            rights = ["+xgroup|create", "+xreadgroup", "+xautoclaim", "+xclaim", "+select"]
            for user, more_rights in (("app", ["+xack"]), ("less", [])):
                client.execute_command("ACL", "SETUSER", user, "on", ">right-password", "~*", *rights, *more_rights)
        right = {"server": server.url, "username": "app", "password": "right-password", "ca_file": certificate}
        for which in ("", "/3"):
            async with opened(settings(**{**right, "server": server.url + which})) as source:
                with server.client() as client:
                    client.select(int(which[1:] or 0))
                    add(client, f"s-{unique}", [1])
                entries, _ = await read(source, 1)
                assert numbers(entries) == [1]
        for wrong, said in (
            ({"password": "wrong"}, "refuses the user or the password"),
            ({"username": None, "password": None}, "refuses the user or the password"),
            ({"username": "less"}, "does not allow it to this user.*xack"),
            ({"ca_file": None}, "is not trusted"),
        ):
            with pytest.raises(UsageError, match=said) as raised:
                async with opened(settings(**{**right, **wrong})):
                    pass
            assert "right-password" not in f"{raised.value} {raised.value.hint}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"server": "redis://u:hunter2@h"}, "give `username` and `password`"),
        ({"server": "http://h"}, "is not an address of a Redis server"),
        ({"field": "payload"}, "has numbers of its own"),
        ({"username": "u"}, "needs a `password`"),
        ({"ca_file": "ca.pem"}, "certificates are for TLS"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, given, said):
    with pytest.raises(ValidationError, match=said) as raised:
        settings(**given)
    assert "hunter2" not in raised.value.errors()[0]["msg"]


# ---------------------------------------------------------------------- into a real member


async def wait_for(condition):
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_server_killed_in_the_middle_costs_nothing(cluster, tmp_path, unique):
    count, stream, name = 3_000, f"s-{unique}", f"redis-{unique}"
    with servers.start(tmp_path) as server:
        settings = RedisSourceSettings(to=f"events.{unique}", server=server.url, stream=stream, number=["n"])
        async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as grid_client:
            grid = grid_client.grid
            runner = SourceRunner(grid, name, lambda: RedisSource(grid, name, settings), kind="redis", to=settings.to)
            events = await grid.map(settings.to)
            running = asyncio.create_task(runner.run())

            async def some():
                return await events.size() > 0

            async def interrupted():
                return runner.stats.interruptions > 0

            async def all_there():
                return await events.size() == 2 * count

            with server.client() as client:
                added = add(client, stream, range(count))
                added += [client.xadd(stream, {"n": "poison"}).decode()]
            await wait_for(some)
            await asyncio.to_thread(server.kill)
            await wait_for(interrupted)
            await asyncio.to_thread(server.restart)
            with server.client() as client:
                added += add(client, stream, range(count, 2 * count))
            await wait_for(all_there)
            runner.stop()
            await running
            keys = {f"{stream}/{each}" for each in added}
            assert set(await events.key_set()) == keys - {f"{stream}/{added[count]}"}
            with server.client() as client:
                assert pending(client, stream, name) == 0
            total, letters = await list_letters(grid, name, 10)
            assert total == 1
            assert letters[0].dead.origin == f"{stream}@{added[count]}"


async def test_a_source_killed_in_the_middle_costs_nothing(cluster, redis_server, client, unique, tmp_path):
    count, stream, name = 3_000, f"s-{unique}", f"redis-{unique}"
    arguments = ["source", "redis", "--server", redis_server.url, "--stream", stream, "--number", "n"]
    arguments += ["--to", f"events.{unique}", "--name", name, "--members", ",".join(cluster.addresses)]
    arguments += ["--cluster-name", cluster.cluster_name]
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as grid_client:
        events = await grid_client.grid.map(f"events.{unique}")
        added = add(client, stream, range(count))

        async def all_there():
            return await events.size() == 2 * count and pending(client, stream, name) == 0

        with LeashedProcess("gridscore.cli", arguments, tmp_path / "first.log") as process:

            async def some():
                assert process.exit_code is None, process.last_lines()
                return await events.size() > 0

            await wait_for(some)
            added += add(client, stream, range(count, 2 * count))
            process._process.kill()
        with LeashedProcess("gridscore.cli", arguments, tmp_path / "second.log"):
            await wait_for(all_there)
        assert set(await events.key_set()) == {f"{stream}/{each}" for each in added}
