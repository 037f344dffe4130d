"""What a worker, its sources and its sinks tell Prometheus: true, well formed, soon, and to nobody by mistake."""

import asyncio
import json
import math
import time

import httpx
import msgspec
import pytest
from promtool import promtool, samples
from serving import booster, until

from gridscore.cli.metrics import address_of
from gridscore.errors import UsageError
from gridscore.grid import Records
from gridscore.job import JobState, parse_job
from gridscore.job.plugs.base import SinkSettings
from gridscore.models.drift import DRIFT_MAP, Alert, DriftRecord, Tally, Watched
from gridscore.operations import metrics as module
from gridscore.operations.backup import BACKUPS_MAP, BackupRecord
from gridscore.operations.metrics import Metrics, exposed
from gridscore.scoring.stats import Latencies
from gridscore.sinks.runner import SinkRunner
from gridscore.sources.base import Poison
from gridscore.sources.runner import SourceRunner
from gridscore.testing import StubCluster
from gridscore.testing.sinks import ListSink, Received
from gridscore.testing.sources import Script

JOB = """\
job: cards
events: events.cards
event_key: card
order_by: at
schema: {card: string, amount: float, at: {type: timestamp, unit: s}}
windows: {card: card}
lookups:
  holder: {map: holders, key: card, fields: {age: int}}
features: {amount: amount, ratio: 'count(card, "1h")', age: holder.age, risk: amount}
model: {name: cards, alias: champion}
results: results.cards
drift: {every: 1h}
"""
DRIFT = DriftRecord(
    {"cards v1": Watched(Tally(1, 2), worst=("amount", 0.31)), "cards v2": Watched(Tally(1, 2), worst=("age", 9.0))},
    {
        str(n): Alert("cards v1", name, measure, 0.3, 0.2, 1, n % 2)
        for n, (name, measure) in enumerate(
            [("amount", "psi"), ("amount", "ks"), ("age", "psi"), ("risk", "missing"), ("ratio", "psi")]
        )
    },
)
GOOD = {f"c{n}": {"card": f"c{n}", "amount": 1.5 * n, "at": 1.7e9 + n} for n in range(40)}


async def cards(cluster):
    client = await cluster.client()
    await client.put_events("holders", {f"c{n}": {"age": n} for n in range(30)})
    await client.push_model(booster(), "cards", alias="champion")
    await client.submit(parse_job(JOB, "test"))
    return client


async def finished(worker, use):
    """What `use` gives, of the metrics of a worker with a source and a sink that have dealt with all events."""
    entries = [(key, json.dumps(event).encode()) for key, event in GOOD.items()]
    script = Script([*entries, Poison("line 7", None, b"{", "not JSON"), Script.PAUSE], size=10)
    received = Received()
    source = SourceRunner(worker._grid, "till", script.source, kind="script", to="events.cards")
    settings = SinkSettings(results="results.cards")
    sink = SinkRunner(worker._grid, "alerts", "list", settings, lambda: ListSink(received))
    tasks = [asyncio.create_task(each.run()) for each in (source, sink)]
    try:
        await until(lambda: len(received.results) == len(GOOD) and script.paused.is_set())
        runner = worker.runners["cards"]
        held = (runner.group, sink.group)
        await until(lambda: all(len(each.held) == 5 and not each._offsets.moved for each in held))
        return await use(Metrics(worker._grid, worker=worker, sources=[source], sinks=[sink]))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def told():
    """What a worker with a source and a sink says after forty events."""
    async with StubCluster(partitions=5) as cluster:
        client = await cards(cluster)
        await client.put_events("events.cards", {"bad": {"card": "bad", "amount": "much"}})
        async with cluster.worker(times=True) as worker:
            await until(lambda: "cards" in worker.runners and worker.runners["cards"].stats.copies)
            await Records(client.grid, DRIFT_MAP).put("cards", msgspec.to_builtins(DRIFT))
            backup, now = BackupRecord("there", 0, 1), int(time.time() * 1000)
            looks = [(0, now + 100_000, 5.0), (0, now - 90_000, 5.0), (1, now - 30_000, 5.0), (2, now, 0.0)]
            for number, (place, at, every) in enumerate(looks):
                record = msgspec.structs.replace(backup, to=f"place {place}", at=at, every=every)
                await Records(client.grid, BACKUPS_MAP).put(f"{number}", msgspec.to_builtins(record))
            return (await finished(worker, lambda metrics: metrics.text())).decode()


async def test_metrics_are_those_of_prometheus_rules_and_true(told):
    assert promtool("check", "metrics", text=told) == ""
    found = samples(told)
    assert found["gridscore_cluster_answers",] == 1
    worker = {name[0]: value for name, value in found.items() if name[1:] == ("cards",)}
    counts = {
        name: worker[f"gridscore_worker_{name}"] for name in ("events_total", "dead_letters_total", "lost_events_total")
    }
    assert counts == {"events_total": 40, "dead_letters_total": 1, "lost_events_total": 0}
    shown = (
        "lag_events",
        "partitions",
        "all_partitions",
        "ready",
        "standing_dead_letters",
        "window_entities",
        "window_states",
    )
    assert [worker[f"gridscore_worker_{name}"] for name in shown] == [0, 5, 5, 1, 1, 40, 40]
    assert worker["gridscore_worker_batches_total"] >= 1
    assert worker["gridscore_worker_commits_total"] >= 5  # each partition has events
    assert worker["gridscore_worker_latency_seconds_count"] == 40
    assert 0 < worker["gridscore_worker_latency_seconds_sum"] < 40 * 60
    assert found["gridscore_worker_latency_seconds_bucket", "cards", "+Inf"] == 40
    assert found["gridscore_worker_stage_cpu_seconds_total", "cards", "predict"] > 0
    assert found["gridscore_worker_lookup_entries", "cards", "holder"] == 30
    assert found["gridscore_worker_lookup_missed_events_total", "cards", "holder"] == 10
    drifting = {name[2]: value for name, value in found.items() if name[0] == "gridscore_worker_drift_alerts"}
    assert drifting == {"psi": 3, "ks": 0, "missing": 0, "unseen": 0}  # others have ended
    assert found["gridscore_worker_drift_psi", "cards"] == 0.31
    assert found["gridscore_source_events_total", "script", "till"] == 40
    assert found["gridscore_source_rejected_events_total", "script", "till"] == 1
    assert found["gridscore_source_state", "script", "till", "running"] == 1
    assert found["gridscore_source_state", "script", "till", "paused"] == 0
    assert found["gridscore_source_has_end", "script", "till"] == 0
    assert found["gridscore_sink_results_total", "list", "alerts"] == 40
    assert found["gridscore_sink_lag_results", "list", "alerts"] == 0
    assert found["gridscore_sink_state", "list", "alerts", "delivering"] == 1
    late = {name[1]: value for name, value in found.items() if name[0] == "gridscore_backup_late"}
    assert late == {"place 0": 0, "place 1": 1}  # the third was a single one
    assert told.count('gridscore_backup_late{to="place 0"}') == 1  # Prometheus refuses all where one is twice
    assert 30 < found["gridscore_backup_age_seconds", "place 1"] < 300
    assert not any(name[0].endswith("journal_left_seconds") for name in found)  # nobody knows after one look


async def test_a_cluster_that_does_not_answer_is_said_to_in_time(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.0)
    async with StubCluster(partitions=5) as cluster:
        await cards(cluster)
        async with cluster.worker("w") as worker:
            await until(lambda: "cards" in worker.runners and worker.runners["cards"].is_scoring)
            metrics = Metrics(worker._grid, worker=worker)
            await until(lambda: len(worker.runners["cards"].group.held) == 5)
            cluster.hang("w")
            async with asyncio.timeout(5):
                found = samples((await metrics.text()).decode())
            assert found["gridscore_cluster_answers",] == 0
            assert not any(name[0] == "gridscore_worker_lag_events" for name in found)  # rather than an old one
            assert found["gridscore_worker_events_total", "cards"] == 0
            cluster.heal()
            while samples((await metrics.text()).decode())["gridscore_cluster_answers",] != 1:
                await asyncio.sleep(0.01)


async def test_a_job_that_has_failed_is_said_to():
    async with StubCluster(partitions=5) as cluster:
        client = await cards(cluster)
        async with cluster.worker() as worker:
            await until(lambda: worker.runners)
            await client.jobs.mark(await client.jobs.get("cards"), JobState.FAILED, "as if")
            await until(lambda: worker.records["cards"].state == JobState.FAILED and not worker.runners)
            found = samples((await Metrics(worker._grid, worker=worker).text()).decode())
            assert found["gridscore_worker_job_failed", "cards"] == 1
            assert found["gridscore_worker_job_wanted", "cards"] == 0
            assert ("gridscore_worker_ready", "cards") not in found


async def test_who_asks_often_costs_the_cluster_nothing():
    async with StubCluster(partitions=5) as cluster:
        await cards(cluster)
        async with cluster.worker() as worker:
            await until(lambda: "cards" in worker.runners and worker.runners["cards"].is_scoring)
            async with exposed(worker._grid, "127.0.0.1", 0, worker=worker) as url, httpx.AsyncClient() as http:
                assert url.startswith("http://127.0.0.1:")
                first = await http.get(url)
                assert first.headers["content-type"] == module.TYPE
                asked = cluster.requests["Map.Size"]
                again = await asyncio.gather(*(http.get(url) for _ in range(20)))
                assert {each.text for each in again} == {first.text}
                assert cluster.requests["Map.Size"] == asked > 0
                for method, path in (("GET", "/"), ("POST", "/metrics"), ("GET", "/metrics/../jobs")):
                    assert (await http.request(method, url.removesuffix("/metrics") + path)).status_code == 404
                [port] = [int(url.rpartition(":")[2].partition("/")[0])]
                with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}") as refused:
                    async with exposed(worker._grid, "127.0.0.1", port):
                        pass
                assert "--metrics takes another port" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),  # noqa: S104 -- it is said aloud
        ("[::1]:9464", ("::1", 9464)),
        ("node-1:80", ("node-1", 80)),
        (None, None),
    ],
)
def test_an_address_is_of_this_machine_unless_it_has_a_host(text, address):
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", ":9464", "x", "host:", "70000", "-1", "9464:", "1" * 5000, "\u0663"])
def test_what_is_not_an_address_is_refused(text):
    with pytest.raises(UsageError, match="--metrics"):
        address_of(text)


def test_each_process_needs_a_port():
    assert address_of("65532", processes=4) == ("127.0.0.1", 65_532)
    with pytest.raises(UsageError, match="from 0 to 65532"):
        address_of("65533", processes=4)


def test_a_histogram_counts_each_event_once():
    latencies = Latencies()
    for seconds, events in ((0.0005, 3), (0.001, 1), (0.2, 5), (1e9, 2)):
        latencies.add(seconds, events)
    assert sum(latencies.counts) == 11
    assert latencies.counts[0] == 4  # up to a millisecond, which belongs to it
    assert latencies.counts[-1] == 2
    assert math.isclose(latencies.total, 0.0025 + 1.0 + 2e9)
