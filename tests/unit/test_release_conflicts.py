"""Operators and workers that change a job and its model at the same time, or stop in between: the pair stays a pair."""

import asyncio

import pytest
from test_bad_records import JOB, put_raw, text
from test_stub_grid import booster

from gridscore.client import Client
from gridscore.errors import ConflictError, GridError, JobError, ModelError
from gridscore.grid import transport
from gridscore.job import JobState, parse_job
from gridscore.job.life import JOBS_MAP
from gridscore.models import Registry
from gridscore.scoring.live_model import LiveModel
from gridscore.scoring.stats import JobStats
from gridscore.testing import StubCluster


def job(divisor):
    return parse_job(JOB.replace("amount / 100", f"amount / {divisor}"), "test")


async def killed(*_arguments, **_options):
    raise GridError("killed")


@pytest.fixture
async def stub():
    async with StubCluster(partitions=5) as made:
        yield made


@pytest.fixture
async def client(stub):
    """Revision 1 of the job scores with version 1, and versions 2 and 3 are there."""
    client = await stub.client()
    for rounds in (5, 6, 7):
        await client.push_model(booster(rounds), "payments", alias="champion" if rounds == 5 else None)
    await client.submit(job(100))
    return client


async def live(client):
    """Revision, version that scores, and version where the alias is."""
    record = await client.jobs.get("payments")
    version = (await client.version_of(record.job, record.release)).version
    return record.revision, version, (await client.models.resolve("payments")).version


async def interrupted(client, monkeypatch, divisor, version):
    """An update that is killed between the two records."""
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "complete", killed)
        with pytest.raises(GridError, match="killed"):
            await client.submit(job(divisor), update=True, version=version)
    return await client.jobs.get("payments")


def model_of(client, record):
    return LiveModel(client.grid, record, {}, JobStats())


async def test_a_release_that_comes_late_does_not_undo_the_next(stub, client, monkeypatch):
    slow, committed, go_on = Client(await stub.connect("slow")), asyncio.Event(), asyncio.Event()
    complete = Registry.complete

    async def late(registry, *arguments, **options):
        if registry._records._grid is slow.grid:
            committed.set()
            await go_on.wait()
        return await complete(registry, *arguments, **options)

    monkeypatch.setattr(Registry, "complete", late)
    first = asyncio.create_task(slow.submit(job(10), update=True, version=2))
    await committed.wait()
    second = await client.submit(job(20), update=True, version=3)
    go_on.set()
    assert ((await first).revision, second.revision) == (2, 3)
    assert await live(client) == (3, 3, 3)
    assert (second.previous.spec, second.previous.version) == (job(10).to_json(), 2)
    await client.rollback("payments")
    assert await live(client) == (4, 2, 2)


@pytest.mark.parametrize("version", [None, 3])
async def test_who_decided_on_a_job_that_has_been_replaced_since_is_refused(stub, client, version):
    other, at, go_on = Client(await stub.connect("other")), asyncio.Event(), asyncio.Event()
    submit = other.jobs.submit

    async def late(*arguments, **options):
        at.set()
        await go_on.wait()
        return await submit(*arguments, **options)

    other.jobs.submit = late
    second = asyncio.create_task(other.submit(job(20), update=True, version=version))
    await at.wait()
    first = await client.submit(job(10), update=True, version=2)
    go_on.set()
    with pytest.raises(JobError, match=r"Somebody else has changed the job `payments` at the same time: nothing was"):
        await second
    assert await client.jobs.get("payments") == first
    assert await live(client) == (2, 2, 2)


async def test_a_commit_that_was_not_answered_is_found_again(client, monkeypatch):
    replace = client.jobs._records.replace

    async def unanswered(record, value):
        found = await replace(record, value)
        monkeypatch.undo()
        await client.jobs.mark(await client.jobs.get("payments"), JobState.STARTING)
        raise ConflictError(str(found))

    monkeypatch.setattr(client.jobs._records, "replace", unanswered)
    record = await client.submit(job(10), update=True, version=2)
    assert (record.revision, record.state) == (2, JobState.STARTING)
    assert await live(client) == (2, 2, 2)


async def test_a_release_that_an_operator_overtakes_says_so(client, monkeypatch):
    submit = client.jobs.submit

    async def overtaken(*arguments, **options):
        await client.promote_model("payments", 3)
        return await submit(*arguments, **options)

    monkeypatch.setattr(client.jobs, "submit", overtaken)
    with pytest.raises(ModelError, match=r"moved the alias `champion` .* version 2 is not live, but the job"):
        await client.submit(job(10), update=True, version=2)
    assert await live(client) == (2, 3, 3)


async def test_a_worker_that_was_paused_does_not_undo_a_rollback(client, monkeypatch):
    record = await interrupted(client, monkeypatch, 10, 2)
    worker = model_of(client, record)
    await worker.start()
    assert (worker.active.model.version.version, await live(client)) == (2, (2, 2, 1))
    await client.rollback("payments")
    assert await live(client) == (3, 1, 1)
    await worker._exchange()
    # Nor if it has looked at the job before the rollback, and goes on after it.
    assert await client.models.complete("payments", "champion", record.release)
    assert await live(client) == (3, 1, 1)
    await client.rollback("payments")
    assert await live(client) == (4, 2, 2)
    await worker.close()


async def test_an_interrupted_release_is_what_the_next_update_goes_on_from(client, monkeypatch):
    await interrupted(client, monkeypatch, 10, 2)
    await client.submit(job(20), update=True)
    assert await live(client) == (3, 2, 2)


async def test_a_worker_that_starts_does_not_take_the_model_of_the_next_revision(client, monkeypatch):
    record = await client.jobs.get("payments")
    await client.submit(job(10), update=True, version=2)
    looked, is_current = asyncio.Event(), LiveModel._is_current

    async def look(model):
        found = await is_current(model)
        looked.set()
        return found

    monkeypatch.setattr(LiveModel, "_is_current", look)
    worker = model_of(client, record)
    starting = asyncio.create_task(worker.start())
    async with asyncio.timeout(10):
        for _ in range(2):
            await looked.wait()
            looked.clear()
    assert not starting.done()
    starting.cancel()
    await asyncio.wait([starting])
    await worker.close()


async def test_a_job_that_failed_goes_on_with_the_release_that_was_interrupted(client, monkeypatch):
    record = await interrupted(client, monkeypatch, 10, 2)
    await client.jobs.mark(record, JobState.FAILED, "lookup too large")
    again = await client.submit(job(10))
    assert again.previous == record.previous
    assert await live(client) == (3, 2, 2)
    await client.rollback("payments")
    assert await live(client) == (4, 1, 1)


@pytest.mark.parametrize("divisor", [100, 10])
async def test_a_job_that_failed_goes_on_from_where_it_was_to_begin(client, divisor):
    record = await client.jobs.restart("payments", "latest")
    await client.jobs.mark(record, JobState.FAILED, "lookup too large")
    again = await client.submit(job(divisor), update=True)
    assert (again.restarts, again.begin, again.begins_late) == (1, "latest", True)
    await client.jobs.cancel("payments")
    assert (await client.submit(job(divisor))).begin == ""


async def test_a_good_job_that_has_replaced_a_bad_one_is_not_removed(client, monkeypatch):
    good = (await client.jobs._records.get("payments")).raw
    key = transport.key_data(client.grid.client, "payments")
    await put_raw(client.grid, JOBS_MAP, key, text("{}"))
    get = client.jobs._records.get

    async def repaired(name):
        found = await get(name)
        monkeypatch.undo()
        await put_raw(client.grid, JOBS_MAP, key, text(good))
        return found

    monkeypatch.setattr(client.jobs._records, "get", repaired)
    with pytest.raises(JobError, match=r"Somebody else has changed the job `payments` at the same time\."):
        await client.jobs.cancel("payments")
    assert (await client.jobs.get("payments")).state is JobState.WAITING
    assert (await client.jobs.cancel("payments")).state is JobState.CANCELLED
