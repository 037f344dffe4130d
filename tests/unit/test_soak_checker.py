"""The checker of a soak passes what is right, and fails each single thing that is not."""

import datetime as dt

import msgspec
import pandas as pd
import pytest
import xgboost as xgb

from gridscore.features import offline_matrix
from gridscore.proving.soak.checker import check, expected_scores, unplanned_splits
from gridscore.proving.soak.evidence import (
    EVENTS,
    INCIDENTS,
    JOURNAL,
    JOURNAL_END,
    LEDGER,
    MARKS,
    NOTICES,
    RESULTS,
    Acknowledged,
    Evidence,
    Incident,
    LineFile,
)
from gridscore.proving.soak.workload import booster, customers, event, soak_job

KILLED, HEIR, LEFT = 101, 102, 103


class Run:
    """A run as its files have it: a hundred events in ten partitions, scored by the owner of epoch 1 and noticed once.

    Event n scores n / 128, is put at second n, scored half a second later, and event 50 replaces event 10.
    """

    def __init__(self, folder):
        self.folder = folder
        self.ledger = {n: (f"e{10 if n == 50 else n}", n * 1000) for n in range(100)}
        self.writes = [self.write(n) for n in range(100)]
        self.notices = list(self.writes)
        self.results = {key: n for n, (key, _) in self.ledger.items()}
        self.events = dict(self.results)
        self.scores = {}
        self.marks = [(0, p, 1, f"host-{KILLED}-abcdef", -1) for p in range(10)]
        self.incidents = []
        self.seen = []

    def write(self, n, *, epoch=1, after=500, **changes):
        key, at = self.ledger[n]
        result = {"n": n, "score": n / 128, "sequence": n // 10, "version": 1, "epoch": epoch, "scored_at": at + after}
        return n % 10, key, {**result, **changes}

    def check(self):
        partitions = {}
        for name, writes in ((JOURNAL_END, self.writes), (JOURNAL, [*self.writes, *self.seen])):
            partitions = {}
            file = LineFile(self.folder / name)
            for partition, key, result in writes:
                position = partitions.get(partition, -1) + 1
                partitions[partition] = position
                file.add(b"%d" % partition, b"%d" % position, key.encode(), msgspec.json.encode(result))
            file.close()
        self._save(LEDGER, [(at, n, key, "{}") for n, (key, at) in self.ledger.items()])
        self._save(NOTICES, [(r["scored_at"], key, msgspec.json.encode(r).decode()) for _, key, r in self.notices])
        self._save(EVENTS, [(key, f'{{"n":{n}}}') for key, n in self.events.items()])
        self._save(MARKS, self.marks)
        self._save(INCIDENTS, [(msgspec.json.encode(each).decode(),) for each in self.incidents])
        results = {key: self.write(n)[2] | self.scores.get(key, {}) for key, n in self.results.items()}
        self._save(RESULTS, [(key, msgspec.json.encode(result).decode()) for key, result in results.items()])
        return check(Evidence.load(self.folder), {n: n / 128 for n in self.ledger})

    def _save(self, name, rows):
        file = LineFile(self.folder / name)
        for row in rows:
            file.add(*(str(cell).encode() for cell in row))
        file.close()


@pytest.fixture
def ran(tmp_path):
    return Run(tmp_path)


def test_a_run_in_which_all_went_well_passes(ran):
    verdict = ran.check()
    assert verdict.problems == []
    assert (verdict.acknowledged, verdict.keys, verdict.writes, verdict.notices) == (100, 99, 100, 100)


def test_a_run_without_events_proves_nothing(ran):
    ran.ledger, ran.writes, ran.notices, ran.results, ran.events = {}, [], [], {}, {}
    assert "nothing was tested" in ran.check().problems[0]


def test_an_event_without_a_result_is_lost(ran):
    del ran.results["e42"]
    verdict = ran.check()
    assert verdict.lost.examples == ["event 42 under `e42`"]
    assert verdict.problems == ["1 acknowledged events have no result."]


def test_an_event_that_was_replaced_before_it_was_scored_is_lost(ran):
    ran.writes = [write for write in ran.writes if write[2]["n"] != 10]
    ran.notices = [notice for notice in ran.notices if notice[2]["n"] != 10]
    assert ran.check().lost.examples == ["event 10 under `e10`"]


def test_a_listener_that_missed_some_shows_no_loss(ran):
    ran.notices = ran.notices[:60]
    assert ran.check().is_good


@pytest.mark.parametrize("where", ["writes", "notices", "scores"])
def test_a_score_that_differs_in_the_last_bit_is_wrong(ran, where):
    wrong = 42 / 128 + 2**-54
    assert wrong != 42 / 128
    if where == "scores":
        ran.scores["e42"] = {"score": wrong}
    else:
        ran.__dict__[where] = [ran.write(42, score=wrong) if w[2]["n"] == 42 else w for w in ran.__dict__[where]]
    verdict = ran.check()
    assert verdict.wrong.count == 1
    assert "42" in verdict.wrong.examples[0]
    assert not verdict.is_good


def test_a_result_of_an_event_that_nobody_put_is_wrong(ran):
    ran.writes.append((3, "e7777", {**ran.write(3)[2], "n": 7777, "sequence": 99}))
    assert ran.check().wrong.count == 1


def test_a_result_under_anothers_key_is_wrong(ran):
    ran.writes[42] = (2, "e41", ran.write(42)[2])
    assert ran.check().wrong.count == 1


def test_an_old_result_that_stands_where_a_new_event_was_put_is_wrong(ran):
    ran.results["e10"] = 10
    verdict = ran.check()
    assert verdict.wrong.examples == ["`e10` in the map: of event 10, but event 50 is in the event map"]
    assert not verdict.is_good


def test_a_result_follows_the_event_map_even_where_a_late_put_has_brought_an_earlier_event_back(ran):
    ran.results["e10"] = ran.events["e10"] = 10
    verdict = ran.check()
    assert verdict.returned == 1
    assert verdict.is_good
    ran.results["e10"] = 50
    assert ran.check().wrong.count == 1


def test_an_event_that_the_cluster_has_lost_is_a_problem_even_if_it_was_scored(ran):
    del ran.events["e42"]
    verdict = ran.check()
    assert verdict.problems == ["1 acknowledged events are no longer in the cluster: it has lost them."]


@pytest.mark.parametrize(("cut", "good"), [(30_000, True), (32_700, True), (35_000, False), (10_000, False)])
def test_an_event_that_a_member_acknowledged_when_it_was_split_off_is_not_judged_and_that_is_said(ran, cut, good):
    """Ten to twenty-five seconds after the last heartbeat, which may have been a second before the cut."""
    ran.incidents.append(Incident(0, "member-cut", cut, cut + 30_000, member=1))
    ran.writes = [write for write in ran.writes if write[2]["n"] != 42]
    ran.notices = [notice for notice in ran.notices if notice[2]["n"] != 42]
    del ran.events["e42"], ran.results["e42"]
    verdict = ran.check()
    assert verdict.is_good == good
    assert verdict.unjudged == (
        {"events that a member acknowledged when it was split off, and dropped": 1} if good else {}
    )


def test_what_was_lost_before_or_after_the_moment_in_which_a_member_is_split_off_is_lost(ran):
    ran.incidents.append(Incident(0, "member-cut", 30_000, 60_000, member=1))
    for n in (42, 44, 45):
        del ran.events[f"e{n}"], ran.results[f"e{n}"]
    verdict = ran.check()
    assert verdict.unjudged == {"events that a member acknowledged when it was split off, and dropped": 2}
    assert verdict.lost.examples == verdict.gone.examples == ["event 45 under `e45`"]


@pytest.mark.parametrize(("kind", "member", "is_told"), [("member-cut", 2, True), ("member-pause", 1, False)])
def test_members_that_lose_each_other_with_nothing_done_to_them_are_told(tmp_path, kind, member, is_told):
    at = int(dt.datetime.fromisoformat("2026-11-30 01:25:49.004").timestamp() * 1000)
    log = tmp_path / "member-0.log"
    log.write_text(
        "2026-11-30 01:25:49.066 WARNING [com.hazelcast.ClusterHeartbeatManager] [127.0.0.1]:5701 [soak] [5.6.0] "
        "Suspecting Member [127.0.0.1]:5702 - 1c3ae085-23f3 because it has not sent any heartbeats since "
        "2026-11-30 01:25:38.601. Now: 2026-11-30 01:25:49.004, heartbeat timeout: 10000 ms\n"
    )
    told = unplanned_splits([log], (5701, 5702, 5703), [Incident(0, kind, at - 15_000, at + 5_000, member=member)])
    assert [each.partition("either, ")[2] for each in told] == [
        "member 0 had no heartbeat of member 1 from 2026-11-30 01:25:38.601 to 2026-11-30 01:25:49.004."
    ] * is_told


def test_an_event_in_doubt_may_have_a_result_or_not(ran):
    del ran.ledger[99]
    del ran.results["e99"]
    ran.check()
    evidence = Evidence.load(ran.folder, {99})
    assert check(evidence, {n: n / 128 for n in ran.ledger}).is_good


def test_a_lower_epoch_behind_a_higher_one_is_a_late_write(ran):
    ran.writes[95] = ran.write(95, epoch=2)
    ran.ledger[105] = ("e105", 105_000)
    ran.results["e105"] = ran.events["e105"] = 105
    ran.writes.append(ran.write(105, epoch=1))
    verdict = ran.check()
    assert verdict.late.count == 1
    assert "epoch 1 after 2" in verdict.late.examples[0]
    assert not verdict.is_good


def test_a_write_after_the_lease_was_seen_with_another_is_late_even_if_that_one_has_written_nothing(ran):
    # Partition 5 was taken with epoch 2 when its journal ended at position 6, yet epoch 1 goes on to write.
    ran.marks.append((70_000, 5, 2, f"host-{HEIR}-abcdef", 6))
    verdict = ran.check()
    assert verdict.late.count == 3
    assert not verdict.is_good


def test_a_write_that_was_under_way_when_the_lease_passed_on_is_not_late(ran):
    ran.marks.append((70_000, 5, 2, f"host-{HEIR}-abcdef", 9))
    assert ran.check().is_good


def test_writes_that_went_with_a_member_are_not_compared_with_those_that_have_their_place(ran):
    ran.incidents.append(Incident(0, "member-cut", 98_600, 125_000, member=1))
    ran.seen = [ran.write(n, after=150) for n in (89, 99)]
    ran.writes[89], ran.writes[99] = ran.write(89, epoch=2), ran.write(99, epoch=2)
    verdict = ran.check()
    assert verdict.late.count == 0
    assert verdict.unjudged == {"writes that went with a member": 2}


def test_results_without_an_epoch_do_not_pass(ran):
    del ran.writes[42][2]["epoch"]
    assert "epoch" in ran.check().problems[0]


def killed(ran, kind="worker-kill", at=60_600, pid=KILLED, number=0):
    """At that time worker 101 was killed, and worker 102 went on with epoch 2 in the partitions that it had."""
    ran.incidents.append(Incident(number, kind, at, at + 1_000, worker=0, pid=pid))
    ran.marks += [(at - 100, p, 1, f"host-{KILLED}-abcdef", 4) for p in range(10)]
    ran.marks += [(at + 4_000, p, 2, f"host-{HEIR}-abcdef", 5 + (p == 0)) for p in range(10)]
    ran.writes = [ran.write(n, epoch=1 if n <= 60 else 2) for n in range(100)]


def twice(ran, n, **changes):
    """Event n is written again, right behind the first time."""
    position = next(i for i, write in enumerate(ran.writes) if write[2]["n"] == n)
    ran.writes.insert(position + 1, ran.write(n, **changes))


def test_doubles_of_one_uncommitted_batch_are_allowed_after_a_kill(ran):
    killed(ran)
    for n in (59, 60):
        twice(ran, n, epoch=2, after=6_000)
    verdict = ran.check()
    assert [(each.cause, each.incident, each.count) for each in verdict.doubles] == [("worker-kill", 0, 2)]
    assert verdict.doubles[0].bound == 2
    assert verdict.is_good
    assert verdict.takeover_ms == {0: 4_000}


def test_doubles_of_what_had_long_been_committed_are_too_many(ran):
    killed(ran)
    for n in range(40, 61):
        twice(ran, n, epoch=2, after=66_000 - n * 1000)
    verdict = ran.check()
    assert (verdict.doubles[0].count, verdict.doubles[0].bound) == (21, 11)
    assert not verdict.is_good


@pytest.mark.parametrize("kind", ["leave", None])
def test_no_double_is_allowed_when_partitions_move_in_order(ran, kind):
    killed(ran, kind=kind or "leave")
    if kind is None:
        ran.incidents.clear()
    twice(ran, 60, epoch=2, after=6_000)
    verdict = ran.check()
    assert [(each.cause, each.bound) for each in verdict.doubles] == [(kind or "rebalance", 0)]
    assert not verdict.is_good


def test_a_double_under_one_epoch_without_a_fault_is_unexplained(ran):
    twice(ran, 60, after=700)
    verdict = ran.check()
    assert [each.cause for each in verdict.doubles] == ["unexplained"]
    assert not verdict.is_good


def test_a_double_of_a_late_write_is_blamed_on_what_was_done_to_its_writer(ran):
    killed(ran, kind="pause")
    twice(ran, 61, epoch=1, after=200)
    verdict = ran.check()
    assert [each.cause for each in verdict.doubles] == ["pause"]
    assert verdict.late.count == 1


def test_a_double_is_not_blamed_on_what_was_done_to_another_worker(ran):
    killed(ran)
    ran.incidents[0] = Incident(0, "worker-kill", 60_600, 61_600, worker=1, pid=LEFT)
    twice(ran, 60, epoch=2, after=6_000)
    verdict = ran.check()
    assert [each.cause for each in verdict.doubles] == ["rebalance"]


def test_an_event_found_in_the_map_though_it_had_its_result_is_a_double(ran):
    twice(ran, 60, sequence=-1, after=900)
    verdict = ran.check()
    assert verdict.rescued == 1
    assert sum(each.count for each in verdict.doubles) == 1


def test_an_event_that_was_put_twice_has_two_results_and_no_double(ran):
    twice(ran, 60, sequence=77)
    assert ran.check().is_good


def test_a_notification_that_came_twice_though_it_was_written_once_has_no_cause(ran):
    ran.notices.append(ran.notices[42])
    verdict = ran.check()
    assert verdict.doubled_notices == 1
    assert verdict.problems == ["1 doubled notifications have no cause."]


@pytest.mark.parametrize(
    ("kind", "seconds", "good"),
    [("member-kill", 6, True), ("member-cut", 9, False), ("member-cut", 14, True), ("member-pause", 14, True)],
)
def test_a_notification_that_came_twice_around_a_members_death_has_one_and_so_if_it_was_taken_for_dead(
    ran, kind, seconds, good
):
    ran.incidents.append(Incident(0, kind, 42_100, 42_100 + seconds * 1000, member=1))
    ran.notices.append(ran.notices[42])
    assert ran.check().is_good == good


def test_a_write_that_died_with_its_member_and_was_made_again_is_a_double_of_that_death(ran):
    ran.incidents.append(Incident(0, "member-kill", 99_100, 104_000, member=1))
    ran.seen.append(ran.write(99, after=200))
    verdict = ran.check()
    assert [(each.cause, each.count) for each in verdict.doubles] == [("member-kill", 1)]
    assert verdict.is_good


def test_a_write_that_died_with_its_member_though_it_was_made_long_before_is_too_many(ran):
    ran.incidents.append(Incident(0, "member-kill", 99_100, 104_000, member=1))
    ran.seen.append(ran.write(99, after=-4_000))
    verdict = ran.check()
    assert [(each.cause, each.count, each.bound) for each in verdict.doubles] == [("member-kill", 1, 0)]
    assert not verdict.is_good


@pytest.mark.parametrize(("looked", "good"), [(-4_000, True), (61_700, False)])
def test_a_write_that_stands_after_a_members_death_may_be_made_again_only_if_nobody_could_see_it(ran, looked, good):
    """It was seen in the journal four seconds before the second one was scored, or was not."""
    ran.incidents.append(Incident(0, "member-kill", 60_900, 64_000, member=1))
    twice(ran, 60, after=6_000)
    if not good:
        ran.marks.append((looked, 0, 1, f"host-{KILLED}-abcdef", 6))
    verdict = ran.check()
    assert [(each.cause, each.count) for each in verdict.doubles] == [("member-kill", 1)]
    assert verdict.is_good == good


def test_a_write_that_stands_elsewhere_after_its_member_died_is_one_write(ran):
    ran.seen.append(ran.writes[99])
    assert ran.check().is_good


def test_a_worker_that_ended_by_itself_is_a_problem(ran):
    ran.incidents.append(Incident(-1, "crash", 5_000, 5_100, worker=0, pid=LEFT, note="Worker 0 ended by itself"))
    assert ran.check().problems == ["Worker 0 ended by itself"]


def test_a_line_that_a_killed_process_left_unfinished_is_ignored(ran):
    ran.check()
    with (ran.folder / LEDGER).open("ab") as file:
        file.write(b"99000\t777\te777")
    assert check(Evidence.load(ran.folder), {n: n / 128 for n in ran.ledger}).is_good


def test_expected_scores_need_none_of_our_features_and_are_those_of_them_all_the_same():
    job, people = soak_job("x"), customers(7)
    model = booster(7, job.feature_names)
    ledger = [Acknowledged(0, *event(7, n)) for n in range(300)]
    frame = pd.DataFrame([msgspec.json.decode(each.text) for each in ledger])
    table = pd.DataFrame([{"user": user, **person} for user, person in people.items()])
    matrix = offline_matrix(job, frame, {"customer": table})
    scores = model.predict(xgb.DMatrix(matrix.values, feature_names=list(matrix.names)))
    assert expected_scores(model, people, [*ledger, ledger[5]]) == dict(enumerate(scores.tolist()))


def test_a_takeover_that_took_too_long_is_a_problem(ran):
    killed(ran)
    ran.marks = [(at + 9_001 if rest[1] == 2 else at, *rest) for at, *rest in ran.marks]
    verdict = ran.check()
    assert verdict.slow.examples == ["fault 0: 13.0 s, 13 s at most may be"]
    assert verdict.problems == ["1 killed workers had their partitions taken over too late."]


def test_a_worker_that_held_nothing_when_it_was_killed_shows_nothing_and_that_is_said(ran):
    ran.incidents.append(Incident(0, "worker-kill", 60_600, 61_600, worker=1, pid=LEFT))
    assert ran.check().unjudged == {"takeovers of a worker that held nothing": 1}


def test_partitions_that_nobody_took_are_a_problem(ran):
    killed(ran)
    del ran.marks[-1]
    assert ran.check().slow.examples == ["fault 0: partitions that nobody took"]


def taken_after(ran, seconds):
    killed(ran, at=50_600)
    ran.marks = [(50_600 + seconds * 1000 if rest[1] == 2 else at, *rest) for at, *rest in ran.marks]


@pytest.mark.parametrize(
    ("seconds", "other", "slow"),
    [
        (22, Incident(1, "pause", 53_000, 60_000, worker=2, pid=LEFT), 0),
        (24, Incident(1, "pause", 53_000, 60_000, worker=2, pid=LEFT), 1),
        (22, Incident(1, "cut", 53_000, 60_000, worker=2, pid=LEFT), 0),
        (32, Incident(1, "member-kill", 53_000, 60_000, member=1), 0),
        (33, Incident(1, "member-kill", 53_000, 60_000, member=1), 1),
        # Who is killed or leaves does so at once; nobody waits for the one that comes in its place.
        (15, Incident(1, "worker-kill", 53_000, 60_000, worker=2, pid=LEFT), 0),
        (16, Incident(1, "worker-kill", 53_000, 60_000, worker=2, pid=LEFT), 1),
        (15, Incident(1, "leave", 53_000, 60_000, worker=2, pid=LEFT), 0),
        (16, Incident(1, "leave", 53_000, 60_000, worker=2, pid=LEFT), 1),
    ],
)
def test_the_time_for_a_takeover_starts_over_when_a_fault_beside_it_is_over(ran, seconds, other, slow):
    taken_after(ran, seconds)
    ran.incidents.append(other)
    verdict = ran.check()
    assert (verdict.slow.count, verdict.takeovers_judged, verdict.takeovers_beside) == (slow, 1, 1)


def test_a_kill_counts_from_then_on_and_not_from_when_another_worker_is_in_its_place(ran):
    taken_after(ran, 26)
    # From one replacement to the next kill a takeover could be, but not from one kill to the next one.
    others = [(number, 48_000 + number * 14_000) for number in range(1, 6)]
    ran.incidents += [Incident(n, "worker-kill", at, at + 5_000, worker=2, pid=LEFT) for n, at in others]
    verdict = ran.check()
    assert verdict.slow.examples == ["fault 0: 26.0 s, 24 s at most may be"]
    assert (verdict.takeovers_judged, verdict.takeovers_beside) == (1, 1)


@pytest.mark.parametrize(("taken", "judged"), [(range(10), 1), (range(9), 0)])
def test_a_takeover_at_the_end_is_judged_if_all_was_taken(ran, taken, judged):
    killed(ran, at=97_000)
    ran.marks = [mark for mark in ran.marks if mark[2] == 1 or mark[1] in taken]
    verdict = ran.check()
    assert (verdict.takeovers_judged, verdict.slow.count) == (judged, 0)
    assert verdict.unjudged == ({} if judged else {"takeovers at the end": 1})


def test_a_takeover_among_faults_that_never_end_is_not_judged_and_that_is_said(ran):
    taken_after(ran, 14)
    others = [(number, 40_000 + number * 12_000) for number in range(1, 6)]
    ran.incidents += [Incident(n, "pause", at, at + 9_000, worker=2, pid=LEFT) for n, at in others]
    verdict = ran.check()
    assert verdict.is_good
    assert verdict.unjudged == {"takeovers beside faults that followed one another for longer than a minute": 1}
