"""The number of workers, decided by simulation: a job, its backlog, and workers that take their time to start."""

import math
from collections import deque
from itertools import count
from statistics import mean

import pytest

from gridscore.operations.autoscale import Load, Memory, Policy, decide

RING = 2_000_000


def simulated(policy, arriving, seconds, *, each=lambda _t: 10_000.0, starts=lambda _n: 6, first=0, every=2):
    """What happens to a job: rows of (time, workers, backlog), and the decisions that changed something.

    `arriving` and `each` are events a second, by the time: of all sources, and of what one worker can do. `starts` is
    how long a worker takes to start, by how many were asked for before it, and `first` how long those do that are
    there at the beginning.
    """
    memory, lag, rows, changes = Memory(policy.least), 0.0, [], []
    coming = [first] * policy.least  # when each worker that was asked for scores
    workers, asked, rates = 0, count(), deque([0.0], maxlen=5)
    for t in range(seconds):
        coming = [at for at in coming if at > t or not (workers := workers + 1)]
        scored = min(lag + arriving(t), workers * each(t))
        rates.append(scored)  # workers tell the mean of some seconds
        lag += arriving(t) - scored
        assert lag < RING, f"overwritten at {t} s, with {workers} workers"
        if t % every == 0:
            # What was scored in the last second is not committed yet.
            load = Load(t, workers, mean(rates), int(lag + scored), full=(lag + scored) / RING)
            decision, memory = decide(policy, memory, load)
            there = workers + len(coming)
            if decision.target != there:
                changes.append((t, there, decision.target, decision.why))
                assert policy.least <= decision.target <= policy.most
                if decision.target > there:
                    coming += [t + starts(next(asked)) for _ in range(decision.target - there)]
                else:
                    workers -= there - decision.target
        rows.append((t, workers, lag))
    return rows, changes


def worker_seconds(rows):
    return sum(workers for _, workers, _ in rows)


def test_a_spike_of_ten_times_is_followed_up_and_down():
    rows, changes = simulated(Policy(1, 8), lambda t: 60_000 if 60 <= t < 240 else 6_000, 1800)
    in_time = next(t for t, workers, _ in rows if workers >= 6)
    assert in_time < 60 + 45
    over = next(t for t, _, lag in rows if t > in_time and lag == 0)
    assert over < 60 + 120
    assert rows[-1][1] == 1
    assert len(changes) < 12
    assert all(why for *_, why in changes)


def never_while_some_start(rows, changes):
    """Whether no more were asked for before all that were had begun."""
    return all(rows[t][1] == before for t, before, after, _ in changes if after > before)


def test_the_backlog_of_a_first_worker_that_starts_slowly_is_no_lack_of_workers():
    _, changes = simulated(Policy(1, 8), lambda _: 150, 600, each=lambda _t: 1_000, first=33)
    assert changes == []


def test_a_spike_that_meets_slow_starters_gets_no_more_than_it_needs():
    def arriving(t):
        return 6_000 if 60 <= t < 600 else 600

    rows, changes = simulated(
        Policy(1, 16), arriving, 1800, each=lambda _t: 2_000, starts=lambda n: 20 + 7 * (n % 4), first=40
    )
    assert never_while_some_start(rows, changes)
    assert all(t >= 60 for t, *_ in changes)
    assert max(workers for _, workers, _ in rows) <= 8
    assert rows[400][2] == 0
    assert rows[-1][1] == 1


def test_a_worker_that_never_starts_is_given_up_after_a_while_and_said():
    policy = Policy(1, 8)
    rows, changes = simulated(policy, lambda _: 15_000, 600, starts=lambda n: 6 if n else math.inf)
    (first, *_), (second, before, _, why) = changes[:2]
    assert policy.start_seconds <= second - first <= policy.start_seconds + 4
    assert rows[second][1] == 1
    assert before == 2
    assert why.endswith("; 1 of 2 workers still does not score after 60 s")
    assert rows[-1][2] == 0
    assert not any("did not start" in why for *_, why in changes[2:])


def test_a_worker_that_begins_and_dies_again_and_again_is_given_up_too():
    policy, memory = Policy(1, 8), Memory(2, changed_at=0.0)
    for at in range(2, 120, 2):
        # Eight seconds of every twelve it is there.
        decision, memory = decide(policy, memory, Load(float(at), 2 if at % 12 >= 4 else 1, 10_000, 900_000 + at))
        if decision.target > 2:
            break
    assert policy.start_seconds <= at < policy.start_seconds + 15
    assert "1 of 2 workers still does not score" in decision.why


def test_what_would_be_overwritten_waits_for_nobody():
    policy, memory = Policy(1, 8), Memory(2, changed_at=99.0)
    for at in (100.0, 102.0):
        decision, memory = decide(policy, memory, Load(at, 0, 0.0, 500_000, full=0.3 + (at - 100) / 20))
    assert decision.target == 8


def test_what_would_be_overwritten_is_seen_though_workers_come_and_go():
    policy, memory = Policy(1, 8), Memory(2, changed_at=99.0)
    for at, workers in ((100.0, 1), (102.0, 2)):
        decision, memory = decide(policy, memory, Load(at, workers, 20_000, 500_000, full=0.3 + (at - 100) / 20))
    assert (decision.target, decision.why) == (8, "unread events are overwritten in 12 s at this rate")


def test_a_daily_wave_is_followed_with_little_more_than_it_needs():
    def arriving(t):  # 5,000 to 65,000, in a day of two hours
        return 35_000 - 30_000 * math.cos(t / 7200 * 2 * math.pi)

    rows, changes = simulated(Policy(1, 10), arriving, 3 * 7200)
    needed = sum(math.ceil(arriving(t) / 10_000) for t in range(3 * 7200))
    assert worker_seconds(rows) < 1.4 * needed
    assert max(lag for t, _, lag in rows if t > 60) < 20 * 65_000
    assert len(changes) < 3 * 30


def test_events_that_slowly_cost_more_get_more_workers():
    rows, changes = simulated(Policy(1, 8), lambda _: 20_000, 3600, each=lambda t: 22_000 * (1 - t / 4000))
    assert rows[-1][1] >= 8
    assert [after > before for _, before, after, _ in changes] == [True] * len(changes)


@pytest.mark.parametrize("period", [4, 20, 60, 110, 200])
def test_a_load_that_goes_to_and_fro_does_not_make_the_workers_do_so(period):
    rows, changes = simulated(Policy(1, 8), lambda t: 45_000 if t % period < period / 2 else 5_000, 3600)
    assert sum(after < before for _, before, after, _ in changes) <= 8
    assert rows[-1][2] < 45_000 * 30


def test_a_steady_load_is_left_alone_once_it_fits():
    _, changes = simulated(Policy(1, 8), lambda _: 33_000, 3600)
    assert all(t < 300 for t, *_ in changes)


def test_what_would_be_overwritten_gets_all_there_may_be_at_once():
    policy, memory = Policy(1, 8), Memory(2, changed_at=99.0)
    for at in (100.0, 102.0):
        decision, memory = decide(policy, memory, Load(at, 2, 20_000, 500_000, full=0.3 + (at - 100) / 20))
    assert (decision.target, decision.why) == (8, "unread events are overwritten in 12 s at this rate")


def test_those_that_were_asked_for_are_waited_for():
    policy, memory = Policy(1, 8), Memory(4, changed_at=80.0, each=10_000.0)
    decision, memory = decide(policy, memory, Load(100.0, 2, 20_000, 500_000))
    assert (decision.target, memory.waits) == (4, True)
    assert decision.why.endswith("; 2 of 4 workers score so far")
    late, _ = decide(policy, memory, Load(160.0, 2, 20_000, 900_000))
    assert late.target > 4
    assert late.why.endswith("; 2 of 4 workers still do not score after 60 s")
    _, memory = decide(policy, memory, Load(150.0, 3, 20_000, 900_000))
    for at in (152.0, 156.0, 159.0):  # what they do at first says nothing yet
        decision, memory = decide(policy, memory, Load(at, 4, 10_000, 900_000))
        assert (decision.target, memory.waits) == (4, True)
    assert decision.why.endswith("; the last worker began 9 s ago")
    decision, memory = decide(policy, memory, Load(162.0, 4, 40_000, 900_000))
    assert decision.target > 4
    assert not memory.waits


def test_latency_counts_where_it_is_asked_for():
    load = Load(100.0, 2, 100.0, 100, latency_ms=250.0)
    assert decide(Policy(1, 8), Memory(2), load)[0].target == 2
    decision = decide(Policy(1, 8, latency_ms=100.0), Memory(2), load)[0]
    assert (decision.target, decision.why) == (3, "p99 is 250 ms, more than 100")


def test_bounds_that_were_changed_hold_at_once():
    assert decide(Policy(2, 4), Memory(1), Load(1.0, 1, 0.0, 0))[0].target == 2
    assert decide(Policy(1, 4), Memory(6), Load(1.0, 6, 0.0, 0))[0].target == 4


def test_a_job_that_nobody_scores_gets_a_worker():
    memory = Memory(1, changed_at=-1000.0)
    for at in range(0, 62, 2):
        assert memory.target == 1
        decision, memory = decide(Policy(1, 4), memory, Load(float(at), 0, 0.0, 500 + at))
    assert decision.target > 1
