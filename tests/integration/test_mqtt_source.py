"""The MQTT source against real brokers, driven as the runner drives it, and by the runner against a real member."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import pytest
import source_reading
from mqtt_server import PASSWORD, USER
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from source_reading import read

from gridscore.client import connect
from gridscore.dead_letters.letters import list_letters
from gridscore.errors import UsageError
from gridscore.leash import LeashedProcess
from gridscore.sources import runner as runners
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.mqtt import link as mqtt_link
from gridscore.sources.mqtt.settings import MqttSourceSettings
from gridscore.sources.mqtt.source import MqttSource
from gridscore.sources.runner import SourceRunner

SECONDS = 30


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(runners, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(runners, "LONGEST_PAUSE", 0.2)


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request):
    return request.param


@pytest.fixture
def settings(mqtt, unique):
    def make(**more):
        protocol = more.setdefault("protocol", "5")
        more.setdefault("broker", mqtt.url if protocol == "5" else mqtt.url_3)
        more.setdefault("topic", [f"plant/{unique}/{{line}}/{{sensor}}"])
        more.setdefault("client_id", f"c-{unique}")
        return MqttSourceSettings(to="events.readings", **more)

    return make


class Device:
    """Publishes with QoS 1, and says when the broker has it."""

    def __init__(self, url, certificate=None):
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        address = urlsplit(url)
        if certificate is not None:
            self._client.tls_set(certificate)
            self._client.username_pw_set(USER, PASSWORD)
        self._client.connect(address.hostname, address.port)
        self._client.loop_start()

    def publish(self, topic, *payloads, qos=1, **user_properties):
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = list(user_properties.items())
        for sent in [self._client.publish(topic, each, qos=qos, properties=properties) for each in payloads]:
            sent.wait_for_publish(SECONDS)
            assert sent.is_published()

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@asynccontextmanager
async def device(*address):
    made = await asyncio.to_thread(Device, *address)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


@pytest.fixture
async def publish(mqtt):
    async with device(mqtt.url) as made:

        async def go(topic, *payloads, **properties):
            await asyncio.to_thread(made.publish, topic, *payloads, **properties)

        yield go


def opened(settings):
    return source_reading.opened(MqttSource(None, "s", settings))


async def test_a_message_is_an_event_with_the_parts_of_its_topic(settings, publish, protocol, unique):
    async with opened(settings(protocol=protocol)) as source:
        await publish(f"plant/{unique}/7/heat", b'{"c":21.5,"line":"a lie"}')
        await publish(f"plant/{unique}/7/heat/deeper", b'{"c":1}')
        await publish(f"plant/{unique}/8/cold", b'{"c":-3}')
        entries, poison = await read(source, 2)
    assert not poison
    assert [json.loads(text) for _, text in entries] == [
        {"c": 21.5, "line": "7", "sensor": "heat"},
        {"c": -3, "line": "8", "sensor": "cold"},
    ]
    assert len(dict(entries)) == 2


async def test_a_plain_value_goes_to_its_field_and_what_is_neither_is_poison(settings, publish, unique):
    topic = f"plant/{unique}/1/x"
    async with opened(settings(value_field="v")) as source:
        await publish(topic, b"21.5", b"on", b"", b"{broken", b"[1]", b"\xff\xfe", b"true")
        entries, poison = await read(source, 6)
    assert [json.loads(text)["v"] for _, text in entries] == [21.5, "on", True]
    assert [each.raw for each in poison] == [b"{broken", b"[1]", b"\xff\xfe"]
    assert all(topic in each.origin for each in poison)


async def test_keys_come_from_fields_from_a_property_or_from_the_content(settings, publish, unique):
    topic = f"plant/{unique}/1/x"
    async with opened(settings(key=["line", "n"])) as source:
        await publish(topic, b'{"n":1}', b"{}")
        entries, poison = await read(source, 2)
    assert [key for key, _ in entries] == ["1|1"]
    assert "`n`" in poison[0].error
    async with opened(settings(key_property="id", client_id=f"p-{unique}")) as source:
        await publish(topic, b'{"n":1}', id="m1")
        await publish(topic, b'{"n":1}')
        entries, poison = await read(source, 2)
    assert [key for key, _ in entries] == ["m1"]
    assert len(poison) == 1
    async with opened(settings(client_id=f"q-{unique}")) as source:
        await publish(topic, b'{"n":1}', b'{"n":1}', b'{"n":2}')
        entries, _ = await read(source, 3)
    assert len(entries) == 3
    assert len(dict(entries)) == 2


async def test_what_is_odd_in_a_user_property_stops_nothing(settings, publish, unique):
    topic = f"plant/{unique}/1/x"
    async with opened(settings(key_property="id")) as source:
        await publish(topic, b'{"n":1}', id="m1", note="\ufeff")
        await publish(topic, b'{"n":2}', id="\ufeffm2")
        entries, _ = await read(source, 2)
    assert [key for key, _ in entries] == ["m1", "\ufeffm2"]


async def test_what_is_not_acknowledged_comes_again_and_what_comes_meanwhile_is_kept(
    settings, publish, protocol, unique
):
    topic = f"plant/{unique}/1/x"
    async with opened(settings(protocol=protocol)) as source:
        await publish(topic, *(b'{"n":%d}' % n for n in range(10)))
        first, _ = await read(source, 10)
        await publish(topic, *(b'{"n":%d}' % n for n in range(10, 20)))
        second, _ = await read(source, 10, acknowledge=False)
    await publish(topic, *(b'{"n":%d}' % n for n in range(20, 30)))
    async with opened(settings(protocol=protocol)) as source:
        third, _ = await read(source, 20)
    assert dict(second).items() <= dict(third).items()
    assert not dict(first).keys() & dict(third).keys()
    assert {json.loads(text)["n"] for _, text in third} == set(range(10, 30))


async def test_large_messages_come_whole_among_small_ones(settings, publish, protocol, unique):
    topic = f"plant/{unique}/1/x"
    texts = [json.dumps({"n": n, "pad": "x" * (200_000 if n % 7 == 3 else n)}).encode() for n in range(30)]
    async with opened(settings(protocol=protocol, key=["n"], topic=[f"plant/{unique}/#"])) as source:
        await publish(topic, *texts)
        entries, _ = await read(source, 30)
    assert dict(entries) == dict(enumerate(texts))


async def test_what_a_session_holds_of_qos_2_comes_and_is_confirmed(settings, publish, mqtt, protocol, unique):
    if mqtt.kind != "mosquitto":
        pytest.skip("rumqttd keeps no session")
    wanted = settings(protocol=protocol)

    def subscribe_before():
        five = protocol == "5"
        version = paho.MQTTv5 if five else paho.MQTTv311
        more = {} if five else {"clean_session": False}
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=wanted.client_id, protocol=version, **more)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600
        address = urlsplit(wanted.broker)
        client.connect(
            address.hostname, address.port, **({"clean_start": False, "properties": properties} if five else {})
        )
        subscribed = threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.loop_start()
        client.subscribe(f"plant/{unique}/+/+", qos=2)
        assert subscribed.wait(SECONDS)
        client.disconnect()
        client.loop_stop()

    await asyncio.to_thread(subscribe_before)
    await publish(f"plant/{unique}/1/x", *(b'{"n":%d}' % n for n in range(50)), qos=2)
    async with opened(wanted) as source:
        entries, _ = await read(source, 50)
        await publish(f"plant/{unique}/1/x", b'{"n":50}')
        more, _ = await read(source, 1)
    assert [json.loads(text)["n"] for _, text in entries + more] == list(range(51))
    async with opened(wanted) as source:
        await publish(f"plant/{unique}/1/x", b'{"n":51}')
        rest, _ = await read(source, 1)
    assert [json.loads(text)["n"] for _, text in rest] == [51]


async def test_messages_that_are_large_wait_at_the_broker(settings, publish, unique, monkeypatch):
    monkeypatch.setattr(mqtt_link, "MOST_BYTES", 100_000)
    async with opened(settings(topic=[f"plant/{unique}/#"])) as source, asyncio.timeout(SECONDS):
        await publish(f"plant/{unique}/x", *(b'{"n":%d,"x":"%s"}' % (n, b"x" * 20_000) for n in range(100)))
        while not source._link._paused:
            await asyncio.sleep(0.01)
        assert source._link._bytes < 1_000_000
        entries, _ = await read(source, 100)
    assert sorted(json.loads(text)["n"] for _, text in entries) == list(range(100))


async def test_many_messages_come_by_tls(settings, guarded_mqtt, certificates, unique, protocol):
    url = guarded_mqtt.url if protocol == "5" else guarded_mqtt.url_3
    more = {"username": USER, "password": PASSWORD, "ca_file": str(certificates[0])}
    texts = [json.dumps({"n": n, "pad": "x" * 500}).encode() for n in range(2_000)]
    async with (
        opened(settings(broker=url, protocol=protocol, key=["n"], topic=[f"plant/{unique}/#"], **more)) as source,
        device(guarded_mqtt.url, str(certificates[0])) as one,
    ):
        sending = asyncio.create_task(asyncio.to_thread(one.publish, f"plant/{unique}", *texts))
        entries, _ = await read(source, 2_000)
        await sending
    assert dict(entries) == dict(enumerate(texts))


async def test_sources_of_a_group_share_the_messages(settings, publish, unique):
    topic = f"plant/{unique}/1/x"
    async with (
        opened(settings(group=f"g{unique}", client_id=f"a-{unique}")) as one,
        opened(settings(group=f"g{unique}", client_id=f"b-{unique}")) as other,
    ):
        found = {"one": [], "other": []}

        async def follow(name, source):
            async with aclosing(source.batches()) as batches:
                async for batch in batches:
                    found[name] += batch.entries
                    await source.acknowledge(batch)

        tasks = [asyncio.create_task(follow(*each)) for each in (("one", one), ("other", other))]
        await publish(topic, *(b'{"n":%d}' % n for n in range(400)))
        async with asyncio.timeout(SECONDS):
            while len(found["one"]) + len(found["other"]) < 400:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert found["one"]
    assert found["other"]
    assert len(dict(found["one"] + found["other"])) == 400


async def test_the_broker_sends_no_more_than_may_be_in_flight(settings, publish, mqtt, unique):
    if mqtt.kind != "mosquitto":
        pytest.skip("rumqttd does not heed how much a client wants; there the source reads no further")
    topic = f"plant/{unique}/1/x"
    async with opened(settings(in_flight=5)) as source:
        await publish(topic, *(b'{"n":%d}' % n for n in range(50)))
        taken = []
        async with asyncio.timeout(SECONDS), aclosing(source.batches()) as batches:
            async for batch in batches:
                taken.append(batch)
                if sum(len(each.entries) for each in taken) == 5:
                    break
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(source.batches()), 0.2)
        for batch in taken:
            await source.acknowledge(batch)
        rest, _ = await read(source, 45)
    assert len(rest) == 45


async def test_another_client_of_the_same_name_is_an_error(settings):
    async with opened(settings()) as source:
        batches = source.batches()
        waiting = asyncio.create_task(anext(batches))
        async with opened(settings()):
            with pytest.raises((UsageError, SourceInterruptedError)) as raised:
                await waiting
    assert "client id" in str(raised.value) or "lost" in str(raised.value)


async def test_a_broker_that_grants_less_than_we_ask_for_is_an_error(settings):
    """MQTT 3.1.1 has no other word for it than the QoS in the answer to the subscription."""

    async def serve(reader, writer):
        await reader.read(100)
        writer.write(b"\x20\x02\x00\x00")  # connected
        (_, length) = await reader.readexactly(2)
        identifier = (await reader.readexactly(length))[:2]
        writer.write(b"\x90\x03" + identifier + b"\x00")  # QoS 0
        await reader.read()
        writer.close()
        left.set()

    left = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UsageError, match="grants only QoS 0 for the topic `"):
            async with opened(settings(broker=f"mqtt://127.0.0.1:{port}", protocol="3.1.1")):
                pass
        await asyncio.wait_for(left.wait(), SECONDS)


async def test_a_broker_that_is_not_there_may_come(settings):
    with pytest.raises(SourceInterruptedError, match="cannot be reached"):
        async with opened(settings(broker="mqtt://127.0.0.1:1")):
            pass


# Paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
async def test_a_user_comes_in_by_tls_and_nobody_else(settings, guarded_mqtt, certificates, protocol):
    url = guarded_mqtt.url if protocol == "5" else guarded_mqtt.url_3
    right = {
        "broker": url,
        "protocol": protocol,
        "username": USER,
        "password": PASSWORD,
        "ca_file": str(certificates[0]),
    }
    async with opened(settings(**right)):
        pass
    with pytest.raises(UsageError, match="is not trusted"):
        async with opened(settings(**{**right, "ca_file": None})):
            pass
    with pytest.raises((UsageError, SourceInterruptedError)) as raised:
        async with opened(settings(**{**right, "password": "wrong"})):
            pass
    if guarded_mqtt.kind == "mosquitto":  # rumqttd hangs up without a word
        assert isinstance(raised.value, UsageError)
        assert f"the user `{USER}`" in str(raised.value)


# ---------------------------------------------------------------------- into a real member


async def wait_for(condition):
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_broker_killed_in_the_middle_costs_nothing(cluster, mosquitto, unique):
    topic, count = "plant/a/b", 3_000
    settings = MqttSourceSettings(to=f"events.{unique}", broker=mosquitto.url, topic=["plant/{line}/{sensor}"])
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        name = f"mqtt-{unique}"
        runner = SourceRunner(
            client.grid, name, lambda: MqttSource(client.grid, name, settings), kind="mqtt", to=settings.to
        )
        events = await client.grid.map(settings.to)
        running = asyncio.create_task(runner.run())
        await wait_for(lambda: _is(runner.stats.state == "running"))
        async with device(mosquitto.url) as one:
            await asyncio.to_thread(one.publish, topic, *(b'{"n":%d}' % n for n in range(count)), b"poison")
        await asyncio.to_thread(mosquitto.save)
        await asyncio.to_thread(mosquitto.kill)
        await asyncio.to_thread(mosquitto.restart)
        async with device(mosquitto.url) as one:
            await asyncio.to_thread(one.publish, topic, *(b'{"n":%d}' % n for n in range(count, 2 * count)))

        async def all_there():
            return await events.size() == 2 * count

        await wait_for(all_there)
        runner.stop()
        await running
        assert runner.stats.interruptions >= 1
        total, _ = await list_letters(client.grid, name, 10)
        assert total == 1


async def test_a_source_killed_in_the_middle_costs_nothing(cluster, mosquitto, unique, tmp_path):
    topic, count = "plant/a/b", 3_000
    arguments = ["source", "mqtt", "--broker", mosquitto.url, "--topic", "plant/{line}/{sensor}"]
    arguments += ["--to", f"events.{unique}", "--name", f"mqtt-{unique}", "--members", ",".join(cluster.addresses)]
    arguments += ["--cluster-name", cluster.cluster_name]
    async with (
        connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client,
        device(mosquitto.url) as one,
    ):
        events = await client.grid.map(f"events.{unique}")

        async def some():
            return await events.size() > 0

        async def all_there():
            return await events.size() == 2 * count

        with LeashedProcess("gridscore.cli", arguments, tmp_path / "first.log") as process:

            async def first():
                assert process.exit_code is None, process.last_lines()
                await asyncio.to_thread(one.publish, topic, b'{"n":0}')
                return await some()

            await wait_for(first)
            sending = asyncio.create_task(
                asyncio.to_thread(one.publish, topic, *(b'{"n":%d}' % n for n in range(count)))
            )
            process._process.kill()
            await sending
        await asyncio.to_thread(one.publish, topic, *(b'{"n":%d}' % n for n in range(count, 2 * count)))
        with LeashedProcess("gridscore.cli", arguments, tmp_path / "second.log"):
            await wait_for(all_there)


async def _is(value):
    return value
