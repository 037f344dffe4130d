"""Texts that a stranger may send to end whoever reads them: nested without end, numbers that nothing holds, long lines.

Each way in and each way out takes them for what they are, no event and no result, and their neighbours go on.
"""

import asyncio
import json
import re
import sys

import pytest
from confluent_kafka import Message

from gridscore.dead_letters.letters import list_letters
from gridscore.grid.writer import MapWriter
from gridscore.job.plugs.base import SinkSettings
from gridscore.operations.replay import letter_ids, replay
from gridscore.sinks.base import Delivered, Delivery
from gridscore.sinks.files.settings import FilesSinkSettings
from gridscore.sinks.files.sink import FilesSink
from gridscore.sinks.kafka.transactions import Transactions
from gridscore.sinks.runner import SinkRunner
from gridscore.sources.base import Poison
from gridscore.sources.kafka.messages import MessageReader, NoEventError
from gridscore.sources.kafka.settings import KafkaSourceSettings
from gridscore.sources.logfile import tail as log_tail
from gridscore.sources.logfile.formats import format_of, seconds_of_time
from gridscore.sources.logfile.settings import LogfileSourceSettings
from gridscore.sources.logfile.tail import Tail
from gridscore.sources.mqtt.messages import MessageDecoder
from gridscore.sources.mqtt.packets import Message as MqttMessage
from gridscore.sources.mqtt.settings import MqttSourceSettings
from gridscore.sources.postgres.settings import PostgresSourceSettings
from gridscore.sources.postgres.source import PostgresSource
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster
from gridscore.testing.sinks import ListSink, Received
from gridscore.testing.sources import Script


def nested(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


# Deeper than any interpreter follows: 3.11 stops at its recursion limit of 1,000, 3.13 at 10,000 levels.
DEEP = nested(30_000)
HUGE = 10**400
SECONDS = 20


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------- sources


def test_a_line_of_a_log_may_be_nested_without_end():
    form = format_of(LogfileSourceSettings(to="events.x", path=["x.log"]))(b"")
    with pytest.raises(ValueError, match="recursion"):
        form.parse(DEEP)


@pytest.mark.parametrize("value", [HUGE, -HUGE, 1e300, float("inf"), float("nan"), True, [1], {}])
def test_what_is_no_time_is_none(value):
    assert seconds_of_time(value) is None


def test_an_access_log_is_looked_through_once():
    form = format_of(LogfileSourceSettings(to="events.x", path=["x.log"], format="combined"))(b"")
    name = "x" + " [" * 100_000  # before: a second for each thousand
    with pytest.raises(ValueError, match="not a line of an access log"):
        form.parse(f"::1 - {name}".encode())
    line = f'::1 - {name}a [10/Oct/2025:13:55:36 -0700] "GET / HTTP/1.1" 200 1 "-" "-"'
    assert form.parse(line.encode()).fields["remote_user"] == f"{name}a"


def test_a_quote_that_never_ends_is_looked_at_once(monkeypatch):
    looked = []
    is_open = log_tail.is_open
    monkeypatch.setattr(log_tail, "is_open", lambda raw, delimiter: looked.append(raw) or is_open(raw, delimiter))
    tail = object.__new__(Tail)
    tail._delimiter, tail._max_line = ",", 10_000
    pieces = [b'"', *[b'""'] * 1_000]
    assert tail._lines_of_record(pieces, 0, flush=False) == 0
    assert tail._lines_of_record(pieces, 0, flush=True) == 1
    assert tail._lines_of_record([*pieces, b'"'], 0, flush=False) == len(pieces) + 1
    assert looked == [b'"'] * 3


def test_a_message_of_mqtt_may_be_nested_without_end():
    settings = MqttSourceSettings(to="events.x", topic=["a/{b}"], value_field="v")
    found = MessageDecoder(settings).decode(MqttMessage(b"a/b", DEEP))
    assert isinstance(found, Poison)
    assert "nested too deeply" in found.error


@pytest.mark.parametrize("how", [{"key": ("id",)}, {"key": ("id", "b")}, {"key_property": "id"}])
def test_a_key_that_is_very_long_is_poison(how):
    decoder = MessageDecoder(MqttSourceSettings(to="events.x", topic=["a/{b}"], **how))
    for length, fits in ((1_000, True), (1_025, False)):
        packed = b"\x26\x00\x02id" + length.to_bytes(2) + b"x" * length
        found = decoder.decode(MqttMessage(b"a/b", b'{"id": "%s"}' % (b"x" * length), properties=packed))
        assert isinstance(found, Poison) is not fits
    assert re.fullmatch(r"Its key has 1,02[0-9] characters; the limit is 1,024\.", found.error)


def test_topics_that_strangers_make_up_are_not_remembered():
    decoder = MessageDecoder(MqttSourceSettings(to="events.x", topic=["a/{b}"]))
    for number in range(10):
        assert not isinstance(decoder.decode(MqttMessage(b"a/%d" % number + b"x" * 60_000, b"{}")), Poison)
    assert sum(map(len, decoder._topics)) < 1_000


def test_a_message_of_kafka_that_is_just_shallow_enough_to_be_looked_at():
    settings = KafkaSourceSettings(to="events.x", brokers=["k:1"], topic="t", headers_field="a")
    read = MessageReader(settings).read
    limit = sys.getrecursionlimit()
    for depth in (*range(limit // 2, limit + 50), *range(limit + 50, 12_000, 97)):
        try:
            read(Message(topic="t", partition=0, offset=1, value=nested(depth)))
        except NoEventError:
            continue


async def test_a_notification_of_postgresql_may_be_nested_without_end():
    async with StubCluster() as cluster:
        grid = await cluster.connect("source")
        settings = PostgresSourceSettings(to="m", database="postgresql://db/x", table="t", key=("id",), notify="c")
        deep = "[" * 7_900
        assert PostgresSource(grid, "s", settings)._key_values(deep) == {"id": deep}


async def test_dead_letters_of_nested_texts_stay_where_they_are():
    async with StubCluster() as cluster:
        client = await cluster.client()
        script = Script([Poison("a:1", "k", DEEP, "nested too deeply"), Poison("a:2", "l", b'{"v":1}', "something")])
        await SourceRunner(client.grid, "test", script.source, kind="script", to="events.x").run()
        ids = await letter_ids(client.grid, "test")
        done = {each.key: each.refusal async for each in replay(client.grid, "test", ids)}
        assert ("not JSON" in done["k"], done["l"]) == (True, "")
        assert (await list_letters(client.grid, "test", 10))[0] == 1


# ---------------------------------------------------------------------- sinks and listeners


def test_what_is_no_position_of_a_transaction_is_none(monkeypatch):
    transactions = Transactions({}, "t", "s", "me", lambda call: call())
    good = b'{"next":5,"epoch":1,"last":4,"check":7}'
    monkeypatch.setattr(transactions, "_read", lambda: {"s/0": good, "s/1": DEEP, "s/2": b"\xff", "s/3": b"{}"})
    found = transactions.take_over(dict.fromkeys(range(5), ""))
    assert {partition: position.next for partition, position in found.items()} == {0: 5}


@pytest.mark.parametrize("depth", [900, 5_000, 9_900, 30_000])
async def test_a_result_may_be_nested_without_end(depth):
    async with StubCluster() as cluster:
        grid, received = await cluster.connect("user"), Received()
        await MapWriter(grid, "results.x").put([("deep", nested(depth)), ("good", b'{"score":1}')])
        settings = SinkSettings(results="results.x")
        runner = SinkRunner(await cluster.connect("one"), "list", "list", settings, lambda: ListSink(received, "one"))
        task = asyncio.create_task(runner.run())
        try:
            # Interpreters differ in what they still read.
            await until(lambda: task.done() or runner.stats.dead + len(received.results) == 2)
            assert not task.done()
            assert "good" in [result.key for result in received.results]
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_listeners_skip_entries_that_are_not_results():
    async with StubCluster() as cluster, asyncio.timeout(SECONDS):
        client = await cluster.client()
        async with await client.results("results.x") as stream:
            writer = MapWriter(client.grid, "results.x")
            await writer.put([("k", DEEP)])
            await writer.put([("k", b'{"x":"\xff"}')])
            await writer.put([("k", b'{"score":1}')])
            assert (await anext(stream)).score == 1
            assert stream.skipped == 2


@pytest.mark.parametrize("score", [HUGE, [0.5, HUGE], 2**60, [2**60]])
async def test_a_file_takes_numbers_of_any_size(tmp_path, score):
    value = {"score": score, "version": HUGE, "scored_at": HUGE, "n": HUGE}
    result = Delivered("k", json.dumps(value).encode(), value, 0, 1, 1)
    async with StubCluster() as cluster:
        sink = FilesSink(await cluster.connect("s"), "out", FilesSinkSettings(results="r", folder=str(tmp_path)))
        await sink.open()
        assert list(await sink.deliver(Delivery([result], {0: 1}, 0.0))) == []
        await sink.close()
    assert len(list(tmp_path.glob("out-*.parquet"))) == 1
