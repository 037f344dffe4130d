"""`gridscore bench job` as a person runs it: the form of what it says, what it refuses, and that nothing is left."""

import asyncio
import json
import signal
import subprocess
import sys

import msgspec
import pandas as pd
import pytest

from gridscore.client import connect
from gridscore.grid import transport
from gridscore.group.lease_records import LEASES_MAP
from gridscore.job import parse_job
from gridscore.proving.bench import card

SMALL = ("--events", "2000", "--rounds", "1", "--rate", "300", "--seconds", "1")


class Own:
    """A user's own job on a cluster."""

    def __init__(self, cluster, folder, name):
        self.cluster = cluster
        self.file = folder / "job.yaml"
        self.history = folder / "history.csv"
        self.name = name
        self.write(lambda text: text)
        rows = [msgspec.json.decode(text) for _, text in card.events(500)]
        pd.DataFrame(rows).to_csv(self.history, index=False)

    def write(self, change):
        text = card.job_text(self.name, f"results.{self.name}", self.name)
        text = text.replace("events.bench", f"events.{self.name}").replace("lookups.bench-", f"lookups.{self.name}")
        self.file.write_text(change(text))

    def job(self):
        return parse_job(self.file.read_text(), "test")

    async def load(self, *, events=0, model=True, lookups=("users", "merchants")):
        async with self.client() as client:
            for name in lookups:
                entries = card.users() if name == "users" else card.merchants()
                await client.put_events(f"lookups.{self.name}{name}", entries)
            if events:
                texts = {key: msgspec.json.decode(text) for key, text in card.events(events)}
                await client.put_events(f"events.{self.name}", texts)
            if model:
                await client.push_model(card.booster(self.job(), trees=10), self.name, alias="champion")

    def client(self):
        return connect(members=self.cluster.addresses, cluster_name=self.cluster.cluster_name)

    @property
    def command(self):
        where = ["--cluster-name", self.cluster.cluster_name, "--members", self.cluster.addresses[0]]
        return [sys.executable, "-m", "gridscore.cli", "bench", "job", str(self.file), *where]

    def bench(self, *arguments):
        command = [*self.command, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    async def traces(self):
        """What runs have left in the cluster."""
        async with self.client() as client:
            names = await transport.map_names(client.grid.client)
            leases = await (await client.grid.map(LEASES_MAP)).key_set()
        return [name for name in [*names, *leases] if "bench-" in name]


@pytest.fixture
def own(cluster, tmp_path, unique):
    return Own(cluster, tmp_path, f"own-{unique}")


def test_a_job_that_has_events(own):
    asyncio.run(own.load(events=300))
    done = own.bench(*SMALL, "--json")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["job"], report["version"], report["trees"]) == (own.name, 1, 10)
    assert (report["events"], report["rounds"], report["samples"]) == (2000, 1, 300)
    assert report["samples_from"] == f"the map events.{own.name}"
    assert report["samples_left_out"] == 0
    for name in ("worker", "journal_drain", "inplace_predict"):
        assert report[name]["events_per_s"] > 0
        assert report[name]["member_cpu_us_per_event"] is None  # they are not of `gridscore up`
    assert {"decode", "features", "predict", "encode", "write"} < set(report["worker_stage_us_per_event"])
    latency = report["latency"]
    assert 250 <= latency["events"] <= 600  # on a busy machine it takes longer than its second
    assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"] <= latency["p99.9_ms"] <= latency["max_ms"]
    assert report["advice"].startswith("One worker sustains about ")
    assert asyncio.run(own.traces()) == []


def test_a_history_another_version_and_fetched_lookups(own):
    own.write(lambda text: text.replace("key: user", "key: user\n    mode: fetch"))

    async def prepare():
        await own.load()
        async with own.client() as client:
            await client.push_model(card.booster(own.job(), trees=20), own.name)

    asyncio.run(prepare())
    done = own.bench(*SMALL, "--history", own.history, "--model", "2")

    assert done.returncode == 0, done.stderr
    assert f"{own.name} v2:" in done.stdout
    assert "history.csv" in done.stdout
    assert "measured only of a cluster" in done.stdout
    assert "P99.9" in done.stdout
    assert "One worker sustains about " in done.stdout
    assert asyncio.run(own.traces()) == []

    unknown = own.bench(*SMALL, "--history", own.history, "--model", "challenger")
    assert unknown.returncode == 7
    assert "no alias `challenger`" in unknown.stderr


def test_what_is_missing_is_named(own):
    asyncio.run(own.load(model=False))
    done = own.bench(*SMALL, "--history", own.history)
    assert done.returncode == 7
    assert f"`{own.name}`" in done.stderr

    asyncio.run(own.load(lookups=()))
    done = own.bench(*SMALL)
    assert done.returncode == 1
    assert f"The event map `events.{own.name}` has no events" in done.stderr
    assert "--history" in done.stderr

    own.write(lambda text: text.replace("map: lookups.", "map: lookups.no-"))
    done = own.bench(*SMALL, "--history", own.history)
    assert done.returncode == 3
    assert f"lookups.no-{own.name}users, lookups.no-{own.name}merchants" in done.stderr

    own.write(lambda text: text.replace("events: events.", "events: plain-"))
    done = own.bench(*SMALL, "--history", own.history)
    assert done.returncode == 3
    assert f"`plain-{own.name}` has no event journal" in done.stderr

    own.write(lambda text: text.replace("features:", "fetures:"))
    done = own.bench(*SMALL, "--history", own.history)
    assert done.returncode == 2
    assert "features" in done.stderr

    assert asyncio.run(own.traces()) == []


def test_events_that_the_job_cannot_score(own):
    async def prepare():
        await own.load(events=5)
        async with own.client() as client:
            await client.put_events(f"events.{own.name}", {"bad": {"id": "x"}})

    asyncio.run(prepare())
    done = own.bench(*SMALL, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["samples"], report["samples_left_out"]) == (5, 1)
    assert "1 sample events left out" in report["notes"][0]


def test_ctrl_c_leaves_nothing(own):
    asyncio.run(own.load(events=100))
    command = [*own.command, "--events", "50000", "--rounds", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:

            async def until_begun():
                async with own.client() as client, asyncio.timeout(60):
                    while not await has_results(client):
                        assert running.poll() is None
                        await asyncio.sleep(0.05)

            asyncio.run(until_begun())
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        finally:
            if running.poll() is None:
                running.kill()
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert asyncio.run(own.traces()) == []


async def has_results(client):
    """Whether a map of the bench has results. Other tests leave hundreds of maps: their sizes would take seconds."""
    names = await transport.map_names(client.grid.client)
    return any(
        [await transport.map_size(client.grid.client, name) for name in names if name.startswith("results.bench-")]
    )
