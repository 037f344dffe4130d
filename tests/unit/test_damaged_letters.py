"""Damaged dead letters, and what others put among them: everybody who meets them goes on."""

import asyncio
import base64
import json
import random
import struct

import numpy as np
import pytest
import xgboost as xgb

from gridscore.dead_letters.letters import decode, get_letter, letter_of_source, list_letters, map_of, value_of
from gridscore.errors import EventRejectedError, GridError
from gridscore.grid import transport
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.job import parse_job
from gridscore.job.plugs.base import SinkSettings
from gridscore.operations.removal import Choice, Removed, remove
from gridscore.operations.replay import letter_ids, replay
from gridscore.scoring import superseded
from gridscore.scoring.missing import rejections
from gridscore.sinks.runner import SinkRunner
from gridscore.sources.base import Poison
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster
from gridscore.testing.sinks import ListSink, Received
from gridscore.testing.sources import Script

SECONDS = 30
JOB = """\
job: payments
events: events.payments
schema: {amount: float}
features: {amount: amount}
model: {name: payments, alias: champion}
results: results.payments
"""


def booster():
    rows = np.linspace(0, 2, 200, dtype=np.float32).reshape(-1, 1)
    matrix = xgb.DMatrix(rows, (rows[:, 0] > 1).astype(int), feature_names=["amount"])
    return xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix, 2)


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.01)


def place(grid, key):
    data = transport.key_data(grid.client, key)
    return data, partition_of(data, grid.partition_count)


def letter(grid, key, name, **more):
    """An old dead letter of a job for a key, as its JSON object; it is good without `more`."""
    data, partition = place(grid, key)
    return {
        "job": name,
        "map": "events.payments",
        "partition": partition,
        "sequence": 0,
        "key": key,
        "key_data": base64.b64encode(data).decode(),
        "stage": "decode",
        "error": "it is bad",
        "raw": base64.b64encode(b'{"amount":1}').decode(),
        "size": 12,
        "at": "2026-01-01T00:00:00.000Z",
        **more,
    }


def garbage(grid, key, name):
    """Texts that are nearly a dead letter of a key that has a result."""
    wrong = [
        {"raw": "x"},
        {"raw": "é" * 4},
        {"raw": "!" * 8},
        {"key_data": "x"},
        {"key_data": "AAAA"},
        {"key_data": ""},
        {"sequence": 10**30},
        {"sequence": -(10**30)},
        {"partition": 10**30},
        {"partition": -7},
        {"size": -1},
        {"at": "9999-99-99"},
        {"at": "0001-01-01T00:00:00"},
        {"claim": "9" * 5_000},
        {"claim": "²-x"},
        {"origin": "x", "stage": "source"},
        {"map": "events.none"},
        {"raw": None},
    ]
    texts = [json.dumps(letter(grid, key, name, **more)).encode() for more in wrong]
    good = json.dumps(letter(grid, key, name)).encode()
    texts += [
        good[:-1] + b',"more":' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001,
        good.replace(b"it is bad", b"it is \xff"),
        good[:40],
        b"[" * 30_000,
        b"null",
        b"\x00",
        b"",
    ]
    draw = random.Random(7)
    for _ in range(40):
        text = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            text[draw.randrange(len(text))] = draw.randrange(256)
        texts.append(bytes(text))
    return texts


async def spoil(grid, key, name):
    """Fill a dead-letter map with garbage, under IDs, other texts, numbers, and keys that nobody can read."""
    texts, partition = garbage(grid, key, name), place(grid, key)[1]
    writer = MapWriter(grid, map_of(name))
    await writer.put((f"{partition}-{number:016x}", text) for number, text in enumerate(texts))
    good = json.dumps(letter(grid, key, name)).encode()
    await writer.put([("²-x", good), ("9" * 5_000 + "-x", good), (7, good), ("", good)])
    unknown = struct.pack(">ii", 0, 1234) + b"whatever"
    await writer.put_partition(partition_of(unknown, grid.partition_count), [unknown], [good])


async def size(grid, name):
    return await transport.map_size(grid.client, map_of(name))


async def test_a_job_goes_on_and_removes_those_that_are_superseded(monkeypatch):
    monkeypatch.setattr(superseded, "ROUND_SECONDS", 0.02)
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    async with StubCluster() as cluster:
        client = await cluster.client()
        await client.push_model(booster(), "payments", alias="champion")
        await client.submit(parse_job(JOB, "test"))
        await spoil(client.grid, "k", "payments")
        async with cluster.worker() as worker:
            assert (await client.score("events.payments", "k", {"amount": 1.0}, timeout=SECONDS)).score > 0
            first = worker.runners["payments"]

            async def is_tidied():
                return "" not in dict((await list_letters(client.grid, "payments", 1_000))[1])

            waiting = asyncio.create_task(client.score("events.payments", "l", {"amount": "bad"}, timeout=SECONDS))
            await spoil(client.grid, "l", "payments")
            with pytest.raises(EventRejectedError):
                await waiting
            assert (await client.score("events.payments", "l", {"amount": 1.0}, timeout=SECONDS)).score > 0
            await until(is_tidied)
            assert worker.runners["payments"] is first
            assert await size(client.grid, "payments") > 20
            await rejections(client.grid, parse_job(JOB, "test"))
    assert errors == []


async def test_a_source_and_a_sink_go_on():
    async with StubCluster() as cluster, asyncio.timeout(SECONDS):
        client, received = await cluster.client(), Received(refuses={"bad"})
        for name in ("s", "list"):
            await spoil(client.grid, "k", name)
        raw = b'{"amount":1}'
        again = await _letter_of_source(client, raw)
        script = Script(
            [Poison("a:1", "k", raw, "it is not an event"), ("good", b'{"score":1}'), ("bad", b'{"score":1}')]
        )
        await SourceRunner(client.grid, "s", script.source, kind="script", to="results.x").run()
        assert decode(await value_of(client.grid, "s", again)).error == "it is not an event"
        settings = SinkSettings(results="results.x", start="oldest")
        sink = SinkRunner(client.grid, "list", "list", settings, lambda: ListSink(received, "one"))
        running = asyncio.create_task(sink.run())

        async def is_done():
            assert not running.done()
            return sink.stats.dead == 1 and len(received.results) == 1

        await until(is_done)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _letter_of_source(client, raw):
    """Put garbage where the dead letter of the source's first text will be; returns its ID."""
    dead = letter_of_source(client.grid, "s", "results.x", 0, origin="a:1", key="k", raw=raw, error="")
    await MapWriter(client.grid, map_of("s")).put([(dead.id, b"[" * 30_000)])
    return dead.id


async def test_operators_list_show_replay_and_remove_what_can_be_read_under_the_id_that_it_has(caplog):
    async with StubCluster() as cluster, asyncio.timeout(SECONDS):
        grid = await cluster.connect("user")
        await spoil(grid, "k", "list")
        good = [letter(grid, "k", "list"), letter(grid, "l", "list", raw="e30=", size=2)]
        ids = ["of-an-older-release", "of-a-stranger"]
        await MapWriter(grid, map_of("list")).put((i, json.dumps(g).encode()) for i, g in zip(ids, good, strict=True))
        total = await size(grid, "list")
        listed = dict((await list_letters(grid, "list", 1_000))[1])
        assert {*ids, ""} < listed.keys()
        assert len(listed) < total
        seen, last = [], None
        while some := (await list_letters(grid, "list", 3, last))[1]:
            seen += some
            last = some[-1]
        assert dict(seen) == listed
        assert len(seen) == len(listed)
        assert caplog.text.count("an entry is not a dead letter") == total - len(listed)  # once, however often listed
        everything = await letter_ids(grid, "list")
        for each in everything:
            if each in listed:
                assert await get_letter(grid, "list", each) == listed[each]
            elif await value_of(grid, "list", each) is not None:
                with pytest.raises(GridError, match="is not a dead letter"):
                    await get_letter(grid, "list", each)

        assert await removed(grid, Choice(ids=frozenset([ids[0]]))) == 1
        done = {each.id: each.refusal async for each in replay(grid, "list", everything, of_job=False)}
        assert done.keys() == set(everything)
        assert "has no dead letter" in done[ids[0]]
        assert done[ids[1]] == ""
        assert await removed(grid, Choice(older_than=1.0), with_events=True) > 0
        assert await removed(grid, Choice(), with_events=True) > 0
        assert await size(grid, "list") == 0


async def removed(grid, choice, **options):
    done = Removed()
    async for done in remove(grid, "list", choice, **options):  # noqa: B007 -- the last one counts
        pass
    return done.letters
