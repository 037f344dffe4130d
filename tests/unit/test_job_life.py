"""What becomes of a job's record: when it failed, when it goes back, and when an older version has written it."""

from dataclasses import replace

import pytest
from test_bad_records import JOB, submitted

from gridscore.cli.jobs import when_it_scores
from gridscore.errors import JobError, JobFileError
from gridscore.grid import Records
from gridscore.job import JobState, parse_job
from gridscore.job.life import JOBS_MAP
from gridscore.testing import StubCluster

OTHER = JOB.replace("amount / 100", "amount / 50")


@pytest.fixture
async def client():
    async with StubCluster(partitions=5) as stub:
        yield await submitted(stub)


async def failed(client):
    await client.jobs.mark(await client.jobs.get("payments"), JobState.FAILED, "boom")


async def test_a_job_that_failed_after_an_update_goes_back_and_runs(client):
    before = await client.jobs.restart("payments", "oldest")
    await client.submit(parse_job(OTHER, "test"), update=True)
    await failed(client)
    record = await client.rollback("payments")
    assert (record.state, record.error, record.job) == (JobState.WAITING, "", before.job)
    assert (record.submitted_at, record.begin, record.restarts) == (before.submitted_at, "oldest", 1)
    assert (await client.rollback("payments")).job == parse_job(OTHER, "test")


async def test_a_failed_job_that_is_submitted_keeps_what_its_offsets_are_about(client):
    before = await client.jobs.get("payments")
    await failed(client)
    elsewhere = parse_job(JOB.replace("events.payments", "events.refunds"), "test")
    await client.put_events("events.refunds", {"a": {"amount": 1}})
    with pytest.raises(JobError, match="its offsets would mean nothing there"):
        await client.submit(elsewhere)
    with pytest.raises(JobError, match="its offsets would mean nothing there"):
        await client.submit(elsewhere, version=1)
    record = await client.submit(parse_job(JOB, "test"))
    assert record == replace(before, revision=2, updated_at=record.updated_at)
    await failed(client)
    record = await client.submit(parse_job(OTHER, "test"))
    assert (record.state, record.revision, record.submitted_at) == (JobState.WAITING, 3, before.submitted_at)
    assert record.previous.spec == before.job.to_json()


async def test_where_a_job_cannot_go_back_the_commands_that_help_are_said(client):
    with pytest.raises(JobError, match="nothing to go back to") as raised:
        await client.rollback("payments")
    assert "`gridscore submit FILE --update`" in raised.value.hint
    assert "`gridscore model promote payments --version N`" in raised.value.hint
    await client.submit(parse_job(OTHER, "test"), update=True)
    await client.cancel("payments")
    with pytest.raises(JobError, match="CANCELLED: it cannot go back") as raised:
        await client.rollback("payments")
    assert "`gridscore submit FILE`" in raised.value.hint


async def test_a_suspended_job_is_not_said_to_score_soon(client):
    await client.jobs.suspend("payments")
    record = await client.submit(parse_job(OTHER, "test"), update=True)
    assert record.state is JobState.SUSPENDED
    assert when_it_scores(record.in_brief, "Soon.") == "\nIt is suspended: `gridscore resume payments` starts it."
    record = await client.jobs.resume("payments")
    assert when_it_scores(record.in_brief, "Soon.") == "\nSoon."


@pytest.mark.parametrize(
    ("written", "error", "state"),
    [("NOT_RUNNING", "", JobState.WAITING), ("FAILED", "cancelled by a user", JobState.CANCELLED)],
)
async def test_a_record_of_an_older_version_says_what_it_meant(client, written, error, state):
    records = client.jobs._records
    record = await records.get("payments")
    await records.replace(record, {**record.value, "state": written, "error": error})
    (found,) = await client.jobs.all()
    assert (found.state, found.error) == (state, "")
    if state is JobState.CANCELLED:
        with pytest.raises(JobError, match="is CANCELLED: it cannot resume"):
            await client.jobs.resume("payments")
        await client.cancel("payments")
    assert (await client.submit(parse_job(OTHER, "test"), update=True)).state is JobState.WAITING


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "tape", "to": "events.payments", "reel": 3},
        {"kind": "logfile", "path": ["x"], "to": "e", "newer": True},
    ],
)
async def test_a_job_with_a_plug_that_is_not_installed_here_is_none_the_worse_for_it(client, entry):
    # Given a job that was submitted where that kind, or that option of it, is known
    records = Records(client.grid, JOBS_MAP)

    def with_source(value):
        return value | {"spec": value["spec"] | {"sources": {"other": entry}}}

    await records.update("payments", with_source)
    # Then it can be read, run and written here, and what is not known stays as it was
    record = await client.jobs.get("payments")
    assert record.job.to_json()["sources"] == {"other": entry}
    await client.jobs.suspend("payments")
    assert (await records.get("payments")).value["spec"]["sources"] == {"other": entry}
    # But nobody submits what nobody here can check.
    with pytest.raises(JobFileError, match="is not a kind of source"):
        parse_job(f"{JOB}sources: {{other: {{kind: tape}}}}\n", "test")
