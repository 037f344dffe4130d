"""Scores on request are the stream's, bit for bit; and a server that has too much to do says so in time."""

import asyncio
import json

from fastapi import FastAPI
from http_listening import EVENTS
from prometheus_client.parser import text_string_to_metric_families
from serving import JOB, PLAIN, booster, client, prepared, same, serving, until

from gridscore.job import parse_job
from gridscore.serve import scores
from gridscore.serve import server as server_module
from gridscore.serve.description import describing
from gridscore.sources.http import gate, protocol
from gridscore.sources.http import requests as http_requests
from gridscore.testing import StubCluster

GOOD = [{"amount": n * 3.7, "customer": f"c{n}", "merchant": f"m{n % 25}"} for n in range(30)]  # some are in no lookup
BAD = [{"amount": "much"}, 7, {"customer": "c1"}]


async def test_a_request_gets_the_bits_of_the_stream_and_each_bad_event_its_reason():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        async with cluster.worker(), serving(cluster, "cards") as server, client(server) as http:
            await gridscore.put_events("events.cards", {f"k{n}": event for n, event in enumerate(GOOD)})
            streamed = await cluster.results("results.cards", len(GOOD))
            many = (await http.post("/score/cards", json=GOOD)).json()
            assert [same(each) for each in many] == [same(streamed[f"k{n}"]) for n in range(len(GOOD))]
            assert {each["decision"] for each in many} == {"approve", "decline"}

            one = await http.post("/score/cards", json=GOOD[3])
            assert (one.status_code, same(one.json())) == (200, same(streamed["k3"]))
            assert (one.json()["version"], one.json()["revision"]) == (1, 1)

            mixed = (await http.post("/score/cards", json=[BAD[0], GOOD[1], *BAD[1:], GOOD[2]])).json()
            assert [same(mixed[n]) for n in (1, 4)] == [same(streamed["k1"]), same(streamed["k2"])]
            assert [mixed[n]["stage"] for n in (0, 2, 3)] == ["decode"] * 3
            assert "amount" in mixed[0]["error"]
            alone = await http.post("/score/cards", json=BAD[0])
            assert (alone.status_code, alone.json()) == (422, mixed[0])
            assert (await http.post("/score/cards", json=[])).json() == []


async def test_concurrent_requests_share_micro_batches():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            live = server.jobs.get("plain")
            alone = [(await http.post("/score/plain", json={"amount": n})).json()["score"] for n in range(40)]
            assert live.stats.batches == 40
            asked = [live.score([b'{"amount": %d}' % n], lambda: False, 9.0) for n in range(40)]
            assert [json.loads(text)["score"] for [text] in await asyncio.gather(*asked)] == alone
            assert live.stats.batches == 41


async def test_a_promoted_version_and_an_updated_job_are_live_without_a_gap():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:

            async def made_by():
                answer = await http.post("/score/plain", json={"amount": 1})
                assert answer.status_code == 200, answer.text
                return answer.json()["version"], answer.json()["revision"]

            assert await made_by() == (1, 1)
            await gridscore.push_model(booster(9, ("amount",)), "plain", alias="champion")
            async with asyncio.timeout(20):
                while await made_by() != (2, 1):
                    await asyncio.sleep(0.01)
            await gridscore.submit(parse_job(PLAIN + "result: {include: [amount]}\n", "test"), update=True)
            async with asyncio.timeout(20):
                while await made_by() != (2, 2):
                    await asyncio.sleep(0.01)
            [job] = (await http.get("/jobs")).json()
            assert (job["job"], job["state"], job["version"], job["problem"]) == ("plain", "WAITING", 2, "")

            await gridscore.jobs.suspend("plain")
            await until(lambda: server.jobs.problem("plain"))
            answer = await http.post("/score/plain", json={"amount": 1})
            assert (answer.status_code, "is SUSPENDED" in answer.json()["error"]) == (409, True)
            await gridscore.jobs.resume("plain")
            await until(lambda: not server.jobs.problem("plain"))
            assert await made_by() == (2, 2)


async def test_a_job_that_cannot_score_says_why_until_it_can():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, PLAIN)
        await gridscore.models.delete_all("plain")
        async with serving(cluster) as server, client(server) as http:
            await until(lambda: "model" in server.jobs.problem("plain"))
            answer = await http.post("/score/plain", json={"amount": 1})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "There is no model `plain`" in answer.json()["error"]
            await gridscore.push_model(booster(features=("amount",)), "plain", alias="champion")
            await until(lambda: not server.jobs.problem("plain"))
            assert (await http.post("/score/plain", json={"amount": 1})).status_code == 200
            assert (await http.post("/score/other", json={"amount": 1})).status_code == 404


REFUSED = [
    (b"", {}, "", 400),
    (b"[{}", {}, "", 400),
    (b"[" * 50_000, {}, "", 400),
    (b"{}", {"content-type": "text/plain"}, "", 415),
    (b"{}", {"content-encoding": "gzip"}, "", 415),
    (b"{}", {}, "?timeout=soon", 400),
    (b"{}", {}, "?record=1", 400),
    (b"[" + b",".join([b"{}"] * 4_097) + b"]", {}, "", 400),
    (b'{"x": "' + b"x" * 200 + b'"}', {}, "", 400),
    (b" " * 70_000 + b"{}", {}, "", 413),
    (b"{}", {"origin": "https://evil.example.com"}, "", 403),
]


async def test_what_cannot_be_scored_is_refused():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain", max_event=100, max_body=60_000) as server, client(server) as http:
            for body, headers, query, status in REFUSED:
                kind = {"content-type": "application/json"}
                answer = await http.post(f"/score/plain{query}", content=body, headers=kind | headers)
                assert (answer.status_code, list(answer.json())) == (status, ["error"]), body[:50]
            assert (await http.get("/score/plain")).status_code == 405
            assert (await http.post("/score/plain", json={"amount": 1})).status_code == 200
            assert not server._scores._bodies.held


async def test_a_saturated_server_says_so_at_once_and_a_deadline_ends_the_wait(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, JOB)
        async with serving(cluster, "cards", max_scoring=5) as server, client(server) as http:
            live, going = server.jobs.get("cards"), asyncio.Event()
            fetch = live._scorer._fetch

            async def held(*arguments):
                await going.wait()
                await fetch(*arguments)

            monkeypatch.setattr(live._scorer, "_fetch", held)

            def ask(**query):
                return asyncio.create_task(http.post("/score/cards", params=query, json=[GOOD[0]] * 3))

            first = ask(timeout="30s")
            await until(lambda: live._batches._arrived.is_set() and not live._batches.waiting)
            second = ask(timeout="30s")
            await until(lambda: live._batches.waiting == 3)
            full = await ask()
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            assert "saturated: 3 events wait" in full.json()["error"]
            # One more fits once the second's client has left, though nobody has told that to the batch.
            second.cancel()
            async with client(server) as other:
                late = await other.post("/score/cards?timeout=50ms", json=GOOD[0])
                assert (late.status_code, "not scored within 0.05 s" in late.json()["error"]) == (504, True)
            going.set()
            assert len((await first).json()) == 3
            assert (await http.post("/score/cards", json=GOOD[0])).status_code == 200
            assert live.stats.events == 3 + 1  # neither who has left nor who was too late was scored


async def test_a_cluster_that_is_away_is_said_at_once_and_comes_back_by_itself(monkeypatch, tmp_path):
    pulse = tmp_path / "pulse"
    monkeypatch.setenv("GRIDSCORE_HEALTH_FILE", str(pulse))
    monkeypatch.setattr(server_module, "PULSE_SECONDS", 0.01)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            assert (await http.get("/healthz")).json() == {"status": "ok"}
            cluster.cut("server")
            await until(lambda: not server._grid.is_connected)
            answer = await http.post("/score/plain", json={"amount": 1})
            assert (answer.status_code, answer.json()) == (503, {"error": "The connection to the grid is lost."})
            assert (await http.get("/healthz")).status_code == 503
            pulse.unlink()
            cluster.heal()
            await until(lambda: server._grid.is_connected)
            assert (await http.post("/score/plain", json={"amount": 1})).status_code == 200
            assert (await http.get("/healthz")).status_code == 200
            await until(pulse.exists)


async def test_what_is_recorded_is_an_event_like_any_other_and_answered_by_the_stream():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster, JOB)
        async with cluster.worker(), serving(cluster, "cards", key=("customer",)) as server, client(server) as http:
            computed = (await http.post("/score/cards", json=GOOD[1])).json()
            answer = (await http.post("/score/cards?record=true&timeout=20s", json=GOOD[1])).json()
            assert (answer["key"], same(answer)) == ("c1", same(computed))
            assert answer["sequence"] >= 0
            assert same(await gridscore.result("results.cards", "c1")) == same(computed)

            several = await http.post("/score/cards?record=true&timeout=20s&key=k", json=[GOOD[2], BAD[0], 7])
            good, rejected, refused = several.json()
            assert good["key"] == "k-0"
            assert (rejected["stage"], rejected["recorded"], rejected["key"]) == ("decode", True, "k-1")
            assert rejected["dead_letter"]
            assert refused == {"error": "an event is a JSON object", "stage": "decode", "recorded": False}
            alone = await http.post("/score/cards?record=true&timeout=20s&key=bad", json=BAD[0])
            assert (alone.status_code, alone.json()["error"]) == (422, rejected["error"])
            assert (await http.post("/score/cards?record=true", json=[GOOD[0]] * 101)).status_code == 400


async def test_what_no_worker_scores_is_recorded_and_answered_in_time(monkeypatch):
    monkeypatch.setattr(scores, "MAX_RECORDING", 1)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain") as server, client(server) as http:
            waiting = asyncio.create_task(http.post("/score/plain?record=true&key=a&timeout=500ms", json={"amount": 1}))
            await until(lambda: server._scores._recording == 1)
            crowded = await http.post("/score/plain?record=true", json={"amount": 1})
            assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
            answer = await waiting
            assert (answer.status_code, answer.json()["recorded"]) == (504, True)
            leaving = asyncio.create_task(http.post("/score/plain?record=true&key=b&timeout=60s", json={"amount": 1}))
            await until(lambda: server._scores._recording == 1)
            leaving.cancel()
            await until(lambda: server._scores._recording == 0)


async def test_a_job_with_windows_is_scored_by_its_stream_only():
    job = (
        PLAIN.replace("plain", "windowed")
        .replace("model: windowed", "model: plain")
        .replace(
            "schema: {amount: float}\nfeatures: {amount: amount}",
            "schema: {card: string, amount: float, at: {type: timestamp, unit: ms}}\nevent_key: card\n"
            "order_by: at\nwindows: {card: {key: card}}\nfeatures: {amount: 'sum(amount, card, \"1h\")'}",
        )
    )
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, job)
        async with cluster.worker(), serving(cluster) as server, client(server) as http:
            event = {"card": "a", "amount": 2.0, "at": 1_700_000_000_000}
            refused = await http.post("/score/windowed", json=event)
            assert (refused.status_code, "record=true" in refused.json()["error"]) == (409, True)
            answer = await http.post("/score/windowed?record=true&key=a&timeout=20s", json=event)
            assert (answer.status_code, answer.json()["model"]) == (200, "plain")


async def test_events_results_and_scores_come_from_one_server():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, JOB)
        settings = {"to": "events.cards", "also": (EVENTS,), "key": ("customer",), "results": ("results.cards",)}
        async with cluster.worker(), serving(cluster, "cards", **settings) as server, client(server) as http:
            await until(lambda: server.source.stats.state == "running")
            posted = await http.post("/events/events.cards", json=GOOD[4])
            assert (posted.status_code, posted.json()["keys"]) == (202, ["c4"])
            found = await http.get(f"/results/results.cards/c4?wait=20s&after={posted.json()['after'][0]}")
            assert same(found.json()) == same((await http.post("/score/cards", json=GOOD[4])).json())
            assert (await http.get("/healthz")).json()["confirmed"] == 1
            said = await http.get("/metrics")
            found = {
                (sample.name, *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(said.text)
                for sample in family.samples
            }
            assert found["gridscore_serve_events_total", "cards"] == 1
            assert found["gridscore_serve_answers_total", "200"] == 1
            assert found["gridscore_serve_ready", "cards"] == 1
            assert found["gridscore_serve_model_version", "cards", "cards"] == 1
            assert found["gridscore_serve_posted_events_total",] == 1
            assert (await http.post("/events/events.other", json={})).status_code == 404
            assert (await http.get("/nothing")).status_code == 404
            described = (await http.get("/openapi.json")).json()
            operations = [each for path in described["paths"].values() for each in path.values()]
            assert {"/score/{job}", "/jobs", "/healthz", "/events/{map}"} <= set(described["paths"])
            assert len({each["operationId"] for each in operations}) == len(operations)
            assert all("4XX" in each["responses"] for each in operations)
            for path, methods in described["paths"].items():
                for method, each in methods.items():
                    assert (method in ("post", "put")) == ("requestBody" in each), path
                    named = [one["name"] for one in each.get("parameters", ()) if one["in"] == "path"]
                    assert [f"{{{name}}}" for name in named] == [part for part in path.split("/") if "{" in part]
            assert "number" not in str(described["paths"]["/v2/models/{name}"])
            assert (await http.get("/v2/models/cards", params={"number": "x"})).status_code == 200
        async with serving(cluster, "cards") as server, client(server) as http:
            assert "/events/{map}" not in (await http.get("/openapi.json")).json()["paths"]
            assert (await http.post("/events/events.cards", json={})).status_code == 404


def test_what_is_served_is_described_once():
    describe = describing(FastAPI(), (), lambda: True)
    assert describe() is describe()


async def test_a_token_is_asked_for_by_everything_but_probes(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain", token="secret", to=EVENTS) as server, client(server) as http:  # noqa: S106
            for method, path in (
                ("POST", "/score/plain"),
                ("POST", f"/events/{EVENTS}"),
                ("GET", "/jobs"),
                ("GET", "/openapi.json"),
                ("GET", "/results/results.plain/a"),
                ("GET", "/healthz/"),
                ("GET", "/nothing"),
            ):
                assert (await http.request(method, path)).status_code == 401, path
            assert (await http.get("/healthz")).status_code == 200
            right = {"Authorization": "Bearer secret"}
            assert (await http.post("/score/plain", json={"amount": 1}, headers=right)).status_code == 200


async def test_strangers_are_bounded_as_by_the_http_source(monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain", max_per_address=3) as server, client(server) as http:
            host, port = server.http.address.removeprefix("http://").split(":")
            monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
            for begun in (b"", b"POST /score/plain HTTP/1.1\r\nhost: x\r\n"):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(begun)
                assert await reader.read() == b""
                writer.close()
            monkeypatch.setattr(protocol, "HEAD_SECONDS", 10.0)
            monkeypatch.setattr(http_requests, "BODY_SECONDS", 0.05)
            reader, writer = await asyncio.open_connection(host, port)
            head = (
                b"POST /score/plain HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            writer.write(head)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()
            slow = [await asyncio.open_connection(host, port) for _ in range(3)]
            assert (await http.post("/score/plain", json={"amount": 1})).status_code == 200
            assert await slow[0][0].read() == b""  # which went for it
            for _, writer in slow:
                writer.close()
            assert not server._scores._bodies.held
