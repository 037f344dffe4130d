"""Clusters whose configuration knows nothing of us: what their maps need is added while they run."""

import asyncio

import pytest
import yaml
from scoring import JOB, all_results, booster, command, customers, events, expected_rows, job, predict, scoring, until

from gridscore.client import connect
from gridscore.errors import JournalMissingError
from gridscore.grid import management
from gridscore.grid.doctor import Level, Needs, examine
from gridscore.grid.journal import Journal
from gridscore.grid.management import ask_members
from gridscore.grid.member import Cluster
from gridscore.job import parse_job
from gridscore.scoring import Worker
from gridscore.scoring.preparation import additions, prepare

versions = pytest.mark.parametrize("bare", ["5.6.0", "5.7.0"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The configuration of members as somebody else runs them."""
    config = tmp_path_factory.mktemp("bare") / "hazelcast.yaml"
    theirs = {"properties": {"hazelcast.phone.home.enabled": False}, "map": {"other.*": {"time-to-live-seconds": 60}}}
    config.write_text(yaml.safe_dump({"hazelcast": theirs}))
    return config


@pytest.fixture(scope="module", params=["5.7.0"])
def bare(request, theirs):
    with Cluster.start(members=2, port=0, heap="512m", config=theirs, version=request.param) as cluster:
        yield cluster


async def journalled(client, name):
    """Entries that the journal of a map holds."""
    journal = Journal(client.grid, name)
    bounds = await asyncio.gather(*(journal.bounds(each) for each in range(client.grid.partition_count)))
    return sum(newest - oldest + 1 for oldest, newest in bounds)


@versions
async def test_a_job_is_scored_on_a_cluster_that_was_not_configured_for_it(bare, unique):
    name = f"job-{unique}"
    model = booster()
    async with connect(members=bare.addresses, cluster_name=bare.cluster_name) as client:
        # Who looks before it is there must not spoil it: a map is made, as it is configured then, by what names it.
        for _ in range(2):
            with pytest.raises(JournalMissingError, match="gridscore prepare"):
                await Journal(client.grid, f"events.{name}").bounds(0)
        assert await (await client.grid.map(f"lookups.{name}")).size() == 0
        await client.put_events(f"lookups.{name}", customers())
        await client.push_model(model, name, alias="champion")
        await client.submit(job(name))
        async with Worker(client.grid, [name]):
            put = events(500)
            await client.put_events(f"events.{name}", put)
            results = await all_results(client, name, 500)
        expected = predict(model, expected_rows(put.values()))
        assert [results[key]["score"] for key in put] == pytest.approx(expected.tolist(), abs=0)
        assert await journalled(client, f"events.{name}") == await journalled(client, f"results.{name}") == 500
        found = await examine(client.grid, Needs(f"events.{name}", f"results.{name}"))
        assert {each.what for each in found if each.level is Level.FAIL} == set()


@versions
async def test_members_that_join_later_have_it_too(bare, unique):
    name = f"job-{unique}"
    async with connect(members=bare.addresses, cluster_name=bare.cluster_name) as client:
        added = await prepare(client.grid, job(name))
        assert {f"events.{name}", f"results.{name}"} <= {each.config.pattern for each in added}
        bare.kill(1)
        await until(lambda: len(client.grid.members) == 1)
        bare.restart(1)
        await until(lambda: len(client.grid.members) == 2)

        async def configured():
            reports = await ask_members(client.grid)
            return [r.config and r.config.map(f"events.{name}").journal_capacity for r in reports] == [1_000_000] * 2

        await until(configured)
        await client.put_events(f"events.{name}", events(500))
        assert await journalled(client, f"events.{name}") == 500


async def test_what_a_worker_finds_missing_it_adds_and_asks_once_for_the_configuration(bare, unique, monkeypatch):
    name, asked, ask = f"job-{unique}", [], management._config
    monkeypatch.setattr(management, "_config", lambda *of: asked.append(of) or ask(*of))
    async with connect(members=bare.addresses, cluster_name=bare.cluster_name) as client:
        await client.put_events(f"lookups.{name}", customers())
        await client.push_model(booster(), name, alias="champion")
        await client.jobs.submit(job(name))  # as a cluster has it that kept its records and forgot its configuration
        async with Worker(client.grid, [name]) as worker:
            asked.clear()
            await until(lambda: name in worker.runners and worker.runners[name].is_scoring)
            await until(lambda: worker.runners[name].group.early_events == 1_000_000 // 271 // 2)
            assert len(asked) == 1
            await client.put_events(f"events.{name}", events(100))
            assert len(await all_results(client, name, 100)) == 100


async def test_what_a_full_restart_forgets_is_missed_and_added_again(theirs, unique, tmp_path):
    """By `submit`, and by a worker that has been running all the time, for a job that a restored cluster has."""
    name, file = f"job-{unique}", tmp_path / "job.yaml"
    file.write_text(JOB.format(name=name, mode="copy"))
    with Cluster.start(members=1, port=0, heap="512m", config=theirs, register=False) as own:

        async def put_lookups_and_model(client):
            await client.put_events(f"lookups.{name}", customers())
            await client.push_model(booster(), name, alias="champion")

        async def restart_all(worker):
            own.kill(0)
            await asyncio.to_thread(own.restart, 0)
            await until(lambda: not worker.runners)

        async with scoring(own, name) as (client, worker):
            await client.put_events(f"events.{name}", events(100))
            assert len(await all_results(client, name, 100)) == 100
            for submit_again in (
                lambda: command(own, "submit", str(file)),
                lambda: client.jobs.submit(job(name)),  # as `restore` does: it prepares nothing
            ):
                await restart_all(worker)
                told = " ".join((await command(own, "doctor", "--job", str(file))).stdout.split())
                assert f"events.{name}: no event journal (configured by `default`)" in told
                assert "`gridscore prepare JOB_FILE` adds one" in told
                await put_lookups_and_model(client)
                await submit_again()
                await until(lambda: name in worker.runners and worker.runners[name].is_scoring)
                await client.put_events(f"events.{name}", events(100))
                assert len(await all_results(client, name, 100)) == 100
                assert await journalled(client, f"events.{name}") == await journalled(client, f"results.{name}") == 100


async def test_a_capacity_follows_from_the_peak_rate(bare, unique):
    file = f"job: p-{unique}\nevents: events.p-{unique}\nschema: {{a: float}}\nfeatures: {{a: a}}\nmodel: {{name: m}}\n"
    fast = parse_job(f"{file}results: results.p-{unique}\npeak_rate: 50_000\nheadroom: 60s\n", "test")
    async with connect(members=bare.addresses, cluster_name=bare.cluster_name) as client:
        found = {each.config.pattern: each.config.journal_capacity for each in await additions(client.grid, fast)}
        assert found[f"events.p-{unique}"] == found[f"results.p-{unique}"] == 3_100_000
        # None of it was added, and no map was made.
        assert await additions(client.grid, fast) == await additions(client.grid, fast) != []


async def test_the_command_says_what_it_adds_and_what_comes_too_late(bare, unique, tmp_path):
    file = tmp_path / "job.yaml"
    name = f"job-{unique}"
    file.write_text(JOB.format(name=name, mode="copy"))
    shown = await command(bare, "prepare", str(file), "--dry-run")
    assert f"Would add events.{name}: a journal of 1,000,000 entries (95 MB to 477 MB once it is full)" in shown.stdout
    assert "now: no journal (`default`)" in shown.stdout
    assert f"Added results.{name}: a journal" in (await command(bare, "prepare", str(file))).stdout
    assert (await command(bare, "prepare", str(file))).stdout == f"The maps of {name} have what they need.\n"

    late = f"late-{unique}"
    async with connect(members=bare.addresses, cluster_name=bare.cluster_name) as client:
        await client.put_events(f"events.{late}", {"a": {"amount": 1.0}})
    file.write_text(JOB.format(name=late, mode="copy"))
    for words in (["prepare", str(file)], ["prepare", str(file), "--dry-run"], ["submit", str(file)]):
        refused = await command(bare, *words)
        assert isinstance(refused.exception, JournalMissingError)
        assert "exists already, without an event journal" in refused.exception.message
