"""A plan of faults, and the events, are the same for a seed, and keep the rules that make a verdict possible."""

import itertools

import pytest

from gridscore.errors import UsageError
from gridscore.proving.soak.plan import HEARTBEAT_SECONDS, KINDS, Counts, Plan
from gridscore.proving.soak.workload import UPDATE_DISTANCE, block, customers, event


def plan(seed=1, counts=None, **changes):
    given = {"seconds": 300.0, "lease": 5.0, "workers": 4, "members": 3, **changes}
    return Plan.make(seed, counts or Counts(), **given)


def test_a_seed_gives_one_plan():
    assert plan(5) == plan(5)
    assert plan(5).lines() == plan(5).lines()
    assert plan(5) != plan(6)


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_is_there_and_no_worker_suffers_two_at_once(seed):
    made = plan(seed)
    kinds = [fault.kind for fault in made.faults]
    assert {kind: kinds.count(kind) for kind in KINDS} == {
        "worker-kill": 20,
        "pause": 5,
        "pause-hold": 4,
        "leave": 5,
        "member-kill": 6,
        "member-pause": 2,
        "member-cut": 2,
        "pause-cut": 2,
        "heir-kill": 2,
        "both-kill": 2,
        "cut": 3,
        "hold": 2,
    }
    assert [fault.number for fault in made.faults] == list(range(55))
    assert [fault.at for fault in made.faults] == sorted(fault.at for fault in made.faults)
    spans = [(f.at, f.at + f.seconds, f.worker) for f in made.faults if f.worker is not None]
    for at, _, worker in spans:
        others = [each for each in spans if each[0] <= at <= each[1]]
        assert len(others) <= 2
        assert [each[2] for each in others].count(worker) == 1
    alone = [fault.kind for fault in made.faults if fault.alone]
    assert alone == ["worker-kill"] * 15
    assert all(fault.alone for fault in made.faults[-15:])
    members = [fault for fault in made.faults if fault.worker is None]
    for first, second in itertools.pairwise(members):
        assert first.at + first.seconds < second.at
    for fault in made.faults:
        if fault.kind == "cut":
            assert fault.seconds > 5.0
        if fault.kind == "hold":
            assert fault.seconds < 1.25
        if fault.kind == "pause-hold":
            assert 1.8 < fault.seconds < 5.0
            assert 1.0 <= fault.hold < 1.25
    assert made.seconds >= max(fault.at + fault.seconds for fault in made.faults)


@pytest.mark.parametrize("seed", range(20))
def test_most_kills_come_when_no_other_fault_delays_a_takeover(seed):
    """Of sixty, forty at least have at most one other kill beside them, and thirteen seconds after both."""
    counts = Counts(60, 15, 5, 12, 9, 2, 12, 8, 6, 2, 2, 2)
    faults = plan(seed, counts, seconds=830.0).faults
    judged = 0
    for fault in faults:
        end = fault.at + 13
        beside = [
            each for each in faults if each is not fault and each.at + each.seconds >= fault.at and each.at <= end
        ]
        judged += (
            fault.kind == "worker-kill" and all(each.kind == "worker-kill" for each in beside) and len(beside) <= 1
        )
    assert judged >= 45


def test_members_are_paused_for_shorter_and_longer_than_their_heartbeats_may_fail():
    pauses = [fault.seconds for fault in plan(counts=Counts(0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0)).faults]
    assert sorted(each > HEARTBEAT_SECONDS for each in pauses) == [False, False, True, True]


def test_pauses_are_shorter_than_a_lease_and_longer():
    pauses = [fault.seconds for seed in range(20) for fault in plan(seed).faults if fault.kind == "pause"]
    assert min(pauses) < 5.0 < max(pauses)


def test_faults_that_need_longer_get_it():
    assert plan(seconds=10.0).seconds > 60


@pytest.mark.parametrize(
    ("counts", "changes"),
    [(Counts(member_kills=1, member_cuts=0, both_kills=0), {"members": 2}), (Counts(), {"workers": 1})],
)
def test_faults_that_would_leave_nobody_are_refused(counts, changes):
    with pytest.raises(UsageError):
        plan(counts=counts, **changes)


def test_events_are_the_same_for_a_seed_whoever_asks():
    first = [event(3, n) for n in range(12_000, 12_100)]
    block.cache_clear()
    assert first == [event(3, n) for n in range(12_000, 12_100)]
    assert first != [event(4, n) for n in range(12_000, 12_100)]
    assert customers(3) == customers(3)


def test_an_event_replaces_only_what_was_put_long_before():
    newest, replaced = {}, 0
    for index in range(40):
        for each in block(3, index):
            if each.key in newest:
                replaced += 1
                assert each.number - newest[each.key] >= UPDATE_DISTANCE
            newest[each.key] = each.number
    assert replaced > 3_000
