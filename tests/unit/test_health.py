"""Whether a job is well: each rule, when it holds, and above all when it does not."""

from dataclasses import replace

import pytest

from gridscore.job import JobRecord, JobState, parse_job
from gridscore.operations.health import Level, Look, examine, is_well
from gridscore.operations.status import JobFigures, JobStatus, Position, QualityFigures, Rescan
from gridscore.scoring.window_messages import MOST_ASKING

JOB = """\
job: flights
events: events.flights
schema: {amount: float}
features: {amount: amount}
model: late
results: results.flights
on_loss: ON_LOSS
"""


def record(state=JobState.RUNNING, error="", on_loss="rescan", revision=1):
    job = parse_job(JOB.replace("ON_LOSS", on_loss), "test")
    return JobRecord(job, state, revision, error, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")


def position(owner="a", stamp=1, offset=100, unread=0, full=0.0):
    return Position(owner, (1, stamp), offset, held=1000, unread=unread, full=full)


def status(positions=None, job=None, workers=("a",), **changes):
    positions = [position()] * 4 if positions is None else positions
    names = (
        "events",
        "rate",
        "late",
        "broken_states",
        "lost",
        "regressions",
        "rebalances",
        "dead_letters",
        "unkept",
        "rescued",
    )
    totals = dict.fromkeys(names, 0)
    totals |= changes.pop("totals", {})
    fields = {
        "record": job or record(),
        "workers": len(workers),
        "lag": sum(each.unread for each in positions),
        "partitions": sum(1 for each in positions if each.owner),
        "totals": totals,
        "versions": [1],
        "model_errors": [],
        "lookups": {},
        "figures": {worker: JobFigures() for worker in workers},
        "positions": tuple(positions),
    }
    return JobStatus(**(fields | changes))


def codes(*looks, level=Level.PROBLEM, **options):
    """Codes of the findings of looks that are one second apart."""
    found = examine([Look(float(at), each) for at, each in enumerate(looks)], **options)
    assert is_well(found) == (not any(each.level is Level.PROBLEM for each in found))
    assert all(each.text for each in found)
    return [each.code for each in found if each.level is level]


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        ({"late": 10, "events": 1_000}, []),
        ({"late": 11, "events": 1_000}, ["late_events"]),
        ({"broken_states": 1}, ["broken_states"]),
    ],
)
def test_late_events_and_states_that_begin_anew_are_told(totals, expected):
    assert codes(status(totals=totals), level=Level.NOTE) == expected


def windowed():
    """The record of a job that asks two windows, of other keys than its events'."""
    job = parse_job(
        "job: flights\nevents: events.flights\norder_by: at\nmodel: late\nresults: results.flights\n"
        "schema: {card: string, shop: string, at: {type: timestamp, unit: s}}\nwindows: {card: card, shop: shop}\n"
        "features: {a: 'count(card, \"1h\")', b: 'count(shop, \"1h\")'}\n",
        "test",
    )
    return JobRecord(job, JobState.RUNNING, 1, "", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")


def test_a_partition_of_entities_without_an_owner_is_told_and_one_that_changes_hands_is_not():
    nobody, other = position(owner="", stamp=0, offset=-1), position(owner="killed")
    stands = status(job=windowed(), stage=(position(), nobody, other))
    assert codes(*[stands] * 4) == ["no_owner"]
    (found,) = examine([Look(float(at), stands) for at in range(4)])
    assert "2 partitions of `windows:flights` have no living owner, the first of them 1" in found.text
    assert "gridscore repair" in found.advice
    taken = status(job=windowed(), stage=(position(),) * 3)
    assert codes(stands, stands, taken, taken) == []


def test_requests_that_were_overwritten_or_may_be_are_told():
    assert codes(status(job=windowed(), requests_lost=3), level=Level.NOTE) == ["requests_lost"]
    for workers, expected in ((MOST_ASKING // 2, []), (MOST_ASKING // 2 + 1, ["many_requests"])):
        many = status(job=windowed(), workers=[f"w{number}" for number in range(workers)], positions=[position("w1")])
        assert codes(many, level=Level.NOTE) == expected
        assert codes(replace(many, record=record()), level=Level.NOTE) == []


def moving(lags, rate):
    """Looks at a job whose lag is so much, second by second, while so many events a second are scored."""
    return [status([position(stamp=at, offset=1000 + at * rate, unread=lag)]) for at, lag in enumerate(lags)]


def test_a_job_at_rest_is_well():
    assert codes(*[status()] * 6) == []
    assert codes(status()) == []


def test_a_worker_that_went_without_a_word_is_named():
    (finding,) = examine([Look(0.0, status(workers=()))])
    assert finding.text == "No worker is running. Killed, cut off or hanging: a."
    (finding,) = examine([Look(0.0, status([position(owner="")] * 4, workers=()))])
    assert finding.text == "No worker is running."


def test_a_lookup_that_cannot_be_loaded_is_told_at_once():
    error = "The lookup map `m` has 9 entries, more than the 8 that a local copy may hold."
    stale = status(figures={"a": JobFigures(version=1, lookup_error=error)})
    (finding,) = examine([Look(0.0, stale)])
    assert finding.code == "lookup"
    assert finding.text == f"A lookup cannot be loaded again, its old copy stays in use: {error}"


def test_no_worker_at_any_look():
    nobody = status(workers=())
    assert codes(nobody) == ["no_worker"]
    assert codes(*[nobody] * 6)[0] == "no_worker"


def test_a_worker_that_was_missing_for_a_moment_is_not_a_problem():
    assert codes(status(workers=()), status(), status()) == []
    assert codes(status(), status(workers=())) == []


def test_workers_that_do_not_score_for_it_are_named():
    (finding,) = examine([Look(0.0, status(workers=(), idle_workers=3))])
    assert "though 3 workers run" in finding.text


def test_a_job_that_is_starting_is_not_well_yet():
    starting = status(job=record(JobState.STARTING))
    assert codes(starting, starting) == ["starting"]
    assert codes(starting, status()) == []


def test_partitions_that_nobody_living_owns():
    lost = [position(owner="dead"), position(owner=""), position(), position()]
    (finding,) = examine([Look(float(at), status(lost)) for at in range(6)])
    assert finding.code == "no_owner"
    assert finding.text == "2 partitions of 4 have no living owner: their events wait. Last held by dead."
    assert "`gridscore worker`" in finding.advice


def test_partitions_on_their_way_are_not_a_problem():
    before, after = [position(owner="dead", stamp=1)], [position(owner="dead", stamp=2)]
    assert codes(status(before), status(after)) == []  # somebody changes the record
    assert codes(status([position(owner="")]), status([position(owner="a")])) == []


@pytest.mark.parametrize("lags", [[100, 200, 300, 400, 500, 600], [100, 150, 120, 400, 380, 500]])
def test_lag_that_grows_beyond_what_can_be_worked_off(lags):
    assert codes(*moving(lags, rate=10)) == ["lag"]


@pytest.mark.parametrize(
    ("lags", "rate"),
    [
        ([0, 5000, 4000, 3000, 2000, 1000], 1000),  # a spike that is being worked off
        ([100, 200, 300, 400, 500, 600], 1000),  # grows, and would be gone within a second
        ([900, 100, 800, 200, 850, 150], 10),  # up and down
        ([600, 600, 600, 600, 600, 600], 10),  # stands
        ([0, 0, 0, 0, 0, 600], 10),  # has only begun
    ],
)
def test_lag_that_is_not_a_problem(lags, rate):
    assert codes(*moving(lags, rate)) == []


def test_how_late_is_too_late_can_be_said():
    lags = [100, 200, 300, 400, 500, 600]
    assert codes(*moving(lags, rate=100)) == []
    assert codes(*moving(lags, rate=100), late_seconds=5) == ["lag"]


def test_lag_that_grows_slowly_is_a_problem_where_events_are_late_already():
    lags = [100, 200, 300, 400, 500, 600]

    def slow(*p99):
        figures = [{"a": JobFigures(latency_ms={"p99": ms})} for ms in p99]
        return [replace(look, figures=each) for look, each in zip(moving(lags, 1000), figures, strict=True)]

    assert codes(*slow(4100, 4000, 4200, 4300, 4100, 4500)) == ["lag"]
    (found,) = examine([Look(float(at), each) for at, each in enumerate(slow(*[4000] * 6))])
    assert "100 to 600 events in 5 s, while 1,000 a second" in found.text
    assert "and p99 is 4.0 s or more." in found.text
    assert codes(*slow(4000, 4000, 1900, 4000, 4000, 4000)) == []  # it was over for a moment
    assert codes(*slow(*[None] * 6)) == []
    assert codes(*slow(*[4000] * 6), late_seconds=30) == []


def test_looks_close_together_say_nothing_of_a_trend():
    looks = [Look(at / 10, each) for at, each in enumerate(moving([100, 200, 300, 400, 500, 600], rate=1))]
    assert is_well(examine(looks))


def test_nothing_committed_though_events_wait():
    assert codes(*moving([50] * 6, rate=0)) == ["stuck"]
    (finding,) = examine([Look(float(at), each) for at, each in enumerate(moving([1] * 6, rate=0))])
    assert "though 1 event waits." in finding.text
    assert codes(*moving([0, 50, 50, 50, 50, 50], rate=0)) == []  # they have only just come
    assert codes(*moving([0] * 6, rate=0)) == []


def hanging(elsewhere, before=0):
    """Looks at a job one of whose four partitions stands still, and whose others have committed so much a second."""
    looks = []
    for at in range(6):
        moved = position(stamp=at, offset=1000 + at * elsewhere, unread=0 if at else before)
        looks.append(status([moved, moved, replace(moved, unread=10 + at, offset=100), moved]))
    return looks


def test_one_partition_that_stands_still_though_its_owner_has_time():
    assert codes(*hanging(elsewhere=50)) == ["stuck"]
    (finding,) = examine([Look(float(at), each) for at, each in enumerate(hanging(elsewhere=50))])
    assert finding.text == (
        "1 partition of 4 stands still: nothing of 2 was committed in 5 s, though 15 events wait there."
    )
    assert "who hangs" in finding.advice
    assert codes(*hanging(elsewhere=50, before=250)) == ["stuck"]  # all that waited elsewhere is done
    assert codes(*hanging(elsewhere=0)) == ["stuck"]  # and nothing comes elsewhere


def test_one_partition_whose_turn_has_not_come_does_not_stand_still():
    assert codes(*hanging(elsewhere=50, before=251)) == []
    looks = hanging(elsewhere=50)
    assert codes(*looks[:5], moving([0] * 6, rate=50)[5]) == []  # at the last look nothing waits
    went = [replace(each, owner="b") if at == 2 else each for at, each in enumerate(looks[0].positions)]
    assert codes(replace(looks[0], positions=tuple(went)), *looks[1:]) == []  # it has only just come


def test_a_restart_in_between_starts_over():
    before = [replace(each, record=record(revision=1)) for each in moving([50] * 4, rate=0)]
    assert codes(*before, replace(before[-1], record=record(revision=2))) == []


def test_a_journal_that_cannot_be_read():
    unknown = status(positions=[], lag=None, journal_error="The journal of `x` could not be read: time-out.")
    assert codes(*[unknown] * 6) == ["no_journal"]
    (finding,) = examine([Look(0.0, unknown)])
    assert finding.text == (
        "The journal of `events.flights` cannot be read. The journal of `x` could not be read: time-out."
    )
    # One look that did not get an answer says nothing, and the others are judged without it.
    looks = moving([50] * 6, rate=0)
    assert codes(status(), unknown) == codes(unknown, status()) == []
    assert codes(*looks[:3], unknown, *looks[3:]) == ["stuck"]
    assert codes(*looks, unknown) == ["stuck"]


def filling(unread, ring=3690, seconds=1, **changes):
    """Looks at a job of 20 partitions, one of which, number 17, has so many unread events."""
    looks = []
    for count in unread:
        ring_17 = {"unread": count, "full": count / ring, "room": ring - count}
        at_17 = replace(position(), **ring_17)
        looks.append(
            status([replace(position(), room=ring)] * 17 + [at_17] + [replace(position(), room=ring)] * 2, **changes)
        )
    return [Look(float(at * seconds), each) for at, each in enumerate(looks)]


def forecasts(looks):
    return [(each.level, each.text) for each in examine(looks) if each.code == "journal_runs_out"]


def test_when_unread_events_will_be_overwritten_is_told():
    looks = filling([1000, 1050, 1100, 1150, 1200, 1250])
    assert forecasts(looks) == [(Level.PROBLEM, "Partition 17 loses unread events in 49 s at this rate.")]
    assert "journal_nearly_full" not in [each.code for each in examine(filling([3000, 3050, 3100, 3150, 3200, 3250]))]
    slow = filling([1000, 1010, 1020, 1030, 1040, 1050])
    assert forecasts(slow) == [(Level.NOTE, "Partition 17 loses unread events in 264 s at this rate.")]
    nobody = filling([1000, 1050, 1100, 1150, 1200, 1250], workers=())
    assert [each.code for each in examine(nobody)][:2] == ["no_worker", "journal_runs_out"]
    asleep = filling([1000, 1050, 1100, 1150, 1200, 1250], job=record(JobState.SUSPENDED))
    assert [each.code for each in examine(asleep)] == ["journal_runs_out"]


@pytest.mark.parametrize(
    "unread",
    [
        [0, 100, 200, 300, 400, 500],  # what comes between two commits, for all that is known
        [1000, 1500, 900, 1400, 1000, 1500],
        [1500, 1400, 1300, 1200, 1100, 1000],
        [1000, 1001, 1002, 1003, 1004, 1005],  # in an hour
        [1000, 1100, 1200],  # too short to tell
    ],
)
def test_what_is_no_growth_is_no_forecast(unread):
    assert forecasts(filling(unread)) == []


def test_without_the_size_of_the_ring_there_is_no_forecast():
    looks = filling([1000, 1050, 1100, 1150, 1200, 1250])
    bare = [
        Look(
            each.at,
            replace(each.status, positions=tuple(replace(p, room=None, full=0.0) for p in each.status.positions)),
        )
        for each in looks
    ]
    assert forecasts(bare) == []


def test_a_journal_that_is_nearly_full_is_a_note_while_somebody_reads_it():
    full = [position(full=0.9)]
    assert codes(status(full), level=Level.NOTE) == ["journal_nearly_full"]
    assert codes(status(full)) == []


def test_suspended_jobs_are_well_until_their_events_are_overwritten():
    asleep = record(JobState.SUSPENDED)
    assert codes(status(job=asleep, workers=())) == []
    assert codes(status(job=asleep, workers=()), level=Level.NOTE) == ["suspended"]
    assert codes(status([position(full=0.9)], job=asleep, workers=())) == ["journal_full"]


def test_a_failed_job_says_why_and_a_cancelled_one_is_as_it_should_be():
    (finding,) = examine([Look(0.0, status(job=record(JobState.FAILED, "the map is gone"), workers=()))])
    assert finding.code == "failed"
    assert "the map is gone" in finding.text
    assert codes(status(job=record(JobState.CANCELLED), workers=())) == []


@pytest.mark.parametrize("recorded", [JobState.WAITING, JobState.STARTING, JobState.RUNNING])
def test_a_job_for_which_no_worker_lives_waits(recorded):
    assert status(job=record(recorded), workers=()).state is JobState.WAITING
    assert status(job=record(recorded)).state is recorded
    assert status(job=record(recorded), workers=()).to_json()["state"] == "WAITING"


@pytest.mark.parametrize("recorded", [JobState.SUSPENDED, JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_is_not_to_be_scored_for_does_not_wait(recorded):
    assert status(job=record(recorded), workers=()).state is recorded


def test_loss_is_settled_when_no_rescan_is_left():
    lost = {"lost": 7}
    waits = (Rescan(3, "gap", 5),)
    assert codes(*[status(totals=lost, rescans=waits)] * 2) == ["rescan"]
    assert codes(status(totals=lost, rescans=waits), status(totals=lost)) == []
    assert codes(status(totals=lost), level=Level.NOTE) == ["loss_settled"]
    assert codes(status(totals=lost, acknowledged=lost), level=Level.NOTE) == ["loss_acknowledged"]
    assert (
        codes(status(rescans=(Rescan(3, "gap", 5),)), status(rescans=(Rescan(3, "gap", 6),))) == []
    )  # done, and again


def test_loss_that_nobody_makes_good_stays_until_it_is_acknowledged():
    def lossy(**acknowledged):
        return status(job=record(on_loss="continue"), totals={"lost": 7, "regressions": 1}, acknowledged=acknowledged)

    assert codes(lossy()) == ["loss"]
    assert codes(lossy(lost=7)) == ["loss"]
    assert codes(lossy(lost=7, regressions=1)) == []
    assert codes(lossy(lost=7, regressions=1), level=Level.NOTE) == ["loss_acknowledged"]
    assert codes(lossy(lost=6, regressions=1)) == ["loss"]
    (finding,) = examine([Look(0.0, lossy())])
    assert finding.text == "7 events were overwritten before they were read, and journals have begun again 1 time."


def test_models_that_are_refused_and_lookups_that_are_old():
    lookups = {
        "plane": {"age": 700.0, "bad": 0},
        "airport": {"age": 3.0, "entries": 5, "bad": 2, "error": "the entry of 'X': no"},
    }
    found = examine([Look(0.0, status(model_errors=["version 2: other features"], lookups=lookups))])
    assert [each.code for each in found] == ["model", "lookup_old", "lookup_bad"]
    assert "v1 stays in use: version 2: other features" in found[0].text
    assert "`plane` was last known to be right 12 minutes ago" in found[1].text
    assert found[2].text.endswith("count as missing: the entry of 'X': no")


def test_events_without_a_dead_letter_are_a_problem_until_somebody_knows():
    assert codes(status(totals={"unkept": 3})) == ["dead_letters_full"]
    assert codes(status(totals={"unkept": 3}, acknowledged={"unkept": 3})) == []


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.COMPLETED])
def test_a_job_that_has_ended_is_never_a_problem_again(state):
    job = record(state, on_loss="continue")
    over = status(job=job, workers=(), totals={"unkept": 3, "lost": 2}, rescans=(Rescan(1, "audit", 1),))
    assert codes(over) == []
    noted = ["loss", "dead_letters_full"]
    assert codes(over, level=Level.NOTE) == (["cancelled", *noted] if state is JobState.CANCELLED else noted)


def test_dead_letters_are_worth_a_note():
    assert codes(status(totals={"dead_letters": 3}), level=Level.NOTE) == ["dead_letters"]


def lacking(events=1_000, **counts):
    return status(
        figures={"a": JobFigures(quality=QualityFigures(events, **counts)), "b": JobFigures()}, workers=("a", "b")
    )


def test_what_events_lack_is_told_by_its_share():
    assert codes(lacking(missing={"x": 499}, unseen={"c": 49}, misses={"l": 199}), level=Level.NOTE) == []
    bad = lacking(missing={"x": 500}, unseen={"c": 50, "d": 1}, misses={"l": 200})
    assert codes(bad, level=Level.NOTE) == ["lookup_misses", "unseen_categories", "missing_values"]
    assert codes(bad) == []
    useless = lacking(unseen={"c": 500}, misses={"l": 995, "m": 300})
    assert codes(useless) == ["lookup_misses", "unseen_categories"]
    assert codes(useless, level=Level.NOTE) == ["lookup_misses"]
    texts = [each.text for each in examine([Look(0.0, useless)])]
    assert "100% of the last events have no entry for the lookup `l`." in texts
    assert "Of the last events, the model does not know the category: c 50%." in texts
    assert codes(lacking(events=99, misses={"l": 99})) == []


def test_what_events_lack_is_of_all_workers():
    parts = [
        QualityFigures(100, misses={"l": 10}),
        QualityFigures(300, misses={"l": 30}, unseen={"c": 4}),
        QualityFigures(),
    ]
    now = status(figures={str(i): JobFigures(quality=part) for i, part in enumerate(parts)})
    assert now.to_json()["quality"] == {
        "events": 400,
        "lookup_misses": {"l": 0.1},
        "unseen_categories": {"c": 0.01},
        "missing_values": {},
    }


def test_a_lookup_that_is_all_garbage_is_a_problem():
    lookups = {"plane": {"age": 3.0, "entries": 2, "bad": 2, "error": "the entry of 'X': not JSON"}}
    (found,) = examine([Look(0.0, status(lookups=lookups))])
    assert (found.level, found.code) == (Level.PROBLEM, "lookup_bad")
    assert found.text.startswith("All 2 entries of the lookup `plane` cannot be read")
