"""What strangers may do to the HTTP source: say nothing, never come to an end, send much that is very small."""

import asyncio
import logging
import socket
import ssl

import httpx
import pytest
import trustme
import uvloop
from http_listening import EVENTS, client, connected, listening

from gridscore.sources.http import protocol as http_protocol
from gridscore.sources.http import tls as http_tls


async def sent_until_closed(reader, writer, piece):
    """What is answered to somebody who sends a piece again and again, and how much he could send."""
    sent = 0
    try:
        while not reader.at_eof() and sent < 1 << 24:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    try:
        return sent, await reader.read()
    except ConnectionError:
        return sent, b""


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
async def test_who_sends_no_whole_head_loses_the_connection(monkeypatch, begun):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.05)
    async with listening() as source, connected(source) as (reader, writer):
        writer.write(begun)
        assert await reader.read() == b""


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_handshakes_of_tls_take_places_and_end_in_time(monkeypatch, tmp_path, caplog, loop):
    """asyncio itself counts none of them, and waits a minute for each."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    tls = dict.fromkeys(("certificate", "private_key"), str(tmp_path / "both.pem"))

    async def main():
        async with listening(max_per_address=3, **tls) as source, asyncio.timeout(60):
            async with connected(source) as (first, _), connected(source), connected(source):
                async with client(source, verify=trust) as http:
                    assert (await http.post(f"/events/{EVENTS}", json={})).status_code == 202
                assert await first.read() == b""  # who has been silent for longest went for it
                monkeypatch.setattr(http_tls, "HANDSHAKE_SECONDS", 0.05)
                async with connected(source) as (silent, _):
                    assert await silent.read() == b""
                async with connected(source) as (wrong, writer):
                    writer.write(b"GET / HTTP/1.1\r\n\r\n")
                    await wrong.read()
            while source._server.connections._addresses:
                await asyncio.sleep(0.01)
            async with connected(source) as (left, _):  # when the source is stopped
                pass
        assert await left.read() == b""
        assert not source._server.connections._addresses

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_certificate_that_is_renewed_is_in_use_without_a_restart(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(http_tls, "LOOK_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "gridscore.sources.http")
    files = {"certificate": tmp_path / "cert.pem", "private_key": tmp_path / "key.pem"}

    def issue():
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(files["certificate"])
        issued.private_key_pem.write_to_path(files["private_key"])
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        return trust

    async def is_taken(source, trust):
        async with client(source, verify=trust) as http:
            try:
                return (await http.get("/healthz")).status_code == 200
            except httpx.ConnectError:
                return False

    before = issue()
    async with listening(**{name: str(file) for name, file in files.items()}) as source:
        assert await is_taken(source, before)
        key = files["private_key"].read_bytes()
        after = issue()
        files["private_key"].write_bytes(key)  # half of a renewal: the key is of the one before
        assert await is_taken(source, before)
        assert "cannot be used, the one before stays in use: KEY_VALUES_MISMATCH" in caplog.text
        files["certificate"].unlink()
        assert await is_taken(source, before)
        after = issue()
        assert await is_taken(source, after)
        host, _, port = source.address.removeprefix("https://").rpartition(":")

        def refuse():
            with socket.create_connection((host, int(port))) as link, pytest.raises(ssl.SSLCertVerificationError):
                before.wrap_socket(link, server_hostname=host)

        for _ in range(2):
            await asyncio.to_thread(refuse)
        async with asyncio.timeout(20):
            while "A TLS handshake has failed" not in caplog.text or source._server.connections._addresses:
                await asyncio.sleep(0.01)
    assert "has changed and is in use now" in caplog.text
    assert caplog.text.count("A TLS handshake has failed (not said again): TLSV1_ALERT_UNKNOWN_CA") == 1


async def test_the_time_for_a_head_starts_over_with_each_answer(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    async with listening() as source, connected(source) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"}")
        writer.write(b"\r\n")  # this is not a head, and must not put off the end
        assert await reader.read() == b""


@pytest.mark.parametrize(
    ("begun", "piece", "answer"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: ", b"x" * 1_000, b"431"),
        (b"GET /healthz HTTP/1.1\r\n", b"X: " + b"x" * 1_000 + b"\r\n", b"431"),
        (b"GET /", b"x" * 1_000, b"431"),
        (b"POST /events/events.x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ", b"x" * 1_000, b""),
    ],
)
async def test_a_head_and_what_follows_a_body_have_a_limit(begun, piece, answer):
    async with listening() as source, connected(source) as (reader, writer):
        writer.write(begun)
        sent, answered = await sent_until_closed(reader, writer, piece)
        # The system has buffers of its own, on both sides.
        assert sent < 1 << 24
        assert answer in answered or not answered
        async with client(source) as http:
            assert (await http.get("/healthz")).status_code == 200


async def test_a_large_body_does_not_count_as_a_head():
    body = b"[" + b'{"a": 1},' * 50_000 + b"{}]"
    async with listening() as source, client(source) as http:
        for _ in range(2):
            answer = await http.post("/events/events.x", content=body, headers={"X-Long": "x" * 60_000})
            assert answer.json()["accepted"] == 50_001


@pytest.mark.parametrize(
    ("body", "content_type", "accepted"),
    [(b"[" + b"1," * 100_000 + b"{}]", "application/json", 1), (b"{}\n" * 50_000, "text/plain", 50_000)],
)
async def test_who_sends_very_much_that_is_very_small_holds_up_nobody(body, content_type, accepted):
    async with listening(max_waiting_bytes=1 << 20) as source, client(source) as http:
        turns = 0

        async def turn():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        answer = await http.post("/events/events.x", content=body, headers={"Content-Type": content_type})
        turning.cancel()
        assert answer.json()["accepted"] == accepted
        assert turns > 50


async def test_lines_without_an_end_are_bounded_together():
    head = b"POST /events/events.x HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: 700010\r\n\r\n"
    async with (
        listening(max_waiting_bytes=1 << 20) as source,
        connected(source) as (reader, writer),
        connected(source) as (other_reader, other_writer),
    ):
        answers = {}
        for each, to in ((reader, writer), (other_reader, other_writer)):
            to.write(head + b'{"x": "' + b"x" * 700_001)
            answers[asyncio.create_task(each.readuntil(b"}"))] = to
        (refused,), (taken,) = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert b"429 Too Many" in refused.result()
        assert b"Too much is being sent at once." in refused.result()
        answers[taken].write(b'"}')
        assert b'"accepted":1' in await taken


async def test_a_stream_that_brings_nothing_any_more_is_ended_with_what_it_brought():
    head = b"POST /events/events.x HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"
    async with listening(idle="1s") as source, connected(source) as (reader, writer):
        writer.write(head + b'{"id": 1}\n{"id": 2}\n{"id')
        answer = await reader.read()  # the connection is closed, as nobody will read the rest of the body
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"Nothing came for 1 s" in answer
        assert b'"accepted":2' in answer


async def test_an_empty_key_is_not_a_key():
    async with listening() as source, client(source) as http:
        answer = await http.post("/events/events.x?key=", json={}, headers={"Idempotency-Key": ""})
        assert len(answer.json()["keys"][0]) == 26


async def test_a_token_may_have_any_letters():
    token = "schlüssel-für-kassen"  # noqa: S105 -- of this test
    async with listening(token=token) as source, client(source) as http:
        right = {"Authorization": f"Bearer {token}".encode()}
        assert (await http.post("/events/events.x", json={}, headers=right)).status_code == 202


SNIPPET = b"GET /gridscore.js HTTP/1.1\r\nHost: x\r\n\r\n"


async def lost(source):
    async with asyncio.timeout(20):
        while source._server.connections._all.count:
            await asyncio.sleep(0.01)


async def test_who_asks_much_at_once_and_reads_nothing_loses_the_connection(caplog):
    async with listening() as source, connected(source) as (_, writer):
        writer.write(SNIPPET * 1_000)
        async with asyncio.timeout(20):
            while not source._server.connections._addresses:
                await asyncio.sleep(0.001)
        await lost(source)
        assert not source._server.connections._asking
        assert "Traceback" not in caplog.text
    assert not [each for each in caplog.records if each.exc_info]


async def test_a_few_requests_at_once_are_answered_in_turn():
    async with listening() as source, connected(source) as (reader, writer):
        writer.write(SNIPPET * 10 + SNIPPET.replace(b"Host: x", b"Connection: close"))
        assert (await reader.read()).count(b"200 OK") == 11


async def test_an_answer_that_nobody_reads_is_ended(monkeypatch, caplog):
    monkeypatch.setattr(http_protocol, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 1_000.0)
    async with listening() as source:
        source._app._snippet = b"x" * (32 << 20)  # more than the buffers of the system take
        async with connected(source) as (reader, writer):
            reader._transport.pause_reading()
            writer.write(SNIPPET * 2)
            async with asyncio.timeout(20):
                while not source._server.connections._all.receiving:  # it is slow: the first to make room for others
                    await asyncio.sleep(0.001)
            await lost(source)
            assert not source._server.connections._asking
    assert not [each for each in caplog.records if each.exc_info]
