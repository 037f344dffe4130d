"""What commands say of windows, and of a job that is not in the state that was asked for."""

import json
from contextlib import asynccontextmanager

import pytest
from hazelcast.errors import TargetDisconnectedError
from test_stub_grid import booster
from typer.testing import CliRunner

from gridscore.cli import _commands, jobs, options
from gridscore.errors import JobError, TableError, UsageError
from gridscore.job import JobState, parse_job
from gridscore.operations import window_load
from gridscore.testing import StubCluster

JOB = """\
job: payments
events: events.payments
event_key: card
order_by: time
schema: {card: int, amount: float, time: timestamp}
windows: {card: card}
features: {share: 'sum(amount, card, "1h")'}
model: {name: payments, alias: champion}
results: results.payments
"""
HISTORY = '{"card": 7, "amount": 1, "time": "2026-01-31T12:00:00Z"}\n' * 2


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command on a cluster where the job is in a state, or not there; returns how it has ended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "history.jsonl").write_text(HISTORY)

    def go(state, *words):
        @asynccontextmanager
        async def connected(_):
            async with StubCluster(partitions=5) as stub:
                client = await stub.client()
                await client.push_model(booster(2), "payments", alias="champion")
                if state is not None:
                    await client.jobs.mark(await client.submit(parse_job(JOB, "test")), state)
                yield client.grid

        monkeypatch.setattr(options, "connected", connected)
        return CliRunner().invoke(_commands(words[0]), list(words))

    return go


LOAD = "`gridscore state load payments HISTORY`, `gridscore resume payments`."
BEGIN = f"Its windows begin empty. Fill them: `gridscore suspend payments`, {LOAD}"


@pytest.mark.parametrize(
    ("state", "words", "said"),
    [
        (None, (), BEGIN),
        (None, ("--suspended",), f"Its windows begin empty. Fill them: {LOAD}"),
        (JobState.CANCELLED, (), BEGIN),
        (JobState.FAILED, (), "Workers pick it up within a second: `gridscore jobs`."),
        (JobState.RUNNING, ("--suspended",), "It goes on: `gridscore suspend payments` suspends it."),
    ],
)
def test_submit_says_whether_windows_are_empty_and_what_goes_on(command, state, words, said):
    done = command(state, "submit", "job.yaml", *words)
    assert done.exit_code == 0, done.output
    assert " ".join(done.stdout.split()).endswith(said)


def test_states_of_an_entity_whose_key_is_a_number_are_counted_as_they_are_written(command):
    done = command(JobState.WAITING, "state", "load", "payments", "history.jsonl", "--until", "2026-01-31T12:00:00.5Z")
    assert done.exit_code == 0, done.output
    assert "payments: 2 states (2 new) are in the grid, of 2 rows" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("state", "way"),
    [(JobState.RUNNING, "`gridscore suspend payments`, load"), (JobState.FAILED, "Submit it again with --suspended")],
)
def test_load_says_the_way_to_a_job_that_can_be_loaded(command, state, way):
    refused = command(state, "state", "load", "payments", "history.jsonl").exception
    assert isinstance(refused, JobError)
    assert way in refused.hint


def test_a_day_without_a_time_is_answered_with_what_can_be_written(command):
    refused = command(JobState.WAITING, "state", "load", "payments", "history.jsonl", "--until", "2026-01-31").exception
    assert isinstance(refused, UsageError)
    assert refused.hint.startswith("Write 2026-01-31T00:00:00Z ")


def test_submit_with_a_history_fills_the_windows_and_lets_the_job_score(command):
    done = command(None, "submit", "job.yaml", "--history", "history.jsonl")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "Job payments submitted: WAITING, revision 1. 2 states (2 new) are in the grid, of 2 rows" in said
    assert said.endswith("Workers pick it up within a second: `gridscore jobs`.")
    value = json.loads(command(JobState.SUSPENDED, "submit", "job.yaml", "--history", "history.jsonl", "--json").stdout)
    assert (value["state"], value["changed"], value["loaded"]["written"]) == ("SUSPENDED", False, 2)  # as it was
    value = json.loads(command(JobState.WAITING, "submit", "job.yaml", "--history", "history.jsonl", "--json").stdout)
    assert (value["state"], value["loaded"]["states"]) == ("WAITING", 2)


STAYS = f"suspended, its windows not filled. Once that is mended: {LOAD}"


def test_a_job_whose_history_cannot_be_used_stays_suspended_and_the_way_on_is_told(command, tmp_path, monkeypatch):
    monkeypatch.setattr(window_load, "_CHUNK", 2)
    (tmp_path / "history.jsonl").write_text(HISTORY + '{"card": "x"}\n')
    done = command(None, "submit", "job.yaml", "--history", "history.jsonl")
    assert isinstance(done.exception, TableError)
    assert STAYS in " ".join(done.stderr.split())


def test_the_way_on_is_told_whatever_has_ended_the_load(command, monkeypatch):
    async def fill(*_args):
        raise TargetDisconnectedError("gone")

    monkeypatch.setattr(jobs, "fill", fill)
    done = command(JobState.RUNNING, "submit", "job.yaml", "--history", "history.jsonl")
    assert done.exit_code != 0
    assert STAYS in " ".join(done.stderr.split())


@pytest.mark.parametrize("rows", ['{"card": "x"}\n', HISTORY + HISTORY.replace("2026", "2025")])
def test_a_history_that_begins_wrong_is_refused_before_the_job_is_suspended(command, tmp_path, rows):
    (tmp_path / "history.jsonl").write_text(rows)
    done = command(JobState.RUNNING, "submit", "job.yaml", "--history", "history.jsonl")
    assert isinstance(done.exception, TableError)
    assert "suspended" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--until", "2026-01-31T00:00:00Z"), "--until says how far a history counts."),
        (("--history", "nothing.csv"), "`nothing.csv` is not a file."),
    ],
)
def test_options_of_a_history_that_say_nothing_are_refused(command, words, said):
    refused = command(None, "submit", "job.yaml", *words).exception
    assert isinstance(refused, UsageError)
    assert refused.message == said
