"""The audit: what has no result is found, told from what waits and what is a dead letter, and scored."""

import asyncio
import json

import pytest
import scoring
from hazelcast.errors import HazelcastError

from gridscore.grid import connect, transport
from gridscore.grid.records import Records
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.scoring import antijoin, audit
from gridscore.scoring.audit import AUDITS_MAP


async def settled(client, name):
    """Once the offsets are committed."""
    return await scoring.until(lambda: _caught_up(client, name))


async def _caught_up(client, name):
    found = await audit.audit(client.grid, await client.jobs.get(name), repair=False, patience=0)
    return found.waiting == 0


async def take_away(client, name, keys):
    results = await client.grid.map(f"results.{name}")
    for key in keys:
        await results.delete(key)


async def test_missing_results_are_found_by_sql_and_scored(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        events = scoring.events(300)
        await client.put_events(f"events.{name}", events)
        before = await scoring.all_results(client, name, 300)
        lost = ["e3", "e77", "e299"]
        await take_away(client, name, lost)
        record = await client.jobs.get(name)

        found = await audit.audit(client.grid, record, repair=False)
        assert (found.way, found.events, found.results) == ("sql", 300, 297)
        assert (found.missing, found.scored, found.left, found.waiting) == (3, 0, 3, 0)
        assert sorted(found.examples) == sorted(lost)

        said = []
        found = await audit.audit(client.grid, record, progress=lambda *step: said.append(step))
        assert (found.missing, found.scored, found.left) == (3, 3, 0)
        assert ("scoring what was missing", 0, 3) in said
        after = await scoring.all_results(client, name, 300)
        assert {key: value["score"] for key, value in after.items()} == {k: v["score"] for k, v in before.items()}
        assert not [row for row in await mappings(client) if row.startswith("gridscore_audit")]


async def mappings(client):
    rows = await client.grid.client.sql.execute("SHOW MAPPINGS")
    return [row.get_object_with_index(0) async for row in rows]


async def test_dead_letters_are_not_missing(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(20) | {"bad": {"amount": "much", "user": "u1"}})
        await scoring.all_results(client, name, 20)
        await settled(client, name)
        found = await audit.audit(client.grid, await client.jobs.get(name))
        assert (found.missing, found.dead_letters) == (0, 1)


async def test_what_waits_in_the_journal_is_not_missing(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, worker):
        await client.put_events(f"events.{name}", scoring.events(20))
        await scoring.all_results(client, name, 20)
        await client.jobs.suspend(name)
        await scoring.until(lambda: not worker.runners)
        await client.put_events(f"events.{name}", scoring.events(30, 20))
        found = await audit.audit(client.grid, await client.jobs.get(name))
        assert (found.missing, found.waiting, found.events) == (0, 30, 50)


@pytest.mark.parametrize("form", [0, 1], ids=["Integer", "Long"])
async def test_whole_numbers_as_keys(cluster, unique, form):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        writer, grid = MapWriter(client.grid, f"events.{name}"), client.grid
        for number, event in enumerate(scoring.events(10).values()):
            key = transport.key_forms(grid.client, number)[form]
            await writer.put_partition(partition_of(key, grid.partition_count), [key], [json.dumps(event).encode()])
        results = await grid.map(f"results.{name}")
        await scoring.until(lambda: _has(results, 10))
        await results.clear()
        found = await audit.audit(grid, await client.jobs.get(name))
        assert (found.way, found.missing, found.scored) == ("sql", 10, 10)
        assert set(found.examples) == {str(number) for number in range(10)}


async def _has(proxy, count):
    return await proxy.size() == count


async def test_keys_of_mixed_types_are_walked(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(200))
        await MapWriter(client.grid, f"events.{name}").put([(7, b'{"amount": 1.0, "user": "u1"}')])
        await scoring.all_results(client, name, 201)
        await take_away(client, name, ["e3", 7])
        found = await audit.audit(client.grid, await client.jobs.get(name))
        assert (found.way, found.why) == ("scan", "keys are of mixed types")
        assert (found.missing, found.scored) == (2, 2)


async def test_a_cluster_without_sql_is_walked(cluster, unique, monkeypatch):
    async def no_sql(*_arguments):
        raise HazelcastError("hazelcast-sql is not in the classpath")

    monkeypatch.setattr(antijoin, "_execute", no_sql)
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(20))
        await scoring.all_results(client, name, 20)
        await take_away(client, name, ["e3"])
        found = await audit.audit(client.grid, await client.jobs.get(name))
        assert found.way == "scan"
        assert "hazelcast-sql is not in the classpath" in found.why
        assert (found.missing, found.scored) == (1, 1)


async def test_a_job_that_began_at_the_latest_event_is_repaired_only_when_asked(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(20))
        await scoring.all_results(client, name, 20)
        await take_away(client, name, ["e3"])
        await client.submit(scoring.job(name).model_copy(update={"start": "latest"}), update=True)
        record = await client.jobs.get(name)
        found = await audit.audit(client.grid, record)
        assert (found.missing, found.scored) == (1, 0)
        found = await audit.audit(client.grid, record, repair=True)
        assert (found.missing, found.scored) == (1, 1)


async def test_one_worker_of_a_group_audits_on_schedule(cluster, unique):
    name = f"job-{unique}"
    async with scoring.scoring(cluster, name) as (client, _):
        await client.put_events(f"events.{name}", scoring.events(50))
        await scoring.all_results(client, name, 50)
        job = scoring.job(name).model_copy(update={"audit": "1s"})
        tasks = [asyncio.create_task(audit.audit_on_schedule(client.grid, job, f"w{n}")) for n in range(3)]
        records = Records(client.grid, AUDITS_MAP)
        try:
            await take_away(client, name, ["e3", "e4"])
            await scoring.all_results(client, name, 50)
            found = await scoring.until(lambda: _audited(records, name))
            assert found["by"] in ("w0", "w1", "w2")
            assert (found["way"], found["events"], found["error"]) == ("sql", 50, "")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _audited(records, name):
    record = await records.get(name)
    return record.value if record is not None and "last_at" in record.value else None


async def test_a_job_that_is_never_audited_has_no_schedule(unique):
    job = scoring.job(unique).model_copy(update={"audit": "off"})
    await audit.audit_on_schedule(None, job, "worker")


async def test_an_audit_that_fails_is_noted(grid_settings, unique):
    async with await connect(grid_settings) as grid:
        outcome = await audit._outcome(grid, scoring.job(f"job-{unique}"))
        assert "There is no job" in outcome["error"]
