"""The number of workers, decided by simulation: a job, its backlog, and workers that take their time to start."""

import math

import pytest

from gridscore.operations.autoscale import Load, Memory, Policy, decide

RING = 2_000_000


def simulated(policy, arriving, seconds, *, each=lambda _t: 10_000.0, starts=6, every=2):
    """What happens to a job: rows of (time, workers, backlog), and the decisions that changed something.

    `arriving` and `each` are events a second, by the time: of all sources, and of what one worker can do.
    """
    memory, lag, rows, changes = Memory(policy.least), 0.0, [], []
    coming = []  # when each worker that was asked for scores
    workers = policy.least
    for t in range(seconds):
        coming = [at for at in coming if at > t or not (workers := workers + 1)]
        scored = min(lag + arriving(t), workers * each(t))
        lag += arriving(t) - scored
        assert lag < RING, f"overwritten at {t} s, with {workers} workers"
        if t % every == 0:
            # What was scored in the last second is not committed yet.
            load = Load(t, workers, scored, int(lag + scored), full=(lag + scored) / RING)
            decision, memory = decide(policy, memory, load)
            there = workers + len(coming)
            if decision.target != there:
                changes.append((t, there, decision.target, decision.why))
                assert policy.least <= decision.target <= policy.most
                if decision.target > there:
                    coming += [t + starts] * (decision.target - there)
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
    assert decision.target == 4
    assert decision.why.endswith("; 2 of 4 workers score so far")
    decision, _ = decide(policy, memory, Load(180.0, 2, 20_000, 900_000))  # they do not come
    assert decision.target > 4


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
    for at in range(0, 20, 2):
        decision, memory = decide(Policy(1, 4), memory, Load(float(at), 0, 0.0, 500 + at))
    assert decision.target > 1
