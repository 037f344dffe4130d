"""The judgement on a journal's capacity: seconds at the peak, and the capacity to configure."""

import pytest

from gridscore.grid.capacity import Capacity, Source
from gridscore.grid.doctor import Level
from gridscore.job import parse_job
from gridscore.scoring.preparation import judge, warnings

JOB = """\
job: payments
events: events.payments
schema: {amount: float}
features: {amount: amount}
model: payments
results: results.payments
"""


def job(**more):
    return parse_job(JOB + "".join(f"{key}: {value}\n" for key, value in more.items()), "test")


def capacity(total=1_000_000, source=Source.CONFIGURED):
    return Capacity(total // 271, 271, source)


def test_a_journal_that_lasts_is_well():
    found = judge(job(), 10_000, capacity())
    assert found.level is Level.OK
    assert "999,990 entries, 3,690 in each of 271 partitions: 100 s at the peak of 10,000 events/s" in found.detail


def test_one_that_does_not_last_is_told_with_the_capacity_to_configure():
    found = judge(job(), 100_000, capacity())
    assert found.level is Level.WARN
    assert "10.0 s at the peak" in found.detail or "10 s at the peak" in found.detail
    assert "less than its headroom of 30 s" in found.detail
    assert "capacity: 3100000" in found.advice


@pytest.mark.parametrize("rate", [1_000, 33_334, 99_999, 1_234_567])
def test_the_capacity_that_is_advised_is_enough(rate):
    found = judge(job(), rate, capacity(271))
    advised = int(found.advice.split("capacity: ")[1].split("}")[0])
    assert judge(job(), rate, capacity(advised)).level is Level.OK


def test_removals_take_room_too():
    assert judge(job(), 20_000, capacity()).level is Level.OK
    found = judge(job(retain="1h"), 20_000, capacity())
    assert found.level is Level.WARN
    assert "25 s at the peak" in found.detail


def test_headroom_is_the_jobs():
    assert judge(job(headroom="2m"), 10_000, capacity()).level is Level.WARN


def test_what_is_only_seen_is_said_to_seem():
    assert "seems to hold" in judge(job(), 10_000, capacity(source=Source.SEEN)).detail


async def test_a_job_without_a_peak_is_not_judged():
    assert await warnings(None, job()) == []
