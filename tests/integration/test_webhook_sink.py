"""The web hook sink against real HTTP servers: what they get, and what comes of what they answer."""

import asyncio
import base64
import collections
import contextlib
import json
import logging
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
import pytest
import trustme
from aiohttp import web
from pydantic import ValidationError
from standardwebhooks import Webhook

from gridscore.client import Client
from gridscore.dead_letters.letters import map_of
from gridscore.errors import GridscoreError, UsageError
from gridscore.grid import connect
from gridscore.job.plugs.environment import from_environment
from gridscore.operations.sink_status import sink_statuses
from gridscore.sinks.base import Delivered, Delivery, Refused, SinkInterruptedError
from gridscore.sinks.runner import runner_of
from gridscore.sinks.webhook import sink as webhook
from gridscore.sinks.webhook.settings import WebhookSinkSettings
from gridscore.sinks.webhook.sink import WebhookSink

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses that a test can wait for."""
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.01)


class Receiver:
    """An application with a web hook: checks signatures, notes what came, and answers as it is told."""

    def __init__(self):
        self.requests = []
        self.results = []
        self.ids = []
        self.answer = lambda _number, _results: web.Response()
        self.under_way = collections.Counter()
        self.most_under_way = 0
        self.same_key_at_once = 0
        self.url = ""

    async def handle(self, request):
        body = await request.read()
        Webhook(SECRET).verify(body, request.headers, json_parse=False)
        self.ids.append(request.headers["webhook-id"])
        decoded = json.loads(body)
        results = decoded if isinstance(decoded, list) else [decoded]
        keys = {result["key"] for result in results}
        self.same_key_at_once += any(self.under_way[key] for key in keys)
        self.under_way.update(keys)
        self.most_under_way = max(self.most_under_way, sum(self.under_way.values()))
        try:
            self.requests.append((time.monotonic(), request, decoded))
            answer = self.answer(len(self.requests), results)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer.status < 300:
                self.results += results
            return answer
        finally:
            self.under_way.subtract(keys)


@asynccontextmanager
async def receiving(tls=None):
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    receiver.port = site._server.sockets[0].getsockname()[1]
    receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{receiver.port}/hook"
    receiver.stop = runner.cleanup
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver():
    async with receiving() as there:
        yield there


def settings(url, **more):
    given = {"results": "results.x", "url": url, "secret": ["${HOOK_SECRET}"]} | more
    return WebhookSinkSettings.model_validate(given)


@asynccontextmanager
async def opened(url, **more):
    sink = WebhookSink(None, "hook", from_environment(settings(url, **more))[0])
    try:
        await sink.open()
        yield sink
    finally:
        await sink.close()


def result(key, sequence=0, partition=0, epoch=1, **value):
    value = {"score": 0.5, "decision": "decline", "sequence": sequence, "scored_at": 17, **value}
    return Delivered(key, msgspec.json.encode(value), value, partition, sequence, epoch)


def delivery(results, seconds=30.0):
    return Delivery(results, {0: len(results)}, time.monotonic() + seconds)


def status(code, **headers):
    return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def test_a_result_comes_signed_with_what_tells_it_from_others(receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "t0k${en}")  # is not looked up once more
    async with opened(receiver.url, headers={"Authorization": "Bearer ${TOKEN}"}) as sink:
        assert await sink.deliver(delivery([result("k1", 7), result(42, 8), result("k1", 9)])) == []
    assert sorted((r["key"], r["sequence"]) for r in receiver.results if r["key"] == "k1") == [("k1", 7), ("k1", 9)]
    assert len(set(receiver.ids)) == 3
    _, request, body = receiver.requests[0]
    assert request.headers["authorization"] == "Bearer t0k${en}"
    assert request.headers["user-agent"].startswith("gridscore/")
    assert body.keys() == {"id", "map", "key", "epoch", "sequence", "result"}
    assert body["id"] == request.headers["webhook-id"]
    assert (body["map"], body["result"]["decision"]) == ("results.x", "decline")


async def test_the_same_result_has_the_same_id_from_every_process(receiver):
    async with opened(receiver.url) as sink:
        await sink.deliver(delivery([result("k", 7, epoch=1)]))
        await sink.deliver(delivery([result("k", 7, epoch=2)]))
        await sink.deliver(delivery([result("k", 7)._replace(sequence=-1)]))  # as a rescan finds it
        await sink.deliver(delivery([result("k", 7, score=0.6)]))
        await sink.deliver(delivery([result("other", 7)]))
    assert [receiver.ids.count(each) for each in dict.fromkeys(receiver.ids)] == [3, 1, 1]


async def test_batches_are_lists_and_an_order_of_keys_is_kept(receiver):
    async def slowly(_number, _results):
        await asyncio.sleep(random.random() / 100)
        return web.Response()

    receiver.answer = slowly
    results = [result(f"k{number % 37}", number, partition=number % 37 % 5) for number in range(2_000)]
    async with opened(receiver.url, batch=10, connections=7) as sink:
        assert await sink.deliver(delivery(results)) == []
    assert receiver.same_key_at_once == 0
    assert receiver.most_under_way > 1
    assert max(len(body) for _, _, body in receiver.requests) == 10
    order = collections.defaultdict(list)
    for each in receiver.results:
        order[each["key"]].append(each["sequence"])
    assert sum(map(len, order.values())) == 2_000
    assert all(sequences == sorted(sequences) for sequences in order.values())


async def test_no_later_result_of_a_key_goes_before_an_earlier_one_that_is_tried_again(receiver):
    tried = collections.Counter()

    def answer(_number, results):
        (number,) = (each["sequence"] for each in results)
        tried[number] += 1
        return status(503 if tried[number] <= (2 if number == 50 else number % 2) else 200)

    receiver.answer = answer
    results = [result(f"k{number % 5}", number) for number in range(100)]
    async with opened(receiver.url, connections=20) as sink:
        assert await sink.deliver(delivery(results)) == []
    for key in range(5):
        came = [each["sequence"] for each in receiver.results if each["key"] == f"k{key}"]
        assert came == sorted(came)
        assert len(came) == 20
    tries = [body["sequence"] for _, _, body in receiver.requests if body["key"] == "k0"]
    assert tries == sorted(tries)
    assert len(tries) == 20 + 10 + 2


async def test_connections_to_a_host_are_limited_over_all_sinks_of_a_process(receiver):
    async def slowly(_number, _results):
        await asyncio.sleep(0.01)
        return web.Response()

    receiver.answer = slowly
    async with opened(receiver.url, connections=3) as one, opened(receiver.url, connections=3) as two:
        work = [delivery([result(f"{name}{number}") for number in range(30)]) for name in "ab"]
        await asyncio.gather(one.deliver(work[0]), two.deliver(work[1]))
    assert len(receiver.results) == 60
    assert receiver.most_under_way == 3


@pytest.mark.parametrize("code", [307, 401, 403, 404, 405, 408, 409, 410, 425, 429, 500, 503])
async def test_what_may_be_taken_later_is_tried_again(receiver, code):
    receiver.answer = lambda number, _results: status(code if number < 4 else 204)
    async with opened(receiver.url) as sink:
        assert await sink.deliver(delivery([result("k")])) == []
    assert len(receiver.requests) == 4
    assert len(set(receiver.ids)) == 1


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_what_is_never_taken_is_refused_at_once_and_costs_no_other(receiver, code):
    receiver.answer = lambda _number, results: status(code if results[0]["key"] == "bad" else 200)
    bad = result("bad")
    async with opened(receiver.url) as sink:
        (refused,) = await sink.deliver(delivery([result("a"), bad, result("b")]))
        assert refused == Refused(bad, refused.error)
        assert str(code) in refused.error
    assert {each["key"] for each in receiver.results} == {"a", "b"}
    assert len(receiver.requests) == 3


async def test_one_bad_result_does_not_cost_its_batch(receiver):
    receiver.answer = lambda _number, results: status(422 if any(r["key"] == "k13" for r in results) else 200)
    async with opened(receiver.url, batch=100, connections=2) as sink:
        refused = await sink.deliver(delivery([result(f"k{number}") for number in range(100)]))
    assert [each.result.key for each in refused] == ["k13"]
    assert {each["key"] for each in receiver.results} == {f"k{number}" for number in range(100)} - {"k13"}


@pytest.mark.parametrize(
    ("code", "hint"),
    [(307, "that it leads to"), (401, "secret"), (403, "secret"), (404, "--url"), (410, "--url"), (500, "receiver")],
)
async def test_a_broken_route_gives_up_no_result_and_stops_the_sink_at_the_deadline(receiver, code, hint):
    receiver.answer = lambda _number, _results: status(code, Location="http://169.254.169.254/latest")
    async with opened(receiver.url, deadline="1s", connections=2) as sink:
        began = time.monotonic()
        with pytest.raises(GridscoreError, match=rf"has not taken a result in 1 s and \d+ attempts: {code}") as failure:
            await sink.deliver(delivery([result(f"k{number}", number) for number in range(50)]))
        assert time.monotonic() - began >= 1
    assert not isinstance(failure.value, SinkInterruptedError)
    assert hint in failure.value.hint
    assert "400, 413 or 422" in failure.value.hint
    assert {body["key"] for _, _, body in receiver.requests} == {"k0", "k1"}  # not at full speed through all
    assert receiver.results == []


async def test_a_hook_that_does_not_take_results_is_said_while_it_is_waited_for(receiver):
    receiver.answer = lambda _number, _results: status(404)
    async with opened(receiver.url) as sink:
        # it says the answer, what to see to, and what will come: the same, however often it is tried
        said = set()
        for _ in range(2):
            with pytest.raises(SinkInterruptedError) as failure:
                await sink.deliver(delivery([result("k")], seconds=0.5))
            said.add(str(failure.value))
        (text,) = said
        assert "does not take results: 404 Not Found. Is its address (--url) right, and does it take POST?" in text
        stops = re.search(
            r"tried until (\d\d:\d\d:\d\d) UTC; then the sink stops, and the same command.* goes on\.$", text
        )
        left = (datetime.strptime(stops[1], "%H:%M:%S") - datetime.now(UTC).replace(tzinfo=None)).seconds  # noqa: DTZ007
        assert 14 * 60 < left <= 15 * 60, "longer than a receiver's deployment"
        receiver.answer = lambda _number, _results: status(200)
        assert await sink.deliver(delivery([result("k")])) == []


async def test_the_deadline_counts_over_deliveries_and_what_was_answered_is_not_sent_again(receiver):
    receiver.answer = lambda _number, results: status(500 if results[0]["key"] == "bad" else 200)
    results = [result("good"), result("bad", 1), result("bad", 2)]
    times = 0
    async with opened(receiver.url, deadline="1s") as sink:
        with pytest.raises(GridscoreError, match="500 Internal") as failure:  # noqa: PT012 -- the last of many
            while True:
                times += 1
                with contextlib.suppress(SinkInterruptedError):
                    await sink.deliver(delivery(results, seconds=0.2))
        assert not isinstance(failure.value, SinkInterruptedError)
    assert times > 2
    assert [each["key"] for each in receiver.results] == ["good"]
    tries = [body["sequence"] for _, _, body in receiver.requests if body["key"] == "bad"]
    assert set(tries) == {1}


async def test_retry_after_is_kept_for_the_whole_host(receiver):
    receiver.answer = lambda number, _results: status(429, Retry_After="1") if number == 1 else status(200)
    async with opened(receiver.url, connections=1) as sink:
        assert await sink.deliver(delivery([result(f"k{number}") for number in range(5)])) == []
    first, second, *_ = [at for at, _, _ in receiver.requests]
    assert second - first >= 1
    assert len(receiver.results) == 5


async def test_retry_after_behind_the_deadline_is_waited_for(receiver):
    receiver.answer = lambda number, _results: status(503, Retry_After="2") if number == 1 else status(200)
    async with opened(receiver.url, deadline="1s") as sink:
        assert await sink.deliver(delivery([result("k")])) == []
    (first, *_), (second, *_) = receiver.requests
    assert second - first >= 2


@pytest.mark.parametrize("said", ["0", "Thu, 01 Jan 2015 00:00:00 GMT"])
async def test_retry_after_that_asks_for_no_pause_does_not_shorten_ours(receiver, said):
    receiver.answer = lambda _number, _results: status(503, Retry_After=said)
    async with opened(receiver.url) as sink:
        with pytest.raises(SinkInterruptedError, match="503"):
            await sink.deliver(delivery([result("k")], seconds=0.6))
    assert 3 <= len(receiver.requests) <= 8  # pauses of 5 ms at least, then 10, 20, 40, 80, 160 and 320


async def test_a_sink_that_waits_beyond_its_deadline_says_until_when(receiver):
    receiver.answer = lambda _number, _results: status(503, Retry_After="7200")
    async with opened(receiver.url) as sink:
        with pytest.raises(SinkInterruptedError) as failure:
            await sink.deliver(delivery([result("k")], seconds=0.2))
    stops = re.search(r"tried until (\d\d:\d\d:\d\d) UTC", str(failure.value))
    left = (datetime.strptime(stops[1], "%H:%M:%S") - datetime.now(UTC).replace(tzinfo=None)).seconds  # noqa: DTZ007
    assert 3_590 < left <= webhook.LONGEST_RETRY_AFTER


async def test_retry_after_that_is_absurd_is_cut(receiver):
    receiver.answer = lambda _number, _results: status(503, Retry_After="999999999")
    async with opened(receiver.url) as sink:
        with pytest.raises(SinkInterruptedError, match="503"):
            await sink.deliver(delivery([result("k")], seconds=0.2))
        assert sink._not_before - time.monotonic() <= webhook.LONGEST_RETRY_AFTER
    assert len(receiver.requests) == 1


async def test_nothing_is_sent_when_the_lease_has_ended(receiver):
    async with opened(receiver.url) as sink:
        with pytest.raises(SinkInterruptedError, match="2 results"):
            await sink.deliver(delivery([result("a"), result("b")], seconds=0))
        assert receiver.requests == []

        many = delivery([result("same", number) for number in range(100)], seconds=1)

        async def the_third_is_slow(number, _results):
            while number == 3 and time.monotonic() < many.until:
                await asyncio.sleep(0.05)
            return web.Response()

        receiver.answer = the_third_is_slow
        # On a busy machine, less may be sent before the lease ends.
        with pytest.raises(SinkInterruptedError, match=r"not taken (9[789]|100) results"):
            await sink.deliver(many)
        assert len(receiver.requests) <= 3


async def test_no_answer_in_time_is_tried_again(receiver):
    async def late(number, _results):
        if number == 1:
            await asyncio.sleep(3)
        return web.Response()

    receiver.answer = late
    async with opened(receiver.url, timeout="1s") as sink:
        assert await sink.deliver(delivery([result("k")])) == []
    assert len(receiver.requests) == 2


async def test_a_large_answer_is_not_read(receiver):
    async def endless(_number, _results):
        return web.Response(body=b"x" * 10_000_000)

    receiver.answer = endless
    async with opened(receiver.url) as sink:
        assert await sink.deliver(delivery([result("a"), result("b")])) == []


async def test_a_receiver_that_is_away_gives_up_no_result_and_gets_all_when_it_is_back(receiver):
    async with opened(receiver.url, deadline="1s") as sink:
        await receiver.stop()
        began = time.monotonic()
        while time.monotonic() - began < 1.2:  # longer than the deadline
            with pytest.raises(SinkInterruptedError, match=r"cannot be reached: Connect call failed|refused"):
                await sink.deliver(delivery([result("k")]))
            await asyncio.sleep(0.1)
        app = web.Application()
        app.router.add_post("/hook", receiver.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", receiver.port).start()
        try:
            assert await sink.deliver(delivery([result("k")])) == []
        finally:
            await runner.cleanup()
    assert len(receiver.results) == 1


async def test_nobody_there_is_said_at_the_start_and_may_heal():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SinkInterruptedError, match=rf"at http://127.0.0.1:{port} cannot be reached"):
            async with opened(f"http://127.0.0.1:{port}/hook"):
                pass
    with pytest.raises(SinkInterruptedError, match=r"at https://no-such-host.invalid cannot be reached"):
        async with opened("https://no-such-host.invalid/hook"):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1"])
async def test_private_addresses_are_refused_however_they_are_written(receiver, host):
    with pytest.raises(GridscoreError, match=r"is at (::ffff:)?127.0.0.1|is at ::1") as failure:
        async with opened(f"http://{host}:{receiver.port}/hook", public_only=True):
            pass
    assert "--public-only" in failure.value.hint
    assert not isinstance(failure.value, SinkInterruptedError)


async def test_a_name_that_leads_elsewhere_later_does_not_get_around_the_check(receiver):
    """DNS rebinding: the address that a socket is to connect to is what counts, not that of an earlier answer."""
    async with opened(receiver.url, deadline="1s") as sink:  # as if it had been public when it was looked at
        sink._gate._public_only = True
        with pytest.raises(GridscoreError, match=r"127.0.0.1, which is not an address of the public network"):
            await sink.deliver(delivery([result("k")]))
    assert receiver.requests == []


async def test_an_address_that_was_refused_once_is_looked_at_again(receiver):
    async with opened(receiver.url) as sink:
        sink._gate._public_only = True
        with pytest.raises(SinkInterruptedError, match="not an address of the public network"):
            await sink.deliver(delivery([result("k")], seconds=0.2))
        sink._gate._public_only = False
        assert await sink.deliver(delivery([result("k")])) == []
        await receiver.stop()
        sink._session.connector.clear_dns_cache()
        with pytest.raises(SinkInterruptedError, match="cannot be reached"):  # and not: it is not public
            await sink.deliver(delivery([result("k", 1)]))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def serving(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_certificate_of_a_known_authority_is_trusted(authority, tmp_path):
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with receiving(serving(authority, "127.0.0.1")) as receiver:
        async with opened(receiver.url, ca_file=str(file)) as sink:
            assert await sink.deliver(delivery([result("k")])) == []
        assert len(receiver.results) == 1
        with pytest.raises(GridscoreError, match=r"cannot be trusted: .*local issuer") as failure:
            async with opened(receiver.url):
                pass
        assert not isinstance(failure.value, SinkInterruptedError)
    async with receiving(serving(authority, "other.example")) as receiver:
        with pytest.raises(GridscoreError, match=r"cannot be trusted: .*127\.0\.0\.1"):
            async with opened(receiver.url, ca_file=str(file)):
                pass


async def test_a_certificate_that_is_wrong_later_ends_the_sink(authority, tmp_path):
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    async with receiving(serving(authority, "127.0.0.1")) as receiver, opened(receiver.url, ca_file=str(file)) as sink:
        receiver.answer = lambda _number, _results: status(200, Connection="close")
        await sink.deliver(delivery([result("k")]))
        await receiver.stop()
        app = web.Application()
        runner = web.AppRunner(app)
        await runner.setup()
        other = serving(trustme.CA(), "127.0.0.1")
        await web.TCPSite(runner, "127.0.0.1", receiver.port, ssl_context=other).start()
        try:
            with pytest.raises(GridscoreError, match="cannot be trusted") as failure:
                await sink.deliver(delivery([result("k", 1)]))
            assert not isinstance(failure.value, SinkInterruptedError)
        finally:
            await runner.cleanup()


async def test_no_secret_is_logged_or_shown(receiver, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PASSWORD", "hunter2")
    url = receiver.url.replace("127.0.0.1", "user:${PASSWORD}@127.0.0.1") + "?token=tok3n"
    receiver.answer = lambda _number, _results: status(422)
    async with opened(url) as sink:
        (refused,) = await sink.deliver(delivery([result("k")]))
    _, request, _ = receiver.requests[0]
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")) == b"user:hunter2"
    assert request.query_string == "token=tok3n"
    said = caplog.text + refused.error
    assert "422" in said
    assert not any(word in said for word in ("hunter2", "tok3n", SECRET, "user:"))


async def test_settings_that_cannot_be(monkeypatch):
    for wrong in ({"url": "ftp://x/y"}, {"secret": [SECRET]}, {"secret": []}, {"timeout": "soon"}):
        with pytest.raises(ValidationError):
            settings(**{"url": "http://h/", **wrong})
    twice = {"headers": {"authorization": "Bearer ${TOKEN}"}}
    with pytest.raises(ValidationError, match="leave out one"):
        settings("https://u:${PASSWORD}@h/", **twice)
    monkeypatch.setenv("TOKEN", "t0ken")
    monkeypatch.setenv("ADDRESS", "https://u:pa55@h/")
    with pytest.raises(UsageError, match="leave out one") as failure:
        async with opened("${ADDRESS}", **twice):
            pass
    assert "pa55" not in str(failure.value)
    monkeypatch.delenv("HOOK_SECRET")
    with pytest.raises(UsageError, match="HOOK_SECRET is not set"):
        async with opened("http://127.0.0.1:1/"):
            pass
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("ADDRESS", "file:///etc/passwd")
    with pytest.raises(UsageError, match="address of the web hook is not a URL"):
        async with opened("${ADDRESS}"):
            pass


# ---------------------------------------------------------------------- as a command, with real members


@pytest.fixture
def sink(cluster):
    """Starts `gridscore sink webhook` processes."""
    started = []

    def start(*arguments):
        where = ["--members", cluster.addresses[0], "--cluster-name", cluster.cluster_name]
        command = [sys.executable, "-m", "gridscore.cli", "sink", "webhook", *arguments, *where]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_every_result_is_posted_though_a_process_is_killed_and_what_is_refused_is_a_dead_letter(
    grid_settings, unique, receiver, sink
):
    name, refusing = f"results.hook-{unique}", "k5"
    receiver.answer = lambda _number, results: status(422 if any(r["key"] == refusing for r in results) else 200)
    arguments = ["--from", name, "--name", f"hook-{unique}", "--url", receiver.url, "--secret", "${HOOK_SECRET}"]
    arguments += ["--batch", "20", "--only", "decision=decline"]
    expected = {f"k{number}" for number in range(0, 4_000, 2)}
    async with await connect(grid_settings) as grid:
        client = Client(grid)

        async def put(begin, end):
            results = {
                f"k{number}": {"score": 0.5, "decision": "approve" if number % 2 else "decline", "scored_at": number}
                for number in range(begin, end)
            }
            results[refusing] = {"score": 0.5, "decision": "decline", "scored_at": begin}
            await client.put_events(name, results)

        def came():
            return {result["key"] for result in receiver.results}

        await put(0, 1_000)
        first = sink(*arguments)
        await until(lambda: len(came()) >= 500)
        second = sink(*arguments)
        await put(1_000, 2_000)
        await until(lambda: len(came()) >= 1_000)
        first.kill()
        await put(2_000, 4_000)
        await until(lambda: came() == expected, seconds=60)
        letters = await dead_letters(grid, f"hook-{unique}", 3)
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait) == 0, second.stdout.read()
    assert {(letter["stage"], letter["sequence"] >= 0) for letter in letters} == {("deliver", True)}
    assert all("422" in letter["error"] for letter in letters)
    # What came twice, because nobody knew whether it had been taken, can be told from what did not.
    assert len({each["id"] for each in receiver.results}) == len(expected)


async def test_a_broken_route_costs_no_result_and_is_shown(grid_settings, unique, receiver):
    name, called = f"results.hook-{unique}", f"hook-{unique}"
    receiver.answer = lambda _number, _results: status(404)
    async with await connect(grid_settings) as grid:

        def run(**more):
            runner = runner_of(grid, settings(receiver.url, results=name, name=called, **more), lease_seconds=2)
            return runner, asyncio.create_task(runner.run())

        await Client(grid).put_events(name, {f"k{n}": {"score": 0.5, "scored_at": n} for n in range(100)})
        runner, waiting = run()
        said = (
            f"The web hook at {receiver.url.removesuffix('/hook')} does not take results: 404 Not Found. Is its address"
        )
        await until(lambda: (runner.stats.state, runner.stats.error[: len(said)]), ("waiting", said), seconds=60)
        waiting.cancel()
        await asyncio.wait({waiting})
        _, stopping = run(deadline="1s")
        with pytest.raises(GridscoreError, match=r"has not taken a result in .*: 404"):
            await asyncio.wait_for(stopping, 60)
        (shown,) = [each for each in await sink_statuses(grid) if each.record.name == called]
        assert (shown.state, "has not taken a result" in shown.error) == ("failed", True)
        receiver.answer = lambda _number, _results: status(200)
        _, going_on = run()
        keys = {f"k{n}" for n in range(100)}
        await until(lambda: {each["key"] for each in receiver.results} == keys, seconds=60)
        going_on.cancel()
        await asyncio.wait({going_on})
        assert not await grid.has_map(map_of(called))


async def dead_letters(grid, name, count):
    letters = await grid.map(map_of(name))
    await until(letters.size, count)
    return [value.loads() for _, value in await letters.entry_set()]


async def until(condition, wanted=True, seconds=30):
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value == wanted:
                return
            await asyncio.sleep(0.02)


async def test_a_hook_at_a_private_address_where_only_public_ones_are_wanted_is_one_clear_message(
    unique, receiver, sink
):
    process = sink("--from", f"results.{unique}", "--url", receiver.url, "--secret", "${HOOK_SECRET}", "--public-only")
    out, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1
    assert "127.0.0.1, which is not an address of the public network" in " ".join(out.split())
    assert "--public-only" in out
    assert "Traceback" not in out
