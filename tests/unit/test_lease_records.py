"""Lease records: when an offset says something of the job as it is now."""

import pytest
from msgspec.structs import replace

from gridscore.group.lease_records import NOBODY, decode, encode, limits
from gridscore.job import JobRecord, JobState, parse_job

JOB = """\
job: payments
events: events.payments
schema: {amount: float}
features: {amount: amount}
model: payments
results: results.payments
"""


@pytest.mark.parametrize(
    ("offset", "run", "restarts", "begin", "begun"),
    [
        (-1, 0, 0, "", False),
        (0, 0, 0, "", True),
        (7, 0, 1, "latest", False),
        (7, 1, 1, "latest", True),
        (7, 1, 2, "oldest", False),
        # The job was seen before its last restart, the lease after it.
        (7, 2, 1, "oldest", True),
        # Restarts of an earlier submission are counted, and nothing is to begin elsewhere because of them.
        (7, 0, 3, "", True),
        (-1, 0, 3, "", False),
    ],
)
def test_an_offset_says_something_if_it_follows_the_last_restart(offset, run, restarts, begin, begun):
    job = JobRecord(parse_job(JOB, "test"), JobState.RUNNING, 4, "", "", "", restarts=restarts, begin=begin)
    assert replace(NOBODY, offset=offset, run=run).has_begun(job.begin, job.restarts) is begun


@pytest.mark.parametrize("name", ["epoch", "renewals", "lost", "unkept", "regressions", "rescans"])
def test_what_follows_a_count_that_is_taken_over_can_be_read(monkeypatch, name):
    now = 1_800_000_000
    monkeypatch.setattr("time.time", lambda: now)
    most = limits()[name]
    assert decode(encode(replace(NOBODY, **{name: most}))) == replace(NOBODY, **{name: most})
    with pytest.raises(ValueError, match=f"`{name}` is more than can have been counted"):
        decode(encode(replace(NOBODY, **{name: most + 1})))
    now += 1
    assert getattr(decode(encode(replace(NOBODY, **{name: most + 1}))), name) == most + 1
    now = 0  # a clock that was never set
    assert decode(encode(replace(NOBODY, epoch=1_800_000_000))).epoch == 1_800_000_000
