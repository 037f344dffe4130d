"""Who is let in by the HTTP source when many are there: the silent and the slow go first, nobody shuts out others."""

import asyncio
import contextlib
import resource
import shlex
import subprocess
import sys

import httpx
import pytest
from http_listening import EVENTS, client, connected, listening

from gridscore.sources.http import connections as http_connections

SLOW = f"POST /events/{EVENTS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
OTHER = "127.0.0.2"


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch):
    """Nothing here depends on how long it takes."""
    monkeypatch.setattr(http_connections, "SLOW_SECONDS", 1_000.0)
    monkeypatch.setattr(http_connections, "SAY_SECONDS", 1_000.0)


@pytest.fixture
def _files():
    """Enough open files for both ends of a thousand connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before[0], 4_096), before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def client_of(source, host):
    return client(source, transport=httpx.AsyncHTTPTransport(local_address=host))


async def begin(source, stack):
    """A request whose body does not come to an end."""
    reader, writer = await stack.enter_async_context(connected(source))
    asking = len(connections_of(source)._asking)
    writer.write(SLOW)
    async with asyncio.timeout(10):
        while len(connections_of(source)._asking) == asking:
            await asyncio.sleep(0.001)
    return reader


def connections_of(source):
    return source._server.connections


@pytest.mark.usefixtures("_files")
async def test_a_thousand_silent_connections_shut_nobody_out(caplog):
    async with listening() as source, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connected(source)) for _ in range(1_000)]
        assert await silent[0][0].read() == b""  # who has been silent for longest goes first
        for host in ("127.0.0.1", OTHER):
            async with client_of(source, host) as http:
                for _ in range(3):
                    assert (await http.post(f"/events/{EVENTS}", json={})).status_code == 202
        assert connections_of(source)._all.count <= 502
        assert len([each for each in caplog.records if each.getMessage().startswith("Too many connections")]) == 1


async def test_without_a_place_a_request_is_told_when_to_come_back_and_the_slowest_goes_first(monkeypatch):
    monkeypatch.setattr(http_connections, "MAX_REQUESTS", 2)
    async with listening() as source, client(source) as http, contextlib.AsyncExitStack() as stack:
        first, second = await begin(source, stack), await begin(source, stack)
        await stack.enter_async_context(connected(source))  # silent: it takes no place of a request
        answer = await http.get("/healthz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        monkeypatch.setattr(http_connections, "SLOW_SECONDS", 0.0)
        assert (await http.get("/healthz")).status_code == 200
        assert await first.read() == b""
        assert not second.at_eof()


async def test_an_address_has_no_more_than_its_share(caplog):
    async with listening(max_per_address=2) as source, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await begin(source, stack)
        async with client(source) as http, client_of(source, OTHER) as other:
            for _ in range(5):
                answer = await http.get("/healthz")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert (await other.get("/healthz")).status_code == 200
        assert [each.getMessage() for each in caplog.records if "Too many" in each.getMessage()] == [
            "Too many connections: 1 refused (one of 127.0.0.1), 0 silent or slow ones closed for others"
        ]


async def test_places_are_given_back():
    async with listening() as source:
        async with client(source) as http:
            for _ in range(3):
                await http.post(f"/events/{EVENTS}", content=b"[" + b"{}," * 2_000 + b"{}]")
            await http.get("/none")
        async with asyncio.timeout(10):
            while connections_of(source)._all.count:
                await asyncio.sleep(0.01)
        connections = connections_of(source)
        assert not connections._asking
        assert not connections._addresses
        assert not connections._all.silent
        assert not connections._all.receiving


def test_a_network_of_ipv6_is_one_address():
    assert http_connections.address_of("2001:db8::1") == http_connections.address_of("2001:db8::ffff:2")
    assert http_connections.address_of("2001:db8::1") != http_connections.address_of("2001:db8:0:1::1")
    assert http_connections.address_of("10.0.0.1") != http_connections.address_of("10.0.0.2")


@pytest.mark.parametrize(
    ("limits", "listeners", "said"),
    [
        ("ulimit -Sn 300 && ulimit -Hn 3000", 500, "2700"),
        ("ulimit -Sn 300 && ulimit -Hn 1000", 500, "1000"),
        ("ulimit -Sn 300 && ulimit -Hn 1000", 900, "must be let open 1,100 files; its limit is 1,000."),
    ],
)
def test_a_process_may_open_a_file_for_each_connection_or_says_that_it_may_not(limits, listeners, said):
    script = f"""
import resource
from gridscore.sources.http.server import _allow_files
_allow_files(2_500, {listeners})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    command = f"{limits} && exec {shlex.quote(sys.executable)} -c {shlex.quote(script)}"
    run = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert said in run.stdout + run.stderr
