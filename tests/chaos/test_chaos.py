"""What is promised holds while workers and members are killed, paused and cut off; shown from outside.

A short form runs always: a few faults of each kind, in two minutes or so. The full form, 500,000 events and 55 faults,
takes ten: `pytest tests/chaos -m full`. Every run prints its seed; GRIDSCORE_SEED repeats one.
"""

import json

import pytest
from servers import not_here

from gridscore.errors import MemberError
from gridscore.proving.soak.plan import Counts
from gridscore.proving.soak.trial import SoakOptions, run_soak

# Its worker faults come within ten seconds of each other, and the member's death among them.
SHORT_SEED = 20
SHORT = {"events": 40_000, "rate": 1_000.0, "heap": "512m"}
SHORT_COUNTS = Counts(
    worker_kills=3,
    pauses=1,
    leaves=1,
    member_kills=1,
    cuts=1,
    holds=1,
    pause_holds=1,
    member_pauses=1,
    member_cuts=1,
    pause_cuts=1,
    heir_kills=1,
    both_kills=1,
)


def _tell(_status, line):
    if line is not None:
        print(line)  # noqa: T201 -- pytest shows it if the test fails


async def soak(seed, folder, **options):
    print(f"GRIDSCORE_SEED={seed}")  # noqa: T201
    try:
        report = await run_soak(SoakOptions(seed=seed, folder=folder, **options), _tell)
    except MemberError as error:
        not_here(f"no member: {error}")
    print(json.dumps(report.to_json(), indent=1, default=str))  # noqa: T201
    return report


def judge(report, counts, events):
    verdict = report.verdict
    assert report.verdict.problems == [], report.examples()
    assert verdict.acknowledged >= events
    assert report.done == {
        "worker-kill": counts.worker_kills,
        "pause": counts.pauses,
        "leave": counts.leaves,
        "member-kill": counts.member_kills,
        "cut": counts.cuts,
        "hold": counts.holds,
        "pause-hold": counts.pause_holds,
        "member-pause": counts.member_pauses,
        "member-cut": counts.member_cuts,
        "pause-cut": counts.pause_cuts,
        "heir-kill": counts.heir_kills,
        "both-kill": counts.both_kills,
    }
    assert (verdict.lost.count, verdict.wrong.count, verdict.late.count) == (0, 0, 0)
    # The evidence is whole: every write was recorded, and the listener was there.
    assert verdict.gaps == 0
    assert verdict.writes >= verdict.acknowledged
    assert verdict.notices >= verdict.acknowledged // 2


@pytest.mark.timeout(900)
async def test_nothing_is_lost_wrong_or_late_under_a_few_faults_of_each_kind(given_seed, tmp_path):
    seed = SHORT_SEED if given_seed is None else given_seed
    report = await soak(seed, tmp_path / "soak", counts=SHORT_COUNTS, **SHORT)
    if report.verdict.splits:
        # A member that stood still for ten seconds splits an open-source cluster, which loses entries as it joins.
        report = await soak(seed, tmp_path / "again", counts=SHORT_COUNTS, **SHORT)
    judge(report, SHORT_COUNTS, SHORT["events"])


@pytest.mark.full
@pytest.mark.timeout(2_400)
async def test_nothing_is_lost_wrong_or_late_in_half_a_million_events(given_seed, tmp_path):
    counts = Counts()
    report = await soak(12 if given_seed is None else given_seed, tmp_path / "soak", counts=counts)
    judge(report, counts, 500_000)
