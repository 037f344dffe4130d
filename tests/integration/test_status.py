"""Status: what a lookout sees of real jobs and workers, and what it makes of those that are gone."""

import asyncio
import time
from collections import Counter

import pytest
import scoring
from hazelcast.core import HazelcastJsonValue

from gridscore.client import connect
from gridscore.errors import JobError
from gridscore.grid.records import record_text
from gridscore.group import rescan
from gridscore.group.members import WORKERS_MAP
from gridscore.job import JobState
from gridscore.operations.health import Look, examine, is_well
from gridscore.operations.status import Observer, acknowledge
from gridscore.scoring import Worker


async def settled(lookout, condition):
    """The first look at which a condition holds of the job."""

    async def look():
        overview = await lookout.look()
        return overview if condition(overview.jobs[0]) else None

    return await scoring.until(look)


async def test_the_figures_are_those_of_the_workers_and_the_grid(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, first), Worker(client.grid, [name]) as second:
        lookout, count = Observer(client.grid, name), client.grid.partition_count
        await client.put_events(f"events.{name}", scoring.events(500))
        await (await client.grid.map(f"events.{name}")).put("bad", HazelcastJsonValue("{"))

        def balanced(status):
            # The workers' records are up to a second behind the leases.
            owned = Counter(position.owner for position in status.positions)
            told = {worker: figures.partitions for worker, figures in status.figures.items()}
            shared = status.workers == 2 and status.partitions == count and owned == told
            return status.totals["events"] == 500 and shared

        overview = await settled(lookout, lambda s: balanced(s) and s.lag == 0 and s.commit_age is not None)
        (status,) = overview.jobs
        assert {worker.id for worker in overview.workers} >= {first.id, second.id}
        assert status.figures.keys() == {first.id, second.id}
        assert status.totals["dead_letters"] == 1
        assert status.totals["lost"] == status.totals["regressions"] == 0
        assert status.versions == [1]
        assert status.latency_ms["p99"] is None or status.latency_ms["p99"] > 0
        assert status.lookups["customer"]["entries"] == 50
        assert {position.room for position in status.positions} == {1_000_000 // count}  # as configured, nothing unread
        value = status.to_json()
        assert (value["name"], value["state"], value["lag"], value["rescans"]) == (name, "RUNNING", 0, 0)
        assert is_well(examine([Look(overview.at, status)]))


async def test_an_entry_that_cannot_be_read_says_why(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"lookups.{name}", {"u1": {"age": "old"}})
        overview = await settled(Observer(client.grid, name), lambda s: s.lookups.get("customer", {}).get("bad"))
        found = {finding.code: finding for finding in examine([Look(overview.at, overview.jobs[0])])}
        assert "the entry of 'u1'" in found["lookup_bad"].text


async def test_lag_is_what_nobody_has_read(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await scoring.until(lambda: is_running(client, name))
        await client.jobs.suspend(name)
        lookout = Observer(client.grid, name)
        await settled(lookout, lambda s: s.workers == 0 and s.partitions == 0)
        await client.put_events(f"events.{name}", scoring.events(300))
        (status,) = (await lookout.look()).jobs
        assert status.lag == 300
        assert [finding.code for finding in examine([Look(0.0, status)])] == ["suspended"]


async def is_running(client, name):
    return (await client.jobs.get(name)).state == JobState.RUNNING


async def test_a_worker_is_gone_when_its_record_stands_still(cluster, unique, monkeypatch):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        proxy = await client.grid.map(WORKERS_MAP)
        ours, theirs = f"ours-{unique}", f"theirs-{unique}"
        lookout, clock = Observer(client.grid), time.monotonic()

        async def living(at, **seen_at):
            for worker, seconds in seen_at.items():
                text = record_text({"id": f"{worker}-{unique}", "seen_at": int(seconds * 1000), "jobs": {}})
                await proxy.set(f"{worker}-{unique}", HazelcastJsonValue(text))
            monkeypatch.setattr(time, "monotonic", lambda: clock + at)
            found = {worker.id for worker in (await lookout.look()).workers}
            monkeypatch.undo()
            return found & {ours, theirs}

        now = time.time()
        # The clock of one is an hour behind: nobody knows at first whether it lives.
        assert await living(0, ours=now, theirs=now - 3600) == {ours}
        assert await living(1, theirs=now - 3599) == {ours, theirs}
        assert await living(4.5) == {theirs}
        assert await living(7, ours=now + 1) == {ours}
        for worker in (ours, theirs):
            await proxy.delete(worker)


async def test_losses_are_acknowledged_for_one_submission(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        lookout = Observer(client.grid, name)
        (status,) = (await lookout.look()).jobs
        status.totals["lost"] = 7
        assert await acknowledge(client.grid, status) == {"lost": 7, "regressions": 0, "unkept": 0}
        assert (await lookout.look()).jobs[0].acknowledged == {"lost": 7, "regressions": 0, "unkept": 0}
        await client.cancel(name)
        await client.submit(scoring.job(name))
        assert (await lookout.look()).jobs[0].acknowledged == {}


async def test_rescans_that_wait_are_seen(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await scoring.until(lambda: is_running(client, name))
        await client.jobs.suspend(name)
        lookout = Observer(client.grid, name)
        await settled(lookout, lambda s: s.workers == 0)
        await rescan.request(client.grid, name, [3, 200], "audit")
        (status,) = (await lookout.look()).jobs
        assert [(each.partition, each.reason) for each in status.rescans] == [(3, "audit"), (200, "audit")]
        assert not is_well(examine([Look(0.0, status)]))
        await client.jobs.resume(name)
        await settled(lookout, lambda s: not s.rescans and s.workers == 1)


async def test_a_job_that_does_not_exist(cluster):
    async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
        with pytest.raises(JobError):
            await Observer(client.grid, "no-such-job").look()
        async with asyncio.timeout(20):
            assert isinstance((await Observer(client.grid).look()).jobs, list)
