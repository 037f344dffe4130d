import asyncio
import json
import ssl

import httpx
import pytest
import scoring
import trustme
from hazelcast.core import HazelcastJsonValue
from hazelcast.internal.asyncio_connection import DefaultAsyncioAddressProvider
from http_serving import serving

from gridscore.errors import SettingsError, UsageError
from gridscore.grid import connect
from gridscore.proving.soak.detour import divert
from gridscore.proving.soak.proxy import Network
from gridscore.sources.http.settings import HttpSourceSettings
from gridscore.sources.http.source import HttpSource

NDJSON = {"Content-Type": "application/x-ndjson"}
PAGE = "https://shop.example.com"


@pytest.fixture
async def grid(grid_settings):
    async with await connect(grid_settings) as grid:
        yield grid


@pytest.fixture
def events(unique):
    return f"events.http-{unique}"


async def until(condition):
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


def client(driven, **options):
    return httpx.AsyncClient(base_url=driven.address, timeout=30, **options)


async def test_one_event_is_answered_when_it_is_in_the_grid(grid, events):
    async with serving(grid, to=events) as source, client(source) as http:
        answer = await http.post(f"/events/{events}", json={"page": "/", "n": 1})
        assert answer.status_code == 202
        [key] = answer.json()["keys"]
        assert answer.json() == {"accepted": 1, "keys": [key]}
        assert await source.get(events, key) == '{"page":"/","n":1}'


async def test_the_events_of_an_array_are_taken_and_the_rest_is_reported(grid, events):
    async with serving(grid, to=events, key=("id",), max_event=100) as source, client(source) as http:
        body = [{"id": "a"}, 7, {"id": "b"}, {"page": "/"}, {"id": "c", "x": "x" * 100}]
        answer = await http.post(f"/events/{events}", json=body)
        assert answer.status_code == 207
        assert answer.json() == {
            "accepted": 2,
            "keys": ["a", "b"],
            "refused": 3,
            "errors": [
                {"index": 1, "error": "an event is a JSON object"},
                {"index": 3, "error": "the field `id`, which makes the key, is not there"},
                {"index": 4, "error": "the event has more than 100 bytes"},
            ],
        }
        assert await source.size(events) == 2
        nothing = await http.post(f"/events/{events}", json=[1, 2])
        assert nothing.status_code == 400
        assert nothing.json()["accepted"] == 0
        assert (await http.post(f"/events/{events}", json=[])).status_code == 202


async def test_a_stream_of_lines_is_processed_while_it_arrives(grid, events):
    async with serving(grid, to=events, key=("id",)) as source, client(source) as http:

        async def lines():
            yield b'{"id": 1}\n{"id": 2}\n{"id'
            await until(lambda: has(2))
            yield b'": 3}\r\n\nno event\n'
            await until(lambda: has(3))
            yield b'{"id": 4}'  # without an end

        async def has(count):
            return await source.size(events) == count

        answer = await http.post(f"/events/{events}", content=lines(), headers=NDJSON)
        assert answer.status_code == 207
        assert answer.json()["keys"] == ["1", "2", "3", "4"]
        assert [error["index"] for error in answer.json()["errors"]] == [3]
        assert await has(4)


async def test_a_long_stream_is_counted_and_not_listed(grid, events):
    count = 20_000
    async with serving(grid, to=events, key=("id",), max_body=1_000, max_waiting=1_000) as source:
        most = 0

        async def lines():
            nonlocal most
            for first in range(0, count, 100):
                yield b"".join(b'{"id": %d}\n' % i for i in range(first, first + 100))
                most = max(most, source.source._intake.events)

        async with client(source) as http:
            answer = await http.post(f"/events/{events}", content=lines(), headers=NDJSON)
        assert (answer.status_code, answer.json()) == (202, {"accepted": count})
        assert await source.size(events) == count
        assert most <= 2 * 1_000  # what waits is bounded, and so is the piece that may be under way beside it


async def test_keys_come_from_the_request_too_so_that_sending_again_changes_nothing(grid, events):
    async with serving(grid, to=events) as source, client(source) as http:
        for _ in range(2):
            await http.post(f"/events/{events}?key=q", json={"n": 1})
            await http.post(f"/events/{events}", json={"n": 2}, headers={"Idempotency-Key": "h"})
            answer = await http.post(f"/events/{events}?key=many", json=[{"n": 3}, {"n": 4}])
        assert answer.json()["keys"] == ["many-0", "many-1"]
        assert await source.size(events) == 4
        assert await source.get(events, "q") == '{"n":1}'
        assert await source.get(events, "h") == '{"n":2}'
        assert (await http.post(f"/events/{events}?key={'k' * 600}", json={})).status_code == 400


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ('{"id": "a"}', ["a"]),
        ('[{"id": "a"}, {"id": "b"}]', ["a", "b"]),
        ('{"id": "a"}\n{"id": "b"}\n', ["a", "b"]),
        ('{\n  "id": "a"\n}\n', ["a"]),
    ],
)
@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", None])
async def test_beacons_are_plain_text_or_say_nothing(grid, events, body, keys, content_type):
    async with serving(grid, to=events, key=("id",), allow_origin=(PAGE,)) as source, client(source) as http:
        headers = {"Origin": PAGE} | ({"Content-Type": content_type} if content_type else {})
        answer = await http.post(f"/events/{events}", content=body.encode(), headers=headers)
        assert (answer.status_code, answer.json()["keys"]) == (202, keys)
        assert answer.headers["access-control-allow-origin"] == PAGE


async def test_pages_of_other_origins_may_not_send(grid, events):
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with serving(grid, to=events, allow_origin=(PAGE,)) as source, client(source) as http:
        asked = await http.options(f"/events/{events}", headers={"Origin": PAGE, **preflight})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert asked.headers["access-control-allow-credentials"] == "true"  # as a beacon with JSON wants it
        for origin in ("https://evil.example.com", "null"):
            asked = await http.options(f"/events/{events}", headers={"Origin": origin, **preflight})
            assert asked.status_code == 400
            assert "access-control-allow-origin" not in asked.headers
            answer = await http.post(f"/events/{events}", content=b"{}", headers={"Origin": origin})
            assert answer.status_code == 403
        assert await source.size(events) == 0
    async with serving(grid, to=events) as source, client(source) as http:
        assert (await http.post(f"/events/{events}", json={}, headers={"Origin": PAGE})).status_code == 403


async def test_a_token_is_asked_for_and_compared(grid, events, unique):
    token = f"secret-{unique}"
    async with serving(grid, to=events, token=token, results=(f"results.{unique}",)) as source, client(source) as http:
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
            answer = await http.post(f"/events/{events}", json={}, headers=shown)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert (await http.get(f"/results/results.{unique}/a", headers=shown)).status_code == 401
        right = {"Authorization": f"Bearer {token}"}
        assert (await http.post(f"/events/{events}", json={}, headers=right)).status_code == 202
        assert (await http.get("/healthz")).status_code == 200


async def test_each_mistake_has_its_answer(grid, events):
    async with serving(grid, to=events, max_event=100, max_body=1_000) as source, client(source) as http:

        async def post(content, content_type="application/json", to=events, **headers):
            answer = await http.post(
                f"/events/{to}", content=content, headers={"Content-Type": content_type, **headers}
            )
            return answer.status_code, answer.json().get("error", "")

        assert await post(b"{") == (400, "not JSON: Input data was truncated.")
        assert (await post(b""))[0] == 400
        assert (await post(b"[{}"))[0] == 400
        assert (await post(b"{}", to="events.other"))[0] == 404
        assert (await post(b'{"x": "%s"}' % (b"x" * 100)))[0] == 413
        status, error = await post(b"[" + b"{}," * 1_000 + b"{}]")
        assert (status, "more than 1,000 bytes" in error) == (413, True)
        assert (await post(chunks([b"[" + b" " * 600, b" " * 600 + b"]"])))[0] == 413
        assert (await post(b"a=1", "application/x-www-form-urlencoded"))[0] == 415
        assert (await post(b"{}", **{"Content-Encoding": "gzip"}))[0] == 415
        assert (await http.get(f"/events/{events}")).status_code == 405
        assert await source.size(events) == 0
        assert await post(b"{}") == (202, "")


async def chunks(pieces):
    for piece in pieces:
        yield piece


async def test_several_maps_can_be_posted_to(grid, events):
    more = f"{events}-more"
    async with serving(grid, to=events, also=(more,)) as source, client(source) as http:
        answers = await asyncio.gather(
            *(http.post(f"/events/{name}?key=k{i}", json={"n": i}) for i in range(20) for name in (events, more))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert await source.size(events) == await source.size(more) == 20


async def test_without_room_requests_are_told_to_come_back_and_what_waits_is_bounded(grid, events):
    async with serving(grid, to=events, key=("id",), max_waiting=100, patience="1s") as source:
        source.go.clear()
        async with client(source) as http:

            async def post(i):
                return await http.post(f"/events/{events}", json=[{"id": f"{i}-{j}"} for j in range(30)])

            answers = await asyncio.gather(*(post(i) for i in range(20)))
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["retry-after"] for answer in answers} == {"1"}
            assert {answer.json()["accepted"] for answer in answers} == {0}
            # What the runner has taken stays; what was waiting is forgotten.
            assert source.source._intake.events <= 100
            source.go.set()
            again = await asyncio.gather(*(post(i) for i in range(20)))
            assert {answer.status_code for answer in again} == {202}
        assert await source.size(events) == 600
        assert (source.source._intake.events, source.source._intake.size) == (0, 0)


async def test_a_stream_without_room_tells_how_much_of_it_was_taken(grid, events):
    async with serving(grid, to=events, key=("id",), max_waiting=100, patience="1s") as source:

        async def lines():
            yield b"".join(b'{"id": %d}\n' % i for i in range(50))
            await until(has_first)
            source.go.clear()
            for first in range(50, 450, 50):
                yield b"".join(b'{"id": %d}\n' % i for i in range(first, first + 50))

        async def has_first():
            return source.source._intake.acknowledged == 50

        async with client(source) as http:
            answer = await http.post(f"/events/{events}", content=lines(), headers=NDJSON)
        assert answer.status_code == 503  # the runner is held: nothing tells that from a grid that does not answer
        assert answer.json()["accepted"] == 50
        assert len(answer.json()["keys"]) == 50


async def test_while_the_grid_is_away_nothing_is_taken(cluster, grid_settings, events, monkeypatch):
    monkeypatch.setattr(DefaultAsyncioAddressProvider, "translate", DefaultAsyncioAddressProvider.translate)
    async with Network(cluster.addresses) as network:
        divert({(host, int(port)): network.detours[f"{host}:{port}"] for host, port in split(cluster.addresses)})
        async with (
            await connect(grid_settings) as grid,
            serving(grid, to=events) as source,
            client(source) as http,
        ):
            assert (await http.post(f"/events/{events}", json={})).status_code == 202
            assert (await http.get("/healthz")).json()["status"] == "ok"
            await network.__aexit__(None, None, None)

            async def refused():
                answer = await http.post(f"/events/{events}", json={})
                return answer.status_code == 503 and answer.headers["retry-after"] == "1"

            await until(refused)
            health = await http.get("/healthz")
            assert (health.status_code, health.json()["status"]) == (503, "the connection to the grid is lost")


def split(addresses):
    return [tuple(address.rsplit(":", 1)) for address in addresses]


async def test_closing_answers_those_that_wait(grid, events):
    async with serving(grid, to=events, patience="60s", results=(f"{events}-r",)) as source, client(source) as http:
        source.go.clear()
        opened = asyncio.Event()

        async def endless():
            yield b"{}\n"
            opened.set()
            while True:  # as long as the connection stands
                yield b"\n"
                await asyncio.sleep(0.05)

        waiting = [
            asyncio.create_task(http.post(f"/events/{events}", json={})),
            asyncio.create_task(http.get(f"/results/{events}-r/none", params={"wait": "60s"})),
            asyncio.create_task(http.post(f"/events/{events}", content=endless(), headers=NDJSON)),
        ]
        await opened.wait()
        await until(lambda: waits_for(source, 2))
        source.runner.stop()
        posted, asked, streamed = await asyncio.gather(*waiting, return_exceptions=True)
        assert (posted.status_code, posted.json()["accepted"]) == (503, 0)
        assert asked.status_code == 503
        assert isinstance(streamed, httpx.HTTPError) or streamed.status_code == 503


async def waits_for(source, count):
    return source.source._intake.events == count


async def test_results_can_be_waited_for(grid, events, unique):
    results = f"results.http-{unique}"
    proxy = await grid.map(results)
    async with serving(grid, to=events, results=(results,)) as source, client(source) as http:
        await proxy.put("there", HazelcastJsonValue('{"score": 0.5}'))
        answer = await http.get(f"/results/{results}/there")
        assert (answer.status_code, answer.json()) == (200, {"score": 0.5})
        assert (await http.get(f"/results/{results}/none")).status_code == 404
        assert (await http.get(f"/results/{results}/none", params={"wait": "50ms"})).status_code == 404
        assert (await http.get(f"/results/{results}/none", params={"wait": "soon"})).status_code == 400
        assert (await http.get(f"/results/{events}/a")).status_code == 404
        waiting = asyncio.create_task(http.get(f"/results/{results}/a%2Fb%3F c", params={"wait": "20s"}))
        await proxy.put("other", HazelcastJsonValue("{}"))
        await proxy.put("a/b? c", HazelcastJsonValue('{"score": 0.75}'))
        assert (await waiting).json() == {"score": 0.75}


async def test_an_answer_says_what_to_wait_for_and_a_rejection_is_told(cluster, unique):
    name = f"job-{unique}"
    events, results = f"events.{name}", f"results.{name}"
    good = {"id": "e1", "amount": 1.25, "user": "u1", "country": "DE"}
    async with (
        scoring.scoring(cluster, name) as (scoring_client, _),
        serving(scoring_client.grid, to=events, key=("id",), results=(results,)) as source,
        client(source) as http,
    ):

        async def ask(**query):
            return await http.get(f"/results/{results}/e1", params=query)

        before = -1
        for amount in (1.25, 7.5):  # the second time the result of the first stands there
            answer = await http.post(f"/events/{events}", json=good | {"amount": amount})
            [after] = answer.json()["after"]
            assert after >= before
            result = (await ask(wait="20s", after=after)).json()
            assert result["sequence"] == after + 1
            before = result["sequence"]
        async with asyncio.timeout(20):
            answer = await http.post(f"/events/{events}", json=good | {"amount": "much"})
            [after] = answer.json()["after"]
            # Before it is rejected and afterwards, waiting or not.
            for query in ({"wait": "60s", "after": after}, {"wait": "60s", "after": before}, {"after": after}):
                rejected = await ask(**query)
                assert rejected.status_code == 422
                assert f"The job {name} cannot score the event `e1` (decode)" in rejected.json()["error"]
                assert rejected.json()["rejected"].keys() == {"job", "stage", "reason", "dead_letter"}
        assert (await ask()).json()["sequence"] == before
        assert (await ask(after="soon")).status_code == 400
        many = await http.post(f"/events/{events}", json=[good | {"id": f"m{i}"} for i in range(101)])
        assert "after" not in many.json()


async def test_tls(grid, events, tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    files = {"certificate": str(tmp_path / "cert.pem"), "private_key": str(tmp_path / "key.pem")}
    async with serving(grid, to=events, **files) as source, client(source, verify=trusting) as http:
        assert source.address.startswith("https://")
        assert (await http.post(f"/events/{events}", json={})).status_code == 202
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(tmp_path / "other.pem")
    for name, message in (("other.pem", "cannot be used"), ("none.pem", "there is no file")):
        wrong = HttpSourceSettings(to=events, port=0, **(files | {"private_key": str(tmp_path / name)}))
        with pytest.raises(SettingsError, match=message):
            await HttpSource(grid, "test", wrong).open()


async def test_a_port_that_is_taken_has_its_message(grid, events):
    async with serving(grid, to=events) as source:
        port = int(source.address.rpartition(":")[2])
        with pytest.raises(UsageError, match="cannot listen on 127"):
            await HttpSource(grid, "test", HttpSourceSettings(to=events, port=port)).open()


async def test_the_snippet_is_served(grid, events):
    async with serving(grid, to=events) as source, client(source) as http:
        answer = await http.get("/gridscore.js")
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "sendBeacon" in answer.text


async def test_health_counts(grid, events):
    async with serving(grid, to=events) as source, client(source) as http:
        await http.post(f"/events/{events}", json=[{}, {}, 7])
        health = json.loads((await http.get("/healthz")).text)
        assert health == {"status": "ok", "confirmed": 2, "waiting": 0, "waiting_bytes": 0, "refused": 1}
